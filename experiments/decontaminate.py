#!/usr/bin/env python3
"""Compare training instructions with evaluation prompts, and say which are too alike.

python experiments/decontaminate.py data/train.jsonl:instruction benchmark.csv:Goal
python experiments/decontaminate.py TRAINING:COLUMN EVALUATION:COLUMN \\
    --group Source --shingle 2 --similarity 0.5 --report report.json --clean clean.jsonl

Files are CSV, JSON lines or Parquet. ``--group`` counts the evaluation texts found by the values of
another of their columns. ``--clean`` writes rows as they stand in the training file, or in another
format where its name ends so. The rules are those of r2d_core/decontamination.py.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
from pyarrow import parquet

from r2d_core.dataset_rows import rows_of
from r2d_core.decontamination import RULES, DecontaminationReport, Thresholds, compare
from r2d_core.errors import InputError
from r2d_core.records import read_text, write_bytes_atomic
from r2d_core.records.tables import by_column, read_cells

FORMATS = (".csv", ".jsonl", ".parquet")
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("training", help="FILE:COLUMN")
    parser.add_argument("evaluation", help="FILE:COLUMN")
    parser.add_argument("--group", metavar="COLUMN", help="count by this column of the evaluation")
    parser.add_argument("--clean", metavar="FILE", help="write the training rows that match none")
    parser.add_argument("--report", metavar="FILE", help="write all pairs, as JSON")
    defaults = Thresholds()
    parser.add_argument("--ngram", type=int, default=defaults.ngram)
    parser.add_argument("--coverage", type=float, default=defaults.coverage)
    parser.add_argument("--shingle", type=int, default=defaults.shingle)
    parser.add_argument("--similarity", type=float, default=defaults.similarity)
    given = parser.parse_args()
    try:
        if given.clean:
            check_place(given.clean)  # before the comparison, which takes a while
        thresholds = Thresholds(given.ngram, given.coverage, given.shingle, given.similarity)
        training, rows = read_column(given.training)
        evaluation, asked = read_column(given.evaluation)
        report = compare(training, evaluation, thresholds)
        print(f"{len(training)} training texts, {len(evaluation)} evaluation texts")
        print(report.counts().to_string(index=False))
        if given.group:
            print(by_group(report, asked, given.group).to_string(index=False))
        if given.report:
            report.save(given.report)
        if given.clean:
            file = given.training.rpartition(":")[0]
            write_clean(given.clean, file, rows, report.clean(range(len(rows))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_rows(file: str) -> list[tuple[str, Row]]:
    """The rows of a file, each with its place, "file:line" (of Parquet "file:number")."""
    path = Path(file)
    if path.suffix not in FORMATS:
        raise InputError(f"{file}: expected FILE:COLUMN, the file one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{file}: no such file")
    if path.suffix == ".csv":
        found = by_column(path, read_cells(path, read_text(path, "a table")))
        return [(f"{file}:{line}", dict(row)) for line, row in found]
    rows = []
    for place, row in rows_of(file, "train", None)():
        if not isinstance(row, dict):
            raise InputError(f"{place}: {row}")
        rows.append((place, row))
    return rows


def read_column(place: str) -> tuple[list[str], list[tuple[str, Row]]]:
    """The texts of FILE:COLUMN, and all rows."""
    file, _, column = place.rpartition(":")
    rows = read_rows(file)
    if not rows:
        raise InputError(f"{file}: no rows")
    for line, row in rows:
        if column not in row:
            raise InputError(f"{line}: no column {column!r}; it has {', '.join(row)}")
        if not isinstance(row[column], str):
            raise InputError(f"{line}: {column}: expected text, got {type(row[column]).__name__}")
    return [row[column] for _, row in rows], rows


def check_place(file: str) -> None:
    if Path(file).suffix not in FORMATS:
        raise InputError(f"--clean {file}: expected one of {', '.join(FORMATS)}")
    if not Path(file).parent.is_dir():
        raise InputError(f"--clean {file}: there is no folder {Path(file).parent}; make it first")


def as_they_stand(file: Path, places: Sequence[str], kept: Sequence[int]) -> bytes:
    """The file with some of its rows, those as they are: lines to the byte, Parquet with its types.

    A row of lines ends where the next begins.
    """
    if file.suffix == ".parquet":
        table, out = parquet.ParquetFile(file).read(), io.BytesIO()
        parquet.write_table(table.take(pyarrow.array(kept, pyarrow.int64())), out)
        return out.getvalue()
    line_ends = "" if file.suffix == ".csv" else "\n"
    lines = list(io.StringIO(file.read_bytes().decode("utf-8"), newline=line_ends))
    begins = [int(place.rpartition(":")[2]) - 1 for place in places]
    ends = [*begins[1:], len(lines)]
    parts = [lines[: begins[0]], *(lines[begins[row] : ends[row]] for row in kept)]
    return "".join(line for part in parts for line in part).encode("utf-8")


def converted(rows: Sequence[Row], suffix: str) -> bytes:
    """The rows in another format than theirs; a column that a row has not is empty there."""
    if suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
        return "".join(line + "\n" for line in lines).encode("utf-8")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode("utf-8")
    out = io.BytesIO()
    table = {name: [row.get(name) for row in rows] for name in columns}
    parquet.write_table(pyarrow.table(table), out)
    return out.getvalue()


def write_clean(
    file: str, training: str, rows: Sequence[tuple[str, Row]], kept: Sequence[int]
) -> None:
    """Some rows of the training file as CSV, JSON lines or Parquet, as the file's name says."""
    if Path(file).suffix == Path(training).suffix:
        content = as_they_stand(Path(training), [place for place, _ in rows], kept)
    else:
        try:
            content = converted([rows[number][1] for number in kept], Path(file).suffix)
        except (TypeError, ValueError, OverflowError, pyarrow.ArrowException) as error:
            raise InputError(
                f"--clean {file}: a value cannot be written so ({error}); let the name end in "
                f"{Path(training).suffix}, as that of the training file does"
            ) from None
    write_bytes_atomic(Path(file), content)


def by_group(
    report: DecontaminationReport, rows: Sequence[tuple[str, Row]], column: str
) -> pd.DataFrame:
    """How many evaluation texts of each group were found, by rule and by any."""
    if not all(column in row for _, row in rows):
        known = ", ".join(dict.fromkeys(name for _, row in rows for name in row))
        raise InputError(f"--group: no column {column!r} in every row; there are {known}")
    groups = [str(row[column]) for _, row in rows]
    table = []
    for group, n in Counter(groups).most_common():
        counted: dict[str, object] = {column: group, "texts": n}
        for rule in (*RULES, "any"):
            found = {m.evaluation for m in report.matches if rule == "any" or rule in m.rules}
            counted[rule] = sum(groups[position] == group for position in found)
        table.append(counted)
    return pd.DataFrame(table)


if __name__ == "__main__":
    sys.exit(main())
