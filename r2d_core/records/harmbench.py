"""HarmBench's three steps on disk, each a JSON object by behavior id.

    {method}/{experiment}/test_cases/test_cases.json   {id: [prompt, …]}
    …/test_cases/test_cases_individual_behaviors/      {id}/test_cases.json, before it merges them
    {method}/{experiment}/completions/{model}.json     {id: [{test_case, generation}, …]}
    {method}/{experiment}/results/{model}.json         the same, with label 1, 0 or -1

Its attack success rate is the mean over behaviors of the share of labels that are 1; -1, not
scored, is a failure of the attack. A behavior with an empty list has no such share and would be
lost in records, so it is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2d_core.errors import InputError
from r2d_core.records.documents import read_json
from r2d_core.records.jsonl import (
    Completion,
    TestCase,
    Verdict,
    check_json,
    write_json_atomic,
)
from r2d_core.records.outcomes import SUCCESS, is_success

LABELS = {1: "harmful", 0: "not_harmful", -1: "unscored"}
STEPS = ("test_cases", "completions", "results")
INDIVIDUAL, INDIVIDUAL_FILE = "test_cases_individual_behaviors", "test_cases.json"


def is_test_cases(value: Any) -> bool:
    """Is this JSON value HarmBench's test cases?"""
    return _by_behavior(value) and all(isinstance(x, str) for some in value.values() for x in some)


def is_completions(value: Any) -> bool:
    """Is this JSON value HarmBench's completions (or results)?"""
    return _by_behavior(value) and all(
        isinstance(x, dict) and {"test_case", "generation"} <= x.keys()
        for some in value.values()
        for x in some
    )


def test_cases(path: Path, value: dict[str, list[str]]) -> list[TestCase]:
    """A test case for each prompt."""
    return [
        TestCase(behavior_id, _attack(path), prompt, metadata={"suite": "harmbench"})
        for behavior_id, prompts in value.items()
        for prompt in prompts
    ]


def individual_test_cases(folder: Path) -> list[TestCase]:
    """The test cases of a folder ``test_cases_individual_behaviors``, in the order of its folders.

    Raises InputError for a folder without any, a file that holds none, and a behavior in two files.
    """
    files = sorted(folder.glob(f"*/{INDIVIDUAL_FILE}"))
    if not files:
        raise InputError(
            f"{folder}: expected test cases as JSON, or a folder with {{id}}/{INDIVIDUAL_FILE} as "
            "HarmBench's test_cases_individual_behaviors"
        )
    found: dict[str, tuple[Path, list[str]]] = {}
    for file in files:
        value = read_json(file)
        if not is_test_cases(value):
            raise InputError(f"{file}: expected HarmBench's test cases, an object of lists of text")
        check_rows(file, value)
        for behavior_id, prompts in value.items():
            if behavior_id in found:
                raise InputError(
                    f"{file}: behavior {behavior_id!r} is in {found[behavior_id][0]} already"
                )
            found[behavior_id] = (file, prompts)
    return test_cases(
        folder / INDIVIDUAL_FILE, {name: prompts for name, (_, prompts) in found.items()}
    )


test_cases.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest concludes


def completions(path: Path, value: dict[str, list[dict[str, Any]]]) -> list[Completion]:
    """A completion for each; what a row holds besides (labels, say) is in ``metadata["row"]``."""
    return [
        Completion(
            behavior_id,
            _attack(path),
            _text(row, "test_case", f"{path}: {behavior_id}[{place}]"),
            _text(row, "generation", f"{path}: {behavior_id}[{place}]"),
            metadata={
                "suite": "harmbench",
                "row": {k: v for k, v in row.items() if k not in ("test_case", "generation")},
            },
        )
        for behavior_id, rows in value.items()
        for place, row in enumerate(rows)
    ]


def verdicts(path: Path, value: dict[str, list[dict[str, Any]]]) -> list[Verdict]:
    """A verdict for each row of results: `LABELS` of its label, on the whole response."""
    found = []
    for behavior_id, rows in value.items():
        for place, row in enumerate(rows):
            label = row.get("label")
            number = isinstance(label, int | float) and not isinstance(label, bool)
            if not number or label not in LABELS:
                raise InputError(
                    f"{path}: {behavior_id}[{place}]: expected a label of 1, 0 or -1, found "
                    f"{label!r:.40}; completions have none: judge them first"
                )
            metadata = {"suite": "harmbench", "label": label}
            found.append(
                Verdict(behavior_id, _attack(path), "harmbench", LABELS[label], "", "", metadata)
            )
    return found


def write_harmbench(
    path: str | os.PathLike[str],
    rows: Sequence[TestCase | Completion],
    verdicts: Sequence[Verdict] | None = None,
    success: str = SUCCESS,
) -> None:
    """Write test cases or completions in HarmBench's form; with verdicts, in order, as results.

    Labels are of the whole response: 1 for the judge's label ``success`` (`JUDGES[name].success`;
    "yes" of HarmBench's own classifier), -1 for "unscored" and "unparsable", else 0. Rows of one
    behavior stay together. Raises InputError for a row with a system message or a prefill, which
    the format cannot say, for verdicts of other rows, and for another judge's labels where
    ``success`` is left out.
    """
    if verdicts is not None and [(v.behavior_id, v.attack) for v in verdicts] != [
        (r.behavior_id, r.attack) for r in rows
    ]:
        raise InputError(f"{path}: the verdicts are not of these completions, in their order")
    by_behavior: dict[str, list[Any]] = {}
    for place, row in enumerate(rows):
        if row.prefill or getattr(row, "system", ""):
            raise InputError(
                f"{path}: the row of behavior {row.behavior_id!r} has a prefill or a system "
                "message, for which HarmBench's format has no place; write JSON lines"
            )
        made: Any = row.prompt
        if isinstance(row, Completion):
            made = {"test_case": row.prompt, "generation": row.text, **row.metadata.get("row", {})}
            if verdicts is not None:
                made["label"] = _label(verdicts[place].whole, success)
        by_behavior.setdefault(row.behavior_id, []).append(made)
    write_json_atomic(path, by_behavior)


def _label(whole: str, success: str) -> int:
    said = is_success(whole, success)
    return -1 if said is None or whole == "unscored" else int(said)


def check_rows(path: Path, value: dict[str, list[Any]]) -> None:
    """Raise InputError for a behavior without rows."""
    if empty := [name for name, rows in value.items() if not rows]:
        raise InputError(
            f"{path}: behavior {empty[0]!r} has an empty list: a rate would silently be one of the "
            "others; have its test cases or completions made, or take it out"
        )


def _by_behavior(value: Any) -> bool:
    return (
        isinstance(value, dict) and bool(value) and all(isinstance(x, list) for x in value.values())
    )


def _attack(path: Path) -> str:
    """The method's folder, where the file lies in HarmBench's layout."""
    parts = path.resolve().parts
    if INDIVIDUAL in parts:  # it lies where the file lies that they are merged into
        parts = (*parts[: parts.index(INDIVIDUAL)], INDIVIDUAL_FILE)
    return parts[-4] if len(parts) > 4 and parts[-2] in STEPS else "harmbench"


def _text(row: dict[str, Any], key: str, place: str) -> str:
    check_json(row, place)
    if not isinstance(row[key], str):
        raise InputError(
            f"{place}: {key}: expected text, found {type(row[key]).__name__}; test cases with "
            "images are not read"
        )
    return row[key]
