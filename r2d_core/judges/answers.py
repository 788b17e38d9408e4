"""What a judge model has answered, kept in a file: nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2d_core.checking import mismatch
from r2d_core.errors import InputError
from r2d_core.records import append_log, read_log


class Answers:
    """Raw answers by the hash of the whole question; with a ``path``, one JSON line each.

    An answer is on disk before `add` returns. A last line that a kill cut off is dropped when the
    file is read. Raises InputError "file:line: …" for a whole line that is no answer.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._raw: dict[str, str] = {}
        if path is None:
            return
        append_log(path, [])  # where it cannot be written, nothing is to be asked in vain
        mend = "delete the line, or the file to ask anew"
        for number, row in enumerate(read_log(path, mend), start=1):
            if mismatch(row, dict[str, str]) or not {"key", "raw"} <= row.keys():
                raise InputError(
                    f"{path}:{number}: expected a judge's answer with 'key' and 'raw', two texts, "
                    f"got {row!r:.40}; {mend}"
                )
            self._raw[row["key"]] = row["raw"]

    def get(self, key: str) -> str | None:
        """The answer, None where it was not given yet."""
        return self._raw.get(key)

    def add(self, answers: Mapping[str, str]) -> None:
        """Remember answers by their keys."""
        self._raw.update(answers)
        if self.path is not None and answers:
            append_log(self.path, ({"key": key, "raw": raw} for key, raw in answers.items()))


def question_key(*parts: Any) -> str:
    """The SHA-256 of all that an answer depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
