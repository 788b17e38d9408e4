"""JailbreakBench's attack artifacts: one attack on one model, 100 behaviors, prompts and answers.

The rate is over all rows; a null prompt is a failed attack. Totals stand beside the rows in the
file and are stale in some: they are computed from the rows, and the difference is said.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from r2d_core.errors import InputError
from r2d_core.records.documents import read_json
from r2d_core.records.jsonl import (
    Behavior,
    Completion,
    TestCase,
    Verdict,
    check_json,
    write_json_atomic,
)
from r2d_core.records.outcomes import NOT_ATTEMPTED, SUCCESS, is_success

KEYS = ("parameters", "jailbreaks")
COUNTS = ("number_of_queries", "queries_to_jailbreak", "prompt_tokens", "response_tokens")


@dataclass(frozen=True)
class Artifact:
    """An artifact as it is in its file.

    Attributes:
        parameters: what the attack was, and the totals that the file gives.
        jailbreaks: a dict a behavior.
        others: what else stands beside these two; none does in the published files.
    """

    parameters: dict[str, Any]
    jailbreaks: list[dict[str, Any]]
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def totals(self) -> dict[str, float]:
        """Computed from the rows: the suite's own names; the rate between 0 and 1."""
        submitted = [row for row in self.jailbreaks if row["prompt"] is not None]
        jailbroken = sum(bool(row["jailbroken"]) for row in submitted)
        queries = [row.get("number_of_queries") or 0 for row in self.jailbreaks]
        return {
            "attack_success_rate": jailbroken / len(self.jailbreaks),
            "total_number_of_jailbreaks": jailbroken,
            "number_of_submitted_prompts": len(submitted),
            "total_number_of_queries": sum(queries),
        }

    @property
    def stale(self) -> dict[str, tuple[Any, float]]:
        """The totals that the file has otherwise: name -> (the file's, the rows')."""
        return {
            name: (self.parameters[name], computed)
            for name, computed in self.totals.items()
            if name in self.parameters
            and isinstance(self.parameters[name], int | float)
            and abs(self.parameters[name] - computed) > 1e-9
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, atomically: equal to what was read, keys within the two in order."""
        own = {"parameters": self.parameters, "jailbreaks": self.jailbreaks}
        write_json_atomic(path, own | self.others)


def is_artifact(value: Any) -> bool:
    """Is this JSON value an artifact?"""
    return isinstance(value, dict) and set(KEYS) <= value.keys()


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """An artifact's file. Raises InputError for anything else, naming the row."""
    value = read_json(path)
    if not is_artifact(value):
        raise InputError(f"{path}: expected an object with {' and '.join(KEYS)}")
    return artifact(Path(path), value)


def artifact(path: Path, value: dict[str, Any]) -> Artifact:
    """A JSON value that `is_artifact`, held against the form of one."""
    rows = value["jailbreaks"]
    if not isinstance(value["parameters"], dict) or not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: expected parameters in an object and jailbreaks in a list")
    others = {name: each for name, each in value.items() if name not in KEYS}
    check_json(value["parameters"], f"{path}: parameters")
    check_json(others, str(path))
    places: dict[str, int] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: jailbreaks[{place}]: expected an object, found {row!r:.40}")
        missing = [k for k in ("index", "goal", "prompt", "response", "jailbroken") if k not in row]
        if missing:
            raise InputError(f"{path}: jailbreaks[{place}] has no {missing[0]!r}")
        index = row["index"]
        if not isinstance(index, int | str) or isinstance(index, bool) or index == "":
            raise InputError(
                f"{path}: jailbreaks[{place}] index: expected the behavior's number, found "
                f"{index!r:.40}"
            )
        if (before := places.setdefault(str(index), place)) != place:
            raise InputError(
                f"{path}: jailbreaks[{place}] index: {index!r} is that of jailbreaks[{before}] "
                "already; an artifact has one row a behavior"
            )
        if not isinstance(row["goal"], str):
            raise InputError(
                f"{path}: jailbreaks[{place}] goal: expected text, found {row['goal']!r:.40}"
            )
        for name in ("prompt", "response"):
            if not isinstance(row[name], str | None):
                raise InputError(
                    f"{path}: jailbreaks[{place}] {name}: expected text or null, found "
                    f"{type(row[name]).__name__}"
                )
        for name in COUNTS:
            count = row.get(name)
            number = isinstance(count, int | float) and not isinstance(count, bool)
            if count is not None and not (number and 0 <= count < math.inf):
                raise InputError(
                    f"{path}: jailbreaks[{place}] {name}: expected a number from 0 or null, found "
                    f"{count!r:.40}"
                )
        if row["jailbroken"] not in (True, False):
            raise InputError(
                f"{path}: jailbreaks[{place}] jailbroken: expected true or false, found "
                f"{row['jailbroken']!r}"
            )
        check_json(row, f"{path}: jailbreaks[{place}]")
    return Artifact(value["parameters"], rows, others)


def make_artifact(
    behaviors: Sequence[Behavior],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    parameters: Mapping[str, Any],
    success: str = SUCCESS,
) -> Artifact:
    """An artifact of a run of ours, one completion a behavior at most, in the behaviors' order.

    A behavior without completion is a null prompt, a failed attack. ``completions[i]`` is judged by
    ``verdicts[i]``, on the whole response; ``success`` is the judge's label of a success. Verdicts
    "not_attempted", as an artifact has them for its null prompts, are of no completion. The
    totals are computed from the rows, and ``parameters`` (method, model, attack_type, …, as
    JailbreakBench names them) come first. Queries, and the tokens of a null prompt, are those of
    the completion's or the verdict's metadata; counts that are not known are null. Behaviors of
    JailbreakBench's keep their index; others get numbers that none of those has.

    Raises InputError without behaviors, for a behavior given twice, verdicts of other completions,
    two completions of one behavior, one of a behavior that is not given, an unparsable verdict, and
    a prefill, for which the format has no place.
    """
    if not behaviors:
        raise InputError("an artifact is of one behavior at least; there is none")
    ids = [behavior.id for behavior in behaviors]
    if twice := [name for name, n in Counter(ids).items() if n > 1]:
        raise InputError(
            f"behavior {twice[0]!r} is given twice; an artifact has one row a behavior"
        )
    unattempted = {v.behavior_id: v.metadata for v in verdicts if v.whole == NOT_ATTEMPTED}
    verdicts = [verdict for verdict in verdicts if verdict.whole != NOT_ATTEMPTED]
    if [(v.behavior_id, v.attack) for v in verdicts] != [
        (c.behavior_id, c.attack) for c in completions
    ]:
        raise InputError("the verdicts are not of these completions, in their order")
    of: dict[str, tuple[Completion, bool]] = {}
    for completion, verdict in zip(completions, verdicts, strict=True):
        name = completion.behavior_id
        if name in of:
            raise InputError(f"behavior {name!r} has two completions; an artifact has one a row")
        if completion.prefill:
            raise InputError(
                f"the completion of behavior {name!r} has a prefill, for which JailbreakBench's "
                "format has no place; write JSON lines"
            )
        said = is_success(verdict.whole, success)
        if said is None:
            raise InputError(
                f"the verdict on behavior {name!r} is unparsable, and an artifact says true or "
                "false; judge it again"
            )
        of[name] = (completion, said)
    if others := of.keys() - {behavior.id for behavior in behaviors}:
        raise InputError(f"behavior {min(others)!r} has a completion and is not among those given")
    rows: list[dict[str, Any]] = []
    indices = _indices(ids)
    for behavior in behaviors:
        made, said = of.get(behavior.id, (None, False))
        known = made.metadata if made else unattempted.get(behavior.id, {})
        tokens = (made.prompt_tokens, made.response_tokens) if made else (0, 0)
        rows.append(
            {
                "index": indices[behavior.id],
                "goal": behavior.prompt,
                "behavior": behavior.metadata.get("Behavior", behavior.id),
                "category": behavior.category,
                "prompt": made.prompt if made else None,
                "response": made.text if made else None,
                "number_of_queries": known.get("queries"),
                "queries_to_jailbreak": known.get("queries_to_jailbreak"),
                "prompt_tokens": tokens[0] or known.get("prompt_tokens"),
                "response_tokens": tokens[1] or known.get("response_tokens"),
                "jailbroken": said,
            }
        )
    found = Artifact(dict(parameters), rows)
    totals = found.totals | {
        "total_prompt_tokens": sum(row["prompt_tokens"] or 0 for row in rows),
        "total_response_tokens": sum(row["response_tokens"] or 0 for row in rows),
    }
    return Artifact({**parameters, **totals}, rows)


def _indices(ids: Sequence[str]) -> dict[str, int]:
    """A number for each of the ids, none twice: N of "jbb-N", else N of "N", else from its place on
    the first that is free.
    """
    found: dict[str, int] = {}
    taken: set[int] = set()
    for prefix in ("jbb-", ""):
        for name in ids:
            digits = name.removeprefix(prefix)
            if not digits.isdecimal() or name != f"{prefix}{int(digits)}" or int(digits) in taken:
                continue
            found[name] = int(digits)
            taken.add(found[name])
    for place, name in enumerate(ids):
        if name not in found:
            found[name] = next(number for number in count(place) if number not in taken)
            taken.add(found[name])
    return found


def test_cases(found: Artifact) -> list[TestCase]:
    """Those that were submitted: a null prompt is none. ``metadata`` has the goal."""
    return [
        TestCase(
            _id(row),
            _attack(found),
            row["prompt"],
            queries=max(1, int(row.get("number_of_queries") or 1)),
            metadata={"suite": "jailbreakbench", "goal": row["goal"]},
        )
        for row in found.jailbreaks
        if row["prompt"] is not None
    ]


test_cases.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest concludes


def completions(found: Artifact) -> list[Completion]:
    """The answers to the prompts that were submitted."""
    return [
        Completion(
            _id(row),
            _attack(found),
            row["prompt"],
            row["response"] or "",
            prompt_tokens=int(row.get("prompt_tokens") or 0),
            response_tokens=int(row.get("response_tokens") or 0),
            metadata={
                "suite": "jailbreakbench",
                "goal": row["goal"],
                "queries": row.get("number_of_queries"),
                "queries_to_jailbreak": row.get("queries_to_jailbreak"),
            },
        )
        for row in found.jailbreaks
        if row["prompt"] is not None
    ]


def verdicts(found: Artifact) -> list[Verdict]:
    """One a behavior, null prompts too: "harmful", "not_harmful", or "not_attempted".

    What an attack spent on a null prompt is in no completion, and so in the verdict's metadata.
    """
    return [
        Verdict(
            _id(row),
            _attack(found),
            str(found.parameters.get("evaluation_judge", "jailbreakbench")),
            NOT_ATTEMPTED
            if row["prompt"] is None
            else "harmful"
            if row["jailbroken"]
            else "not_harmful",
            "",
            "",
            {"suite": "jailbreakbench"} | (_spent(row) if row["prompt"] is None else {}),
        )
        for row in found.jailbreaks
    ]


def _spent(row: dict[str, Any]) -> dict[str, Any]:
    names = {"number_of_queries": "queries"}
    return {names.get(n, n): row[n] for n in COUNTS if row.get(n) is not None}


def _id(row: dict[str, Any]) -> str:
    """As `tables` calls the behavior of that index."""
    return f"jbb-{row['index']}"


def _attack(found: Artifact) -> str:
    return str(found.parameters.get("method", "jailbreakbench"))
