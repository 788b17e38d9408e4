"""The records themselves, our own format of them, and files written whole or not at all.

    Behavior    what is asked of a model, and whether it ought to be refused
    TestCase    a behavior as an attack puts it
    Completion  what the model wrote
    Verdict     what a judge says about it

A file holds one kind of record, one JSON object a line, UTF-8. Each stage can be rerun, replaced or
fed from elsewhere as long as its file reads.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints
from uuid import uuid4

from r2d_core.checking import mismatch, unknown
from r2d_core.errors import InputError

CONTEXT = "ContextString"
"""Key of a behavior's metadata, by the name of HarmBench's column: the text that it is about."""


class _Checked:
    """Every field is held against its annotation when the record is made."""

    def __post_init__(self) -> None:
        cls: type = type(self)
        for name, annotation in _annotations(cls).items():
            if problem := mismatch(getattr(self, name), annotation):
                raise InputError(f"{cls.__name__} field {name!r}: {problem}")


@dataclass(frozen=True)
class Behavior(_Checked):
    """A request and what is known about it.

    ``kind`` says whether a good model refuses ("harmful") or helps ("benign"); ``expected`` is the
    right answer of a benign task, where there is one. ``metadata`` holds JSON values only: what the
    source knows beyond these fields, such as the text that the prompt is about (``ContextString``
    of HarmBench). A field of the wrong type raises InputError.
    """

    id: str
    prompt: str
    kind: Literal["harmful", "benign"] = "harmful"
    category: str = ""
    split: str = ""
    expected: str = ""
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def request(self) -> str:
        """The prompt as a model is asked it: behind its context, where it has one."""
        return self.in_context(self.prompt)

    def in_context(self, prompt: str) -> str:
        """Another prompt for the behavior, behind its context as HarmBench's attacks put it."""
        context = str(self.metadata.get(CONTEXT, ""))
        return f"{context}\n\n---\n\n{prompt}" if context else prompt


@dataclass(frozen=True)
class TestCase(_Checked):
    """What an attack makes of a behavior: the prompt sent, and where the attack needs them the
    system message and the beginning of the response (``prefill``). ``queries`` counts the model
    calls that the attack spent on it.
    """

    __test__ = False  # not a test class, whatever pytest concludes from its name

    behavior_id: str
    attack: str
    prompt: str
    prefill: str = ""
    system: str = ""
    queries: int = 1
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def missing(self) -> bool:
        """Whether it is no prompt: the attack has none for the behavior."""
        return bool(self.metadata.get("missing"))


@dataclass(frozen=True)
class Completion(_Checked):
    """What the model wrote after ``prompt`` and ``prefill``: ``text`` begins after the prefill.

    Token counts leave the prefill to the prompt. ``finish`` is "stop" when the model ended its
    turn, "length" when it was cut off and "filtered" when a provider's filter withheld the rest of
    it, or all.
    """

    behavior_id: str
    attack: str
    prompt: str
    text: str
    prefill: str = ""
    prompt_tokens: int = 0
    response_tokens: int = 0
    finish: Literal["stop", "length", "filtered"] = "stop"
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def missing(self) -> bool:
        """Whether it answers no prompt (`TestCase.missing`): nothing was asked."""
        return bool(self.metadata.get("missing"))

    @property
    def unanswered(self) -> str:
        """Why there is no answer to what was asked, "" where there is one."""
        if self.finish == "filtered" and not self.text.strip():
            return "a filter of the provider's withheld the answer"
        return str(self.metadata.get("error", ""))


@dataclass(frozen=True)
class Verdict(_Checked):
    """A judge's label for the whole response, for its reasoning and for its answer alone.

    Labels are the judge's own words; the toy judge says harmful, refused, correct or garbled.
    """

    behavior_id: str
    attack: str
    judge: str
    whole: str
    reasoning: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


Record = TypeVar("Record", Behavior, TestCase, Completion, Verdict)


def read_jsonl(path: str | os.PathLike[str], cls: type[Record]) -> list[Record]:
    """Records of one class, in the file's order; empty lines are skipped.

    Raises InputError "file:line: …" for a line that is no JSON object, a missing or unknown field
    and a value of the wrong type, and InputError when there is no such file.
    """
    path = Path(path)
    try:
        with path.open("rb") as lines:
            return [
                _parse(line, cls, f"{path}:{number}")
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file, expected {cls.__name__} records; correct the path, or run the "
            "stage that writes it"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory, expected a file of JSON lines") from None


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Record]) -> None:
    """Write records as JSON lines, atomically; any text reads back exactly as it was.

    Raises InputError, and leaves the old file, when metadata holds what JSON cannot (nan, a set …).
    """
    lines = []
    for number, row in enumerate(rows, start=1):
        values = {each.name: getattr(row, each.name) for each in dataclasses.fields(row)}
        lines.append(_to_json(values, f"{path}:{number}") + b"\n")
    write_bytes_atomic(Path(path), b"".join(lines))


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text so that a reader sees the old file or the whole new one, never a part.

    Missing parent directories are made. Line ends are written as they are given.
    """
    write_bytes_atomic(Path(path), text.encode("utf-8"))


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """As `write_text_atomic`, for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write one JSON document, indented, atomically; InputError for what JSON cannot hold (nan)."""
    write_bytes_atomic(Path(path), _to_json(value, str(path), indent=2) + b"\n")


def check_json(value: Any, place: str) -> None:
    """Raise InputError, naming the place, for what was read and could not be written again.

    Python reads NaN and 1e400, which are no JSON values.
    """
    try:
        json.dumps(value, allow_nan=False, indent=2)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not a JSON value ({error}); mend it, or write null") from None


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a new directory that takes the place of ``path`` only when the block ends well.

    Yields an empty directory beside ``path``. When the block raises, it is removed and ``path``
    stays as it was. An existing ``path`` is replaced whole: for an instant there is none, but never
    a half-written one. After a kill, a ``.tmp-…`` directory may lie beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = _sibling(path), _sibling(path)
    fresh.mkdir()
    try:
        yield fresh
        for file in fresh.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            os.replace(path, old)
        os.replace(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _parse(line: bytes, cls: type[Record], place: str) -> Record:
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogatepass")
        values = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{place}: expected one JSON object a line, found broken JSON ({error}); "
            "the line may be cut off: mend it, or have the file written again"
        ) from None
    if not isinstance(values, dict):
        raise InputError(
            f"{place}: expected a JSON object with the fields of {cls.__name__}, "
            f"got {type(values).__name__}"
        )
    fields = {each.name: each for each in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise InputError(f"{place}: {unknown(f'{cls.__name__} field', name, fields)}")
    for name, each in fields.items():
        optional = (
            each.default is not dataclasses.MISSING
            or each.default_factory is not dataclasses.MISSING
        )
        if name not in values and not optional:
            raise InputError(f"{place}: {cls.__name__} field {name!r} is missing; add it")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


# Written as escapes: C1 controls and the Unicode line ends, at which some tools would break a line,
# and surrogates standing alone, which UTF-8 cannot encode.
_ESCAPED = re.compile(
    "[\x7f-\x9f\u2028\u2029]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]"
)


def _to_json(value: Any, place: str, indent: int | None = None) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{place}: cannot be written as JSON ({error})") from None
    text = _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    # A *pair* of surrogate code points is no text that any tokenizer produces. As escapes it would
    # read back as one character; passed through, it reads back as it was.
    return text.encode("utf-8", "surrogatepass")


def _sibling(path: Path) -> Path:
    return path.with_name(f".tmp-{uuid4().hex}")
