"""Attack a model of the toy world, ask it harmless things, and judge.

`measure_attacks` and `measure_benign` measure one checkpoint and write one folder:
``completions.jsonl`` (every text, as the model wrote it), ``verdicts.jsonl``, ``steps/`` (the
journals of gradient attacks, random search and AutoDAN) and ``settings.json``, the last as the mark
of completeness. A folder that is there with the same settings is read, not made again; one that
other code of ``r2d_core`` made is refused (the grid removes it first).

What several of them found is put into tables by `outcomes`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm

from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.generation import TransformersGenerator, answer_directly, complete
from r2d_core.provenance import source_sha256
from r2d_core.records import (
    Behavior,
    Completion,
    TestCase,
    Verdict,
    atomic_directory,
    read_completions,
    read_json,
    read_verdicts,
    write_json_atomic,
    write_jsonl,
)
from r2d_core.toy.arms import ARMS, METHODS
from r2d_core.toy.attacker import ToyAttacker
from r2d_core.toy.base import LONGEST_ANSWER
from r2d_core.toy.evaluation import (
    aim_at,
    attack_material,
    benign_behaviors,
    harmful_behaviors,
)
from r2d_core.toy.judge import SCOPES, ToyJudge
from r2d_core.toy.language import make_language
from r2d_core.toy.outcomes import JUDGED, STEPS, by_scope, count
from r2d_core.toy.splits import make_splits

# The attacks and transformers are imported where they are run: results are read without them.
if TYPE_CHECKING:
    from r2d_core.attacks import Target

DEAR = ("gcg_", "random_search", "autodan")
"""Attacks, by how their names begin, that take many passes of the model for each behavior."""


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
        return count(by_scope(self.judged(method, base_seed, seed)))

    def judged(self, method: str, base_seed: int, seed: int) -> pd.DataFrame:
        """What `table` counts, a row a completion; columns ``JUDGED`` and ``STEPS``."""
        rows = [
            (method, base_seed, seed, verdict.attack)
            + (self.behaviors[verdict.behavior_id].split, verdict.behavior_id)
            + tuple(getattr(verdict, scope) for scope in SCOPES)
            + (completion.prompt_tokens, completion.response_tokens)
            + (completion.metadata.get("queries", 1), verdict.metadata.get(STEPS))
            for completion, verdict in zip(self.completions, self.verdicts, strict=True)
        ]
        return pd.DataFrame(rows, columns=[*JUDGED, STEPS])


def load(checkpoint: str | Path) -> tuple[Any, Any]:
    """A model in evaluation mode and its tokenizer; InputError when they cannot be loaded."""
    if not (Path(checkpoint) / "config.json").is_file():
        raise InputError(
            f"no checkpoint at {str(checkpoint)!r} (a folder with config.json was expected); "
            "correct the path, or run the notebook that trains it first"
        )
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        return model, AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"{checkpoint}: the checkpoint cannot be loaded ({said}); expected a folder that "
            "save_pretrained wrote, with its tokenizer: run the notebook that makes it again"
        ) from None


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
    chat_template: bool = True,
    surrogate: str | Path | None = None,
) -> Measurement:
    """Run the attacks on one checkpoint and judge every completion.

    ``n_per_split`` behaviors of each split; of the `DEAR` attacks the first ``n_gradient`` of each.
    An attack that needs to know what a method's behaviors do not have is left out for it: those on
    the pivots for methods without pivots, ``forged_reasoning`` for those that neither reason nor
    have pivots. ``gcg_transfer`` is made on the checkpoint ``surrogate``, which must be another
    model; what attacks by an attacker model need written, the `ToyAttacker` writes. A killed run
    goes on inside the attack that it was at; every step of the `DEAR` attacks, with its ids, loss,
    seconds and operations, stays in ``steps/``. The behaviors are the same for every method and
    seed, so methods can be compared in pairs. Without ``chat_template`` prompts reach the model
    bare (`attacks.template_stripping`). InputError when nothing is left.
    """
    from r2d_core.attacks import ATTACKS, Surrogate, make_attack
    from r2d_core.attacks.template_stripping import without_chat_template

    for name in attacks:
        if name not in ATTACKS:
            raise InputError(unknown("attack", name, ATTACKS))
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    for name in attack_settings:
        if name not in attacks:
            raise InputError(unknown("attack in attack_settings", name, attacks))
    transfers = "gcg_transfer" in attacks
    if transfers and (surrogate is None or identity(surrogate) == identity(checkpoint)):
        raise InputError(
            "attack 'gcg_transfer' is made on another model than the one it attacks: give the "
            "checkpoint of one as surrogate, or leave the attack out"
        )
    attempts = {name: make_attack(name, **attack_settings.get(name, {})) for name in attacks}
    language = make_language(world_seed)
    splits = make_splits(language, world_seed)
    arm = ARMS.get(method)
    asked = harmful_behaviors(language, splits, partition, n_per_split, world_seed)
    behaviors = {b.id: b for b in aim_at(asked, language, arm)}

    def cases(model: Any, tokenizer: Any, target: Target) -> list[tuple[str, list[TestCase]]]:
        material = attack_material(language, splits, partition)
        target = replace(
            target,
            attacker=ToyAttacker(list(behaviors.values()), material),
            surrogates=(Surrogate(*load(surrogate)),) if transfers and surrogate else (),
            progress=_progress(Path(output_dir)),
        )
        made = []
        for name, attack in tqdm(attempts.items(), desc=f"attack {method}", unit="attack"):
            chosen = list(behaviors.values())
            if not all(need in b.metadata for need in attack.needs for b in chosen):
                continue
            if name.startswith(DEAR):
                chosen = [b for b in chosen if int(b.id.rsplit("-", 1)[1]) < n_gradient]
            made.append((name, attack.run(chosen, target, material, seed)))
        if not any(some for _, some in made):
            raise InputError(
                f"nothing to measure: the attacks {', '.join(attempts)} ask nothing of method "
                f"{method!r} with n_per_split={n_per_split} and n_gradient={n_gradient}; add an "
                "attack that has a meaning for it, such as 'direct', or ask more"
            )
        return made

    settings = {
        "checkpoint": identity(checkpoint),
        "method": method,
        "attacks": {name: repr(attack) for name, attack in attempts.items()},
        "partition": partition,
        "n_per_split": n_per_split,
        "n_gradient": n_gradient,
        "world_seed": world_seed,
        "seed": seed,
        **({} if chat_template else {"chat_template": False}),
        **({"surrogate": identity(surrogate)} if transfers and surrogate else {}),
    }
    return _measured(
        checkpoint,
        behaviors,
        cases,
        settings,
        language_seed=world_seed,
        output_dir=Path(output_dir),
        reach=TransformersGenerator if chat_template else without_chat_template,
    )


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
        "checkpoint": identity(checkpoint),
        "method": method,
        "partition": partition,
        "n_per_split": n_per_split,
        "world_seed": world_seed,
    }
    return _measured(checkpoint, behaviors, cases, settings, language_seed=world_seed,
                     output_dir=Path(output_dir))  # fmt: skip


def read_measurement(folder: str | Path, behaviors: Mapping[str, Behavior]) -> Measurement:
    """A measurement that one of the functions above wrote.

    ``behaviors`` may be empty where only verdicts and completions are wanted (not ``table``).
    Raises InputError for files that do not read, do not go together line by line, or are about
    other behaviors.
    """
    folder = Path(folder)
    completions = read_completions(folder / "completions.jsonl")
    verdicts = read_verdicts(folder / "verdicts.jsonl")
    mend = f"lines may be missing: delete {folder} and measure again"
    for line, (completion, verdict) in enumerate(zip(completions, verdicts, strict=False), start=1):
        asked, judged = ((r.behavior_id, r.attack) for r in (completion, verdict))
        if asked != judged:
            raise InputError(
                f"{folder / 'verdicts.jsonl'}:{line}: expected the verdict on "
                f"{' under '.join(map(repr, asked))}, as completions.jsonl has it, found that on "
                f"{' under '.join(map(repr, judged))}; {mend}"
            )
        if behaviors and completion.behavior_id not in behaviors:
            raise InputError(
                f"{folder / 'completions.jsonl'}:{line}: behavior {completion.behavior_id!r} is "
                f"not one of those asked; {mend}"
            )
    if len(completions) != len(verdicts):
        raise InputError(
            f"{folder}: expected a verdict on every completion, found {len(completions)} lines in "
            f"completions.jsonl and {len(verdicts)} in verdicts.jsonl; {mend}"
        )
    return Measurement(dict(behaviors), completions, verdicts)


def _measured(
    checkpoint: str | Path,
    behaviors: dict[str, Behavior],
    cases: Any,
    settings: dict[str, Any],
    *,
    language_seed: int,
    output_dir: Path,
    reach: Callable[[Any, Any], TransformersGenerator] = TransformersGenerator,
) -> Measurement:
    """What the functions above have in common; ``reach`` makes model and tokenizer a generator."""
    settings = json.loads(json.dumps(settings))
    code = {"source_sha256": source_sha256()}
    record = output_dir / "settings.json"
    if record.is_file():
        found = read_json(record)
        measured_by = {"source_sha256": found.pop("source_sha256", "unknown")}
        if found == settings and measured_by != code:
            raise InputError(
                f"{output_dir} was measured by other code (r2d_core has changed since): give "
                "another output_dir, or delete it to measure anew"
            )
        if found == settings:
            return read_measurement(output_dir, behaviors)
    from r2d_core.attacks import Target

    model, tokenizer = load(checkpoint)
    generator = reach(model, tokenizer)
    judge = ToyJudge(make_language(language_seed))
    target = Target(generator, judge, LONGEST_ANSWER, model, tokenizer)
    completions: list[Completion] = []
    for _, made in cases(model, tokenizer, target):
        completions += complete(generator, made, LONGEST_ANSWER)
    verdicts = [judge.judge(behaviors[c.behavior_id], c) for c in completions]
    with atomic_directory(output_dir) as folder:
        write_jsonl(Path(folder) / "completions.jsonl", completions)
        write_jsonl(Path(folder) / "verdicts.jsonl", verdicts)
        for journal in _progress(output_dir).glob("*.jsonl"):
            if journal.name.startswith(DEAR):
                (Path(folder) / "steps").mkdir(exist_ok=True)
                shutil.copyfile(journal, Path(folder) / "steps" / journal.name)
        write_json_atomic(Path(folder) / "settings.json", settings | code)
    shutil.rmtree(_progress(output_dir), ignore_errors=True)
    return Measurement(behaviors, completions, verdicts)


def _progress(output_dir: Path) -> Path:
    """Where attacks of a measurement that is not finished keep how far they are."""
    return output_dir.with_name(f"{output_dir.name}-progress")


def identity(checkpoint: str | Path) -> str:
    """The hash of a checkpoint's weights, which are it, wherever it lies; InputError without."""
    weights = Path(checkpoint) / "model.safetensors"
    if not weights.is_file():
        raise InputError(
            f"no checkpoint at {str(checkpoint)!r} (model.safetensors was expected); correct the "
            "path, or run the notebook that trains it first"
        )
    return hashlib.sha256(weights.read_bytes()).hexdigest()
