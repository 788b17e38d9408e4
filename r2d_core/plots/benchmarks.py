"""How contenders of a benchmark scale."""

from __future__ import annotations

import pandas as pd

from r2d_core.errors import InputError
from r2d_core.plots.drawing import INK, MARKER, Figure, canvas, finish, plain, plain_numbers
from r2d_core.plots.names import METHODS


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
    with canvas(5.6, 3.4) as figure:
        axes = figure.add_subplot()
        spare = iter(looks)
        for name in names:
            drawn = table[table["name"] == name].dropna(subset=[y]).sort_values(x)
            if name == floor:
                axes.plot(drawn[x], drawn[y], "--", color=INK, alpha=0.7, label=plain(name))
            else:
                colour, marker = next(spare)
                axes.plot(
                    drawn[x], drawn[y], marker, color=colour, linestyle="-", linewidth=1.4,
                    **(MARKER | {"markersize": 6}), label=plain(name),
                )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        sizes = sorted(table[x].unique())
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel(x)
        axes.set_ylabel(unit)
        axes.grid(alpha=0.18, linewidth=0.6)
        figure.legend(loc="outside right upper", frameon=False)
        if title:
            figure.suptitle(plain(title))
        return finish(figure, alt)
