"""Attack success against the queries spent."""

from __future__ import annotations

import pandas as pd

from r2d_core.plots.drawing import (
    MARKER,
    Figure,
    canvas,
    finish,
    handles_once,
    percent_axis,
    plain_numbers,
)
from r2d_core.plots.names import attack_label, attacks_in, method_look, methods_in


def budget_curves(table: pd.DataFrame, *, alt: str) -> Figure:
    """One panel an attack: success rate against the queries it may spend, with the table's
    bounds as a band.

    Columns: attack, method and those of `sampling_error.budget_curve`. Between two budgets nothing
    happened, so a line is a flight of stairs.
    """
    attacks, methods = attacks_in(table["attack"]), methods_in(table["method"])
    columns = min(len(attacks), 3)
    rows = -(-len(attacks) // columns)
    with canvas(2.6 * columns + 1.2, 2.1 * rows + 0.5) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes in grid[len(attacks) :]:
            axes.remove()
        for axes, attack in zip(grid, attacks, strict=False):
            axes.set_title(attack_label(attack), loc="left", fontsize=10)
            for method in methods:
                of = (table["attack"] == attack) & (table["method"] == method)
                curve = table[of].sort_values("budget")
                if curve.empty:
                    continue
                label, colour, marker = method_look(method)
                x, y, low, high = (curve[name] for name in ("budget", "rate", "low", "high"))
                axes.fill_between(
                    x, 100 * low, 100 * high, step="post", color=colour, alpha=0.18, linewidth=0
                )
                axes.step(x, 100 * y, where="post", color=colour, linewidth=1.8)
                axes.plot(
                    x.iloc[-1:], 100 * y.iloc[-1:], marker, color=colour, label=label, **MARKER
                )
            axes.set_xscale("log")
            plain_numbers(axes.xaxis)
            axes.set_xlabel("queries")
            axes.grid(alpha=0.18, linewidth=0.6)
        percent_axis(grid[0].yaxis, grid[0].set_ylim, "%")
        handles = handles_once(grid[: len(attacks)])
        figure.legend(
            handles.values(), handles, loc="outside right upper", frameon=False, numpoints=1
        )
        return finish(figure, alt)
