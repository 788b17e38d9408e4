"""A method over replicates: differences with a base model, not a request, for one draw.

The intervals of `sampling_error` are about other requests to the models that were measured. A claim
about a method is about models like these, most of which nobody has trained: then the replicates
(here languages, each with a base model and safety trainings of its own) are what was drawn, and a
handful of them is a small sample, however many requests each was put.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

from r2d_core.errors import InputError
from r2d_core.sampling_error import clustered_rate, student_margin


@dataclass(frozen=True)
class Difference:
    """The mean over replicates of (rate of a - rate of b), with its 95% interval.

    Attributes:
        estimate, low, high: shares, from -1 to 1. The interval is of the mean over all replicates
            like these; one more of them differs by more.
        p_value: two-sided, of no difference; below 5% where the interval leaves out 0.
        replicates: how many were drawn; in ``lower`` of them a's rate is lower than b's, in
            ``higher`` it is higher.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    replicates: int
    lower: int
    higher: int


def difference_over_replicates(
    a: Sequence[bool],
    b: Sequence[bool],
    behaviors: Sequence[Hashable],
    replicates: Sequence[Hashable],
) -> Difference:
    """Outcomes a against outcomes b; outcome i of both is of behaviors[i] in replicates[i].

    The interval is Student's t on the replicates' differences, but never narrower, at either end,
    than the one that the requests leave (`clustered_rate`'s two intervals put together as in
    Newcombe 1998, method 10, a positive correlation left out): replicates that happen to agree, 0%
    in all six, show no spread, and would have an interval of no width. The p-value is Student's,
    with the standard error that the wider of the two has on the side of 0.

    That takes the differences as spread about their mean like a normal variable. A rare replicate
    that does something else altogether is beyond a handful of them: where all agree, k replicates
    alone, without that assumption, have no p-value below 2/2ᵏ.

    Raises InputError for unequal lengths, fewer than two replicates, replicates of unequal numbers
    of outcomes, outcomes that are neither true nor false, and missing behaviors or replicates.
    """
    if not len(a) == len(b) == len(behaviors) == len(replicates):
        raise InputError(
            "expected as many outcomes of a as of b, behaviors and replicates, got "
            f"{len(a)}, {len(b)}, {len(behaviors)} and {len(replicates)}"
        )
    groups = pd.Series(list(replicates), dtype=object)
    if groups.isna().any():
        raise InputError(f"replicate {int(np.argmax(groups.isna()))} is missing; name it")
    sizes = groups.value_counts(sort=False)
    if len(sizes) < 2:
        raise InputError(f"expected at least two replicates, got {len(sizes)}")
    if sizes.nunique() > 1:
        raise InputError(
            f"expected as many outcomes of each replicate, got {sizes.min()} of {sizes.idxmin()!r} "
            f"and {sizes.max()} of {sizes.idxmax()!r}"
        )
    of_a, of_b = clustered_rate(a, behaviors), clustered_rate(b, behaviors)
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    each = pd.Series(first - second).groupby(groups, sort=False).mean().to_numpy()
    mean, k = float(each.mean()), len(each)
    between = student_margin(each)
    opposed = min(0.0, _correlation(first, second))
    down = max(between, _joined(of_a.estimate - of_a.low, of_b.high - of_b.estimate, opposed))
    up = max(between, _joined(of_a.high - of_a.estimate, of_b.estimate - of_b.low, opposed))
    error = (down if mean > 0 else up) / float(t.ppf(0.975, k - 1))
    return Difference(
        estimate=mean,
        low=max(-1.0, mean - down),
        high=min(1.0, mean + up),
        p_value=2 * float(t.sf(abs(mean) / error, k - 1)),
        replicates=k,
        lower=int((each < 0).sum()),
        higher=int((each > 0).sum()),
    )


def _joined(of_a: float, of_b: float, correlation: float) -> float:
    return math.sqrt(of_a**2 + of_b**2 - 2 * correlation * of_a * of_b)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spread = float(a.std() * b.std())
    return float(np.mean((a - a.mean()) * (b - b.mean()))) / spread if spread else 0.0
