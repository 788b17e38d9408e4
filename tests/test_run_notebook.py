"""experiments/run_notebook.py on notebooks of a few lines, each run by a real kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
from processes import ended, until
from run_notebook import fingerprint

ROOT = Path(__file__).resolve().parents[1]
RUN = [sys.executable, str(ROOT / "experiments" / "run_notebook.py")]

PARAMETERS = "# Parameters of this notebook\nwords: list[str] = []\noutput_dir: str = ''"
PARAMETERS += "\nmost: int | None = None"


def write_notebook(path: Path, *sources: str) -> Path:
    first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# A title"), first]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    metadata = {"kernelspec": {"name": "elsewhere", "display_name": "?", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_parameters_kernel_and_place_of_a_run(tmp_path):
    notebook = write_notebook(
        tmp_path / "a.ipynb",
        "import os, sys\nprint(words, sys.executable, os.getcwd(), sep='\\n')",
    )
    (tmp_path / "p.yaml").write_text("words: [from, file]\noutput_dir: there\nmost: 3\n")
    done = run(
        notebook, "out/b.ipynb", "-f", "p.yaml", "-y", "words: ['007', null-ish]", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "unknown parameter" not in done.stderr
    executed = nbformat.read(tmp_path / "out" / "b.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text.splitlines() == [
        "['007', 'null-ish']",
        sys.executable,
        str(ROOT),
    ]
    assert executed.metadata.papermill.parameters == {
        "words": ["007", "null-ish"],
        "output_dir": "there",
        "most": 3,
    }
    assert not executed.metadata.papermill.exception
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.ipynb"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-y", "word: [x]"], "unknown parameter 'word', did you mean 'words'?"),
        (["-y", "words: x"], "parameter 'words': expected list[str], got 'x' (str)"),
        (["-y", "words: [x"], "-y: line 1: not valid YAML"),
        (["-y", "most: 1\nmost: 2"], "-y: line 2: not valid YAML: the key 'most' stands twice"),
        (["-y", "just text"], "-y: expected `name: value`, got str"),
        (["-y", "words: 2026-13-45"], "-y: not valid YAML: month must be in 1..12"),
        (["-f", "absent.yaml"], "cannot read absent.yaml"),
        (["--depends-on", "absent.txt"], "cannot read absent.txt"),
    ],
)
def test_refused_before_it_starts(tmp_path, arguments, expected):
    notebook = write_notebook(tmp_path / "a.ipynb")
    refused = run(notebook, "b.ipynb", *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert expected in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "b.ipynb").exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "from r2d_core.errors import InputError\nraise InputError('seeds: none; give one')",
            "a.ipynb: seeds: none; give one; executed so far:",
        ),
        ("1 / 0", "a.ipynb: ZeroDivisionError in cell [3]: division by zero; executed so far:"),
        (
            "import os\nos._exit(9)",
            "a.ipynb: the kernel died (out of memory?) in cell 4 of 5; executed so far:",
        ),
    ],
)
def test_a_failure_is_one_line_and_leaves_the_notebook(tmp_path, source, expected):
    notebook = write_notebook(tmp_path / "a.ipynb", "print('before')", source, "print('after')")
    # No parameters: papermill adds no cell.
    failed = run(notebook, "b.ipynb", "--done", "results/finished.json", cwd=tmp_path)
    assert failed.returncode == 1
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in failed.stderr
    executed = nbformat.read(tmp_path / "b.ipynb", as_version=4)
    assert executed.metadata.papermill.exception
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert outputs[0].text == "before\n"
    assert outputs[-1].output_type == "error"
    assert not any("after" in output.get("text", "") for output in outputs)
    assert not (tmp_path / "results" / "finished.json").exists()


def test_a_good_page_stays_where_a_rerun_fails(tmp_path):
    """The failed one is beside it and said; but a book is made of no page that is not the last."""
    notebook = write_notebook(tmp_path / "a.ipynb", "print('ran')\nassert words != ['fail']")
    good, beside = tmp_path / "b.ipynb", tmp_path / "b.failed.ipynb"

    def again(words: str, *more: str) -> subprocess.CompletedProcess[str]:
        return run(notebook, "b.ipynb", "-y", f"words: [{words}]", *more, cwd=tmp_path)

    def failed(page: Path) -> bool:
        return bool(nbformat.read(page, as_version=4).metadata.papermill.exception)

    assert again("fail").returncode == 1
    assert failed(good) and not beside.exists()  # there was none
    assert again("well").returncode == 0
    assert not failed(good)
    page = good.read_bytes()
    said = again("fail")
    assert said.returncode == 1 and "executed so far: b.failed.ipynb" in said.stderr
    assert failed(beside) and good.read_bytes() == page
    assert again("well").returncode == 0
    assert not beside.exists() and not failed(good)
    assert again("fail", "--done", "results/finished.json").returncode == 1
    assert failed(good) and not beside.exists()


def test_earlier_results_stay_only_if_they_came_from_the_same(tmp_path):
    notebook = write_notebook(
        tmp_path / "a.ipynb",
        "from pathlib import Path\nkept = Path(output_dir, 'seed0').exists()\n"
        "Path(output_dir, 'seed0').mkdir(exist_ok=True)\nprint(kept)\nassert words != ['fail']",
    )
    results, source = tmp_path / "results", tmp_path / "input.json"
    source.write_text("1")
    results.mkdir()
    (results / "of_the_user").touch()

    def kept(words: str) -> str:
        run(
            *(notebook, "b.ipynb", "--done", results / "finished.json", "--depends-on", source),
            *("-y", json.dumps({"words": [words], "output_dir": str(results)})),
            cwd=tmp_path,
        )
        outputs = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[-1].outputs
        return outputs[0].text.strip()

    assert kept("fail") == "False"
    assert (results / "of_the_user").exists()  # it carried no mark of ours
    assert kept("fail") == "True"  # goes on where it failed
    assert kept("other") == "False"
    assert (results / "finished.json").exists()
    source.write_text("2")
    assert kept("other") == "False"


def test_what_was_there_comes_back_when_a_value_is_corrected(tmp_path):
    notebook = write_notebook(
        tmp_path / "a.ipynb",
        "from pathlib import Path\nassert words not in (['typo'], ['tpyo'])\n"
        "seed = Path(output_dir, words[0])\nprint(seed.exists())\nseed.touch()\n"
        "assert words != ['half']",
    )
    results = tmp_path / "results"
    aside = tmp_path / ".results.before"

    def outcome(words: str) -> tuple[int, list[str]]:
        (results / "finished.json").unlink(missing_ok=True)  # as Snakemake does
        done = run(
            *(notebook, "b.ipynb", "--done", results / "finished.json"),
            *("-y", json.dumps({"words": [words], "output_dir": str(results)})),
            cwd=tmp_path,
        )
        outputs = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[-1].outputs
        return done.returncode, [o.text.strip() for o in outputs if "text" in o]

    assert outcome("good") == (0, ["False"])
    assert not aside.exists()
    for wrong in ("typo", "tpyo", "tpyo"):
        assert outcome(wrong) == (1, [])
        assert (aside / "good").exists() and not (results / "good").exists()
    assert outcome("good") == (0, ["True"])
    assert not aside.exists()
    # A run that came some way counts: it is what is put aside next, and gone on with later.
    assert outcome("half") == (1, ["False"])
    assert outcome("typo") == (1, [])
    assert outcome("half") == (1, ["True"])
    assert outcome("good") == (0, ["False"])
    # Killed between the two moves, neither of which is left out next time.
    results.rename(aside)
    assert outcome("good") == (0, ["True"])
    assert not aside.exists()


def test_the_prompts_of_a_package_count_as_its_code(tmp_path):
    package = tmp_path / "package"
    (package / "prompts").mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    (package / "prompts" / "judge.txt").write_text("Is it harmful?")
    before = fingerprint({}, [package])
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "code.cpython-311.pyc").write_bytes(b"0")
    assert fingerprint({}, [package]) == before
    (package / "prompts" / "judge.txt").write_text("Is it?")
    assert fingerprint({}, [package]) != before


@pytest.mark.parametrize("victim", ["parent", "group", "terminated"])
def test_no_kernel_outlives_the_run(tmp_path, victim):
    notebook = write_notebook(
        tmp_path / "a.ipynb",
        "import os, pathlib, time\npathlib.Path(output_dir, 'pid.tmp').write_text(str(os.getpid()))"
        "\nos.replace(output_dir + '/pid.tmp', output_dir + '/pid')\ntime.sleep(600)",
    )
    command = [*RUN, str(notebook), str(tmp_path / "b.ipynb"), "-y", f"output_dir: '{tmp_path}'"]
    # As Snakemake starts it: a parent, in a process group of its own, that waits for its job.
    parent = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import os, subprocess, sys\n"
            "job = subprocess.Popen([*sys.argv[1:], '--end-with', str(os.getpid())])\n"
            "print(job.pid, flush=True)\n"
            "job.wait()",
            *command,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    job = int(parent.stdout.readline())
    until((tmp_path / "pid").exists)
    kernel = int((tmp_path / "pid").read_text())
    assert not ended(kernel)
    if victim == "parent":
        parent.kill()
    elif victim == "group":
        os.killpg(parent.pid, 9)
    else:
        psutil.Process(job).terminate()
    parent.wait(60)
    until(lambda: ended(job) and ended(kernel))
