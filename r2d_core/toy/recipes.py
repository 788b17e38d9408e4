"""The authors' run and its mendings, one switch at a time; and R2D with other ingredients.

    runs = measure_recipes("checkpoint", RecipeRuns("results/recipes"), ["ours", "bos", "paper"])

trains every recipe for every safety seed from one expanded checkpoint and measures it on the same
requests. What is there with the same settings is not done again. `recipe_tables` counts and tests
what came of it, `defect_effects` shows what each defect does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from r2d_core.authors_recipe import THEIR_LEARNING_RATE, THEIR_LORA
from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.provenance import source_sha256
from r2d_core.records import read_json, read_json_lines, write_json_atomic
from r2d_core.toy import defects as d
from r2d_core.toy.arms import ARMS, BEYOND, Arm, arm_prompts, write_example
from r2d_core.toy.language import make_language
from r2d_core.toy.measure import (
    Measurement,
    identity,
    load,
    measure_attacks,
    measure_benign,
)
from r2d_core.toy.splits import make_splits

# Training, with peft and torch, is imported where it is done: the tables are shown without it.
if TYPE_CHECKING:
    from r2d_core.training import TrainResult

ATTACKS = ("direct", "wrapper", "few_shot", "prefill_lead", "prefill_step")
"""Those measured here: none that needs gradients or many queries."""


@dataclass(frozen=True)
class Recipe:
    """An arm, and the authors' defects with which it is trained."""

    title: str
    arm: Arm = ARMS["r2d"]
    defects: d.TrainingDefects = d.TrainingDefects()


PAPER: dict[str, Recipe] = {
    "ours": Recipe("Ours: none of them"),
    **{
        name: Recipe(d.TRAINING_TITLES[name], defects=d.TrainingDefects(**{name: True}))
        for name in d.TRAINING_DEFECTS
    },
    "defects": Recipe(
        "All but their settings", defects=replace(d.ALL_TRAINING_DEFECTS, settings=False)
    ),
    "paper": Recipe("The authors' run: all of them", defects=d.ALL_TRAINING_DEFECTS),
}
"""Our run, each defect of training alone, all with our settings, and all together."""
RECIPES: dict[str, Recipe] = {
    **PAPER,
    **{name: Recipe(arm.title, arm) for name, arm in BEYOND.items() if name != "r2d"},
}
BEYOND_NAMES = ("ours", *(name for name in BEYOND if name != "r2d"))
"""R2D as it is, and with other ingredients."""


@dataclass(frozen=True)
class RecipeRuns:
    """Where and how recipes are compared.

    A step is 16 examples in all recipes; two at a time, eight times over, where the loss is
    normalised by the micro-batch. ``n_per_split`` requests of each of the three splits are asked,
    the same of every recipe and seed.
    """

    output_dir: str | Path
    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 800
    batch_size: int = 16
    accumulation: int = 8
    learning_rate: float = 7e-4
    attacks: Sequence[str] = ATTACKS
    partition: str = "report"
    n_per_split: int = 24
    world_seed: int = 0

    def __post_init__(self) -> None:
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise InputError(
                f"batch_size {self.batch_size} is not a multiple of accumulation "
                f"{self.accumulation}"
            )


@dataclass(frozen=True)
class Run:
    """One recipe and seed: how its training went, and what the model did."""

    training: dict[str, float]
    attacked: Measurement
    asked: Measurement


@dataclass
class Comparison:
    """Runs by recipe and seed, and a title for each recipe, in the order of the tables."""

    titles: dict[str, str]
    runs: dict[str, dict[int, Run]] = field(default_factory=dict)


def train_recipe(checkpoint: str | Path, name: str, seed: int, runs: RecipeRuns) -> TrainResult:
    """Train one recipe from an expanded checkpoint; the evaluation split is the mended one's."""
    from r2d_core.adapters import LoraSettings
    from r2d_core.anchor import mark_benign
    from r2d_core.training import TrainConfig, train

    recipe = _recipe(name)
    arm, defects = recipe.arm, recipe.defects
    language = make_language(runs.world_seed)
    splits = make_splits(language, runs.world_seed)
    model, tokenizer = load(checkpoint)
    if defects.pivot_ids:
        d.pad_embedding(model)
    prompts = arm_prompts(language, splits, arm, runs.steps * runs.batch_size, seed)
    examples = [write_example(language, prompt, arm) for prompt in prompts]
    rows: list[Any] = d.encode_with(tokenizer, examples, defects)
    if arm.kl_weight:
        kept = [p.restate if arm.kl_rows == "replay" else not p.harmful for p in prompts]
        rows = [mark_benign(row, benign) for row, benign in zip(rows, kept, strict=True)]
    micro = runs.accumulation if defects.normalize else 1
    return train(
        TrainConfig(
            output_dir=Path(runs.output_dir) / name / f"seed{seed}" / "training",
            seed=seed,
            max_steps=runs.steps,
            batch_size=runs.batch_size // micro,
            accumulation=micro,
            normalize="micro_batch" if defects.normalize else "window",
            learning_rate=THEIR_LEARNING_RATE if defects.settings else runs.learning_rate,
            warmup_ratio=0.02 if defects.settings else 0.05,
            lora=LoraSettings(**THEIR_LORA) if defects.settings else None,
            # The rows V-8 of a padded embedding are no token's: the contrast never meets its
            # targets and is 0, whatever the model says.
            pivot_weight=0.0 if defects.pivot_ids else arm.pivot_weight,
            contrast=arm.contrast,
            kl_weight=arm.kl_weight,
        ),
        model,
        tokenizer,
        rows,
    )


def measure_recipe(checkpoint: str | Path, name: str, seed: int, runs: RecipeRuns) -> Run:
    """Train a recipe, attack it, ask it harmless things; each only where it is not there.

    What another state of the package has left there is removed first.
    """
    home = Path(runs.output_dir) / name / f"seed{seed}"
    stamp = home / "source.json"
    source = {"source_sha256": source_sha256()}
    if home.exists() and not (stamp.is_file() and read_json(stamp) == source):
        shutil.rmtree(home)
    write_json_atomic(stamp, source)
    trained = train_recipe(checkpoint, name, seed, runs)
    attacked = measure_attacks(
        trained.model_dir,
        "r2d",
        attacks=list(runs.attacks),
        attack_settings={},
        partition=runs.partition,
        n_per_split=runs.n_per_split,
        n_gradient=0,
        world_seed=runs.world_seed,
        seed=seed,
        output_dir=home / "attacks",
    )
    asked = measure_benign(
        trained.model_dir,
        "r2d",
        partition=runs.partition,
        n_per_split=runs.n_per_split,
        world_seed=runs.world_seed,
        output_dir=home / "benign",
    )
    log = read_json_lines(trained.log)
    lines = [line for line in log if "grad_norm" in line]
    norms = [line["grad_norm"] for line in lines]
    training = {
        **trained.metrics,
        "seconds": trained.seconds,
        "first_loss": lines[0]["loss"],
        "first_grad_norm": norms[0],
        "median_grad_norm": sorted(norms)[len(norms) // 2],
    }
    return Run(training, attacked, asked)


def measure_recipes(checkpoint: str | Path, runs: RecipeRuns, names: Iterable[str]) -> Comparison:
    """All recipes for all seeds, one seed after the other, so that what is there is comparable."""
    names = list(names)
    result = Comparison({name: _recipe(name).title for name in names})
    todo = [(seed, name) for seed in runs.seeds for name in names]
    for seed, name in tqdm(todo, desc="recipes", unit="run"):
        result.runs.setdefault(name, {})[seed] = measure_recipe(checkpoint, name, seed, runs)
    return result


def trainings(checkpoint: str | Path, *comparisons: Comparison) -> dict[str, Any]:
    """For the provenance of tables: what trained their models, which may have been there before.

    `measure_recipe` uses no model of another state of the package, so one hash is that of all.
    """
    runs = [run for each in comparisons for seeds in each.runs.values() for run in seeds.values()]
    return {
        "models": len(runs),
        "seconds": round(sum(run.training["seconds"] for run in runs), 3),
        "source_sha256": source_sha256(),
        "checkpoint_sha256": identity(checkpoint),
    }


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise InputError(unknown("recipe", name, RECIPES))
    return RECIPES[name]
