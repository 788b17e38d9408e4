"""Clustered intervals, paired tests, budgets and power, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest, fisher_exact, multinomial

from r2d_core.errors import InputError
from r2d_core.metrics import mcnemar, wilson_interval
from r2d_core.sampling_error import (
    behaviors_needed,
    budget_curve,
    clustered_rate,
    fisher_power,
    mcnemar_power,
    mean_over_seeds,
    paired_permutation,
    pairs_needed,
)


def test_clustered_interval_is_as_wide_as_the_behaviors_make_it():
    """Five equal outcomes a behavior are one draw, not five."""
    single = [True] * 30 + [False] * 70
    alone = clustered_rate(single, range(100))
    five = clustered_rate(np.repeat(single, 5), np.repeat(range(100), 5))
    assert five.estimate == alone.estimate == 0.3 and five.n == alone.n == 100
    assert (five.low, five.high) == (alone.low, alone.high)
    as_if_independent = clustered_rate(np.repeat(single, 5), range(500))
    assert as_if_independent.high - as_if_independent.low < 0.6 * (five.high - five.low)
    assert alone.low == pytest.approx(wilson_interval(30, 100)[0], abs=0.02)


def test_clustered_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        chance = rng.beta(0.6, 1.4, 60)  # behaviors differ; the mean is 0.3
        outcomes = rng.random((60, 4)) < chance[:, None]
        found = clustered_rate(outcomes.ravel(), np.repeat(range(60), 4), draws=500, seed=trial)
        covered += found.low <= 0.3 <= found.high
    assert binomtest(covered, 200, 0.94).pvalue > 1e-3


def test_clustered_interval_at_the_ends_is_wilsons():
    for value in (False, True):
        found = clustered_rate([value] * 40, np.repeat(range(20), 2))
        assert (found.low, found.high) == wilson_interval(20 * value, 20) and found.n == 20


def test_permutation_agrees_with_the_exact_sign_test():
    """With one outcome a behavior it asks what McNemar asks."""
    a = [True] * 9 + [False] * 3 + [True] * 20 + [False] * 8
    b = [False] * 9 + [True] * 3 + [True] * 20 + [False] * 8
    assert paired_permutation(a, b, range(40)) == pytest.approx(mcnemar(a, b).p_value, abs=0.015)
    assert paired_permutation(a, a, range(40)) == 1
    few = paired_permutation([True] * 5, [False] * 5, range(5))
    assert few == 2 / 2**5  # all flips are tried


def test_permutation_holds_its_level_where_behaviors_repeat():
    """McNemar on the pairs takes four equal outcomes for four draws, and is too sure."""
    rng = np.random.default_rng(1)
    clustered = naive = 0
    for trial in range(150):
        a, b = (np.repeat(rng.random(25) < 0.4, 4) for _ in range(2))
        clustered += paired_permutation(a, b, np.repeat(range(25), 4), seed=trial) < 0.05
        naive += mcnemar(a.tolist(), b.tolist()).p_value < 0.05
    assert clustered <= 15 < naive


def test_mean_over_seeds_by_hand():
    found = mean_over_seeds([0.1, 0.2, 0.3])
    # s = 0.1, t(0.975, 2) = 4.302653
    assert found.estimate == pytest.approx(0.2)
    assert found.high == pytest.approx(0.2 + 4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert found.low == 0.0 and found.n == 3


def test_budget_curve_by_hand():
    curve = budget_curve([3, None, 1, 3, None])
    assert curve[["budget", "successes"]].to_numpy().tolist() == [[1, 1], [3, 3]]
    assert curve["n"].tolist() == [5, 5] and curve["rate"].tolist() == [0.2, 0.6]
    assert curve.loc[1, ["low", "high"]].tolist() == list(wilson_interval(3, 5))
    assert budget_curve([3, None], budgets=[2, 10])["rate"].tolist() == [0.0, 0.5]


def enumerated(n: int, rate_a: float, rate_b: float) -> float:
    """Power of scipy's Fisher test, outcome by outcome."""
    a, b = (binom.pmf(range(n + 1), n, rate) for rate in (rate_a, rate_b))
    return sum(
        a[i] * b[j]
        for i in range(n + 1)
        for j in range(n + 1)
        if a[i] * b[j] > 1e-12 and fisher_exact([[i, n - i], [j, n - j]]).pvalue < 0.05
    )


@pytest.mark.parametrize(
    ("n", "rate_a", "rate_b", "known"),
    # Sample sizes of the arcsine formula at its 80%: near 0% the test has a quarter of that.
    [(97, 0.0, 0.04, 0.19), (9, 0.0, 0.41, 0.29), (35, 0.0, 0.11, 0.18), (20, 0.3, 0.6, None)],
)
def test_fisher_power_is_that_of_all_outcomes(n, rate_a, rate_b, known):
    power = fisher_power(n, rate_a, rate_b)
    assert power == pytest.approx(enumerated(n, rate_a, rate_b), abs=1e-7)
    assert known is None or round(power, 2) == known
    assert power == pytest.approx(fisher_power(n, 1 - rate_a, 1 - rate_b), abs=1e-7)


def test_mcnemar_power_is_that_of_all_outcomes():
    n, only_a, only_b = 30, 0.3, 0.05
    power = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            if a + b and binomtest(a, a + b).pvalue < 0.05:
                power += multinomial.pmf([a, b, n - a - b], n, [only_a, only_b, 0.65])
    assert mcnemar_power(n, only_a, only_b) == pytest.approx(power, abs=1e-7)
    assert round(mcnemar_power(292, 0.05, 0.01), 2) == 0.78  # Connor's sample size at 80%


@pytest.mark.parametrize(
    ("rate_a", "rate_b", "needed"),
    [(0.0, 0.04, 197), (0.0, 0.41, 15), (0.0, 0.11, 71), (0.04, 0.27, 41), (0.5, 0.65, 183)],
)
def test_behaviors_needed_have_their_power_and_fewer_do_not(rate_a, rate_b, needed):
    assert behaviors_needed(rate_a, rate_b) == behaviors_needed(rate_b, rate_a) == needed
    assert fisher_power(needed - 1, rate_a, rate_b) < 0.8
    assert all(fisher_power(n, rate_a, rate_b) >= 0.8 for n in range(needed, 2 * needed))


@pytest.mark.parametrize(
    ("only_a", "only_b", "needed"), [(0.05, 0.01, 307), (0.1, 0.0, 78), (0.25, 0.1, 129)]
)
def test_pairs_needed_have_their_power_and_fewer_do_not(only_a, only_b, needed):
    assert pairs_needed(only_a, only_b) == pairs_needed(only_b, only_a) == needed
    assert mcnemar_power(needed - 1, only_a, only_b) < 0.8
    assert all(mcnemar_power(n, only_a, only_b) >= 0.8 for n in range(needed, 2 * needed))


def test_sample_sizes():
    assert behaviors_needed(0.04, 0.11) > 200  # what 100 prompts cannot tell
    assert behaviors_needed(0.0, 1.0) == 4  # 4 of 4 against 0 of 4: p = 2 / 70
    assert pairs_needed(1.0, 0.0) == 6  # p = 2 / 2^6
    # Cohen (1988) says 170 and Connor (1987) 234, of tests that are not exact.
    assert 170 < behaviors_needed(0.5, 0.65) < 190
    assert 234 < pairs_needed(0.2, 0.1) < 260 < pairs_needed(0.2, 0.1, power=0.9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clustered_rate([True], ["a"]), "at least two behaviors, got 1"),
        (lambda: clustered_rate([True, 2], ["a", "b"]), "true or false, got 2"),
        (lambda: clustered_rate([True], ["a", "b"]), "got 1 outcomes and 2 behaviors"),
        (lambda: paired_permutation([], [], []), "at least two behaviors, got 0"),
        (lambda: mean_over_seeds([0.1]), "at least two seeds, got 1"),
        (lambda: budget_curve([]), "at least one behavior"),
        (lambda: budget_curve([0]), "counted from 1, got 0"),
        (lambda: behaviors_needed(0.1, 0.1), "the rates must differ, both are 0.1"),
        (lambda: behaviors_needed(0.1, 1.1), "rate_b: expected a number between 0 and 1, got 1.1"),
        (lambda: behaviors_needed(0.1, 0.2, power=1), "power: expected"),
        (lambda: pairs_needed(0.6, 0.5), "sum to at most 1, got 0.6 and 0.5"),
        (lambda: pairs_needed(0.2, 0.2), "must differ"),
        (lambda: behaviors_needed(0.5, 0.501), r"takes about 3,924,4\d\d behaviors, more"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
