"""Evaluations side by side: rates over seeds, paired tests, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from r2d_core.cost import Cost
from r2d_core.errors import InputError
from r2d_core.evaluation_counts import outcomes, scores, spending, summary, summary_by
from r2d_core.evaluation_tables import RATES, Run, as_text, named, table_of, write_tables
from r2d_core.evaluations_compared import compare_evaluations
from r2d_core.metrics import Rate, holm
from r2d_core.records import Behavior, Verdict
from r2d_core.sampling_error import BehaviorRate, Mean, mean_over_seeds, paired_permutation

BEHAVIORS = [Behavior(f"0{i}", f"goal {i}", category="ab"[i % 2]) for i in range(8)]
BEHAVIORS += [Behavior("NA", "hello ?", "benign"), Behavior("n1", "why ?", "benign")]
SOURCES = {b.id: "benign" if b.kind == "benign" else "harmful" for b in BEHAVIORS}


def verdicts(hits: int, *, refused: int = 0, unparsable: int = 0) -> dict[str, list[Verdict]]:
    """The first ``hits`` harmful requests complied with, and of benign ones some refused."""
    made = []
    for number, behavior in enumerate(BEHAVIORS):
        benign = behavior.kind == "benign"
        good = number - 8 >= refused if benign else number < hits
        label = "complied" if good else "refused"
        label = "unparsable" if not benign and number >= 8 - unparsable else label
        attack = "benign" if benign else "direct"
        made.append(Verdict(behavior.id, attack, "gcg_strings", label, "absent", label))
    return {"gcg_strings": made}


def finished(folder: Path, run: Run, judged: dict[str, list[Verdict]]) -> Path:
    success, refusals = summary(BEHAVIORS, judged)
    by_source = summary_by(BEHAVIORS, judged, {"source": SOURCES})
    categories = {b.id: b.category for b in BEHAVIORS}
    by_category = summary_by(BEHAVIORS, judged, {"source": SOURCES, "category": categories})
    tables = {
        "success": success, "refusals": refusals, "success_by_source": by_source[0],
        "refusals_by_source": by_source[1], "success_by_category": by_category[0],
        "refusals_by_category": by_category[1], "scores": scores(BEHAVIORS, judged),
        "spending": spending([]), "outcomes": outcomes(BEHAVIORS, judged, SOURCES),
    }  # fmt: skip
    write_tables(folder, run, tables)
    run.write(folder)
    return folder


def run(model: str, seed: int = 0, **more: Any) -> Run:
    return Run(model, more.pop("defense", ""), seed, "harmful, benign", **more)


def test_models_under_an_attack_over_seeds(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / "a0", run("a"), verdicts(7, refused=1)),
        finished(tmp_path / "a1", run("a", 1), verdicts(5)),
        finished(tmp_path / "b0", run("b", defense="smooth_llm"), verdicts(1)),
        finished(tmp_path / "b5", run("b", 5, defense="smooth_llm"), verdicts(1, unparsable=1)),
    ]
    found = compare_evaluations(folders)
    rates = found.rates[found.rates["measure"] == "success"].set_index("model")
    a, b = rates.loc["a"], rates.loc["b, smooth_llm"]
    assert (a["judge"], a["attack"], a["kind"], a["seeds"]) == (
        "gcg_strings",
        "direct",
        "harmful",
        2,
    )
    assert isinstance(a["rate"], BehaviorRate) and a["rate"].rate == 12 / 16
    assert a["rate"].behaviors == 8 and (b["rate"].successes, b["rate"].n) == (2, 15)
    assert a["over seeds"] == mean_over_seeds([Rate(7, 8), Rate(5, 8)])
    tests = found.differences
    assert list(tests["p Holm"]) == holm(tests["p"].tolist())
    assert tests[["measure", "kind"]].to_numpy().tolist() == [
        ["success", "harmful"],
        ["refusal", "benign"],
    ]
    test = tests[tests["measure"] == "success"].iloc[0]
    assert (test["a"], test["b"], test["requests"]) == ("a", "b, smooth_llm", 8)
    assert (test["only a"], test["only b"]) == (10, 0)  # of the pair without a label, neither
    ids = [*(f"0{i}" for i in range(8)), *(f"0{i}" for i in range(7))]
    first, second = [i < 7 for i in range(8)] + [i < 5 for i in range(7)], [i < 1 for i in range(8)]
    assert test["p"] == paired_permutation(first, second + second[:7], ids)
    refusals = found.rates[
        (found.rates["measure"] == "refusal") & (found.rates["kind"] == "benign")
    ]
    assert [each.rate for each in refusals["rate"]] == [1 / 4, 0]
    found.write(tmp_path)
    written = pd.read_csv(tmp_path / "compared.csv").iloc[0]
    assert written["rate_rate"] == 12 / 16 and written["rate_behaviors"] == 8
    assert written["rate_n"] == 16 and written["over_seeds_estimate"] == 12 / 16
    assert len(pd.read_csv(tmp_path / "differences.csv")) == len(tests)
    one = compare_evaluations(folders[:1])
    assert one.differences.empty and list(one.rates["over seeds"].dropna()) == []
    assert one.rates["rate"][0] == Rate(7, 8)


def test_files_of_several_evaluations_go_one_under_the_other(tmp_path: Path) -> None:
    """Also those of an evaluation in which nothing was found."""
    first = finished(tmp_path / "a", run("a"), verdicts(3))
    finished(tmp_path / "none", replace(run("b"), source=""), {})
    for name in RATES:
        if (first / f"{name}.csv").exists():
            some, none = (pd.read_csv(tmp_path / of / f"{name}.csv") for of in ("a", "none"))
            assert list(some.columns) == list(none.columns), name
            assert {"model", "defense", "seed", "source"} <= {*some.columns}, name
            assert none.empty and set(some["model"]) <= {"a"}
    rows = pd.read_csv(first / "success_by_source.csv")
    assert set(rows["source"]) == {"harmful"}
    refusals = pd.read_csv(first / "refusals_by_source.csv")
    assert list(refusals[refusals["source"] == "benign"]["full_rate"].unique()) == [0]
    rows = pd.read_csv(first / "success_by_category.csv")
    assert list(rows.columns[:5]) == ["model", "defense", "seed", "source", "category"]
    whole = rows[rows["scope"] == "whole"].set_index("category")
    assert whole["success_successes"].to_dict() == {"a": 2, "b": 1}  # of the first three
    assert whole["success_n"].to_dict() == {"a": 4, "b": 4}
    told = pd.read_csv(first / "outcomes.csv", keep_default_na=False)
    assert list(told.columns[:4]) == ["model", "defense", "seed", "source"]
    assert set(told["source"]) == {"harmful", "benign"}
    assert told["outcome"].sum() and set(told["measure"]) == {"success", "refusal"}
    assert pd.read_csv(first / "success.csv")["success_rate"][0] == 3 / 8


def test_runs_that_would_be_one_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [finished(tmp_path / name, run("a"), verdicts(3)) for name in ("x", "y")]
    models = set(compare_evaluations(folders).rates["model"])
    assert models == {f"a ({folder})" for folder in folders}
    unnamed = [finished(tmp_path / name, run(""), verdicts(3)) for name in ("u", "v")]
    assert set(compare_evaluations(unnamed).rates["model"]) == {str(each) for each in unnamed}


def test_what_is_not_comparable_is_said(tmp_path: Path) -> None:
    first = finished(tmp_path / "a", run("a", judges={"harmbench": "m1", "gcg": ""}), verdicts(3))
    other = finished(tmp_path / "b", run("b", judges={"harmbench": "m2"}), verdicts(3))
    theirs = finished(tmp_path / "c", run("c", judges={"harmbench": None}), verdicts(3))
    with pytest.raises(InputError, match="b: judge 'harmbench' asks m2, and in .*a it is m1"):
        compare_evaluations([first, other])
    assert len(compare_evaluations([first, theirs]).differences)
    for name, length in (("short", 16), ("long", 1024)):
        finished(tmp_path / name, run(name, max_new_tokens=length), verdicts(3))
    with pytest.raises(InputError, match="long: max_new_tokens is 1024, and in .*short it is 16;"):
        compare_evaluations([tmp_path / "short", theirs, tmp_path / "long"])
    with pytest.raises(InputError, match="is given 2 times"):
        compare_evaluations([first, theirs, first])
    with pytest.raises(InputError, match=r"no finished evaluation, it has no run\.json; give"):
        compare_evaluations([first, tmp_path])
    (other / "outcomes.csv").write_text("judge,attack\nx,y\n")
    (other / "run.json").write_text('{"model": "b", "defense": "", "seed": 0, "source": ""}')
    with pytest.raises(InputError, match=r"outcomes\.csv: not what an evaluation writes"):
        compare_evaluations([first, other])
    (other / "outcomes.csv").unlink()
    with pytest.raises(InputError, match=r"outcomes\.csv: no such file; run the evaluation again"):
        compare_evaluations([first, other])
    for text in ('{"seed": 0}', '{"model": "b", "defense": "", "seed": "0", "source": ""}'):
        (other / "run.json").write_text(text)
        with pytest.raises(InputError, match=r"run\.json"):
            compare_evaluations([first, other])


def test_another_text_under_an_id_is_another_request(tmp_path: Path) -> None:
    first = finished(tmp_path / "a", run("a"), verdicts(3))
    other = finished(tmp_path / "b", run("b"), verdicts(3))
    table = pd.read_csv(other / "outcomes.csv", dtype=str, keep_default_na=False)
    table.loc[table["behavior"].isin(["00", "01"]), "request"] = "another"
    table.to_csv(other / "outcomes.csv", index=False)
    tests = compare_evaluations([first, other]).differences
    assert tests[tests["measure"] == "success"]["requests"].tolist() == [6]


def test_names_and_shown_tables() -> None:
    assert named("m", {"batch_tokens": 3, "seed": 1}) == "m"
    assert named("m", {"dtype": "float16", "retries": 3}) == 'm {"dtype": "float16"}'
    table = pd.DataFrame({"a": ["x", None], "b": [None, None], "n": [1, 2]})
    assert as_text(table).to_dict("list") == {"a": ["x", ""], "n": [1, 2]}
    assert list(as_text(table, none="not known")["b"]) == ["not known"] * 2


def test_costs_are_numbers_in_columns_of_their_own(tmp_path: Path) -> None:
    tokens, one = Mean(5.0, 4.0, 6.0, 3), Mean(2.0, float("nan"), float("nan"), 1)
    costs = [Cost(kind="harmful", n=3, prompt_tokens=tokens, response_tokens=tokens,
                  answer_words=one, seconds=0.5, cut_off=0)]  # fmt: skip
    for name, some in (("with", costs), ("without", [])):
        (tmp_path / name).mkdir()
        run = Run(model="m", defense="", seed=0, source="file")
        write_tables(tmp_path / name, run, {"costs": table_of(Cost, some)})
    table = pd.read_csv(tmp_path / "with" / "costs.csv")
    ends = [f"response_tokens_{end}" for end in ("estimate", "low", "high", "n")]
    assert table[ends].to_numpy().tolist() == [[5, 4, 6, 3]]
    assert table["answer_words_estimate"].tolist() == [2] and table["answer_words_low"].isna().all()
    assert list(pd.read_csv(tmp_path / "without" / "costs.csv").columns) == list(table.columns)
