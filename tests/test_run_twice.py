"""Two runs of the same languages, beside each other and together."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
from test_measure import measurement

from r2d_core.toy.languages import over_languages
from r2d_core.toy.outcomes import by_scope
from r2d_core.toy.results import Results

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import run_twice  # noqa: E402


def run(**harmful: list[int]) -> Results:
    """One training a language: of ten requests under the wrapper so many are harmful."""
    tables = [
        measurement({"wrapper": ["harmful"] * k + ["refused"] * (10 - k)}).judged(method, base, 30)
        for method, each in harmful.items()
        for base, k in enumerate(each)
    ]
    attacks = by_scope(pd.concat(tables, ignore_index=True))
    return Results(attacks, attacks.iloc[:0], {}, pd.DataFrame())


FIRST = run(r2d=[1, 2, 3, 2], refusal=[5, 6, 9, 8])
AGAIN = run(r2d=[3, 2, 1, 2], refusal=[5, 8, 7, 8])


def test_both_runs_are_two_trainings_of_each_language() -> None:
    both = run_twice.together(FIRST, AGAIN)
    (row,) = over_languages(both).to_dict("records")
    (first,), (again,) = (over_languages(r).to_dict("records") for r in (FIRST, AGAIN))
    assert (row["languages"], row["n"]) == (4, 80)
    assert row["difference"] == pytest.approx((first["difference"] + again["difference"]) / 2)
    assert row["lower"] == 4 and sorted(both.attacks["seed"].unique()) == [30, 61]


def test_the_runs_stand_side_by_side() -> None:
    tables = [over_languages(r) for r in (FIRST, AGAIN, run_twice.together(FIRST, AGAIN))]
    head, _, line = run_twice.table(*tables).splitlines()
    cells = [cell.strip().replace("\N{NO-BREAK SPACE}", " ") for cell in line.split("|")[1:-1]]
    assert len(cells) == len(run_twice.HEADS) == head.count("|") - 1
    assert cells[:2] == ["R2D against Refusal tuning", "held-out wrapper"]
    assert [cell.split()[0] for cell in cells[2:5]] == ["-50", "-50", "-50"]
    assert cells[5] == "4 lower, 0 higher"


def test_agreement_is_of_outcomes_that_spread() -> None:
    def differences(**of: list[float]) -> pd.DataFrame:
        rows = [
            (outcome, method, language, d + mean)
            for outcome, each in of.items()
            for method, mean in (("refusal", 0.0), ("r2d_no_cpo", 0.9))  # which is no agreement
            for language, d in enumerate(each)
        ]
        return pd.DataFrame(rows, columns=["outcome", "method", "base_seed", "difference"])

    first = differences(wrapper=[0.1, 0.2, 0.4], few_shot=[0.0, 0.01, 0.0], direct=[0.5, 0.2, 0.1])
    again = differences(wrapper=[0.2, 0.4, 0.8], few_shot=[0.0, 0.01, 0.0], direct=[0.1, 0.2, 0.5])
    said = run_twice.alike(first, again)
    assert "correlation: held-out wrapper 1.00, direct request -0.85. Where" in said


def test_the_page_says_what_both_runs_found() -> None:
    """The claims of the page that stand on its tables, read from them."""
    page = (run_twice.ROOT / "book" / "six_languages.md").read_text()
    book = run_twice.ROOT / "book"
    first, again = (
        pd.read_csv(book / name / "differences.csv").set_index(["method", "outcome"])
        for name in (run_twice.FIRST, run_twice.AGAIN)
    )
    told = pd.read_csv(book / run_twice.AGAIN / "told.csv", index_col=0)
    assert told.loc["GCG on the pivots", "R2D"] == "36% (0%)"
    assert "none of these responses tells more than half" in page
    for control in ("refusal_recovery", "r2d_no_cpo", "r2d_no_pivots", "r2d_upweighted"):
        for table in (first, again):
            assert (table.loc[control, "p_holm"] >= 0.05).all(), control
    look_alikes = "look-alikes refused"
    for other in ("refusal", "refusal_recovery", "r2d_no_reasoning"):
        assert first.loc[(other, look_alikes), "lower"] == 6
        assert again.loc[(other, look_alikes), "lower"] == 5
    gcg = ("refusal", "gcg_answer")
    assert first.loc[gcg, "lower"] == 6 and again.loc[gcg, "lower"] == 5
