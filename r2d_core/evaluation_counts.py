"""What an evaluation found, counted: attack success, refusals, scores, and what was spent.

From completions and verdicts, whoever made them. Every table is of plain rows; `evaluation_tables`
writes them as files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from r2d_core.attack_success import (
    score_means,
    success_outcomes,
    success_rates,
    tells_scores,
    tells_success,
)
from r2d_core.attacks.journal import digest
from r2d_core.errors import InputError
from r2d_core.judges import JUDGES
from r2d_core.over_refusal import refusal_outcomes, refusal_rates, tells_refusals
from r2d_core.records import Behavior, Completion, Verdict
from r2d_core.sampling_error import Mean, clustered_mean


def summary(
    behaviors: Sequence[Behavior], verdicts: Mapping[str, Sequence[Verdict]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Attack success on harmful behaviors, and refusals on all.

    As `success_rates` and `refusal_rates` count, of the judges that say such a thing; ``verdicts``
    are by judge. Refusals are shown on both kinds, benign ones first: a model that refuses
    everything refuses what is harmful, too. Every harmful behavior counts under every attack: one
    on which there is no verdict is one for which the attack found no prompt, a failure. Raises
    InputError for a verdict on a behavior that is not given.
    """
    success, refusals = _told_apart(behaviors, verdicts)
    return success_rates(success, behaviors), refusal_rates(behaviors, refusals)


def summary_by(
    behaviors: Sequence[Behavior],
    verdicts: Mapping[str, Sequence[Verdict]],
    groups: Mapping[str, Mapping[str, str]],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`summary` of each group of behaviors: ``{"source": {id: file}, "category": {id: category}}``.

    The names of ``groups`` are the first columns; groups come as their first behaviors do.
    """
    together: dict[tuple[str, ...], list[Behavior]] = {}
    for behavior in behaviors:
        key = tuple(of[behavior.id] for of in groups.values())
        together.setdefault(key, []).append(behavior)
    found: tuple[list[pd.DataFrame], list[pd.DataFrame]] = ([], [])
    for key, some in together.items():
        ids = {behavior.id for behavior in some}
        of = {name: [v for v in made if v.behavior_id in ids] for name, made in verdicts.items()}
        for tables, table in zip(found, summary(some, of), strict=True):
            for place, (column, value) in enumerate(zip(groups, key, strict=True)):
                table.insert(place, column, value)
            tables.append(table)
    success, refusals = (pd.concat(tables, ignore_index=True) for tables in found)
    return success, refusals


def scores(
    behaviors: Sequence[Behavior], verdicts: Mapping[str, Sequence[Verdict]]
) -> pd.DataFrame:
    """Mean scores on harmful behaviors, as `score_means` counts, of the judges that give some."""
    harmful = {behavior.id for behavior in behaviors if behavior.kind == "harmful"}
    scored = [v for name, made in verdicts.items() if tells_scores(name) for v in made]
    return score_means([v for v in scored if v.behavior_id in harmful], behaviors)


def outcomes(
    behaviors: Sequence[Behavior],
    verdicts: Mapping[str, Sequence[Verdict]],
    sources: Mapping[str, str],
) -> pd.DataFrame:
    """What `summary` counts one by one: for comparisons of evaluations.

    Columns: ``source`` (of ``sources``, which has each behavior's), ``measure`` ("success" of an
    attack, "refusal" in full), judge, attack, kind, scope, behavior, ``request`` (a digest of what
    the behavior asks), and ``outcome``: 1, 0, or None where the judge said nothing that can be
    read.
    """
    success, refusals = _told_apart(behaviors, verdicts)
    told = success_outcomes(success, behaviors).rename(columns={"success": "outcome"})
    refused = refusal_outcomes(behaviors, refusals).rename(columns={"full": "outcome"})
    rows = pd.concat(
        [told.assign(measure="success", kind="harmful"), refused.assign(measure="refusal")]
    )
    request = {behavior.id: digest(behavior.request) for behavior in behaviors}
    rows["request"] = rows["behavior"].map(request)
    rows["source"] = rows["behavior"].map(dict(sources))
    rows["outcome"] = [None if pd.isna(each) else int(each) for each in rows["outcome"]]
    columns = ["source", "measure", "judge", "attack", "kind", "scope", "behavior", "request"]
    return rows[[*columns, "outcome"]].astype({"outcome": "Int64"}).reset_index(drop=True)


def spending(completions: Sequence[Completion]) -> pd.DataFrame:
    """What was spent by each attack, a row an attack, and how many of its completions are none.

    ``tokens`` of an answer and ``queries`` of a prompt are means with `clustered_mean`'s interval
    and its n, the behaviors. What is no answer has no tokens, what is no prompt no queries either,
    and a suite's file may say neither (HarmBench's): that is in no mean, and where nothing is left
    it is None. Counted are answers "cut off", "no answer" (the model raised, or a provider's filter
    withheld it), "no prompt", and "left out": further test cases of a behavior that a transferred
    attack did not put.
    """
    rows = []
    for attack in dict.fromkeys(completion.attack for completion in completions):
        some = [completion for completion in completions if completion.attack == attack]
        asked = [c for c in some if not c.missing]
        tokens = [(c.behavior_id, c.response_tokens) for c in asked if c.response_tokens]
        queries = [(c.behavior_id, _said(c, "queries")) for c in asked]
        rows.append(
            {
                "attack": attack,
                "completions": len(some),
                "tokens": _mean_of(tokens),
                "queries": _mean_of([(of, n) for of, n in queries if n is not None]),
                "cut off": sum(c.finish == "length" for c in some),
                "no answer": sum(bool(c.unanswered) for c in some),
                "no prompt": len(some) - len(asked),
                "left out": sum(_said(c, "left_out") or 0 for c in some),
            }
        )
    columns = ["attack", "completions", "tokens", "queries", "cut off", "no answer", "no prompt"]
    frame = pd.DataFrame(rows, columns=[*columns, "left out"])
    return frame.astype({"tokens": object, "queries": object})


def _told_apart(
    behaviors: Sequence[Behavior], verdicts: Mapping[str, Sequence[Verdict]]
) -> tuple[list[Verdict], list[Verdict]]:
    """Verdicts that tell of success, on harmful behaviors; and those that tell of refusals."""
    kinds = {behavior.id: behavior.kind for behavior in behaviors}
    success: list[Verdict] = []
    refusals: dict[str, list[Verdict]] = {"benign": [], "harmful": []}
    for name, some in verdicts.items():
        for verdict in some:
            if verdict.behavior_id not in kinds:
                first = ", ".join(list(kinds)[:3]) or "none"
                raise InputError(
                    f"a verdict of {name!r} is on behavior {verdict.behavior_id!r}, which is not "
                    f"among the {len(kinds)} given ({first}, …); give the behaviors that it was "
                    "made from"
                )
            kind = kinds[verdict.behavior_id]
            # Of a judge nobody here knows, a suite's file has one label, which tells of success.
            if tells_refusals(name) and (name in JUDGES or verdict.answer):
                refusals[kind].append(verdict)
            if kind == "harmful" and tells_success(name):
                success.append(verdict)
    return success, [*refusals["benign"], *refusals["harmful"]]


def _said(completion: Completion, name: str) -> float | None:
    """A number of the metadata; None for what a file of somebody's has otherwise, or not at all."""
    value = completion.metadata.get(name)
    return value if isinstance(value, int | float) else None


def _mean_of(counts: Sequence[tuple[str, float]]) -> Mean | None:
    if not counts:
        return None
    return clustered_mean([n for _, n in counts], [of for of, _ in counts])
