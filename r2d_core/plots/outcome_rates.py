"""Rates of any outcome of any runs: one beside the other, or one against the other."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from r2d_core.errors import InputError
from r2d_core.plots.counts import percent, records
from r2d_core.plots.drawing import (
    BLUE,
    MARKER,
    VERMILLION,
    Figure,
    canvas,
    finish,
    panel_size,
    panels,
    percent_axis,
    plain,
)
from r2d_core.plots.names import METHODS, attack_label


def rate_intervals(table: pd.DataFrame, *, alt: str) -> Figure:
    """One panel an outcome: every recipe's rate with its 95% interval.

    Columns: title, outcome, successes, n; and low and high, or the interval is Wilson's; and rate
    where that is not successes / n. The first title's interval is drawn through its panel as a
    band. Where n is 0 nothing that the judge said could be read.
    """
    cells = {(row["title"], row["outcome"]): row for row in records(table)}
    titles = list(dict.fromkeys(map(str, table["title"])))
    outcomes = list(dict.fromkeys(map(str, table["outcome"])))
    with canvas(*panel_size(len(outcomes), len(titles))) as figure:
        grid = panels(
            figure, [attack_label(each) for each in outcomes], [plain(each, 46) for each in titles]
        )
        for axes, outcome in zip(grid, outcomes, strict=True):
            percent_axis(axes.xaxis, axes.set_xlim, "%")
            for y, name in enumerate(titles):
                if (cell := cells.get((name, outcome))) is None or not cell["n"]:
                    none = "not run" if cell is None else "unparsable"
                    axes.text(2, y, none, va="center", fontsize=8, alpha=0.6)
                    continue
                rate, low, high = _percent(cell)
                colour = BLUE if y == 0 else VERMILLION
                if y == 0:
                    axes.axvspan(low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot([low, high], [y, y], color=colour, linewidth=2.4)
                axes.plot(rate, y, "D" if y == 0 else "o", color=colour, **MARKER)
            axes.grid(axis="x", alpha=0.18, linewidth=0.6)
        return finish(figure, alt)


def trade_off(table: pd.DataFrame, x: str, y: str, *, alt: str) -> Figure:
    """Each recipe at (rate of outcome ``x``, rate of outcome ``y``), both with 95% intervals.

    Columns as of `rate_intervals`. Bottom left is best.
    """
    cells = {(row["title"], row["outcome"]): row for row in records(table)}
    looks = [(colour, marker) for _, colour, marker in METHODS.values()]
    titles = list(dict.fromkeys(map(str, table["title"])))
    if len(titles) > len(looks):
        raise InputError(f"trade_off: at most {len(looks)} recipes can be told apart")
    with canvas(7.2, 4.2) as figure:
        axes = figure.add_subplot()
        for name, (colour, marker) in zip(titles, looks, strict=False):
            across, along = (cells[name, outcome] for outcome in (x, y))
            at_x, x_low, x_high = _percent(across)
            at_y, y_low, y_high = _percent(along)
            axes.plot([x_low, x_high], [at_y, at_y], color=colour, linewidth=1.8)
            axes.plot([at_x, at_x], [y_low, y_high], color=colour, linewidth=1.8)
            axes.plot(at_x, at_y, marker, color=colour, **MARKER, label=plain(name, 40),
                      linestyle="none")  # fmt: skip
        axes.set_xlabel(f"{plain(x)}, %")
        axes.set_ylabel(f"{plain(y)}, %")
        axes.grid(alpha=0.18, linewidth=0.6)
        figure.legend(loc="outside right upper", frameon=False)
        return finish(figure, alt)


def _percent(cell: dict[Any, Any]) -> tuple[float, float, float]:
    if "low" in cell and not math.isnan(cell["low"]):
        rate = cell["rate"] if "rate" in cell else cell["successes"] / cell["n"]
        return 100 * rate, 100 * cell["low"], 100 * cell["high"]
    return percent(cell["successes"], cell["n"])
