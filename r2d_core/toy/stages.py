"""The stages before evaluation: base model, expanded vocabulary, a trained arm.

Each stage writes ``model`` into its folder and returns its path. A stage that is already there with
the same settings is not done again, so a notebook opened by hand can ask for whatever comes before
it: with the default settings everything lands in ``results/interactive``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.pivots import Init, expand_vocabulary
from r2d_core.records import atomic_directory, write_json_atomic, write_text_atomic
from r2d_core.toy.arms import ARMS, METHODS, VANILLA, arm_examples
from r2d_core.toy.base import (
    BaseConfig,
    Gate,
    base_rows,
    check_gate,
    encode,
    make_base_model,
    make_tokenizer,
)
from r2d_core.toy.language import make_language
from r2d_core.toy.measure import load, measure_attacks, measure_benign
from r2d_core.toy.splits import make_splits
from r2d_core.training import TrainConfig, TrainResult, train

INTERACTIVE = Path("results/interactive")
EVALUATED = 192
"""Prompts of an arm's evaluation split."""


@dataclass(frozen=True)
class BaseTraining:
    """How the base model is trained: steps of ``batch_size`` examples of about 35 tokens."""

    steps: int = 550
    batch_size: int = 56
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class ArmTraining:
    """How every arm is trained, all alike; the defaults were chosen on development items."""

    steps: int = 200
    batch_size: int = 32
    learning_rate: float = 7e-4
    save_steps: int = 0


def train_base(
    config: BaseConfig, training: BaseTraining, output_dir: str | Path
) -> tuple[TrainResult, Gate]:
    """Train the base model from scratch and put it to its gate (the caller requires a level)."""
    language = make_language(config.world_seed)
    splits = make_splits(language, config.world_seed)
    tokenizer = make_tokenizer(language)
    model = make_base_model(config, len(tokenizer))
    rows, held_out = base_rows(config, tokenizer, training.steps * training.batch_size)
    result = train(
        TrainConfig(
            output_dir=output_dir,
            seed=config.seed,
            max_steps=training.steps,
            batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            warmup_ratio=0.05,
            pivot_weight=0.0,
            save_steps=200,
        ),
        model,
        tokenizer,
        rows,
        held_out,
    )
    gate = check_gate(model, tokenizer, language, splits)
    write_json_atomic(Path(output_dir) / "gate.json", {"right": gate.right, "asked": gate.asked})
    return result, gate


def expand(checkpoint: str | Path, output_dir: str | Path, *, init: Init, seed: int) -> Path:
    """Give a checkpoint the pivot, think and reserved tokens; returns the new checkpoint."""
    model, tokenizer = load(checkpoint)
    expand_vocabulary(model, tokenizer, init=init, seed=seed)
    path = Path(output_dir) / "model"
    with atomic_directory(path) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return path


def train_arm(
    checkpoint: str | Path,
    method: str,
    seed: int,
    training: ArmTraining,
    *,
    world_seed: int,
    output_dir: str | Path,
) -> TrainResult:
    """Safety-train one arm of an expanded checkpoint; its evaluation split is of other prompts."""
    if method not in ARMS:
        raise InputError(unknown("method to train", method, ARMS))
    arm = ARMS[method]
    language = make_language(world_seed)
    splits = make_splits(language, world_seed)
    model, tokenizer = load(checkpoint)
    n = training.steps * training.batch_size
    examples = arm_examples(language, splits, arm, n, seed)
    learned = {example.prompt for example in examples}
    drawn = arm_examples(language, splits, arm, 8 * EVALUATED, seed + 1_000_003)
    held_out = [example for example in drawn if example.prompt not in learned][:EVALUATED]
    return train(
        TrainConfig(
            output_dir=output_dir,
            seed=seed,
            max_steps=training.steps,
            batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            warmup_ratio=0.05,
            pivot_weight=arm.pivot_weight,
            pivot_ce_weight=arm.pivot_ce_weight,
            save_steps=training.save_steps,
        ),
        model,
        tokenizer,
        encode(tokenizer, examples),
        encode(tokenizer, held_out),
    )


def default_base() -> Path:
    """The base model of the default settings, trained now if it is not there yet (two minutes)."""
    folder = INTERACTIVE / "base0" / "world"
    _, gate = train_base(BaseConfig(), BaseTraining(), folder)
    gate.require(0.99)
    return folder / "model"


def default_expanded() -> Path:
    """The default base model with the expanded vocabulary."""
    folder = INTERACTIVE / "base0" / "expanded"
    if not (folder / "model" / "config.json").is_file():
        expand(default_base(), folder, init="description", seed=0)
    return folder / "model"


def default_checkpoint(method: str, seed: int) -> Path:
    """A model of the default settings: the arm's, or the expanded base for ``vanilla``."""
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    if method == VANILLA:
        return default_expanded()
    folder = INTERACTIVE / "base0" / method / "training" / f"seed{seed}"
    train_arm(default_expanded(), method, seed, ArmTraining(), world_seed=0, output_dir=folder)
    return folder / "model"


def checkpoints_of(models_dir: str, method: str) -> str:
    """Where the grid keeps a method's models: what `find_checkpoint` takes for checkpoints_dir."""
    if not models_dir:
        return ""
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    return f"{models_dir}/expanded" if method == VANILLA else f"{models_dir}/{method}/training"


def find_checkpoint(checkpoint: str, checkpoints_dir: str, method: str, seed: int) -> Path:
    """The model a notebook is told to measure.

    ``checkpoint`` itself, else ``checkpoints_dir``/seed<seed>/model (for ``vanilla``, which has no
    safety seeds, ``checkpoints_dir``/model), else the default model of the method, trained now if
    it is not there. InputError when the one asked for does not exist.
    """
    if not checkpoint and not checkpoints_dir:
        return default_checkpoint(method, seed)
    folder = Path(checkpoints_dir) / ("" if method == VANILLA else f"seed{seed}") / "model"
    path = Path(checkpoint) if checkpoint else folder
    if not (path / "config.json").is_file():
        name = "checkpoint" if checkpoint else "checkpoints_dir"
        raise InputError(
            f"no checkpoint at {str(path)!r} (parameter {name}; a folder with config.json was "
            "expected); correct the path, or run the notebook that trains it first"
        )
    return path


def default_experiment() -> Path:
    """``results/toy`` when it has been run; else a small comparison of four methods, made now."""
    finished = Path("results/toy")
    if (finished / "results" / "findings.md").is_file():
        return finished
    benign = []
    for method in (VANILLA, "refusal", "r2d", "r2d_no_cpo"):
        home = INTERACTIVE / "base0" / method
        checkpoint = default_checkpoint(method, 0)
        attacked = measure_attacks(
            checkpoint,
            method,
            attacks=["direct", "wrapper", "prefill_lead", "forged_reasoning"],
            attack_settings={},
            partition="development",
            n_per_split=40,
            n_gradient=0,
            world_seed=0,
            seed=0,
            output_dir=home / "attacks" / "seed0",
        )
        asked = measure_benign(
            checkpoint,
            method,
            partition="development",
            n_per_split=40,
            world_seed=0,
            output_dir=INTERACTIVE / "base0" / "utility" / method / "seed0",
        )
        write_text_atomic(
            home / "attacks" / "table.csv", attacked.table(method, 0, 0).to_csv(index=False)
        )
        benign.append(asked.table(method, 0, 0))
    write_text_atomic(
        INTERACTIVE / "base0" / "utility" / "table.csv", pd.concat(benign).to_csv(index=False)
    )
    return INTERACTIVE
