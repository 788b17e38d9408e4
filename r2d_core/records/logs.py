"""Logs of JSON lines that grow by whole batches, for runs that go on after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from r2d_core.errors import InputError
from r2d_core.records.documents import content_of


def read_log(path: Path, mend: str) -> list[Any]:
    """The JSON values of a log, the n-th of its n-th line; not a last line that a kill cut off.

    Raises InputError when there is no such file, and "file:line: …" with the ``mend`` for a whole
    line that is no JSON.
    """
    values = []
    # Behind the last line end is nothing, or what was cut off.
    for number, line in enumerate(content_of(path, "a log").split(b"\n")[:-1], start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}:{number}: expected a line of JSON, found broken JSON ({error}); {mend}"
            ) from None
    return values


def append_log(path: Path, values: Iterable[Any]) -> None:
    """Append a batch of JSON values, a line each, in one write; on the disk before this returns.

    Makes the file where there is none. A last line that was cut off goes first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(value) + "\n" for value in values).encode("ascii"))
        file.flush()
        os.fsync(file.fileno())
