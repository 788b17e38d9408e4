from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook

from r2d_core.attack_titles import TITLES
from r2d_core.errors import InputError
from r2d_core.experiment import Experiment, load_experiment, main
from r2d_core.toy.arms import METHODS

TOY = """\
name: toy
title: The toy world
base_seeds: [0, 1]
safety_seeds: [0, 1, 2]
methods: [vanilla, r2d]
attacks: [direct, wrapper]
partition: report
notebooks:
  03_cpo_training: {steps: 300, rate: 1}
"""
EXPECTED = Experiment(
    name="toy",
    title="The toy world",
    base_seeds=[0, 1],
    safety_seeds=[0, 1, 2],
    methods=["vanilla", "r2d"],
    attacks=["direct", "wrapper"],
    partition="report",
    notebooks={"03_cpo_training": {"steps": 300, "rate": 1}},
)


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """A project in small: experiments/ beside a notebooks/ that holds one notebook."""
    (tmp_path / "notebooks").mkdir()
    source = (
        "# Parameters of this notebook\n"
        'steps: int = 1\nrate: float = 0.5\nname: str = ""\nseeds: list[int] = [0]'
    )
    cell = new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "notebooks" / "03_cpo_training.ipynb")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "smoke.yaml").touch()
    return tmp_path / "experiments"


def load(experiments: Path, text: str) -> Experiment:
    path = experiments / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return load_experiment(path)


def test_a_good_file(experiments: Path) -> None:
    assert load(experiments, TOY) == EXPECTED


def test_a_chapter_beside_the_grid_has_seeds_of_its_own(experiments: Path) -> None:
    notebooks = experiments.parent / "notebooks"
    shutil.copy(notebooks / "03_cpo_training.ipynb", notebooks / "15_evaluate_a_model.ipynb")
    text = TOY.replace(
        "03_cpo_training: {steps: 300, rate: 1}", "15_evaluate_a_model: {seeds: [3]}"
    )
    assert load(experiments, text).notebooks == {"15_evaluate_a_model": {"seeds": [3]}}
    with pytest.raises(InputError, match="'output_dir' is set by the grid"):
        load(experiments, text.replace("seeds: [3]", "output_dir: elsewhere"))


def test_partition_and_notebooks_have_defaults(experiments: Path) -> None:
    short = load(experiments, TOY.partition("partition")[0])
    assert (short.partition, short.notebooks) == ("development", {})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("methods:", "method:", "unknown key 'method', did you mean 'methods'?"),
        ("attacks: [direct, wrapper]\n", "", "the key 'attacks' is missing; add it"),
        ("[0, 1]", "three", "base_seeds: expected list[int], got 'three' (str)"),
        ("[0, 1]", "3", "base_seeds: expected list[int], got 3 (int)"),
        ("[0, 1]", "[0, yes]", "base_seeds: expected list[int], got [0, True] (list)"),
        ("[0, 1]", "[]", "base_seeds: the list is empty"),
        ("[0, 1]", "[1, 1]", "base_seeds: 1 stands twice"),
        ("[0, 1]", "[-1]", "base_seeds: expected seeds from 0 to 2**32 - 1, got -1"),
        ("[0, 1, 2]", f"[{2**32}]", "safety_seeds: expected seeds from 0"),
        ("[vanilla, r2d]", "[vanila]", "methods: unknown method 'vanila', did you mean 'vanilla'?"),
        ("[vanilla, r2d]", "[1]", "methods: expected list[str]"),
        ("[direct, wrapper]", "[wraper]", "attacks: unknown attack 'wraper', did you mean 'wrap"),
        ("report", "test", "partition: expected one of 'development', 'report', got 'test'"),
        ("The toy world", "", "title: expected str, got None"),
        ("name: toy", "name: ../toy", "name: expected letters, digits"),
        ("name: toy", "name: mine", "name: expected 'toy', as the file is called, got 'mine'"),
        ("03_cpo", "3_cpo", "unknown notebook '3_cpo_training', did you mean '03_cpo_training'?"),
        ("steps", "step", "notebooks: 03_cpo_training: unknown parameter 'step', did you mean 'st"),
        ("300", "many", "03_cpo_training: parameter 'steps': expected int, got 'many' (str)"),
        ("steps: 300", "seeds: [1]", "03_cpo_training: 'seeds' is set by the grid"),
        ("{steps: 300, rate: 1}", "300", "notebooks: expected dict[str, dict[str, Any]]"),
        ("{steps: 300, rate: 1}", "{1: 2}", "notebooks: expected dict[str, dict[str, Any]]"),
        ("title:", "name:", "line 2: not valid YAML: the key 'name' stands twice"),
        ("[0, 1]", "[0, 1", "not valid YAML"),
        ("name: toy", "name: !!python/object/apply:os.getcwd []", "line 1: not valid YAML"),
        ("name: toy", "? [a]\n: toy", "line 1: not valid YAML: found unhashable key"),
        ("name: toy", "name: 2026-13-45", "not valid YAML"),
        (TOY, "[1, 2]", "expected a mapping with the keys name, title, base_seeds"),
        (TOY, "", "expected a mapping"),
    ],
)
def test_a_wrong_file(experiments: Path, old: str, new: str, said: str) -> None:
    assert old in TOY
    with pytest.raises(InputError) as caught:
        load(experiments, TOY.replace(old, new, 1))
    assert str(caught.value).startswith(f"{experiments / 'toy.yaml'}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(junk=st.binary(max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_junk_is_refused_in_one_line(experiments: Path, junk: bytes) -> None:
    (experiments / "junk.yaml").write_bytes(junk)
    with pytest.raises(InputError) as caught:
        load_experiment(experiments / "junk.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_names_those_there_are(experiments: Path) -> None:
    with pytest.raises(InputError, match=r"no such experiment; .* there are: smoke.yaml$"):
        load_experiment(experiments / "toi.yaml")
    with pytest.raises(InputError, match="there are: none"):
        load_experiment(experiments / "no" / "toy.yaml")
    with pytest.raises(InputError, match="is a directory"):
        load_experiment(experiments)


def test_overrides_need_the_notebooks(experiments: Path) -> None:
    notebooks = experiments.parent / "notebooks"
    notebooks.rename(experiments.parent / "elsewhere")
    with pytest.raises(InputError, match=f"notebooks: found none in {notebooks}"):
        load(experiments, TOY)


def test_known_names_default_to_the_registries(experiments: Path) -> None:
    path = experiments / "toy.yaml"
    for key, there, wrong in (("methods", METHODS, "[r3d]"), ("attacks", TITLES, "[gcg_]")):
        good = "[vanilla, r2d]" if key == "methods" else "[direct, wrapper]"
        path.write_text(TOY.replace(good, f"[{', '.join(there)}]"))
        assert getattr(load_experiment(path), key) == list(there)
        path.write_text(TOY.replace(good, wrong))
        with pytest.raises(InputError, match=f"{key}: unknown .* known: {', '.join(there)}"):
            load_experiment(path)


def test_the_command(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = experiments / "toy.yaml"
    path.write_text(TOY)
    assert main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert "toy: The toy world (report items)" in shown
    assert "2 base x 3 safety seeds x 2 methods x 2 attacks" in shown
    assert "03_cpo_training: steps=300, rate=1" in shown
    path.write_text(TOY.replace("r2d", "r3d"))
    assert main([str(path)]) == 2
    failed = capsys.readouterr()
    assert failed.out == "" and failed.err.startswith(f"error: {path}: methods: unknown method")
    assert failed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[vanilla, r2d]", "[vanilla, refusal]", "methods: 'r2d' is missing, with which the"),
        ("[direct, wrapper]", "[direct]", "attacks: expected one besides 'direct'"),
    ],
)
def test_a_grid_that_its_last_notebooks_could_not_show_is_refused(
    experiments: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        load(experiments, TOY.replace(old, new))
