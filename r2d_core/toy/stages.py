"""The stages before evaluation: base model, expanded vocabulary, a trained arm.

Each stage writes ``model`` into its folder and at its end ``made.json``, which says how and by
which code. A stage that is already there with the same settings is not done again, so a notebook
opened by hand can ask for whatever comes before it: with the default settings everything lands in
``results/interactive``. A model that lies there and was made otherwise, by other settings or other
code, is neither taken for the default one nor written over; one without ``made.json`` was never
finished, and is made anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.pivots import Init, expand_vocabulary
from r2d_core.provenance import source_sha256
from r2d_core.records import atomic_directory, read_json, write_json_atomic, write_text_atomic
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
from r2d_core.toy.measure import identity, load, measure_attacks, measure_benign
from r2d_core.toy.outcomes import write_outcomes
from r2d_core.toy.splits import make_splits
from r2d_core.trajectories import parse

if TYPE_CHECKING:
    from r2d_core.training import TrainResult

INTERACTIVE = Path("results/interactive")
GATE = 0.99
"""Share of exact answers that a default base model has in every cell of its gate."""
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
    from r2d_core.training import TrainConfig, train

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
    note_made(output_dir, result.sources, config=asdict(config), training=asdict(training))
    return result, gate


def expand(checkpoint: str | Path, output_dir: str | Path, *, init: Init, seed: int) -> Path:
    """Give a checkpoint the pivot, think and reserved tokens; returns the new checkpoint."""
    model, tokenizer = load(checkpoint)
    expand_vocabulary(model, tokenizer, init=init, seed=seed)
    path = Path(output_dir) / "model"
    with atomic_directory(path) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    note_made(output_dir, [source_sha256()], checkpoint=identity(checkpoint), init=init, seed=seed)
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
    from r2d_core.training import TrainConfig, train

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
    result = train(
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
    how = _arm_made(checkpoint, method, seed, training, world_seed)
    note_made(output_dir, result.sources, **how)
    return result


def _arm_made(
    checkpoint: str | Path, method: str, seed: int, training: ArmTraining, world_seed: int
) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(training).items() if name != "save_steps"}
    return {
        "checkpoint": identity(checkpoint), "method": method, "seed": seed,
        "world_seed": world_seed, "training": settings,
    }  # fmt: skip


def note_made(folder: str | Path, sources: Sequence[str], **how: Any) -> None:
    """Write down how the model in a folder was made, for `default_base` and those after it.

    ``sources`` are the `source_sha256` of the code that made it.
    """
    made = {"model": identity(Path(folder) / "model"), "source_sha256": list(sources)}
    write_json_atomic(Path(folder) / "made.json", made | how)


def _made(folder: Path, make: Callable[[], object], **how: Any) -> Path:
    """The folder's model, which ``make`` makes if it is not there whole.

    InputError where it was made otherwise.
    """
    record, model = folder / "made.json", folder / "model"
    if not (record.is_file() and (model / "config.json").is_file()):
        make()
    found = read_json(record)
    wanted = {"model": identity(model)} | how
    if other := [name for name, value in wanted.items() if found.get(name) != value]:
        raise InputError(
            f"{folder} holds a model that is not the default one (another {', '.join(other)}): "
            "name it in the parameter checkpoint, or delete the folder to have the default made"
        )
    if found.get("source_sha256") != [source_sha256()]:
        raise InputError(
            f"{folder} holds a model made by other code (r2d_core has changed since): delete the "
            "folder to have it made anew, or name the model in the parameter checkpoint"
        )
    return model


def default_base(world_seed: int = 0) -> Path:
    """The base model of the default settings, trained now if it is not there yet (two minutes).

    Raises InputError for another language than its own, where another model is in its place, and
    for one that has not passed its gate.
    """
    if world_seed:
        raise InputError(
            f"world_seed: the default models know language 0, not {world_seed}; give the "
            "checkpoint of a model trained in that language (01_toy_world makes one)"
        )
    folder = INTERACTIVE / "base0" / "world"
    config, training = BaseConfig(), BaseTraining()
    model = _made(
        folder,
        lambda: train_base(config, training, folder),
        config=asdict(config),
        training=asdict(training),
    )
    record = read_json(folder / "gate.json")
    try:
        gate = Gate(record["right"], record["asked"])
        gate.worst  # noqa: B018 - reads all of it
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
        raise InputError(
            f"{folder / 'gate.json'}: not the record of a gate; delete {folder} to have the base "
            "model made anew"
        ) from None
    gate.require(GATE)
    return model


def default_expanded(world_seed: int = 0) -> Path:
    """The default base model with the expanded vocabulary; InputError as `default_base`."""
    base = default_base(world_seed)
    folder = INTERACTIVE / "base0" / "expanded"
    return _made(
        folder,
        lambda: expand(base, folder, init="description", seed=0),
        checkpoint=identity(base),
        init="description",
        seed=0,
    )


def default_checkpoint(method: str, seed: int, world_seed: int = 0) -> Path:
    """A model of the default settings: the arm's, or the expanded base for ``vanilla``.

    InputError as `default_base`.
    """
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    expanded = default_expanded(world_seed)
    if method == VANILLA:
        return expanded
    folder = INTERACTIVE / "base0" / method / "training" / f"seed{seed}"
    return _made(
        folder,
        lambda: train_arm(expanded, method, seed, ArmTraining(), world_seed=0, output_dir=folder),
        **_arm_made(expanded, method, seed, ArmTraining(), 0),
    )


def checkpoints_of(models_dir: str, method: str) -> str:
    """Where the grid keeps a method's models: what `find_checkpoint` takes for checkpoints_dir."""
    if not models_dir:
        return ""
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    return f"{models_dir}/expanded" if method == VANILLA else f"{models_dir}/{method}/training"


def find_checkpoint(
    checkpoint: str, checkpoints_dir: str, method: str, seed: int, world_seed: int = 0
) -> Path:
    """The model a notebook is told to measure.

    ``checkpoint`` itself, else ``checkpoints_dir``/seed<seed>/model (for ``vanilla``, which has no
    safety seeds, ``checkpoints_dir``/model), else the default model of the method, trained now if
    it is not there. InputError when the one asked for does not exist.
    """
    if not checkpoint and not checkpoints_dir:
        return default_checkpoint(method, seed, world_seed)
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
        write_outcomes(home / "attacks", attacked.judged(method, 0, 0))
        benign.append(asked.judged(method, 0, 0))
    write_outcomes(INTERACTIVE / "base0" / "utility", pd.concat(benign))
    return INTERACTIVE


def toy_parameter_set(folder: str | Path, base: str | Path, steps: int = 100) -> Path:
    """A parameter set, as real models have one: LoRA on R2D's examples for ``steps`` steps.

    Writes the examples as R2D-R1 has its own (instruction, input, output) and the YAML file into
    ``folder``; returns the file.
    """
    folder = Path(folder)
    model, _ = load(base)
    config = model.config.to_dict()
    names = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "tie_word_embeddings")  # fmt: skip
    language = make_language(0)
    examples = arm_examples(language, make_splits(language, 0), ARMS["r2d"], 3200, 0)
    rows = [
        {"instruction": example.prompt, "input": "", "output": example.response}
        for example in examples
        # A recovery is more than instruction and output, a restatement alone no trajectory.
        if not example.prefill and parse(example.response).pivots
    ]
    content = {
        "title": "The toy world's base model",
        "model": str(base),
        "shape": {name: config[name] for name in names},
        "data": str(folder / "data.jsonl"),
        "dtype": "float32",
        "max_length": 128,
        "global_batch": 32,
        "held_out": 64,
        "train": {
            "max_steps": steps,
            "batch_size": 16,
            "packing": True,
            "learning_rate": 3e-3,
            "logging_steps": 5,
            "eval_steps": min(50, steps),
            "save_steps": min(50, steps),
        },
        "lora": {"rank": 32, "alpha": 32},
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_text_atomic(folder / "data.jsonl", lines)
    write_text_atomic(folder / "toy.yaml", yaml.safe_dump(content, sort_keys=False))
    return folder / "toy.yaml"
