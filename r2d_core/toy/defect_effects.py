"""What each of the authors' defects does to data, gradient, texts and the numbers reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from r2d_core.authors_recipe import THEIR_LEARNING_RATE, THEIR_LORA, pivots_by_position
from r2d_core.generation import TransformersGenerator, complete
from r2d_core.pivots import SAFE, UNSAFE, PivotIds
from r2d_core.records import (
    Behavior,
    Completion,
    TestCase,
    Verdict,
    atomic_directory,
    read_json,
    write_json_atomic,
    write_jsonl,
)
from r2d_core.tokenization import IGNORED
from r2d_core.toy import defects as d
from r2d_core.toy.arms import ARMS, arm_prompts, write_example
from r2d_core.toy.base import LONGEST_ANSWER
from r2d_core.toy.evaluation import aim_at, benign_behaviors, harmful_behaviors
from r2d_core.toy.judge import ToyJudge
from r2d_core.toy.language import make_language
from r2d_core.toy.measure import Measurement, load, read_measurement
from r2d_core.toy.recipes import PAPER, Comparison, RecipeRuns, Run
from r2d_core.toy.splits import make_splits


def training_effects(checkpoint: str | Path, runs: RecipeRuns) -> pd.DataFrame:
    """What each training defect does to data or gradient, counted on the first seed's rows.

    Columns: defect, what, ours, theirs.
    """
    from r2d_core.adapters import LoraSettings, add_adapters

    language = make_language(runs.world_seed)
    splits = make_splits(language, runs.world_seed)
    model, tokenizer = load(checkpoint)
    n = runs.steps * runs.batch_size
    prompts = arm_prompts(language, splits, ARMS["r2d"], n, runs.seeds[0])
    examples = [write_example(language, prompt, ARMS["r2d"]) for prompt in prompts]
    made = {
        name: d.encode_with(tokenizer, examples, recipe.defects) for name, recipe in PAPER.items()
    }
    ours, theirs = (d.BosCount.of(tokenizer, made[name]) for name in ("ours", "bos"))
    factors = [
        d.gradient_factor(model, tokenizer, made["ours"][i : i + runs.batch_size],
                          runs.accumulation)
        for i in range(0, min(n, 8 * runs.batch_size), runs.batch_size)
    ]  # fmt: skip
    ratios, cosines = zip(*factors, strict=True)
    first = next(number for number, example in enumerate(examples) if not example.prefill)
    before = {
        name: tokenizer.decode(made[name][first]["input_ids"][: made[name][first]["labels"].count(
            IGNORED)])
        for name in ("ours", "template")
    }  # fmt: skip
    rows = len(model.get_input_embeddings().weight)
    weights = sum(parameter.numel() for parameter in model.parameters())
    d.pad_embedding(model)
    padded = len(model.get_input_embeddings().weight)
    pivots = PivotIds.from_tokenizer(tokenizer)
    by_name = f"{SAFE} is row {pivots.safe}, {UNSAFE} row {pivots.unsafe}"
    by_position = d.rows_by_position(tokenizer, padded)
    labels = [label for row in made["ours"] for label in row["labels"]]
    met = [
        sum(label in (ids.safe, ids.unsafe) for label in labels)
        for ids in (pivots, pivots_by_position(padded))
    ]
    adapted = add_adapters(model, LoraSettings(**THEIR_LORA), [])
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    table = [
        ("bos", "beginnings of sequence an example", f"{ours.bos / n:g}", f"{theirs.bos / n:g}"),
        ("bos", "targets that are a beginning of sequence", f"{ours.bos_targets}",
         f"{theirs.bos_targets} of {theirs.targets} ({theirs.bos_targets / theirs.targets:.1%})"),
        ("template", "what an example's response follows", before["ours"], before["template"]),
        ("normalize", f"gradient of a step before clipping, {runs.accumulation} micro-batches",
         "1", f"{min(ratios):.1f} to {max(ratios):.1f} times as long in {len(ratios)} steps "
         f"(cosine {min(cosines):.2f} to {max(cosines):.2f})"),
        ("pivot_ids", f"pivots in {rows} rows, padded to {padded}", by_name,
         ", ".join(f"{name} is {where}" for name, where in by_position.items())),
        ("pivot_ids", "targets that the contrast meets", str(met[0]), str(met[1])),
        ("settings", "learning rate", f"{runs.learning_rate:g}", f"{THEIR_LEARNING_RATE:g}"),
        ("settings", "weights trained", f"{weights}, all",
         f"{trained}, of which {padded * model.config.hidden_size} embedding and output matrix"),
    ]  # fmt: skip
    return pd.DataFrame(table, columns=["defect", "what", "ours", "theirs"])


def evaluation_effects(comparison: Comparison, runs: RecipeRuns) -> pd.DataFrame:
    """What each evaluation defect does to the texts that are judged, our models, all seeds.

    Columns: defect, what, attacked and benign (both as "a of b").
    """
    cut_at = d.trace_length(runs.world_seed)
    ours = comparison.runs["ours"].values()
    parts = {
        "attacked": [c for run in ours for c in run.attacked.completions],
        "benign": [c for run in ours for c in run.asked.completions],
    }
    rules: list[tuple[str, str, Callable[[Completion], bool]]] = [
        ("cut", f"texts that go on after {cut_at} tokens", lambda c: d.cut(c, cut_at) != c),
        ("short", f"texts of under {d.SHORT} words", lambda c: len(c.text.split(" ")) < d.SHORT),
        ("kept_steps", "texts of which something is not judged",
         lambda c: d.keep_marked_steps(c) != c),
        ("kept_steps", "texts of which nothing is left",
         lambda c: not d.keep_marked_steps(c).text),
    ]  # fmt: skip
    rows = [
        (name, what, *(f"{sum(map(rule, texts))} of {len(texts)}" for texts in parts.values()))
        for name, what, rule in rules
    ]
    return pd.DataFrame(rows, columns=["defect", "what", *parts])


def evaluated_with_defects(
    comparison: Comparison, runs: RecipeRuns, trained: str = "ours"
) -> Comparison:
    """One recipe's models, judged as the authors did: each defect of evaluation, and all together.

    Where a defect only changes what the judge is shown, it is applied to the completions that are
    there; another template and the repetition penalty ask the same models again.
    """
    cut_at = d.trace_length(runs.world_seed)
    result = Comparison(
        {"ours": "Our evaluation", **d.EVALUATION_TITLES, "all": "All but the template"}
    )
    for seed, run in comparison.runs[trained].items():
        home = Path(runs.output_dir) / trained / f"seed{seed}"
        again = {name: _asked_again(home, run, name, runs) for name in ("penalty", "template")}
        shown: dict[str, tuple[Run, Callable[[Completion], Completion], bool]] = {
            "ours": (run, lambda c: c, False),
            "cut": (run, lambda c: d.cut(c, cut_at), False),
            "short": (run, lambda c: c, True),
            "kept_steps": (run, d.keep_marked_steps, False),
            "penalty": (again["penalty"], lambda c: c, False),
            "template": (again["template"], lambda c: c, False),
            "all": (again["penalty"], lambda c: d.keep_marked_steps(d.cut(c, cut_at)), True),
        }
        for name, (source, change, short) in shown.items():
            result.runs.setdefault(name, {})[seed] = Run(
                run.training,
                _judged_again(source.attacked, change, short, runs),
                _judged_again(source.asked, change, short, runs),
            )
    return result


def _behaviors(runs: RecipeRuns) -> dict[str, Behavior]:
    language = make_language(runs.world_seed)
    splits = make_splits(language, runs.world_seed)
    arguments = (language, splits, runs.partition, runs.n_per_split, runs.world_seed)
    asked = [
        *aim_at(harmful_behaviors(*arguments), language, ARMS["r2d"]),
        *benign_behaviors(*arguments),
    ]
    return {behavior.id: behavior for behavior in asked}


def _judged_again(
    measurement: Measurement,
    change: Callable[[Completion], Completion],
    short: bool,
    runs: RecipeRuns,
) -> Measurement:
    judge = ToyJudge(make_language(runs.world_seed))
    completions = [change(completion) for completion in measurement.completions]
    judged: list[Verdict] = []
    for completion in completions:
        behavior = measurement.behaviors[completion.behavior_id]
        judged.append(
            d.judged_with_short_rule(judge, behavior, completion)
            if short
            else judge.judge(behavior, completion)
        )
    return Measurement(measurement.behaviors, completions, judged)


def _asked_again(home: Path, run: Run, defect: str, runs: RecipeRuns) -> Run:
    """The same requests put to the same model under another template or with the penalty."""
    from r2d_core.toy.penalised import PenalisedGenerator

    behaviors = _behaviors(runs)
    model: Any = None
    found = []
    for part, before in (("attacks", run.attacked), ("benign", run.asked)):
        folder = home / f"{part}_{defect}"
        settings = {
            **read_json(home / part / "settings.json"),
            "defect": defect,
        }
        record = folder / "settings.json"
        if record.is_file() and read_json(record) == settings:
            found.append(read_measurement(folder, behaviors))
            continue
        if model is None:
            model, tokenizer = load(home / "training" / "model")
        if defect == "template":
            tokenizer.chat_template = d.OTHER_TEMPLATE
        kind = PenalisedGenerator if defect == "penalty" else TransformersGenerator
        cases = [
            TestCase(c.behavior_id, c.attack, c.prompt, prefill=c.prefill)
            for c in before.completions
        ]
        completions = complete(kind(model, tokenizer), cases, LONGEST_ANSWER)
        judge = ToyJudge(make_language(runs.world_seed))
        verdicts = [judge.judge(behaviors[c.behavior_id], c) for c in completions]
        with atomic_directory(folder) as writing:
            write_jsonl(Path(writing) / "completions.jsonl", completions)
            write_jsonl(Path(writing) / "verdicts.jsonl", verdicts)
            write_json_atomic(Path(writing) / "settings.json", settings)
        found.append(Measurement(behaviors, completions, verdicts))
    return Run(run.training, *found)
