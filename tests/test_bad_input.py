"""Bad input, as a user meets it: one clear line and a non-zero exit, notebook and batch alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from tiny_models import tiny_model, tiny_tokenizer

from r2d_core.errors import InputError
from r2d_core.toy.measure import load

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def kernels_at_once(warm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in warm.items():
        monkeypatch.setenv(name, value)


def run_notebook(name: str, out: Path, *values: str) -> subprocess.CompletedProcess[str]:
    parameters = [word for value in values for word in ("-y", value)]
    return subprocess.run(
        [
            sys.executable,
            "experiments/run_notebook.py",
            f"notebooks/{name}.ipynb",
            out,
            *parameters,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr that begins with "error:"."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def shown_in_notebook(out: Path) -> str:
    """What the failed notebook shows where it stopped: one line as well."""
    errors = [
        output
        for cell in nbformat.read(out, as_version=4).cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    assert len(errors) == 1
    assert len(errors[0].traceback) == 1 and "\n" not in errors[0].traceback[0]
    return errors[0].traceback[0]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("atacks: [direct]", ["atacks", "did you mean 'attacks'"]),
        ("seeds: three", ["seeds", "list[int]", "three"]),
        ("attacks: direct", ["attacks", "list[str]"]),
    ],
)
def test_a_parameter_is_refused_before_a_kernel_starts(
    tmp_path: Path, value: str, says: list[str]
) -> None:
    done = run_notebook("04_attack_evaluation", tmp_path / "out.ipynb", value)
    assert done.returncode == 2
    assert all(word in complaint(done) for word in says)
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("notebook", "value", "says"),
    [
        # "a/b" could be a name on the hub: a checkpoint is a folder, and nothing is asked for.
        ("02_vocabulary_expansion", "checkpoint: a/nowhere", "no checkpoint at"),
        ("03_cpo_training", "checkpoint: a/nowhere", "no checkpoint at"),
        ("04_attack_evaluation", "checkpoint: {}/nowhere", "no checkpoint at"),
        ("05_over_refusal_and_utility", "models_dir: {}/nowhere", "no checkpoint at"),
        ("08_training_data", "tokenizer: {}/nowhere", "cannot be loaded"),
        ("16_train_a_model", "base: {}/nowhere", "no checkpoint at"),
        (
            "16_train_a_model",
            "{{parameter_set: experiments/models/llama3-8b.yaml, model: {0}/nowhere, data: {0}}}",
            "cannot be loaded",
        ),
    ],
)
def test_a_missing_checkpoint(tmp_path: Path, notebook: str, value: str, says: str) -> None:
    out = tmp_path / "out.ipynb"
    place = f"output_dir: {tmp_path}/results"
    done = run_notebook(notebook, out, value.format(tmp_path), place)
    assert done.returncode == 1
    for text in (complaint(done), shown_in_notebook(out)):
        assert says in text and "nowhere" in text
        assert "correct the path" in text or "give a folder" in text


def test_a_broken_checkpoint(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_model("word", tiny_tokenizer("word")).save_pretrained(model)
    with pytest.raises(InputError, match="model: the checkpoint cannot be loaded"):
        load(model)  # it has no tokenizer
    tiny_tokenizer("word").save_pretrained(model)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-40])
    with pytest.raises(InputError, match="model: the checkpoint cannot be loaded"):
        load(model)


def test_a_misspelt_attack(tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    done = run_notebook(
        "04_attack_evaluation",
        out,
        f"checkpoint: {tmp_path}/nowhere",  # found before any model is read or trained
        "attacks: [direct, prefil_lead]",
        f"output_dir: {tmp_path}/attacks",
    )
    assert done.returncode == 1
    for text in (complaint(done), shown_in_notebook(out)):
        assert "unknown attack 'prefil_lead'" in text and "did you mean 'prefill_lead'" in text


def test_a_model_without_a_chat_template(tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    tokenizer = tiny_tokenizer("llama")
    tokenizer.chat_template = None
    tiny_model("llama", tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    done = run_notebook("02_vocabulary_expansion", out, f"checkpoint: {tmp_path}/model")
    assert done.returncode == 1
    for text in (complaint(done), shown_in_notebook(out)):
        assert "has no chat template" in text and "install_chat_template" in text


def test_a_truncated_line_of_results(tmp_path: Path) -> None:
    attacks = tmp_path / "base0" / "r2d" / "attacks"
    (attacks / "seed0").mkdir(parents=True)
    outcomes = (
        "method,base_seed,seed,attack,split,behavior,whole,reasoning,answer,prompt_tokens,"
        "response_tokens,queries\nr2d,0,0,direct,seen,a,refused,absent,refused,1,2,1\n"
    )
    (attacks / "outcomes.csv").write_text(outcomes)
    (tmp_path / "base0" / "utility").mkdir()
    (tmp_path / "base0" / "utility" / "outcomes.csv").write_text(outcomes)
    completion = {"behavior_id": "a", "attack": "direct", "prompt": "p", "text": "t"}
    truncated = json.dumps(completion)[:-9]
    lines = f"{json.dumps(completion)}\n{truncated}\n"
    (attacks / "seed0" / "completions.jsonl").write_text(lines)
    out = tmp_path / "out.ipynb"
    done = run_notebook("06_ablations", out, f"experiment_dir: {tmp_path}")
    assert done.returncode == 1
    for text in (complaint(done), shown_in_notebook(out)):
        assert "completions.jsonl:2:" in text
    assert (attacks / "seed0" / "completions.jsonl").read_text() == lines


def test_a_probe_with_new_tokens(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("word")
    tiny_model("word", tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    done = run_notebook(
        "02_vocabulary_expansion",
        tmp_path / "out.ipynb",
        f"checkpoint: {tmp_path}/model",
        "probe: 'the [SAFE] request'",
        f"output_dir: {tmp_path}/expanded",
    )
    assert done.returncode == 1
    said = complaint(done)
    assert "parameter 'probe': expected old text, found the new token [SAFE]; take it out" in said
    assert not (tmp_path / "expanded").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("safety_seeds: three", ["safety_seeds", "three"]),
        ("methods: [r2d, r3d]", ["r3d", "did you mean 'r2d'"]),
        ("attacks: [drect]", ["drect", "did you mean 'direct'"]),
        ("notebooks: {03_cpo_training: {stepps: 3}}", ["stepps", "did you mean 'steps'"]),
        ("- a list", ["mapping"]),
    ],
)
def test_an_experiment_is_refused_before_anything_runs(
    tmp_path: Path, content: str, says: list[str]
) -> None:
    valid = {
        "name": "name: mine",
        "title": "title: mine",
        "base_seeds": "base_seeds: [0]",
        "safety_seeds": "safety_seeds: [0]",
        "methods": "methods: [r2d]",
        "attacks": "attacks: [direct, wrapper]",
        "partition": "partition: development",
    }
    lines = (
        [content]
        if content.startswith("-")
        else [*(valid | {content.split(":")[0]: content}).values()]
    )
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    file = tmp_path / "experiments" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "experiments/run_experiment.py", file],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert "mine.yaml" in complaint(done) and all(word in complaint(done) for word in says)


def test_plain_papermill_ends_with_the_same_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "papermill", "--kernel", "python3", "--cwd", str(ROOT)),
            *("notebooks/04_attack_evaluation.ipynb", str(tmp_path / "out.ipynb")),
            *("-y", "atacks: [direct]"),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("InputError: unknown parameter 'atacks', did you mean 'attacks'?")


def test_make_ends_with_the_same_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("sedes: [0]\n")
    bad = os.path.relpath(tmp_path / "bad", ROOT / "experiments")
    for experiment, says in (
        ("toyy", "experiments/toyy.yaml: no such experiment; in experiments there are: "),
        (bad, "bad.yaml: unknown key 'sedes'"),
    ):
        done = subprocess.run(
            [
                *("make", "--assume-old=.venv/installed", "book", f"EXPERIMENT={experiment}"),
                f"BIN={Path(sys.executable).parent}",
            ],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 2
        ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert len(ours) == 1 and ours[0].startswith("error: ") and says in ours[0], done.stderr
