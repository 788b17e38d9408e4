"""Make the HTML book from an experiment's results.

    python experiments/build_book.py --experiment toy

The book is rendered from ``_build/source``, a tree with the repository's own paths (so that
"launch" and "source" links hold), into ``_build/html``:

- the prose of ``book/`` and, for each notebook of ``_toc.yml``, the executed copy of the headline
  run (first base seed, R2D);
- every other run, under ``runs/``, in a part of its own of the table of contents;
- what only the results know: the front page's figure and findings, the paper's tables with
  intervals, the provenance footer of every page, the data to download.

A notebook that failed, or is missing, stops the build before it starts. Sphinx always builds from
nothing (its increments keep stale numbers); when nothing at all changed, nothing is done. The old
book stays until the new one is whole.

Exit status: 0 done, 1 Sphinx found a fault, 2 the results are not fit for a book.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import beside_full
import paper_tables
import run_twice
from publish import cells

from r2d_core.errors import InputError
from r2d_core.experiment import Experiment, load_experiment
from r2d_core.provenance import provenance
from r2d_core.records import atomic_directory, read_json, write_text_atomic
from r2d_core.toy.results import read_published

ROOT = Path(__file__).resolve().parents[1]
SMOKE_BANNER = (
    "<strong>Smoke test.</strong> This build's own runs are so small that they only show that the "
    "machinery works. The numbers mean nothing, those of the full experiment excepted."
)
DATA = (".csv", ".gz", ".json", ".jsonl", ".yaml")  # a run's files that its page offers
MEASURED = {  # chapters of measurements that are committed, and their files
    "09_the_loss": ["benchmarks/results/loss-*"],
    "11_authors_recipe": ["book/recipes/paper_*", "book/recipes/effects_*"],
    "12_beyond_the_paper": ["book/recipes/beyond_*"],
    "13_the_fields_attacks": ["book/attacks/*"],
    "14_speed": ["benchmarks/results/*"],
}
TOOLS = ("jupyter-book", "sphinx", "sphinx-book-theme", "myst-nb", "sphinxcontrib-bibtex")


@dataclass(frozen=True)
class Run:
    """One executed notebook: ``name`` is its source's, without suffix."""

    name: str
    base_seed: int | None
    method: str | None
    file: Path

    @property
    def docname(self) -> str:
        """Its page, when it is not the headline run."""
        parts = ["runs"]
        if self.base_seed is not None:
            parts.append(f"base{self.base_seed}")
        if self.method is not None:
            parts.append(self.method)
        return "/".join([*parts, self.name])

    @property
    def label(self) -> str:
        """Its line in the table of contents."""
        parts = [] if self.method is None else [self.method]
        if self.base_seed is not None:
            parts.append(f"base {self.base_seed}")
        return f"{self.name[:2]} {', '.join(parts)}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="build_book.py", description="Make the HTML book.")
    parser.add_argument("--experiment", required=True, help="a name in experiments/ and results/")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    options = parser.parse_args(arguments)
    root: Path = options.root.resolve()
    try:
        with atomic_directory(root / "_build" / "source") as staged:
            stage(root, options.experiment, staged)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return build(root / "_build")


def build(home: Path) -> int:
    """Render ``home/source`` into ``home/html``, from nothing, unless it is that already."""
    stamp, fresh = home / "html.sha256", _tree_hash(home / "source")
    front = home / "html" / "index.html"
    if front.exists() and stamp.exists() and stamp.read_text() == fresh:
        print(f"nothing changed: {front}")
        return 0
    work = home / "next"
    shutil.rmtree(work, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(home / "source")]
    command += ["--path-output", str(work), "--all", "-W", "-n", "--keep-going"]
    # Sphinx's workers are single-threaded and so are ours: no threads of a numeric library.
    environment = os.environ | {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        print(
            "error: the book was not built; the warnings above name the page and line to mend",
            file=sys.stderr,
        )
        return 1
    stamp.unlink(missing_ok=True)
    shutil.rmtree(home / "html", ignore_errors=True)
    os.replace(work / "_build" / "html", home / "html")
    shutil.rmtree(work)
    write_text_atomic(stamp, fresh)
    print(f"the book: {front}")
    return 0


# ------------------------------------------------------------------------------------------------
# Staging


def stage(root: Path, name: str, staged: Path) -> None:
    """Fill ``staged`` with everything that Sphinx reads; InputError for unfit results."""
    experiment = load_experiment(root / "experiments" / f"{name}.yaml")
    results = root / "results" / name
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    runs = executed_runs(experiment, results / "notebooks")
    headline = {run.name: run for run in headline_runs(toc, experiment, runs, results)}

    shutil.copytree(
        root / "book", staged / "book", ignore=shutil.ignore_patterns("__pycache__", "generated")
    )
    for run in headline.values():
        _stage_notebook(run, results, staged, root, f"notebooks/{run.name}")
    others = [run for run in runs if run not in headline.values()]
    for run in others:
        note = f"*One of {{doc}}`all runs </runs/index>`: {run.label[3:]}.*"
        _stage_notebook(run, results, staged, root, run.docname, note)

    downloads = _stage_data(results, staged / "runs" / "data", name)
    write_text_atomic(
        staged / "runs" / "index.md", _runs_page(experiment, headline, runs, downloads)
    )
    _stage_generated(root, results, staged / "book" / "generated")
    toc.setdefault("parts", []).append(_all_runs_part(others))
    write_text_atomic(staged / "_toc.yml", yaml.safe_dump(toc, sort_keys=False))
    config = yaml.safe_load((root / "_config.yml").read_text())
    config["html"]["extra_footer"] = footer(experiment, results, root)
    if name == "smoke":
        config["html"]["announcement"] = SMOKE_BANNER
    write_text_atomic(staged / "_config.yml", yaml.safe_dump(config, sort_keys=False))


def _runs_of(notebook: str) -> tuple[bool, bool]:
    """Whether the grid runs a notebook once a base seed, and once a method."""
    by_method = notebook in ("03_cpo_training", "04_attack_evaluation")
    by_base = ("01_toy_world", "02_vocabulary_expansion", "05_over_refusal_and_utility")
    return by_method or notebook in by_base, by_method


def executed_runs(experiment: Experiment, folder: Path) -> list[Run]:
    """The executed notebooks of the experiment's grid, in order; InputError if one failed."""
    runs = []
    for file in sorted(folder.glob("*.ipynb")):
        match = re.fullmatch(r"(\d\d_\w+?)(?:-base(\d+))?(?:-(\w+))?", file.stem)
        if match is None:
            continue
        base_seed = None if match[2] is None else int(match[2])
        if base_seed is not None and base_seed not in experiment.base_seeds:
            continue
        if match[3] is not None and match[3] not in experiment.methods:
            continue
        if (base_seed is not None, match[3] is not None) != _runs_of(match[1]):
            continue  # left by another layout of the grid
        if problem := _failure(file):
            raise InputError(
                f"{file}: {problem}; a book is not made from failed runs, run it again"
            )
        runs.append(Run(match[1], base_seed, match[3], file))
    return sorted(runs, key=lambda run: (run.name, run.base_seed or 0, _rank(experiment, run)))


def headline_runs(
    toc: dict[str, Any], experiment: Experiment, runs: list[Run], results: Path
) -> Iterator[Run]:
    """The run that each notebook of the table of contents stands for."""
    method = "r2d"
    for name in _notebooks_in(toc):
        fit = [
            run
            for run in runs
            if run.name == name
            and run.base_seed in (None, experiment.base_seeds[0])
            and run.method in (None, method)
        ]
        if not fit:
            raise InputError(
                f"{results / 'notebooks'}: no executed {name} for base seed "
                f"{experiment.base_seeds[0]} and {method}; finish the experiment with `python "
                f"experiments/run_experiment.py experiments/{experiment.name}.yaml`"
            )
        yield fit[0]


def _rank(experiment: Experiment, run: Run) -> int:
    return experiment.methods.index(run.method) if run.method else 0


def _notebooks_in(toc: Any) -> Iterator[str]:
    if isinstance(toc, dict):
        file = toc.get("file", "")
        if file.startswith("notebooks/"):
            yield file.removeprefix("notebooks/").removesuffix(".ipynb")
        toc = list(toc.values())
    if isinstance(toc, list):
        for each in toc:
            yield from _notebooks_in(each)


def _failure(file: Path) -> str:
    """What went wrong in an executed notebook, or nothing. papermill leaves three traces."""
    try:
        notebook = nbformat.read(file, as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        return f"not a readable notebook ({' '.join(str(error).split())[:100]})"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                said = " ".join(f"{output.ename}: {output.evalue}".split())
                return f"the notebook failed: {said[:200]}"
        if "papermill-error-cell-tag" in cell.metadata.get("tags", []):
            return "the notebook failed"
    recorded = notebook.metadata.get("papermill", {})
    if recorded.get("exception"):
        return "the notebook failed"
    if recorded and not recorded.get("end_time"):
        return "the notebook has not ended"
    return ""


def _stage_notebook(
    run: Run, results: Path, staged: Path, root: Path, docname: str, note: str = ""
) -> None:
    """The executed notebook as a page, with ``note`` under its title and its data at its end.

    What libraries said while it ran is left out (`_without_progress`).
    """
    notebook = nbformat.read(run.file, as_version=4)
    if note and notebook.cells and notebook.cells[0].cell_type == "markdown":
        notebook.cells[0].source += f"\n\n{note}"
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = _without_progress(cell.outputs)
    if data := _data_of(run, notebook, results, staged, root):
        notebook.cells.append(nbformat.v4.new_markdown_cell(data, id="data-of-this-run"))
    target = staged / f"{docname}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def _without_progress(outputs: list[Any]) -> list[Any]:
    """Outputs less what libraries say while they work: progress bars, warnings, lines of a log.

    The executed notebook keeps them.
    """
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            lines = output.text.splitlines(keepends=True)
            said = "".join(line for line in lines if not _LOGGED.match(line))
            if output.name == "stderr" or not said:
                continue
            output = nbformat.from_dict({**output, "text": said})
        elif _WIDGET in output.get("data", {}):
            continue
        kept.append(output)
    return kept


_WIDGET = "application/vnd.jupyter.widget-view+json"  # a bar that was live, and is a dead line now
_LOGGED = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\] \[[A-Z]+\] ")  # DeepSpeed's, on stdout


def _data_of(run: Run, notebook: Any, results: Path, staged: Path, root: Path) -> str:
    """Links to the run's data, copied beside the pages: what it left in its ``output_dir``, and for
    a chapter that shows committed measurements those files.
    """
    values = notebook.metadata.get("papermill", {}).get("parameters", {})
    inside = Path(str(values.get("output_dir", ""))).parts[2:]  # below results/<experiment>
    folder = results.joinpath(*inside)
    files = {}  # what it is called on the page -> the file
    if inside and folder.is_dir():
        files = {file.relative_to(folder).as_posix(): file for file in _data_in(folder)}
    for pattern in MEASURED.get(run.name, ()):
        files |= {file.name: file for file in sorted(root.glob(pattern)) if file.suffix in DATA}
    links = []
    for name, file in files.items():
        place = file.relative_to(results if file.is_relative_to(results) else root)
        copy = Path("runs", "data", place)
        (staged / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, staged / copy)
        links.append(f"{{download}}`{name} </{copy.as_posix()}>`")
    if not links:
        return ""
    return f"**The data of this run:** {', '.join(links)}; more on {{doc}}`/runs/index`."


def _data_in(folder: Path) -> list[Path]:
    """Tables and records anywhere below, but not what belongs to a model or to the runner."""
    found = []
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder).parts
        ours = any(
            part in ("model", "adapter") or part.startswith((".", "checkpoints-"))
            for part in inside
        )
        if file.is_file() and file.suffix in DATA and file.name != "finished.json" and not ours:
            found.append(file)
    return found


# ------------------------------------------------------------------------------------------------
# What only the results know


def _stage_generated(root: Path, results: Path, target: Path) -> None:
    figure = _result(results / "results" / "main_figure.svg")
    findings = _result(results / "results" / "findings.md")
    parts = {
        "main_figure.md": _raw_figure(figure),
        "findings.md": findings,
    }
    paper = paper_tables.read_paper(root / "book" / "paper_results.csv")
    parts |= paper_tables.pages(paper, read_published(root / "book" / "languages").attacks)
    # The full experiment has to be there; others are, which a page may include.
    kept = {root / "book" / "full", *(grid.parent for grid in (root / "book").glob("*/grid.yaml"))}
    for folder in sorted(kept):
        parts |= _published(folder)
    parts |= beside_full.parts(root / "book") | run_twice.parts(root / "book")
    for file, text in parts.items():
        write_text_atomic(target / file, text + "\n")


def _published(kept: Path) -> dict[str, str]:
    """An experiment's committed figures, and how they were made (`experiments/publish.py`)."""
    file = kept / "results.json"
    if not file.is_file():
        raise InputError(f"{file}: no such file; experiments/{kept.name}.yaml says what writes it")
    record = read_json(file)
    hardware, versions = record["hardware"], record["versions"]
    said = (
        f"Made from commit `{record['commit'][:12]}` on {record['ended'][:10]} with torch "
        f"{versions['torch']} and transformers {versions['transformers']} on "
        f"{_plain(str(hardware['cpu']))}, {hardware['cores']} cores; safety seeds "
        f"{', '.join(map(str, record['seeds']))}."
    )
    if record["source_sha256"] != provenance({}, [], datetime.now(UTC))["source_sha256"]:
        said += (
            " *The package has changed since*: the same grid, run now, need not give these numbers."
        )
    figures = {f"{kept.name}_{f.stem}.md": _raw_figure(f.read_text()) for f in kept.glob("*.svg")}
    return {f"{kept.name}_provenance.md": said} | figures


def _raw_figure(svg: str) -> str:
    return f'`````{{raw}} html\n<div class="r2d-figure">{svg}</div>\n`````'


def _result(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        raise InputError(
            f"{file}: no such file; the notebook 07_results_at_a_glance writes it, run it again"
        ) from None


def _stage_data(results: Path, target: Path, name: str) -> list[tuple[str, int]]:
    """The tables of the comparison and all its cells one by one, all records as one zip."""
    target.mkdir(parents=True, exist_ok=True)
    downloads = []
    for folder in ("results", "ablations"):
        for file in sorted((results / folder).glob("*.csv")):
            shutil.copyfile(file, target / f"{folder}_{file.name}")
            downloads.append((f"{folder}_{file.name}", file.stat().st_size))
    table = cells(results)
    table.to_csv(target / "cells.csv", index=False)
    downloads.append(("cells.csv", (target / "cells.csv").stat().st_size))
    archive = target / f"r2d-{name}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        for file in sorted(results.rglob("*")):
            inside = file.relative_to(results)
            hidden = any(part.startswith(".") for part in inside.parts)
            wanted = file.suffix in (*DATA, ".svg", ".md")
            if file.is_file() and wanted and not hidden and "model" not in inside.parts:
                # One date for all, so that equal results make an equal archive.
                entry = zipfile.ZipInfo(f"r2d-{name}/{inside.as_posix()}", (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                bundle.writestr(entry, file.read_bytes())
    return [(archive.name, archive.stat().st_size), *downloads]


def _runs_page(
    experiment: Experiment,
    headline: dict[str, Run],
    runs: list[Run],
    downloads: list[tuple[str, int]],
) -> str:
    lines = [
        "# All runs and their data",
        "",
        f"Every notebook run of the experiment `{experiment.name}` ({_plain(experiment.title)}), "
        "as it was executed. The chapters of the book show the first base seed and R2D, here "
        "called the headline run.",
        "",
        "## Data",
        "",
    ]
    for name, size in downloads:
        what = "every record of every run" if name.endswith(".zip") else "table"
        lines.append(f"- {{download}}`{name} <data/{name}>` ({_size(size)}): {what}")
    lines += ["", "## Runs", "", "| notebook | base seed | method | page |", "|---|---|---|---|"]
    for run in runs:
        chapter = headline.get(run.name) == run
        page = f"/notebooks/{run.name}" if chapter else f"/{run.docname}"
        text = "headline run" if chapter else "run"
        base = "–" if run.base_seed is None else run.base_seed
        lines.append(f"| {run.name} | {base} | {run.method or '–'} | {{doc}}`{text} <{page}>` |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([^\w\s])", r"\\\1", " ".join(text.split()))


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MB" if count >= 2**20 else f"{max(count / 2**10, 0.1):.1f} kB"


def _all_runs_part(others: list[Run]) -> dict[str, Any]:
    index: dict[str, Any] = {"file": "runs/index", "title": "All runs and their data"}
    if others:
        index["sections"] = [{"file": run.docname, "title": run.label} for run in others]
    return {"caption": "All runs", "chapters": [index]}


def footer(experiment: Experiment, results: Path, root: Path) -> str:
    """What made the numbers of the book, in two lines, from the records that the runs left."""
    made = ("base*/world/world", "base*/expanded/expanded", "base*/*/training/trained",
            "base*/*/attacks/attacks", "base*/utility/utility", "ablations/ablations",
            "results/results")  # fmt: skip
    files = sorted(file for pattern in made for file in results.glob(f"{pattern}.json"))
    if not files:
        raise InputError(
            f"{results}: no attacks.json, utility.json, ablations.json or results.json says what "
            "made the numbers; finish the experiment"
        )
    records = [read_json(file) for file in files]
    latest = max(records, key=lambda record: record["ended"])
    commits = sorted(
        {f"{str(each['commit'])[:12]}{'+' if each['dirty'] else ''}" for each in records}
    )
    versions = latest["versions"]
    hardware = latest["hardware"]
    machine = ", ".join(hardware.get("gpus") or [f"{hardware['cpu']}, {hardware['cores']} threads"])
    first, last = min(each["started"] for each in records)[:10], latest["ended"][:10]
    numbers = [
        f"This build's own runs: experiment {experiment.name}, {experiment.title}, "
        f"{experiment.partition} items, {len(experiment.base_seeds)} base × "
        f"{len(experiment.safety_seeds)} safety seeds",
        f"run {first if first == last else f'{first} to {last}'}",
        f"commit {', '.join(commits)}",
        ", ".join(f"{name} {versions[name]}" for name in _SHOWN if name in versions),
        machine,
    ]
    built = f"Book built {datetime.now(UTC):%Y-%m-%d} from commit {_head(root)}"
    note = " A + marks a commit with uncommitted changes." if "+" in "".join(commits) else ""
    return (
        f'<div class="r2d-provenance"><p>{html.escape(" · ".join(numbers))}</p>'
        f"<p>{html.escape(built)}.{note}</p></div>"
    )


_SHOWN = ("python", "torch", "transformers")


def _head(root: Path) -> str:
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("R2D_COMMIT", "unknown")[:12]
    return found.stdout.strip()


def _tree_hash(tree: Path) -> str:
    digest = hashlib.sha256()
    for tool in TOOLS:
        digest.update(f"{tool} {metadata.version(tool)}\n".encode())
    for file in sorted(path for path in tree.rglob("*") if path.is_file()):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(tree).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
