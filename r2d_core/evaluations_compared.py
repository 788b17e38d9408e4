"""Finished evaluations side by side: models and defences under attacks, over seeds, and tests.

`evaluation_tables` leaves every outcome in a folder; here the folders are read, and nothing else.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from r2d_core.errors import InputError
from r2d_core.evaluation_tables import Run
from r2d_core.judges import JUDGES
from r2d_core.metrics import Rate, as_columns, holm
from r2d_core.records import write_text_atomic
from r2d_core.sampling_error import mean_over_seeds, paired_change, rate_over_behaviors

CELL = ["measure", "judge", "attack", "kind"]
"""What is compared: a measure of a judge, under one attack, of one kind of request."""


@dataclass(frozen=True)
class Comparison:
    """What `compare_evaluations` finds.

    Attributes:
        rates: a row for each of `CELL` and each model with its defence. Columns: those, ``model``,
            ``seeds`` (how many runs), ``rate`` (of all runs; a request with all of its completions
            in all of them is one draw) and ``over seeds`` (`mean_over_seeds`; None of one run).
        differences: a row for each of `CELL` and each pair of models, on the requests that both
            were asked. Columns: those, ``a``, ``b``, ``requests``, ``only a`` and ``only b`` (pairs
            of outcomes of which one alone is true), ``p`` (`paired_permutation`) and ``p Holm``,
            corrected for all rows. Of a judge that tells success, refusals of harmful requests are
            not tested besides: it would be the same question twice.
    """

    rates: pd.DataFrame
    differences: pd.DataFrame

    def write(self, folder: str | Path) -> None:
        """As ``compared.csv`` and ``differences.csv``."""
        rates = as_columns(self.rates, rates=["rate"], means=["over seeds"])
        for name, table in (("compared", rates), ("differences", self.differences)):
            flat = table.rename(columns=lambda column: str(column).replace(" ", "_"))
            write_text_atomic(Path(folder) / f"{name}.csv", flat.to_csv(index=False))


def compare_evaluations(folders: Sequence[str | Path]) -> Comparison:
    """The outcomes of finished evaluations (chapter 15's folders), of the whole response.

    Evaluations of one model and defence that differ in the seed are runs of it. Where two would be
    the same run, they are told apart by their folders. A request is the same where its id and text
    are; runs are paired by the order of their seeds. What a judge said that cannot be read is in no
    rate and no pair.

    Raises InputError for a folder that is none, a folder given twice, and where judges of one name
    asked different models or answers were of different lengths at most: those are not comparable.
    """
    places = [Path(folder).resolve() for folder in folders]
    for place, n in Counter(places).items():
        if n > 1:
            raise InputError(f"{place}: is given {n} times; give each evaluation once")
    runs = [Run.read(folder) for folder in folders]
    _check_comparable(folders, runs)
    names = [
        ", ".join(filter(None, (run.model, run.defense))) or str(folder)
        for run, folder in zip(runs, folders, strict=True)
    ]
    times = Counter(zip(names, (run.seed for run in runs), strict=True))
    twice = {name for (name, _), n in times.items() if n > 1}
    tables = []
    for name, run, folder in zip(names, runs, folders, strict=True):
        label = f"{name} ({folder})" if name in twice else name
        tables.append(_outcomes(folder).assign(model=label, seed=run.seed))
    told = pd.concat(tables, ignore_index=True)
    return Comparison(_rates(told), _differences(told))


def _outcomes(folder: str | Path) -> pd.DataFrame:
    path = Path(folder) / "outcomes.csv"
    try:
        # As text: an id that reads as a number, or as none, is an id.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        told = table["outcome"].where(table["outcome"] != "", None)
        table["outcome"] = pd.to_numeric(told).astype("Int64")
        table = table[table["scope"] == "whole"]
        return table[[*CELL, "behavior", "request", "outcome"]]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the evaluation again") from None
    except (ValueError, KeyError) as error:  # pandas' errors of reading are ValueErrors
        said = " ".join(str(error).split())
        raise InputError(f"{path}: not what an evaluation writes ({said}); run it again") from None


def _check_comparable(folders: Sequence[str | Path], runs: Sequence[Run]) -> None:
    seen: dict[str, tuple[object, str | Path]] = {}
    for folder, run in zip(folders, runs, strict=True):
        asked = {f"judge {judge!r} asks": model for judge, model in run.judges.items()}
        for what, value in {**asked, "max_new_tokens is": run.max_new_tokens}.items():
            if value is None:  # of somebody's file: not known
                continue
            other, where = seen.setdefault(what, (value, folder))
            if other != value:
                raise InputError(
                    f"{folder}: {what} {value}, and in {where} it is {other}; evaluate both alike"
                )


def _rates(told: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for key, some in told.groupby([*CELL, "model"], sort=False):
        read = some[some["outcome"].notna()]
        by_seed = [_rate(of_seed) for _, of_seed in read.groupby("seed")]
        over = mean_over_seeds(by_seed) if len(by_seed) > 1 else None
        rows.append((*key, some["seed"].nunique(), _rate(read), over))
    frame = pd.DataFrame(rows, columns=[*CELL, "model", "seeds", "rate", "over seeds"])
    return frame.sort_values(CELL, key=_as_they_come, kind="stable", ignore_index=True)


def _as_they_come(column: pd.Series) -> pd.Series:
    order = {value: place for place, value in enumerate(dict.fromkeys(column))}
    return column.map(order)


def _rate(some: pd.DataFrame) -> Rate:
    outcomes = [bool(outcome) for outcome in some["outcome"]]
    return rate_over_behaviors(outcomes, some["behavior"].tolist())


def _differences(told: pd.DataFrame) -> pd.DataFrame:
    told = told.assign(
        run=told.groupby("model")["seed"].rank("dense"),
        number=told.groupby([*CELL, "model", "seed", "behavior"]).cumcount(),
    )
    # Of the exact judge it is another question: harm may have turned into garbled text.
    success = told[(told["measure"] == "success") & told["judge"].isin(list(JUDGES))]
    asked_already = {("refusal", *key) for key in success[CELL[1:]].itertuples(index=False)}
    rows = []
    for key, cell in told.groupby(CELL, sort=False):
        if key in asked_already:
            continue
        of_model = dict(tuple(cell.groupby("model", sort=False)))
        for first, second in itertools.combinations(of_model, 2):
            pairs = of_model[first].merge(
                of_model[second], on=["behavior", "request", "run", "number"], suffixes=("_a", "_b")
            )
            pairs = pairs[pairs["outcome_a"].notna() & pairs["outcome_b"].notna()]
            if pairs.empty:
                continue
            a, b = ([bool(each) for each in pairs[f"outcome_{end}"]] for end in "ab")
            change = paired_change(a, b, pairs["behavior"].tolist(), pairs["run"].tolist())
            counts = (change.requests, change.only_a, change.only_b, change.p_value)
            rows.append((*key, first, second, *counts))
    columns = [*CELL, "a", "b", "requests", "only a", "only b", "p"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(**{"p Holm": holm(frame["p"].tolist())})
