"""Tables of behaviors as CSV: HarmBench's, JailbreakBench's, XSTest's, StrongREJECT's, AdvBench's
and OR-Bench's.

A column that is no field of a `Behavior` is kept in ``metadata`` under its own name; the target
string of JailbreakBench and AdvBench besides under "target", where attacks look for it. A column
whose name is one of our own keys there ("suite", "csv", "target" where it is made from another) is
kept under "column:" and its name. "csv" says how a file is written where that is not our way: its
line ends, byte order mark, last line end and the order of its columns. So every column comes out
again, whatever it is called, and the published files come out to the byte; of others the quotes may
be set otherwise, and empty lines are left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.records.jsonl import Behavior, write_text_atomic

Row = dict[str, str]
Kind = Literal["harmful", "benign"]
MARK = "\ufeff"
"""The byte order mark, as a text has it."""

PREFIX = "column:"
"""Before the name of a column that is called as a key of ours is."""


@dataclass(frozen=True)
class Table:
    """One suite's table.

    Attributes:
        columns: those that make a CSV file such a table, in the suite's order.
        fields: field of `Behavior` -> the column that is it, word for word.
        behavior: (row, kind or None) -> what the other fields are. Without an id among them and
            ``fields`` it is made of the prompt, so that a behavior keeps it in any part of a file.
        target: the column with the string an attack aims at, or "".
        named: word in a file's name -> the kind of its behaviors, which nothing in it says.
        exact: whether a file with further columns is no such table.
    """

    columns: tuple[str, ...]
    fields: Mapping[str, str]
    behavior: Callable[[Row, Kind | None], dict[str, Any]]
    target: str = ""
    named: Mapping[str, Kind] = field(default_factory=dict)
    exact: bool = False


def _xstest_kind(row: Row, kind: Kind | None) -> dict[str, Any]:
    # The version-1 file has no labels; contrasts are the unsafe prompts in both.
    label = row.get("label", "").strip().casefold()
    if label not in ("", "safe", "unsafe"):
        raise InputError(f"label {row['label']!r}: expected safe or unsafe; correct it")
    unsafe = label == "unsafe" or row["type"].strip().casefold().startswith("contrast_")
    return {"kind": "harmful" if unsafe else "benign"}


def _jailbreakbench_kind(row: Row, kind: Kind | None) -> dict[str, Any]:
    return {"id": f"jbb-{'benign-' if kind == 'benign' else ''}{row['Index']}", "kind": kind}


TABLES: dict[str, Table] = {
    "harmbench": Table(
        ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString",
         "BehaviorID"),
        {"id": "BehaviorID", "prompt": "Behavior", "category": "SemanticCategory"},
        lambda row, kind: {},
    ),
    "jailbreakbench": Table(
        ("Index", "Goal", "Target", "Behavior", "Category", "Source"),
        {"prompt": "Goal", "category": "Category"},
        _jailbreakbench_kind,
        target="Target",
        named={"harmful": "harmful", "benign": "benign"},
    ),
    "xstest": Table(
        ("id", "prompt", "type"),
        {"id": "id", "prompt": "prompt", "category": "type"},
        _xstest_kind,
    ),
    "strongreject": Table(
        ("category", "source", "forbidden_prompt"),
        {"prompt": "forbidden_prompt", "category": "category"},
        lambda row, kind: {},
    ),
    "advbench": Table(
        ("goal", "target"),
        {"prompt": "goal"},
        lambda row, kind: {},
        target="target",
    ),
    # AdvBench as HarmBench's repository has it.
    "advbench_behaviors": Table(
        ("Behavior", "Category", "Tags", "ContextString", "BehaviorID"),
        {"id": "BehaviorID", "prompt": "Behavior", "category": "Category"},
        lambda row, kind: {},
    ),
    # Two columns that many a table has. Its files are or-bench-80k, or-bench-hard-1k and
    # or-bench-toxic, whose prompts are told apart by the file's name and their number.
    "or_bench": Table(
        ("prompt", "category"),
        {"prompt": "prompt", "category": "category"},
        lambda row, kind: {"kind": kind},
        named={"toxic": "harmful", "80k": "benign", "hard": "benign"},
        exact=True,
    ),
}  # fmt: skip


def read_table(path: Path, text: str, kind: Kind | None = None) -> list[Behavior]:
    """The behaviors of a CSV file whose columns are those of one of `TABLES`.

    ``kind`` is for a table of JailbreakBench or OR-Bench whose name has none of the words that tell
    harmful tables from benign ones: the two look the same otherwise. ``text`` may begin with a byte
    order mark.

    Raises InputError for another header, a row with too many or too few cells, an empty prompt, an
    id that occurs twice, a label of XSTest's that is none, and a kind that is not known or known
    already.
    """
    found = read_cells(path, text.removeprefix(MARK))
    written = found[0][1] if found else []
    header = [name.strip() for name in written]
    matching = [
        name
        for name, table in TABLES.items()
        if set(header) == {*table.columns} or (set(header) > {*table.columns} and not table.exact)
    ]
    if not matching:
        known = "; ".join(f"{name}: {', '.join(t.columns)}" for name, t in TABLES.items())
        raise InputError(
            f"{path}:1: expected JSON lines or a table of a benchmark ({known}), found the columns "
            f"{', '.join(header) or 'of nothing'}"
        )
    # The longest match: AdvBench's columns are a part of others'.
    suite = max(matching, key=lambda name: len(TABLES[name].columns))
    table = TABLES[suite]
    if table.named:
        kind = kind or _named_kind(path, suite)
    elif kind is not None:
        raise InputError(
            f"{path}: kind= is for tables of JailbreakBench and OR-Bench, and this is {suite}'s"
        )
    form = _form(text, written, table)
    behaviors, places = list[Behavior](), dict[str, int]()
    for line, row in by_column(path, found):
        values: dict[str, Any] = {field: row[column] for field, column in table.fields.items()}
        try:
            values |= table.behavior(row, kind)
        except InputError as error:
            raise InputError(f"{path}:{line}: {error}") from None
        if suite == "or_bench":
            values["id"] = f"{path.stem}-{len(behaviors) + 1}"
        values.setdefault("id", _content_id(suite, values["prompt"], places))
        metadata: dict[str, Any] = {"suite": suite}
        metadata |= {
            _key(name, table): cell
            for name, cell in row.items()
            if name not in table.fields.values()
        }
        if table.target:
            metadata["target"] = row[table.target]
        if form:
            metadata["csv"] = form
        behavior = Behavior(**values, metadata=metadata)
        if not behavior.prompt.strip() or not behavior.id.strip():
            raise InputError(f"{path}:{line}: the prompt or the id is empty; fill it in")
        if behavior.id in places:
            raise InputError(
                f"{path}:{line}: the id {behavior.id!r} stands in line {places[behavior.id]} "
                "already; ids tell behaviors apart"
            )
        places[behavior.id] = line
        behaviors.append(behavior)
    return behaviors


def write_behaviors(
    path: str | os.PathLike[str], behaviors: Sequence[Behavior], suite: str
) -> None:
    """Write behaviors as a suite's CSV table, atomically; what `read_table` read comes out again.

    A column of the suite that a behavior knows nothing of is left empty; ``metadata`` of strings
    becomes further columns where the behaviors come from that suite. Raises InputError for an
    unknown suite, and where a row would not read back as the behavior it is.
    """
    if suite not in TABLES:
        raise InputError(unknown("suite", suite, TABLES))
    table = TABLES[suite]
    own = [behavior for behavior in behaviors if behavior.metadata.get("suite") == suite]
    forms = [behavior.metadata.get("csv", {}) for behavior in own]
    form = forms[0] if forms and all(each == forms[0] for each in forms) else {}
    written = form.get("columns", table.columns)
    columns = [name.strip() for name in written]
    for behavior in own:
        for key, value in behavior.metadata.items():
            name = _column(key, table)
            if name is not None and isinstance(value, str) and name not in columns:
                columns.append(name)
    header = [*written, *columns[len(written) :]]
    rows: list[list[str]] = []
    for behavior in behaviors:
        row = dict.fromkeys(columns, "")
        for key, value in behavior.metadata.items():
            name = _column(key, table)
            if name in row:
                row[name] = str(value)
        if table.target and "target" in behavior.metadata:
            row[table.target] = str(behavior.metadata["target"])
        if suite == "jailbreakbench":
            row["Index"] = row["Index"] or behavior.id.removeprefix("jbb-").removeprefix("benign-")
        row |= {column: getattr(behavior, field) for field, column in table.fields.items()}
        rows.append(list(row.values()))
    out = io.StringIO(newline="")
    # A carriage return is quoted by nothing but quoting everything.
    returns = any("\r" in cell for row in [header, *rows] for cell in row)
    line_end = form.get("line_end", "\n")
    writer = csv.writer(
        out,
        lineterminator=line_end,
        quoting=csv.QUOTE_ALL if returns and line_end == "\n" else csv.QUOTE_MINIMAL,
    )
    writer.writerows([header, *rows])
    text = (MARK if form.get("mark") else "") + out.getvalue()
    if form.get("unended"):
        text = text.removesuffix(line_end)
    again = read_table(Path(path), text) if behaviors else []
    for ours, theirs in zip(behaviors, again, strict=True):
        if replace(ours, metadata={}, split="", expected="") != replace(theirs, metadata={}):
            raise InputError(
                f"{path}: behavior {ours.id!r} would read back as {theirs.id!r} ({theirs.kind}): "
                f"a {suite} table cannot say what it is; write JSON lines, or another table"
            )
    write_text_atomic(path, text)


def read_cells(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """The rows of CSV that are not empty, the header first, each with the line that it begins in.

    Raises InputError "file:line: …" for quotes that are not closed or stand where none may.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    # The limit is the process's: no cell is longer than the file, and others find it as it was.
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    found, begun = [], 1
    try:
        for cells in reader:
            if cells:
                found.append((begun, cells))
            begun = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{begun}: not CSV ({error}); mend the quotes") from None
    finally:
        csv.field_size_limit(limit)
    return found


def by_column(path: Path, found: Sequence[tuple[int, Sequence[str]]]) -> list[tuple[int, Row]]:
    """What `read_cells` found, without the header: each row's line, and its cells by column.

    Raises InputError "file:line: …" for a column that occurs twice and a row with too many or too
    few cells.
    """
    header = [name.strip() for name in found[0][1]] if found else []
    if len(set(header)) < len(header):
        raise InputError(f"{path}:1: a column occurs twice in {', '.join(header)}; rename one")
    for line, cells in found[1:]:
        if len(cells) != len(header):
            raise InputError(
                f"{path}:{line}: expected {len(header)} cells ({', '.join(header)}), "
                f"found {len(cells)}; quote commas and line ends"
            )
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in found[1:]]


def _named_kind(path: Path, suite: str) -> Kind:
    words = TABLES[suite].named
    kinds = {kind for word, kind in words.items() if word in path.name.lower()}
    if len(kinds) != 1:
        raise InputError(
            f"{path}: its name does not say whether its behaviors are harmful or benign, and "
            f"nothing in a table of {suite} does; put one of {', '.join(words)} into the name, or "
            "pass kind="
        )
    return kinds.pop()


def _form(text: str, written: Sequence[str], table: Table) -> dict[str, Any]:
    """How the file is written, where it is not as `write_behaviors` writes of its own accord."""
    found: dict[str, Any] = {}
    if text.startswith(MARK):
        found["mark"] = True
    if _first_row(text).endswith("\r\n"):
        found["line_end"] = "\r\n"
    if not text.endswith(("\n", "\r")):
        found["unended"] = True
    further = [name for name in written if name not in table.columns]
    if list(written) != [*table.columns, *further] or further != [n.strip() for n in further]:
        found["columns"] = list(written)
    return found


def _first_row(text: str) -> str:
    """The first row with its line end; a column's name may have a line break of its own."""
    lines = io.StringIO(text, newline="")
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        next(csv.reader(lines), None)
    finally:
        csv.field_size_limit(limit)
    return text[: lines.tell()]


def _content_id(suite: str, prompt: str, taken: Mapping[str, int]) -> str:
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    first = f"{suite}-{digest}"
    if first not in taken:
        return first
    again = (f"{first}-{number}" for number in itertools.count(2))
    return next(each for each in again if each not in taken)


def _key(column: str, table: Table) -> str:
    """The key of a column in the metadata of a behavior."""
    return PREFIX + column if column in _own_keys(table) or column.startswith(PREFIX) else column


def _column(key: str, table: Table) -> str | None:
    """The column of which `_key` is that; None for a key of our own."""
    return None if key in _own_keys(table) else key.removeprefix(PREFIX)


def _own_keys(table: Table) -> set[str]:
    # A "target" that is made of no other column is a column like any other.
    return {"suite", "csv"} | ({"target"} - {table.target} if table.target else set())
