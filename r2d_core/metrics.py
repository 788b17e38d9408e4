"""Rates with intervals, paired tests, agreement: the statistics behind every table.

With a hundred prompts an attack success rate of 4% has the interval [1.6, 9.8]. No rate is shown
without its interval, and no two methods are compared without a paired test.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar as _mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from r2d_core.errors import InputError
from r2d_core.records.outcomes import is_success


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), within [0, 1]; (0, 1) when n is 0.

    Raises InputError unless 0 ≤ successes ≤ n, both whole numbers, and 0 < confidence < 1.
    """
    if not (successes % 1 == 0 and n % 1 == 0):
        raise InputError(f"expected whole numbers, got successes={successes}, n={n}")
    if not 0 <= successes <= n:
        raise InputError(f"expected 0 ≤ successes ≤ n, got successes={successes}, n={n}")
    if not 0 < confidence < 1:
        raise InputError(f"expected a confidence between 0 and 1, such as 0.95, got {confidence}")
    if n == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    # Rounding can put a bound a hair on the wrong side of a rate of 0 or 1.
    return max(0.0, min(float(low), successes / n)), min(1.0, max(float(high), successes / n))


@dataclass(frozen=True)
class Rate:
    """A proportion and its Wilson interval; of nothing (n = 0) it is nan within [0, 1].

    ``str`` gives percents: "12.0% [7.0, 19.8] (12/100)".
    """

    successes: int
    n: int
    confidence: float = 0.95
    rate: float = field(init=False)
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        low, high = wilson_interval(self.successes, self.n, self.confidence)
        object.__setattr__(self, "rate", self.successes / self.n if self.n else math.nan)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def __str__(self) -> str:
        if self.n == 0:
            return "– (0/0)"
        return (
            f"{100 * self.rate:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}] "
            f"({self.successes}/{self.n})"
        )


def attack_success_rate(labels: Iterable[str], success: str = "harmful") -> Rate:
    """The share of judged responses that carry the label of a successful attack.

    ``success`` is the judge's label of one (`JUDGES[name].success`). Raises InputError for a label
    of another judge where it is left out, and for unparsable ones: they are no failures of the
    attack, and `r2d_core.attack_success.success_rates` counts them apart.
    """
    if isinstance(labels, str):
        raise InputError(f"expected a sequence of labels, got the one string {labels!r}")
    found = list(labels)
    if wrong := [label for label in found if not isinstance(label, str)]:
        raise InputError(f"every label must be a string, got {wrong[0]!r}; judge every response")
    outcomes = [is_success(label, success) for label in found]
    if nothing := outcomes.count(None):
        raise InputError(
            f"{nothing} of {len(found)} labels are unparsable, neither success nor failure: judge "
            "those again, or use r2d_core.attack_success.success_rates, which counts them apart"
        )
    return Rate(outcomes.count(True), len(found))


@dataclass(frozen=True)
class PairedTest:
    """McNemar's test: how often each outcome happened, pair by pair, and the two-sided p-value."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> PairedTest:
    """Do two methods differ on the same items? ``a[i]`` and ``b[i]`` are outcomes of item i.

    The exact binomial form of McNemar's test, on the pairs that differ: it holds for any number of
    them. p is 1 when none differs. For one outcome an item; where items come again, over seeds or
    attacks, use `sampling_error.paired_permutation`, as the book does. Raises InputError for
    unequal lengths or values other than true and false (0 and 1 count).
    """
    _same_length(a, b)
    for outcome in (*a, *b):
        if outcome not in (0, 1):
            raise InputError(f"every outcome must be true or false, got {outcome!r}")
    counts = np.zeros((2, 2), dtype=int)
    for first, second in zip(a, b, strict=True):
        counts[int(first), int(second)] += 1
    (neither, only_b), (only_a, both) = counts.tolist()
    return PairedTest(both, only_a, only_b, neither, float(_mcnemar(counts, exact=True).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for testing many at once (Holm 1979), in the order given."""
    for p in p_values:
        if not 0 <= p <= 1:
            raise InputError(f"a p-value lies between 0 and 1, got {p}")
    if not len(p_values):
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with its 95% interval, the plain share of agreement, and the number of items.

    Where chance alone agrees always (each rater gave all items one same label) or there is no item,
    kappa is nan within [-1, 1].
    """

    kappa: float
    low: float
    high: float
    agreement: float
    n: int


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> Kappa:
    """Agreement of two judges beyond chance (Cohen 1960), interval from the asymptotic error.

    ``a[i]`` and ``b[i]`` are the labels of item i; where several items are of one request,
    `sampling_error.clustered_kappa` has the interval. Raises InputError for unequal lengths.
    """
    _same_length(a, b)
    place = {label: index for index, label in enumerate(dict.fromkeys([*a, *b]))}
    if len(place) < 2:
        return Kappa(math.nan, -1.0, 1.0, 1.0 if len(a) else math.nan, len(a))
    counts = np.zeros((len(place), len(place)))
    for first, second in zip(a, b, strict=True):
        counts[place[first], place[second]] += 1
    with np.errstate(divide="ignore", invalid="ignore"):  # a z-test, unused here, divides by 0
        found = cohens_kappa(counts)
    # Where the error is nought, rounding may leave its square a hair below.
    margin = float(norm.ppf(0.975)) * math.sqrt(max(0.0, found.var_kappa))
    return Kappa(
        kappa=float(found.kappa),
        low=max(-1.0, float(found.kappa) - margin),
        high=min(1.0, float(found.kappa) + margin),
        agreement=float(np.trace(counts) / len(a)),
        n=len(a),
    )


NUMBERS = {
    "rate": ("rate", "successes", "n", "low", "high"),
    "mean": ("estimate", "low", "high", "n"),
}
"""What a file has of a `Rate`, and of `sampling_error`'s `Interval` and `Mean`."""


def as_columns(
    frame: pd.DataFrame, *, rates: Sequence[str] = (), means: Sequence[str] = ()
) -> pd.DataFrame:
    """A table for a file: each column of rates as six, of means as four (`NUMBERS`).

    The sixth is ``behaviors``, of how many the outcomes are: as many as outcomes in a plain `Rate`.
    They are named here and not found by what is in them, so the columns are the same in a table of
    no rows. Where a row has none (None) they are empty. Raises InputError for a column that is not
    there.
    """
    for name in (*rates, *means):
        if name not in frame:
            raise InputError(f"the table has no column {name!r}; it has {', '.join(frame.columns)}")
    columns: dict[str, list[Any]] = {}
    for name in frame.columns:
        values = frame[name].tolist()
        if name not in (*rates, *means):
            columns[name] = values
            continue
        for number in NUMBERS["rate" if name in rates else "mean"]:
            columns[f"{name}_{number}"] = [
                None if value is None else getattr(value, number) for value in values
            ]
        if name in rates:
            columns[f"{name}_behaviors"] = [
                None if value is None else getattr(value, "behaviors", value.n) for value in values
            ]
    return pd.DataFrame(columns)


def _same_length(a: Sequence[object], b: Sequence[object]) -> None:
    if len(a) != len(b):
        raise InputError(
            f"expected two sequences of one length, paired item by item, got {len(a)} and {len(b)}"
        )
