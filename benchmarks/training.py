"""Training steps as ours are and as the authors' are: tokens a second, peak memory, the loss.

    python benchmarks/training.py                 # both models, table and JSON
    python benchmarks/training.py --models tiny   # seconds: does everything run?

Both ways train LoRA of the paper on the same examples, of which a step holds ``--window``, from the
same random model, in one process and in turn, so that a busy machine slows both alike. A time is
the median over rounds.

ours      packed batches, attention by example; the output layer asked for the loss; only the new
          tokens' rows trained; activations kept
whole     ours, but training what the authors train, under their dropout
authors   as they launch it (expand_and_train.sh, train.py): one example at a time; activations
          computed again (``--gradient_checkpointing``); logits of all positions in float32 and
          shifted copies of them; cross-entropy and contrast from those; embedding and output
          matrix trained whole (``modules_to_save``); LoRA with dropout 0.05. The loss is divided by
          the window, which their code forgets, so that both minimise the same.
kept      the authors' with activations kept: what is ours besides keeping them

Each row tells the loss of its first step: they must agree, or one of them trains something else. It
tells that of its last, too, after as many steps on the same window, the authors' and that of
*whole* under dropout: these are to agree but for it. Ours trains eight rows where they train two
matrices, and comes less far on texts as random as these. On a CPU it tells the products'
floating-point operations besides: where they take all the time, as a large model's do there, no
way of ordering them gains more than their ratio.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from loss import PIVOTS, RESULTS, ROWS, peak_memory, synchronize
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from r2d_core.adapters import LoraSettings, add_adapters
from r2d_core.authors_recipe import THEIR_LORA
from r2d_core.batching import PackingCollator, Row
from r2d_core.losses import r2d_loss
from r2d_core.output_layer import OutputLayer
from r2d_core.packed_attention import attention_by_example
from r2d_core.provenance import provenance
from r2d_core.records import write_json_atomic
from r2d_core.tokenization import IGNORED


@dataclass(frozen=True)
class Shape:
    """A Llama-like model, untied, and how long the examples are on average."""

    hidden: int
    layers: int
    vocabulary: int
    mean_length: int
    intermediate: int
    rank: int = 64


MODELS = {
    "tiny": Shape(hidden=128, layers=2, vocabulary=8192, mean_length=64, intermediate=352, rank=8),
    "100M": Shape(
        hidden=512, layers=12, vocabulary=64000, mean_length=256, intermediate=1376, rank=64
    ),
    "1B": Shape(
        hidden=2048, layers=16, vocabulary=128256, mean_length=512, intermediate=5632, rank=64
    ),
}


def random_model(shape: Shape, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=max(1, shape.hidden // 256),
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype=dtype)


def examples(shape: Shape, n: int) -> list[Row]:
    """Random texts as long as reasoning is: lengths spread by a factor of some; a third prompt."""
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for _ in range(n):
        length = int(np.clip(random.lognormal(np.log(shape.mean_length), 0.5), 8, 4096))
        ids = random.integers(20, shape.vocabulary, length).tolist()
        ids[length // 2] = PIVOTS.rethink
        ids[-3] = int(random.choice([PIVOTS.safe, PIVOTS.unsafe]))
        labels = [IGNORED] * (length // 3) + ids[length // 3 :]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def counts(rows: Sequence[Row]) -> tuple[int, list[int]]:
    """Targets of the window, and of each class."""
    labels = [label for row in rows for label in row["labels"][1:] if label != IGNORED]
    return len(labels), [labels.count(i) for i in (PIVOTS.safe, PIVOTS.unsafe, PIVOTS.rethink)]


def ours(model: Any, rows: Sequence[Row], device: str, batch_size: int) -> Tensor:
    """One window, forward and backward; its loss."""
    n_items, class_counts = counts(rows)
    collate, total = PackingCollator(), torch.zeros((), device=device)
    head = OutputLayer.of(model)
    adapted = hasattr(model, "get_base_model")
    with attention_by_example(model.get_base_model() if adapted else model):
        for start in range(0, len(rows), batch_size):
            batch = collate(rows[start : start + batch_size])
            batch |= {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor)}
            targets = F.pad(batch.pop("labels")[:, 1:], (0, 1), value=IGNORED).flatten()

            def loss_of(hidden: Tensor, targets: Tensor = targets) -> Tensor:
                return r2d_loss(
                    hidden.flatten(0, 1),
                    targets=targets,
                    pivots=PIVOTS,
                    n_items=n_items,
                    class_counts=class_counts,
                    **head.loss_arguments(),
                ).total

            with (
                head.replaced_by(loss_of),
                torch.autocast(device, torch.bfloat16, device == "cuda"),
            ):
                loss = model(**batch, use_cache=False).logits
            loss.backward()
            total += loss.detach()
    return total


def authors(model: Any, rows: Sequence[Row], device: str, batch_size: int) -> Tensor:
    """The same, one example at a time, from logits."""
    n_items, (n_safe, n_unsafe, _) = counts(rows)
    total = torch.zeros((), device=device)
    for row in rows:
        ids = torch.tensor([row["input_ids"]], device=device)
        labels = torch.tensor([row["labels"]], device=device)
        with torch.autocast(device, torch.bfloat16, device == "cuda"):
            logits = model(input_ids=ids, use_cache=False).logits
        shifted = logits.float()[..., :-1, :].contiguous().flatten(0, 1)
        targets = labels[..., 1:].contiguous().flatten()
        loss = F.cross_entropy(shifted, targets, ignore_index=IGNORED, reduction="sum") / n_items
        for right, wrong, n in (
            (PIVOTS.safe, PIVOTS.unsafe, n_safe),
            (PIVOTS.unsafe, PIVOTS.safe, n_unsafe),
        ):
            margin = (shifted[:, right] - shifted[:, wrong])[targets == right]
            loss = loss - F.logsigmoid(margin).sum() / max(n, 1)
        loss.backward()
        total += loss.detach()
    return total


WAYS: dict[str, tuple[Callable[..., Tensor], dict[str, Any], bool]] = {
    # How a window is done, the adapters' settings, whether activations are computed again.
    "ours": (ours, {"new_rows": "rows"}, False),
    "whole": (ours, THEIR_LORA, False),
    "authors": (authors, THEIR_LORA, True),
    "kept": (authors, THEIR_LORA, False),
}


Shapes = Sequence[int]


def of_attention(query: Shapes, key: Shapes, value: Shapes, *_: Any, **__: Any) -> int:
    """Operations of attention in which several heads share their keys and values."""
    return sdpa_flop_count(query, [*query[:2], *key[2:]], [*query[:2], *value[2:]])


def of_its_gradient(
    gradient: Shapes, query: Shapes, key: Shapes, value: Shapes, *_: Any, **__: Any
) -> int:
    heads = query[:2]
    return sdpa_backward_flop_count(gradient, query, [*heads, *key[2:]], [*heads, *value[2:]])


def of_added_product(added: Shapes, left: Shapes, right: Shapes, *_: Any, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


# torch's own counts refuse shared keys and values (as of 2.11; 2.13 counts them) and a sum wider
# than its products (as of 2.13).
OPERATIONS = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}_attention{suffix}"): count
    for kind in ("flash", "efficient", "cudnn")
    for suffix, count in (("", of_attention), ("_backward", of_its_gradient))
} | {torch.ops.aten.addmm: of_added_product}


def measure(name: str, device: str, window: int, batch_size: int, rounds: int) -> list[dict]:
    """One row for each way of training the model called ``name``."""
    shape = MODELS[name]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = examples(shape, window)
    tokens = sum(len(row["input_ids"]) for row in rows)
    steps: dict[str, Callable[[], Tensor]] = {}
    for way, (gradients, lora, checkpointing) in WAYS.items():
        model = random_model(shape, device, dtype)
        settings = LoraSettings(**{**lora, "rank": shape.rank, "alpha": float(shape.rank)})
        adapted = add_adapters(model, settings, ROWS.tolist()).to(device).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=2e-4)

        def step(
            gradients: Any = gradients,
            model: Any = adapted,
            trained: Any = trained,
            optimizer: Any = optimizer,
        ) -> Tensor:
            loss = gradients(model, rows, device, batch_size)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        steps[way] = step
    found: dict[str, dict[str, Any]] = {way: {"model": name, "way": way} for way in steps}
    for way, step in steps.items():
        # The counter takes a minute of a GPU's time, where operations say less than on a CPU.
        counter = FlopCounterMode(display=False, custom_mapping=OPERATIONS)
        with counter if device == "cpu" else nullcontext():
            found[way]["first_loss"] = float(step())  # and warms up
        if device == "cpu":
            found[way]["flops"] = counter.get_total_flops()
    for way, step in steps.items():
        gc.collect()
        with peak_memory(device) as peak:
            step()
        # Beside weights, adapters and optimizer states, which are there before.
        found[way]["step_peak_mib"] = peak[0] / 2**20
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for _ in tqdm(range(rounds), desc=name, unit="round"):
        for way, step in steps.items():
            synchronize(device)
            began = time.perf_counter()
            loss = step()
            synchronize(device)
            seconds[way].append(time.perf_counter() - began)
            found[way]["last_loss"] = float(loss)
    for way, row in found.items():
        row["seconds"] = statistics.median(seconds[way])
        row["tokens_per_second"] = tokens / row["seconds"]
        row["spread"] = (max(seconds[way]) - min(seconds[way])) / row["seconds"]
    reference = found["authors"]
    for row in found.values():
        row["times_authors"] = row["tokens_per_second"] / reference["tokens_per_second"]
        row["memory_of_authors"] = row["step_peak_mib"] / reference["step_peak_mib"]
        if "flops" in row:
            row["flops_of_authors"] = row["flops"] / reference["flops"]
        row["steps"] = rounds + 2
        row |= {"tokens": tokens, "window": window, "batch_size": batch_size}
        row["dtype"] = str(dtype).removeprefix("torch.")
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usual = ["tiny", "100M"] + (["1B"] if device == "cuda" else [])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=usual)
    parser.add_argument("--device", default=device)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=32, help="examples of a step")
    parser.add_argument("--batch-size", type=int, default=8, help="examples packed together")
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/…")
    given = parser.parse_args()
    started = datetime.now(UTC)
    rows: list[dict] = []
    code: dict[str, Any] = {}
    where = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    settings = {"device": where, "rounds": given.rounds, "models": given.models}
    out = given.out or RESULTS / f"training-{where.replace(' ', '-').lower()}.json"
    for name in given.models:
        rows += measure(name, given.device, given.window, given.batch_size, given.rounds)
        made = provenance(settings, [0], started)
        # Of the code as it was before this file, which git may keep, was written.
        code = code or {"commit": made["commit"], "dirty": made["dirty"]}
        write_json_atomic(out, {"rows": rows, "provenance": made | code})
    pd.set_option("display.width", 160)
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    print(out)


if __name__ == "__main__":
    main()
