"""The six languages run a second time: both runs beside each other and together, for their page.

The second is of the same languages, seeds and settings on another processor and commit. There the
last bits are others, and with them every base model and every safety training.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from r2d_core.toy.arms import TITLES
from r2d_core.toy.languages import in_points, in_words, outcome_name, over_languages
from r2d_core.toy.results import Results, read_published

ROOT = Path(__file__).resolve().parents[1]
FIRST, AGAIN = "languages", "languages_again"
SPREAD = 0.05
"""Standard deviation, of shares, below which a correlation says nothing."""
HEADS = ["", "", "first run", "second run", "both", "languages, both", "p first", "p second",
         "p both", "p both (Holm)"]  # fmt: skip


def parts(book: Path) -> dict[str, str]:
    """The generated part of the page, by file name, as MyST Markdown."""
    first, again = (pd.read_csv(book / name / "differences.csv") for name in (FIRST, AGAIN))
    both = over_languages(together(*(read_published(book / name) for name in (FIRST, AGAIN))))
    of_each = [pd.read_csv(book / name / "differences_by_language.csv") for name in (FIRST, AGAIN)]
    every = f":::{{dropdown}} Every difference, run by run\n{table(first, again, both)}:::\n"
    return {"languages_twice.md": f"{in_words(both)}\n{alike(*of_each)}\n\n{every}"}


def together(first: Results, again: Results) -> Results:
    """Both runs as one experiment with two safety trainings a language.

    Each language is still one draw: its rates are those of both runs.
    """
    beyond = 1 + int(first.attacks["seed"].max())
    attacks, benign = (
        pd.concat([ours, theirs.assign(seed=theirs["seed"] + beyond)], ignore_index=True)
        for ours, theirs in ((first.attacks, again.attacks), (first.benign, again.benign))
    )
    return Results(attacks, benign, {}, pd.DataFrame())


def alike(first: pd.DataFrame, again: pd.DataFrame) -> str:
    """How far both runs agree on a language, in a sentence: is a spread its own or the trainings'?

    Of the tables of `by_language`, for each outcome: how far the differences of R2D from each other
    method lie from that method's mean over the languages, in the one run and in the other, as a
    correlation. Outcomes that hardly spread (``SPREAD``) are left out.
    """
    keys, sides = ["outcome", "method", "base_seed"], ["first", "again"]
    pairs = first.set_index(keys)["difference"].to_frame("first").join(
        again.set_index(keys)["difference"].rename("again"), how="inner"
    )  # fmt: skip
    from_mean = pairs - pairs.groupby(level=["outcome", "method"]).transform("mean")
    told = {
        outcome_name(str(outcome)): float(np.corrcoef(some["first"], some["again"])[0, 1])
        for outcome, some in from_mean.groupby(level="outcome", sort=False)
        if some[sides].std().min() > SPREAD
    }
    listed = ", ".join(f"{name} {r:.2f}" for name, r in sorted(told.items(), key=lambda x: -x[1]))
    return (
        "Is the spread over languages the languages' own, or the trainings'? How far a language "
        "lies from the mean of its comparison in the one run and in the other, as a correlation: "
        f"{listed}. Where that is near 1, more languages make the intervals narrower and more "
        "trainings of each do not; where it is low, more trainings do."
    )


def table(first: pd.DataFrame, again: pd.DataFrame, both: pd.DataFrame) -> str:
    """The differences of `over_languages` side by side, as a table in Markdown."""
    keys = ["method", "outcome"]
    apart = [run.set_index(keys).to_dict("index") for run in (first, again)]
    lines = [HEADS, ["---"] * len(HEADS)]
    for row in both.to_dict("records"):
        three: list[dict[Hashable, Any]] = [*(run[row["method"], row["outcome"]] for run in apart)]
        three.append(row)
        lines.append(
            [f"R2D against {TITLES[row['method']]}", outcome_name(row["outcome"])]
            + [in_points(each).replace(" ", "\N{NO-BREAK SPACE}") for each in three]
            + [f"{row['lower']} lower, {row['higher']} higher"]
            + [f"{each['p_value']:.2g}" for each in three]
            + [f"{row['p_holm']:.2g}"]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
