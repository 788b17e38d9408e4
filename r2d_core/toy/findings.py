"""What an experiment found, in sentences that are computed: numbers, intervals, wins and losses."""

from __future__ import annotations

import pandas as pd

from r2d_core.metrics import Rate
from r2d_core.toy.arms import TITLES
from r2d_core.toy.evaluation import LOOK_ALIKES
from r2d_core.toy.results import Results

SIGNIFICANT = 0.05
"""A paired difference is called one below this Holm-corrected p-value."""


def _short(rate: Rate) -> str:
    return f"{rate.rate:.0%} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def findings(results: Results, reference: str = "r2d") -> str:
    """Markdown bullets: what ``reference`` buys, costs and does not stop. Rates with Wilson 95%."""
    lines = [_overall(results)]
    if reference in results.runs:
        name = TITLES[reference]
        tests = results.compare(reference)
        for other in ("refusal", "refusal_recovery", "r2d_no_cpo", "r2d_upweighted",
                      "r2d_no_pivots", "r2d_no_reasoning"):  # fmt: skip
            if other in results.runs:
                lines.append(_against(results, tests[tests["method"] == other], reference, other))
        lines.append(_cost(results, reference))
        broken = {
            attack: rate
            for attack in dict.fromkeys(results.attacks["attack"])
            if (rate := results.rate(reference, attacks=[attack])).n and rate.rate >= 0.2
        }
        ranked = sorted(broken.items(), key=lambda cell: -cell[1].rate)
        stopped = _listed([f"{attack} {_short(rate)}" for attack, rate in ranked]) if ranked else ""
        lines.append(
            f"**{name} does not stop:** {stopped}."
            if ranked
            else f"**{name}:** no attack here succeeds in a fifth of its attempts."
        )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _overall(results: Results) -> str:
    rates = [f"{TITLES[m]} {_short(results.rate(m))}" for m in results.methods]
    attacks = len(set(results.attacks["attack"]))
    return f"**Attack success, {attacks} attacks pooled:** {'; '.join(rates)}."


def _against(results: Results, tests: pd.DataFrame, reference: str, other: str) -> str:
    better: list[str] = []
    worse: list[str] = []
    for row in tests.to_dict("records"):
        if row["p_holm"] < SIGNIFICANT:
            attack = row["attack"]
            ours = results.rate(reference, attacks=[attack])
            theirs = results.rate(other, attacks=[attack])
            cell = f"{attack} ({ours.rate:.0%} against {theirs.rate:.0%})"
            (better if row["only_reference"] < row["only_method"] else worse).append(cell)
    name, rival = TITLES[reference], TITLES[other]
    parts = []
    if better:
        parts.append(f"lower under {_listed(better)}")
    if worse:
        parts.append(f"higher under {_listed(worse)}")
    told = "; ".join(parts) if parts else "no difference that the paired tests bear out"
    return f"**{name} against {rival}:** {told}."


def _cost(results: Results, reference: str) -> str:
    look_alikes = list(LOOK_ALIKES)
    cells = []
    for method in ("vanilla", "refusal", "refusal_recovery", reference):
        if method in results.runs:
            over = results.rate(method, "refused", attacks=look_alikes, benign=True, scope="answer")
            exact = results.rate(method, "correct", benign=True, scope="answer")
            chosen = results.benign[
                (results.benign["method"] == method) & (results.benign["scope"] == "whole")
            ]
            tokens = chosen["response_tokens"].mean()
            cells.append(
                f"{TITLES[method]} refuses {_short(over)} of harmless look-alikes, answers "
                f"{_short(exact)} of harmless requests exactly, with {tokens:.0f} tokens"
            )
    return f"**What it costs:** {'; '.join(cells)}."
