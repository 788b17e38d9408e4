"""Every figure of the book, from tidy tables.

A figure is an inline SVG: its text and lines take the page's own colour (``currentColor``), its
background is transparent and its text stays text, so one drawing reads in the light and the dark
theme, can be searched, and needs no image file. Colours follow Okabe and Ito's, darkened until they
stand out from either background (WCAG's 3:1 for graphics); the common forms of colour blindness
keep them apart, and no figure relies on colour alone: markers, hatches or printed numbers say the
same. Rates come with Wilson 95% intervals. Names and tokens are untrusted text:
nothing in them is read as markup or as mathematics.

The tables have the columns of an evaluation's ``table.csv``: method, base_seed, seed, attack,
split, scope, n, and the counts harmful, refused, correct, garbled.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import matplotlib.figure
import matplotlib.lines
import matplotlib.patches
import pandas as pd
from matplotlib.axes import Axes

from r2d_core.attack_titles import TITLES, attack_title
from r2d_core.errors import InputError
from r2d_core.metrics import wilson_interval
from r2d_core.pivots import RETHINK, SAFE, UNSAFE
from r2d_core.records import write_text_atomic

# After Okabe and Ito (2008), whose orange, sky blue and yellow are too pale for a line on white: a
# brown, a darker blue and an olive are in their places.
BLUE, VERMILLION, GREEN, BROWN = "#0072B2", "#D55E00", "#009E73", "#936525"
SKY, PURPLE, OLIVE, GREY = "#2F95C9", "#CC79A7", "#8B9325", "#6F6F6F"
# Drawn in place of the text colour, and turned into `currentColor` once matplotlib is done.
INK = "#010203"

METHODS = {  # name in tables -> (label, colour, marker); the order is the order of the figures
    "vanilla": ("no safety training", GREY, "o"),
    "refusal": ("refusal tuning", BROWN, "s"),
    "refusal_recovery": ("refusal + recovery", OLIVE, "p"),
    "r2d": ("R2D", BLUE, "D"),
    "r2d_no_cpo": ("R2D without CPO", SKY, "^"),
    "r2d_upweighted": ("R2D, pivots up-weighted", GREEN, "P"),
    "r2d_no_pivots": ("R2D without pivots", PURPLE, "v"),
    "r2d_no_reasoning": ("R2D without reasoning", VERMILLION, "X"),
}
OUTCOMES = {  # label of the judge -> (colour, hatch)
    "harmful": (VERMILLION, ""),
    "refused": (BLUE, "//"),
    "correct": (GREEN, ".."),
    "garbled": (GREY, "xx"),
}
PIVOTS = {SAFE: (GREEN, "safe"), UNSAFE: (VERMILLION, "unsafe"), RETHINK: (BLUE, "rethink")}

_FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Figure:
    """A finished figure: Jupyter and the book show ``markup``, a screen reader reads ``alt``."""

    markup: str
    alt: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {
            "text/html": f'<div class="r2d-figure">{self.markup}</div>',
            "text/plain": f"Figure: {self.alt}",
        }

    def save(self, path: Path | str) -> None:
        """Write the markup to ``path``, whole or not at all."""
        write_text_atomic(Path(path), self.markup)


# ------------------------------------------------------------------------------------------------
# The figures


def asr_heatmap(table: pd.DataFrame, *, alt: str, scope: str = "whole", title: str = "") -> Figure:
    """Attack success rate of every attack (rows) on every method (columns), all seeds pooled.

    Each cell prints its rate and, below it, how many of how many completions were harmful.
    """
    pooled = _pool(_scoped(table, scope), ["attack", "method"])
    attacks, methods = _attacks(key[0] for key in pooled), _methods(key[1] for key in pooled)
    with _canvas(0.9 + 1.15 * len(methods) + 1.6, 0.62 * len(attacks) + 1.0) as figure:
        axes = figure.add_subplot()
        for y, attack in enumerate(attacks):
            for x, method in enumerate(methods):
                cell = pooled.get((attack, method))
                if cell is None:
                    axes.text(x, y, "not run", ha="center", va="center", fontsize=8, alpha=0.6)
                    continue
                rate = cell["harmful"] / cell["n"]
                # Opacity stops at 0.65: beyond it neither theme's text would stand out.
                box: dict[str, Any] = dict(color=VERMILLION, alpha=0.65 * rate, linewidth=0)
                axes.add_patch(_rectangle(x - 0.48, y - 0.46, 0.96, 0.92, **box))
                axes.text(x, y - 0.12, f"{rate:.0%}", ha="center", va="center", fontsize=12)
                count = f"{cell['harmful']}/{cell['n']}"
                axes.text(x, y + 0.25, count, ha="center", va="center", fontsize=7.5)
        axes.set_xlim(-0.5, len(methods) - 0.5)
        axes.set_ylim(len(attacks) - 0.5, -0.5)
        labels = [_wrapped(_method(m)[0]) for m in methods]
        axes.set_xticks(range(len(methods)), labels)
        axes.set_yticks(range(len(attacks)), [_attack(a) for a in attacks])
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if title:
            axes.set_title(_plain(title), loc="left", pad=12)
        return _finish(figure, alt)


def asr_intervals(
    table: pd.DataFrame, *, alt: str, scope: str = "whole", title: str = ""
) -> Figure:
    """One panel an attack: each method's attack success rate with its Wilson 95% interval.

    The filled marker pools all seeds; the faint open ones are the single runs (base and safety
    seed), whose spread shows what the pooled interval, which takes completions as independent,
    cannot.
    """
    return _interval_panels(_scoped(table, scope), alt, title, reference="")


def ablation_intervals(
    table: pd.DataFrame,
    *,
    alt: str,
    methods: Sequence[str] = (
        "r2d",
        "r2d_no_cpo",
        "r2d_upweighted",
        "r2d_no_pivots",
        "r2d_no_reasoning",
    ),
    reference: str = "r2d",
    scope: str = "whole",
    title: str = "",
) -> Figure:
    """As ``asr_intervals`` for the ablated methods, with the reference's interval as a band."""
    chosen = _scoped(table, scope)
    chosen = chosen[chosen["method"].isin(methods)]
    if not (chosen["method"] == reference).any():
        raise InputError(f"ablation_intervals: the table has no rows of the method {reference!r}")
    return _interval_panels(chosen, alt, title, reference=reference)


def outcome_bars(table: pd.DataFrame, *, alt: str, scope: str = "whole", title: str = "") -> Figure:
    """One panel an attack: how each method's completions divide into the judge's four labels.

    A low attack success rate with many garbled completions is forgetting, not defence: this
    figure is where that shows.
    """
    pooled = _pool(_scoped(table, scope), ["attack", "method"])
    attacks, methods = _attacks(key[0] for key in pooled), _methods(key[1] for key in pooled)
    with _canvas(*_panel_size(len(attacks), len(methods), legend=0.35)) as figure:
        for axes, attack in zip(_panels(figure, attacks, methods), attacks, strict=True):
            for y, method in enumerate(methods):
                counts = pooled.get((attack, method))
                if counts is None:
                    axes.text(2, y, "not run", va="center", fontsize=8, alpha=0.6)
                    continue
                left = 0.0
                for label, (colour, hatch) in OUTCOMES.items():
                    share = 100 * counts[label] / counts["n"]
                    axes.barh(
                        y, share, 0.72, left=left, color=colour, hatch=hatch, edgecolor=INK,
                        linewidth=0.4, label=label,
                    )  # fmt: skip
                    if share >= 11:
                        # A pale plate keeps the number readable on colour and hatch alike.
                        plate: dict[str, Any] = dict(
                            boxstyle="round,pad=0.12", fc="#ffffff", ec="none", alpha=0.8
                        )
                        axes.text(
                            left + share / 2, y, f"{share:.0f}", ha="center", va="center",
                            fontsize=7.5, color="#111111", bbox=plate,
                        )  # fmt: skip
                    left += share
            axes.set_xlabel("share of completions, %")
        handles = [
            _rectangle(0, 0, 1, 1, facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.4)
            for colour, hatch in OUTCOMES.values()
        ]
        legend: dict[str, Any] = dict(
            loc="outside lower center", ncols=len(OUTCOMES), frameon=False
        )
        figure.legend(handles, list(OUTCOMES), **legend)
        if title:
            figure.suptitle(_plain(title))
        return _finish(figure, alt)


def over_refusal_vs_asr(
    attacked: pd.DataFrame,
    benign: pd.DataFrame,
    *,
    alt: str,
    scope: str = "whole",
    title: str = "",
) -> Figure:
    """Each method at (refusals of benign requests, attack success rate), both with intervals.

    ``attacked`` holds rows of harmful requests and ``benign`` rows of harmless ones; the caller
    chooses which attacks and which kinds of harmless request are pooled. Bottom left is best.
    """
    harm = _pool(_scoped(attacked, scope), ["method"])
    over = _pool(_scoped(benign, scope), ["method"])
    methods = _methods(key[0] for key in harm if key in over)
    if not methods:
        raise InputError("over_refusal_vs_asr: the two tables have no method in common")
    with _canvas(6.6, 4.2) as figure:
        axes = figure.add_subplot()
        for method in methods:
            label, colour, marker = _method(method)
            x, x_low, x_high = _percent(over[method,]["refused"], over[method,]["n"])
            y, y_low, y_high = _percent(harm[method,]["harmful"], harm[method,]["n"])
            axes.plot([x_low, x_high], [y, y], color=colour, linewidth=1.8)
            axes.plot([x, x], [y_low, y_high], color=colour, linewidth=1.8)
            axes.plot(x, y, marker, color=colour, **_MARKER, label=label, linestyle="none")
        _percent_axis(axes.xaxis, axes.set_xlim, "benign requests refused, %")
        _percent_axis(axes.yaxis, axes.set_ylim, "attack success rate, %")
        axes.grid(alpha=0.18, linewidth=0.6)
        figure.legend(loc="outside right upper", frameon=False)
        if title:
            axes.set_title(_plain(title), loc="left")
        return _finish(figure, alt)


def rate_intervals(table: pd.DataFrame, *, alt: str, title: str = "") -> Figure:
    """One panel an outcome: every recipe's rate with its Wilson 95% interval.

    Columns: title, outcome, successes, n. The first title's interval is drawn through its panel as
    a band.
    """
    cells = {(row["title"], row["outcome"]): row for row in _records(table)}
    titles = list(dict.fromkeys(map(str, table["title"])))
    outcomes = list(dict.fromkeys(map(str, table["outcome"])))
    with _canvas(*_panel_size(len(outcomes), len(titles))) as figure:
        columns = min(len(outcomes), 3)
        grid = figure.subplots(
            -(-len(outcomes) // columns), columns, squeeze=False, sharey=True
        ).ravel()
        for axes in grid[len(outcomes) :]:
            axes.remove()
        for axes, outcome in zip(grid, outcomes, strict=False):
            axes.set_title(_attack(outcome), loc="left", fontsize=10)
            _percent_axis(axes.xaxis, axes.set_xlim, "%")
            axes.tick_params(axis="y", length=0)
            for y, name in enumerate(titles):
                if (cell := cells.get((name, outcome))) is None or not cell["n"]:
                    axes.text(2, y, "not run", va="center", fontsize=8, alpha=0.6)
                    continue
                rate, low, high = _percent(cell["successes"], cell["n"])
                colour = BLUE if y == 0 else VERMILLION
                if y == 0:
                    axes.axvspan(low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot([low, high], [y, y], color=colour, linewidth=2.4)
                axes.plot(rate, y, "D" if y == 0 else "o", color=colour, **_MARKER)
            axes.grid(axis="x", alpha=0.18, linewidth=0.6)
        grid[0].set_yticks(range(len(titles)), [_plain(name, 46) for name in titles])
        grid[0].set_ylim(len(titles) - 0.5, -0.5)
        if title:
            figure.suptitle(_plain(title))
        return _finish(figure, alt)


def trade_off(table: pd.DataFrame, x: str, y: str, *, alt: str, title: str = "") -> Figure:
    """Each recipe at (rate of outcome ``x``, rate of outcome ``y``), both with Wilson intervals.

    Columns: title, outcome, successes, n. Bottom left is best.
    """
    cells = {(row["title"], row["outcome"]): row for row in _records(table)}
    looks = [(colour, marker) for _, colour, marker in METHODS.values()]
    titles = list(dict.fromkeys(map(str, table["title"])))
    if len(titles) > len(looks):
        raise InputError(f"trade_off: at most {len(looks)} recipes can be told apart")
    with _canvas(7.2, 4.2) as figure:
        axes = figure.add_subplot()
        for name, (colour, marker) in zip(titles, looks, strict=False):
            across, along = (cells[name, outcome] for outcome in (x, y))
            at_x, x_low, x_high = _percent(across["successes"], across["n"])
            at_y, y_low, y_high = _percent(along["successes"], along["n"])
            axes.plot([x_low, x_high], [at_y, at_y], color=colour, linewidth=1.8)
            axes.plot([at_x, at_x], [y_low, y_high], color=colour, linewidth=1.8)
            axes.plot(at_x, at_y, marker, color=colour, **_MARKER, label=_plain(name, 40),
                      linestyle="none")  # fmt: skip
        axes.set_xlabel(f"{_plain(x)}, %")
        axes.set_ylabel(f"{_plain(y)}, %")
        axes.grid(alpha=0.18, linewidth=0.6)
        figure.legend(loc="outside right upper", frameon=False)
        if title:
            axes.set_title(_plain(title), loc="left")
        return _finish(figure, alt)


def training_curves(log: pd.DataFrame, *, alt: str, title: str = "") -> Figure:
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
    with _canvas(3.0 * columns + 0.4, 2.5 * rows + 0.3) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, (key, names) in zip(grid, panels.items(), strict=False):
            for name, style in zip(names, styles, strict=False):
                for run, rows_of_run in runs:
                    drawn = rows_of_run.dropna(subset=[name]).sort_values("step")
                    method = run[run_columns.index("method")] if "method" in run_columns else "r2d"
                    axes.plot(
                        drawn["step"], drawn[name], style, color=_method(method)[1],
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
                _legend_once(axes)
        if "method" in log and log["method"].nunique() > 1:
            lines = [
                matplotlib.lines.Line2D([], [], color=_method(m)[1])
                for m in _methods(log["method"])
            ]
            labels = [_method(m)[0] for m in _methods(log["method"])]
            figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False)
        if title:
            figure.suptitle(_plain(title))
        return _finish(figure, alt)


def budget_curves(table: pd.DataFrame, *, alt: str, title: str = "") -> Figure:
    """One panel an attack: success rate against the queries it may spend, with Wilson's band.

    Columns: attack, method and those of `sampling_error.budget_curve`. Between two budgets nothing
    happened, so a line is a flight of stairs.
    """
    attacks, methods = _attacks(table["attack"]), _methods(table["method"])
    columns = min(len(attacks), 3)
    rows = -(-len(attacks) // columns)
    with _canvas(2.6 * columns + 1.2, 2.1 * rows + 0.5) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for axes in grid[len(attacks) :]:
            axes.remove()
        for axes, attack in zip(grid, attacks, strict=False):
            axes.set_title(_attack(attack), loc="left", fontsize=10)
            for method in methods:
                of = (table["attack"] == attack) & (table["method"] == method)
                curve = table[of].sort_values("budget")
                if curve.empty:
                    continue
                label, colour, marker = _method(method)
                x, y, low, high = (curve[name] for name in ("budget", "rate", "low", "high"))
                axes.fill_between(
                    x, 100 * low, 100 * high, step="post", color=colour, alpha=0.18, linewidth=0
                )
                axes.step(x, 100 * y, where="post", color=colour, linewidth=1.8)
                axes.plot(
                    x.iloc[-1:], 100 * y.iloc[-1:], marker, color=colour, label=label, **_MARKER
                )
            axes.set_xscale("log")
            axes.set_xlabel("queries")
            axes.grid(alpha=0.18, linewidth=0.6)
        _percent_axis(grid[0].yaxis, grid[0].set_ylim, "%")
        handles = {
            str(handle.get_label()): handle
            for axes in grid[: len(attacks)]
            for handle in axes.get_legend_handles_labels()[0]
        }
        figure.legend(
            handles.values(), handles, loc="outside right upper", frameon=False, numpoints=1
        )
        if title:
            figure.suptitle(_plain(title))
        return _finish(figure, alt)


def training_data(table: pd.DataFrame, *, alt: str, title: str = "") -> Figure:
    """What a data set is made of: lengths, steps and pivots; ``table`` is `datasets.describe`'s.

    Lengths are in tokens where they were counted, else in words.
    """
    if table.empty:
        raise InputError("training_data: the table has no rows")
    unit = "tokens" if "tokens" in table else "words"
    counts = {pivot: int(table[pivot[1:-1].lower()].sum()) for pivot in (SAFE, UNSAFE, RETHINK)}
    with _canvas(9.4, 2.6) as figure:
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
        if title:
            figure.suptitle(_plain(title))
        return _finish(figure, alt)


def benchmark_lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    alt: str,
    unit: str = "",
    floor: str = "",
    title: str = "",
) -> Figure:
    """How contenders scale: ``y`` against ``x``, both logarithmic, one line a value of ``name``.

    The contender called ``floor`` is what none can do without: drawn as a dashed line.
    """
    names = list(dict.fromkeys(table["name"]))
    looks = [(c, m) for _, c, m in METHODS.values()]
    if len(names) > len(looks):
        raise InputError(f"benchmark_lines: at most {len(looks)} lines, got {len(names)}")
    with _canvas(5.6, 3.4) as figure:
        axes = figure.add_subplot()
        spare = iter(looks)
        for name in names:
            drawn = table[table["name"] == name].dropna(subset=[y]).sort_values(x)
            if name == floor:
                axes.plot(drawn[x], drawn[y], "--", color=INK, alpha=0.7, label=_plain(name))
            else:
                colour, marker = next(spare)
                axes.plot(
                    drawn[x], drawn[y], marker, color=colour, linestyle="-", linewidth=1.4,
                    **(_MARKER | {"markersize": 6}), label=_plain(name),
                )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        sizes = sorted(table[x].unique())
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel(x)
        axes.set_ylabel(unit)
        axes.grid(alpha=0.18, linewidth=0.6)
        figure.legend(loc="outside right upper", frameon=False)
        if title:
            figure.suptitle(_plain(title))
        return _finish(figure, alt)


def paper_intervals(paper: pd.DataFrame, *, alt: str, n: int = 100, title: str = "") -> Figure:
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
    looks = {name: _method(known[name])[1:] for name in methods if name in known}
    spare = [(c, m) for _, c, m in METHODS.values() if (c, m) not in looks.values()]
    looks |= dict(zip((m for m in methods if m not in known), spare, strict=False))
    if len(looks) < len(methods):
        raise InputError(
            f"paper_intervals: at most 8 methods can be told apart, got {len(methods)}"
        )
    height = 0.16 * len(methods) + 0.16
    with _canvas(2.45 * len(tasks) + 1.7, height * len(models) + 1.1) as figure:
        grid = figure.subplots(1, len(tasks), squeeze=False, sharey=True).ravel()
        for axes, task in zip(grid, tasks, strict=True):
            for row in _records(paper[paper["task"] == task]):
                offset = (
                    (methods.index(row["method"]) - (len(methods) - 1) / 2) * 0.8 / len(methods)
                )
                y = models.index(row["model"]) + offset
                rate, low, high = _percent(round(row["value"] * n / 100), n)
                axes.plot([low, high], [y, y], color=looks[row["method"]][0], linewidth=1.6)
                axes.plot(
                    rate, y, looks[row["method"]][1], color=looks[row["method"]][0],
                    **(_MARKER | {"markersize": 5.5}), label=row["method"], linestyle="none",
                )  # fmt: skip
            for line in range(1, len(models)):
                axes.axhline(line - 0.5, color=INK, alpha=0.12, linewidth=0.6)
            axes.set_title(task, loc="left", fontsize=10)
            _percent_axis(axes.xaxis, axes.set_xlim, "attack success rate, %")
            axes.grid(axis="x", alpha=0.18, linewidth=0.6)
            axes.tick_params(axis="y", length=0)
        grid[0].set_yticks(range(len(models)), models)
        grid[0].set_ylim(len(models) - 0.5, -0.5)
        shown: dict[str, Any] = {}
        for axes in grid:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                shown.setdefault(label, handle)
        legend: dict[str, Any] = dict(
            loc="outside lower center", ncols=min(len(methods), 4), frameon=False
        )
        figure.legend([shown[m] for m in methods], methods, **legend)
        if title:
            figure.suptitle(_plain(title))
        return _finish(figure, alt)


def table(
    frame: pd.DataFrame,
    *,
    caption: str = "",
    index: bool = True,
    number: str = "{:.4g}",
    missing: str = "",
) -> Figure:
    """A data frame as an HTML table: whole, and with everything in it escaped.

    ``number`` is the format of floats, ``missing`` stands for a missing value.

    A pandas Styler does not escape, so ``<think>`` in a cell would vanish and worse would run.
    """
    body = frame.to_html(
        escape=True, border=0, index=index, float_format=number.format, na_rep=missing
    )
    if caption:
        body = body.replace("<thead>", f"<caption>{html.escape(caption)}</caption><thead>", 1)
    return Figure(body, caption or "table")


@dataclass(frozen=True)
class TraceToken:
    """One generated token and what the model thought of the pivots just before it.

    ``text`` is what the token adds to the completion, the space before it included.
    ``p_safe`` and ``p_unsafe`` are the probabilities of [SAFE] and [UNSAFE] at this position, or
    None where they were not recorded.
    """

    text: str
    p_safe: float | None = None
    p_unsafe: float | None = None


def pivot_trace(
    tokens: Sequence[TraceToken], *, alt: str, prompt: str = "", prefill: str = ""
) -> Figure:
    """A completion token by token, each reasoning step in the colour of the pivot that ends it.

    Tokens bring their own spaces: their texts, joined, are the completion.

    The pivots are also named in words and the steps underlined in three styles, so the colour
    carries nothing alone; where a token has its probabilities, they show when it is pointed at,
    and beside each pivot. All text is shown as text, whatever it holds.
    """
    parts: list[str] = []
    step: list[TraceToken] = []

    def close(kind: str) -> None:
        if step:
            spans = "".join(_token_span(token) for token in step)
            parts.append(f'<span class="r2d-step r2d-{kind}">{spans}</span>')
            step.clear()

    for token in tokens:
        pivot = PIVOTS.get(token.text.strip())
        if pivot is None:
            step.append(token)
            continue
        kind = pivot[1]
        close(kind)
        said = _probabilities(token)
        note = f'<span class="r2d-p">{html.escape(said)}</span>' if said else ""
        name = token.text.strip()
        before, _, after = map(html.escape, token.text.partition(name))
        parts.append(
            f'{before}<span class="r2d-pivot r2d-{kind}">{html.escape(name)}{note}</span>{after}'
        )
    close("answer")
    head = ""
    if prompt:
        head += f'<p><span class="r2d-who">prompt</span> {html.escape(prompt)}</p>'
    if prefill:
        head += f'<p><span class="r2d-who">prefilled</span> {html.escape(prefill)}</p>'
    _require_alt(alt)
    body = "".join(parts) or "<em>no tokens</em>"
    label = html.escape(alt, quote=True)
    return Figure(
        f'<style>{_TRACE_STYLE}</style><div class="r2d-trace" role="group" aria-label="{label}">'
        f'{head}<p><span class="r2d-who">model</span> {body}</p></div>',
        alt,
    )


# ------------------------------------------------------------------------------------------------
# Tables in, names and intervals out


def _scoped(table: pd.DataFrame, scope: str) -> pd.DataFrame:
    needed = {"method", "scope", "n", *OUTCOMES}
    missing = sorted(needed - set(table.columns))
    if missing:
        raise InputError(f"the table lacks the columns {', '.join(missing)}; it needs them to plot")
    chosen = table[table["scope"] == scope]
    if chosen.empty:
        known = ", ".join(map(repr, sorted(map(str, table["scope"].unique())))) or "none"
        raise InputError(f"the table has no rows of the scope {scope!r}; it has {known}")
    return chosen


def _pool(table: pd.DataFrame, by: list[str]) -> dict[tuple[Any, ...], dict[str, int]]:
    """The counts of each group, summed; groups of nothing are left out."""
    sums = table.groupby(by, sort=False)[["n", *OUTCOMES]].sum()
    keys = sums.index if len(by) > 1 else [(key,) for key in sums.index]
    counts = [{str(name): int(count) for name, count in row.items()} for row in _records(sums)]
    return {tuple(key): row for key, row in zip(keys, counts, strict=True) if row["n"]}


def _records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    return table.to_dict("records")


def _ordered(names: Iterable[object], known: Iterable[str]) -> list[str]:
    present = list(dict.fromkeys(str(name) for name in names))
    first = [name for name in known if name in present]
    return first + [name for name in present if name not in first]


def _methods(names: Iterable[object]) -> list[str]:
    return _ordered(names, METHODS)


def _attacks(names: Iterable[object]) -> list[str]:
    return _ordered(names, TITLES)


def _method(name: str) -> tuple[str, str, str]:
    return METHODS.get(name, (_plain(name.replace("_", " "), 32), GREY, "h"))


def _attack(name: str) -> str:
    return _plain(attack_title(name), 0 if name in TITLES else 32)


def _plain(text: str, limit: int = 0) -> str:
    """``text`` on one line, without the control characters that no XML may hold."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", " ", text)
    return text if not limit or len(text) <= limit else text[: limit - 1] + "…"


def _percent(count: int, n: int) -> tuple[float, float, float]:
    low, high = wilson_interval(count, n)
    return 100 * count / n, 100 * low, 100 * high


# ------------------------------------------------------------------------------------------------
# Drawing

_MARKER: dict[str, Any] = {"markersize": 7, "markeredgecolor": INK, "markeredgewidth": 0.7}


def _interval_panels(table: pd.DataFrame, alt: str, title: str, *, reference: str) -> Figure:
    pooled = _pool(table, ["attack", "method"])
    run_columns = [name for name in ("base_seed", "seed") if name in table]
    single = _pool(table, ["attack", "method", *run_columns])
    attacks, methods = _attacks(key[0] for key in pooled), _methods(key[1] for key in pooled)
    with _canvas(*_panel_size(len(attacks), len(methods))) as figure:
        for axes, attack in zip(_panels(figure, attacks, methods), attacks, strict=True):
            if band := pooled.get((attack, reference)):
                _, low, high = _percent(band["harmful"], band["n"])
                axes.axvspan(low, high, color=_method(reference)[1], alpha=0.15, linewidth=0)
            for y, method in enumerate(methods):
                counts = pooled.get((attack, method))
                if counts is None:
                    axes.text(2, y, "not run", va="center", fontsize=8, alpha=0.6)
                    continue
                _, colour, marker = _method(method)
                of_runs = [row for key, row in single.items() if key[:2] == (attack, method)]
                if len(of_runs) > 1:
                    rates = [100 * row["harmful"] / row["n"] for row in of_runs]
                    axes.plot(
                        rates, [y] * len(rates), "o", markerfacecolor="none",
                        markeredgecolor=INK, markersize=4, alpha=0.45, linestyle="none",
                    )  # fmt: skip
                rate, low, high = _percent(counts["harmful"], counts["n"])
                axes.plot([low, high], [y, y], color=colour, linewidth=2.4)
                axes.plot(rate, y, marker, color=colour, **_MARKER)
            axes.set_xlabel("attack success rate, %")
            axes.grid(axis="x", alpha=0.18, linewidth=0.6)
        if title:
            figure.suptitle(_plain(title))
        return _finish(figure, alt)


def _panel_size(attacks: int, methods: int, legend: float = 0.0) -> tuple[float, float]:
    columns = min(attacks, 3)
    rows = -(-attacks // columns)
    return 2.5 * columns + 1.9, rows * (0.27 * methods + 0.9) + 0.2 + legend


def _panels(figure: matplotlib.figure.Figure, attacks: list[str], methods: list[str]) -> list[Axes]:
    """One panel an attack, at most three a row, the methods down each y axis."""
    columns = min(len(attacks), 3)
    rows = -(-len(attacks) // columns)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes in grid[len(attacks) :]:
        axes.remove()
    for axes, attack in zip(grid, attacks, strict=False):
        axes.set_title(_attack(attack), loc="left", fontsize=10)
        axes.set_xlim(-3, 103)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(methods)), [_method(m)[0] for m in methods])
    grid[0].set_ylim(len(methods) - 0.5, -0.5)
    return list(grid[: len(attacks)])


def _percent_axis(axis: Any, set_limits: Any, label: str) -> None:
    set_limits(-3, 103)
    axis.set_ticks([0, 25, 50, 75, 100])
    axis.set_label_text(label)


def _legend_once(axes: Axes) -> None:
    handles: dict[Any, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        handles.setdefault(label, handle)
    axes.legend(list(handles.values()), list(handles), frameon=False, fontsize=8)


def _rectangle(
    x: float, y: float, width: float, height: float, **style: Any
) -> matplotlib.patches.Rectangle:
    return matplotlib.patches.Rectangle((x, y), width, height, **style)


def _wrapped(label: str) -> str:
    """A column heading on at most two lines, broken at the space nearest its middle."""
    spaces = [match.start() for match in re.finditer(" ", label)]
    if len(label) <= 11 or not spaces:
        return label
    cut = min(spaces, key=lambda at: abs(at - len(label) / 2))
    return f"{label[:cut]}\n{label[cut + 1 :]}"


@contextmanager
def _canvas(width: float, height: float) -> Iterator[matplotlib.figure.Figure]:
    """An empty figure of ``width`` x ``height`` inches under the book's style."""
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a name with dollar signs is a name
        "axes.unicode_minus": True,
        "font.family": "sans-serif",
        "font.size": 9.5,
        "axes.labelsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "axes.titlesize": 11,
        "figure.titlesize": 11,
        "hatch.linewidth": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    ink = ["text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color",
           "ytick.color", "grid.color", "hatch.color", "legend.labelcolor"]  # fmt: skip
    with matplotlib.rc_context(style | {name: INK for name in ink}):
        yield matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _finish(figure: matplotlib.figure.Figure, alt: str) -> Figure:
    """Draw to SVG and make it fit to stand inside a page among other figures."""
    _require_alt(alt)
    alt = _plain(alt)
    drawn = io.StringIO()
    # The ids of clip paths and markers must differ from figure to figure of one page, and be the
    # same from run to run: they are salted with what the figure shows.
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": "r2d"}):
        figure.savefig(drawn, format="svg", transparent=True, metadata=metadata)
    salt = hashlib.sha256((alt + drawn.getvalue()).encode()).hexdigest()[:10]
    root = ElementTree.fromstring(drawn.getvalue())
    _make_embeddable(root, salt)
    label = ElementTree.Element(f"{{{_SVG}}}title")
    label.text = alt
    root.insert(0, label)
    root.set("role", "img")
    root.set("aria-label", alt)
    root.set("style", "max-width: 100%; height: auto; overflow: visible;")
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return Figure(ElementTree.tostring(root, encoding="unicode"), alt)


def _make_embeddable(root: ElementTree.Element, salt: str) -> None:
    """Unique ids, the page's text colour and fonts, and no style sheet that leaks into the page."""
    referred = set(re.findall(r"#([\w-]+)", ElementTree.tostring(root, encoding="unicode")))
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's own <style> speaks of `*`: inline, that is every element of the page.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in referred:
            element.set("id", f"f{salt}-{name}")
        for key, value in list(element.attrib.items()):
            value = value.replace(INK, "currentColor")
            value = re.sub(r"url\(#([\w-]+)\)", rf"url(#f{salt}-\1)", value)
            if key == f"{{{_XLINK}}}href" and value.startswith("#"):
                value = f"#f{salt}-{value[1:]}"
            value = re.sub(r"(font: [^;]*?[\d.]+px) [^;]*", rf"\1 {_FONTS}", value)
            element.set(key, value)
        if element.tag == f"{{{_SVG}}}text" and "fill:" not in element.get("style", ""):
            element.set("fill", "currentColor")


def _require_alt(alt: str) -> None:
    if not alt.strip():
        raise InputError("a figure needs alt=…: one sentence that says what it shows")


# ------------------------------------------------------------------------------------------------
# Pivot traces

# Written with each trace, so that it looks the same in JupyterLab, in the book and in a saved file.
_TRACE_STYLE = (
    ".r2d-trace{line-height:2;font-size:.95em;max-width:48em}"
    ".r2d-trace p{margin:.3em 0;overflow-wrap:anywhere;white-space:pre-wrap}"
    ".r2d-trace .r2d-who{font-size:.75em;opacity:.7;margin-right:.6em;text-transform:uppercase;"
    "letter-spacing:.06em}"
    ".r2d-trace .r2d-step{border-bottom:2px solid currentColor;padding-bottom:1px}"
    ".r2d-trace .r2d-pivot{display:inline-block;line-height:1.5;border:1px solid;"
    "border-radius:.4em;padding:0 .4em;margin:0 .4em;font-weight:600}"
    ".r2d-trace .r2d-p{font-weight:400;font-size:.8em;margin-left:.5em}"
    + "".join(
        f".r2d-trace .r2d-step.r2d-{kind}{{background:{colour}22;"
        f"border-bottom:2px {line} {colour}}}"
        f".r2d-trace .r2d-pivot.r2d-{kind}{{background:{colour}44;border-color:{colour}}}"
        for (colour, kind), line in zip(PIVOTS.values(), ("solid", "double", "dashed"), strict=True)
    )
    + ".r2d-trace .r2d-step.r2d-answer{border:0}"
)


def _probabilities(token: TraceToken) -> str:
    said = []
    if token.p_safe is not None:
        said.append(f"P(safe) {token.p_safe:.2f}")
    if token.p_unsafe is not None:
        said.append(f"P(unsafe) {token.p_unsafe:.2f}")
    return " · ".join(said)


def _token_span(token: TraceToken) -> str:
    said = _probabilities(token)
    title = f' title="{html.escape(said, quote=True)}"' if said else ""
    return f"<span{title}>{html.escape(token.text)}</span>"
