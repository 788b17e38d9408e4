"""Copy what an experiment found into the book's sources, to be committed: `make full` ends with it.

    python experiments/publish.py --experiment full
    python experiments/publish.py --reword    # what is computed from the outcomes, anew

The full grid takes too long for everybody to run; the book shows its tables and figures from
``book/full/`` (another experiment's: ``book/<its name>/``, for a page that includes them: see
`build_book.py`) with the provenance they were made with, the grid itself (``grid.yaml``), every
cell of it, unpooled (``cells.csv``), how every completion was judged (``outcomes.csv.gz``) and, of
several languages, what holds over them (``differences*``).
Results of uncommitted code are refused: nobody could make them again.

Exit status: 0 done, 2 refused.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd

from r2d_core.errors import InputError
from r2d_core.metrics import wilson_interval
from r2d_core.plots import difference_intervals, outcome_bars, over_refusal_vs_asr
from r2d_core.records import atomic_directory, read_json, write_text_atomic
from r2d_core.toy.evaluation import LOOK_ALIKES
from r2d_core.toy.field import recount
from r2d_core.toy.findings import findings, rates, tokens_spent, told_in_full
from r2d_core.toy.judge import LABELS
from r2d_core.toy.languages import (
    CONTROLS,
    by_language,
    comparable,
    every_difference,
    in_words,
    over_languages,
)
from r2d_core.toy.outcomes import packed
from r2d_core.toy.results import Results, judged_of, read_published

ROOT = Path(__file__).resolve().parents[1]
KEPT = {
    "results": (
        "main_figure.svg",
        "new_topics.svg",
        "asr_intervals.svg",
        "results.json",
    ),
    "ablations": ("ablation_intervals.svg", "ablations.csv"),
}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="publish.py", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--experiment", help="a name in results/")
    what.add_argument(
        "--reword", action="store_true", help="write what the published outcomes say anew"
    )
    options = parser.parse_args(arguments)
    try:
        if options.reword:
            kept = sorted((ROOT / "book").glob("*/outcomes.csv.gz"))
            if not kept:
                raise InputError(
                    f"{ROOT / 'book'}: no */outcomes.csv.gz; publish an experiment first"
                )
            for outcomes in kept:
                reword(outcomes.parent)
                print(f"book/{outcomes.parent.name}: tables and sentences, from its outcomes")
            for outcomes in sorted((ROOT / "book").glob("*/field_outcomes.csv.gz")):
                recount(outcomes.parent)
                print(f"book/{outcomes.parent.name}: counts and tests, from its outcomes")
            return 0
        name = options.experiment
        grid = ROOT / "experiments" / f"{name}.yaml"
        files = publish(ROOT / "results" / name, grid, ROOT / "book" / name)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"book/{name}: {len(files)} files of results/{name}; commit them")
    return 0


def publish(results: Path, grid: Path, target: Path) -> list[Path]:
    """Copy the files of ``KEPT`` and the grid to ``target``, write cells and outcomes, all or none.

    Returns the files in ``target``, which holds nothing else then: InputError where it holds
    something that is no published experiment.
    """
    if target.exists() and any(target.iterdir()) and not (target / "results.json").is_file():
        raise InputError(f"{target}: no published experiment; give the experiment another name")
    sources = [results / folder / name for folder, names in KEPT.items() for name in names]
    for file in sources:
        if not file.is_file():
            raise InputError(f"{file}: no such file; finish the experiment first")
    record = read_json(results / "results" / "results.json")
    if record["dirty"] is not False:
        raise InputError(
            f"{results}: made from uncommitted or unknown code (commit {record['commit']}); "
            "commit, then run the experiment again"
        )
    table = cells(results)
    attacks, benign = judged_of(results)
    judged = pd.concat([attacks.assign(part="attack"), benign.assign(part="benign")])
    with atomic_directory(target) as folder:
        for file in sources:
            shutil.copyfile(file, Path(folder) / file.name)
        shutil.copyfile(grid, Path(folder) / "grid.yaml")
        table.to_csv(Path(folder) / "cells.csv", index=False)
        (Path(folder) / "outcomes.csv.gz").write_bytes(packed(judged))
        reword(Path(folder))
    return sorted(target.iterdir())


def reword(target: Path) -> None:
    """Write what is computed from the published outcomes anew: sentences, tables, tests, and the
    figures of differences, of labels and of over-refusal.

    The numbers stay those of the run that ``results.json`` records; what is said of them, and with
    which intervals, is as the code says it now.
    """
    published = read_published(target)
    texts = {
        "findings.md": findings(published),
        "tokens.csv": tokens_spent(published).to_csv(),
        "paired_tests.csv": published.compare("r2d").to_csv(index=False),
        "asr.csv": rates(published.attacks, "harmful", "whole").to_csv(),
        "benign_correct.csv": rates(published.benign, "correct", "answer").to_csv(),
        "benign_refused.csv": rates(published.benign, "refused", "answer").to_csv(),
        **figures(published),
        **differences(published),
    }
    told = told_in_full(published)
    if not told.empty:
        texts["told.csv"] = told.to_csv()
    for name, text in texts.items():
        write_text_atomic(target / name, text)


def figures(published: Results) -> dict[str, str]:
    """How the responses to each attack were labelled, and over-refusal against attack success."""
    made = {
        "outcome_bars.svg": outcome_bars(
            published.attacks,
            alt="Stacked bars, a panel an attack: the shares of harmful, refused, correct and "
            "garbled responses of each method.",
        )
    }
    if published.common_attacks:
        common = published.attacks["attack"].isin(published.common_attacks)
        made["over_refusal.svg"] = over_refusal_vs_asr(
            published.attacks[common],
            published.benign[published.benign["attack"].isin(LOOK_ALIKES)],
            alt="Each method's attack success rate against its refusals of harmless look-alikes, "
            "with 95% intervals; bottom left is best.",
        )
    return {name: figure.markup for name, figure in made.items()}


def differences(published: Results) -> dict[str, str]:
    """Files, by name, of R2D against the others with a language for one draw.

    None where there is one language, or nothing beside R2D that was trained. Else
    ``differences.csv`` and ``differences_by_language.csv`` (`over_languages`, `by_language`), the
    sentences and the figure of them.
    """
    if not comparable(published):
        return {}
    table, single = over_languages(published), by_language(published)
    said, every = in_words(table), every_difference(table)
    control, others = CONTROLS
    if {control, *others} <= set(published.methods):
        alone = over_languages(published, control, others)
        said += in_words(alone, control)
        every += every_difference(alone, control).split("\n", 2)[2]  # without its head
    figure = difference_intervals(
        table,
        single,
        alt="Forest plots, a panel an outcome: how far R2D's rate is from each other method's, "
        "with 95% intervals over languages and a marker for each language.",
    )
    return {
        "differences.csv": table.assign(**_shares(table)).to_csv(index=False, float_format="%.6g"),
        "differences_by_language.csv": single.assign(**_shares(single)).to_csv(index=False),
        "differences.md": f"{said}\n:::{{dropdown}} Every difference\n{every}:::\n",
        "differences.svg": figure.markup,
    }


def _shares(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The shares among the columns, to six digits, and no zero with a sign."""
    names = (
        "reference",
        "other",
        "reference_refused",
        "other_refused",
        "difference",
        "low",
        "high",
    )
    shares = [name for name in names if name in table]
    return {name: table[name].round(6) + 0.0 for name in shares}


def cells(results: Path) -> pd.DataFrame:
    """Every cell of an experiment, pooled over nothing: method × seeds × attack × split × scope.

    The columns of the evaluations' ``table.csv``, and Wilson's 95% interval of each label's rate as
    ``<label>_low`` and ``<label>_high``; ``part`` is "attack" or "benign".
    """
    parts = {"attack": "base*/*/attacks/table.csv", "benign": "base*/utility/table.csv"}
    tables = []
    for part, pattern in parts.items():
        files = sorted(results.glob(pattern))
        if not files:
            raise InputError(f"{results}: no {pattern}; finish the experiment first")
        tables += [pd.read_csv(file).assign(part=part) for file in files]
    table = pd.concat(tables, ignore_index=True)
    for label in LABELS:
        bounds = [wilson_interval(*counts) for counts in zip(table[label], table["n"], strict=True)]
        table[[f"{label}_low", f"{label}_high"]] = pd.DataFrame(bounds).round(4)
    return table[["part", *table.columns.drop("part")]]


if __name__ == "__main__":
    sys.exit(main())
