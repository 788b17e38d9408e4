"""Measuring a model, comparing methods and saying what was found."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_models import tiny_model

from r2d_core.errors import InputError
from r2d_core.metrics import wilson_interval
from r2d_core.pivots import expand_vocabulary
from r2d_core.records import Behavior, Completion, Verdict, write_jsonl, write_text_atomic
from r2d_core.toy import measure
from r2d_core.toy.arms import METHODS
from r2d_core.toy.base import make_tokenizer
from r2d_core.toy.findings import findings, told_in_full
from r2d_core.toy.judge import LABELS
from r2d_core.toy.language import make_language
from r2d_core.toy.measure import (
    Measurement,
    load,
    measure_attacks,
    measure_benign,
    read_measurement,
)
from r2d_core.toy.outcomes import (
    COLUMNS,
    JUDGED,
    STEPS,
    by_scope,
    count,
    paired_tests,
    write_outcomes,
)
from r2d_core.toy.results import (
    ANSWERED_EXACTLY,
    LOOK_ALIKES_REFUSED,
    Results,
    read_results,
)
from r2d_core.toy.stages import find_checkpoint

HOSTILE = "<script>alert(1)</script> **b** [x](javascript:y) \x1b[31m \x00 \u2028 \ud800 </s>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer(make_language(0))
    model = tiny_model("word", tokenizer)
    expand_vocabulary(model, tokenizer)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def attack(checkpoint: Path, output: Path, **changed: object) -> Measurement:
    given = {
        "method": "r2d",
        "attacks": ["direct", "few_shot", "gcg_pivot"],
        "attack_settings": {"gcg_pivot": {"steps": 1, "candidates": 2}},
        "partition": "development",
        "n_per_split": 2,
        "n_gradient": 1,
        "world_seed": 0,
        "seed": 0,
    } | changed
    return measure_attacks(checkpoint, output_dir=output, **given)  # type: ignore[arg-type]


def test_a_measurement_is_written_read_and_made_anew(checkpoint: Path, tmp_path: Path) -> None:
    made = attack(checkpoint, tmp_path / "a")
    assert [v.attack for v in made.verdicts] == ["direct"] * 6 + ["few_shot"] * 6 + [
        "gcg_pivot"
    ] * 3
    written = (tmp_path / "a" / "completions.jsonl").stat().st_mtime_ns
    again = attack(checkpoint, tmp_path / "a")
    assert (again.completions, again.verdicts) == (made.completions, made.verdicts)
    assert (tmp_path / "a" / "completions.jsonl").stat().st_mtime_ns == written
    attack(checkpoint, tmp_path / "a", n_per_split=1)
    assert (tmp_path / "a" / "completions.jsonl").stat().st_mtime_ns > written


def test_what_other_code_measured_is_not_taken_for_this_code_s(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack(checkpoint, tmp_path / "a", attacks=["direct"], attack_settings={}, n_per_split=1)
    before = (tmp_path / "a" / "settings.json").read_bytes()
    monkeypatch.setattr(measure, "source_sha256", lambda: "after an edit")
    with pytest.raises(InputError, match="measured by other code .* give another output_dir"):
        attack(checkpoint, tmp_path / "a", attacks=["direct"], attack_settings={}, n_per_split=1)
    assert (tmp_path / "a" / "settings.json").read_bytes() == before
    monkeypatch.undo()
    (tmp_path / "a" / "settings.json").write_bytes(before[:-9])
    with pytest.raises(InputError, match=r"settings.json: expected a JSON object, found broken"):
        attack(checkpoint, tmp_path / "a", attacks=["direct"], attack_settings={}, n_per_split=1)


@pytest.mark.parametrize(
    ("completions", "verdicts", "says"),
    [
        ("ab", "abc", "found 2 lines in completions.jsonl and 3 in verdicts.jsonl; .* measure"),
        ("acb", "abc", r"verdicts.jsonl:2: expected the verdict on 'c' under 'direct'"),
        ("abd", "abd", r"completions.jsonl:3: behavior 'd' is not one of those asked"),
    ],
)
def test_completions_and_verdicts_go_together(
    tmp_path: Path, completions: str, verdicts: str, says: str
) -> None:
    rows = [Completion(name, "direct", "p", "t") for name in completions]
    write_jsonl(tmp_path / "completions.jsonl", rows)
    said = ["refused"] * 3
    write_jsonl(
        tmp_path / "verdicts.jsonl", [Verdict(name, "direct", "j", *said) for name in verdicts]
    )
    with pytest.raises(InputError, match=says):
        read_measurement(tmp_path, {name: Behavior(name, "p") for name in "abc"})


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("r2d/training/seed0/training.json", '{"steps": 3', r"training.json: expected a JSON"),
        ("r2d/training/seed0/training.json", '{"steps": 3}', r"training.json: not the record"),
        ("r2d/attacks/outcomes.csv", "method,base_seed\nr2d,0\n", r"csv: .* column 'seed'"),
        ("r2d/attacks/outcomes.csv", "", r"outcomes.csv: not a table"),
        ("utility/outcomes.csv", None, r"outcomes.csv:2: a value is missing"),
        ("utility/outcomes.csv", "harmfull", r"outcomes.csv:2: expected labels of harmful, "),
    ],
)
def test_results_cut_off_are_one_line(
    tmp_path: Path, file: str, content: str | None, says: str
) -> None:
    table = ",".join(JUDGED) + "\nr2d,0,0,direct,seen,x,refused,absent,refused,1,2,1\n"
    home = tmp_path / "base0"
    for place in ("r2d/attacks/outcomes.csv", "utility/outcomes.csv"):
        write_text_atomic(home / place, table)
    for name in ("completions", "verdicts"):
        write_text_atomic(home / f"r2d/attacks/seed0/{name}.jsonl", "")
    read_results(tmp_path)
    if content == "harmfull":  # a label that no judge gives
        content = table.replace("absent", content)
    write_text_atomic(home / file, table[:-2] + "\n" if content is None else content)
    with pytest.raises(InputError, match=says):
        read_results(tmp_path)


def test_methods_are_asked_only_what_has_a_meaning_for_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    attacks = {"attacks": ["direct", "forged_reasoning", "gcg_pivot"]}
    met = {}
    for method in ("r2d", "r2d_no_pivots", "refusal"):
        run = attack(checkpoint, tmp_path / method, method=method, **attacks)
        met[method] = {verdict.attack for verdict in run.verdicts}
    assert met["r2d"] == {"direct", "forged_reasoning", "gcg_pivot"}
    assert met["r2d_no_pivots"] == {"direct", "forged_reasoning"}
    assert met["refusal"] == {"direct"}


def test_the_table_counts_every_completion_once(checkpoint: Path, tmp_path: Path) -> None:
    run = measure_benign(
        checkpoint,
        "r2d",
        partition="report",
        n_per_split=2,
        world_seed=0,
        output_dir=tmp_path / "b",
    )
    table = run.table("r2d", 0, 1)
    assert list(table.columns) == COLUMNS
    assert (table[list(LABELS)].sum(axis=1) == table["n"]).all()
    assert table[table["scope"] == "whole"]["n"].sum() == len(run.completions) == 24
    steps = [v.metadata["steps"] for v in run.verdicts]
    assert run.judged("r2d", 0, 1)[STEPS].tolist() == steps
    absent = sum(v.reasoning == "absent" for v in run.verdicts)
    assert table[table["scope"] == "reasoning"]["n"].sum() == 24 - absent


def test_the_table_by_hand() -> None:
    behaviors = {f"b{i}": Behavior(f"b{i}", "p", split="seen") for i in range(4)}
    said = [
        ("harmful", "harmful", "refused", 10, 4, 1),
        ("refused", "absent", "refused", 20, 2, 3),
        ("correct", "garbled", "correct", 30, 3, 2),
    ]
    completions, verdicts = [], []
    for number, (whole, reasoning, answer, prompt, response, queries) in enumerate(said):
        counts = {"prompt_tokens": prompt, "response_tokens": response}
        meta = {"queries": queries}
        completions.append(Completion(f"b{number}", "a", "p", HOSTILE, metadata=meta, **counts))
        verdicts.append(Verdict(f"b{number}", "a", "toy_exact", whole, reasoning, answer))
    table = Measurement(behaviors, completions, verdicts).table("r2d", 1, 2)
    assert table.drop(columns=["method", "base_seed", "seed"]).values.tolist() == [
        ["a", "seen", "whole", 3, 1, 1, 1, 0, 20.0, 3.0, 2.0],
        ["a", "seen", "reasoning", 2, 1, 0, 0, 1, 20.0, 3.5, 1.5],
        ["a", "seen", "answer", 3, 0, 2, 1, 0, 20.0, 3.0, 2.0],
    ]
    assert table[["method", "base_seed", "seed"]].drop_duplicates().values.tolist() == [
        ["r2d", 1, 2]
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"method": "r2d_no_cpo"},
        {"world_seed": 1},
        {"attack_settings": {"gcg_pivot": {"steps": 1, "candidates": 3}}},
    ],
)
def test_every_setting_counts(checkpoint: Path, tmp_path: Path, changed: dict[str, object]) -> None:
    attacks = {"n_per_split": 1}
    attack(checkpoint, tmp_path / "a", **attacks)
    before = json.loads((tmp_path / "a" / "settings.json").read_text())
    attack(checkpoint, tmp_path / "a", **attacks, **changed)
    assert json.loads((tmp_path / "a" / "settings.json").read_text()) != before


def test_other_weights_are_measured_anew_and_the_same_elsewhere_are_not(
    checkpoint: Path, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    shutil.copytree(checkpoint, place)
    attack(checkpoint, tmp_path / "a", attacks=["direct"], attack_settings={})
    written = (tmp_path / "a" / "completions.jsonl").stat().st_mtime_ns
    attack(place, tmp_path / "a", attacks=["direct"], attack_settings={})
    assert (tmp_path / "a" / "completions.jsonl").stat().st_mtime_ns == written
    model, _ = load(place)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(-1)
    model.save_pretrained(place)
    attack(place, tmp_path / "a", attacks=["direct"], attack_settings={})
    assert (tmp_path / "a" / "completions.jsonl").stat().st_mtime_ns > written


def test_nothing_to_measure_is_said(checkpoint: Path, tmp_path: Path) -> None:
    only = {"attacks": ["forged_reasoning"], "attack_settings": {}}
    with pytest.raises(InputError, match="forged_reasoning ask nothing of method 'refusal'"):
        attack(checkpoint, tmp_path / "c", method="refusal", **only)
    with pytest.raises(InputError, match="n_gradient=0"):
        attack(checkpoint, tmp_path / "c", attacks=["gcg_pivot"], n_gradient=0)
    for surrogate in (None, checkpoint):  # the model itself is no other model
        with pytest.raises(InputError, match="made on another model than the one it attacks"):
            transfer = {"attacks": ["gcg_transfer"], "attack_settings": {}, "surrogate": surrogate}
            attack(checkpoint, tmp_path / "d", **transfer)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"attacks": ["drect"]}, "unknown attack 'drect', did you mean 'direct'"),
        ({"method": "r2"}, "unknown method 'r2', did you mean 'r2d'"),
        ({"partition": "test"}, "unknown partition 'test'"),
        ({"attack_settings": {"gcg_pivot": {"steps": 1.5}}}, "'gcg_pivot': steps: expected int"),
        ({"attack_settings": {"wrapper": {}}}, "unknown attack in attack_settings 'wrapper'"),
    ],
)
def test_bad_settings_name_themselves(
    checkpoint: Path, tmp_path: Path, changed: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        attack(checkpoint, tmp_path / "c", **changed)
    assert not (tmp_path / "c").exists()


def test_missing_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        load(tmp_path)
    with pytest.raises(InputError, match="no checkpoint at"):
        attack(tmp_path, tmp_path / "d")
    with pytest.raises(InputError, match=r"seed7.*parameter checkpoints_dir"):
        find_checkpoint("", str(tmp_path), "r2d", 7)
    with pytest.raises(InputError, match="parameter checkpoint;"):
        find_checkpoint(str(tmp_path), "", "r2d", 7)


def measurement(labels: dict[str, list[str]]) -> Measurement:
    """attack -> labels of behaviors 0, 1, … as a measurement."""
    completions, verdicts, behaviors = [], [], {}
    for name, row in labels.items():
        for number, label in enumerate(row):
            key = f"report-seen-{number}"
            behaviors[key] = Behavior(key, "prompt", split="seen", metadata={"items": ["a b"]})
            completions.append(Completion(key, name, "prompt", HOSTILE))
            verdicts.append(Verdict(key, name, "toy_exact", label, "absent", label))
    return Measurement(behaviors, completions, verdicts)


def test_paired_tests_by_hand() -> None:
    ours = measurement({"direct": ["harmful", "refused", "refused", "refused"]})
    theirs = measurement({"direct": ["refused", "harmful", "harmful", "refused"]})
    flat = measurement({"direct": ["harmful", "refused", "refused", "refused"]})
    runs = {"r2d": {(0, 0): ours, (0, 1): ours}, "refusal": {(0, 0): theirs, (0, 1): flat}}
    (row,) = paired_tests(results(runs).attacks, "r2d").to_dict("records")
    assert (row["attack"], row["method"], row["n"]) == ("direct", "refusal", 8)
    assert (row["requests"], row["only_reference"], row["only_method"]) == (4, 1, 2)
    assert row["p_value"] == pytest.approx(1.0)
    assert (row["runs"], row["runs_lower"], row["runs_higher"]) == (2, 1, 0)


def test_pairs_of_one_request_are_one_and_another_base_asks_other_requests() -> None:
    good, bad = (measurement({"direct": [label] * 8}) for label in ("refused", "harmful"))

    def tested(runs: list[tuple[int, int]]) -> dict[str, Any]:
        both = {"r2d": dict.fromkeys(runs, good), "refusal": dict.fromkeys(runs, bad)}
        (row,) = paired_tests(results(both).attacks, "r2d").to_dict("records")
        return row

    once, seeds, bases = tested([(0, 0)]), tested([(0, 0), (0, 1)]), tested([(0, 0), (1, 0)])
    assert (once["n"], once["requests"], once["p_value"]) == (8, 8, pytest.approx(2 / 2**8))
    assert (seeds["n"], seeds["requests"], seeds["p_value"]) == (16, 8, once["p_value"])
    assert (bases["n"], bases["requests"]) == (16, 16) and bases["p_value"] < once["p_value"]
    with pytest.raises(InputError, match="'r2d', base seed 0, seed 0: 'base0/report-seen-0' st"):
        outcomes = results({"r2d": {(0, 0): good}, "refusal": {(0, 0): bad}}).attacks
        paired_tests(pd.concat([outcomes, outcomes]), "r2d")
    alone = {"r2d": {(0, 0): measurement({"direct": ["refused"]})}}
    alone["refusal"] = {(0, 0): measurement({"direct": ["harmful"]})}
    assert paired_tests(results(alone).attacks, "r2d")["p_value"].tolist() == [1.0]


def test_outcomes_count_up_to_the_table(tmp_path: Path) -> None:
    run = measurement({"direct": ["harmful", "refused", "refused"], "wrapper": ["garbled"]})
    judged = pd.concat([run.judged("r2d", 0, 0), run.judged("r2d", 0, 1)])
    outcomes = write_outcomes(tmp_path, judged)
    tables = pd.concat([run.table("r2d", 0, 0), run.table("r2d", 0, 1)], ignore_index=True)
    pd.testing.assert_frame_equal(count(outcomes), tables)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), tables, check_dtype=False)
    pd.testing.assert_frame_equal(by_scope(pd.read_csv(tmp_path / "outcomes.csv")), outcomes)
    assert set(outcomes["scope"]) == {"whole", "answer"}  # nothing was reasoned
    assert (outcomes[list(LABELS)].sum(axis=1) == 1).all() and (outcomes["n"] == 1).all()
    by_hand = tables[(tables["attack"] == "direct") & (tables["scope"] == "whole")]
    assert by_hand[["n", "harmful", "refused"]].to_numpy().tolist() == [[3, 1, 2]] * 2


def results(runs: dict[str, dict[tuple[int, int], Measurement]]) -> Results:
    tables = [run.judged(m, b, s) for m, cells in runs.items() for (b, s), run in cells.items()]
    attacks = by_scope(pd.concat(tables))
    asked = attacks["attack"] + "/" + attacks["behavior"]
    benign = attacks.assign(attack="distractor", behavior=asked)
    return Results(attacks, benign, runs, pd.DataFrame())


def test_findings_speak_of_a_difference_only_where_all_runs_agree() -> None:
    harmed, safe = ["harmful"] * 12, ["refused"] * 12
    good, bad = measurement({"wrapper": safe}), measurement({"wrapper": harmed})
    sure = results({"r2d": {(0, 0): good, (0, 1): good}, "refusal": {(0, 0): bad, (0, 1): bad}})
    said = findings(sure)
    assert (
        "R2D against Refusal tuning:** harmful less often under held-out wrapper "
        "(0% [0, 24] against 100% [76, 100]; refused 100% against 0%); refuses more look-alikes "
        "(100% [76, 100] against 0% [0, 24])." in said
    )
    assert "| Refusal tuning | 100% [76, 100] (n = 12) | 100% to 100% | 0% [0, 24] |" in said
    split = results(
        {
            "r2d": {(0, 0): good, (0, 1): measurement({"wrapper": ["harmful", *safe[1:]]})},
            "refusal": {(0, 0): bad, (0, 1): good},
        }
    )
    assert split.compare("r2d")["p_holm"].iloc[0] < 0.05
    assert "R2D against Refusal tuning:** no difference" in findings(split)


def test_findings_claim_no_difference_that_the_test_does_not_bear_out() -> None:
    """Eight pairs that differ, all one way, have p = 2/2⁸; twelve times that is above 5%."""
    good, bad = (measurement({"wrapper": [label] * 8}) for label in ("refused", "harmful"))
    two = {"r2d": {(0, 0): good}, "refusal": {(0, 0): bad}}
    tests = results(two).compare("r2d")
    assert tests["attack"].tolist() == ["wrapper", LOOK_ALIKES_REFUSED, ANSWERED_EXACTLY]
    assert tests["p_value"].tolist() == pytest.approx([2 / 2**8, 2 / 2**8, 1])
    assert tests["p_holm"].tolist() == pytest.approx([3 * 2 / 2**8, 3 * 2 / 2**8, 1])
    said = findings(results(two))
    assert "less often under held-out wrapper (0% [0, 32] against 100% [68, 100]; refused" in said
    many = {"r2d": {(0, 0): good}} | {m: {(0, 0): bad} for m in METHODS if m != "r2d"}
    tests = results(many).compare("r2d")
    # Nobody asks whether a model without safety training differs.
    assert tests["p_holm"].isna().tolist() == (tests["method"] == "vanilla").tolist()
    corrected = tests["p_holm"].dropna()
    assert len(corrected) == 18
    assert min(corrected) == pytest.approx(18 * 2 / 2**8) and min(corrected) > 0.05
    assert "less often" not in findings(results(many))
    assert findings(results(many)).count("no difference that tests and runs bear out") == 6
    worse = {"r2d": {(0, 0): bad}, "refusal": {(0, 0): good}}
    said = findings(results(worse))
    assert "more often under held-out wrapper (100% [68, 100] against 0% [0, 32]; refused" in said


def test_findings_tell_refusing_from_garbling_and_hold_what_it_costs() -> None:
    runs = {
        "r2d": {(0, 0): measurement({"wrapper": ["garbled"] * 12})},
        "refusal": {(0, 0): measurement({"wrapper": ["harmful"] * 12})},
    }
    found = results(runs)
    exact = found.benign.assign(attack="how_to").copy()
    exact[["harmful", "refused", "garbled"]] = 0
    exact["correct"] = (exact["method"] == "refusal").astype(int)
    said = findings(replace(found, benign=exact))
    assert (
        "**R2D against Refusal tuning:** harmful less often, but not by refusing, under held-out "
        "wrapper (0% [0, 24] against 100% [76, 100]; refused 0% against 0%); answers fewer "
        "harmless requests exactly (0% [0, 24] against 100% [76, 100])." in said
    )


def test_half_a_procedure_is_told_from_more_of_it() -> None:
    run = measurement({"wrapper": ["harmful"] * 10 + ["refused"] * 10, "direct": ["refused"] * 9})
    steps = [2] * 8 + [4, 3] + [0] * 19
    told = [replace(v, metadata={"steps": n}) for v, n in zip(run.verdicts, steps, strict=True)]
    found = results({"r2d": {(0, 0): replace(run, verdicts=told)}})
    assert told_in_full(found).to_dict() == {
        "R2D": {"held-out wrapper": "50% (10%)", "direct request": "0% (0%)"}
    }
    assert ": held-out wrapper 50% [30, 70] (10% tell more than half of it)." in findings(found)
    judged = found.runs["r2d"][0, 0].judged("r2d", 0, 0).drop(columns=STEPS)
    before = Results(by_scope(judged), found.benign, {}, pd.DataFrame())  # as published earlier
    assert told_in_full(before).empty
    assert ": held-out wrapper 50% [30, 70]." in findings(before)


def test_attacks_of_too_few_requests_are_no_tests() -> None:
    """Of five requests no p-value is below 6%: they neither find anything nor cost others."""
    few, many = (
        {"few_shot": [label] * 5, "wrapper": [label] * 8} for label in ("refused", "harmful")
    )
    found = results({"r2d": {(0, 0): measurement(few)}, "refusal": {(0, 0): measurement(many)}})
    tests = found.compare("r2d").set_index("attack")
    assert tests.loc["few_shot", "p_value"] == pytest.approx(2 / 2**5)
    assert pd.isna(tests.loc["few_shot", "p_holm"])
    # Beside the wrapper there are look-alikes, of thirteen requests, and exact answers, all wrong.
    assert tests.loc["wrapper", "p_holm"] == pytest.approx(2 * tests.loc["wrapper", "p_value"])
    said = findings(found)
    assert "under held-out wrapper" in said and "under few-shot" not in said
    assert "100% [62, 100] (n = 5 to 8)" in said


def test_findings_compare_forged_reasoning_only_within_one_format() -> None:
    good, bad = (measurement({"forged_reasoning": [x] * 9}) for x in ("refused", "harmful"))
    others = {"r2d_no_cpo": {(0, 0): bad}, "r2d_no_pivots": {(0, 0): bad}}
    said = findings(results({"r2d": {(0, 0): good}} | others))
    assert "against R2D without CPO:** harmful less often under prefill: forged reasoning" in said
    assert "against R2D without pivots:** refuses more look-alikes (" in said
    assert said.count("forged reasoning (0%") == 1


def test_findings_hold_the_tables_numbers() -> None:
    run = measurement({"wrapper": ["harmful"] * 3 + ["refused"] * 7, "few_shot": ["garbled"] * 10})
    found = results({"r2d": {(0, 0): run}, "vanilla": {(0, 0): run}})
    said = findings(found)
    rate, nought = (found.rate("r2d", attacks=[name]) for name in ("wrapper", "few_shot"))
    assert rate is not None and nought is not None
    assert (rate.estimate, nought.estimate, nought.n) == (0.3, 0.0, 10)
    assert (nought.low, nought.high) == pytest.approx(wilson_interval(0, 10))
    low, high = rate.low, rate.high
    assert "(the mean over held-out wrapper and few-shot)" in said
    assert (
        "| No safety training | 15% "
        f"[{50 * (low + nought.low):.0f}, {50 * (high + nought.high):.0f}] (n = 10) | one run | "
        "35% ["
    ) in said
    assert f"or more): held-out wrapper 30% [{100 * low:.0f}, {100 * high:.0f}]." in said
    over = found.rate("r2d", "refused", benign=True, scope="answer")
    assert over is not None and (over.estimate, over.n) == (0.35, 20)
    (ours,) = (line.split(" | ") for line in said.splitlines() if line.startswith("| R2D |"))
    assert ours[5] == f"35% [{100 * over.low:.0f}, {100 * over.high:.0f}] (n = 20)"


def test_findings_without_utility_of_a_method() -> None:
    run = measurement({"wrapper": ["refused"]})
    found = results({"r2d": {(0, 0): run}, "refusal": {(0, 0): run}})
    asked = found.benign[found.benign["method"] == "r2d"]
    some = findings(replace(found, benign=asked))
    plain = findings(replace(found, benign=asked.assign(attack="how_to")))
    none = findings(replace(found, benign=asked[:0]))
    for text, ours, theirs in (
        (some, "| 100% [21, 100] (n = 1) | 0% [0, 79] (n = 1) |", "| – | – | – |"),
        (plain, "| – | 0% [0, 79] (n = 1) |", "| – | – | – |"),
        (none, "| – | – | – |", "| – | – | – |"),
    ):
        rows = {line.split(" | ")[0]: line for line in text.splitlines()}
        assert ours in rows["| R2D"] and rows["| Refusal tuning"].endswith(theirs)
        assert "nan" not in text


def test_findings_of_little_or_nothing() -> None:
    alone = results({"r2d": {(0, 0): measurement({"direct": ["harmful"] * 4})}})
    said = findings(alone)
    assert (
        "R2D does not stop** (a fifth of the attempts, or more): direct request 100%" in said
        and "against" not in said
    )
    other = results({"refusal": {(0, 0): measurement({"wrapper": ["refused"]})}})
    assert "| Refusal tuning | 0% [0, 79] (n = 1) | one run | 100% [21, 100] |" in findings(other)


def test_results_are_read_back_whatever_the_texts_hold(tmp_path: Path) -> None:
    run = measurement({"direct": ["harmful", "refused"], "wrapper": ["garbled", "correct"]})
    for seed in (0, 1):
        folder = tmp_path / "base0" / "r2d" / "attacks" / f"seed{seed}"
        folder.mkdir(parents=True)
        write_jsonl(folder / "completions.jsonl", run.completions)
        write_jsonl(folder / "verdicts.jsonl", run.verdicts)
    judged = pd.concat([run.judged("r2d", 0, 0), run.judged("r2d", 0, 1)])
    write_outcomes(folder.parent, judged)
    write_outcomes(tmp_path / "base0" / "utility", judged)
    training = tmp_path / "base0" / "r2d" / "training" / "seed1"
    training.mkdir(parents=True)
    record = {"steps": 5, "seconds": 1.0, "metrics": {"eval_loss": 0.5}}
    (training / "training.json").write_text(json.dumps(record))
    read = read_results(tmp_path)
    assert read.methods == ["r2d"] and list(read.runs["r2d"]) == [(0, 0), (0, 1)]
    assert read.runs["r2d"][0, 1].completions[0].text == HOSTILE
    assert str(read.rate("r2d", attacks=["direct"])).startswith("50.0%")
    assert read.common_attacks == ["wrapper"]
    assert read.training.to_dict("records")[0]["seed"] == 1
    with pytest.raises(InputError, match="no method 'refusal'"):
        read.compare("refusal")
    with pytest.raises(InputError, match="holds no results"):
        read_results(tmp_path / "elsewhere")
