"""What another replicate would show: differences with a base model, not a request, for one draw.

The intervals of `sampling_error` are about other requests to the models that were measured. A claim
about a method is about models nobody has trained yet: then the replicates (here languages, each
with a base model and safety trainings of its own) are what was drawn, and a handful of them is a
small sample, however many requests each was put.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

from r2d_core.errors import InputError
from r2d_core.sampling_error import clustered_rate


@dataclass(frozen=True)
class Difference:
    """The mean over replicates of (rate of a - rate of b), with its 95% interval.

    Attributes:
        estimate, low, high: shares, from -1 to 1; of one replicate the interval is [-1, 1].
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

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.estimate:+.0f} [{low:+.0f}, {high:+.0f}]"


def difference_over_replicates(
    a: Sequence[bool],
    b: Sequence[bool],
    behaviors: Sequence[Hashable],
    replicates: Sequence[Hashable],
) -> Difference:
    """Outcomes a against outcomes b; outcome i of both is of behaviors[i] in replicates[i].

    All replicates weigh the same. The interval is Student's t on their differences, but never
    within the one that the requests leave (`clustered_rate`'s two intervals put together as in
    Newcombe 1998, method 10 without its correlation): replicates that happen to agree, 0% in all
    six, show no spread, and would have an interval of no width. The p-value is Student's, with the
    standard error that the wider of the two has on the side of 0.

    Raises InputError for unequal lengths, no outcomes, outcomes that are neither true nor false,
    and missing behaviors or replicates.
    """
    if not len(a) == len(b) == len(behaviors) == len(replicates):
        raise InputError(
            "expected as many outcomes of a as of b, behaviors and replicates, got "
            f"{len(a)}, {len(b)}, {len(behaviors)} and {len(replicates)}"
        )
    of_a, of_b = clustered_rate(a, behaviors), clustered_rate(b, behaviors)
    change = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    groups = pd.Series(list(replicates), dtype=object)
    if groups.isna().any():
        raise InputError(f"replicate {int(np.argmax(groups.isna()))} is missing; name it")
    each = pd.Series(change).groupby(groups, sort=False).mean().to_numpy()
    mean, k = float(each.mean()), len(each)
    lower, higher = int((each < 0).sum()), int((each > 0).sum())
    if k < 2:
        return Difference(mean, -1.0, 1.0, 1.0, k, lower, higher)
    quantile = float(t.ppf(0.975, k - 1))
    between = quantile * float(np.std(each, ddof=1)) / math.sqrt(k)
    down = max(between, math.hypot(of_a.estimate - of_a.low, of_b.high - of_b.estimate))
    up = max(between, math.hypot(of_a.high - of_a.estimate, of_b.estimate - of_b.low))
    towards_none = down if mean > 0 else up
    p_value = 2 * float(t.sf(abs(mean) / (towards_none / quantile), k - 1))
    return Difference(
        mean, max(-1.0, mean - down), min(1.0, mean + up), min(1.0, p_value), k, lower, higher
    )
