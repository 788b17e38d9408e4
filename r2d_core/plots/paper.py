"""The paper's own numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from r2d_core.errors import InputError
from r2d_core.plots.counts import percent, records
from r2d_core.plots.drawing import INK, MARKER, Figure, canvas, finish, handles_once, percent_axis
from r2d_core.plots.names import METHODS, method_look


def paper_intervals(paper: pd.DataFrame, *, alt: str, n: int = 100) -> Figure:
    """The paper's attack success rates, each with the interval that ``n`` prompts leave it.

    ``paper`` has the columns model, task, method, value (percent) of ``paper_results.csv``, rows
    of the metric ASR only. One panel an attack, one row a model, one marker a method.
    """
    models, tasks = list(dict.fromkeys(paper["model"])), list(dict.fromkeys(paper["task"]))
    methods = list(dict.fromkeys(paper["method"]))
    # The paper's own methods look as ours do in the other figures; its baselines take the rest.
    known = {
        "Vanilla": "vanilla",
        "R2D": "r2d",
        "w/o CPO": "r2d_no_cpo",
        "w/o pivot": "r2d_no_pivots",
    }
    looks = {name: method_look(known[name])[1:] for name in methods if name in known}
    spare = [(c, m) for _, c, m in METHODS.values() if (c, m) not in looks.values()]
    looks |= dict(zip((m for m in methods if m not in known), spare, strict=False))
    if len(looks) < len(methods):
        raise InputError(
            f"paper_intervals: at most 8 methods can be told apart, got {len(methods)}"
        )
    height = 0.16 * len(methods) + 0.16
    with canvas(2.45 * len(tasks) + 1.7, height * len(models) + 1.1) as figure:
        grid = figure.subplots(1, len(tasks), squeeze=False, sharey=True).ravel()
        for axes, task in zip(grid, tasks, strict=True):
            for row in records(paper[paper["task"] == task]):
                offset = (
                    (methods.index(row["method"]) - (len(methods) - 1) / 2) * 0.8 / len(methods)
                )
                y = models.index(row["model"]) + offset
                rate, low, high = percent(round(row["value"] * n / 100), n)
                axes.plot([low, high], [y, y], color=looks[row["method"]][0], linewidth=1.6)
                axes.plot(
                    rate, y, looks[row["method"]][1], color=looks[row["method"]][0],
                    **(MARKER | {"markersize": 5.5}), label=row["method"], linestyle="none",
                )  # fmt: skip
            for line in range(1, len(models)):
                axes.axhline(line - 0.5, color=INK, alpha=0.12, linewidth=0.6)
            axes.set_title(task, loc="left", fontsize=10)
            percent_axis(axes.xaxis, axes.set_xlim, "attack success rate, %")
            axes.grid(axis="x", alpha=0.18, linewidth=0.6)
            axes.tick_params(axis="y", length=0)
        grid[0].set_yticks(range(len(models)), models)
        grid[0].set_ylim(len(models) - 0.5, -0.5)
        shown = handles_once(grid)
        legend: dict[str, Any] = dict(
            loc="outside lower center", ncols=min(len(methods), 4), frameon=False
        )
        figure.legend([shown[m] for m in methods], methods, **legend)
        return finish(figure, alt)
