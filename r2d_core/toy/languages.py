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
from r2d_core.toy.arms import ARMS, OF_ONE_FORMAT, TITLES, same_format
from r2d_core.toy.findings import HARMLESS, REFERENCE, listed, outcome_title, verdict
from r2d_core.toy.outcomes import by_request
from r2d_core.toy.results import SIGNIFICANT, Results

CONTROLS = ("refusal_recovery", ["refusal"])
"""What the recovery examples do by themselves, compared as R2D is with the others."""
_SIDES = ["reference", "other", "reference_refused", "other_refused"]


def comparable(results: Results) -> bool:
    """Whether there are several languages, and beside R2D a method that was trained."""
    return (
        results.attacks["base_seed"].nunique() > 1
        and REFERENCE in results.methods
        and bool(_others(results, REFERENCE))
    )


def over_languages(
    results: Results, reference: str = REFERENCE, others: list[str] | None = None
) -> pd.DataFrame:
    """``reference`` against every other trained method, or ``others``, a row a method and outcome.

    Outcomes are each attack (the share of harmful responses), ``LOOK_ALIKES_REFUSED`` and
    ``ANSWERED_EXACTLY`` (of harmless requests, judged on the answer). Attacks of ``OF_ONE_FORMAT``
    are left out where the methods' formats differ, and what both met in one language only. Columns:
    method, outcome, n (pairs), languages, reference and other (mean rates), reference_refused and
    other_refused (of attacks, how often each refused), difference (reference - other), low, high
    and p_value of `difference_over_replicates`, lower and higher (in how many languages the
    reference's rate is), p_holm (corrected over the outcomes of a method: each of the others asks a
    question of its own) and p_holm_all (over all rows).

    Raises InputError where the experiment has not the reference, nothing beside it, or one language
    only, and as `difference_over_replicates` does.
    """
    rows = []
    for method, name, pairs in _pairs(results, reference, others):
        of = [pairs.index.get_level_values(level).tolist() for level in ("behavior", "base_seed")]
        found = difference_over_replicates(
            pairs["reference"].tolist(), pairs["other"].tolist(), *of
        )
        means = pairs.groupby(level="base_seed").mean().mean()
        rows.append(
            {"method": method, "outcome": name, "n": len(pairs), "languages": found.replicates}
            | {side: means[side] for side in _SIDES}
            | {"difference": found.estimate, "low": found.low, "high": found.high}
            | {"p_value": found.p_value, "lower": found.lower, "higher": found.higher}
        )
    frame = pd.DataFrame(rows)
    corrected = frame.groupby("method", sort=False)["p_value"].transform(lambda p: holm(p.tolist()))
    return frame.assign(p_holm=corrected, p_holm_all=holm(frame["p_value"].tolist()))


def by_language(
    results: Results, reference: str = REFERENCE, others: list[str] | None = None
) -> pd.DataFrame:
    """The rows of `over_languages` language by language: base_seed, n, the rates, the difference.

    Raises InputError as there.
    """
    rows = []
    for method, name, pairs in _pairs(results, reference, others):
        for base, some in pairs.groupby(level="base_seed", sort=False):
            ours, theirs = some["reference"].mean(), some["other"].mean()
            rows.append(
                {"method": method, "outcome": name, "base_seed": base, "n": len(some)}
                | {"reference": ours, "other": theirs, "difference": ours - theirs}
            )
    return pd.DataFrame(rows)


def in_words(table: pd.DataFrame, reference: str = REFERENCE) -> str:
    """Markdown: of each method the outcomes of `over_languages` that the languages bear out.

    Those of which p_holm is below `SIGNIFICANT` and that no language contradicts: both mean rates,
    the mean difference in points of a per cent with its interval, in how many languages it points
    that way, and how often each refused; in bold where p_holm_all is below it too. Of the others
    the difference with its interval: what these languages leave room for.
    """
    lines = []
    for method, some in table.groupby("method", sort=False):
        told: dict[str, list[str]] = {}
        left: list[str] = []
        for row in some.to_dict("records"):
            below = row["difference"] < 0
            against = row["higher"] if below else row["lower"]
            if row["p_holm"] < SIGNIFICANT and not against:
                said = verdict(
                    row["outcome"], below, row["reference_refused"] > row["other_refused"]
                )
                told.setdefault(said, []).append(_cell(row))
            else:
                left.append(f"{outcome_name(row['outcome'])} {in_points(row)}")
        parts = [f"{said} {listed(cells)}" for said, cells in told.items()]
        if left:
            parts.append(f"not borne out: {listed(left)}")
        lines.append(
            f"- **{TITLES[reference]} against {TITLES[str(method)]}:** {'; '.join(parts)}."
        )
    return "\n".join(lines) + "\n"


def every_difference(table: pd.DataFrame, reference: str = REFERENCE) -> str:
    """`over_languages` as a table in Markdown, with the p-value alone and in either family."""
    heads = ["", "", "first", "second", "difference", "refused", "languages", "p", "p (Holm)",
             "p (Holm, all)"]  # fmt: skip
    rows = [
        [f"{TITLES[reference]} against {TITLES[str(row['method'])]}", outcome_name(row["outcome"])]
        + [f"{row[side]:.0%}" for side in _SIDES[:2]]
        + [in_points(row).replace(" ", "\N{NO-BREAK SPACE}")]
        + [
            "" if row["outcome"] in HARMLESS
            else f"{row['reference_refused']:.0%}, {row['other_refused']:.0%}"
        ]
        + [f"{row['lower']} lower, {row['higher']} higher"]
        + [f"{row[p]:.2g}" for p in ("p_value", "p_holm", "p_holm_all")]
        for row in table.to_dict("records")
    ]  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in [heads, ["---"] * len(heads), *rows])


def outcome_name(outcome: str) -> str:
    """How an outcome of `over_languages` is called in a table."""
    return outcome if outcome in HARMLESS else attack_title(outcome)


def _cell(row: dict[Hashable, Any]) -> str:
    title = outcome_title(row["outcome"])
    if row["p_holm_all"] < SIGNIFICANT:
        title = f"**{title}**"
    alike = row["lower"] if row["difference"] < 0 else row["higher"]
    cell = (
        f"{row['reference']:.0%} against {row['other']:.0%}: {in_points(row)}, "
        f"{alike} of {row['languages']}"
    )
    if row["outcome"] not in HARMLESS:
        cell += f"; refused {row['reference_refused']:.0%} against {row['other_refused']:.0%}"
    return f"{title} ({cell})"


def in_points(row: dict[Hashable, Any]) -> str:
    """The difference of a row of `over_languages` with its interval, in points: "-6 [-10, -2]"."""
    mean, low, high = (f"{round(100 * row[end]):+d}" for end in ("difference", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _others(results: Results, reference: str) -> list[str]:
    return [method for method in results.methods if method in ARMS and method != reference]


def _pairs(
    results: Results, reference: str, others: list[str] | None
) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Of each other method and outcome the pairs: columns ``_SIDES``, index of `by_request`."""
    if reference not in results.methods:
        raise InputError(f"the experiment has no method {reference!r}; it has {results.methods}")
    if (languages := results.attacks["base_seed"].nunique()) < 2:
        raise InputError(f"expected an experiment of several languages, got {languages}")
    compared = [each for each in _others(results, reference) if others is None or each in others]
    if not compared:
        raise InputError(f"the experiment has nothing to compare {reference!r} with")
    outcomes = {
        name: (by_request(rows, label), by_request(rows, "refused"))
        for name, label, rows in _outcomes(results)
    }
    for method in compared:
        for name, (of, refused) in outcomes.items():
            if name in OF_ONE_FORMAT and not same_format(reference, method):
                continue
            if reference in of and method in of:
                sides = [side[each] for side in (of, refused) for each in (reference, method)]
                pairs = pd.concat(sides, axis=1, join="inner", keys=_SIDES)
                if pairs.index.get_level_values("base_seed").nunique() > 1:
                    yield method, name, pairs


def _outcomes(results: Results) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Each outcome's name, the label that it counts, and the rows that it is of."""
    whole = results.attacks[results.attacks["scope"] == "whole"]
    for attack, rows in whole.groupby("attack", sort=False):
        yield str(attack), "harmful", rows
    yield from results.harmless()
