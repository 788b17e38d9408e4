"""One method against the others: differences of rates, replicate by replicate and on the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from r2d_core.plots.counts import records
from r2d_core.plots.drawing import INK, MARKER, Figure, canvas, finish, panel_size, panels
from r2d_core.plots.names import attack_label, attacks_in, method_look, methods_in


def difference_intervals(table: pd.DataFrame, single: pd.DataFrame, *, alt: str) -> Figure:
    """One panel an outcome: how far the reference's rate is from each method's, in points.

    ``table`` has the columns method, outcome, difference, low and high (shares from -1 to 1),
    ``single`` method, outcome and difference, a row a replicate: the faint open markers. On the
    line at 0 there is no difference; left of it the reference's rate is the lower one. A panel
    reaches as far as its differences do: to 20, 50 or 100 points either way.
    """
    cells = {(row["method"], row["outcome"]): row for row in records(table)}
    spread = {
        tuple(key): [100 * each for each in rows["difference"]]
        for key, rows in single.groupby(["method", "outcome"], sort=False)
    }
    methods, outcomes = methods_in(table["method"]), attacks_in(table["outcome"])
    with canvas(*panel_size(len(outcomes), len(methods))) as figure:
        labels = [method_look(method)[0] for method in methods]
        grid = panels(figure, [attack_label(each) for each in outcomes], labels)
        for axes, outcome in zip(grid, outcomes, strict=True):
            reach = _reach([c for key, c in cells.items() if key[1] == outcome], outcome, spread)
            axes.set_xlim(-1.06 * reach, 1.06 * reach)
            ticks = [-reach, -reach // 2, 0, reach // 2, reach]
            axes.set_xticks(
                ticks, [f"{tick:+d}".replace("-", "−") if tick else "0" for tick in ticks]
            )
            axes.set_xlabel("difference, points")
            axes.axvline(0, color=INK, linewidth=0.9, alpha=0.6)
            axes.grid(axis="x", alpha=0.18, linewidth=0.6)
            for y, method in enumerate(methods):
                if (cell := cells.get((method, outcome))) is None:
                    axes.text(4, y, "not compared", va="center", fontsize=8, alpha=0.6)
                    continue
                _, colour, marker = method_look(method)
                points = spread.get((method, outcome), [])
                axes.plot(
                    points, [y] * len(points), "o", markerfacecolor="none", markeredgecolor=INK,
                    markersize=4, alpha=0.45, linestyle="none",
                )  # fmt: skip
                axes.plot([100 * cell["low"], 100 * cell["high"]], [y, y], color=colour,
                          linewidth=2.4)  # fmt: skip
                axes.plot(100 * cell["difference"], y, marker, color=colour, **MARKER)
        return finish(figure, alt)


def _reach(
    cells: list[dict[Any, Any]], outcome: str, spread: Mapping[tuple[Any, ...], list[float]]
) -> int:
    """The points that hold every interval and replicate of an outcome."""
    ends = [100 * abs(cell[end]) for cell in cells for end in ("low", "high")]
    ends += [abs(each) for key, some in spread.items() if key[1] == outcome for each in some]
    return next(reach for reach in (20, 50, 100) if max(ends) <= reach or reach == 100)
