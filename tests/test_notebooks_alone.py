"""Every notebook on its defaults, in order: what one makes for itself the next ones find."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r2d_core.parameters import declared_parameters

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))

pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, without results."""
    place = tmp_path_factory.mktemp("project")
    for folder in ("r2d_core", "notebooks", "experiments", "book", "benchmarks"):
        shutil.copytree(ROOT / folder, place / folder)
    return place


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_it_runs(place: Path, warm: dict[str, str], notebook: str) -> None:
    environment = {**os.environ, **warm, "PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, "experiments/run_notebook.py", f"notebooks/{notebook}.ipynb", "out.ipynb"],
        cwd=place, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    cells = json.loads((place / "out.ipynb").read_text())["cells"]
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    assert any("text/html" in output.get("data", {}) for output in shown)


def test_the_base_model_of_the_defaults_passes_a_gate_of_99_percent(place: Path) -> None:
    declared = declared_parameters(place / "notebooks" / "01_toy_world.ipynb")
    assert declared["gate_accuracy"].default >= 0.99
    gate = json.loads((place / "results/interactive/base0/world/gate.json").read_text())
    assert set(gate["asked"]) == set(gate["right"])
    for cell, n in gate["asked"].items():
        assert n >= 100 and gate["right"][cell] >= 0.99 * n, cell
