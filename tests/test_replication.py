"""Differences over replicates: by hand, by simulation, and that they do not count requests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_1samp

from r2d_core.errors import InputError
from r2d_core.replication import difference_over_replicates
from r2d_core.sampling_error import clustered_rate


def study(rates_a: list[float], rates_b: list[float], n: int):
    """Replicates of n requests each, of which exactly those shares are true."""
    a, b, behaviors, replicates = [], [], [], []
    for number, (of_a, of_b) in enumerate(zip(rates_a, rates_b, strict=True)):
        a += [True] * round(of_a * n) + [False] * (n - round(of_a * n))
        b += [True] * round(of_b * n) + [False] * (n - round(of_b * n))
        behaviors += [f"{number}/{request}" for request in range(n)]
        replicates += [number] * n
    return a, b, behaviors, replicates


def test_by_hand_it_is_students_test_of_the_replicates():
    a, b = [0.1, 0.2, 0.3, 0.1], [0.5, 0.4, 0.8, 0.9]
    found = difference_over_replicates(*study(a, b, 100))
    each = np.subtract(a, b)  # -0.4, -0.2, -0.5, -0.8
    margin = t.ppf(0.975, 3) * each.std(ddof=1) / 2
    assert (found.estimate, found.low, found.high) == pytest.approx(
        (-0.475, -0.475 - margin, -0.475 + margin)
    )
    assert found.p_value == pytest.approx(ttest_1samp(each, 0).pvalue)
    assert (found.replicates, found.lower, found.higher) == (4, 4, 0)


def test_requests_do_not_make_replicates():
    """Ten times the requests, same shares: the interval and the p-value stay."""
    a, b = [0.1, 0.2, 0.3, 0.1], [0.5, 0.4, 0.8, 0.9]
    few, many = (difference_over_replicates(*study(a, b, n)) for n in (100, 1000))
    assert (few.low, few.high, few.p_value) == pytest.approx((many.low, many.high, many.p_value))


def test_pairs_that_are_opposed_leave_more_than_two_samples_would():
    """Of each request one of both is true, so what moves the one moves the other back."""
    alike, opposed = (
        difference_over_replicates(
            [True, False] * 30, second * 30, list(range(60)), [0, 1] * 15 + [1, 0] * 15
        )
        for second in ([True, False], [False, True])
    )
    of_one = clustered_rate([True, False] * 30, range(60))
    side = of_one.high - of_one.estimate
    assert alike.estimate == opposed.estimate == 0
    assert alike.high == pytest.approx(math.sqrt(2) * side)
    assert opposed.high == pytest.approx(2 * side)


@pytest.mark.parametrize("rates", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_replicates_that_agree_have_the_width_that_their_requests_leave(rates):
    a, b, behaviors, replicates = study([rates[0]] * 3, [rates[1]] * 3, 20)
    found = difference_over_replicates(a, b, behaviors, replicates)
    of_a, of_b = clustered_rate(a, behaviors), clustered_rate(b, behaviors)
    assert found.estimate == rates[0] - rates[1]
    down = math.hypot(of_a.estimate - of_a.low, of_b.high - of_b.estimate)
    up = math.hypot(of_a.high - of_a.estimate, of_b.estimate - of_b.low)
    assert found.low == pytest.approx(max(-1, found.estimate - down))
    assert found.high == pytest.approx(min(1, found.estimate + up)) and found.high > found.low
    assert (found.p_value < 1e-3) == (rates[0] != rates[1])


def test_the_p_value_is_below_5_percent_where_the_interval_leaves_out_0():
    rng = np.random.default_rng(0)
    sides = set()
    for _ in range(200):
        rates = rng.random((2, 4)) * rng.choice([0.05, 1.0], 2)[:, None]
        found = difference_over_replicates(*study(list(rates[0]), list(rates[1]), 30))
        out = found.low > 0 or found.high < 0
        assert (found.p_value < 0.05) == out, found
        sides.add((out, found.estimate > 0))
    assert len(sides) == 4


@pytest.mark.parametrize(
    ("spread", "level"),
    [(0.0, 0.5), (0.1, 0.5), (0.2, 0.3), (0.0, 0.02)],
    ids=["equal", "some", "much", "rare"],
)
def test_it_holds_the_difference_of_all_languages(spread, level):
    """250 studies of six languages, which differ in level and in how far a is above b."""
    rng = np.random.default_rng(1)
    held, gap = 0, 0.1 if level > 0.1 else 0.01
    for _ in range(250):
        base = level + rng.uniform(-spread, spread, 6)
        of_a = base + gap + rng.uniform(-spread, spread, 6) / 2
        outcomes_a = rng.random((6, 60)) < np.clip(of_a, 0, 1)[:, None]
        outcomes_b = rng.random((6, 60)) < np.clip(base, 0, 1)[:, None]
        found = difference_over_replicates(
            outcomes_a.ravel().tolist(), outcomes_b.ravel().tolist(),
            list(range(360)), np.repeat(range(6), 60).tolist(),
        )  # fmt: skip
        held += found.low <= gap <= found.high
    assert binomtest(held, 250, 0.95, alternative="less").pvalue > 1e-3, held / 250


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([True], [True, False], ["x"], [0]), "got 1, 2, 1 and 1"),
        (([], [], [], []), "at least two replicates, got 0"),
        (([True], [True], ["x"], [0]), "at least two replicates, got 1"),
        (([2, 1], [True, True], ["x", "y"], [0, 1]), "true or false, got 2"),
        (([True, True], [True, True], [None, "y"], [0, 1]), "behavior 0 is missing"),
        (([True, True], [True, True], ["x", "y"], [0, None]), "replicate 1 is missing"),
        (([True] * 3, [True] * 3, list("xyz"), ["p", "p", "q"]), "got 1 of 'q' and 2 of 'p'"),
    ],
)
def test_what_is_no_study_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        difference_over_replicates(*arguments)
