"""`experiments/publish.py`: what goes into the book's sources is whole and from committed code."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from r2d_core.errors import InputError
from r2d_core.toy.findings import findings, tokens_spent
from r2d_core.toy.outcomes import JUDGED
from r2d_core.toy.results import read_published

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import publish
from test_measure import measurement
from test_measure import results as results_of


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "full"
    for name, files in publish.KEPT.items():
        (folder / name).mkdir(parents=True)
        for file in files:
            (folder / name / file).write_text(f"{name}/{file}")
    record = {"commit": "0" * 40, "dirty": False}
    (folder / "results" / "results.json").write_text(json.dumps(record))
    for part in ("r2d/attacks", "utility"):
        (folder / "base0" / part).mkdir(parents=True)
        (folder / "base0" / part / "table.csv").write_text(
            "method,base_seed,seed,attack,split,scope,n,harmful,refused,correct,garbled\n"
            "r2d,0,1,direct,seen,whole,20,1,18,0,1\n"
        )
        (folder / "base0" / part / "outcomes.csv").write_text(
            f"{','.join(JUDGED)}\nr2d,0,1,direct,seen,x,refused,absent,refused,1,2,1\n"
        )
    return folder


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    (tmp_path / "full.yaml").write_text("name: full\n")
    return tmp_path / "full.yaml"


def test_all_files_are_copied_and_stale_ones_go(results: Path, grid: Path, tmp_path: Path) -> None:
    target = tmp_path / "book" / "full"
    target.mkdir(parents=True)
    (target / "stale.csv").write_text("old")
    (target / "results.json").write_text("{}")
    files = publish.publish(results, grid, target)
    assert sorted(target.iterdir()) == sorted(files)
    assert (target / "new_topics.svg").read_text() == "results/new_topics.svg"
    assert 'direct request,"0% [0, 79]"' in (target / "asr.csv").read_text()


def test_an_unfinished_experiment_leaves_what_was_published(
    results: Path, grid: Path, tmp_path: Path
) -> None:
    target = tmp_path / "book" / "full"
    publish.publish(results, grid, target)
    (results / "ablations" / "ablations.csv").unlink()
    with pytest.raises(InputError, match=r"ablations\.csv: no such file; finish"):
        publish.publish(results, grid, target)
    assert (target / "ablations.csv").is_file()


@pytest.mark.parametrize("dirty", [True, None])
def test_results_of_uncommitted_code_are_refused(
    results: Path, grid: Path, tmp_path: Path, dirty: bool | None
) -> None:
    record = {"commit": "0" * 40, "dirty": dirty}
    (results / "results" / "results.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="uncommitted"):
        publish.publish(results, grid, tmp_path / "book" / "full")


def test_every_cell_is_published_with_its_interval(
    results: Path, grid: Path, tmp_path: Path
) -> None:
    publish.publish(results, grid, tmp_path / "book" / "full")
    table = pd.read_csv(tmp_path / "book" / "full" / "cells.csv")
    assert list(table["part"]) == ["attack", "benign"]
    cell = table.iloc[0]
    assert (cell["method"], cell["seed"], cell["n"], cell["harmful"]) == ("r2d", 1, 20, 1)
    assert (cell["harmful_low"], cell["harmful_high"]) == (0.0089, 0.2361)  # Wilson, 1 of 20
    assert (tmp_path / "book" / "full" / "grid.yaml").read_text() == "name: full\n"


def test_published_outcomes_are_the_same_bytes_whenever_they_are_made(
    results: Path, grid: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "book" / "full" / "outcomes.csv.gz"
    publish.publish(results, grid, packed.parent)
    before = packed.read_bytes()
    time.sleep(1.1)  # gzip's clock has seconds
    publish.publish(results, grid, packed.parent)
    assert packed.read_bytes() == before
    read = read_published(packed.parent)
    assert read.methods == ["r2d"] and len(read.attacks) == len(read.benign) == 2
    packed.unlink()
    with pytest.raises(InputError, match="outcomes.csv.gz: no such file; run again"):
        read_published(packed.parent)


def test_sentences_of_published_cells_are_those_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {"refused": 30, "harmful": 10}
    good = measurement({"wrapper": [k for k, n in outcomes.items() for _ in range(n)]})
    bad = measurement({"wrapper": ["harmful"] * 40})
    found = results_of({"r2d": {(0, 0): good}, "refusal": {(0, 0): bad}})
    target = tmp_path / "book" / "full"
    target.mkdir(parents=True)
    judged = pd.concat([good.judged("r2d", 0, 0), bad.judged("refusal", 0, 0)])
    benign = judged.assign(attack="distractor", part="benign")
    both = pd.concat([judged.assign(part="attack"), benign])
    both.to_csv(target / "outcomes.csv.gz", index=False)
    (target / "findings.md").write_text("as it was said before")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    assert publish.main(["--reword"]) == 0
    assert (target / "findings.md").read_text() == findings(found)
    assert "harmful less often under held-out wrapper (25%" in findings(found)
    assert (target / "tokens.csv").read_text() == tokens_spent(found).to_csv()
    pd.testing.assert_frame_equal(read_published(target).compare("r2d"), found.compare("r2d"))


def test_of_several_languages_it_says_what_holds_over_them(tmp_path: Path) -> None:
    def experiment(bases: list[int], *methods: str) -> dict[str, str]:
        labels = {"refusal": ["harmful"] * 20, "r2d": ["refused"] * 20, "vanilla": ["harmful"] * 20}
        runs = {
            name: {(base, 0): measurement({"wrapper": labels[name]}) for base in bases}
            for name in methods
        }
        return publish.differences(results_of(runs))

    files = experiment([0, 1, 2], "refusal", "r2d")
    assert set(files) == {
        "differences.csv", "differences.md", "differences.svg", "differences_by_language.csv",
    }  # fmt: skip
    table = pd.read_csv(io.StringIO(files["differences.csv"]))
    assert table["outcome"].tolist()[0] == "wrapper" and table["difference"][0] == -1
    assert len(pd.read_csv(io.StringIO(files["differences_by_language.csv"]))) == 3 * len(table)
    assert "less often under **held-out wrapper** (0% against 100%" in files["differences.md"]
    assert "held-out wrapper" in files["differences.svg"]
    assert experiment([0], "refusal", "r2d") == {}
    assert experiment([0, 1], "vanilla", "r2d") == experiment([0, 1], "refusal") == {}


PARTS = (".md", ".csv", ".svg")
PUBLISHED = sorted(path.parent for path in (publish.ROOT / "book").glob("*/grid.yaml"))


def test_what_is_published() -> None:
    names = ["full", "interjections", "languages", "languages_again", "longer"]
    assert [path.name for path in PUBLISHED] == names


def test_nothing_else_is_overwritten_and_nothing_is_reworded_in_silence(
    results: Path, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    target = tmp_path / "book" / "attacks"
    target.mkdir(parents=True)
    (target / "field.csv").write_text("kept")
    with pytest.raises(InputError, match="no published experiment; give the experiment another"):
        publish.publish(results, grid, target)
    assert (target / "field.csv").read_text() == "kept"
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    assert publish.main(["--reword"]) == 2
    assert "no */outcomes.csv.gz; publish an experiment first" in capsys.readouterr().err


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda path: path.name)
def test_published_words_are_those_of_the_code(published: Path, tmp_path: Path) -> None:
    again = tmp_path / published.name
    shutil.copytree(published, again)
    publish.reword(again)
    names = {file.name for file in again.iterdir() if file.suffix in PARTS}
    assert {"findings.md", "tokens.csv", "paired_tests.csv", "outcome_bars.svg"} <= names
    assert names == {file.name for file in published.iterdir() if file.suffix in PARTS}
    for name in sorted(names):
        assert (published / name).read_text() == (again / name).read_text(), (
            f"{name}: run experiments/publish.py --reword and commit it"
        )
