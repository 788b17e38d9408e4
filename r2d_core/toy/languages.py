"""One method against the others over languages: what may be said of more than these models.

    if comparable(results):
        table = over_languages(results)     # a row a method and outcome; languages are the draws
        print(in_words(table))

Each language (base seed) has a base model, requests and safety trainings of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import pandas as pd

from r2d_core.attack_titles import attack_title
from r2d_core.errors import InputError
from r2d_core.metrics import holm
from r2d_core.replication import difference_over_replicates
from r2d_core.toy.arms import ARMS, TITLES, same_format
from r2d_core.toy.evaluation import LOOK_ALIKES
from r2d_core.toy.findings import REFERENCE, listed
from r2d_core.toy.outcomes import by_request
from r2d_core.toy.results import SIGNIFICANT, Results

LOOK_ALIKES_REFUSED = "look-alikes refused"
ANSWERED_EXACTLY = "harmless answered exactly"
_SIDES = ["reference", "other"]
_OF_ONE_FORMAT = ("forged_reasoning", "gcg_pivot")
"""Attacks that write, or aim at, a method's own reasoning and pivots: they differ with these."""


def comparable(results: Results) -> bool:
    """Whether there are several languages, and beside R2D a method that was trained."""
    return (
        results.attacks["base_seed"].nunique() > 1
        and REFERENCE in results.methods
        and bool(_others(results))
    )


def over_languages(results: Results) -> pd.DataFrame:
    """R2D against every other trained method, a row a method and outcome.

    Outcomes are each attack (the share of harmful responses), ``LOOK_ALIKES_REFUSED`` and
    ``ANSWERED_EXACTLY`` (of harmless requests, judged on the answer). Attacks of ``_OF_ONE_FORMAT``
    are left out where the methods' formats differ, and what both met in one language only. Columns:
    method, outcome, n (pairs), languages, reference (R2D) and other (mean rates), difference
    (reference - other), low, high and p_value of `difference_over_replicates`, lower and higher (in
    how many languages R2D's rate is), p_holm (corrected over the outcomes of a method: each of the
    others asks a question of its own) and p_holm_all (over all rows).

    Raises InputError where the experiment has no R2D, nothing beside it, or one language
    only, and as `difference_over_replicates` does.
    """
    rows = []
    for method, name, pairs in _pairs(results):
        of = [pairs.index.get_level_values(level).tolist() for level in ("behavior", "base_seed")]
        found = difference_over_replicates(
            pairs["reference"].tolist(), pairs["other"].tolist(), *of
        )
        means = pairs.groupby(level="base_seed").mean().mean()
        rows.append(
            {"method": method, "outcome": name, "n": len(pairs), "languages": found.replicates}
            | {"reference": means["reference"], "other": means["other"]}
            | {"difference": found.estimate, "low": found.low, "high": found.high}
            | {"p_value": found.p_value, "lower": found.lower, "higher": found.higher}
        )
    frame = pd.DataFrame(rows)
    corrected = frame.groupby("method", sort=False)["p_value"].transform(lambda p: holm(p.tolist()))
    return frame.assign(p_holm=corrected, p_holm_all=holm(frame["p_value"].tolist()))


def by_language(results: Results) -> pd.DataFrame:
    """The rows of `over_languages` language by language: base_seed, n, the rates, the difference.

    Raises InputError as there.
    """
    rows = []
    for method, name, pairs in _pairs(results):
        for base, some in pairs.groupby(level="base_seed", sort=False):
            ours, theirs = some["reference"].mean(), some["other"].mean()
            rows.append(
                {"method": method, "outcome": name, "base_seed": base, "n": len(some)}
                | {"reference": ours, "other": theirs, "difference": ours - theirs}
            )
    return pd.DataFrame(rows)


def in_words(table: pd.DataFrame) -> str:
    """Markdown: of each method the outcomes of `over_languages` that the languages bear out.

    Those of which p_holm is below `SIGNIFICANT` and that no language contradicts: both mean rates,
    the mean difference in points of a per cent with its interval, and in how many languages it
    points that way; in bold where p_holm_all is below it too. Then the names of the others.
    """
    lines = []
    for method, some in table.groupby("method", sort=False):
        told: dict[str, list[str]] = {}
        left: list[str] = []
        for row in some.to_dict("records"):
            below = row["difference"] < 0
            against = row["higher"] if below else row["lower"]
            if row["p_holm"] < SIGNIFICANT and not against:
                told.setdefault(_verdict(row["outcome"], below), []).append(_cell(row))
            else:
                left.append(_title(row["outcome"]))
        parts = [f"{verdict} {listed(cells)}" for verdict, cells in told.items()]
        if left:
            parts.append(f"not borne out: {listed(left)}")
        lines.append(
            f"- **{TITLES[REFERENCE]} against {TITLES[str(method)]}:** {'; '.join(parts)}."
        )
    return "\n".join(lines) + "\n"


def _title(outcome: str) -> str:
    harmless = (LOOK_ALIKES_REFUSED, ANSWERED_EXACTLY)
    return outcome if outcome in harmless else attack_title(outcome)


def _verdict(outcome: str, below: bool) -> str:
    if outcome == LOOK_ALIKES_REFUSED:
        return "refuses fewer" if below else "refuses more"
    if outcome == ANSWERED_EXACTLY:
        return "answers fewer" if below else "answers more"
    return "harmful less often under" if below else "harmful more often under"


def _cell(row: dict[Hashable, Any]) -> str:
    name = {LOOK_ALIKES_REFUSED: "look-alikes", ANSWERED_EXACTLY: "harmless requests exactly"}
    title = name.get(row["outcome"]) or attack_title(row["outcome"])
    if row["p_holm_all"] < SIGNIFICANT:
        title = f"**{title}**"
    mean, low, high = (f"{round(100 * row[end]):+d}" for end in ("difference", "low", "high"))
    alike = row["lower"] if row["difference"] < 0 else row["higher"]
    return (
        f"{title} ({row['reference']:.0%} against {row['other']:.0%}: {mean} [{low}, {high}], "
        f"{alike} of {row['languages']})"
    )


def _others(results: Results) -> list[str]:
    return [method for method in results.methods if method in ARMS and method != REFERENCE]


def _pairs(results: Results) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Of each other method and outcome the pairs: columns ``_SIDES``, index of `by_request`."""
    if REFERENCE not in results.methods:
        raise InputError(f"the experiment has no method {REFERENCE!r}; it has {results.methods}")
    if (languages := results.attacks["base_seed"].nunique()) < 2:
        raise InputError(f"expected an experiment of several languages, got {languages}")
    if not (others := _others(results)):
        raise InputError(f"the experiment has nothing to compare {REFERENCE!r} with")
    outcomes = {name: by_request(rows, label) for name, rows, label in _outcomes(results)}
    for method in others:
        for name, of in outcomes.items():
            if name in _OF_ONE_FORMAT and not same_format(REFERENCE, method):
                continue
            if REFERENCE in of and method in of:
                both = [of[REFERENCE], of[method]]
                pairs = pd.concat(both, axis=1, join="inner", keys=_SIDES)
                if pairs.index.get_level_values("base_seed").nunique() > 1:
                    yield method, name, pairs


def _outcomes(results: Results) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Each outcome's name, the rows that it is of, and the label that it counts."""
    whole = results.attacks[results.attacks["scope"] == "whole"]
    for attack, rows in whole.groupby("attack", sort=False):
        yield str(attack), rows, "harmful"
    answers = results.benign[results.benign["scope"] == "answer"]
    yield LOOK_ALIKES_REFUSED, answers[answers["attack"].isin(LOOK_ALIKES)], "refused"
    yield ANSWERED_EXACTLY, answers, "correct"
