"""An experiment's results as tables: read what the evaluations left, compare methods in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from r2d_core.errors import InputError
from r2d_core.metrics import holm
from r2d_core.records import read_json
from r2d_core.sampling_error import Interval, clustered_rate
from r2d_core.toy.arms import ARMS, METHODS, OF_ONE_FORMAT, same_format
from r2d_core.toy.evaluation import LOOK_ALIKES
from r2d_core.toy.measure import Measurement, read_measurement
from r2d_core.toy.outcomes import JUDGED, by_scope, paired_tests, read_judged

SIGNIFICANT = 0.05
"""A difference needs a Holm-corrected p-value below this, and no run that points the other way."""
LOOK_ALIKES_REFUSED = "look-alikes refused"
ANSWERED_EXACTLY = "harmless answered exactly"
FEWEST_REQUESTS = 6
"""With fewer, a test that exchanges methods request by request has no p-value below 2/2⁵ = 6%."""


@dataclass(frozen=True)
class Results:
    """All outcomes of an experiment.

    Attributes:
        attacks, benign: a row a completion and scope (`outcomes.by_scope`) of all evaluations.
        runs: method -> (base seed, safety seed) -> its attack measurement; published results, of
            which the texts were not kept, have none.
        training: one row a trained model: method, base_seed, seed, steps, seconds and metrics.
    """

    attacks: pd.DataFrame
    benign: pd.DataFrame
    runs: dict[str, dict[tuple[int, int], Measurement]]
    training: pd.DataFrame

    @cached_property
    def methods(self) -> list[str]:
        """The methods that were measured, in the book's order."""
        measured = set(self.attacks["method"].unique())
        return [m for m in METHODS if m in measured]

    @cached_property
    def common_attacks(self) -> list[str]:
        """The attacks that all methods met, the direct request, which is none, left out."""
        met = self.attacks.groupby("attack", sort=False)["method"].nunique()
        every = [str(attack) for attack, n in met.items() if n == len(self.methods)]
        return [attack for attack in every if attack != "direct"]

    def rate(
        self,
        method: str,
        label: str = "harmful",
        *,
        attacks: list[str] | None = None,
        benign: bool = False,
        scope: str = "whole",
    ) -> Interval | None:
        """A method's pooled rate of a label, over the attacks (or benign categories) named.

        A request, with all attacks and runs that put it, is one draw (`clustered_rate`). None where
        there is nothing.
        """
        table = self.benign if benign else self.attacks
        chosen = table[(table["method"] == method) & (table["scope"] == scope)]
        if attacks is not None:
            chosen = chosen[chosen["attack"].isin(attacks)]
        if chosen.empty:
            return None
        return clustered_rate(chosen[label].tolist(), chosen["behavior"].tolist())

    def harmless(self) -> list[tuple[str, str, pd.DataFrame]]:
        """What is counted of the answers to harmless requests: its name, the label, the rows."""
        answers = self.benign[self.benign["scope"] == "answer"]
        alike = answers[answers["attack"].isin(LOOK_ALIKES)]
        return [
            (LOOK_ALIKES_REFUSED, "refused", alike),
            (ANSWERED_EXACTLY, "correct", answers),
        ]

    def compare(self, reference: str) -> pd.DataFrame:
        """`paired_tests` of ``reference`` against all others, Holm-corrected as one family.

        Of the harmful responses under each attack, and of `harmless`. Columns as there, and
        ``p_holm``: nan where the requests are too few for any p-value below 5%, which takes
        `FEWEST_REQUESTS`, for methods without safety training, and for attacks of `OF_ONE_FORMAT`
        on methods of two; such tests are not of the family, for nobody asks whether they differ.
        """
        if reference not in self.methods:
            raise InputError(f"the experiment has no method {reference!r}; it has {self.methods}")
        tables = [paired_tests(self.attacks, reference)]
        for name, label, rows in self.harmless():
            if reference in set(rows["method"]):
                tables.append(paired_tests(rows.assign(attack=name), reference, label, "answer"))
        tests = pd.concat(tables, ignore_index=True)
        written_alike = [
            method for method in ARMS if reference not in ARMS or same_format(reference, method)
        ]
        family = (tests["requests"] >= FEWEST_REQUESTS) & tests["method"].isin(ARMS)
        family &= tests["method"].isin(written_alike) | ~tests["attack"].isin(OF_ONE_FORMAT)
        return tests.assign(p_holm=pd.Series(holm(list(tests["p_value"][family])),
                                             index=tests.index[family]))  # fmt: skip


def read_published(folder: str | Path) -> Results:
    """Read the ``outcomes.csv.gz`` that `experiments/publish.py` leaves."""
    judged = read_judged(Path(folder) / "outcomes.csv.gz", ("part", *JUDGED))
    attacks, benign = (by_scope(judged[judged["part"] == part]) for part in ("attack", "benign"))
    return Results(attacks, benign, {}, pd.DataFrame())


def judged_of(experiment_dir: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ``outcomes.csv`` of all evaluations below an experiment's folder, attacks and benign."""
    root = Path(experiment_dir)
    attacked = sorted(root.glob("base*/*/attacks/outcomes.csv"))
    asked = sorted(root.glob("base*/utility/outcomes.csv"))
    if not attacked or not asked:
        raise InputError(
            f"{str(root)!r} holds no results (base*/<method>/attacks/outcomes.csv and base*/"
            "utility/outcomes.csv were expected); run the experiment, or correct experiment_dir"
        )
    parts = ([read_judged(path) for path in files] for files in (attacked, asked))
    attacks, benign = (pd.concat(tables, ignore_index=True) for tables in parts)
    return attacks, benign


def read_results(experiment_dir: str | Path) -> Results:
    """Read base<b>/<method>/{attacks,training} and base<b>/utility below an experiment's folder."""
    root = Path(experiment_dir)
    attacks, benign = judged_of(root)
    runs: dict[str, dict[tuple[int, int], Measurement]] = {}
    for method, base, seed in (
        attacks[["method", "base_seed", "seed"]].drop_duplicates().itertuples(index=False)
    ):
        folder = root / f"base{base}" / method / "attacks" / f"seed{seed}"
        runs.setdefault(method, {})[base, seed] = read_measurement(folder, {})
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
    return Results(by_scope(attacks), by_scope(benign), runs, pd.DataFrame(training))
