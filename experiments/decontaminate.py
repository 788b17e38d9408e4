#!/usr/bin/env python3
"""Compare training instructions with evaluation prompts, and say which are too alike.

python experiments/decontaminate.py data/train.jsonl:instruction benchmark.csv:Goal
python experiments/decontaminate.py TRAINING:COLUMN EVALUATION:COLUMN \\
    --group Source --shingle 2 --similarity 0.5 --report report.json --clean clean.jsonl

Files are CSV, JSON lines or Parquet. ``--group`` counts the evaluation texts found by the values of
another of their columns. The rules are those of r2d_core/decontamination.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from r2d_core.decontamination import RULES, DecontaminationReport, Thresholds, compare
from r2d_core.errors import InputError


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
        evaluation, table = read_column(given.evaluation)
        report = compare(training, evaluation, thresholds)
        print(f"{len(training)} training texts, {len(evaluation)} evaluation texts")
        print(report.counts().to_string(index=False))
        if given.group:
            print(by_group(report, table, given.group).to_string(index=False))
        if given.report:
            report.save(given.report)
        if given.clean:
            write_table(rows.drop(index=rows.index[sorted(report.training)]), given.clean)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_column(place: str) -> tuple[list[str], pd.DataFrame]:
    """The texts of FILE:COLUMN, and the whole table."""
    file, _, column = place.rpartition(":")
    readers = {
        ".csv": lambda: pd.read_csv(file, dtype=str, keep_default_na=False),
        ".jsonl": lambda: pd.read_json(file, lines=True, dtype=False),
        ".parquet": lambda: pd.read_parquet(file),
    }
    suffix = Path(file).suffix
    if suffix not in readers:
        raise InputError(f"{place}: expected FILE:COLUMN, the file one of {', '.join(readers)}")
    try:
        table = readers[suffix]()
    except (OSError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise InputError(f"{file}: cannot be read ({type(error).__name__}: {said})") from None
    if column not in table:
        raise InputError(f"{file}: no column {column!r}; it has {', '.join(map(str, table))}")
    return [str(text) for text in table[column]], table


WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    ".csv": lambda table, place: table.to_csv(place, index=False),
    ".jsonl": lambda table, place: table.to_json(place, orient="records", lines=True),
    ".parquet": lambda table, place: table.to_parquet(place, index=False),
}


def check_place(file: str) -> None:
    if Path(file).suffix not in WRITERS:
        raise InputError(f"--clean {file}: expected one of {', '.join(WRITERS)}")
    if not Path(file).parent.is_dir():
        raise InputError(f"--clean {file}: there is no folder {Path(file).parent}; make it first")


def write_table(table: pd.DataFrame, file: str) -> None:
    """The table as CSV, JSON lines or Parquet, as the file's name says."""
    writing = Path(file).with_name(f".{Path(file).name}")
    WRITERS[Path(file).suffix](table, writing)
    writing.replace(file)


def by_group(report: DecontaminationReport, table: pd.DataFrame, column: str) -> pd.DataFrame:
    """How many evaluation texts of each group were found, by rule and by any."""
    if column not in table:
        raise InputError(f"--group: no column {column!r}; there are {', '.join(map(str, table))}")
    groups = table[column].tolist()
    rows = []
    for group, n in table[column].value_counts().items():
        row: dict[str, object] = {column: group, "texts": n}
        for rule in (*RULES, "any"):
            found = {m.evaluation for m in report.matches if rule == "any" or rule in m.rules}
            row[rule] = sum(groups[position] == group for position in found)
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    sys.exit(main())
