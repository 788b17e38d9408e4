"""The tables of an evaluation as files, and what it was of: to be read beside those of others.

Every csv file begins with the same columns, ``model``, ``defense``, ``seed`` and ``source``, and
has the same ones whatever is in it, rows or none: the files of several evaluations can be put one
under the other as they are. `outcomes.csv` holds every outcome that the others count.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from r2d_core.checking import check_fields
from r2d_core.cost import COUNTS
from r2d_core.errors import InputError
from r2d_core.metrics import as_columns
from r2d_core.reach import telling
from r2d_core.records import read_json, write_json_atomic, write_text_atomic

RUN = "run.json"
RATES = {
    "success": ["success"],
    "success_by_source": ["success"],
    "success_by_category": ["success"],
    "refusals": ["full", "partial"],
    "refusals_by_source": ["full", "partial"],
    "refusals_by_category": ["full", "partial"],
    "scores": [],
    "spending": [],
    "costs": [],
    "utility": [],
    "outcomes": [],
}
"""The files, and in which of their columns rates are."""
MEANS = {"scores": ["score"], "spending": ["tokens", "queries"], "costs": [*COUNTS]}


@dataclass(frozen=True)
class Run:
    """What an evaluation is of.

    Attributes:
        model, defense: as given, with the settings that answers hang on; "" where there is none.
        seed: of attacks and of defences that draw.
        source: the files that the behaviors come from.
        max_new_tokens: of an answer; None where answers or verdicts came from a file.
        judges: each with the name of its model; None where verdicts came from a file.
    """

    model: str
    defense: str
    seed: int
    source: str
    max_new_tokens: int | None = None
    judges: dict[str, str | None] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Into ``folder/run.json``."""
        write_json_atomic(Path(folder) / RUN, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Of a finished evaluation's folder. Raises InputError where it is none."""
        path = Path(folder) / RUN
        if not path.is_file():
            raise InputError(
                f"{folder}: no finished evaluation, it has no {RUN}; give a folder that chapter 15 "
                "has written as its output_dir"
            )
        try:
            run = cls(**read_json(path))
            check_fields(run, str(path))
        except TypeError as error:
            raise InputError(
                f"{path}: not what an evaluation writes ({error}); run it again"
            ) from (None)
        return run


def named(name: str, settings: Mapping[str, Any]) -> str:
    """A model or a defence with the settings that its answers hang on: ``m {"dtype": "float16"}``.

    The seed is not among them: it stands for itself.
    """
    told = {key: value for key, value in telling(settings).items() if key != "seed"}
    return f"{name} {json.dumps(told, sort_keys=True, default=str)}" if told else name


def write_tables(folder: str | Path, run: Run, tables: Mapping[str, pd.DataFrame]) -> None:
    """Each table as ``folder/<its name>.csv``, with what the run is of in its first columns.

    Names are those of `RATES`.
    """
    for name, table in tables.items():
        flat = as_columns(table, rates=RATES[name], means=MEANS.get(name, []))
        flat = flat.rename(columns=lambda column: str(column).replace(" ", "_"))
        source = flat.pop("source") if "source" in flat else run.source
        flat.insert(0, "source", source)
        for column in ("seed", "defense", "model"):
            flat.insert(0, column, getattr(run, column))
        write_text_atomic(Path(folder) / f"{name}.csv", flat.to_csv(index=False))


def table_of(kind: type[Any], records: Sequence[Any]) -> pd.DataFrame:
    """A row a record of a dataclass; without records too, a column a field."""
    columns = [each.name for each in dataclasses.fields(kind)]
    rows = [[getattr(record, column) for column in columns] for record in records]
    return pd.DataFrame(rows, columns=columns)


def as_text(table: pd.DataFrame, none: str = "") -> pd.DataFrame:
    """A table to be shown: what is not there is ``none``, and columns of nothing else are gone."""
    shown = table.copy()
    for column in table.columns:
        if len(table) and table[column].isna().all() and not none:
            shown = shown.drop(columns=column)
        elif not pd.api.types.is_numeric_dtype(table[column]):
            shown[column] = [none if pd.isna(each) else str(each) for each in table[column]]
    return shown
