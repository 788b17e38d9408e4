"""What a long attack has done so far, kept in a file: a killed run goes on where it was.

An attack is deterministic by its seed, so it needs no state of its own to go on: gradient attacks
and random search write down every step, AutoDAN every generation's fitness, and all that ask models
every answer; run again, they take these from the file until they come to one that is not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2d_core.checking import mismatch
from r2d_core.errors import InputError
from r2d_core.generation import Generation, Generator, Request
from r2d_core.records import append_log, read_log


class Journal:
    """Entries under keys, each added once and in order; one JSON line each in ``path``.

    Without a path they are only remembered. A line that a kill cut off is dropped when the file is
    read. Raises InputError "file:line: …" for a whole line that is no entry.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._entries: defaultdict[str, list[Any]] = defaultdict(list)
        if path is None:
            return
        append_log(path, [])  # where it cannot be written, nothing is to be done in vain
        mend = "delete the file to begin the attack anew"
        for number, entry in enumerate(read_log(path, mend), start=1):
            if mismatch(entry, list[Any]) or len(entry) != 2 or not isinstance(entry[0], str):
                raise InputError(
                    f"{path}:{number}: expected an entry [key, value] of an attack's progress, got "
                    f"{entry!r:.40}; {mend}"
                )
            self._entries[entry[0]].append(entry[1])

    def entries(self, key: str) -> list[Any]:
        """What was added under the key, oldest first."""
        return list(self._entries[key])

    def add(self, *entries: tuple[str, Any]) -> None:
        """Remember JSON values under their keys, on disk before this returns."""
        for key, value in entries:
            self._entries[key].append(value)
        if self.path is not None:
            append_log(self.path, entries)


class RecordedGenerator:
    """A generator whose answers are written into a journal, and taken from it where they are there.

    The same request asked again is a new question: the n-th time it gets the n-th answer. An
    exception is not written down; the request is asked again when the attack is.
    """

    def __init__(self, generator: Generator, journal: Journal, role: str) -> None:
        self.generator = generator
        self.journal = journal
        self.role = role
        self._asked: Counter[str] = Counter()

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
        """As the generator's own; only what the journal lacks is asked."""
        keys = [self._key(request, max_new_tokens) for request in requests]
        now: Counter[str] = Counter()
        places = []
        for key in keys:
            places.append(self._asked[key] + now[key])
            now[key] += 1
        missing = [
            i
            for i, (key, place) in enumerate(zip(keys, places, strict=True))
            if place >= len(self.journal.entries(key))
        ]
        if missing:
            made = self.generator.generate([requests[i] for i in missing], max_new_tokens)
            if len(made) != len(missing):  # whose answers they are is not known
                raise RuntimeError(f"{len(made)} answers to {len(missing)} requests")
            answers = map(dataclasses.asdict, made)
            self.journal.add(*((keys[i], a) for i, a in zip(missing, answers, strict=True)))
        self._asked.update(now)  # only now: a call that raised has asked nothing
        return [
            Generation(**self.journal.entries(key)[place])
            for key, place in zip(keys, places, strict=True)
        ]

    def _key(self, request: Request, max_new_tokens: int) -> str:
        asked = json.dumps([dataclasses.asdict(request), max_new_tokens], sort_keys=True)
        return f"{self.role}-{digest(asked)}"


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
