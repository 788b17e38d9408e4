"""Run an experiment's grid, or what is left of it, on this machine or a cluster.

    python experiments/run_experiment.py experiments/toy.yaml
    python experiments/run_experiment.py experiments/full.yaml --workflow-profile experiments/slurm

Checks the experiment, then hands over to Snakemake (``experiments/Snakefile``), to which further
arguments go: ``--dry-run`` says what would run and why. After a crash or a kill the same command
goes on: finished jobs stay, and a notebook skips the seeds that it had finished.

Exit status: 0 done, 1 a job failed (those that do not depend on it have run), 2 refused.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import warm_kernels

from r2d_core.errors import InputError
from r2d_core.experiment import Experiment, load_experiment
from r2d_core.toy.arms import METHODS

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="run_experiment.py",
        description="Run an experiment's grid, or what is left of it.",
        epilog="Further arguments go to Snakemake: --dry-run says what would run and why, "
        "--cores N how many jobs at a time, --workflow-profile experiments/slurm sends them to a "
        "cluster.",
        allow_abbrev=False,
    )
    parser.add_argument("experiment", type=Path, help="the YAML file, experiments/NAME.yaml")
    options, for_snakemake = parser.parse_known_args(arguments)
    try:
        experiment = load_experiment(options.experiment)
        lock = _lock(ROOT / ".snakemake" / "r2d.lock")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    # As Snakemake takes them: `-np` is `-n -p`, `-eslurm` is `-e slurm`, `--cores=4` `--cores 4`.
    given = " ".join(for_snakemake)
    dry_run = re.search(r"(^| )(--dry-?run|-[A-Za-z]*n[A-Za-z]*)\b", given) is not None
    elsewhere = re.search(r"(^| )(--executor|-e|--(workflow-)?profile)", given) is not None
    if not dry_run:
        set_aside(ROOT / "results" / experiment.name, experiment)
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", "experiments/Snakefile"]
    snakemake += ["--config", f"experiment={options.experiment.resolve()}"]
    if any((ROOT / ".snakemake" / "locks").glob("*")):
        # We hold our own lock, so Snakemake's is what a killed run left.
        subprocess.run([*snakemake, "--unlock", "--quiet", "all"], cwd=ROOT, check=True)
    if not elsewhere and not re.search(r"(^| )(--cores|-c)", given):
        for_snakemake = ["--cores", str(_cores()), *for_snakemake]
    snakemake += ["--rerun-incomplete", "--keep-going", "--quiet", "rules", "host"]
    warm = not (dry_run or elsewhere) and warm_kernels.possible()
    with ExitStack() as stack:
        variables, lifeline = stack.enter_context(warm_kernels.started()) if warm else ({}, [])
        # Snakemake holds the lock, and the lifeline of the kernels, as well: it may live on when
        # this process is killed.
        grid = subprocess.Popen(
            [*snakemake, *for_snakemake],
            cwd=ROOT,
            env={**os.environ, **variables},
            pass_fds=[lock, *lifeline],
        )
        stopped = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal stopped
            stopped = True
            if number == signal.SIGTERM:  # Ctrl-C, SIGINT, has reached Snakemake too
                grid.terminate()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        status = grid.wait()
    if status:
        again = shlex.join(["python", "experiments/run_experiment.py", str(options.experiment)])
        why = "" if stopped else "; the lines above that begin with 'error:' say why"
        print(
            f"error: {options.experiment}: not finished{why}. To go on: the same command ({again})",
            file=sys.stderr,
        )
    return 1 if status else 0


def set_aside(home: Path, experiment: Experiment) -> None:
    """Move results of base seeds and methods that left the grid out of the way of its tables.

    They go to ``.left`` in the experiment's folder, and come back with the seed or the method.
    """
    left = home / ".left"

    def wanted(place: Path) -> bool:
        base, name = int(place.parts[0].removeprefix("base")), place.parts[1]
        return base in experiment.base_seeds and (name not in METHODS or name in experiment.methods)

    def places(root: Path) -> list[Path]:
        bases = [b for b in root.glob("base*") if b.name.removeprefix("base").isdecimal()]
        return [each.relative_to(root) for base in bases for each in base.iterdir()]

    for source, target, moves in (
        (left, home, wanted),
        (home, left, lambda place: not wanted(place)),
    ):
        for place in places(source):
            if moves(place) and not (target / place).exists():
                (target / place).parent.mkdir(parents=True, exist_ok=True)
                (source / place).rename(target / place)
                if target == left:
                    print(f"{home / place}: not in the grid any more, now in {left}")
                if not any((source / place).parent.iterdir()):
                    (source / place).parent.rmdir()


def _lock(path: Path) -> int:
    path.parent.mkdir(exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"an experiment is running already in {path.parent.parent}") from None
    return handle


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
