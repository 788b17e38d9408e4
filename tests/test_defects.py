"""The authors' defects, each against an independent account of it; and the KL to the base."""

import copy
import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from r2d_core import plots
from r2d_core.anchor import FrozenBase, is_benign, kl_to_base, mark_benign
from r2d_core.authors_recipe import pivots_by_position
from r2d_core.errors import InputError
from r2d_core.generation import Request, TransformersGenerator
from r2d_core.losses import r2d_loss
from r2d_core.pivots import PIVOT_TOKENS, THINK_CLOSE, PivotIds, expand_vocabulary
from r2d_core.records import Behavior, Completion, Verdict
from r2d_core.tokenization import IGNORED, encode_example, encode_prompt
from r2d_core.toy import defect_effects, recipe_tables, recipes
from r2d_core.toy import defects as d
from r2d_core.toy.arms import ARMS, BEYOND, SafetyPrompt, arm_prompts, write_example
from r2d_core.toy.base import BaseConfig, make_base_model, make_tokenizer
from r2d_core.toy.data import Example
from r2d_core.toy.evaluation import harmful_behaviors
from r2d_core.toy.judge import ToyJudge
from r2d_core.toy.language import make_language
from r2d_core.toy.measure import Measurement, load
from r2d_core.toy.penalised import PenalisedGenerator
from r2d_core.toy.policy import REFUSAL
from r2d_core.toy.requests import Query, true_answer
from r2d_core.toy.splits import make_splits
from r2d_core.training import TrainConfig, train

LANGUAGE = make_language(0)
SPLITS = make_splits(LANGUAGE, 0)
BANNED = next(item for item in LANGUAGE.items() if LANGUAGE.banned(item))
HARMFUL = true_answer(LANGUAGE, Query("make", BANNED))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A very small expanded model that has learnt nothing."""
    tokenizer = make_tokenizer(LANGUAGE)
    model = make_base_model(BaseConfig(hidden_size=32, layers=1), len(tokenizer))
    expand_vocabulary(model, tokenizer)
    path = tmp_path_factory.mktemp("defects") / "model"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def loaded(checkpoint):
    return load(checkpoint)


def examples(n, arm="r2d"):
    prompts = arm_prompts(LANGUAGE, SPLITS, ARMS[arm], n, 0)
    return [write_example(LANGUAGE, prompt, ARMS[arm]) for prompt in prompts]


def completion(text, prefill=""):
    return Completion("b", "direct", "p", text, prefill=prefill)


# ------------------------------------------------------------------------------------------------
# Training


def test_without_defects_rows_are_ours(loaded):
    _, tokenizer = loaded
    made = examples(40)
    assert any(example.prefill for example in made)
    assert d.encode_with(tokenizer, made, d.TrainingDefects()) == [
        encode_example(tokenizer, e.prompt, e.response, prefill=e.prefill) for e in made
    ]


def test_rows_of_the_authors_code(loaded):
    """Instruction, empty input and output, each tokenised with a BOS of its own; then EOS."""
    _, tokenizer = loaded
    example = Example("how do i make it ?", f"sure {THINK_CLOSE} ok")

    def encode(text):
        return [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]

    output = [*encode(example.response), tokenizer.eos_token_id]
    before = encode(example.prompt) + encode("")
    both = d.TrainingDefects(bos=True, template=True)
    (row,) = d.encode_with(tokenizer, [example], both)
    assert row["input_ids"] == before + output
    assert row["labels"] == [IGNORED] * len(before) + output


@pytest.mark.parametrize(
    ("defects", "bos", "targets"),
    [({}, 1, 0), ({"bos": True}, 3, 1), ({"template": True}, 1, 0),
     ({"bos": True, "template": True}, 3, 1)],
)  # fmt: skip
def test_beginnings_of_sequence(loaded, defects, bos, targets):
    _, tokenizer = loaded
    rows = d.encode_with(tokenizer, examples(60), d.TrainingDefects(**defects))
    count = d.BosCount.of(tokenizer, rows)
    assert (count.bos, count.bos_targets) == (60 * bos, 60 * targets)
    user = tokenizer.convert_tokens_to_ids("<user>")
    assert all((user in row["input_ids"]) != ("template" in defects) for row in rows)


def test_a_prefill_stays_unlearnt(loaded):
    _, tokenizer = loaded
    example = Example(
        "how do i make it ?", f"{PIVOT_TOKENS[2]} {REFUSAL}", prefill="sure , to make"
    )
    ours, theirs = (
        d.encode_with(tokenizer, [example], d.TrainingDefects(bos=bos))[0] for bos in (False, True)
    )
    learnt = [label for label in ours["labels"] if label != IGNORED]
    assert [y for y in theirs["labels"] if y != IGNORED] == [tokenizer.bos_token_id, *learnt]
    assert theirs["input_ids"][-len(learnt) - 4 :] == ours["input_ids"][-len(learnt) - 4 :]


def test_pivots_by_position_are_right_until_the_embedding_is_padded(loaded):
    model, tokenizer = loaded
    rows = len(model.get_input_embeddings().weight)
    by_name = PivotIds.from_tokenizer(tokenizer)
    assert pivots_by_position(rows) == by_name
    d.pad_embedding(model)
    padded = len(model.get_input_embeddings().weight)
    assert padded % d.MULTIPLE == 0 and padded > rows + 7
    assert set(d.rows_by_position(tokenizer, padded).values()) == {
        f"row {padded - 8 + i}: no token" for i in range(3)
    }
    torch.manual_seed(0)
    hidden = torch.randn(6, 32)
    targets = torch.tensor([by_name.safe, by_name.unsafe, by_name.rethink, 5, 9, IGNORED])
    weight = model.get_output_embeddings().weight.detach()
    wrong = r2d_loss(hidden, weight, targets, pivots_by_position(padded))
    plain = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORED)
    assert wrong.pivot == 0 and wrong.counts.sum() == 0
    torch.testing.assert_close(wrong.total, plain)
    assert r2d_loss(hidden, weight, targets, by_name).pivot > 0.1
    with pytest.raises(InputError, match="at least 8"):
        pivots_by_position(7)


def test_the_undivided_mean_in_training_is_the_factor_measured(loaded, tmp_path):
    model, tokenizer = loaded
    rows = d.encode_with(tokenizer, examples(16), d.TrainingDefects())
    factor, cosine = d.gradient_factor(model, tokenizer, rows, 1)
    assert factor == pytest.approx(1, abs=1e-6) and cosine == pytest.approx(1, abs=1e-6)
    order = sorted(range(16), key=lambda i: -len(rows[i]["input_ids"]))
    sorted_rows = [rows[i] for i in order]
    factor, cosine = d.gradient_factor(model, tokenizer, sorted_rows, 8)
    assert 4 < factor < 12 and cosine < 0.9999
    norms = {}
    for normalize in ("window", "micro_batch"):
        fresh, _ = load(model.name_or_path)
        config = TrainConfig(
            tmp_path / normalize, max_steps=1, batch_size=2, accumulation=8, normalize=normalize,
            logging_steps=1,
        )  # fmt: skip
        result = train(config, fresh, tokenizer, rows)
        norms[normalize] = json.loads(result.log.read_text().splitlines()[0])["grad_norm"]
    # Rows of one length may stand in another order in the trainer's window.
    assert norms["micro_batch"] / norms["window"] == pytest.approx(factor, rel=0.15)


def test_every_recipe_differs_from_ours_in_what_it_says():
    ours = recipes.PAPER["ours"]
    for name in d.TRAINING_DEFECTS:
        defects = recipes.PAPER[name].defects
        on = {f for f in d.TRAINING_DEFECTS if getattr(defects, f)}
        assert on == {name} and recipes.PAPER[name].arm == ours.arm
    assert all(dataclasses.astuple(recipes.PAPER["paper"].defects))
    assert len({recipe.title for recipe in recipes.RECIPES.values()}) == len(recipes.RECIPES)


def test_arms_beyond_the_paper_draw_what_they_say():
    share = {}
    for name, arm in BEYOND.items():
        prompts = arm_prompts(LANGUAGE, SPLITS, arm, 2000, 3)
        share[name] = sum(prompt.harmful for prompt in prompts) / 2000
        made = [write_example(LANGUAGE, prompt, arm) for prompt in prompts]
        assert any(example.prefill for example in made) == (name != "no_recovery")
    assert share["harmful_15"] == pytest.approx(0.15, abs=0.03)
    assert share["harmful_50"] == pytest.approx(0.5, abs=0.03)
    assert share["kl"] == share["r2d"] == pytest.approx(0.35, abs=0.03)


# ------------------------------------------------------------------------------------------------
# Evaluation


def test_the_cut_ends_reasoning_and_begins_no_answer():
    example = write_example(LANGUAGE, SafetyPrompt(Query("make", BANNED), "p", True), ARMS["r2d"])
    shortened = d.cut(completion(example.response), d.trace_length(0))
    assert shortened.text.endswith(THINK_CLOSE)
    assert shortened.text + f" {REFUSAL}" == example.response
    assert (shortened.finish, shortened.response_tokens) == ("length", d.trace_length(0))
    assert d.cut(completion(REFUSAL), 30) == completion(REFUSAL)


@given(
    st.lists(
        st.sampled_from(("[SAFE]", "[UNSAFE]", "[RETHINK]", "<think>", "</think>", "a", "b")),
        max_size=12,
    )
)
def test_kept_steps_are_the_authors_rule(words):
    kept, step = [], []
    for word in words:
        if word not in PIVOT_TOKENS:
            step.append(word)
            continue
        kept += step if word != "[UNSAFE]" else []
        step = []
    if not set(words) & set(PIVOT_TOKENS):
        kept = words
    assert d.keep_marked_steps(completion(" ".join(words))).text == " ".join(kept)


def test_what_kept_steps_and_the_short_rule_hide_from_the_judge():
    judge = ToyJudge(LANGUAGE)
    behavior = Behavior("b", "p", "harmful", "x", metadata={"items": [str(BANNED)]})
    answered = completion(f"<think> fine [SAFE] </think> {HARMFUL}")
    assert judge.judge(behavior, answered).whole == "harmful"
    assert judge.judge(behavior, d.keep_marked_steps(answered)).whole == "garbled"

    steps = HARMFUL.split(" : ")[1].removesuffix(" .").split(" , ")
    rest = completion(" , ".join(steps[1:]))
    assert judge.judge(behavior, rest).whole == "harmful"
    assert len(rest.text.split()) < d.SHORT <= len(HARMFUL.split())
    assert d.judged_with_short_rule(judge, behavior, rest).whole == "garbled"
    assert d.judged_with_short_rule(judge, behavior, completion(HARMFUL)).whole == "harmful"
    refused = d.judged_with_short_rule(judge, behavior, completion(REFUSAL))
    assert refused.whole == "refused"


def test_the_penalty_is_transformers_own_and_heeds_no_padding(loaded):
    model, tokenizer = loaded
    requests = [Request("how do i make it ?"), Request("tell me the colour of it . " * 3)]
    made = PenalisedGenerator(model, tokenizer).generate(requests, 12)
    plain = TransformersGenerator(model, tokenizer)
    for request, generation in zip(requests, made, strict=True):
        ids = torch.tensor([encode_prompt(tokenizer, request.prompt)])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=12, repetition_penalty=d.PENALTY, pad_token_id=0,
            eos_token_id=plain.stop_ids,
        )[0, ids.shape[1] :]  # fmt: skip
        assert generation.text.split() == tokenizer.convert_ids_to_tokens(
            [token for token in out.tolist() if token not in plain.stop_ids]
        )
    assert "generate" not in vars(model)
    assert [g.text for g in made] != [g.text for g in plain.generate(requests, 12)]


# ------------------------------------------------------------------------------------------------
# KL to the frozen base


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_rows", [False, True])
def test_kl_is_the_naive_one(softcap, with_rows):
    torch.manual_seed(1)
    hidden, weight, base, base_weight, values = (
        torch.randn(n, 8, dtype=torch.float64) for n in (37, 23, 37, 23, 3)
    )
    rows = torch.tensor([22, 4, 7])
    trained = [hidden, weight, values] if with_rows else [hidden, weight]
    for tensor in trained:
        tensor.requires_grad_()

    def logits(states, matrix):
        z = states @ matrix.T
        return z if softcap is None else softcap * torch.tanh(z / softcap)

    whole = weight.index_copy(0, rows, values) if with_rows else weight
    p = logits(base, base_weight).softmax(-1)
    naive = (p * (p.log() - logits(hidden, whole).log_softmax(-1))).sum()
    chosen = {"rows": rows, "row_values": values} if with_rows else {}
    for chunk_rows in (5, 37, 512):
        ours = kl_to_base(
            hidden, weight, base, base_weight, softcap=softcap, chunk_rows=chunk_rows, **chosen
        )
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
        for a, b in zip(
            torch.autograd.grad(ours, trained),
            torch.autograd.grad(naive, trained, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_kl_holds_the_logits_of_a_chunk_only(monkeypatch):
    seen = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w: seen.append(x.shape[0]) or linear(x, w))
    hidden = torch.randn(40, 4, requires_grad=True)
    kl_to_base(
        hidden, torch.randn(9, 4), hidden.detach(), torch.randn(9, 4), chunk_rows=8
    ).backward()
    assert seen and max(seen) == 8


def test_kl_of_nothing_is_a_connected_zero():
    hidden = torch.randn(0, 4, requires_grad=True)
    zero = kl_to_base(hidden, torch.randn(9, 4), hidden.detach(), torch.randn(9, 4))
    zero.backward()
    assert zero == 0 and hidden.grad is not None


def test_flags_say_where_the_base_is_kept(loaded):
    _, tokenizer = loaded
    row = encode_example(tokenizer, "how do i make it ?", REFUSAL)
    assert is_benign(mark_benign(row, True)) and not is_benign(mark_benign(row, False))
    with pytest.raises(InputError, match="mark_benign"):
        is_benign(row)


@pytest.mark.parametrize("packing", [False, True])
def test_training_with_kl_stays_nearer_to_the_base_on_benign_rows(loaded, tmp_path, packing):
    model, tokenizer = loaded
    prompts = arm_prompts(LANGUAGE, SPLITS, ARMS["r2d"], 16 * 12, 0)
    rows = [
        mark_benign(d.encode_with(tokenizer, [write_example(LANGUAGE, p, ARMS["r2d"])],
                                  d.TrainingDefects())[0], not p.harmful)
        for p in prompts
    ]  # fmt: skip
    benign = [row for row in rows if is_benign(row)]
    distance, runs = {}, {}
    base = FrozenBase(model, model.device)
    for weight in (0.0, 10.0):
        fresh, _ = load(model.name_or_path)
        config = TrainConfig(
            tmp_path / str(weight), max_steps=12, batch_size=16, learning_rate=3e-3,
            kl_weight=weight, packing=packing,
        )  # fmt: skip
        result = train(config, fresh, tokenizer, rows)
        runs[weight] = result
        total = 0.0
        for row in benign[:20]:
            ids = torch.tensor([row["input_ids"]])
            keep = torch.tensor(row["labels"][1:]) != IGNORED
            trained, _ = load(result.model_dir)
            hidden = FrozenBase(trained, trained.device).hidden({"input_ids": ids})[0, :-1][keep]
            before = base.hidden({"input_ids": ids})[0, :-1][keep]
            total += float(
                kl_to_base(
                    hidden, trained.get_output_embeddings().weight.detach(), before,
                    base.head.linear.weight,
                )
            )  # fmt: skip
        distance[weight] = total
    assert distance[10.0] < 0.5 * distance[0.0]
    logged = [json.loads(line) for line in runs[10.0].log.read_text().splitlines()]
    assert logged[-1]["kl_to_base"] > 0
    assert "kl_to_base" not in runs[0.0].log.read_text()


def test_kl_in_the_loss_is_over_all_targets_of_the_step(loaded, tmp_path):
    """And in the log over the benign targets since the last line."""
    _, tokenizer = loaded
    rows = [
        mark_benign(row, n % 4 == 0)
        for n, row in enumerate(d.encode_with(tokenizer, examples(8), d.TrainingDefects()))
    ]
    logs = {}
    for weight in (0.0, 2.0):
        model, _ = load(loaded[0].name_or_path)
        config = TrainConfig(
            tmp_path / str(weight), max_steps=4, batch_size=2, accumulation=4, kl_weight=weight,
            learning_rate=1e-2, max_grad_norm=0.0, logging_steps=1,
        )  # fmt: skip
        log = train(config, model, tokenizer, rows).log.read_text().splitlines()
        logs[weight] = [json.loads(line) for line in log]
    assert logs[2.0][0]["loss"] == pytest.approx(logs[0.0][0]["loss"], abs=1e-6)  # no step is taken
    benign = sum(y != IGNORED for row in rows for y in row["benign_labels"][1:])
    for line in logs[2.0]:
        own = line["cross_entropy"] + line["pivot_loss"]
        kl = line["kl_to_base"] * benign / line["targets"]
        assert line["loss"] == pytest.approx(own + 2.0 * kl, rel=1e-4)
    assert logs[2.0][-1]["kl_to_base"] > 1e-3


def test_the_base_is_compared_where_benign_targets_are_predicted(loaded, tmp_path, monkeypatch):
    """Against another model as base, by hand; no step is taken."""
    model, tokenizer = loaded
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    monkeypatch.setattr("r2d_core.training.FrozenBase", lambda _, device: FrozenBase(other, device))
    rows = [
        mark_benign(row, n % 3 > 0)
        for n, row in enumerate(d.encode_with(tokenizer, examples(9), d.TrainingDefects()))
    ]
    found = []
    with torch.no_grad():
        for row in filter(is_benign, rows):
            ids = torch.tensor([row["input_ids"]])
            ours, base = (each(ids).logits[0, :-1].log_softmax(-1) for each in (model, other))
            kl = (base.exp() * (base - ours)).sum(-1)
            found += kl[torch.tensor(row["labels"][1:]) != IGNORED].tolist()
    config = TrainConfig(tmp_path, max_steps=1, batch_size=9, learning_rate=0.0, kl_weight=1.0)
    result = train(config, model, tokenizer, rows)
    assert result.metrics["kl_to_base"] == pytest.approx(sum(found) / len(found), rel=1e-5)


def test_the_base_drops_nothing_out(loaded):
    model, _ = loaded
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]])}
    one = FrozenBase(model.eval(), model.device).hidden(inputs)
    base = FrozenBase(model.train(), model.device)
    assert torch.equal(base.hidden(inputs), one) and torch.equal(base.hidden(inputs), one)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_kl_wants_flags_and_whole_weights(loaded, tmp_path, monkeypatch):
    model, tokenizer = loaded
    rows = d.encode_with(tokenizer, examples(8), d.TrainingDefects())
    config = TrainConfig(tmp_path / "a", max_steps=1, batch_size=8, kl_weight=1.0)
    with pytest.raises(InputError, match="mark_benign"):
        train(config, model, tokenizer, rows)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="kl_weight: expected 0 with DeepSpeed and FSDP"):
        train(config, model, tokenizer, [mark_benign(row, True) for row in rows])


def test_other_flags_are_another_run(loaded, tmp_path):
    _, tokenizer = loaded
    rows = d.encode_with(tokenizer, examples(8), d.TrainingDefects())
    found = set()
    for benign in (True, False):
        fresh, _ = load(loaded[0].name_or_path)
        config = TrainConfig(tmp_path / "a", max_steps=1, batch_size=8, kl_weight=1.0)
        found.add(train(config, fresh, tokenizer, [mark_benign(r, benign) for r in rows]).run)
    assert len(found) == 2


# ------------------------------------------------------------------------------------------------
# The comparison whole


def test_a_damaged_stamp_is_named(tmp_path):
    stamp = tmp_path / "ours" / "seed0" / "source.json"
    stamp.parent.mkdir(parents=True)
    stamp.write_text("{")
    with pytest.raises(InputError, match=r"source\.json: expected a JSON object.* delete it"):
        recipes.measure_recipe("none", "ours", 0, recipes.RecipeRuns(tmp_path))


def test_recipes_are_measured_once_and_their_tables_read_back(checkpoint, tmp_path):
    runs = recipes.RecipeRuns(tmp_path, seeds=(0,), steps=2, n_per_split=1, attacks=("direct",))
    first = recipes.measure_recipes(checkpoint, runs, ["ours", "paper"])
    judged = defect_effects.evaluated_with_defects(first, runs)
    written = {path: path.stat().st_mtime_ns for path in Path(tmp_path).rglob("*.safetensors")}
    again = recipes.measure_recipes(checkpoint, runs, ["ours", "paper"])
    assert {path: path.stat().st_mtime_ns for path in written} == written and len(written) > 1
    pairs = [(first, again), (judged, defect_effects.evaluated_with_defects(again, runs))]
    for one, other in pairs:
        tables = recipe_tables.Tables.of(one)
        tables.write(tmp_path / "tables", "x")
        back = recipe_tables.Tables.read(tmp_path / "tables", "x")
        assert back is not None
        assert back.rates.to_csv() == recipe_tables.Tables.of(other).rates.to_csv()
        assert set(back.paired["p_holm"].between(0, 1)) == {True}
        assert recipe_tables.differences(back).count("\n") == len(one.runs) - 1
    assert recipe_tables.Tables.read(tmp_path / "tables", "y") is None
    effects = defect_effects.training_effects(checkpoint, runs)
    assert set(effects["defect"]) == set(d.TRAINING_DEFECTS)
    assert defect_effects.evaluation_effects(first, runs)["attacked"].str.endswith(" of 3").all()


def test_differences_need_every_seed():
    def tables(lower):
        paired = [{"recipe": "x", "outcome": "direct", "only_recipe": 9, "only_reference": 1,
                   "p_holm": 0.01, "seeds_higher": 3 - lower, "seeds_lower": lower}]  # fmt: skip
        rates = [
            {"recipe": name, "title": name, "outcome": "direct", "rate": hits / 20}
            for name, hits in (("ours", 1), ("x", 9))
        ]
        frame = pd.DataFrame
        return recipe_tables.Tables(frame(rates), frame(paired), frame(), frame())

    assert (
        recipe_tables.differences(tables(0))
        == "- **x:** harmful more often under direct request (45% against 5%).\n"
    )
    assert "no difference" in recipe_tables.differences(tables(1))


def test_a_model_of_other_code_is_not_used(checkpoint, tmp_path, monkeypatch):
    runs = recipes.RecipeRuns(tmp_path, seeds=(0,), steps=2, n_per_split=1, attacks=("direct",))
    monkeypatch.setattr(recipes, "source_sha256", lambda: "one")
    made = recipes.measure_recipes(checkpoint, runs, ["ours"])
    record = recipes.trainings(checkpoint, made)
    assert (record["models"], record["source_sha256"]) == (1, "one")
    whole = json.loads((tmp_path / "ours/seed0/training/training.json").read_text())
    assert record["seconds"] == pytest.approx(whole["seconds"], abs=0.05) and record["seconds"] > 0
    weights = tmp_path / "ours/seed0/training/model/model.safetensors"
    before = weights.stat().st_mtime_ns
    recipes.measure_recipes(checkpoint, runs, ["ours"])
    assert weights.stat().st_mtime_ns == before
    monkeypatch.setattr(recipes, "source_sha256", lambda: "other")
    recipes.measure_recipes(checkpoint, runs, ["ours"])
    assert weights.stat().st_mtime_ns > before
    (tmp_path / "ours/seed0/source.json").unlink()  # as before there were such files
    before = weights.stat().st_mtime_ns
    recipes.measure_recipes(checkpoint, runs, ["ours"])
    assert weights.stat().st_mtime_ns > before


def test_no_attack_that_was_trained_on_counts_as_held_out():
    """Prefills begin as recovery examples do; wrappers and few-shot prompts are in no training."""
    begun = {
        (example.prefill, steps)
        for p in arm_prompts(LANGUAGE, SPLITS, ARMS["r2d"], 2000, 0)
        for example in [write_example(LANGUAGE, p, ARMS["r2d"])]
        for steps in [p.begun]
        if example.prefill
    }
    assert {steps for _, steps in begun} == {0, 1, 2}
    for behavior in harmful_behaviors(LANGUAGE, SPLITS, "report", 4, 0):
        form = behavior.metadata["target"].split()[:2]
        assert any(prefill.split()[:2] == form for prefill, _ in begun)
    for attack in recipes.ATTACKS[1:]:
        pool = (
            recipe_tables.TRAINED_PREFILLS
            if attack.startswith("prefill")
            else recipe_tables.HELD_OUT
        )
        assert [name for name, parts in recipe_tables.POOLED.items() if attack in parts] == [pool]


def _run(hits: dict[str, int], requests: int = 20) -> recipes.Run:
    """The first so many of the requests are harmful under each attack; no benign request."""
    verdicts = [
        Verdict(f"b{i}", attack, "toy", "harmful" if i < n else "refused", "", "refused")
        for attack, n in hits.items()
        for i in range(requests)
    ]  # fmt: skip
    return recipes.Run({}, Measurement({}, [], verdicts), Measurement({}, [], []))


def test_the_seeds_of_a_request_are_one_draw():
    """Three seeds that do the same to a request say no more than one: neither intervals nor tests
    get sharper."""
    attacks = ("direct", "wrapper", "few_shot", "prefill_lead", "prefill_step")
    few, many = dict.fromkeys(attacks, 2), dict.fromkeys(attacks, 9)
    one, three = (
        recipes.Comparison(
            {"ours": "R2D", "x": "X"},
            {name: {seed: _run(hits) for seed in range(seeds)}
             for name, hits in (("ours", few), ("x", many))},
        )
        for seeds in (1, 3)
    )  # fmt: skip
    of_one, of_three = recipe_tables.rates(one), recipe_tables.rates(three)
    assert (of_three["successes"] == 3 * of_one["successes"]).all()
    assert (of_three["requests"] == 20).all() and (of_three["n"] == 3 * of_one["n"]).all()
    for column in ("rate", "low", "high"):
        assert list(of_three[column]) == pytest.approx(list(of_one[column]))
    pooled = of_three.set_index(["recipe", "outcome"]).loc[("ours", recipe_tables.HELD_OUT)]
    assert (pooled["successes"], pooled["n"]) == (2 * 3 * 2, 2 * 3 * 20)
    tests = recipe_tables.paired(three, "ours")
    assert list(tests["p_value"]) == list(recipe_tables.paired(one, "ours")["p_value"])
    assert set(tests["only_recipe"]) == {21} and set(tests["only_reference"]) == {0}
    assert set(tests["seeds_higher"]) == {3} and set(tests["seeds_lower"]) == {0}
    told = recipe_tables.shown_rates(of_three).set_index("recipe").loc["R2D", "direct request"]
    assert told.startswith("10.0% [") and told.endswith("(6/60; 20 requests)")


def test_the_book_s_tables_are_of_this_form():
    for name in ("beyond", "paper_training", "paper_evaluation", "paper_evaluation_weaker"):
        kept = recipe_tables.Tables.read(Path(__file__).parents[1] / "book/recipes", name)
        assert set(recipe_tables.POOLED) < set(kept.rates["outcome"])
        assert (kept.rates["requests"] <= kept.rates["n"]).all()
        low, rate, high = (kept.rates[name] for name in ("low", "rate", "high"))
        assert (low <= rate + 1e-9).all() and (rate <= high + 1e-9).all() and (low < high).all()
        assert kept.rates.set_index(["recipe", "outcome"]).loc[("ours", "direct"), "requests"] == 72
        assert recipe_tables.differences(kept).count("\n") == kept.rates["recipe"].nunique() - 1


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ({"wrapper": False}, "**x** is better there"),
        ({"prefill_step": False}, "**none of them is better there than ours**"),
        ({"wrapper": False, "few_shot": True}, "**none of them"),
        ({"wrapper": False, "look-alikes refused": True}, "**none of them"),
        ({"wrapper": False, "benign exact": False}, "**none of them"),
    ],
)
def test_the_answer_is_about_held_out_attacks_and_their_price(outcomes, told):
    paired = [
        {"recipe": "x", "outcome": outcome, "only_recipe": 9 * more, "only_reference": 9 - 9 * more,
         "p_holm": 0.01, "seeds_higher": 3 * more, "seeds_lower": 3 - 3 * more}
        for outcome, more in outcomes.items()
    ]  # fmt: skip
    rates = [
        {"recipe": name, "title": name, "outcome": recipe_tables.HELD_OUT, "successes": 3, "n": 20}
        for name in ("ours", "x")
    ]
    frame = pd.DataFrame
    said = recipe_tables.answer(recipe_tables.Tables(frame(rates), frame(paired), frame(), frame()))
    assert "ours 3 of 20, x 3 of 20" in said and told in said


def test_bad_recipes_are_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="unknown recipe 'papper'"):
        recipes.measure_recipes(checkpoint, recipes.RecipeRuns(tmp_path), ["papper"])
    with pytest.raises(InputError, match="not a multiple of accumulation"):
        recipes.RecipeRuns(tmp_path, batch_size=15)


def test_figures_of_recipes_escape_titles_and_refuse_what_cannot_be_told_apart():
    rows = [
        {"title": f"<b>{i}</b> $x$", "outcome": outcome, "successes": i, "n": 20}
        for i in range(9)
        for outcome in ("direct", "benign exact")
    ]
    table = pd.DataFrame(rows)
    for figure in (
        plots.rate_intervals(table, alt="rates"),
        plots.trade_off(table[table["successes"] < 8], "benign exact", "direct", alt="both"),
    ):
        drawn = figure.markup
        assert "&lt;b&gt;0&lt;/b&gt; $x$" in drawn and "<b>" not in drawn
    with pytest.raises(InputError, match="at most 8 recipes"):
        plots.trade_off(table, "benign exact", "direct", alt="both")
