"""Our GCG against nanoGCG: candidates a second, final losses, success; same models and settings.

    pip install --no-deps nanogcg==0.3.0       # its metadata refuses transformers 5; it works
    python benchmarks/attacks.py                                  # all models: hours on two cores
    python benchmarks/attacks.py --models toy                     # two minutes
    python benchmarks/attacks.py --models refusal --steps 5       # two, and what it trains first
    python benchmarks/attacks.py --models 100m --steps 4 --candidates 64      # four

Two random models, one of the toy world's size and vocabulary and one of about 100 million weights
with 32,000 word pieces; and the toy world's refusal-tuned model, the only one of the three that has
a leaning to say the target (trained now, in minutes, where it is not there yet). Both get the same
model, prompts, targets, first suffix, steps, candidates, top-k and seeds, one after the other in
one process, now the one first, now the other.

nanoGCG 0.3.0 hands keys and values about in the tuples of transformers 4. `Tuples` turns them into
a fresh cache a call, which is what that version did with them: so it keeps its prefix cache, and
gradient steps do not grow it (as they do where it holds a cache object, its issue 22).

- candidates a second: those whose loss was computed (nanoGCG's duplicates, which it computes again,
  are counted, what the check of tokens threw out is not), over the wall time of the whole run.
- final loss: of the *text* that each side returns, put through the chat template and tokenised
  anew, by code of neither.
- success: the greedy answer to that text begins with the target.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from loss import RESULTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from r2d_core.attacks import Surrogate, Target
from r2d_core.attacks.gcg import GCGAnswer
from r2d_core.generation import Request, TransformersGenerator
from r2d_core.provenance import provenance
from r2d_core.records import Behavior, write_json_atomic
from r2d_core.tokenization import encode_prompt, install_chat_template
from r2d_core.toy.base import BaseConfig, make_base_model, make_tokenizer
from r2d_core.toy.evaluation import harmful_behaviors
from r2d_core.toy.language import make_language
from r2d_core.toy.splits import make_splits
from r2d_core.toy.stages import default_checkpoint

try:
    import nanogcg
except ImportError:
    raise SystemExit(
        "error: nanogcg is not installed: pip install --no-deps nanogcg==0.3.0"
    ) from None


class Tuples(torch.nn.Module):
    """A model that takes and gives keys and values as tuples, as those of transformers 4 did."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.device, self.dtype = model.device, model.dtype

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def forward(self, past_key_values: Any = None, **given: Any) -> Any:
        cache = None
        if past_key_values is not None:
            cache = DynamicCache([(keys, values) for keys, values in past_key_values])
        output = self.model(past_key_values=cache, **given)
        if given.get("use_cache"):
            output.past_key_values = [(x.keys, x.values) for x in output.past_key_values.layers]
        return output


def toy() -> tuple[Any, Any, list[Behavior], str]:
    """The toy world's base model, untrained, its requests and a word to begin the suffix with."""
    language = make_language(0)
    tokenizer = make_tokenizer(language)
    model = make_base_model(BaseConfig(), len(tokenizer))
    behaviors = harmful_behaviors(language, make_splits(language, 0), "development", 20, 0)
    return model, tokenizer, behaviors, "please"


def refusal() -> tuple[Any, Any, list[Behavior], str]:
    """The toy world's model that was taught to refuse, and the requests of `toy`."""
    checkpoint = default_checkpoint("refusal", 0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    _, _, behaviors, word = toy()
    return AutoModelForCausalLM.from_pretrained(checkpoint), tokenizer, behaviors, word


def hundred_million() -> tuple[Any, Any, list[Behavior], str]:
    """A random Llama, 12 layers of 640, 32,000 pieces of invented words; 98 million weights."""
    rng = random.Random("attacks-benchmark")
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el")]
    words = ["".join(rng.choices(syllables, k=rng.choice((1, 2, 3)))) for _ in range(60_000)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    lines = [" ".join(rng.choices(words, k=12)) for _ in range(20_000)] + [" x x x x x x x x"]
    backend.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    install_chat_template(tokenizer, "plain")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=640,
        intermediate_size=1728,
        num_hidden_layers=12,
        num_attention_heads=10,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    behaviors = [
        Behavior(
            f"b{i}",
            " ".join(rng.choices(words, k=12)),
            metadata={"target": " ".join(rng.choices(words, k=6))},
        )
        for i in range(60)
    ]
    return LlamaForCausalLM(config), tokenizer, behaviors, "x"


MODELS: dict[str, Callable[[], tuple[Any, Any, list[Behavior], str]]] = {
    "toy": toy,
    "refusal": refusal,
    "100m": hundred_million,
}


class NeverSuccessful:
    """GCG looks at no answer here."""

    name = "none"

    def judge(self, behavior: Any, completion: Any) -> Any:
        raise NotImplementedError

    def score(self, text: str, behavior: Behavior) -> float:
        return 0.0


def ours(
    model: Any, tokenizer: Any, behavior: Behavior, init: str, seed: int, settings: dict[str, int]
) -> dict[str, Any]:
    attack = GCGAnswer(**settings, init=init, keep="any")  # type: ignore[arg-type]
    target = Target(TransformersGenerator(model, tokenizer), NeverSuccessful(), 1)
    begun = time.perf_counter()
    result = attack.optimise([behavior], [Surrogate(model, tokenizer)], target, seed)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "candidates": result.queries - 1, "text": result.text}


def theirs(
    model: Any, tokenizer: Any, behavior: Behavior, init: str, seed: int, settings: dict[str, int]
) -> dict[str, Any]:
    computed = [0]
    losses = nanogcg.gcg.GCG._compute_candidates_loss_original

    def counted(self: Any, batch_size: int, embedded: Any) -> Any:
        computed[0] += len(embedded)
        return losses(self, batch_size, embedded)

    config = nanogcg.GCGConfig(
        num_steps=settings["steps"],
        search_width=settings["candidates"],
        topk=settings["top_k"],
        optim_str_init=f" {init}",
        seed=seed,
        verbosity="ERROR",
    )
    nanogcg.gcg.GCG._compute_candidates_loss_original = counted
    try:
        begun = time.perf_counter()
        # Word pieces carry the space before them; words do not, and the tokenizer drops it.
        result = nanogcg.run(
            Tuples(model), tokenizer, behavior.prompt, behavior.metadata["target"], config
        )
        seconds = time.perf_counter() - begun
    finally:
        nanogcg.gcg.GCG._compute_candidates_loss_original = losses
        torch.use_deterministic_algorithms(False)
    text = result.best_string
    text = text if text.startswith(" ") else f" {text}"
    return {"seconds": seconds, "candidates": computed[0] - 1, "text": text}


SIDES = {"ours": ours, "nanogcg": theirs}


@torch.no_grad()
def judged(model: Any, tokenizer: Any, behavior: Behavior, text: str) -> dict[str, Any]:
    """The loss of the target after the text, and whether greedy decoding gives it."""
    prompt, target = f"{behavior.prompt}{text}", behavior.metadata["target"]
    ids = encode_prompt(tokenizer, prompt, prefill=target)
    asked = len(encode_prompt(tokenizer, prompt))
    logits = model(torch.tensor([ids], device=model.device)).logits[0, asked - 1 : -1]
    wanted = torch.tensor(ids[asked:], device=model.device)
    loss = torch.nn.functional.cross_entropy(logits.float(), wanted)
    (answer,) = TransformersGenerator(model, tokenizer).generate([Request(prompt)], len(wanted))
    return {"loss": float(loss), "success": answer.text.strip().startswith(target.strip())}


def compare(
    name: str, behaviors: int, seeds: int, settings: dict[str, int], device: str
) -> dict[str, Any]:
    """Both sides on one model: every run, and what they come to."""
    model, tokenizer, asked, word = MODELS[name]()
    model = model.to(device).eval()
    # nanoGCG ranks the whole vocabulary and stops where it has fewer tokens than top-k.
    settings = {**settings, "top_k": min(settings["top_k"], len(tokenizer) // 2)}
    runs: list[dict[str, Any]] = []
    init = " ".join([word] * 20)
    warm = {**settings, "steps": 1}
    for side in SIDES.values():
        side(model, tokenizer, asked[0], init, 0, warm)
    for number, behavior in enumerate(asked[:behaviors]):
        for seed in range(seeds):
            order = list(SIDES) if (number + seed) % 2 == 0 else list(SIDES)[::-1]
            for side in order:
                run = SIDES[side](model, tokenizer, behavior, init, seed, settings)
                run |= judged(model, tokenizer, behavior, run.pop("text"))
                run |= {"side": side, "behavior": behavior.id, "seed": seed}
                runs.append(run)
                rate = run["candidates"] / run["seconds"]
                print(
                    f"{name:5} {side:8} {behavior.id:20} {rate:9.1f} candidates/s"
                    f"  loss {run['loss']:.4f}"
                )
    return {
        "model": name,
        "weights": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "settings": settings,
        "summary": {side: summary([r for r in runs if r["side"] == side]) for side in SIDES},
        "speedup": ratio(runs),
        "runs": runs,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals and the distribution of the final losses."""
    losses = sorted(run["loss"] for run in runs)
    return {
        "runs": len(runs),
        "candidates_per_second": sum(r["candidates"] for r in runs)
        / sum(r["seconds"] for r in runs),
        "loss_median": statistics.median(losses),
        "loss_quartiles": statistics.quantiles(losses, n=4) if len(losses) > 1 else losses * 3,
        "success": sum(r["success"] for r in runs) / len(runs),
    }


def ratio(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Our candidates a second over theirs, of each pair of runs: geometric mean and extremes."""
    rate = {(r["side"], r["behavior"], r["seed"]): r["candidates"] / r["seconds"] for r in runs}
    pairs = [rate["ours", b, s] / rate["nanogcg", b, s] for side, b, s in rate if side == "ours"]
    return {
        "mean": math.exp(statistics.fmean(map(math.log, pairs))),
        "least": min(pairs),
        "most": max(pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--behaviors", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=512)
    parser.add_argument("--top-k", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/…")
    given = parser.parse_args()
    started = datetime.now(UTC)
    settings = {"steps": given.steps, "candidates": given.candidates, "top_k": given.top_k}
    results = [
        compare(name, given.behaviors, given.seeds, settings, given.device) for name in given.models
    ]
    for result in results:
        print(f"\n{result['model']}: {result['weights'] / 1e6:.1f} million weights")
        for side, found in result["summary"].items():
            print(f"  {side:8} {found['candidates_per_second']:9.1f} candidates/s, median loss "
                  f"{found['loss_median']:.4f}, success {found['success']:.0%}")  # fmt: skip
        print(f"  ours is {result['speedup']['mean']:.2f} × as fast")
    where = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    parts = ["attacks", *given.models, where.replace(" ", "-").lower()]
    out = given.out or RESULTS / f"{'-'.join(parts)}.json"
    parameters = {key: value for key, value in vars(given).items() if key != "out"}
    parameters |= {"device": where, "nanogcg": "0.3.0"}
    record = {"provenance": provenance(parameters, list(range(given.seeds)), started)}
    record |= {"threads": torch.get_num_threads(), "results": results}
    write_json_atomic(out, record)
    print(out)


if __name__ == "__main__":
    main()
