"""Attack a model of the toy world, ask it harmless things, judge and count.

Each function measures one checkpoint and writes one folder: ``completions.jsonl`` (every text, as
the model wrote it), ``verdicts.jsonl`` and ``settings.json``, the last as the mark of completeness.
A folder that is there with the same settings is read, not made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2d_core.attacks import ATTACKS, Target, make_attack
from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.generation import answer_directly, complete
from r2d_core.generation.transformers import TransformersGenerator
from r2d_core.metrics import mcnemar
from r2d_core.records import (
    Behavior,
    Completion,
    TestCase,
    Verdict,
    atomic_directory,
    read_completions,
    read_verdicts,
    write_json_atomic,
    write_jsonl,
)
from r2d_core.toy.arms import ARMS, METHODS
from r2d_core.toy.base import LONGEST_ANSWER
from r2d_core.toy.evaluation import (
    aim_at,
    attack_material,
    benign_behaviors,
    harmful_behaviors,
)
from r2d_core.toy.judge import LABELS, SCOPES, ToyJudge
from r2d_core.toy.language import make_language
from r2d_core.toy.splits import make_splits

KEYS = ["method", "base_seed", "seed", "attack", "split", "scope"]
COLUMNS = [*KEYS, "n", *LABELS, "prompt_tokens", "response_tokens", "queries"]


@dataclass(frozen=True)
class Measurement:
    """What one checkpoint did: the behaviors asked and, in one order, completions and verdicts."""

    behaviors: dict[str, Behavior]
    completions: list[Completion]
    verdicts: list[Verdict]

    def table(self, method: str, base_seed: int, seed: int) -> pd.DataFrame:
        """Counts by attack (or benign category), split and scope; columns ``COLUMNS``.

        ``n`` is the completions that have the scope: a response without reasoning does not count
        under ``reasoning``. Tokens and queries are means over the completions.
        """
        rows = []
        for completion, verdict in zip(self.completions, self.verdicts, strict=True):
            behavior = self.behaviors[verdict.behavior_id]
            for scope in SCOPES:
                label = getattr(verdict, scope)
                if label in LABELS:
                    rows.append(
                        {
                            "method": method,
                            "base_seed": base_seed,
                            "seed": seed,
                            "attack": verdict.attack,
                            "split": behavior.split,
                            "scope": scope,
                            "n": 1,
                            **{name: int(label == name) for name in LABELS},
                            "prompt_tokens": completion.prompt_tokens,
                            "response_tokens": completion.response_tokens,
                            "queries": completion.metadata.get("queries", 1),
                        }
                    )
        frame = pd.DataFrame(rows, columns=COLUMNS)
        grouped = frame.groupby(KEYS, sort=False)
        counts = grouped[["n", *LABELS]].sum()
        means = grouped[["prompt_tokens", "response_tokens", "queries"]].mean().round(2)
        return counts.join(means).reset_index()[COLUMNS]


def load(checkpoint: str | Path) -> tuple[Any, Any]:
    """A model and its tokenizer in evaluation mode; InputError when there is no checkpoint."""
    if not (Path(checkpoint) / "config.json").is_file():
        raise InputError(
            f"no checkpoint at {str(checkpoint)!r} (a folder with config.json was expected); "
            "correct the path, or run the notebook that trains it first"
        )
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


def measure_attacks(
    checkpoint: str | Path,
    method: str,
    *,
    attacks: Sequence[str],
    attack_settings: Mapping[str, Mapping[str, Any]],
    partition: str,
    n_per_split: int,
    n_gradient: int,
    world_seed: int,
    seed: int,
    output_dir: str | Path,
) -> Measurement:
    """Run the attacks on one checkpoint and judge every completion.

    ``n_per_split`` behaviors of each split; gradient attacks (``gcg_…``), which are dear, take the
    first ``n_gradient`` of each. ``gcg_pivot`` is left out for methods without pivots. The
    behaviors are the same for every method and seed, so methods can be compared in pairs.
    """
    for name in attacks:
        if name not in ATTACKS:
            raise InputError(unknown("attack", name, ATTACKS))
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    for name in attack_settings:
        if name not in attacks:
            raise InputError(unknown("attack in attack_settings", name, attacks))
    attempts = {name: make_attack(name, **attack_settings.get(name, {})) for name in attacks}
    language = make_language(world_seed)
    splits = make_splits(language, world_seed)
    arm = ARMS.get(method)
    asked = harmful_behaviors(language, splits, partition, n_per_split, world_seed)
    behaviors = {b.id: b for b in aim_at(asked, language, arm)}

    def cases(model: Any, tokenizer: Any, target: Target) -> list[tuple[str, list[TestCase]]]:
        material = attack_material(language, splits, partition)
        made = []
        for name, attack in tqdm(attempts.items(), desc=f"attack {method}", unit="attack"):
            if name == "gcg_pivot" and (arm is None or not arm.pivots):
                continue
            chosen = list(behaviors.values())
            if name.startswith("gcg_"):
                chosen = [b for b in chosen if int(b.id.rsplit("-", 1)[1]) < n_gradient]
            made.append((name, attack.run(chosen, target, material, seed)))
        return made

    settings = {
        "checkpoint": _identity(checkpoint),
        "method": method,
        "attacks": {name: repr(attack) for name, attack in attempts.items()},
        "partition": partition,
        "n_per_split": n_per_split,
        "n_gradient": n_gradient,
        "world_seed": world_seed,
        "seed": seed,
    }
    return _measured(checkpoint, behaviors, cases, settings, language_seed=world_seed,
                     output_dir=Path(output_dir))  # fmt: skip


def measure_benign(
    checkpoint: str | Path,
    method: str,
    *,
    partition: str,
    n_per_split: int,
    world_seed: int,
    output_dir: str | Path,
) -> Measurement:
    """Ask one checkpoint the benign requests; the category stands where the attack would."""
    language = make_language(world_seed)
    splits = make_splits(language, world_seed)
    behaviors = {
        b.id: b for b in benign_behaviors(language, splits, partition, n_per_split, world_seed)
    }

    def cases(model: Any, tokenizer: Any, target: Target) -> list[tuple[str, list[TestCase]]]:
        by_category: dict[str, list[Behavior]] = {}
        for behavior in behaviors.values():
            by_category.setdefault(behavior.category, []).append(behavior)
        return [(name, answer_directly(some, name)) for name, some in by_category.items()]

    settings = {
        "checkpoint": _identity(checkpoint),
        "method": method,
        "partition": partition,
        "n_per_split": n_per_split,
        "world_seed": world_seed,
    }
    return _measured(checkpoint, behaviors, cases, settings, language_seed=world_seed,
                     output_dir=Path(output_dir))  # fmt: skip


def paired_tests(measurements: Mapping[str, Sequence[Measurement]], reference: str) -> pd.DataFrame:
    """Exact McNemar tests of the reference against every other method, attack by attack.

    Pairs are the same behavior under the same attack and safety seed; the whole response counts.
    Columns: attack, method, n, only_reference, only_method (harmful for one of the two alone),
    p_value (not corrected).
    """
    harmful: dict[str, dict[str, dict[tuple[int, str], bool]]] = {}
    for method, runs in measurements.items():
        for number, run in enumerate(runs):
            for verdict in run.verdicts:
                cell = harmful.setdefault(method, {}).setdefault(verdict.attack, {})
                cell[number, verdict.behavior_id] = verdict.whole == "harmful"
    rows = []
    for method in harmful:
        if method == reference:
            continue
        for attack, ours in harmful[reference].items():
            theirs = harmful[method].get(attack, {})
            common = [key for key in ours if key in theirs]
            if common:
                test = mcnemar([ours[k] for k in common], [theirs[k] for k in common])
                rows.append((attack, method, len(common), test.only_a, test.only_b, test.p_value))
    return pd.DataFrame(
        rows, columns=["attack", "method", "n", "only_reference", "only_method", "p_value"]
    )


def read_measurement(folder: str | Path, behaviors: Mapping[str, Behavior]) -> Measurement:
    """A measurement that one of the functions above wrote."""
    folder = Path(folder)
    return Measurement(
        dict(behaviors),
        read_completions(folder / "completions.jsonl"),
        read_verdicts(folder / "verdicts.jsonl"),
    )


def _measured(
    checkpoint: str | Path,
    behaviors: dict[str, Behavior],
    cases: Any,
    settings: dict[str, Any],
    *,
    language_seed: int,
    output_dir: Path,
) -> Measurement:
    settings = json.loads(json.dumps(settings))
    record = output_dir / "settings.json"
    if record.is_file() and json.loads(record.read_text()) == settings:
        return read_measurement(output_dir, behaviors)
    model, tokenizer = load(checkpoint)
    generator = TransformersGenerator(model, tokenizer)
    judge = ToyJudge(make_language(language_seed))
    target = Target(generator, judge, LONGEST_ANSWER, model, tokenizer)
    completions: list[Completion] = []
    for _, made in cases(model, tokenizer, target):
        completions += complete(generator, made, LONGEST_ANSWER)
    verdicts = [judge.judge(behaviors[c.behavior_id], c) for c in completions]
    with atomic_directory(output_dir) as folder:
        write_jsonl(Path(folder) / "completions.jsonl", completions)
        write_jsonl(Path(folder) / "verdicts.jsonl", verdicts)
        write_json_atomic(Path(folder) / "settings.json", settings)
    return Measurement(behaviors, completions, verdicts)


def _identity(checkpoint: str | Path) -> str:
    """A checkpoint is its weights, wherever it lies."""
    import hashlib

    weights = Path(checkpoint) / "model.safetensors"
    if not weights.is_file():
        raise InputError(
            f"no checkpoint at {str(checkpoint)!r} (model.safetensors was expected); correct the "
            "path, or run the notebook that trains it first"
        )
    return hashlib.sha256(weights.read_bytes()).hexdigest()
