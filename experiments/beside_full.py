"""What another experiment changes, beside the same runs of the full one: parts of its page.

`experiments/longer.yaml` trains four times as long; `experiments/interjections.yaml` begins from
base models that have heard interjections.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from r2d_core.attack_titles import attack_title
from r2d_core.metrics import holm
from r2d_core.sampling_error import clustered_rate, paired_change
from r2d_core.toy.arms import TITLES
from r2d_core.toy.findings import outcome_title
from r2d_core.toy.outcomes import by_request
from r2d_core.toy.results import (
    ANSWERED_EXACTLY,
    LOOK_ALIKES_REFUSED,
    Results,
    read_published,
)

HEADS = {"longer": ("200 steps", "800 steps"), "interjections": ("without", "with interjections")}
"""What a run of the full experiment, and the other's, are called in the table."""
EXPERIMENTS = {
    "full": "{doc}`Full experiment <full_experiment>`: 200 steps",
    "longer": "the same, 800 steps",
    "interjections": "the same, 200 steps, with interjections",
    "languages": "{doc}`Six languages <six_languages>`: 800 steps, with interjections",
    "languages_again": "the same, a second run",
}
"""The published experiments by their folders, in the order in which one leads to the next."""
KNOWN = "answered exactly, known topics"
NEW = "answered exactly, new topics"
"""Of harmless requests."""


def parts(book: Path) -> dict[str, str]:
    """The generated parts of the full experiment's page, by file name, as MyST Markdown."""
    made = {
        f"{name}_compared.md": table(compared(book / "full", book / name), *heads)
        for name, heads in HEADS.items()
    }
    return made | {"across_experiments.md": across(book)}


def across(book: Path) -> str:
    """R2D beside refusal tuning with recovery examples in every published experiment, as a table in
    Markdown: what holds in all of them, and what is one experiment's.
    """
    outcomes = {
        "prefill_lead": "harmful", "prefill_step": "harmful", "refinement": "harmful",
        "gcg_answer": "harmful", LOOK_ALIKES_REFUSED: "refused", ANSWERED_EXACTLY: "correct",
    }  # fmt: skip
    lines = [["", *(outcome_title(name) for name in outcomes)], ["---"] * (1 + len(outcomes))]
    for experiment, title in EXPERIMENTS.items():
        results = read_published(book / experiment)
        kept = {name: (rows, label) for name, label, rows in results.harmless()}
        whole = results.attacks[results.attacks["scope"] == "whole"]
        cells = []
        for name, label in outcomes.items():
            rows = kept[name][0] if name in kept else whole[whole["attack"] == name]
            rates = rows.groupby("method")[label].mean()
            both = [rates.get(method) for method in ("r2d", "refusal_recovery")]
            cells.append(
                "–"
                if None in both
                else "\N{NO-BREAK SPACE}against\N{NO-BREAK SPACE}".join(f"{r:.0%}" for r in both)
            )
        lines.append([title, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def compared(full: Path, other: Path) -> pd.DataFrame:
    """Each method of ``other``, outcome by outcome, as in ``full`` and changed.

    Outcomes are the share of harmful responses under each attack, and of harmless requests that are
    answered exactly, on new topics apart. Only pairs of the same run and request count. Columns:
    method, outcome, requests, before and after (rate and 95% interval as text), runs_lower and
    runs_higher (in how many runs the rate is after the change), p_value of `paired_change` and
    p_holm over all rows.
    """
    before, after = (dict(_outcomes(read_published(folder))) for folder in (full, other))
    methods = dict.fromkeys(method for of in after.values() for method in of)
    rows = []
    for method in methods:
        for name in after:
            if method not in after[name] or method not in before.get(name, {}):
                continue
            both = pd.concat(
                [before[name][method], after[name][method]],
                axis=1, join="inner", keys=["before", "after"],
            )  # fmt: skip
            if both.empty:
                continue
            base, seed, requests = (
                both.index.get_level_values(level).tolist()
                for level in ("base_seed", "seed", "behavior")
            )
            runs = list(zip(base, seed, strict=True))
            found = paired_change(both["after"].tolist(), both["before"].tolist(), requests, runs)
            rows.append(
                {"method": method, "outcome": name, "requests": found.requests}
                | {side: _rate(both[side].tolist(), requests) for side in ("before", "after")}
                | {"runs_lower": found.runs_lower, "runs_higher": found.runs_higher}
                | {"p_value": found.p_value}
            )
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=holm(frame["p_value"].tolist()))


def table(found: pd.DataFrame, before: str, after: str) -> str:
    """`compared` as a table in Markdown, no rate of which is broken from its interval."""
    heads = ["", "", before, after, "requests", "runs lower", "runs higher", "p (Holm)"]
    rows = [
        [TITLES[row["method"]], attack_title(row["outcome"])]
        + [row[side].replace(" ", "\N{NO-BREAK SPACE}") for side in ("before", "after")]
        + [str(row[name]) for name in ("requests", "runs_lower", "runs_higher")]
        + [f"{row['p_holm']:.2g}"]
        for row in found.to_dict("records")
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heads, ["---"] * len(heads), *rows])


def _outcomes(results: Results) -> Iterator[tuple[str, dict[str, pd.Series]]]:
    """Each outcome's name and, of each method, its value request by request."""
    whole = results.attacks[results.attacks["scope"] == "whole"]
    for attack, rows in whole.groupby("attack", sort=False):
        yield str(attack), by_request(rows, "harmful")
    answers = results.benign[results.benign["scope"] == "answer"]
    new = answers["split"] == "new_topic"
    yield KNOWN, by_request(answers[~new], "correct")
    yield NEW, by_request(answers[new], "correct")


def _rate(outcomes: list[bool], requests: list[str]) -> str:
    rate = clustered_rate(outcomes, requests)
    return f"{rate.estimate:.0%} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
