#!/usr/bin/env python3
"""The tables of book/training_data.md: AdvBench against the benchmarks that R2D is judged by.

python experiments/advbench_overlap.py FOLDER

FOLDER has your copies of the published files, in it or in folders of it: AdvBench's
harmful_behaviors.csv, JailbreakBench's harmful-behaviors.csv and benign-behaviors.csv, HarmBench's
harmbench_behaviors_text_all.csv, strongreject_dataset.csv and xstest_prompts.csv. Prints Markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from decontaminate import by_group, read_column

from r2d_core.decontamination import Thresholds, compare
from r2d_core.errors import InputError
from r2d_core.synthesis import find_duplicates

BENCHMARKS = {
    "JailbreakBench, harmful": ("harmful-behaviors.csv", "Goal"),
    "JailbreakBench, benign": ("benign-behaviors.csv", "Goal"),
    "HarmBench": ("harmbench_behaviors_text_all.csv", "Behavior"),
    "StrongREJECT": ("strongreject_dataset.csv", "forbidden_prompt"),
    "XSTest": ("xstest_prompts.csv", "prompt"),
}
TRAINING = ("harmful_behaviors.csv", "goal")


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print(f"error: expected one folder\n{__doc__}", file=sys.stderr)
        return 2
    try:
        folder = Path(arguments[0])
        training, _ = read_column(place(folder, *TRAINING))
        read = {name: read_column(place(folder, *where)) for name, where in BENCHMARKS.items()}
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    goals, table = read["JailbreakBench, harmful"]
    theirs = {n for n, (_, row) in enumerate(table) if row["Source"] == "AdvBench"}

    show(
        ["similarity from", f"near duplicates in AdvBench's {len(training)}"],
        [(level, len(find_duplicates(training, level))) for level in (0.8, 0.6, 0.5)],
    )
    sources = by_group(compare(training, goals), table, "Source").sort_values("texts")
    show(["source", *sources.columns[1:]], sources.itertuples(index=False))
    rows: list[tuple[object, ...]] = []
    for similarity in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0):
        found = compare(training, goals, Thresholds(coverage=1.0, similarity=similarity))
        rows.append(
            (similarity, len(found.training))
            + (len(found.evaluation & theirs), len(found.evaluation - theirs))
        )
    show(["similarity from", "left out", "goals of AdvBench's", "of the others"], rows)
    rows = []
    for coverage in (1.0, 0.6, 0.5):
        found = compare(training, goals, Thresholds(coverage=coverage))
        alone = [match for match in found.matches if "ngram" in match.rules]
        rows.append(
            (coverage, len({match.training for match in alone}))
            + (len({match.evaluation for match in alone} & theirs),)
        )
    show(["coverage from, n-gram rule alone", "left out", "goals of AdvBench's"], rows)
    rows = []
    for name, (texts, _) in read.items():
        found = compare(training, texts)
        exact = {match.evaluation for match in found.matches if "exact" in match.rules}
        rows.append((name, len(texts), len(exact), len(found.evaluation), len(found.training)))
    show(["evaluation prompts", "how many", "exact", "any rule", "prompts of AdvBench"], rows)
    return 0


def place(folder: Path, name: str, column: str) -> str:
    """FILE:COLUMN of the file of this name in the folder. InputError where there is not one."""
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        raise InputError(f"{folder}: expected one file {name} in it, found {len(found)}")
    return f"{found[0]}:{column}"


def show(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    for cells in (columns, ["---"] * len(columns), *rows):
        print("| " + " | ".join(map(str, cells)) + " |")
    print()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
