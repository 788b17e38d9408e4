"""Run one notebook with parameters, so that a batch can rely on it.

    python experiments/run_notebook.py notebooks/03_cpo_training.ipynb OUT.ipynb -f parameters.yaml
    python experiments/run_notebook.py notebooks/03_cpo_training.ipynb OUT.ipynb -y 'seeds: [0, 1]'

papermill runs it; around that:

- a misspelt or ill-typed parameter is refused before anything starts;
- the kernel is this interpreter's, in the repository's root, and ends with this process;
- OUT.ipynb appears when the run has ended. When the run failed it is there too, for reading, and
  one line on stderr says what happened. An earlier one that had run to its end stays, and the
  failed one is OUT.failed.ipynb beside it; not with ``--done``, whose pages a book is made from,
  and of no failed run;
- with ``--done``, results of an earlier run are there for the notebook to go on from if they came
  from the same parameters and the same ``--depends-on`` files; if not, they are put aside, and
  removed once this run has succeeded.

Exit status: 0 done, 1 the notebook failed, 2 refused before it started, 128 + n ended by signal n.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
import warm_kernels

from r2d_core.errors import InputError
from r2d_core.parameters import check_values, declared_parameters
from r2d_core.provenance import package_files
from r2d_core.records import write_json_atomic, write_text_atomic
from r2d_core.yaml_text import parse_yaml

ROOT = Path(__file__).resolve().parents[1]
STARTED = ".started"  # in a results directory: the fingerprint of the run that began to fill it


class NotebookFailed(Exception):
    """One line: which notebook, where in it, what happened and where to read it."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _options(arguments)
    end_by_signals()
    if options.end_with:
        threading.Thread(target=_end_with, args=(options.end_with,), daemon=True).start()
    try:
        parameters = {
            name: value
            for source in options.parameters
            for name, value in _mapping(*source).items()
        }
        check_values(parameters, declared_parameters(options.notebook))
        key = fingerprint(parameters, options.depends_on)
    except InputError as error:
        print(f"error: {options.notebook}: {error}", file=sys.stderr)
        return 2
    if options.done:
        _prepare(options.done.parent, key)
    try:
        execute(options.notebook, options.output, parameters, in_place=options.done is not None)
    except NotebookFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.done:
        finished = datetime.now(UTC).isoformat(timespec="microseconds")
        write_json_atomic(options.done, {"fingerprint": key, "finished": finished})
        _remove(_aside(options.done.parent))
    return 0


def execute(
    notebook: Path, output: Path, parameters: Mapping[str, Any], *, in_place: bool = False
) -> None:
    """Run ``notebook`` and put the executed one at ``output``; raises NotebookFailed.

    A failed one stands beside an earlier one that had run to its end, unless ``in_place``.
    """
    # Imported here: a refused parameter need not wait for them.
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook
    from traitlets.config import Config

    # papermill (as of 2.7) does not read annotations such as `int | None`, and warns that the
    # notebook does not know such a parameter; which it knows, `check_values` has seen.
    logging.getLogger("papermill").addFilter(
        lambda record: "Passed unknown parameter" not in record.getMessage()
    )

    # First of all places where Jupyter looks for "python3": this interpreter's own kernel, whatever
    # the user has installed elsewhere under that name; or the one that a run keeps warm for us.
    own = os.path.join(sys.prefix, "share", "jupyter")
    os.environ["JUPYTER_PATH"] = os.environ.get(warm_kernels.JUPYTER_PATH, own)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    failure = None
    try:
        execute_notebook(
            str(notebook.resolve()),
            str(partial.resolve()),
            parameters=dict(parameters),
            kernel_name="python3",
            cwd=ROOT,
            autosave_cell_every=30,
            start_timeout=300,
            # What passes between here and the kernel is not for other users of this machine.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            extra_arguments=["--log-level=CRITICAL"],  # its log; errors are in the notebook
            progress_bar={
                "desc": output.stem,
                "unit": "cell",
                "mininterval": 0.1 if sys.stderr.isatty() else 30,
            },
        )
    except PapermillExecutionError as error:
        what = (
            error.evalue  # one line that is meant for the user
            if error.ename == "InputError"
            else f"{error.ename} in cell [{error.exec_count}]: {_first_line(error.evalue)}"
        )
        failure = f"{notebook}: {what}"
    except DeadKernelError:
        failure = f"{notebook}: the kernel died (out of memory?)"
    except RuntimeError as error:  # what nbclient raises when the kernel never answers
        failure = f"{notebook}: the kernel did not start: {_first_line(str(error))}"
    beside = output.with_name(f"{output.stem}.failed.ipynb")
    if failure and not in_place and ran_to_its_end(output):
        output = beside
    elif not failure:
        beside.unlink(missing_ok=True)
    _publish(notebook, partial, output, failure)


def ran_to_its_end(executed: Path) -> bool:
    """Whether there is an executed notebook in which nothing failed."""
    import nbformat

    try:
        record = nbformat.read(executed, as_version=4).metadata.get("papermill", {})
    except (OSError, ValueError, AttributeError, nbformat.ValidationError):
        return False  # none, or no notebook: nothing that has to stay
    return bool(record.get("end_time")) and not record.get("exception")


def end_by_signals() -> None:
    """Have SIGINT and SIGTERM end this process with its kernels, which else would outlive it."""
    signal.signal(signal.SIGINT, _end_by_signal)
    signal.signal(signal.SIGTERM, _end_by_signal)


def fingerprint(parameters: Mapping[str, Any], files: Iterable[Path]) -> str:
    """A digest of the parameters and of the bytes of ``files``; of a package, of all its files."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode())
    for path in files:
        for file in package_files(path) if path.is_dir() else [path]:
            try:
                content = file.read_bytes()
            except OSError as error:
                raise InputError(f"cannot read {file} ({error.strerror})") from None
            digest.update(f"\0{file.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run_notebook.py",
        description="Run one notebook with parameters.",
        allow_abbrev=False,
    )
    parser.add_argument("notebook", type=Path, help="the notebook to run")
    parser.add_argument("output", type=Path, help="where the executed notebook goes")
    parser.add_argument(
        "-f", dest="parameters", metavar="FILE", action="append", default=[],
        type=lambda name: (name, None), help="parameters from a YAML file",
    )  # fmt: skip
    parser.add_argument(
        "-y", dest="parameters", metavar="YAML", action="append",
        type=lambda text: ("-y", text), help="parameters as YAML, over those of earlier -f and -y",
    )  # fmt: skip
    parser.add_argument(
        "--done", metavar="FILE", type=Path,
        help="in the directory of the results: written when the run has succeeded",
    )  # fmt: skip
    parser.add_argument(
        "--depends-on", metavar="PATH", type=Path, nargs="+", default=[],
        help="files, and packages of Python, that earlier results must have come from",
    )  # fmt: skip
    parser.add_argument(
        "--end-with", metavar="PID", type=int, help="end when this parent process has ended"
    )
    return parser.parse_args(arguments)


def _mapping(place: str, text: str | None) -> dict[str, Any]:
    try:
        values = parse_yaml(Path(place).read_bytes() if text is None else text)
    except OSError as error:
        raise InputError(f"cannot read {place} ({error.strerror}); correct the name") from None
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{place}: expected `name: value`, got {type(values).__name__}")
    return values


def _prepare(results: Path, key: str) -> None:
    """Leave in ``results`` what this run may go on from: its own beginnings, and what is not ours.

    What another run left there is put aside until this one has succeeded, and comes back when the
    other is asked for again: a value that only the notebook can refuse, and that is then corrected,
    costs nothing that was there.
    """
    aside = _aside(results)
    began, before = _mark(results), _mark(aside)
    if began not in (None, key) or (began is None and before == key and not results.exists()):
        if before == key:
            _remove(results)
            aside.rename(results)
            print(f"{results}: taken up again", file=sys.stderr)
        elif before is None or any(path.name != STARTED for path in results.iterdir()):
            _remove(aside)
            results.rename(aside)
            print(
                f"{results}: from other parameters, inputs or code: in {aside.name} until this "
                "run has succeeded",
                file=sys.stderr,
            )
    write_text_atomic(results / STARTED, key)


def _aside(results: Path) -> Path:
    results = results.resolve()
    return results.with_name(f".{results.name}.before")


def _mark(results: Path) -> str | None:
    mark = results / STARTED
    return mark.read_text("utf-8") if mark.is_file() else None


def _remove(results: Path) -> None:
    """Remove results of ours; the mark goes last, so that a removal cut short is done next time."""
    if results.exists():
        for path in sorted(results.iterdir(), key=lambda path: path.name == STARTED):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        results.rmdir()


def _publish(notebook: Path, partial: Path, output: Path, failure: str | None) -> None:
    """Move the executed notebook to its place, its paths relative and a dead kernel noted in it."""
    import nbformat

    if not partial.exists():  # nothing ran, so nothing was written
        raise NotebookFailed(failure or f"{notebook}: papermill wrote no notebook")
    executed = nbformat.read(partial, as_version=4)
    record = executed.metadata.papermill
    record.input_path = os.path.relpath(notebook.resolve(), ROOT)
    record.output_path = os.path.relpath(output.resolve(), ROOT)
    if failure and not record.exception:  # the kernel died: papermill has not noted where
        ran = [cell for cell in executed.cells if cell.metadata.papermill.get("start_time")]
        if ran:
            failure += f" in cell {len(ran)} of {len(executed.cells)}"
            ran[-1].metadata.papermill.update(exception=True, status="failed")
            if ran[-1].cell_type == "code":
                ran[-1].outputs.append(
                    nbformat.v4.new_output(
                        "error", ename="DeadKernelError", evalue=failure, traceback=[failure]
                    )
                )
        record.exception = True
    write_text_atomic(partial, nbformat.writes(executed) + "\n")
    os.replace(partial, output)
    if failure:
        raise NotebookFailed(f"{failure}; executed so far: {output}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _end_with(parent: int) -> NoReturn:
    # Polled: a death signal of the kernel (prctl) comes already when the *thread* that started us
    # ends, and Snakemake starts jobs from a pool of threads.
    while os.getppid() == parent:
        time.sleep(1)
    _end(1)


def _end_by_signal(number: int, frame: FrameType | None) -> NoReturn:
    _end(128 + number)


def _end(status: int) -> NoReturn:
    """End at once, kernels first: Jupyter starts them in sessions of their own."""
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
