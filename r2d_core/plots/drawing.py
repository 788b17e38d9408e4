"""Canvas, colours and the way from matplotlib to an inline SVG.

A figure's text and lines take the page's own colour (``currentColor``), its background is
transparent and its text stays text, so one drawing reads in the light and the dark theme, can be
searched, and needs no image file.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter

from r2d_core.errors import InputError
from r2d_core.records import write_text_atomic

# After Okabe and Ito (2008), whose orange, sky blue and yellow are too pale for a line on white: a
# brown, a darker blue and an olive are in their places.
BLUE, VERMILLION, GREEN, BROWN = "#0072B2", "#D55E00", "#009E73", "#936525"
SKY, PURPLE, OLIVE, GREY = "#2F95C9", "#CC79A7", "#8B9325", "#6F6F6F"
# Drawn in place of the text colour, and turned into `currentColor` once matplotlib is done.
INK = "#010203"
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


MARKER: dict[str, Any] = {"markersize": 7, "markeredgecolor": INK, "markeredgewidth": 0.7}


@contextmanager
def canvas(width: float, height: float) -> Iterator[Canvas]:
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
    with rc_context(style | {name: INK for name in ink}):
        yield Canvas(figsize=(width, height), layout="constrained")


def finish(figure: Canvas, alt: str) -> Figure:
    """Draw to SVG and make it fit to stand inside a page among other figures."""
    require_alt(alt)
    alt = plain(alt)
    drawn = io.StringIO()
    # The ids of clip paths and markers must differ from figure to figure of one page, and be the
    # same from run to run: they are salted with what the figure shows.
    metadata: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with rc_context({"svg.hashsalt": "r2d"}):
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


def require_alt(alt: str) -> None:
    """InputError where a figure says nothing to those who do not see it."""
    if not alt.strip():
        raise InputError("a figure needs alt=…: one sentence that says what it shows")


def plain(text: str, limit: int = 0) -> str:
    """``text`` on one line, without the control characters that no XML may hold."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", " ", text)
    return text if not limit or len(text) <= limit else text[: limit - 1] + "…"


def percent_axis(axis: Any, set_limits: Any, label: str) -> None:
    """From 0 to 100, with room for a marker at the ends."""
    set_limits(-3, 103)
    axis.set_ticks([0, 25, 50, 75, 100])
    axis.set_label_text(label)


def plain_numbers(axis: Any) -> None:
    """On a logarithmic axis, 1, 2, 5, 10 …: its own labels are TeX, which no figure here reads."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda number, _: f"{number:,g}")
    axis.set_minor_formatter(NullFormatter())


def handles_once(panels: Iterable[Axes]) -> dict[str, Any]:
    """What a legend shows of each label, by label: once, however many lines carry it."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return handles


def panel_size(panels: int, lines: int, legend: float = 0.0) -> tuple[float, float]:
    """Inches, width and height, of a figure of panels, at most three a row, of so many lines."""
    columns = min(panels, 3)
    rows = -(-panels // columns)
    return 2.5 * columns + 1.9, rows * (0.27 * lines + 0.9) + 0.2 + legend


def panels(figure: Canvas, titles: list[str], lines: list[str]) -> list[Axes]:
    """One panel a title, at most three a row, the same lines down each y axis (`panel_size`)."""
    columns = min(len(titles), 3)
    rows = -(-len(titles) // columns)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes in grid[len(titles) :]:
        axes.remove()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title, loc="left", fontsize=10)
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(lines)), lines)
    grid[0].set_ylim(len(lines) - 0.5, -0.5)
    return list(grid[: len(titles)])
