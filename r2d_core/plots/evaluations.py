"""Attack success, outcomes and over-refusal of methods: from an evaluation's ``table.csv``.

Its columns: method, base_seed, seed, attack, split, scope, n, and the counts harmful, refused,
correct, garbled. Or from its outcomes one by one (`toy.outcomes.by_scope`), which name their
``behavior`` besides: then intervals take a request with all of its runs for one draw.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from r2d_core.errors import InputError
from r2d_core.plots.counts import groups, interval, pool, scoped
from r2d_core.plots.drawing import (
    INK,
    MARKER,
    VERMILLION,
    Figure,
    canvas,
    finish,
    panel_size,
    panels,
    percent_axis,
)
from r2d_core.plots.names import OUTCOMES, attack_label, attacks_in, method_look, methods_in


def asr_heatmap(table: pd.DataFrame, *, alt: str) -> Figure:
    """Attack success rate of every attack (rows) on every method (columns), all seeds pooled.

    Each cell prints its rate and, below it, how many of how many completions were harmful.
    """
    pooled = pool(scoped(table, "whole"), ["attack", "method"])
    attacks, methods = attacks_in(key[0] for key in pooled), methods_in(key[1] for key in pooled)
    with canvas(0.9 + 1.15 * len(methods) + 1.6, 0.62 * len(attacks) + 1.0) as figure:
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
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, **box))
                axes.text(x, y - 0.12, f"{rate:.0%}", ha="center", va="center", fontsize=12)
                count = f"{cell['harmful']}/{cell['n']}"
                axes.text(x, y + 0.25, count, ha="center", va="center", fontsize=7.5)
        axes.set_xlim(-0.5, len(methods) - 0.5)
        axes.set_ylim(len(attacks) - 0.5, -0.5)
        labels = [_wrapped(method_look(m)[0]) for m in methods]
        axes.set_xticks(range(len(methods)), labels)
        axes.set_yticks(range(len(attacks)), [attack_label(a) for a in attacks])
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return finish(figure, alt)


def asr_intervals(table: pd.DataFrame, *, alt: str) -> Figure:
    """One panel an attack: each method's attack success rate with its 95% interval.

    The filled marker pools all seeds; the faint open ones are the single runs (base and safety
    seed), whose spread shows what the pooled interval, which is about requests, cannot.
    """
    return _interval_panels(scoped(table, "whole"), alt, reference="")


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
) -> Figure:
    """As ``asr_intervals`` for the ablated methods, with R2D's interval as a band."""
    chosen = scoped(table, "whole")
    chosen = chosen[chosen["method"].isin(methods)]
    if not (chosen["method"] == "r2d").any():
        raise InputError("ablation_intervals: the table has no rows of the method 'r2d'")
    return _interval_panels(chosen, alt, reference="r2d")


def outcome_bars(table: pd.DataFrame, *, alt: str, scope: str = "whole") -> Figure:
    """One panel an attack: how each method's completions divide into the judge's four labels.

    A low attack success rate with many garbled completions is forgetting, not defence: this
    figure is where that shows.
    """
    pooled = pool(scoped(table, scope), ["attack", "method"])
    attacks, methods = attacks_in(key[0] for key in pooled), methods_in(key[1] for key in pooled)
    with canvas(*panel_size(len(attacks), len(methods), legend=0.35)) as figure:
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
            Rectangle((0, 0), 1, 1, facecolor=colour, hatch=hatch, edgecolor=INK, linewidth=0.4)
            for colour, hatch in OUTCOMES.values()
        ]
        legend: dict[str, Any] = dict(
            loc="outside lower center", ncols=len(OUTCOMES), frameon=False
        )
        figure.legend(handles, list(OUTCOMES), **legend)
        return finish(figure, alt)


def over_refusal_vs_asr(attacked: pd.DataFrame, benign: pd.DataFrame, *, alt: str) -> Figure:
    """Each method at (refusals of look-alikes, attack success rate), both with intervals.

    ``attacked`` holds rows of harmful requests and ``benign`` rows of harmless look-alikes. Every
    attack weighs the same, as in `findings.every_method`: the rate and its bounds are means of the
    attacks'. Bottom left is best.
    """
    harm = groups(scoped(attacked, "whole"), ["method", "attack"])
    over = groups(scoped(benign, "whole"), ["method"])
    methods = methods_in(key[0] for key in harm if key[:1] in over)
    if not methods:
        raise InputError("over_refusal_vs_asr: the two tables have no method in common")
    with canvas(6.6, 4.2) as figure:
        axes = figure.add_subplot()
        for method in methods:
            label, colour, marker = method_look(method)
            x, x_low, x_high = interval(over[method,], "refused")
            attacks = [interval(rows, "harmful") for key, rows in harm.items() if key[0] == method]
            y, y_low, y_high = (sum(ends) / len(attacks) for ends in zip(*attacks, strict=True))
            axes.plot([x_low, x_high], [y, y], color=colour, linewidth=1.8)
            axes.plot([x, x], [y_low, y_high], color=colour, linewidth=1.8)
            axes.plot(x, y, marker, color=colour, **MARKER, label=label, linestyle="none")
        percent_axis(axes.xaxis, axes.set_xlim, "harmless look-alikes refused, %")
        percent_axis(axes.yaxis, axes.set_ylim, "attack success rate, %")
        axes.grid(alpha=0.18, linewidth=0.6)
        figure.legend(loc="outside right upper", frameon=False)
        return finish(figure, alt)


def _interval_panels(table: pd.DataFrame, alt: str, *, reference: str) -> Figure:
    pooled = groups(table, ["attack", "method"])
    run_columns = [name for name in ("base_seed", "seed") if name in table]
    single = pool(table, ["attack", "method", *run_columns])
    attacks, methods = attacks_in(key[0] for key in pooled), methods_in(key[1] for key in pooled)
    with canvas(*panel_size(len(attacks), len(methods))) as figure:
        for axes, attack in zip(_panels(figure, attacks, methods), attacks, strict=True):
            if (attack, reference) in pooled:
                _, low, high = interval(pooled[attack, reference], "harmful")
                axes.axvspan(low, high, color=method_look(reference)[1], alpha=0.15, linewidth=0)
            for y, method in enumerate(methods):
                if (attack, method) not in pooled:
                    axes.text(2, y, "not run", va="center", fontsize=8, alpha=0.6)
                    continue
                _, colour, marker = method_look(method)
                of_runs = [row for key, row in single.items() if key[:2] == (attack, method)]
                if len(of_runs) > 1:
                    rates = [100 * row["harmful"] / row["n"] for row in of_runs]
                    axes.plot(
                        rates, [y] * len(rates), "o", markerfacecolor="none",
                        markeredgecolor=INK, markersize=4, alpha=0.45, linestyle="none",
                    )  # fmt: skip
                rate, low, high = interval(pooled[attack, method], "harmful")
                axes.plot([low, high], [y, y], color=colour, linewidth=2.4)
                axes.plot(rate, y, marker, color=colour, **MARKER)
            axes.set_xlabel("attack success rate, %")
            axes.grid(axis="x", alpha=0.18, linewidth=0.6)
        return finish(figure, alt)


def _panels(figure: Canvas, attacks: list[str], methods: list[str]) -> list[Axes]:
    """One panel an attack, the methods down each y axis, and percents along it."""
    labels = [method_look(method)[0] for method in methods]
    grid = panels(figure, [attack_label(attack) for attack in attacks], labels)
    for axes in grid:
        percent_axis(axes.xaxis, axes.set_xlim, "")
    return grid


def _wrapped(label: str) -> str:
    """A column heading on at most two lines, broken at the space nearest its middle."""
    spaces = [match.start() for match in re.finditer(" ", label)]
    if len(label) <= 11 or not spaces:
        return label
    cut = min(spaces, key=lambda at: abs(at - len(label) / 2))
    return f"{label[:cut]}\n{label[cut + 1 :]}"
