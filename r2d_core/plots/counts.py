"""From tidy tables to the counts and percentages that figures draw."""

from __future__ import annotations

from typing import Any

import pandas as pd

from r2d_core.errors import InputError
from r2d_core.metrics import wilson_interval
from r2d_core.plots.names import OUTCOMES
from r2d_core.sampling_error import clustered_rate


def scoped(table: pd.DataFrame, scope: str) -> pd.DataFrame:
    """The rows of one scope; InputError where there are none, or a column is missing."""
    needed = {"method", "scope", "n", *OUTCOMES}
    missing = sorted(needed - set(table.columns))
    if missing:
        raise InputError(f"the table lacks the columns {', '.join(missing)}; it needs them to plot")
    chosen = table[table["scope"] == scope]
    if chosen.empty:
        known = ", ".join(map(repr, sorted(map(str, table["scope"].unique())))) or "none"
        raise InputError(f"the table has no rows of the scope {scope!r}; it has {known}")
    return chosen


def pool(table: pd.DataFrame, by: list[str]) -> dict[tuple[Any, ...], dict[str, int]]:
    """The counts of each group, summed; groups of nothing are left out."""
    sums = table.groupby(by, sort=False)[["n", *OUTCOMES]].sum()
    keys = sums.index if len(by) > 1 else [(key,) for key in sums.index]
    counts = [{str(name): int(count) for name, count in row.items()} for row in records(sums)]
    return {tuple(key): row for key, row in zip(keys, counts, strict=True) if row["n"]}


def records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    return table.to_dict("records")


def interval(rows: pd.DataFrame, label: str) -> tuple[float, float, float]:
    """The rate of a label in percent, and the ends of its 95% interval.

    Where the rows are single outcomes and name their ``behavior``, a behavior with all of its
    outcomes is one draw (`clustered_rate`); else it is Wilson's of the counts.
    """
    if "behavior" not in rows:
        return percent(int(rows[label].sum()), int(rows["n"].sum()))
    found = clustered_rate(rows[label].tolist(), rows["behavior"].tolist())
    return 100 * found.estimate, 100 * found.low, 100 * found.high


def groups(table: pd.DataFrame, by: list[str]) -> dict[tuple[Any, ...], pd.DataFrame]:
    """The rows of each group; groups of nothing are left out."""
    found = {tuple(key): rows for key, rows in table.groupby(by, sort=False)}
    return {key: rows for key, rows in found.items() if rows["n"].sum()}


def percent(count: int, n: int) -> tuple[float, float, float]:
    """A rate in percent, and the ends of its Wilson 95% interval."""
    low, high = wilson_interval(count, n)
    return 100 * count / n, 100 * low, 100 * high
