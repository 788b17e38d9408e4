"""What is declared, pinned and said about this repository agrees with itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import r2d_core

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["optional-dependencies"].items()
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    return {
        canonicalize_name(name): version for name, _, version in (p.partition("==") for p in pins)
    }


def imported(*folders: str) -> set[str]:
    """The distributions that the Python files of ``folders`` import, but for our own."""
    modules = set()
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    modules.add(node.module.partition(".")[0])
    found = packages_distributions()
    own = {file.stem for file in (ROOT / "experiments").glob("*.py")} | {"r2d_core"}
    return {
        canonicalize_name(found.get(module, [module])[0])  # vllm is in an environment of its own
        for module in modules - own
        if module not in sys.stdlib_module_names
    }


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(each.name) for each in requirements}


def test_the_package_declares_what_it_imports():
    """What is not in the core is imported where it is used, and has an extra of its own."""
    optional = [each for name in EXTRAS if name not in ("book", "dev") for each in EXTRAS[name]]
    assert imported("r2d_core") <= names(CORE + optional)
    # transformers' Trainer imports it; nothing of ours does.
    assert names(CORE) - imported("r2d_core", "experiments") <= {"accelerate"}


def test_scripts_and_notebooks_declare_what_they_import():
    assert imported("experiments", "notebooks") <= names(CORE + EXTRAS["book"])


def test_every_requirement_is_pinned_to_a_version_it_allows():
    pins = constraints()
    for requirement in [*CORE, *EXTRAS["book"], *EXTRAS["dev"], *EXTRAS["bench"]]:
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is missing in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} but {version} is pinned"


def test_what_was_tried_together_stays_pinned():
    pins = constraints()
    assert pins["torch"] == "2.13.0"  # no +cpu: each platform takes its own build of it
    assert pins["jupyter-book"] == "1.0.4.post1"
    assert pins["sphinx-book-theme"] == "1.1.4"


def test_conda_environment_installs_the_same():
    # No conda solver is at hand, so only forms that are known to be right are let through.
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "channels", "dependencies"}
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert "3.11" in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert pip == {
        "pip": [
            "-c constraints.txt",
            f"torch=={constraints()['torch']}",
            "-e .[book,dev]",
        ]
    }


def test_version_and_repository_are_said_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == r2d_core.__version__
    assert citation["license"] == PROJECT["license"]
    assert f"## {r2d_core.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["repository"]["url"] == citation["repository-code"]
    assert f"git clone {citation['repository-code']} " in (ROOT / "README.md").read_text()
    assert citation["references"][0]["title"].startswith("Reasoning-to-Defend")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_its_script_hold_the_same(notebook):
    script = notebook.with_suffix(".py")
    mend = f"{script.name} and {notebook.name} differ: jupytext --sync the one that you edited"
    expected = jupytext.writes(jupytext.read(notebook), fmt="py:percent")
    assert script.read_text() == expected, mend


def test_make_says_what_there_is_to_make():
    said = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("book", "smoke-book", "test", "test-slow", "lab", "full", "clean"):
        assert re.search(rf"^  make {target} +\w", said, re.M), target


def test_make_refuses_an_old_python_in_one_line(tmp_path):
    old = tmp_path / "python"
    pretence = "import sys; sys.version_info, sys.version = (3, 10), '3.10.1 (x)'"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{pretence}\n$2"\n')
    old.chmod(0o755)
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / file).write_text((ROOT / file).read_text())
    refused = subprocess.run(
        ["make", "book", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert refused.stderr.startswith(f"error: Python 3.11 or newer is needed, {old} is 3.10.1; ")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    "module",
    ["experiment", "generation", "judges", "plots", "toy.defect_effects", "toy.field",
     "toy.outcomes", "toy.recipe_tables", "toy.recipes", "toy.results", "toy.stages"],
)  # fmt: skip
def test_what_reads_results_does_not_wait_for_torch(module):
    program = f"import sys, r2d_core.{module}; print(*sys.modules, sep='\\n')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert not {"torch", "transformers", "datasets", "peft"} & set(ran.stdout.split())
