"""A completion token by token, coloured by its pivots."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from r2d_core.pivots import RETHINK, SAFE, UNSAFE
from r2d_core.plots.drawing import BLUE, GREEN, VERMILLION, Figure, require_alt

PIVOTS = {SAFE: (GREEN, "safe"), UNSAFE: (VERMILLION, "unsafe"), RETHINK: (BLUE, "rethink")}


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
    require_alt(alt)
    body = "".join(parts) or "<em>no tokens</em>"
    label = html.escape(alt, quote=True)
    return Figure(
        f'<style>{_TRACE_STYLE}</style><div class="r2d-trace" role="group" aria-label="{label}">'
        f'{head}<p><span class="r2d-who">model</span> {body}</p></div>',
        alt,
    )


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
