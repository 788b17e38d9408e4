"""Files that hold no records: text, a JSON object, or a log of one object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from r2d_core.errors import InputError


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object that the file is.

    Raises InputError when there is no such file, and for broken JSON and what is no object.
    """
    return _object(
        content_of(Path(path)),
        str(path),
        "the file may be cut off: mend it, or delete it and run again what writes it",
    )


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The JSON objects of a log, one a line, in the file's order; empty lines are skipped.

    Raises InputError "file:line: …" as `read_json`.
    """
    return [
        _object(line, f"{path}:{number}", "the line may be cut off: mend or delete it")
        for number, line in enumerate(content_of(Path(path)).splitlines(), start=1)
        if line.strip()
    ]


def read_text(path: str | os.PathLike[str], expected: str) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises InputError when there is no such file, which then says what was ``expected``, and
    "file:line: …" where it is not UTF-8.
    """
    return utf8(Path(path), content_of(Path(path), expected)).removeprefix("\ufeff")


def utf8(path: Path, content: bytes) -> str:
    """The text that a file's bytes are; InputError "file:line: …" where they are not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: expected UTF-8 text, found byte {content[error.start]:#04x} "
            f"({error.reason}); save the file as UTF-8"
        ) from None


def content_of(path: Path, expected: str = "JSON") -> bytes:
    """A file's bytes; InputError, which says what was ``expected``, where they cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}), expected {expected}; run again what "
            "writes it, or correct the path"
        ) from None


def _object(content: bytes, place: str, mend: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{place}: expected a JSON object, found broken JSON ({error}); {mend}"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected a JSON object, got {type(value).__name__}; {mend}")
    return value
