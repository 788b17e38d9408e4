"""Every figure of the book, from tidy tables.

A figure is an inline SVG: its text and lines take the page's own colour (``currentColor``), its
background is transparent and its text stays text, so one drawing reads in the light and the dark
theme, can be searched, and needs no image file. Colours follow Okabe and Ito's, darkened until they
stand out from either background (WCAG's 3:1 for graphics); the common forms of colour blindness
keep them apart, and no figure relies on colour alone: markers, hatches or printed numbers say the
same. Rates come with 95% intervals. Names and tokens are untrusted text: nothing in them is read as
markup or as mathematics.

The tables have the columns of an evaluation's ``table.csv``: method, base_seed, seed, attack,
split, scope, n, and the counts harmful, refused, correct, garbled; or are its outcomes one by one
(`toy.outcomes.by_scope`), which name their ``behavior`` besides.
"""

from __future__ import annotations

from r2d_core.plots.benchmarks import benchmark_lines
from r2d_core.plots.budgets import budget_curves
from r2d_core.plots.differences import difference_intervals
from r2d_core.plots.drawing import INK, Figure
from r2d_core.plots.evaluations import (
    ablation_intervals,
    asr_heatmap,
    asr_intervals,
    outcome_bars,
    over_refusal_vs_asr,
)
from r2d_core.plots.html_table import table
from r2d_core.plots.names import METHODS, OUTCOMES
from r2d_core.plots.outcome_rates import rate_intervals, trade_off
from r2d_core.plots.paper import paper_intervals
from r2d_core.plots.traces import PIVOTS, TraceToken, pivot_trace
from r2d_core.plots.training import training_curves, training_data

__all__ = [
    "Figure",
    "INK",
    "METHODS",
    "OUTCOMES",
    "PIVOTS",
    "TraceToken",
    "ablation_intervals",
    "asr_heatmap",
    "asr_intervals",
    "benchmark_lines",
    "budget_curves",
    "difference_intervals",
    "outcome_bars",
    "over_refusal_vs_asr",
    "paper_intervals",
    "pivot_trace",
    "rate_intervals",
    "table",
    "trade_off",
    "training_curves",
    "training_data",
]
