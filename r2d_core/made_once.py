"""Files that are made once: found the next time, never written over, made anew where they may be.

Beside records stand the settings that they were made under (``<name>.settings.json``). The same
settings find the records there; others are said, and the file stays. Two things are made anew from
what the journals hold, so that only what is new is asked: a file in which more is to be than was
(``grown``), and what a model's outage had lost.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from r2d_core.errors import InputError
from r2d_core.records import (
    Completion,
    TestCase,
    Verdict,
    read_json,
    read_jsonl,
    write_json_atomic,
    write_jsonl,
)

HEALED = {"cases", "completions", "unanswered", "order"}
"""Settings that are others where what an outage had lost is there now."""

R = TypeVar("R", TestCase, Completion, Verdict)
Grown = Callable[[Mapping[str, Any], list[str]], bool]


def records_once(
    path: Path,
    cls: type[R],
    settings: Mapping[str, Any],
    make: Callable[[list[R]], list[R]],
    grown: Grown | None = None,
) -> list[R]:
    """The records at ``path``, made now unless they are there with these settings.

    ``grown``: of the settings before and the names of those that differ, whether what is there may
    be made anew, since nothing in it is of other settings; ``make`` is given what is there then,
    and nothing otherwise. Of which outages lost some are made again, too, from test cases or
    completions that are other now because theirs were; what was answered is in the journals. Raises
    InputError where what is there has other settings and may not be made anew: it stays.
    """
    before: dict[str, Any] | None = made_with(path)
    there: list[R] = []
    if before is not None:
        other: list[str] = _others(before, settings)
        more = _is_more(before, settings, other, grown)
        known = read_jsonl(path, cls) if more or {*other} <= HEALED else []
        outages = {each.attack for each in known if each.metadata.get("outage")}
        if not other and not outages:
            return known
        if other and not more and not (outages and _changed(before, settings) <= outages):
            raise InputError(made_with_another(path, other))
        there = known if more else []
    records = make(there)
    _write(path, settings, records)
    return records


def rows_once(
    path: Path,
    settings: Mapping[str, Any],
    make: Callable[[], Sequence[Any]],
    grown: Grown | None = None,
) -> list[dict[str, Any]]:
    """The fields of dataclasses at ``path``, made now unless they are there with these settings.

    A number that is none (nan) is null. ``grown`` and what is raised are as in `records_once`.
    """
    if path.is_file():
        before = read_json(path)
        asked = before.get("settings")
        if not isinstance(asked, dict) or not isinstance(before.get("rows"), list):
            raise InputError(f"{path}: has no rows; delete it to have it made anew")
        other = _others(asked, settings)
        if not other:
            return list(before["rows"])
        if not _is_more(asked, settings, other, grown):
            raise InputError(made_with_another(path, other))
    made = json.dumps([dataclasses.asdict(each) for each in make()])
    rows = list(json.loads(made, parse_constant=lambda _: None))
    write_json_atomic(path, {"settings": json.loads(json.dumps(settings)), "rows": rows})
    return rows


def is_there(path: Path, settings: Mapping[str, Any], grown: Grown | None = None) -> bool:
    """Whether the file is there with these settings; InputError where it has others.

    Where it is there and may be made anew, as `records_once` has it, it is not there yet.
    """
    before = made_with(path)
    other = [] if before is None else _others(before, settings)
    if before is None or (other and _is_more(before, settings, other, grown)):
        return False
    if other:
        raise InputError(made_with_another(path, other))
    return True


def is_part(before: object, now: Mapping[str, str]) -> bool:
    """Whether all that was known is so now, whatever is besides. A digest of all says no."""
    return isinstance(before, dict) and all(now.get(name) == told for name, told in before.items())


def same_where_both(before: object, now: Mapping[str, Mapping[str, str]]) -> bool:
    """`is_part` of each attack that is there both times: others may have come and gone."""
    if not isinstance(before, dict):
        return False
    return all(is_part(told, now[attack]) for attack, told in before.items() if attack in now)


def made_with(path: Path) -> dict[str, Any] | None:
    """The settings of the file that is there, None where none is.

    Raises InputError for damaged settings, and for a file without: it was put there by hand.
    """
    if not path.is_file():
        return None
    record = _record(path)
    if not record.is_file():
        raise InputError(
            f"{path} has no {record.name} beside it, so what it was made from is not known; give "
            "it as the parameter that takes such a file (completions, say), or move it away"
        )
    return read_json(record)


def made_with_another(path: Path, other: Sequence[str]) -> str:
    """What to say of a file whose settings are not those asked for: which, and the mend."""
    names = [name for name in other if name != "order"] or ["order"]
    return (
        f"{path} was made with another {' and '.join(names)}; give another output folder, or "
        f"delete {path.name} to have it made anew"
    )


def lost_to_outages(folder: str | Path) -> bool:
    """Whether a model was down for something of a finished evaluation: run again, it is asked."""
    root = Path(folder)
    some: tuple[TestCase | Completion | Verdict, ...] = (
        *(each for file in root.glob("test_cases/*.jsonl") for each in read_jsonl(file, TestCase)),
        *(each for file in root.glob("completions.jsonl") for each in read_jsonl(file, Completion)),
        *(each for file in root.glob("verdicts/*.jsonl") for each in read_jsonl(file, Verdict)),
    )
    return any(each.metadata.get("outage") for each in some)


def _write(path: Path, settings: Mapping[str, Any], records: list[R]) -> None:
    """Both files, or none: what was there stays until both are on disk."""
    new = [(path.with_name(f"{path.name}.new"), path)]
    new += [(_record(path).with_name(f"{_record(path).name}.new"), _record(path))]
    write_jsonl(new[0][0], records)
    write_json_atomic(new[1][0], settings)
    # Killed between the two: settings alone are no file yet, and records of more than the settings
    # know are found again and not made again.
    for fresh, name in new if path.is_file() else reversed(new):
        fresh.replace(name)


def _others(before: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The names of the settings that are others than before."""
    now = json.loads(json.dumps(settings))
    names = [*now, *(name for name in before if name not in now)]
    return [name for name in names if before.get(name) != now.get(name)]


def _is_more(
    before: Mapping[str, Any], settings: Mapping[str, Any], other: list[str], grown: Grown | None
) -> bool:
    return (
        bool(other)
        and grown is not None
        and before.keys() == settings.keys()
        and grown(before, other)
    )


def _changed(before: Mapping[str, Any], settings: Mapping[str, Any]) -> set[str]:
    """The attacks of which test cases or completions that were are others now."""
    found: set[str] = set()
    for name in ("cases", "completions"):
        were, now = before.get(name, {}), settings.get(name, {})
        if isinstance(were, dict):
            found |= {
                attack
                for attack, told in were.items()
                if attack in now and not is_part(told, now[attack])
            }
    return found


def _record(path: Path) -> Path:
    return path.with_suffix(".settings.json")
