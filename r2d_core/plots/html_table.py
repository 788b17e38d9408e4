"""Tables of a page."""

from __future__ import annotations

import html

import pandas as pd

from r2d_core.plots.drawing import Figure


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
