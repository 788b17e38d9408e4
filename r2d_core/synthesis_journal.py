"""The journal of a synthesis: what became of every instruction, appended batch by batch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2d_core.errors import InputError
from r2d_core.records import Behavior, append_log, read_log, write_text_atomic

STATUSES = ("kept", "rejected", "failed", "duplicate")
"""What becomes of an instruction: a trajectory; one whose answer is unsafe, or that the filter
turned away; none, because teacher or guard failed or the text was no trajectory; nothing, because
it was there before."""


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The entries of a journal, one for each instruction so far, without its settings.

    Every entry has ``id``, ``kind``, ``instruction`` and ``status``; "kept" and "rejected" also
    ``output``, ``teacher`` and ``guard`` (the tags, step by step) and ``guard_answer`` (its tag of
    the answer); "rejected" and "failed" a ``reason``; "failed" the beginning of the ``text``;
    "duplicate" ``of`` and ``similarity``.

    Raises InputError when there is no such file or it is no journal.
    """
    _, entries = _read_lines(Path(path))
    return entries


class Journal:
    """A file of JSON lines that grows by whole batches; line 1 holds the settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self._settings = settings

    def resume(self, behaviors: Sequence[Behavior]) -> int:
        """How many instructions are done. Makes the file.

        Raises InputError when it was written with other settings or for other behaviors.
        """
        if not self.path.exists():
            write_text_atomic(self.path, json_line({"synthesis": self._settings}))
            return 0
        settings, entries = _read_lines(self.path)
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise InputError(
                    f"{self.path}: written with {name}={settings.get(name)!r}, now {value!r}; "
                    "choose another output_dir, or delete this one to begin again"
                )
        for number, entry in enumerate(entries):
            expected = behaviors[number] if number < len(behaviors) else None
            if expected is None or any(entry[k] != v for k, v in identity(expected).items()):
                found = f"{expected.id!r}" if expected else "nothing"
                raise InputError(
                    f"{self.path}:{number + 2}: holds instruction {entry['id']!r} where "
                    f"{found} is asked for now; choose another output_dir for other behaviors"
                )
        return len(entries)

    def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """Write the lines in one go and wait until they are on the disk."""
        append_log(
            self.path, ({k: v for k, v in each.items() if k != "raised"} for each in entries)
        )


def json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n"


def _read_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    no_journal = "not a journal of synthesize(), or damaged; delete it to begin again"
    values = read_log(path, no_journal)
    try:
        settings = values[0]["synthesis"]
        if not all(entry["status"] in STATUSES for entry in values[1:]):
            raise ValueError
        return settings, values[1:]
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{path}: {no_journal}") from None


def identity(behavior: Behavior) -> dict[str, Any]:
    return {"id": behavior.id, "kind": behavior.kind, "instruction": behavior.prompt}
