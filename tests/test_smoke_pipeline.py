"""The whole way on the smoke experiment: killed half-way and gone on with, against unbroken; and
with hostile text in every file that somebody else may have written, up to the pages in a browser.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from browser import HOSTILE, visit_every_page

from r2d_core.records import (
    Behavior,
    Completion,
    read_completions,
    write_jsonl,
)

ROOT = Path(__file__).resolve().parents[1]
RUN = [sys.executable, "experiments/run_experiment.py", "experiments/smoke.yaml", "--cores", "2"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def copy_of_the_project(place: Path) -> Path:
    for folder in ("r2d_core", "notebooks", "experiments", "book", "benchmarks"):
        shutil.copytree(ROOT / folder, place / folder)
    for file in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / file, place / file)
    return place


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = copy_of_the_project(tmp_path_factory.mktemp("unbroken"))
    run_to_the_end(place)
    return place


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(place)}


def run_to_the_end(place: Path) -> None:
    done = subprocess.run(
        RUN, cwd=place, env=environment(place), capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-5000:]


def finished(place: Path) -> dict[Path, int]:
    marks = (place / "results" / "smoke").rglob("finished.json")
    return {path.relative_to(place): path.stat().st_mtime_ns for path in marks}


def tables(place: Path) -> dict[Path, bytes]:
    found = (place / "results" / "smoke").rglob("*.csv")
    found = (path for path in found if path.name != "costs.csv")  # which has seconds
    return {path.relative_to(place): path.read_bytes() for path in found}


def kill_half_way(place: Path) -> None:
    """Start the experiment and kill all of its process group while a training or an attack is going
    on, with four jobs done: two may not be noted yet.
    """
    grid = subprocess.Popen(
        RUN,
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    notebooks = place / "results" / "smoke" / "notebooks"
    deadline = time.monotonic() + 1500
    while len(finished(place)) < 4 or not list(notebooks.glob(".0[34]_*.partial.ipynb")):
        assert grid.poll() is None, "the experiment ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    processes = psutil.Process(grid.pid).children(recursive=True)
    os.killpg(grid.pid, signal.SIGKILL)
    grid.wait()
    for process in processes:  # the kernels, in sessions of their own, are among them
        while alive(process):
            assert time.monotonic() < deadline, f"still there: {process}"
            time.sleep(0.2)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_killed_experiment_ends_with_the_same_tables(unbroken, tmp_path):
    broken = copy_of_the_project(tmp_path)
    kill_half_way(broken)
    before = finished(broken)
    assert 0 < len(before) < len(finished(unbroken))
    run_to_the_end(broken)
    assert finished(broken).keys() == finished(unbroken).keys()
    # Of the two jobs at a time Snakemake may have been killed before it noted that they had ended,
    # and then runs them again; all others are not done again.
    noted = dict(sorted(before.items(), key=lambda mark: mark[1])[:-2])
    assert noted and {mark: finished(broken)[mark] for mark in noted} == noted
    assert tables(unbroken)
    assert tables(broken) == tables(unbroken)


@pytest.mark.parametrize(
    ("job", "made"),
    [
        ("03_cpo_training-base0-r2d", "seed0/model/model.safetensors"),
        ("04_attack_evaluation-base0-r2d", "table.csv"),
    ],
)
def test_a_notebook_by_plain_papermill_gives_what_the_grid_gave(unbroken, tmp_path, job, made):
    """By an ordinary kernel, where the grid's are forks of a process with the libraries."""
    executed = unbroken / "results" / "smoke" / "notebooks" / f"{job}.ipynb"
    parameters = json.loads(executed.read_text())["metadata"]["papermill"]["parameters"]
    given = unbroken / parameters["output_dir"]
    parameters["output_dir"] = str(tmp_path / "alone")
    (tmp_path / "parameters.yaml").write_text(yaml.safe_dump(parameters))
    notebook = f"notebooks/{job.partition('-')[0]}.ipynb"
    papermill = [sys.executable, "-m", "papermill", notebook, str(tmp_path / "out.ipynb")]
    done = subprocess.run(
        [*papermill, "-f", str(tmp_path / "parameters.yaml"), "-k", "python3"],
        cwd=unbroken,
        # As the grid ran it: another number of threads may round differently.
        env={**environment(unbroken), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert (tmp_path / "alone" / made).read_bytes() == (given / made).read_bytes()


def test_a_grid_of_two_languages_says_what_holds_over_them(unbroken, tmp_path):
    """The grid's base model twice, under two seeds: the chapter reads no more than that."""
    given = unbroken / "results" / "smoke"
    for base in ("base0", "base1"):
        shutil.copytree(given / "base0", tmp_path / "grid" / base)
    for file in (tmp_path / "grid" / "base1").rglob("outcomes.csv"):
        table = pd.read_csv(file)
        file.write_text(table.assign(base_seed=1).to_csv(index=False))
    papermill = [sys.executable, "-m", "papermill", "notebooks/06_ablations.ipynb"]
    papermill += [str(tmp_path / "out.ipynb"), "-k", "python3"]
    papermill += ["-p", "experiment_dir", str(tmp_path / "grid")]
    papermill += ["-p", "output_dir", str(tmp_path / "ablations")]
    done = subprocess.run(
        papermill, cwd=unbroken, env=environment(unbroken), capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    (at,) = (
        n for n, cell in enumerate(cells) if "## In another language" in "".join(cell["source"])
    )
    shown = json.dumps(cells[at + 1]["outputs"])
    assert "R2D against Refusal tuning:**" in shown and "harmless answered exactly" in shown
    assert "r2d-figure" in shown and "difference, points" in shown
    tests = pd.read_csv(tmp_path / "ablations" / "paired_tests.csv")
    assert len(tests) and set(tests["runs"]) == {2}


SEEN = "<script>window.hacked = 1</script>"  # as a reader is to see it


def hostile_files(place: Path) -> dict[str, dict[str, object]]:
    """Requests, answers and training data with hostile text; the parameters that name them."""
    theirs = place / "theirs"
    theirs.mkdir()
    requests = [Behavior(f"b{n} {HOSTILE}", f"{HOSTILE} {n}", "harmful") for n in range(3)]
    write_jsonl(theirs / "requests.jsonl", requests)
    answers = [Completion(b.id, "direct", b.prompt, f"{HOSTILE} Sure") for b in requests]
    write_jsonl(theirs / "answers.jsonl", answers)
    reasoning = f"<think>{HOSTILE} step [UNSAFE]</think>{HOSTILE} I cannot"
    rows = [{"instruction": f"{HOSTILE} {n}", "input": "", "output": reasoning} for n in range(5)]
    unknown_pivot = f"<think>{HOSTILE} [MAYBE]</think>"
    rows.append({"instruction": HOSTILE, "input": "", "output": unknown_pivot})
    (theirs / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "08_training_data": {
            "source": "theirs/data.jsonl",
            "tokenizer": "results/smoke/base0/expanded/model",
            "harmful_files": ["theirs/requests.jsonl"],
        },
        "15_evaluate_a_model": {
            "behaviors": ["theirs/requests.jsonl"],
            "completions": "theirs/answers.jsonl",
            "attacks": {"direct": {}},
            "export": "harmbench",
        },
    }


def spoil(place: Path) -> None:
    """Put hostile text into what R2D was asked and said; the chapters that read it run again."""
    base = place / "results" / "smoke" / "base0"
    for folder in (base / "r2d" / "attacks" / "seed0", base / "utility" / "r2d" / "seed0"):
        file = folder / "completions.jsonl"
        said = [
            {**completion.__dict__, "prompt": f"{HOSTILE} {completion.prompt}",
             "text": f"{completion.text} {HOSTILE}"}
            for completion in read_completions(file)
        ]  # fmt: skip
        write_jsonl(file, [Completion(**row) for row in said])
    # With what was made of them: Snakemake does not look for what nobody needs any more.
    for made in ("base0/r2d/attacks", "base0/utility", "ablations", "results"):
        (base.parent / made / "finished.json").unlink()


def test_hostile_text_comes_as_text_from_every_file_to_the_page(unbroken, tmp_path):
    experiment = unbroken / "experiments" / "smoke.yaml"
    content = yaml.safe_load(experiment.read_text())
    content["notebooks"] |= hostile_files(unbroken)
    experiment.write_text(yaml.safe_dump(content))
    spoil(unbroken)
    run_to_the_end(unbroken)
    built = subprocess.run(
        [sys.executable, "experiments/build_book.py", "--experiment", "smoke"],
        cwd=unbroken, env=environment(unbroken), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-5000:]
    shown = visit_every_page(unbroken / "_build" / "html", tmp_path)
    for page in (
        "notebooks/04_attack_evaluation.html",
        "notebooks/05_over_refusal_and_utility.html",
        "notebooks/07_results_at_a_glance.html",
        "notebooks/15_evaluate_a_model.html",
    ):
        assert SEEN in shown[page], page
