"""Chapter 15 for every combination of models, defences and seeds, and one table of them all.

    python experiments/evaluate_models.py experiments/evaluations/toy.yaml results/evaluations

The first file says what all have in common, and what differs::

    common:
      behaviors: [jailbreakbench/harmful-behaviors.csv, jailbreakbench/benign-behaviors.csv]
      attacks: {direct: {}, best_of_n: {n: 20}}
      judges: {harmbench_strings: {}}
    over:  # lists of parameters; every combination of one of each is evaluated
      - [{model: org/one}, {model: org/other, chat_template: plain}]
      - [{}, {defense: smooth_llm, defense_settings: {copies: 5}}]
      - [{seed: 0}, {seed: 1}]

Each combination has a folder of results and its executed chapter beside it, named after what
differs. What is finished is not run again; where one fails, the others go on. At the end all that
are finished are compared: ``compared.csv`` has their rates, ``differences.csv`` the paired tests.

Exit status: 0 done, 1 an evaluation failed, 2 refused before the first one.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from run_notebook import NotebookFailed, end_by_signals, execute, ran_to_its_end

from r2d_core.checking import mismatch, unknown
from r2d_core.errors import InputError
from r2d_core.evaluation_tables import RUN, as_text
from r2d_core.evaluations_compared import compare_evaluations
from r2d_core.made_once import lost_to_outages
from r2d_core.parameters import check_values, declared_parameters
from r2d_core.yaml_text import parse_yaml

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "15_evaluate_a_model.ipynb"
OURS = ("output_dir", "beside")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="evaluate_models.py",
        description="Chapter 15 over models, defences and seeds, and one table of them all.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "file", type=Path, help="what is evaluated: see experiments/evaluations/toy.yaml"
    )
    parser.add_argument("output", type=Path, help="the folder of all results")
    options = parser.parse_args(arguments)
    output = options.output.resolve()
    try:
        evaluations = combinations(options.file)
        declared = declared_parameters(NOTEBOOK)
        for parameters in evaluations.values():
            check_values(parameters, declared)
    except InputError as error:
        print(f"error: {options.file}: {error}", file=sys.stderr)
        return 2
    failed = False
    for name, parameters in evaluations.items():
        parameters = {**parameters, "output_dir": str(output / name)}
        page = output / f"{name}.ipynb"
        if is_finished(page, parameters):
            continue
        try:
            execute(NOTEBOOK, page, parameters)
        except NotebookFailed as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    folders = []
    for name, parameters in evaluations.items():
        folder = output / name
        if not ended(output / f"{name}.ipynb", {**parameters, "output_dir": str(folder)}):
            continue
        folders.append(folder)
        if lost_to_outages(folder):
            print(
                f"{folder}: a model was down for some requests; the same command asks them again",
                file=sys.stderr,
            )
    if folders:
        try:
            compared = compare_evaluations(folders)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        compared.write(output)
        print(as_text(compared.rates).to_string(index=False))
    return int(failed)


def combinations(file: Path) -> dict[str, dict[str, Any]]:
    """The parameters of every evaluation that the file asks for, by a name for it.

    Raises InputError for anything else in the file, and for two evaluations that are one.
    """
    try:
        given = parse_yaml(file.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); correct the name") from None
    if not isinstance(given, dict):
        raise InputError("expected the keys common and over")
    for key in given:
        if key not in ("common", "over"):
            raise InputError(unknown("key", key, ("common", "over")))
    common, over = given.get("common") or {}, given.get("over") or []
    if problem := mismatch(common, dict[str, Any]):
        raise InputError(f"common: {problem}")
    if problem := mismatch(over, list[list[dict[str, Any]]]):
        raise InputError(f"over: {problem}; write a list of lists, as [[{{seed: 0}}, {{seed: 1}}]]")
    if not over or not all(over):
        raise InputError("over: a list is empty; give each at least one, {} for nothing else")
    found: dict[str, dict[str, Any]] = {}
    for chosen in itertools.product(*over):
        differs: dict[str, Any] = {}
        for some in chosen:
            for parameter in some:
                if parameter in differs or parameter in common:
                    raise InputError(f"over: {parameter!r} is given twice; keep one")
            differs |= some
        for parameter in {*differs, *common} & {*OURS}:
            raise InputError(f"{parameter!r} is set here for each evaluation; leave it out")
        name = _name(differs)
        if name in found:
            raise InputError(f"over: two evaluations are called {name!r}; write them differently")
        found[name] = {**common, **differs}
    return found


def _name(differs: Mapping[str, Any]) -> str:
    """What differs, as a file's name."""
    parts = [
        str(value) if isinstance(value, str) else f"{parameter} {value}"
        for parameter, value in differs.items()
    ]
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts) or "all"


def is_finished(page: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether the evaluation `ended`, and no outage lost a part of it."""
    return ended(page, parameters) and not lost_to_outages(parameters["output_dir"])


def ended(page: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether the executed chapter is there, of these parameters, and ended well."""
    finished = (Path(parameters["output_dir"]) / RUN).is_file() and ran_to_its_end(page)
    return finished and (
        nbformat.read(page, as_version=4).metadata.papermill.parameters == dict(parameters)
    )


if __name__ == "__main__":
    end_by_signals()
    sys.exit(main())
