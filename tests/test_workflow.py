"""The grid: which jobs run, which run again, and that a killed run can be gone on with.

Everything is real but the notebooks' execution, which is replaced by a moment's nap: Snakemake, the
launcher, the checks of parameters and the bookkeeping of results.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from r2d_core.experiment import Experiment, load_experiment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
import run_experiment  # noqa: E402

EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))

# Takes the place of experiments/run_notebook.py.
WITHOUT_KERNEL = """
import json, sys, time
import real_run_notebook
from real_run_notebook import fingerprint

def execute(notebook, output, parameters, in_place):
    time.sleep(0.2)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(dict(parameters)))

real_run_notebook.execute = execute
if __name__ == "__main__":
    sys.exit(real_run_notebook.main())
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A copy of what a run needs, with an experiment of two arms."""
    for folder in ("r2d_core", "notebooks", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    scripts = tmp_path / "experiments"
    (scripts / "run_notebook.py").rename(scripts / "real_run_notebook.py")
    (scripts / "run_notebook.py").write_text(WITHOUT_KERNEL)
    write_experiment(tmp_path)
    return tmp_path


def write_experiment(workplace: Path, **changes: object) -> None:
    content = {
        "name": "small",
        "title": "Two arms",
        "base_seeds": [3],
        "safety_seeds": [0, 1],
        "methods": ["vanilla", "r2d"],
        "attacks": ["direct", "wrapper"],
    }
    (workplace / "experiments" / "small.yaml").write_text(yaml.safe_dump(content | changes))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "experiments/run_experiment.py", "experiments/small.yaml", *arguments]


def environment(workplace: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(workplace)}


def run(workplace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=workplace,
        env=environment(workplace),
        capture_output=True,
        text=True,
        timeout=300,
    )


def would_run(workplace: Path) -> dict[str, int]:
    dry = run(workplace, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    stats = dry.stdout.rpartition("Job stats:")[2].partition("total")[0]
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", stats, re.M)}
    return {rule: count for rule, count in jobs.items() if rule != "all"}


ALL_JOBS = {
    "world": 1,
    "expand": 1,
    "train": 1,  # vanilla needs none
    "attack": 2,
    "utility": 1,  # all methods of a base
    "ablations": 1,
    "results": 1,
    "chapter": 9,
}


def test_the_grid_and_what_a_change_runs_again(workplace):
    assert would_run(workplace) == ALL_JOBS
    done = run(workplace)
    assert done.returncode == 0, done.stderr
    home = workplace / "results" / "small"
    given = json.loads((home / "notebooks/04_attack_evaluation-base3-r2d.ipynb").read_text())
    assert given["checkpoints_dir"] == "results/small/base3/r2d/training"
    assert given["seeds"] == [0, 1]
    assert given["output_dir"] == "results/small/base3/r2d/attacks"
    assert (home / "base3/r2d/attacks/finished.json").exists()
    assert would_run(workplace) == {}

    downstream = {"ablations": 1, "results": 1, "chapter": 1}  # judges judge what was answered
    write_experiment(workplace, attacks=["direct", "prefill_lead"])
    assert would_run(workplace) == {"attack": 2, **downstream}
    write_experiment(workplace, methods=["vanilla", "r2d", "refusal"])
    assert would_run(workplace) == {"train": 1, "attack": 1, "utility": 1, **downstream}
    write_experiment(workplace)
    assert would_run(workplace) == {}

    notebook = workplace / "notebooks" / "05_over_refusal_and_utility.ipynb"
    notebook.write_text(notebook.read_text() + "\n")
    assert would_run(workplace) == {"utility": 1, **downstream}
    with (workplace / "r2d_core" / "errors.py").open("a") as source:
        source.write("\n")
    assert would_run(workplace) == ALL_JOBS


def test_what_left_the_grid_is_in_no_table_and_comes_back(tmp_path):
    def experiment(**changes):
        values = {"base_seeds": [0, 1], "methods": ["vanilla", "refusal", "r2d"]} | changes
        return Experiment(
            name="x", title="x", safety_seeds=[0], attacks=["direct", "wrapper"], **values
        )

    for base in (0, 1):
        for place in ("world", "utility", "refusal/attacks", "r2d/attacks"):
            (tmp_path / f"base{base}" / place).mkdir(parents=True)
            (tmp_path / f"base{base}" / place / "table.csv").write_text(f"{base} {place}")
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.csv")}

    run_experiment.set_aside(tmp_path, experiment(base_seeds=[0], methods=["vanilla", "r2d"]))
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("base*/*/*/*.csv")} == {
        "base0/r2d/attacks/table.csv"
    }
    assert not list(tmp_path.glob("base1*")) and (tmp_path / "base0/utility/table.csv").exists()
    run_experiment.set_aside(tmp_path, experiment())
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.csv")} == before
    run_experiment.set_aside(tmp_path / "nothing", experiment())


def test_a_killed_run_is_gone_on_with(workplace):
    first = subprocess.Popen(
        command("--cores", "1"),
        cwd=workplace,
        env=environment(workplace),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    home = workplace / "results" / "small"
    deadline = time.monotonic() + 120
    while not (home / "base3/expanded/finished.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGSTOP)  # or it may end while the second is refused
    second = run(workplace)
    assert second.returncode == 2
    assert re.fullmatch(r"error: an experiment is running already in .*\n", second.stderr)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = {path: path.stat().st_mtime_ns for path in home.rglob("finished.json")}
    assert 2 <= len(finished) < sum(ALL_JOBS.values())
    # Snakemake may have been killed before it noted the last one, and then runs that again.
    del finished[max(finished, key=lambda path: finished[path])]
    resumed = run(workplace)
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert would_run(workplace) == {}


def test_a_failed_job_ends_in_one_line_and_the_others_run(workplace):
    notebook = workplace / "notebooks" / "03_cpo_training.ipynb"
    notebook.write_text("{}")
    failed = run(workplace)
    assert failed.returncode == 1
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "not a notebook" in errors[0]
    assert "experiments/small.yaml: not finished" in errors[1]
    home = workplace / "results" / "small"
    assert (home / "base3/vanilla/attacks/finished.json").exists()
    assert not (home / "base3/r2d/attacks/finished.json").exists()


def test_a_bad_experiment_is_one_line(workplace):
    write_experiment(workplace, atacks=["direct"])
    refused = run(workplace)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: experiments/small.yaml: unknown key 'atacks', did you mean 'attacks'? known: name, "
        "title, base_seeds, safety_seeds, methods, attacks, partition, notebooks\n"
    )


def test_slurm_profile(workplace):
    dry = run(workplace, "--workflow-profile", "experiments/slurm", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert re.search(r"^total +18$", dry.stdout, re.M)
    # It is the profile that says so: without its executor, or with a resource that is none, not.
    profile = workplace / "experiments" / "slurm" / "config.yaml"
    for given, wrong, said in (
        ("executor: slurm", "executor: slurn", "slurn"),
        ("mem_mb: 4000", "mem_mb: [4000]", ""),
    ):
        content = profile.read_text()
        assert given in content
        profile.write_text(content.replace(given, wrong))
        refused = run(workplace, "--workflow-profile", "experiments/slurm", "--dry-run")
        assert refused.returncode != 0 and said in refused.stderr, given
        profile.write_text(content)


@pytest.mark.parametrize(
    ("flags", "kept", "elsewhere"),
    [
        (["--dry-run"], True, False),
        (["-np"], True, False),
        (["--cores=1"], False, False),
        (["--keep-incomplete"], False, False),
        (["-eslurm"], False, True),
        (["--profile", "experiments/slurm"], False, True),
        (["--workflow-profile=experiments/slurm"], False, True),
    ],
)
def test_what_the_arguments_for_snakemake_ask_of_us(monkeypatch, tmp_path, flags, kept, elsewhere):
    """Nothing is moved in a dry run; kernels are kept warm for this machine only."""
    did = []
    monkeypatch.setattr(run_experiment, "_lock", lambda path: os.dup(0))
    monkeypatch.setattr(run_experiment, "ROOT", tmp_path)
    monkeypatch.setattr(run_experiment, "set_aside", lambda *_: did.append("set aside"))
    monkeypatch.setattr(run_experiment.warm_kernels, "possible", lambda: True)

    @contextmanager
    def started():
        did.append("warm")
        yield {}, []

    monkeypatch.setattr(run_experiment.warm_kernels, "started", started)

    class Snakemake:
        def __init__(self, command, **_):
            assert ("--cores" in command) == (not elsewhere and flags != ["--cores=1"])

        def wait(self):
            return 0

    monkeypatch.setattr(run_experiment.subprocess, "Popen", Snakemake)
    assert run_experiment.main([str(ROOT / "experiments" / "smoke.yaml"), *flags]) == 0
    assert ("set aside" in did) != kept
    assert ("warm" in did) == (not kept and not elsewhere)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_in_the_repository_is_valid(path):
    load_experiment(path)
