"""One method against the others, language by language: what may be said of the next language.

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
from r2d_core.toy.findings import listed
from r2d_core.toy.outcomes import by_request
from r2d_core.toy.results import SIGNIFICANT, Results

LOOK_ALIKES_REFUSED = "look-alikes refused"
ANSWERED_EXACTLY = "harmless answered exactly"
_SIDES = ["reference", "other"]


def comparable(results: Results, reference: str = "r2d") -> bool:
    """Whether there are several languages, and beside ``reference`` a method that was trained."""
    return (
        results.attacks["base_seed"].nunique() > 1
        and reference in results.methods
        and bool(_others(results, reference))
    )


def over_languages(results: Results, reference: str = "r2d") -> pd.DataFrame:
    """``reference`` against every other trained method, a row a method and outcome.

    Outcomes are each attack (the share of harmful responses), ``LOOK_ALIKES_REFUSED`` and
    ``ANSWERED_EXACTLY`` (of harmless requests, judged on the answer). Forged reasoning is left out
    where the methods are of different formats: its texts differ. Columns: method, outcome, n
    (pairs), languages, reference and other (mean rates), difference (reference - other), low,
    high and p_value of `difference_over_replicates`, lower and higher (in how many languages the
    reference's rate is), p_holm (over the outcomes of a method: each of the others asks a question
    of its own).

    Raises InputError where the experiment has not the reference, nothing beside it, or one language
    only.
    """
    rows = []
    for method, name, pairs in _pairs(results, reference):
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
    return frame.assign(p_holm=corrected)


def by_language(results: Results, reference: str = "r2d") -> pd.DataFrame:
    """The rows of `over_languages` language by language: base_seed, n, the rates, the difference.

    Raises InputError as there.
    """
    rows = []
    for method, name, pairs in _pairs(results, reference):
        for base, some in pairs.groupby(level="base_seed", sort=False):
            ours, theirs = some["reference"].mean(), some["other"].mean()
            rows.append(
                {"method": method, "outcome": name, "base_seed": base, "n": len(some)}
                | {"reference": ours, "other": theirs, "difference": ours - theirs}
            )
    return pd.DataFrame(rows)


def in_words(table: pd.DataFrame, reference: str = "r2d") -> str:
    """Markdown: of each method the outcomes of `over_languages` that the languages bear out.

    Those whose corrected p-value is below `SIGNIFICANT` and that no language contradicts, with the
    mean difference in points of a per cent, and its interval; and the others' names.
    """
    lines = []
    for method, some in table.groupby("method", sort=False):
        told: dict[str, list[str]] = {}
        open_: list[str] = []
        for row in some.to_dict("records"):
            below = row["difference"] < 0
            against = row["higher"] if below else row["lower"]
            if row["p_holm"] >= SIGNIFICANT or against:
                open_.append(outcome_title(row["outcome"]))
                continue
            told.setdefault(_verdict(row["outcome"], below), []).append(_cell(row))
        parts = [f"{verdict} {listed(cells)}" for verdict, cells in told.items()]
        if open_:
            parts.append(f"not borne out: {listed(open_)}")
        lines.append(
            f"- **{TITLES[reference]} against {TITLES[str(method)]}:** {'; '.join(parts)}."
        )
    return "\n".join(lines) + "\n"


def outcome_title(outcome: str) -> str:
    """What an outcome of `over_languages` is called: an attack by its title."""
    harmless = (LOOK_ALIKES_REFUSED, ANSWERED_EXACTLY)
    return outcome if outcome in harmless else attack_title(outcome)


def _pairs(results: Results, reference: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Of each other method and outcome the pairs: columns ``_SIDES``, index of `by_request`."""
    if reference not in results.methods:
        raise InputError(f"the experiment has no method {reference!r}; it has {results.methods}")
    if (languages := results.attacks["base_seed"].nunique()) < 2:
        raise InputError(f"expected an experiment of several languages, got {languages}")
    if not (others := _others(results, reference)):
        raise InputError(f"the experiment has nothing to compare {reference!r} with")
    outcomes = {name: by_request(rows, label) for name, rows, label in _outcomes(results)}
    for method in others:
        for name, of in outcomes.items():
            if name == "forged_reasoning" and not same_format(reference, method):
                continue
            if reference in of and method in of:
                both = [of[reference], of[method]]
                pairs = pd.concat(both, axis=1, join="inner", keys=_SIDES)
                if len(pairs):
                    yield method, name, pairs


def _others(results: Results, reference: str) -> list[str]:
    return [method for method in results.methods if method in ARMS and method != reference]


def _outcomes(results: Results) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Each outcome's name, the rows that it is of, and the label that it counts."""
    whole = results.attacks[results.attacks["scope"] == "whole"]
    for attack, rows in whole.groupby("attack", sort=False):
        yield str(attack), rows, "harmful"
    answers = results.benign[results.benign["scope"] == "answer"]
    yield LOOK_ALIKES_REFUSED, answers[answers["attack"].isin(LOOK_ALIKES)], "refused"
    yield ANSWERED_EXACTLY, answers, "correct"


def _verdict(outcome: str, below: bool) -> str:
    if outcome == LOOK_ALIKES_REFUSED:
        return "refuses fewer" if below else "refuses more"
    if outcome == ANSWERED_EXACTLY:
        return "answers fewer" if below else "answers more"
    return "harmful less often under" if below else "harmful more often under"


def _cell(row: dict[Hashable, Any]) -> str:
    name = {LOOK_ALIKES_REFUSED: "look-alikes", ANSWERED_EXACTLY: "harmless requests exactly"}
    title = name.get(row["outcome"]) or attack_title(row["outcome"])
    rates = f"{row['reference']:.0%} against {row['other']:.0%}"
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{title} ({rates}: {100 * row['difference']:+.0f} [{low:+.0f}, {high:+.0f}])"
