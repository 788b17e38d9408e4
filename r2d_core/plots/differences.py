"""One method against the others: differences of rates, replicate by replicate and on the whole."""

from __future__ import annotations

import pandas as pd

from r2d_core.plots.counts import records
from r2d_core.plots.drawing import INK, MARKER, Figure, canvas, finish, panel_size, panels
from r2d_core.plots.names import attack_label, attacks_in, method_look, methods_in


def difference_intervals(table: pd.DataFrame, single: pd.DataFrame, *, alt: str) -> Figure:
    """One panel an outcome: how far the reference's rate is from each method's, in points.

    ``table`` has the columns method, outcome, difference, low and high (shares from -1 to 1),
    ``single`` method, outcome and difference, a row a replicate: the faint open markers. On the
    line at 0 there is no difference; left of it the reference's rate is the lower one.
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
            axes.set_xlim(-106, 106)
            axes.set_xticks([-100, -50, 0, 50, 100], ["−100", "−50", "0", "+50", "+100"])
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
