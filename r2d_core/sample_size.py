"""How many behaviors it takes to tell two methods apart, by the exact power of the test used."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.special import gammaln
from scipy.stats import binom, norm
from statsmodels.stats.proportion import proportion_effectsize

from r2d_core.errors import InputError


@cache
def behaviors_needed(
    rate_a: float, rate_b: float, *, power: float = 0.8, alpha: float = 0.05
) -> int:
    """How many behaviors each of two methods has to be tried on, not the same ones, to tell two
    rates apart by Fisher's exact test, two-sided: the smallest number with this `fisher_power` from
    which on every larger one has it too (`_smallest`).

    Raises InputError unless the rates differ and all numbers are between 0 and 1, and for rates so
    near each other that it takes more than 50,000.
    """
    _between("power", power)
    _between("alpha", alpha)
    _between("rate_a", rate_a, closed=True)
    _between("rate_b", rate_b, closed=True)
    if rate_a == rate_b:
        raise InputError(f"the rates must differ, both are {rate_a}: no sample tells them apart")
    # Cohen 1988, for where to begin.
    quantiles = norm.ppf([1 - alpha / 2, power])
    guess = 2 * float(quantiles.sum() / proportion_effectsize(rate_a, rate_b)) ** 2
    return _smallest(lambda n: fisher_power(n, rate_a, rate_b, alpha=alpha), guess, power)


@cache
def pairs_needed(only_a: float, only_b: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many behaviors two methods have to be tried on, the same ones, for McNemar's exact test.

    ``only_a`` and ``only_b`` are the shares of behaviors on which one method alone fails; their
    difference is that of the rates. The smallest number with this `mcnemar_power` from which on
    every larger one has it too (`_smallest`). Raises InputError unless they differ and their sum is
    at most 1, and for shares so near each other that it takes more than 50,000.
    """
    _between("power", power)
    _between("alpha", alpha)
    for name, value in (("only_a", only_a), ("only_b", only_b)):
        _between(name, value, closed=True)
    total, gap = only_a + only_b, abs(only_a - only_b)
    if gap == 0 or total > 1:
        raise InputError(
            f"only_a and only_b must differ and sum to at most 1, got {only_a} and {only_b}"
        )
    # Connor 1987, for where to begin.
    quantiles = norm.ppf([1 - alpha / 2, power])
    root = quantiles[0] * math.sqrt(total) + quantiles[1] * math.sqrt(total - gap**2)
    guess = float(root / gap) ** 2
    return _smallest(lambda n: mcnemar_power(n, only_a, only_b, alpha=alpha), guess, power)


def fisher_power(n: int, rate_a: float, rate_b: float, *, alpha: float = 0.05) -> float:
    """How often Fisher's exact test (p < alpha, two-sided) tells two methods apart, each tried on n
    behaviors of its own: summed over the outcomes, but those of probability below 1e-9 a tail.
    """
    a, b = _likely(n, rate_a), _likely(n, rate_b)
    successes = np.arange(a[0] + b[0], a[-1] + b[-1] + 1)
    # Of two samples of one size the test is symmetric: p is twice the lower tail of the smaller
    # count, and significant are those counts up to a critical one that depends on the sum alone.
    log_factorial = gammaln(np.arange(2 * n + 1) + 1.0)
    deviation = np.sqrt(successes * (2 * n - successes) / (8 * n))
    reach = min(2 + math.ceil(7 * deviation.max()), int(successes[-1]) // 2)
    smaller = (successes // 2)[:, None] - np.arange(reach, -1, -1)
    possible = (smaller >= 0) & (successes[:, None] - smaller <= n)
    smaller = np.where(possible, smaller, (successes[:, None] + 1) // 2)
    other = successes[:, None] - smaller
    log_mass = (
        2 * log_factorial[n]
        - log_factorial[smaller]
        - log_factorial[n - smaller]
        - log_factorial[other]
        - log_factorial[n - other]
        - (log_factorial[2 * n] - log_factorial[successes] - log_factorial[2 * n - successes])[
            :, None
        ]
    )
    tail = np.cumsum(np.where(possible, np.exp(log_mass), 0.0), axis=1)
    critical = successes // 2 - reach - 1 + np.sum(2 * tail < alpha, axis=1)
    significant = np.minimum(a[:, None], b) <= critical[a[:, None] + b - successes[0]]
    return float(binom.pmf(a, n, rate_a) @ significant @ binom.pmf(b, n, rate_b))


def mcnemar_power(n: int, only_a: float, only_b: float, *, alpha: float = 0.05) -> float:
    """How often McNemar's exact test (p < alpha, two-sided) tells two methods apart on n behaviors,
    of which these shares are expected to fail with one method alone.
    """
    differing = _likely(n, only_a + only_b)
    critical = binom.ppf(alpha / 2, differing, 0.5) - 1  # the tail up to it is below alpha / 2
    share = only_a / (only_a + only_b)
    below = binom.cdf(critical, differing, share)
    above = binom.sf(differing - critical - 1, differing, share)
    return float(binom.pmf(differing, n, only_a + only_b) @ (below + above))


def _likely(n: int, rate: float) -> np.ndarray:
    low, high = binom.ppf([1e-9, 1 - 1e-9], n, rate)
    return np.arange(int(low), int(high) + 1)


def _smallest(power_of: Callable[[int], float], guess: float, power: float) -> int:
    """The smallest n from which on ``power_of(n)`` stays at ``power`` or above.

    An exact test's power does not rise evenly with n: it falls back by a tooth wherever the count
    that is significant changes. So the search looks for an n whose power lies above ``power`` by
    more than a tooth (0.1/√n; half of that is the largest met) and from there walks down.
    """
    if guess > 50_000:
        raise InputError(
            f"a gap so small takes about {guess:,.0f} behaviors, more than the 50,000 up to which "
            "they are computed; expect a larger gap, or ask for less power"
        )

    def well_above(n: int) -> bool:
        return power_of(n) >= power + min(0.1 / math.sqrt(n), (1 - power) / 2)

    low, high = 0, max(1, round(guess))
    while not well_above(high):
        low, high = high, math.ceil(1.2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if well_above(middle) else (middle, high)
    while high > 1 and power_of(high - 1) >= power:
        high -= 1
    return high


def _between(name: str, value: float, *, closed: bool = False) -> None:
    if not (0 <= value <= 1 if closed else 0 < value < 1):
        raise InputError(f"{name}: expected a number between 0 and 1, got {value}")
