"""The numbers of behaviors needed, against all outcomes counted out and published sizes."""

from __future__ import annotations

import pytest
from scipy.stats import binom, binomtest, fisher_exact, multinomial

from r2d_core.errors import InputError
from r2d_core.sample_size import behaviors_needed, fisher_power, mcnemar_power, pairs_needed


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
