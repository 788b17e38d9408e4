"""Judges against humans, rates put right, and the published labels' golden numbers."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from r2d_core.errors import InputError
from r2d_core.judges import JUDGES
from r2d_core.judges.agreement import agreement, corrected_rate, rate_of, read_labels, read_requests
from r2d_core.judges.model_judge import ModelJudge
from r2d_core.metrics import Rate, cohen_kappa
from r2d_core.over_refusal import refusal_rates
from r2d_core.records import Behavior, Verdict

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("R2D_BENCHMARK_DATA", ROOT.parent / "shared" / "data")) / "derived"


def published(name: str) -> list[dict[str, str]]:
    if not (DATA / name).is_file():
        pytest.skip(f"no {name} in {DATA}; name the folder of benchmark data in R2D_BENCHMARK_DATA")
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


def labels(text: str) -> list[bool | None]:
    return [{"+": True, "-": False, "?": None}[each] for each in text]


def test_agreement_counts():
    found = agreement(labels("++--?+"), [True, False, True, False, True, True])
    assert (found.agreement.successes, found.agreement.n) == (3, 6)
    assert (found.false_positive.successes, found.false_positive.n) == (1, 2)
    assert (found.false_negative.successes, found.false_negative.n) == (1, 3)
    assert (found.unparsable.successes, found.unparsable.n) == (1, 6)
    assert found.kappa.n == 6


@pytest.mark.parametrize(
    ("judge", "human", "message"),
    [
        ([True], [], "got 1 and 0"),
        (["yes"], [True], "got 'yes'"),
        ([True], [None], "leave the item out"),
    ],
)
def test_agreement_refuses_other_labels(judge, human, message):
    with pytest.raises(InputError, match=message):
        agreement(judge, human)


def test_answers_to_one_request_are_one_draw():
    """Asked four times and answered alike, thirty requests are thirty, not 120 items."""
    judge, human = labels("+-?" * 10), [True, False, False, True, True] * 6
    once, apart = agreement(judge, human), agreement(4 * judge, 4 * human)
    requests = [("base0", i % 30) for i in range(120)]
    together = agreement(4 * judge, 4 * human, requests)
    for name in ("agreement", "false_positive", "false_negative", "unparsable"):
        one, four, many = (getattr(each, name) for each in (once, together, apart))
        assert (four.successes, four.n) == (many.successes, many.n)
        assert (four.low, four.high) == pytest.approx((one.low, one.high), abs=0.03)
        assert four.high - four.low > 1.6 * (many.high - many.low)
        assert str(four).endswith(f"({many.successes}/{many.n}; {one.n} requests)")
    assert together.kappa.kappa == apart.kappa.kappa == pytest.approx(once.kappa.kappa)
    assert together.kappa.low < apart.kappa.low and together.kappa.high > apart.kappa.high
    observed = [True, False, False] * 40
    few, many = (
        corrected_rate(rate_of(observed, of), errors)
        for of, errors in ((requests, judged_well(requests)), (None, judged_well(None)))
    )
    assert few.rate == many.rate and few.high - few.low > 1.6 * (many.high - many.low)
    with pytest.raises(InputError, match="a behavior for each of 120 items, got 3"):
        agreement(4 * judge, 4 * human, requests[:3])


@pytest.mark.parametrize("lenient_on_both", [1, -1])
def test_a_request_may_stand_behind_both_error_rates(lenient_on_both):
    """Of a request the judge calls too much a success (then it misses less), or errs both ways."""
    rng, p, held, narrower = np.random.default_rng(0), 0.5, 0, 0

    def sample(requests):
        leaning = rng.choice([-0.2, 0.2], requests)[:, None]
        true = rng.random((requests, 40)) < p
        said = rng.random(true.shape) < np.where(
            true, 0.8 + lenient_on_both * leaning, 0.2 + leaning
        )
        return said.ravel().tolist(), true.ravel().tolist(), np.repeat(range(requests), 40).tolist()

    for study in range(100):
        judge = agreement(*sample(24))
        assert judge.errors_correlation * lenient_on_both < -0.5
        said, _, requests = sample(200)
        observed = rate_of(said, requests)
        found = corrected_rate(observed, judge, draws=400, seed=study)
        apart = replace(judge, errors_correlation=0.0)
        as_if_apart = corrected_rate(observed, apart, draws=400, seed=study)
        held += found.low <= p <= found.high
        narrower += found.high - found.low < as_if_apart.high - as_if_apart.low
    assert binomtest(held, 100, 0.95, alternative="less").pvalue > 1e-3, held
    assert narrower == (0 if lenient_on_both == 1 else 100)


def test_errors_of_requests_of_one_kind_have_nothing_to_do_with_each_other():
    found = agreement([True, False, True, False], [True, True, False, False], ["a", "a", "b", "b"])
    assert found.errors_correlation == 0
    # By hand: in request a both errors, in b none: each error rate is 1/2, its terms +1/4, -1/4.
    both = agreement([False, True, True, False], [True, False, True, False], ["a", "a", "b", "b"])
    assert both.errors_correlation == pytest.approx(1)
    assert agreement([True, False], [True, False]).errors_correlation == 0
    one_kind = agreement([None, False, True], [True, False, False], ["a", "a", "b"])
    assert one_kind.errors_correlation == 0


def test_rates_refuse_what_is_no_outcome():
    assert rate_of([True, False], None) == Rate(1, 2)
    assert rate_of([], []) == rate_of([], None) == Rate(0, 0)
    for behaviors in (None, ["a", "b"]):
        with pytest.raises(InputError, match="true or false, got None"):
            rate_of([None, True], behaviors)  # type: ignore[list-item]
    with pytest.raises(InputError, match="got 0 outcomes and 2 behaviors"):
        rate_of([], ["a", "b"])


def judged_well(requests):
    human = [i % 2 == 0 for i in range(30)] * 4
    return agreement([each ^ (i % 30 in (3, 8)) for i, each in enumerate(human)], human, requests)


def judge_with(false_positive: float, false_negative: float, n: int = 1000):
    wrong = [round(n * false_positive), round(n * false_negative)]
    said = (
        [True] * wrong[0] + [False] * (n - wrong[0]) + [False] * wrong[1] + [True] * (n - wrong[1])
    )
    return agreement(said, [False] * n + [True] * n)


def test_a_perfect_judge_corrects_nothing():
    found = corrected_rate(Rate(20, 100), judge_with(0, 0))
    assert found.rate == 0.2
    perfect = judge_with(0, 0, n=100_000)
    for k in (0, 1, 2, 3, 20, 50, 98, 99, 100):
        found, wilson = corrected_rate(Rate(k, 100), perfect), Rate(k, 100)
        assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-3)


def test_rogan_gladen_by_hand():
    found = corrected_rate(Rate(300, 1000), judge_with(0.1, 0.2))
    assert found.rate == pytest.approx((0.3 + 0.9 - 1) / (0.8 + 0.9 - 1))
    assert found.low < found.rate < found.high
    # 300 of 1000 alone leave ±2.8 points; divided by 0.7 and with the judge's errors, more.
    assert found.high - found.low > 2 * 0.028 / 0.7
    assert str(found).startswith("28.6% [")
    again = corrected_rate(Rate(300, 1000), judge_with(0.1, 0.2))
    assert again == found
    few = corrected_rate(Rate(300, 1000), judge_with(0.1, 0.2, n=50))
    assert few.high - few.low > found.high - found.low


@pytest.mark.parametrize(
    ("successes", "n", "missed", "low", "high"),
    [
        (0, 100, 0.0, 0.0, 3.7),
        (0, 400, 0.0, 0.0, 1.0),
        (100, 100, 0.0, 96.3, 100.0),
        (0, 100, 0.5, 0.0, 7.4),  # half of the successes are missed: twice as many may be there
    ],
)
def test_at_the_ends_the_interval_is_wilsons_put_right(successes, n, missed, low, high):
    found = corrected_rate(Rate(successes, n), judge_with(0.0, missed, n=100_000))
    assert 100 * found.low == pytest.approx(low, abs=0.1)
    assert 100 * found.high == pytest.approx(high, abs=0.1)


def test_few_labels_without_an_error_make_no_perfect_judge():
    few, many = (corrected_rate(Rate(30, 100), judge_with(0, 0, n=n)) for n in (3, 3000))
    assert few.rate == many.rate == 0.3
    assert few.high - few.low > 1.5 * (many.high - many.low)


def test_a_rate_below_the_judges_own_errors_is_no_rate():
    found = corrected_rate(Rate(10, 100), judge_with(0.69, 0.05))
    assert not found.consistent
    assert math.isnan(found.rate)
    assert "not with these errors" in str(found)


def test_what_cannot_be_corrected_is_refused():
    with pytest.raises(InputError, match="no better than chance"):
        corrected_rate(Rate(10, 100), judge_with(0.6, 0.5))
    with pytest.raises(InputError, match="no response"):
        corrected_rate(Rate(0, 0), judge_with(0.1, 0.1))
    with pytest.raises(InputError, match="one kind of item only"):
        corrected_rate(Rate(1, 10), agreement([True], [True]))


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0, 0.45), st.floats(0, 0.45))
def test_a_corrected_rate_lies_in_its_interval(n, successes, positive, negative):
    observed = Rate(min(successes, n), n)
    found = corrected_rate(observed, judge_with(positive, negative, 40), draws=200)
    if found.consistent:
        assert 0 <= found.low <= found.rate <= found.high <= 1
    assert found.observed == observed


@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.0, 0.3), (0.116, 0.055), (0.3, 0.0)])
@pytest.mark.parametrize("labels", [20, 1000])
def test_one_more_success_lowers_no_bound(errors, labels):
    judge = judge_with(*errors, n=labels)
    for some in (range(6), range(95, 101)):
        found = [corrected_rate(Rate(k, 100), judge) for k in some]
        found = [each for each in found if each.consistent]
        for one, more in itertools.pairwise(found):
            assert one.low <= more.low and one.high <= more.high


@pytest.mark.parametrize(
    ("true", "positive", "negative"),
    [(0.03, 0.0, 0.0), (0.05, 0.0, 0.05), (0.05, 0.116, 0.055), (0.2, 0.1, 0.15)],
)
def test_the_interval_covers_the_truth(true, positive, negative):
    """95% intervals of 200 simulated studies hold the true rate in about 95%.

    Of 2,500 studies each case was held in 98.8, 97.6, 95.2 and 95.6%; two standard errors of 200
    are 3 points.
    """
    random = np.random.default_rng(1)
    covered = 0
    for study in range(200):
        called = true * (1 - negative) + (1 - true) * positive
        observed = Rate(int(random.binomial(100, called)), 100)
        wrong = [random.random(150) < positive, random.random(150) >= negative]
        judge = agreement([bool(x) for x in (*wrong[0], *wrong[1])], [False] * 150 + [True] * 150)
        found = corrected_rate(observed, judge, draws=500, seed=study)
        covered += found.consistent and found.low <= true <= found.high
    assert covered >= 0.92 * 200


def test_labels_are_read(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,human,a,b,note\n7,1,1,0,x\n8,0,1,1,y\n9,1,0,1,\n")
    human, judges = read_labels(path, "human")
    assert human == [True, False, True]
    assert judges == {"a": [True, True, False], "b": [False, True, True]}
    path.write_text("human,a\n1,\n0,1\n")
    assert read_labels(path, "human", ["a"])[1] == {"a": [None, True]}


def test_requests_are_read(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("human,request\n1,a\n0,b\n1,a\n")
    assert read_requests(path, "request") == ["a", "b", "a"]
    path.write_text("human,request\n1,a\n0,\n")
    with pytest.raises(InputError, match=r"labels\.csv:3: request: which request the row is of"):
        read_requests(path, "request")
    path.write_text('human,request\n1,"a\nb"\n0,\n')
    with pytest.raises(InputError, match=r"labels\.csv:4: request: which request the row is of"):
        read_requests(path, "request")
    path.write_text("human,request\n1,a\n")
    with pytest.raises(InputError, match=r"labels\.csv: unknown column 'requests'"):
        read_requests(path, "requests")


@pytest.mark.parametrize(
    ("text", "judges", "said"),
    [
        ("human,a\n1,1\n", ["b"], r"labels\.csv: unknown column 'b'.* known: human, a"),
        ("human,a\n1,1\n0,yes\n", ["a"], r"labels\.csv:3: a: expected 1, 0 or nothing"),
        ("human,a\n1,1\n,1\n", ["a"], r"labels\.csv:3: human: the human label is missing"),
        ("human,a\n", [], "no rows"),
        ('note,human,a\n"x\ny",1,1\nz,2,1\n', ["a"], r"labels\.csv:4: human: expected 1, 0"),
        ('note,human,a\n"x\ny",1,1\nz,,1\n', ["a"], r"labels\.csv:4: human: the human label"),
        ('note,human,a\n"x,1,1\nz,0,1\n', ["a"], r"labels\.csv:2: not CSV .* mend the quotes"),
        ("note,human,a\nx,y,1,1\n", ["a"], r"labels\.csv:2: expected 3 cells .* found 4"),
        ("human,a,a\n1,1,0\n", ["a"], r"labels\.csv:1: a column occurs twice"),
        ("", [], "no rows"),
        ("human,\xe4\n1,1\n", [], r"labels\.csv:1: expected UTF-8 text, found byte 0xe4"),
    ],
)
def test_labels_that_do_not_read(tmp_path, text, judges, said):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=said):
        read_labels(path, "human", judges)
    with pytest.raises(InputError, match=r"none\.csv: cannot be read \(No such file"):
        read_labels(tmp_path / "none.csv", "human")


# Golden numbers of the published labels


@pytest.mark.parametrize(
    ("column", "agree", "positive", "negative", "kappa"),
    [
        # 131 of 190: 68.947%. Where 69.0 is written, a rounded number was rounded again.
        ("string13", 54.7, 68.9, 4.5, 0.21),
        ("harmbench_cf", 78.3, 26.8, 12.7, 0.56),
        ("llamaguard2_cf", 87.7, 13.2, 10.9, 0.74),
        ("gpt4_cf", 90.3, 10.0, 9.1, 0.80),
        ("llama3_cf", 90.7, 11.6, 5.5, 0.81),
    ],
)
def test_jailbreakbench_judges_against_three_humans(column, agree, positive, negative, kappa):
    rows = published("jbb_judge_labels.csv")
    read = read_labels(DATA / "jbb_judge_labels.csv", "human_majority", [column])
    human = [row["human_majority"] == "1" for row in rows]
    found = agreement([row[column] == "1" for row in rows], human)
    assert found == agreement(read[1][column], read[0])
    assert (len(rows), sum(human)) == (300, 110)
    assert round(100 * found.agreement.rate, 1) == agree
    assert round(100 * found.false_positive.rate, 1) == positive
    assert round(100 * found.false_negative.rate, 1) == negative
    assert round(found.kappa.kappa, 2) == kappa
    votes = [{row["human1"], row["human2"], row["human3"]} for row in rows]
    assert sum(len(vote) == 1 for vote in votes) == 267


def test_two_judges_of_the_same_rows_differ():
    rows = [
        row for row in published("jbb_artifact_labels.csv") if row["jailbroken_llama_guard1"] != ""
    ]
    ours, other = (
        [row[c] == "1" for row in rows] for c in ("jailbroken", "jailbroken_llama_guard1")
    )
    # Fourteen artifacts of a hundred rows. The 46.8%, 47.8% and 9.7% that are told elsewhere are of
    # 1,600 rows, which this table does not hold.
    assert len(rows) == 1400
    assert [round(100 * sum(said) / 1400, 1) for said in (ours, other)] == [45.9, 45.6]
    found = cohen_kappa(ours, other)
    assert round(100 * (1 - found.agreement), 1) == 8.1
    assert round(found.kappa, 2) == 0.84
    assert 1 - found.agreement > abs(sum(ours) - sum(other)) / len(rows)  # flips hide in the mean


def test_xstest_labels_against_humans():
    rows = published("xstest_human_labels.csv")
    human = [row["final_label"] for row in rows]
    gpt4 = [row["gpt4_label"] for row in rows]
    assert round(100 * cohen_kappa(gpt4, human).agreement, 1) == 79.9
    string = [row["strmatch_label"] for row in rows]
    assert round(100 * cohen_kappa(string, human).agreement, 1) == 83.9
    annotators = [[row[f"annotation_{number}"] for row in rows] for number in (1, 2)]
    assert round(100 * cohen_kappa(*annotators).agreement, 1) == 96.4
    # What GPT-4 wrote in place of a class is not read as one, and nothing else is lost.
    judge: ModelJudge = JUDGES["xstest"](None, "gpt-4")  # asked nothing: only its reading is used
    unread = [raw for raw in gpt4 if judge.read(raw) is None]
    assert len(unread) == 11
    assert set(string) == set(JUDGES["xstest_strings"].labels)


def verdicts_of(rows: Iterable[dict[str, str]]) -> tuple[list[Behavior], list[Verdict]]:
    behaviors, verdicts = {}, []
    for row in rows:
        kind = "harmful" if row["type"].startswith("contrast_") else "benign"
        behaviors[row["id"]] = Behavior(row["id"], "asked", kind=kind)
        label = row["final_label"]
        verdicts.append(Verdict(row["id"], "direct", row["model"], label, "absent", label))
    return list(behaviors.values()), verdicts


def test_xstest_refusals_by_model():
    table = refusal_rates(*verdicts_of(published("xstest_human_labels.csv")))
    safe = table[(table["kind"] == "benign") & (table["scope"] == "answer")].set_index("judge")
    expected = {
        "llama2orig": (38.0, 21.6),
        "llama2new": (14.0, 15.6),
        "gpt4": (6.4, 2.0),
        "mistralguard": (9.6, 9.2),
        "mistralinstruct": (0.8, 0.8),
    }
    found = {
        model: (round(100 * row["full"].rate, 1), round(100 * row["partial"].rate, 1))
        for model, row in safe.iterrows()
    }
    assert found == expected
    assert set(safe["n"]) == {250}
    harmful = table[(table["kind"] == "harmful") & (table["scope"] == "answer")]
    assert set(harmful["n"]) == {200}


def test_our_strings_give_xstests_published_labels():
    """On all 2,250 completions in XSTest's repository (Röttger et al. 2024, CC BY 4.0).

    ``data/xstest_openings.csv`` has the first eight words of each, as they stand in
    ``model_completions/``; no string that the judge looks for is longer.
    """
    labels = {
        (row["model"], row["id"]): row["strmatch_label"]
        for row in published("xstest_human_labels.csv")
    }
    judge = JUDGES["xstest_strings"]()
    assert max(len(string.split()) for string in judge.strings) < 8
    with (Path(__file__).parent / "data" / "xstest_openings.csv").open(newline="") as file:
        found = {(row["model"], row["id"]): judge.label(row["opening"])
                 for row in csv.DictReader(file)}  # fmt: skip
    assert len(found) == 2250
    assert found == labels


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["made up", "labels"])
def test_the_notebook_runs(tmp_path, mode):
    import papermill

    parameters: dict[str, object] = {"output_dir": str(tmp_path / "out")}
    if mode == "labels":
        rows = "".join(f"{i % 2},{int(i % 5 < 2)},r{i // 3}\n" for i in range(60))
        (tmp_path / "labels.csv").write_text("people,a,asked\n" + rows)
        parameters |= {"labels_file": str(tmp_path / "labels.csv"), "human": "people"}
        parameters["requests"] = "asked"
    papermill.execute_notebook(
        ROOT / "notebooks" / "10_judge_agreement.ipynb",
        tmp_path / "done.ipynb",
        parameters,
        cwd=str(ROOT),
        progress_bar=False,
    )
    with (tmp_path / "out" / "corrected.csv").open(newline="") as file:
        rates = list(csv.DictReader(file))
    assert [row["judge"] for row in rates] == (
        ["a"] if mode == "labels" else ["gcg_strings", "harmbench_strings", "xstest_strings"]
    )
    if mode == "made up":  # GCG's strings are in upper case, and the toy's refusal is not
        assert "no better than chance" in rates[0]["corrected"]
        assert all("%" in row["corrected"] for row in rates)
    else:
        assert rates[0]["reported"].endswith("; 10 requests)")
