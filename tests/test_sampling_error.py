"""Clustered intervals, paired tests, budgets and power, by hand and by simulation."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from r2d_core.errors import InputError
from r2d_core.metrics import Rate, cohen_kappa, mcnemar, wilson_interval
from r2d_core.sampling_error import (
    BehaviorRate,
    ClusteredRate,
    asked,
    budget_curve,
    clustered_kappa,
    clustered_matrix,
    clustered_mean,
    clustered_rate,
    mean_over_runs,
    mean_over_seeds,
    paired_change,
    paired_permutation,
    seed_matrix,
    tokens_by_run,
)


def test_clustered_interval_is_as_wide_as_the_behaviors_make_it():
    """Five equal outcomes a behavior are one draw, not five."""
    single = [True] * 30 + [False] * 70
    alone = clustered_rate(single, range(100))
    five = clustered_rate(np.repeat(single, 5), np.repeat(range(100), 5))
    assert five.estimate == alone.estimate == 0.3 and five.n == alone.n == 100
    assert (five.low, five.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    as_if_independent = clustered_rate(np.repeat(single, 5), range(500))
    assert as_if_independent.high - as_if_independent.low < 0.6 * (five.high - five.low)
    assert alone.low == pytest.approx(wilson_interval(30, 100)[0], abs=0.02)


def test_clustered_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        chance = rng.beta(0.6, 1.4, 60)  # behaviors differ; the mean is 0.3
        outcomes = rng.random((60, 4)) < chance[:, None]
        found = clustered_rate(outcomes.ravel(), np.repeat(range(60), 4))
        covered += found.low <= 0.3 <= found.high
    assert binomtest(covered, 200, 0.94).pvalue > 1e-3


def test_a_change_is_counted_by_pairs_requests_and_runs():
    """By hand: three requests in two runs; in run 1 a is true more often, in run 2 less."""
    a = [True, True, False, False, False, True]
    b = [False, False, False, True, True, True]
    found = paired_change(a, b, ["x", "y", "z"] * 2, [1, 1, 1, 2, 2, 2])
    assert (found.n, found.requests, found.runs) == (6, 3, 2)
    assert (found.only_a, found.only_b) == (2, 2)
    assert (found.runs_higher, found.runs_lower) == (1, 1)
    assert found.p_value == 1  # x and y each gain in one run what they lose in the other
    sure = paired_change([True] * 16, [False] * 16, [*range(8)] * 2, [1] * 8 + [2] * 8)
    assert (sure.p_value, sure.runs_higher, sure.runs_lower) == (pytest.approx(2 / 2**8), 2, 0)
    with pytest.raises(InputError, match="each of the runs, got 1 runs and 2 behaviors"):
        paired_change([True, False], [True, True], ["x", "y"], [1])


def test_an_interval_holds_its_rate_to_the_last_digit():
    """statsmodels' bounds of 0 and of 1 may miss them by a rounding."""
    for outcome in (False, True):
        for requests in range(1, 200):
            found = clustered_rate([outcome] * 3 * requests, [*range(requests)] * 3)
            assert found.low <= found.estimate <= found.high
            low, high = wilson_interval(requests * outcome, requests)
            assert low <= outcome <= high


def test_clustered_interval_at_the_ends_is_wilsons():
    for value in (False, True):
        found = clustered_rate([value] * 40, np.repeat(range(20), 2))
        assert found.n == 20
        assert (found.low, found.high) == pytest.approx(wilson_interval(20 * value, 20), abs=1e-12)


@pytest.mark.parametrize("interval", [ClusteredRate.of, BehaviorRate.of])
@pytest.mark.parametrize("repeats", [1, 3, 5])
def test_one_more_success_lowers_no_bound(interval, repeats):
    """From both ends: successes spread over the behaviors, and all of one behavior."""
    behaviors = np.repeat(range(100), repeats)
    order = np.arange(100 * repeats).reshape(100, repeats)
    for places in (order.ravel(), order.T.ravel()):
        for value in (True, False):
            outcomes = np.full(100 * repeats, not value)
            bounds = []
            for place in places[:6]:
                found = interval(outcomes, behaviors)
                bounds.append((found.low, found.high))
                outcomes[place] = value
            steps = np.diff(bounds, axis=0)
            assert (steps >= -1e-12).all() if value else (steps <= 1e-12).all()
    if repeats == 1:
        for k in range(101):
            outcomes = [True] * k + [False] * (100 - k)
            found = interval(outcomes, behaviors)
            assert (found.low, found.high) == pytest.approx(wilson_interval(k, 100), abs=1e-9)


@pytest.mark.parametrize("rate", [0.03, 0.05])
@pytest.mark.parametrize("k", [20, 40, 100])
def test_rare_successes_are_covered(rate, k):
    """Behaviors differ (intraclass correlation 2/3) and are asked three times each."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        chance = rng.beta(rate / 2, (1 - rate) / 2, k)
        outcomes = rng.random((k, 3)) < chance[:, None]
        found = clustered_rate(outcomes.ravel(), np.repeat(range(k), 3))
        covered += found.low <= rate <= found.high
    assert covered >= 0.935 * 400


def test_a_missing_behavior_is_no_behavior_less():
    for missing in (None, float("nan")):
        for call in (clustered_rate, clustered_mean, BehaviorRate.of):
            with pytest.raises(InputError, match="behavior 1 is missing"):
                call([True, False, True], ["a", missing, "b"])
        with pytest.raises(InputError, match="behavior 0 is missing"):
            paired_permutation([1, 1], [0, 0], [missing, "a"])
    assert clustered_rate([True, False], [("a", 1), ("a", 2)]).n == 2


def test_clustered_mean_by_hand_and_by_simulation():
    found = clustered_mean([10, 10, 20, 20, 30, 30], ["a", "a", "b", "b", "c", "c"])
    assert found.estimate == 20 and found.n == 3
    assert (found.low, found.high) == (10, 30)  # three behaviors leave it all open
    assert str(found) == "20.0 [10.0, 30.0] (n = 3)"
    assert str(clustered_mean([4, 5], ["a", "a"])) == "4.5 (n = 1)"
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        lengths = rng.gamma(4, 5, (9, 1)) + rng.normal(0, 3, (9, 3))
        found = clustered_mean(lengths.ravel(), np.repeat(range(9), 3))
        covered += found.low <= 20 <= found.high
    assert covered >= 0.91 * 300  # plain percentiles: 0.87


def test_the_draws_of_very_many_behaviors_fit():
    tracemalloc.start()
    found = clustered_mean(np.arange(10_000) % 7, range(10_000))
    assert tracemalloc.get_traced_memory()[1] < 600e6  # ten thousand draws: 1.6 GB
    tracemalloc.stop()
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 / 10_000**0.5, rel=0.1)


def test_mean_over_runs_by_hand():
    found = mean_over_runs([10.0, 20.0, 30.0])
    assert found.high == pytest.approx(20 + 4.302653 * 10 / 3**0.5, rel=1e-6)
    assert found.low == 0.0 and found.n == 3
    assert str(mean_over_runs([29.0])) == "29.0 (n = 1)"


def test_tokens_by_run_weigh_every_completion_alike():
    table = pd.DataFrame(
        {"base_seed": [0, 0, 1], "seed": [0, 0, 0], "n": [30, 10, 5], "response_tokens": [8, 16, 9]}
    )
    assert tokens_by_run(table) == [10.0, 9.0]


def test_matrix_of_outcomes_whose_requests_repeat():
    outcomes = pd.DataFrame(
        {
            "attack": ["direct"] * 4 + ["gcg"] * 2,
            "split": ["seen"] * 4 + ["new"] * 2,
            "behavior": ["a", "b", "a", "b", "c", "d"],
            "harmful": [1, 0, 1, 0, 0, 0],
        }
    )
    found = clustered_matrix(outcomes, "attack", "split", "harmful", missing="–")
    half = clustered_rate([1, 0, 1, 0], ["a", "b", "a", "b"])
    assert found.loc["direct", "seen"] == (
        f"50.0% [{100 * half.low:.1f}, {100 * half.high:.1f}] (2/4; 2 requests)"
    )
    assert found.loc["gcg", "new"] == str(Rate(0, 2))
    assert found.loc["direct", "new"] == "–" and list(found.columns) == ["seen", "new"]


def test_a_table_without_counts_says_them_in_words():
    asked_of = {"direct": "abcd", "pair": "abcd", "gcg": "ab"}
    outcomes = pd.DataFrame(
        [
            (attack, method, behavior, int(method == "vanilla"))
            for attack, behaviors in asked_of.items()
            for method, seeds in (("vanilla", 1), ("r2d", 3), ("refusal", 3))
            for behavior in behaviors * seeds
        ],
        columns=["attack", "method", "behavior", "harmful"],
    )
    found = clustered_matrix(outcomes, "attack", "method", "harmful", counts=False)
    rate = clustered_rate([1] * 4, list("abcd"))
    assert found.loc["direct", "vanilla"] == f"100% [{100 * rate.low:.0f}, 100]"
    assert asked(outcomes, "attack", "method") == (
        "requests: 4 (gcg: 2), responses to each: 3 (vanilla: 1)"
    )
    same = outcomes[(outcomes["attack"] != "gcg") & (outcomes["method"] != "vanilla")]
    assert asked(same, "attack", "method") == "requests: 4, responses to each: 3"
    # A row whose cells differ, and a column.
    less = outcomes.drop(outcomes[(outcomes["attack"] == "pair") & (outcomes["method"] == "r2d")]
                         .index[:9])  # fmt: skip
    assert asked(less, "attack", "method") == (
        "requests: 4 (pair: 3 to 4; gcg: 2), responses to each: 1 (r2d: 1 to 3; refusal: 3)"
    )


def test_seed_matrix():
    outcomes = pd.DataFrame(
        {
            "attack": "direct",
            "seed": [0] * 20 + [1] * 20,
            "behavior": [*range(20), *range(20)],
            "harmful": [1] * 3 + [0] * 17 + [1] * 5 + [0] * 15,
        }
    )
    found = seed_matrix(outcomes, "attack", "harmful")
    assert found.loc["direct"].tolist() == [
        str(Rate(3, 20)), str(Rate(5, 20)), str(mean_over_seeds([Rate(3, 20), Rate(5, 20)])),
    ]  # fmt: skip


def test_permutation_agrees_with_the_exact_sign_test():
    """With one outcome a behavior it asks what McNemar asks."""
    a = [True] * 9 + [False] * 3 + [True] * 20 + [False] * 8
    b = [False] * 9 + [True] * 3 + [True] * 20 + [False] * 8
    assert paired_permutation(a, b, range(40)) == pytest.approx(mcnemar(a, b).p_value, rel=1e-12)
    assert paired_permutation(a, a, range(40)) == 1
    few = paired_permutation([True] * 5, [False] * 5, range(5))
    assert few == 2 / 2**5  # all flips are counted
    assert paired_permutation([True] * 3, [False] * 3, [0, 0, 0]) == 1  # one draw
    many = paired_permutation([True] * 300, [False] * 300, range(300))
    assert many == pytest.approx(2 / 2**300, rel=1e-12)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_every_flip_is_counted(differences):
    """Against scipy's test, which goes through all of them where they are few."""
    behaviors = np.repeat(range(len(differences)), 4)
    a = np.concatenate([np.arange(4) < max(d, 0) for d in differences])
    b = np.concatenate([np.arange(4) < max(-d, 0) for d in differences])
    found = paired_permutation(a, b, behaviors)
    if len(differences) == 1 or not any(differences):
        assert found == 1
        return
    numbers = np.array(differences, dtype=float)
    exact = permutation_test(
        (numbers, np.zeros_like(numbers)),
        lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert found == pytest.approx(exact.pvalue, rel=1e-12)


def test_permutation_holds_its_level_where_behaviors_repeat():
    """McNemar on the pairs takes four equal outcomes for four draws, and is too sure."""
    rng = np.random.default_rng(1)
    clustered = naive = 0
    for _ in range(150):
        a, b = (np.repeat(rng.random(25) < 0.4, 4) for _ in range(2))
        clustered += paired_permutation(a, b, np.repeat(range(25), 4)) < 0.05
        naive += mcnemar(a.tolist(), b.tolist()).p_value < 0.05
    assert clustered <= 15 < naive


def test_mean_over_seeds_by_hand():
    found = mean_over_seeds([Rate(100, 1000), Rate(200, 1000), Rate(300, 1000)])
    # s = 0.1, t(0.975, 2) = 4.302653
    assert found.estimate == pytest.approx(0.2)
    assert found.high == pytest.approx(0.2 + 4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert found.low == 0.0 and found.n == 3


def test_seeds_that_agree_are_not_certain():
    agree = mean_over_seeds([Rate(0, 40)] * 3)
    assert (agree.low, agree.high) == wilson_interval(0, 120)
    one = mean_over_seeds([Rate(0, 40), Rate(0, 40), Rate(1, 40)])
    assert one.high > agree.high


def test_budget_curve_by_hand():
    curve = budget_curve([3, None, 1, 3, None])
    assert curve[["budget", "successes"]].to_numpy().tolist() == [[1, 1], [3, 3]]
    assert curve["n"].tolist() == [5, 5] and curve["rate"].tolist() == [0.2, 0.6]
    assert curve.loc[1, ["low", "high"]].tolist() == list(wilson_interval(3, 5))
    assert budget_curve([3, None], budgets=[2, 10])["rate"].tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clustered_rate([], []), "at least one behavior, got 0"),
        (lambda: BehaviorRate.of([], []), "at least one behavior, got 0"),
        (lambda: clustered_mean([float("nan")], ["a"]), "finite number"),
        (lambda: clustered_mean([], []), "no value to take the mean of"),
        (lambda: clustered_mean([1.0], []), "got 1 values and 0 behaviors"),
        (lambda: mean_over_runs([]), "finite number of each run"),
        (lambda: mean_over_runs([1.0, float("inf")]), "finite number of each run"),
        (lambda: clustered_rate([True, 2], ["a", "b"]), "true or false, got 2"),
        (lambda: clustered_rate([True], ["a", "b"]), "got 1 outcomes and 2 behaviors"),
        (lambda: paired_permutation([], [], []), "at least one behavior, got 0"),
        (lambda: mean_over_seeds([Rate(1, 10)]), "at least two seeds, got 1"),
        (lambda: mean_over_seeds([0.1, float("nan")]), "a Rate, .* got 0.1"),
        (lambda: mean_over_seeds([Rate(1, 10), Rate(0, 0)]), r"a Rate, .* got – \(0/0\)"),
        (lambda: budget_curve([]), "at least one behavior"),
        (lambda: budget_curve([0]), "counted from 1, got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_rate_of_unequal_behaviors_by_hand():
    """One behavior of 4 outcomes, two of 1: Kish's (6)² / 18 = 2 behaviors of size 3 where all are
    alike; else Wilson's on what the variance between them, four of size 3 added, says.
    """
    none = ClusteredRate.of([False] * 6, list("aaaabc"))
    assert (none.successes, none.n, none.behaviors) == (0, 6, 3)
    assert none.effective == pytest.approx(2)
    assert (none.low, none.high) == pytest.approx(wilson_interval(0, 2))
    some = ClusteredRate.of([True, True, False, False, True, False], list("aaaabc"))
    mean = (3 + 6) / (6 + 12)
    off = [2 - 4 * mean, 1 - mean, 0 - mean, *[3 - 3 * mean] * 2, *[-3 * mean] * 2]
    variance = sum(each**2 for each in off) / 18**2
    effective = mean * (1 - mean) / variance * 2 / (2 + 4)
    assert some.effective == pytest.approx(effective) and 2 < effective < 6
    assert str(some).startswith("50.0% [") and str(some).endswith("] (3/6; 3 requests)")
    interval = clustered_rate([True, True, False, False, True, False], list("aaaabc"))
    assert (interval.low, interval.high, interval.n) == (some.low, some.high, 3)
    narrow = ClusteredRate(3, 6, confidence=0.5, behaviors=3, effective=some.effective)
    assert some.low < narrow.low < narrow.high < some.high
    assert str(ClusteredRate(0, 0, behaviors=0, effective=0.0)) == str(Rate(0, 0))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
@settings(deadline=None)
def test_a_rate_of_single_outcomes_is_the_plain_one(outcomes):
    alone, plain = (
        ClusteredRate.of(outcomes, range(len(outcomes))),
        Rate(sum(outcomes), len(outcomes)),
    )
    assert alone.effective == pytest.approx(plain.n) and str(alone) == str(plain)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high))


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("sizes", [[27] * 3 + [1] * 27, [27] * 10 + [1] * 20, [1, 9, 20] * 12])
def test_intervals_of_unequal_behaviors_cover(sizes, rate):
    """400 studies each, all outcomes of a behavior alike, which is the worst case."""
    rng = np.random.default_rng(0)
    behaviors, held = np.repeat(range(len(sizes)), sizes).tolist(), 0
    for _ in range(400):
        outcomes = np.repeat(rng.random(len(sizes)) < rate, sizes)
        found = clustered_rate(outcomes.tolist(), behaviors)
        held += found.low <= rate <= found.high
    # As Wilson's own of a few draws; of the mean size, 73% where three behaviors are nearly all.
    assert held >= 0.84 * 400


def judged_by_two(rng, behaviors, each):
    """Truth, and a judge who is wrong on all answers to some requests, and on others by chance."""
    truth = np.repeat(rng.random(behaviors) < 0.4, each)
    wrong = np.repeat(rng.random(behaviors) < 0.15, each) | (rng.random(each * behaviors) < 0.05)
    return truth.tolist(), (truth ^ wrong).tolist()


def test_kappa_of_single_items_is_the_plain_one():
    rng = np.random.default_rng(0)
    judged = judged_by_two(rng, 400, 1)
    plain, alone = cohen_kappa(*judged), clustered_kappa(*judged, range(400))
    assert (alone.kappa, alone.agreement, alone.n) == (plain.kappa, plain.agreement, plain.n)
    # Student's t on 399 for the normal, 400/399 for 1; or the agreement's own interval, which is
    # about as wide.
    assert alone.low == pytest.approx(plain.low, abs=0.01)
    assert alone.high == pytest.approx(plain.high, abs=0.01)


def test_kappa_takes_a_behavior_for_one_draw():
    judged = [
        np.repeat(each, 4).tolist() for each in judged_by_two(np.random.default_rng(0), 60, 1)
    ]
    together = clustered_kappa(*judged, [("base", i // 4) for i in range(240)])
    apart = clustered_kappa(*judged, range(240))
    assert together.kappa == apart.kappa == cohen_kappa(*judged).kappa
    assert together.high - together.low > 1.8 * (apart.high - apart.low)


@pytest.mark.parametrize("behaviors", [5, 10, 24, 80])
def test_kappas_interval_covers_of_few_behaviors_too(behaviors):
    """Of 300 studies of nine answers each."""
    rng = np.random.default_rng(0)
    true = cohen_kappa(*judged_by_two(rng, 20_000, 9)).kappa
    of, held = np.repeat(range(behaviors), 9).tolist(), 0
    for _ in range(300):
        found = clustered_kappa(*judged_by_two(rng, behaviors, 9), of)
        held += found.low <= true <= found.high
    assert held >= 0.925 * 300


def test_kappa_where_there_is_little_to_see():
    once = clustered_kappa("xyxyxxyy", "xyxyxyyx", ["r"] * 8)
    assert (once.kappa, once.low, once.high) == (0.5, -1, 1)
    twice = clustered_kappa("xyxyxxyy" * 2, "xyxyxyyx" * 2, [0] * 8 + [1] * 8)
    assert twice.low < 0 and twice.high > 0.9  # though both behaviors move kappa by nothing
    agreed = clustered_kappa("xyxyxxyy", "xyxyxxyy", range(8))
    # 8 of 8: Wilson's from 67.6% on, of which chance, a half, is taken out.
    assert agreed.high == 1 and agreed.low == pytest.approx((0.6756 - 0.5) / 0.5, abs=1e-3)
    same = clustered_kappa("xxxx", "xxxx", [1, 1, 2, 2])
    assert np.isnan(same.kappa) and (same.low, same.high, same.agreement) == (-1, 1, 1)
    empty = clustered_kappa([], [], [])
    assert np.isnan(empty.kappa) and empty.n == 0
    with pytest.raises(InputError, match="each of the items, got 4 items and 1 behaviors"):
        clustered_kappa("xxxx", "xxxx", ["r"])
    with pytest.raises(InputError, match="behavior 1 is missing"):
        clustered_kappa("xy", "xy", ["r", None])


def test_seeds_whose_outcomes_hang_together_are_worth_less():
    """Five behaviors of twenty outcomes each, all alike, are no hundred independent ones."""
    outcomes, behaviors = [True] * 40 + [False] * 60, [n // 20 for n in range(100)]
    seeds = [BehaviorRate.of(outcomes, behaviors)] * 2
    plain = mean_over_seeds([Rate(40, 100)] * 2)
    over = mean_over_seeds(seeds)
    assert over.estimate == plain.estimate == pytest.approx(0.4)
    assert over.low < plain.low - 0.1 and over.high > plain.high + 0.1
    assert (over.low, over.high) == pytest.approx(wilson_interval(4, 10))
