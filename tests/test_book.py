"""The book: built from made-up runs with hostile text in them, and read in a real browser."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from browser import HOSTILE, browser, pages_of, served, visit_every_page
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from r2d_core import plots

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
import build_book  # noqa: E402

METHODS, ATTACKS = ("vanilla", "r2d"), ("direct", "wrapper")
PER_RUN = {  # notebook -> what its runs differ in
    "01_toy_world": "base",
    "02_vocabulary_expansion": "base",
    "03_cpo_training": "arm",
    "04_attack_evaluation": "arm",
    "05_over_refusal_and_utility": "base",
    "06_ablations": "",
    "07_results_at_a_glance": "",
    "08_training_data": "",
    "09_the_loss": "",
    "10_judge_agreement": "",
    "11_authors_recipe": "",
    "12_beyond_the_paper": "",
    "13_the_fields_attacks": "",
    "14_speed": "",
    "15_evaluate_a_model": "",
    "16_train_a_model": "",
}


def attack_table(method: str, base_seed: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "method": method, "base_seed": base_seed, "seed": 0, "attack": attack,
            "split": "seen", "scope": "whole", "n": 20,
            "harmful": 18 if method == "vanilla" else 2 * at, "refused": 10 - 5 * at,
            "correct": 0, "garbled": 1, "prompt_tokens": 9.0, "response_tokens": 12.0,
        }
        for at, attack in enumerate(ATTACKS)
    )  # fmt: skip


@functools.cache
def executed(name: str) -> nbformat.NotebookNode:
    """What a run leaves: parameters, a hostile table, hostile print-out, a figure, a trace."""
    shown = pd.DataFrame({"prompt": [HOSTILE], "completion": [HOSTILE[::-1]]})
    figure = plots.asr_intervals(attack_table("r2d", 0), alt=f"{name}: {HOSTILE}")
    trace = plots.pivot_trace(
        [plots.TraceToken(HOSTILE), plots.TraceToken("[UNSAFE]", 0.1, 0.8)],
        alt=name,
        prompt=HOSTILE,
    )

    def displayed(thing, count):
        if isinstance(thing, pd.DataFrame):
            data = {"text/html": thing.to_html(), "text/plain": str(thing)}
        else:
            data = thing._repr_mimebundle_()
        return [new_output("execute_result", data=data, execution_count=count)]

    cells = [
        new_markdown_cell(f"# {name}\n\nA sentence with $x^2$ and\n\n$$\ny = \\sum_i x_i\n$$"),
        new_code_cell("seed = 0", metadata={"tags": ["parameters"]}, execution_count=1),
        new_code_cell("print(completion)", outputs=[new_output("stream", text=HOSTILE + "\n")],
                      execution_count=2),
        new_code_cell("table", outputs=displayed(shown, 3), execution_count=3),
        new_code_cell("figure", outputs=displayed(figure, 4), execution_count=4),
        new_code_cell("trace", outputs=displayed(trace, 5), execution_count=5),
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    ran = {"start_time": "2026-11-23T01:00:00", "end_time": "2026-11-23T01:01:00"}
    about = {"kernelspec": kernel, "papermill": ran | {"exception": None}}
    return new_notebook(cells=cells, metadata=about)


def make_root(root: Path, experiment: str = "toy") -> Path:
    """A repository's book rooms with the results of a made-up experiment."""
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "book", root / "book")
    (root / "experiments").mkdir()
    (root / "experiments" / f"{experiment}.yaml").write_text(
        f"name: {experiment}\ntitle: A made-up experiment <b>\nbase_seeds: [0, 1]\n"
        f"safety_seeds: [0]\nmethods: [{', '.join(METHODS)}]\nattacks: [{', '.join(ATTACKS)}]\n"
    )
    results = root / "results" / experiment
    notebooks = results / "notebooks"
    notebooks.mkdir(parents=True)
    for name, kind in PER_RUN.items():
        runs = {"": [name]}
        runs["base"] = [f"{name}-base{base}" for base in (0, 1)]
        runs["arm"] = [f"{name}-base{base}-{method}" for base in (0, 1) for method in METHODS]
        for run in runs[kind]:
            if run.startswith("03") and "vanilla" in run:
                continue
            notebook = copy.deepcopy(executed(name))
            if name == "07_results_at_a_glance":
                written = {"output_dir": f"results/{experiment}/results"}
                notebook.metadata.papermill["parameters"] = written
            nbformat.write(notebook, notebooks / f"{run}.ipynb")
    record = {
        "commit": "0123456789abcdef", "dirty": True, "started": "2026-11-22T23:00:00+00:00",
        "ended": "2026-11-23T01:00:00+00:00", "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"cpu": "A <b>CPU</b>", "cores": 2, "gpus": []},
    }  # fmt: skip
    for base in (0, 1):
        for method in METHODS:
            home = results / f"base{base}" / method / "attacks"
            home.mkdir(parents=True)
            attack_table(method, base).to_csv(home / "table.csv", index=False)
            (home / "attacks.json").write_text(json.dumps(record))
        (results / f"base{base}" / "utility").mkdir()
        attack_table("r2d", base).to_csv(results / f"base{base}/utility/table.csv", index=False)
    tables = pd.concat([attack_table(method, 0) for method in METHODS])
    (results / "results").mkdir()
    tables.to_csv(results / "results" / "rates.csv", index=False)
    plots.asr_heatmap(tables, alt="rates").save(results / "results" / "main_figure.svg")
    (results / "results" / "findings.md").write_text("R2D: **1 of 20** [0.9, 23.6].\n")
    return root


def build(root: Path, experiment: str = "toy") -> int:
    return build_book.main(["--experiment", experiment, "--root", str(root)])


# ------------------------------------------------------------------------------------------------
# Unfit results


def spoil_output(root: Path) -> None:
    file = root / "results/toy/notebooks/04_attack_evaluation-base1-vanilla.ipynb"
    notebook = nbformat.read(file, as_version=4)
    failed = new_output("error", ename="InputError", evalue="no such attack", traceback=["…"])
    notebook.cells[2].outputs = [failed]
    nbformat.write(notebook, file)


def spoil_metadata(root: Path) -> None:
    file = root / "results/toy/notebooks/07_results_at_a_glance.ipynb"
    notebook = nbformat.read(file, as_version=4)
    notebook.metadata.papermill.exception = True
    nbformat.write(notebook, file)


def spoil_tag(root: Path) -> None:
    file = root / "results/toy/notebooks/06_ablations.ipynb"
    notebook = nbformat.read(file, as_version=4)
    notebook.cells.insert(
        0, new_markdown_cell("failed", metadata={"tags": ["papermill-error-cell-tag"]})
    )
    nbformat.write(notebook, file)


def never_ended(root: Path) -> None:
    file = root / "results/toy/notebooks/01_toy_world-base1.ipynb"
    notebook = nbformat.read(file, as_version=4)
    notebook.metadata.papermill.end_time = None
    nbformat.write(notebook, file)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_output, "04_attack_evaluation-base1-vanilla.ipynb: the notebook failed: InputError"),
        (spoil_metadata, "07_results_at_a_glance.ipynb: the notebook failed"),
        (spoil_tag, "06_ablations.ipynb: the notebook failed"),
        (never_ended, "01_toy_world-base1.ipynb: the notebook has not ended"),
        (
            lambda root: (root / "results/toy/notebooks/03_cpo_training-base0-r2d.ipynb").unlink(),
            "no executed 03_cpo_training for base seed 0 and r2d",
        ),
        (
            lambda root: (root / "results/toy/notebooks/06_ablations.ipynb").write_text("{"),
            "06_ablations.ipynb: not a readable notebook",
        ),
        (
            lambda root: (root / "results/toy/results/findings.md").unlink(),
            "findings.md: no such file; the notebook 07_results_at_a_glance writes it",
        ),
        (
            lambda root: (root / "book/languages/outcomes.csv.gz").unlink(),
            "book/languages/outcomes.csv.gz: no such file",
        ),
        (
            lambda root: [each.unlink() for each in root.glob("results/toy/base*/*/*/*.json")],
            "results.json says what made the numbers",
        ),
    ],
)
def test_unfit_results_stop_the_build_with_one_line(tmp_path, capsys, spoil, says):
    root = make_root(tmp_path)
    spoil(root)
    assert build(root) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1, said
    assert not (root / "_build" / "html").exists()
    assert not (root / "_build" / "source").exists()


# ------------------------------------------------------------------------------------------------
# A whole book


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    root = make_root(tmp_path_factory.mktemp("book"), "smoke")
    assert build(root, "smoke") == 0
    return root


@pytest.mark.slow
def test_every_page_has_footer_and_banner_and_an_unchanged_book_is_kept(book, capsys):
    html = book / "_build" / "html"
    named = set(pages_of(html))
    assert {"book/index.html", "runs/index.html", "book/paper.html"} <= named
    assert "notebooks/03_cpo_training.html" in named  # the headline run, at its source's place
    assert "runs/base1/vanilla/04_attack_evaluation.html" in named
    assert "runs/base0/r2d/03_cpo_training.html" not in named
    for page in named:
        text = (html / page).read_text()
        if 'http-equiv="Refresh"' in text:
            continue
        assert "commit 0123456789ab+" in text, page
        assert "A &lt;b&gt;CPU&lt;/b&gt;" in text, page
        assert "The numbers mean nothing" in text, page
    front = (html / "book/index.html").read_text()
    assert "1 of 20" in front and 'aria-label="rates"' in front
    assert build(book, "smoke") == 0
    assert "nothing changed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_page_offers_the_data_of_its_run(book):
    html = book / "_build" / "html"
    page = (html / "notebooks/07_results_at_a_glance.html").read_text()
    (link,) = re.findall(r'href="\.\./(_downloads/[^"]*/rates\.csv)"', page)
    rates = book / "results" / "smoke" / "results" / "rates.csv"
    assert (html / link).read_bytes() == rates.read_bytes()
    assert "cells.csv" in (html / "runs/index.html").read_text()


def test_a_page_offers_what_lies_deeper_and_what_is_committed(tmp_path):
    results, staged = tmp_path / "results" / "toy", tmp_path / "staged"
    files = (
        "results/toy/base0/r2d/attacks/table.csv",
        "results/toy/base0/r2d/attacks/seed0/completions.jsonl",
        "results/toy/base0/r2d/attacks/seed0/model/config.json",
        "results/toy/base0/r2d/attacks/seed0/checkpoints-12/sources.json",
        "results/toy/base0/r2d/attacks/finished.json",
        "results/toy/base0/r2d/attacks/.left/table.csv",
        "book/attacks/field.csv",
        "book/attacks/field_outcomes.csv.gz",
        "benchmarks/results/loss-cpu.json",
    )
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(file)

    def offered(name: str, output_dir: str = "") -> list[str]:
        notebook = new_notebook(cells=[new_markdown_cell("# A title")])
        notebook.metadata.papermill = {"parameters": {"output_dir": output_dir}}
        nbformat.write(notebook, tmp_path / "run.ipynb")
        run = build_book.Run(name, None, None, tmp_path / "run.ipynb")
        build_book._stage_notebook(run, results, staged, tmp_path, "page")
        text = nbformat.read(staged / "page.ipynb", as_version=4).cells[-1].source
        links = re.findall(r"{download}`(\S+) </(\S+)>`", text)
        assert all((staged / place).read_text().endswith(name) for name, place in links)
        return [name for name, _ in links]

    assert offered("04_attack_evaluation", "results/toy/base0/r2d/attacks") == [
        "seed0/completions.jsonl",
        "table.csv",
    ]
    assert offered("13_the_fields_attacks") == ["field.csv", "field_outcomes.csv.gz"]
    assert offered("09_the_loss") == ["loss-cpu.json"]
    assert offered("11_authors_recipe") == []


def test_a_page_has_no_progress_bars_and_no_log(tmp_path):
    bar = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Loading weights: 0%"}
    logged = "[2026-11-27 04:35:19,060] [WARNING] [real.py:213:get] Setting accelerator to CPU.\n"
    outputs = [
        new_output("stream", name="stderr", text="Loading weights: 100%\n"),
        new_output("stream", name="stdout", text=logged),
        new_output("display_data", data=bar),
        new_output("stream", name="stdout", text=f"[2026] is said\n{logged}and this\n"),
        new_output("display_data", data={"text/html": "<p>a table</p>"}),
    ]
    notebook = new_notebook(cells=[new_markdown_cell("# A title"), new_code_cell(outputs=outputs)])
    nbformat.write(notebook, tmp_path / "run.ipynb")
    run = build_book.Run("04_attack_evaluation", None, None, tmp_path / "run.ipynb")
    build_book._stage_notebook(run, tmp_path / "results", tmp_path, tmp_path, "page")
    (_, cell) = nbformat.read(tmp_path / "page.ipynb", as_version=4).cells
    assert [each.get("text", each.get("data")) for each in cell.outputs] == [
        "[2026] is said\nand this\n",
        {"text/html": "<p>a table</p>"},
    ]
    assert len(nbformat.read(tmp_path / "run.ipynb", as_version=4).cells[1].outputs) == 5


@pytest.mark.slow
def test_launch_links_lead_to_the_sources(book):
    html = book / "_build" / "html"
    for page in ("notebooks/03_cpo_training.html", "runs/base1/r2d/03_cpo_training.html"):
        text = (html / page).read_text()
        assert "lab/tree/notebooks/03_cpo_training.ipynb" in text
        assert "lab/tree/runs/" not in text


@pytest.mark.slow
def test_in_a_browser_every_page_is_whole_and_nothing_runs_or_leaves(book, tmp_path):
    shown = visit_every_page(book / "_build" / "html", tmp_path)
    assert len(shown) > 15
    assert "window.hacked = 1" in shown["notebooks/03_cpo_training.html"]


@pytest.mark.slow
def test_mathematics_is_set_without_a_network(book, tmp_path):
    with served(book / "_build" / "html") as address, browser(tmp_path) as driver:
        driver.get(f"{address}/book/method.html")
        driver.set_script_timeout(60)
        set_formulas = driver.execute_async_script(
            "const done = arguments[0]; MathJax.startup.promise.then("
            "() => done(document.querySelectorAll('mjx-container svg').length))"
        )
        assert set_formulas > 10
        driver.get(f"{address}/search.html?q=recovery")
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        found = "#search-results li a"
        WebDriverWait(driver, 30).until(lambda at: at.find_elements(By.CSS_SELECTOR, found))
