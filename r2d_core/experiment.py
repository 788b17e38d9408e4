"""One experiment: a YAML file that says what the batch runner runs.

    name: toy                      # the file's name, and the folder under results/
    title: The toy world
    base_seeds: [0, 1, 2]
    safety_seeds: [0, 1, 2]
    methods: [vanilla, refusal, r2d]
    attacks: [direct, wrapper]
    partition: development         # or report: the items opened only for the reported runs
    notebooks:                     # other values for parameters of a notebook, where wanted
      03_cpo_training: {steps: 300}

``python -m r2d_core.experiment experiments/toy.yaml`` checks a file and says what it would run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from r2d_core.attack_titles import TITLES
from r2d_core.checking import check_fields, unknown
from r2d_core.errors import InputError
from r2d_core.parameters import check_values, declared_parameters
from r2d_core.toy.arms import METHODS
from r2d_core.yaml_text import parse_yaml

# Notebook parameters that the grid gives, from the keys above, so no override may: those of its own
# notebooks, 01 to 07, and the fewer of the chapters beside it, from 08 on.
SET_BESIDE_THE_GRID = frozenset({"base", "experiment_dir", "model", "output_dir"})
SET_BY_THE_GRID = SET_BESIDE_THE_GRID | {
    "attacks",
    "base_seed",
    "checkpoint",
    "checkpoints_dir",
    "method",
    "methods",
    "models_dir",
    "partition",
    "seeds",
    "world_seed",
}


@dataclass(frozen=True)
class Experiment:
    """The grid of one experiment; every method meets every attack under every pair of seeds.

    ``base_seeds`` make base models, ``safety_seeds`` safety trainings of each; ``notebooks`` maps a
    notebook's name (without suffix) to parameter values. Raises InputError "key: what was expected"
    for a wrong type, an empty or repeating list, a seed outside [0, 2³²) and a name that is no
    plain folder name. Which methods, attacks and notebooks there are, `load_experiment` checks.
    """

    name: str
    title: str
    base_seeds: list[int]
    safety_seeds: list[int]
    methods: list[str]
    attacks: list[str]
    partition: Literal["development", "report"] = "development"
    notebooks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        for key, value in vars(self).items():
            if isinstance(value, list) and not value:
                raise InputError(f"{key}: the list is empty; name at least one")
            if isinstance(value, list) and len(set(value)) < len(value):
                twice = next(item for item in value if value.count(item) > 1)
                raise InputError(f"{key}: {twice!r} stands twice in the list; keep one")
        for key in ("base_seeds", "safety_seeds"):
            for seed in getattr(self, key):
                if not 0 <= seed < 2**32:
                    raise InputError(f"{key}: expected seeds from 0 to 2**32 - 1, got {seed}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise InputError(
                f"name: expected letters, digits, '.', '_' or '-' (it names a folder), "
                f"got {self.name!r}"
            )


def load_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Read an experiment and check all of it before anything runs.

    Its notebooks are those in the folder ``notebooks`` beside the file's own folder. Raises
    InputError "file: key: what was expected" for anything that does not fit.
    """
    path = Path(path)
    try:
        experiment = _experiment(_read_yaml(path))
        if experiment.name != path.stem:
            # Two files of one name would write into the same results.
            raise InputError(
                f"name: expected {path.stem!r}, as the file is called, got {experiment.name!r}"
            )
        _check_names("method", experiment.methods, METHODS)
        _check_names("attack", experiment.attacks, TITLES)
        if "r2d" not in experiment.methods:
            raise InputError("methods: 'r2d' is missing, with which the ablations compare; add it")
        if set(experiment.attacks) <= {"direct"}:
            raise InputError("attacks: expected one besides 'direct', with which results compare")
        _check_notebooks(experiment.notebooks, path.resolve().parent.parent / "notebooks")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return experiment


def main(arguments: Sequence[str] | None = None) -> int:
    """Check experiment files and print what each would run; 2 on the first that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m r2d_core.experiment", description=main.__doc__)
    parser.add_argument("files", nargs="+", metavar="experiments/NAME.yaml")
    try:
        for file in parser.parse_args(arguments).files:
            print(_summary(load_experiment(file)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _summary(experiment: Experiment) -> str:
    bases, seeds = len(experiment.base_seeds), len(experiment.safety_seeds)
    lines = [
        f"{experiment.name}: {experiment.title} ({experiment.partition} items)",
        f"  {bases} base x {seeds} safety seeds x {len(experiment.methods)} methods "
        f"x {len(experiment.attacks)} attacks",
        f"  base seeds    {', '.join(map(str, experiment.base_seeds))}",
        f"  safety seeds  {', '.join(map(str, experiment.safety_seeds))}",
        f"  methods       {', '.join(experiment.methods)}",
        f"  attacks       {', '.join(experiment.attacks)}",
    ]
    for notebook, values in experiment.notebooks.items():
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        lines.append(f"  {notebook}: {given or 'its defaults'}")
    return "\n".join(lines)


def _read_yaml(path: Path) -> Any:
    try:
        return parse_yaml(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        there = sorted(each.name for each in path.parent.glob("*.yaml"))
        raise InputError(
            f"no such experiment; in {path.parent} there are: {', '.join(there) or 'none'}"
        ) from None
    except IsADirectoryError:
        raise InputError("is a directory, expected a YAML file") from None


def _experiment(content: Any) -> Experiment:
    keys = {each.name: each for each in dataclasses.fields(Experiment)}
    if not isinstance(content, dict):
        raise InputError(
            f"expected a mapping with the keys {', '.join(keys)}, got {type(content).__name__}"
        )
    for key in content:
        if key not in keys:
            raise InputError(unknown("key", key, keys))
    for key, each in keys.items():
        optional = (
            each.default is not dataclasses.MISSING
            or each.default_factory is not dataclasses.MISSING
        )
        if key not in content and not optional:
            raise InputError(f"the key {key!r} is missing; add it")
    return Experiment(**content)


def _check_names(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise InputError(f"{what}s: {unknown(what, name, known)}")


def _check_notebooks(overrides: dict[str, dict[str, Any]], folder: Path) -> None:
    there = {file.stem: file for file in sorted(folder.glob("*.ipynb"))}
    if overrides and not there:
        raise InputError(f"notebooks: found none in {folder} to hold the values against")
    for notebook, values in overrides.items():
        if notebook not in there:
            raise InputError(f"notebooks: {unknown('notebook', notebook, there)}")
        given = SET_BY_THE_GRID if notebook < "08" else SET_BESIDE_THE_GRID
        for name in values:
            if name in given:
                raise InputError(
                    f"notebooks: {notebook}: {name!r} is set by the grid, from the keys above; "
                    "take it out"
                )
        try:
            check_values(values, declared_parameters(there[notebook]))
        except InputError as error:
            raise InputError(f"notebooks: {notebook}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
