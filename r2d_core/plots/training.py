"""What a training was given, and how it went."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from r2d_core.errors import InputError
from r2d_core.pivots import RETHINK, SAFE, UNSAFE
from r2d_core.plots.drawing import (
    BLUE,
    BROWN,
    GREEN,
    SKY,
    VERMILLION,
    Figure,
    canvas,
    finish,
    handles_once,
)
from r2d_core.plots.names import method_look, methods_in


def training_curves(log: pd.DataFrame, *, alt: str) -> Figure:
    """Loss and pivot accuracy over the optimizer's steps, a panel a quantity, a line a run.

    ``log`` has a column ``step`` and any numeric columns to draw; ``method`` and ``seed``, when
    there, tell the runs apart. Columns that share the prefix ``pivot_accuracy`` are fractions and
    share one panel, a line style a class.
    """
    if "step" not in log:
        raise InputError("training_curves: the log has no column 'step'")
    quantities = [
        name
        for name in log.columns
        if name not in ("step", "seed", "base_seed", "method")
        and pd.api.types.is_numeric_dtype(log[name])
        and log[name].notna().any()
    ]
    panels: dict[str, list[str]] = {}
    for name in quantities:
        key = "pivot_accuracy" if name.startswith("pivot_accuracy") else name
        panels.setdefault(key, []).append(name)
    if not panels:
        raise InputError("training_curves: the log has no numeric column besides 'step'")
    run_columns = [name for name in ("method", "base_seed", "seed") if name in log]
    runs: list[tuple[Any, pd.DataFrame]] = [((), log)]
    if run_columns:
        runs = list(log.groupby(run_columns, sort=False))
    styles = ["-", "--", ":", "-."]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with canvas(3.0 * columns + 0.4, 2.5 * rows + 0.3) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, (key, names) in zip(grid, panels.items(), strict=False):
            for name, style in zip(names, styles, strict=False):
                for run, rows_of_run in runs:
                    drawn = rows_of_run.dropna(subset=[name]).sort_values("step")
                    method = run[run_columns.index("method")] if "method" in run_columns else "r2d"
                    axes.plot(
                        drawn["step"], drawn[name], style, color=method_look(method)[1],
                        linewidth=1.4, alpha=0.85, label=name.removeprefix("pivot_accuracy_"),
                    )  # fmt: skip
            axes.set_title(key.replace("_", " "), loc="left", fontsize=10)
            axes.set_xlabel("optimizer step")
            axes.grid(alpha=0.18, linewidth=0.6)
            if key == "pivot_accuracy":
                axes.set_ylim(-0.03, 1.03)
            else:
                axes.set_ylim(bottom=0)
            if len(names) > 1:
                handles = handles_once([axes])
                axes.legend(list(handles.values()), list(handles), frameon=False, fontsize=8)
        if "method" in log and log["method"].nunique() > 1:
            lines = [Line2D([], [], color=method_look(m)[1]) for m in methods_in(log["method"])]
            labels = [method_look(m)[0] for m in methods_in(log["method"])]
            figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False)
        return finish(figure, alt)


def training_data(table: pd.DataFrame, *, alt: str) -> Figure:
    """What a data set is made of: lengths, steps and pivots; ``table`` is `datasets.describe`'s.

    Lengths are in tokens where they were counted, else in words.
    """
    if table.empty:
        raise InputError("training_data: the table has no rows")
    unit = "tokens" if "tokens" in table else "words"
    counts = {pivot: int(table[pivot[1:-1].lower()].sum()) for pivot in (SAFE, UNSAFE, RETHINK)}
    with canvas(9.4, 2.6) as figure:
        length, steps, pivots = figure.subplots(1, 3)
        length.hist(table[unit], bins=24, color=BLUE, alpha=0.85)
        length.set_title(f"length in {unit}", loc="left", fontsize=10)
        taken = table["steps"].value_counts().sort_index()
        steps.bar(taken.index, taken.to_numpy(), color=SKY, width=0.8)
        steps.set_title("steps of reasoning", loc="left", fontsize=10)
        steps.xaxis.get_major_locator().set_params(integer=True)
        for axes in (length, steps):
            axes.set_ylabel("trajectories")
            axes.grid(axis="y", alpha=0.18, linewidth=0.6)
        bars = pivots.barh(
            list(counts), list(counts.values()), color=[GREEN, VERMILLION, BROWN], height=0.6
        )
        pivots.bar_label(bars, padding=3)
        pivots.invert_yaxis()
        pivots.margins(x=0.18)
        pivots.set_title("pivots of the reasoning", loc="left", fontsize=10)
        return finish(figure, alt)
