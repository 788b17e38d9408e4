"""Files of records, whatever their format: what a file is, its content says.

Of JailbreakBench's tables, whose harmful and benign ones look alike, its name or ``kind``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from r2d_core.errors import InputError
from r2d_core.records import harmbench, jailbreakbench
from r2d_core.records.jsonl import Behavior, Completion, Record, TestCase, Verdict, read_jsonl
from r2d_core.records.tables import MARK, read_table


def read_behaviors(
    path: str | os.PathLike[str], kind: Literal["harmful", "benign"] | None = None
) -> list[Behavior]:
    """Behaviors, of our JSON lines or of a table of HarmBench, JailbreakBench, XSTest, StrongREJECT
    or AdvBench.

    JailbreakBench's harmful and benign tables differ in their names alone; a file with another name
    needs ``kind``. Raises InputError that names file and line.
    """
    path = Path(path)
    text = _text(path)
    if text is None and not _json_like(_text(path, errors="replace") or "{"):
        raise InputError(
            f"{path}: expected JSON lines or a table in UTF-8, found another encoding; save it as "
            'UTF-8 (a spreadsheet\'s "CSV UTF-8")'
        )
    if text is None or _json_like(text):
        value = None if text is None else _whole(text)
        if value is not None and _suite_of(value):
            raise InputError(f"{path}: expected behaviors, found {_suite_of(value)}")
        if kind is not None:
            raise InputError(f"{path}: kind= is for tables of JailbreakBench; JSON lines say it")
        return read_jsonl(path, Behavior)
    return read_table(path, text, kind)


def read_test_cases(path: str | os.PathLike[str]) -> list[TestCase]:
    """Test cases, of our JSON lines, HarmBench's test_cases.json (or the folder of the files that
    it is merged from) or a JailbreakBench artifact (the prompts that it has; null is none).

    Raises InputError that names the file and the place in it.
    """
    if Path(path).is_dir():
        return harmbench.individual_test_cases(Path(path))
    return _read(
        Path(path),
        TestCase,
        lambda value: jailbreakbench.test_cases(jailbreakbench.artifact(Path(path), value)),
        {harmbench.is_test_cases: harmbench.test_cases},
    )


def read_completions(path: str | os.PathLike[str]) -> list[Completion]:
    """Completions, of our JSON lines, HarmBench's completions or results, or a JailbreakBench
    artifact. Raises InputError that names the file and the place in it.
    """
    return _read(
        Path(path),
        Completion,
        lambda value: jailbreakbench.completions(jailbreakbench.artifact(Path(path), value)),
        {harmbench.is_completions: harmbench.completions},
    )


def read_verdicts(path: str | os.PathLike[str]) -> list[Verdict]:
    """Verdicts, of our JSON lines, HarmBench's results or a JailbreakBench artifact (all its rows).

    Raises InputError that names the file and the place in it.
    """
    return _read(
        Path(path),
        Verdict,
        lambda value: jailbreakbench.verdicts(jailbreakbench.artifact(Path(path), value)),
        {harmbench.is_completions: harmbench.verdicts},
    )


def _read(
    path: Path,
    cls: type[Record],
    of_artifact: Callable[[Any], list[Record]],
    of_harmbench: dict[Callable[[Any], bool], Callable[[Path, Any], list[Record]]],
) -> list[Record]:
    text = _text(path)
    value = None if text is None else _whole(text)
    if jailbreakbench.is_artifact(value):
        return of_artifact(value)
    for fits, read in of_harmbench.items():
        if isinstance(value, dict) and fits(value):
            harmbench.check_rows(path, value)
            return read(path, value)
    if value in ({}, []):
        raise InputError(f"{path}: expected {cls.__name__} records, found an empty JSON document")
    if value is not None and (found := _suite_of(value)):
        raise InputError(f"{path}: expected {cls.__name__} records, found {found}")
    return read_jsonl(path, cls)


def _suite_of(value: Any) -> str:
    """What a whole JSON document is, of the suites' kinds; "" for none."""
    if jailbreakbench.is_artifact(value):
        return "an artifact of JailbreakBench"
    if harmbench.is_test_cases(value):
        return "test cases of HarmBench"
    if harmbench.is_completions(value):
        return "completions of HarmBench"
    return ""


def _text(path: Path, errors: str = "strict") -> str | None:
    """The file's text; None where `read_jsonl` has to say what is wrong."""
    try:
        return path.read_bytes().decode("utf-8", errors)
    except (OSError, UnicodeDecodeError):
        return None


def _json_like(text: str) -> bool:
    return text.removeprefix(MARK).lstrip()[:1] in ("{", "[", "")


def _whole(text: str) -> Any:
    """The JSON document that the text is, None where it is none."""
    try:
        return json.loads(text.removeprefix(MARK))
    except (ValueError, RecursionError):
        return None
