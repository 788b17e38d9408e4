"""`experiments/publish.py`: what goes into the book's sources is whole and from committed code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from r2d_core.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import publish


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "full"
    for name, files in publish.KEPT.items():
        (folder / name).mkdir(parents=True)
        for file in files:
            (folder / name / file).write_text(f"{name}/{file}")
    record = {"commit": "0" * 40, "dirty": False}
    (folder / "results" / "results.json").write_text(json.dumps(record))
    return folder


def test_all_files_are_copied_and_stale_ones_go(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "book" / "full"
    target.mkdir(parents=True)
    (target / "stale.csv").write_text("old")
    files = publish.publish(results, target)
    assert sorted(target.iterdir()) == sorted(files)
    assert (target / "asr.csv").read_text() == "results/asr.csv"


def test_an_unfinished_experiment_leaves_what_was_published(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "book" / "full"
    publish.publish(results, target)
    (results / "ablations" / "paired_tests.csv").unlink()
    with pytest.raises(InputError, match=r"paired_tests\.csv: no such file; finish"):
        publish.publish(results, target)
    assert (target / "paired_tests.csv").is_file()


@pytest.mark.parametrize("dirty", [True, None])
def test_results_of_uncommitted_code_are_refused(
    results: Path, tmp_path: Path, dirty: bool | None
) -> None:
    record = {"commit": "0" * 40, "dirty": dirty}
    (results / "results" / "results.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="uncommitted"):
        publish.publish(results, tmp_path / "book" / "full")
