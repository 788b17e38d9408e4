"""The toy world's stages: base model, expanded vocabulary, a trained arm, each done once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from r2d_core.errors import InputError
from r2d_core.pivots import PIVOT_TOKENS, PivotIds
from r2d_core.records import write_json_atomic, write_text_atomic
from r2d_core.toy import stages
from r2d_core.toy.base import BaseConfig, base_rows, make_tokenizer
from r2d_core.toy.language import make_language
from r2d_core.toy.measure import load, measure_benign
from r2d_core.toy.stages import (
    ArmTraining,
    BaseTraining,
    checkpoints_of,
    default_checkpoint,
    expand,
    find_checkpoint,
    train_arm,
    train_base,
)

SMALL = BaseConfig(world_seed=2, seed=1, hidden_size=32, layers=1)
SHORT = BaseTraining(steps=12, batch_size=8)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the grid lays it out: world, expanded, one arm with seed 3."""
    home = tmp_path_factory.mktemp("base1")
    train_base(SMALL, SHORT, home / "world")
    expand(home / "world" / "model", home / "expanded", init="description", seed=0)
    train_arm(
        home / "expanded" / "model",
        "r2d",
        3,
        ArmTraining(steps=6, batch_size=8),
        world_seed=2,
        output_dir=home / "r2d" / "training" / "seed3",
    )
    return home


def written(folder: Path) -> int:
    return (folder / "model" / "model.safetensors").stat().st_mtime_ns


def test_the_base_model_learns_and_meets_its_gate(grid: Path) -> None:
    log = [json.loads(line) for line in (grid / "world" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < losses[0]
    gate = json.loads((grid / "world" / "gate.json").read_text())
    tasks, pairs = ("how-to", "information"), ("seen", "held-out")
    assert set(gate["asked"]) == {f"{task}, {kept} pairs" for task in tasks for kept in pairs}
    assert gate["right"].keys() == gate["asked"].keys()
    _, found = train_base(SMALL, SHORT, grid / "world")
    with pytest.raises(InputError, match="the base model fails its gate"):
        found.require(0.99)


def test_what_is_there_is_not_done_again(grid: Path) -> None:
    before = written(grid / "world")
    train_base(SMALL, SHORT, grid / "world")
    assert written(grid / "world") == before


def test_expansion_adds_the_tokens_and_leaves_the_rest(grid: Path) -> None:
    base, words = load(grid / "world" / "model")
    model, tokenizer = load(grid / "expanded" / "model")
    assert not set(PIVOT_TOKENS) & set(words.get_vocab())
    pivots = PivotIds.from_tokenizer(tokenizer)
    assert min(pivots.safe, pivots.unsafe, pivots.rethink) >= len(words)
    old = base.get_input_embeddings().weight
    torch.testing.assert_close(model.get_input_embeddings().weight[: len(words)], old[: len(words)])


def test_the_arm_is_trained_and_can_be_measured(grid: Path, tmp_path: Path) -> None:
    path = find_checkpoint("", checkpoints_of(str(grid), "r2d"), "r2d", 3)
    assert path == grid / "r2d" / "training" / "seed3" / "model"
    assert find_checkpoint("", checkpoints_of(str(grid), "vanilla"), "vanilla", 3) == (
        grid / "expanded" / "model"
    )
    trained, expanded = load(path)[0], load(grid / "expanded" / "model")[0]
    assert any(
        not torch.equal(a, b)
        for a, b in zip(trained.parameters(), expanded.parameters(), strict=True)
    )
    asked = {"partition": "development", "n_per_split": 1, "world_seed": 2}
    run = measure_benign(path, "r2d", **asked, output_dir=tmp_path / "u")
    assert len(run.completions) == 12


def test_the_evaluation_split_holds_no_prompt_that_is_learned(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def note(*arguments: Any) -> SimpleNamespace:
        given["train"], given["held_out"] = arguments[3:]
        return SimpleNamespace(sources=["this"])

    monkeypatch.setattr("r2d_core.training.train", note)
    monkeypatch.setattr(stages, "note_made", lambda *_, **__: None)
    training = ArmTraining(steps=40, batch_size=32)
    train_arm(
        grid / "expanded" / "model", "refusal", 0, training, world_seed=2, output_dir=tmp_path
    )

    def prompts(rows: list[dict[str, list[int]]]) -> set[tuple[int, ...]]:
        return {
            tuple(i for i, label in zip(r["input_ids"], r["labels"], strict=True) if label == -100)
            for r in rows
        }

    assert len(given["train"]) == 40 * 32 and len(given["held_out"]) == stages.EVALUATED
    assert not prompts(given["train"]) & prompts(given["held_out"])


def test_the_base_model_is_evaluated_on_prompts_that_it_has_not_learned() -> None:
    tokenizer = make_tokenizer(make_language(SMALL.world_seed))
    rows, held_out = base_rows(SMALL, tokenizer, 8000)

    def prompts(rows: list[dict[str, list[int]]]) -> set[tuple[int, ...]]:
        return {
            tuple(i for i, label in zip(r["input_ids"], r["labels"], strict=True) if label == -100)
            for r in rows
        }

    assert len(rows) == 8000 and len(held_out) == 256
    assert not prompts(rows) & prompts(held_out)


@pytest.mark.parametrize("method", ["r2", "vanilla"])
def test_methods_that_are_not_trained(method: str, grid: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"unknown method to train '{method}'"):
        train_arm(
            grid / "expanded" / "model", method, 0, ArmTraining(), world_seed=2, output_dir=tmp_path
        )
    if method != "vanilla":
        with pytest.raises(InputError, match="did you mean 'r2d'"):
            checkpoints_of(str(grid), method)


def test_a_model_made_otherwise_is_neither_taken_nor_written_over(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, expanded = grid / "world" / "model", grid / "expanded" / "model"
    monkeypatch.setattr(stages, "BaseConfig", lambda: SMALL)
    monkeypatch.setattr(stages, "BaseTraining", lambda: SHORT)
    shutil.copytree(grid / "world", stages.INTERACTIVE / "base0" / "world")
    gate = {"right": {"how-to": 199}, "asked": {"how-to": 200}}
    write_json_atomic(stages.INTERACTIVE / "base0" / "world" / "gate.json", gate)
    assert stages.default_base() == stages.INTERACTIVE / "base0" / "world" / "model"
    assert stages.identity(stages.default_base()) == stages.identity(base)
    shutil.copytree(grid / "expanded", stages.INTERACTIVE / "base0" / "expanded")
    assert stages.identity(stages.default_expanded()) == stages.identity(expanded)

    # 03 by hand saves checkpoints in between, which changes nothing of the model.
    monkeypatch.setattr(stages, "ArmTraining", lambda **_: ArmTraining(steps=6, batch_size=8))
    folder = stages.INTERACTIVE / "base0" / "r2d" / "training" / "seed0"
    by_hand = ArmTraining(steps=6, batch_size=8, save_steps=3)
    train_arm(expanded, "r2d", 0, by_hand, world_seed=0, output_dir=folder)
    before = written(folder)
    assert default_checkpoint("r2d", 0) == folder / "model" and written(folder) == before
    train_arm(expanded, "r2d", 0, ArmTraining(steps=7, batch_size=8), world_seed=0,
              output_dir=folder)  # fmt: skip
    before = written(folder)
    with pytest.raises(InputError, match=r"not the default one \(another training\): name it in"):
        find_checkpoint("", "", "r2d", 0)
    assert written(folder) == before
    monkeypatch.setattr(stages, "BaseTraining", lambda: BaseTraining(steps=13, batch_size=8))
    with pytest.raises(InputError, match=r"world holds a model .* \(another training\)"):
        stages.default_expanded()
    with pytest.raises(InputError, match="world_seed: the default models know language 0, not 3"):
        find_checkpoint("", "", "r2d", 0, 3)


@pytest.fixture
def interactive(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the grid's untaught base model in the place of the default one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "BaseConfig", lambda: SMALL)
    monkeypatch.setattr(stages, "BaseTraining", lambda: SHORT)
    shutil.copytree(grid / "world", stages.INTERACTIVE / "base0" / "world")
    return stages.INTERACTIVE / "base0" / "world"


def test_a_base_model_that_fails_its_gate_is_refused_at_every_call(interactive: Path) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match="the base model fails its gate"):
            stages.default_base()
    (interactive / "gate.json").write_text('{"right": {"how-to"')
    with pytest.raises(InputError, match=r"gate.json: expected a JSON object"):
        stages.default_base()
    (interactive / "gate.json").write_text('{"right": {}, "asked": {"how-to": 200}}')
    with pytest.raises(InputError, match=r"gate.json: not the record of a gate"):
        stages.default_base()


def test_a_stage_killed_before_its_record_is_finished_by_the_next_call(
    interactive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "GATE", 0.0)
    before = written(interactive)
    (interactive / "made.json").unlink()
    assert stages.default_base() == interactive / "model"
    assert written(interactive) == before and (interactive / "made.json").is_file()


def test_a_model_that_other_code_made_is_refused(
    interactive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "GATE", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "source_sha256", lambda: "after an edit")
        with pytest.raises(InputError, match="made by other code .*: delete the folder"):
            stages.default_base()
    # Nor is a model that another run has put there meanwhile taken for the one on record.
    (interactive / "model" / "model.safetensors").write_bytes(b"another")
    with pytest.raises(InputError, match=r"not the default one \(another model"):
        stages._made(interactive, lambda: None)


def test_the_experiment_of_hand_opened_notebooks_is_the_toy_run_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text_atomic(Path("results/toy/results/findings.md"), "- found\n")
    assert stages.default_experiment() == Path("results/toy")
