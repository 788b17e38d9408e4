"""An experiment's results as tables: read what the evaluations left, compare methods in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from r2d_core.errors import InputError
from r2d_core.metrics import Rate, holm, pooled_rate
from r2d_core.records import read_json
from r2d_core.toy.arms import METHODS
from r2d_core.toy.judge import LABELS
from r2d_core.toy.measure import KEYS, Measurement, paired_tests, read_measurement


@dataclass(frozen=True)
class Results:
    """All cells of an experiment.

    Attributes:
        attacks, benign: the ``table.csv`` of all evaluations, one below the other.
        runs: method -> (base seed, safety seed) -> its attack measurement.
        training: one row a trained model: method, base_seed, seed, steps, seconds and metrics.
    """

    attacks: pd.DataFrame
    benign: pd.DataFrame
    runs: dict[str, dict[tuple[int, int], Measurement]]
    training: pd.DataFrame

    @property
    def methods(self) -> list[str]:
        """The methods that were measured, in the book's order."""
        return [m for m in METHODS if m in self.runs]

    @property
    def common_attacks(self) -> list[str]:
        """The attacks that all methods met, the direct request, which is none, left out."""
        met = self.attacks.groupby("attack", sort=False)["method"].nunique()
        every = [str(attack) for attack, n in met.items() if n == len(self.runs)]
        return [attack for attack in every if attack != "direct"]

    def rate(
        self,
        method: str,
        label: str = "harmful",
        *,
        attacks: list[str] | None = None,
        benign: bool = False,
        scope: str = "whole",
    ) -> Rate:
        """A method's pooled rate of a label, over the attacks (or benign categories) named."""
        table = self.benign if benign else self.attacks
        chosen = table[(table["method"] == method) & (table["scope"] == scope)]
        if attacks is not None:
            chosen = chosen[chosen["attack"].isin(attacks)]
        return pooled_rate(chosen, label)

    def compare(self, reference: str) -> pd.DataFrame:
        """Paired McNemar tests of ``reference`` against all others, Holm-corrected as one family.

        Columns as `paired_tests`, and ``p_holm``.
        """
        if reference not in self.runs:
            raise InputError(f"the experiment has no method {reference!r}; it has {self.methods}")
        tests = paired_tests(self.runs, reference)
        return tests.assign(p_holm=holm(list(tests["p_value"])))


@dataclass(frozen=True)
class PublishedResults(Results):
    """Results of which only the cells and R2D's paired tests were kept, not every response."""

    tests: pd.DataFrame

    def compare(self, reference: str) -> pd.DataFrame:
        """The tests that were kept: R2D's."""
        if reference != "r2d":
            raise InputError(f"only the paired tests of 'r2d' were published, not {reference!r}")
        return self.tests


def read_published(folder: str | Path) -> PublishedResults:
    """Read ``cells.csv`` and ``paired_tests.csv`` as `experiments/publish.py` leaves them."""
    cells = _table(Path(folder) / "cells.csv", ("part", *KEYS, "n", *LABELS))
    attacks, benign = (cells[cells["part"] == part] for part in ("attack", "benign"))
    runs: dict[str, dict[tuple[int, int], Measurement]] = {m: {} for m in attacks["method"]}
    told = ("attack", "method", "only_reference", "only_method", "runs_worse", "p_holm")
    tests = _table(Path(folder) / "paired_tests.csv", told)
    return PublishedResults(attacks, benign, runs, pd.DataFrame(), tests)


def read_results(experiment_dir: str | Path) -> Results:
    """Read base<b>/<method>/{attacks,training} and base<b>/utility below an experiment's folder."""
    root = Path(experiment_dir)
    attacked = sorted(root.glob("base*/*/attacks/table.csv"))
    asked = sorted(root.glob("base*/utility/table.csv"))
    if not attacked or not asked:
        raise InputError(
            f"{str(root)!r} holds no results (base*/<method>/attacks/table.csv and base*/utility/"
            "table.csv were expected); run the experiment, or correct experiment_dir"
        )
    tables = [_table(path) for path in attacked]
    runs: dict[str, dict[tuple[int, int], Measurement]] = {}
    for path, table in zip(attacked, tables, strict=True):
        method, base_seed = str(table["method"].iloc[0]), int(table["base_seed"].iloc[0])
        for seed in sorted(table["seed"].unique()):
            run = read_measurement(path.parent / f"seed{seed}", {})
            runs.setdefault(method, {})[base_seed, int(seed)] = run
    training = []
    for path in sorted(root.glob("base*/*/training/seed*/training.json")):
        record = read_json(path)
        try:
            told = {"steps": record["steps"], "seconds": record["seconds"], **record["metrics"]}
        except (KeyError, TypeError):
            raise InputError(
                f"{path}: not the record of a training run; remove it to train again"
            ) from None
        training.append(
            {
                "method": path.parents[2].name,
                "base_seed": int(path.parents[3].name.removeprefix("base")),
                "seed": int(path.parent.name.removeprefix("seed")),
                **told,
            }
        )
    return Results(
        pd.concat(tables, ignore_index=True),
        pd.concat([_table(path) for path in asked], ignore_index=True),
        runs,
        pd.DataFrame(training),
    )


def _table(path: Path, needed: Sequence[str] = (*KEYS, "n", *LABELS)) -> pd.DataFrame:
    """A table such as an evaluation's, InputError where rows or parts of them are missing."""
    try:
        table = pd.read_csv(path)
    except ValueError as error:  # pandas' own are
        said = " ".join(str(error).split())
        raise InputError(f"{path}: not a table ({said}); run again what writes it") from None
    if missing := [name for name in needed if name not in table]:
        raise InputError(
            f"{path}: expected a table with the column {missing[0]!r}; run again what writes it"
        )
    for line, whole in enumerate(table[list(needed)].notna().all(axis=1), start=2):
        if not whole:
            raise InputError(f"{path}:{line}: a value is missing; run again what writes it")
    return table
