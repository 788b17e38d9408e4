"""Evaluate a model of your own, each step a file: attacks, answers, verdicts.

    behaviors --attacks--> test cases --model--> completions --judges--> verdicts --> rates

`attack_all`, `answer_all` and `judge_once` each write files of records into a folder and find them
there the next time, so a killed run goes on where it was, inside a step too. Every step may begin
from somebody else's file instead (`r2d_core.records` reads the suites' formats). A file made under
other settings is never written over: it is said, and stays. An evaluation grows, though: with one
more attack or judge, or with further behaviors, what is there stays, and files of answers and
verdicts are made anew from what was answered already, so that only what is new is asked.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tqdm.auto import tqdm

from r2d_core.attacks import ATTACKS, Attack, Material, Surrogate, Target
from r2d_core.attacks.attack import no_rewrite
from r2d_core.attacks.journal import Journal, RecordedGenerator, digest
from r2d_core.attacks.queries import Failure, ask, check_answers
from r2d_core.checking import unknown
from r2d_core.cost import COUNTS, Cost, answer_costs
from r2d_core.errors import InputError
from r2d_core.generation import (
    Generation,
    Request,
    answer_directly,
    completion_of,
    request_of,
)
from r2d_core.judges import ABSENT, UNPARSABLE, Judge, judge_all
from r2d_core.made_once import (
    is_part,
    is_there,
    made_with,
    made_with_another,
    records_once,
    rows_once,
    same_where_both,
)
from r2d_core.reach import Reached
from r2d_core.records import (
    Behavior,
    Completion,
    TestCase,
    Verdict,
)
from r2d_core.records.outcomes import NOT_ATTEMPTED
from r2d_core.sampling_error import Mean
from r2d_core.utility import PAPER_TASKS, Score, UtilityConfig, measure_utility

BATCH = 64
"""Requests put to the generator at once; after each batch their answers are on disk."""
UNASKED = Material((), lambda behavior: (), no_rewrite)
"""For attacks that draw on no material."""


def check_folder(
    folder: str | Path, reached: Reached, judges: Mapping[str, str], *, max_new_tokens: int
) -> None:
    """Raise InputError where the folder has answers or verdicts of another model.

    Before anything is asked: attacks come first, and are paid for. ``judges``: a judge's name ->
    that of its model.
    """
    folder = Path(folder)
    made = {"completions": {"model": reached.name, "max_new_tokens": max_new_tokens}}
    made |= {f"verdicts/{judge}": {"model": model} for judge, model in judges.items()}
    for name, settings in made.items():
        path = folder / f"{name}.jsonl"
        before = made_with(path)
        if before is not None:
            other = [key for key, value in settings.items() if before.get(key) != value]
            if other:
                raise InputError(made_with_another(path, other))


def attack_all(
    behaviors: Sequence[Behavior],
    attacks: Mapping[str, Attack],
    reached: Reached,
    judge: Judge,
    folder: str | Path,
    *,
    max_new_tokens: int,
    seed: int = 0,
    material: Material = UNASKED,
    attacker: Reached | None = None,
    evaluator: Reached | None = None,
    surrogates: Sequence[Reached] = (),
) -> list[TestCase]:
    """The test cases of every attack on the harmful behaviors, and the benign ones as they stand.

    In ``folder/test_cases/<attack>.jsonl``, benign ones under "benign". ``judge`` is what attacks
    that look at answers climb, ``attacker`` what writes prompts for PAIR, TAP, zero- and few-shot,
    ``evaluator`` what says whether TAP's are on topic (the attacker, where None), ``surrogates``
    what transferred GCG is made on. A file hangs on what its attack uses (`Attack.uses`) and on
    nothing else: direct requests are the same ones whatever the judge is. With further behaviors
    these alone are attacked, and the test cases of those that were there stay as they are; not so
    where one suffix is for all of them (``"behaviors"`` is in `Attack.uses`), and fewer of them are
    another evaluation.

    Raises InputError for what an attack lacks, before the first attack where it can be known, and
    for a surrogate that is not in this process.
    """
    folder = Path(folder)
    if any(surrogate.model is None for surrogate in surrogates):
        raise InputError("surrogates: their gradients are needed; take generator 'transformers'")
    harmful = [behavior for behavior in behaviors if behavior.kind == "harmful"]
    benign = [behavior for behavior in behaviors if behavior.kind == "benign"]
    for attack in attacks.values():
        for behavior in harmful:
            if lacking := [need for need in attack.needs if need not in behavior.metadata]:
                raise InputError(
                    f"attack {attack.name!r} needs metadata[{lacking[0]!r}] of behavior "
                    f"{behavior.id!r}; give behaviors that have it (targets, say), or leave the "
                    "attack out"
                )
    given: dict[str, Any] = {
        "model": reached.name,
        "max_new_tokens": max_new_tokens,
        "judge": f"{judge.name} {getattr(judge, 'model', '')}".strip(),
        "attacker": "" if attacker is None else attacker.name,
        "evaluator": "" if evaluator is None else evaluator.name,
        "surrogates": [surrogate.name for surrogate in surrogates],
        "material": digest(repr(material.wrappers)),
        "seed": seed,
    }

    def target_of(attack: Attack) -> Target:
        """With what the attack uses and nothing else: so its progress is named by that, too."""
        used = {name: given[name] for name in given if _hangs_on(attack, name)}
        return Target(
            reached.generator,
            judge,
            max_new_tokens,
            reached.model,
            reached.tokenizer,
            attacker.generator if attacker is not None and "attacker" in used else None,
            evaluator.generator if evaluator is not None and "evaluator" in used else None,
            tuple(Surrogate(s.model, s.tokenizer) for s in surrogates if "surrogates" in used),
            progress=folder / "progress",
            name=digest(json.dumps(used)),
        )

    steps = []
    for name, attack in attacks.items():
        known = {b.id: _known_to(attack, b) for b in harmful}
        settings = {
            "attack": repr(attack),
            "behaviors": _told_each(list(known.values())),
            **{name: given[name] for name in given if _hangs_on(attack, name)},
        }
        if "material" in settings:
            settings["material"] = {"wrappers": given["material"], **_drawn(harmful, material)}
        if harmful and (content := getattr(attack, "content", None)):
            settings["file_content"] = digest(repr(content()))  # the repr has the file's name alone
        path = folder / "test_cases" / f"{name}.jsonl"
        grown = None if "behaviors" in attack.uses else partial(_more_behaviors, settings)
        if not is_there(path, settings, grown) and harmful:
            check_reached([attack], reached)
            _check_runs(attack, list(known.values()), target_of(attack), material, seed)

        def run(
            there: list[TestCase],
            attack: Attack = attack,
            known: Mapping[str, Behavior] = known,
        ) -> list[TestCase]:
            made = {case.behavior_id: case for case in there if not case.metadata.get("outage")}
            left = [behavior for behavior in known.values() if behavior.id not in made]
            cases = attack.run(left, target_of(attack), material, seed)
            made |= {case.behavior_id: case for case in cases}
            return [made[name] for name in known]

        steps.append((path, settings, run, grown))
    found: list[TestCase] = []
    for path, settings, run, grown in tqdm(steps, desc="attacks", unit="attack"):
        found += records_once(path, TestCase, settings, run, grown)
    if benign:
        path = folder / "test_cases" / "benign.jsonl"
        asked = {"behaviors": _told_each(benign)}
        found += records_once(
            path, TestCase, asked, lambda _: answer_directly(benign, "benign"),
            partial(_more_behaviors, asked),
        )  # fmt: skip
    return found


def _check_runs(
    attack: Attack, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
) -> None:
    """Have the attack say what it lacks: asked for nothing, it asks nothing."""
    attack.run([], replace(target, progress=None), material, seed)
    if hasattr(attack, "aim"):
        on = target.surrogates[0] if target.surrogates else target
        for behavior in behaviors:
            attack.aim(behavior, on.tokenizer)


def _more_behaviors(
    settings: Mapping[str, Any], before: Mapping[str, Any], other: Sequence[str]
) -> bool:
    """Whether the same behaviors are there, and what was drawn for them, and further ones."""
    return {*other} <= {"behaviors", "material"} and all(
        is_part(before[name], settings[name]) for name in other
    )


def check_reached(attacks: Iterable[Attack], reached: Reached) -> None:
    """Raise InputError where the model is not reached in the way that one of the attacks needs."""
    for attack in attacks:
        for need, lacks in (("model", reached.model), ("tokenizer", reached.tokenizer)):
            if need in attack.uses and lacks is None:
                raise InputError(
                    f"attack {attack.name!r} needs the model's own {need} in this process, for "
                    "gradients, log-probabilities or its template; take generator 'transformers', "
                    "or leave the attack out"
                )
        if "prefill" in attack.uses:
            _check_prefill(f"attack {attack.name!r}", reached.generator)


def answer_all(
    cases: Sequence[TestCase], reached: Reached, folder: str | Path, *, max_new_tokens: int
) -> list[Completion]:
    """The model's answer to every test case, in order, in ``folder/completions.jsonl``.

    Greedy, or as a test case says that it was found; a request that several test cases put is asked
    once. Answers are kept in ``folder/progress`` by model and length. With test cases of other
    attacks or behaviors besides, or of fewer attacks, the file is made anew from them: what was
    answered is not asked again. Raises InputError where those of an attack are others than those
    answered, or fewer.

    A request at which the model raises has an empty answer with ``metadata["error"]``, is judged by
    nobody, and counts as unparsable. Unless the request is the reason (`RequestError`), it has
    ``metadata["outage"]`` and is asked again the next time; where all of a batch are such, the
    model is down, and that ends the run. What is no prompt (``metadata["missing"]``: the attack has
    none) is not asked; its answer is empty, and a failure of the attack. Raises InputError, before
    anything is asked, for a prefill that a server takes none of.
    """
    folder = Path(folder)
    answered_by = {"model": reached.name, "max_new_tokens": max_new_tokens}
    by_attack: dict[str, list[TestCase]] = {}
    for case in cases:
        by_attack.setdefault(case.attack, []).append(case)

    def answers(there: list[Completion]) -> list[Completion]:
        if any(case.prefill for case in cases):
            _check_prefill("a test case", reached.generator)
        path = folder / "progress" / f"answers-{digest(json.dumps(answered_by))}.jsonl"
        recorded = RecordedGenerator(reached.generator, Journal(path), "target")
        made: dict[Request, Generation | Failure] = {}
        asked = list(dict.fromkeys(request_of(case) for case in cases if not case.missing))
        with tqdm(total=len(asked), desc="answers", unit="answer") as bar:
            for start in range(0, len(asked), BATCH):
                batch = asked[start : start + BATCH]
                answers = ask(recorded, batch, max_new_tokens)
                made |= zip(batch, answers, strict=True)
                if len(batch) == BATCH:
                    check_answers(answers)
                bar.update(len(batch))
        failed = [each for each in made.values() if isinstance(each, Failure)]
        if failed and len(failed) == len(made):
            raise InputError(f"the model answers nothing at all: {failed[0].error}")
        return [_completion(c, _NOTHING if c.missing else made[request_of(c)]) for c in cases]

    told = {name: _told_by_behavior(some) for name, some in by_attack.items()}

    def grown(before: Mapping[str, Any], other: Sequence[str]) -> bool:
        return {*other} <= {"cases", "order"} and same_where_both(before["cases"], told)

    settings = {**answered_by, "cases": told, "order": _order(cases)}
    return records_once(folder / "completions.jsonl", Completion, settings, answers, grown)


def judge_once(
    judge: Judge,
    behaviors: Sequence[Behavior],
    completions: Sequence[Completion],
    folder: str | Path,
    *,
    model: str = "",
) -> list[Verdict]:
    """The judge's verdicts, in the completions' order, in ``folder/verdicts/<judge>.jsonl``.

    ``model`` is the name of a judge's model. Of completions that are none (see `answer_all`) those
    at which the model raised, and those that a provider's filter withheld, are unparsable in every
    scope, those of missing prompts "not_attempted". What outages lost, the judge's model's or
    before, has ``metadata["outage"]`` and is judged again the next time. Where completions of other
    attacks have come or gone, of further behaviors come, or one that was none is there now, the
    file is made anew; a judge's model, whose answers are kept, is asked about those alone. Raises
    InputError where the completions of an attack are others than those judged, or fewer.
    """
    path = Path(folder) / "verdicts" / f"{judge.name}.jsonl"
    given = _told_each(behaviors)
    settings = {
        "completions": _told(completions, ()),
        "unanswered": [_place(c) for c in completions if c.unanswered],
        "order": _order(completions),
        "behaviors": given,
        "model": model,
    }

    def grown(before: Mapping[str, Any], other: Sequence[str]) -> bool:
        told = _told(completions, before["unanswered"])
        return (
            {*other} <= {"completions", "unanswered", "order", "behaviors"}
            and is_part(before["behaviors"], given)
            and same_where_both(before["completions"], told)
        )

    def verdicts(there: list[Verdict]) -> list[Verdict]:
        texts = [c for c in completions if not (c.unanswered or c.missing)]
        made = iter(judge_all(judge, behaviors, texts))
        found = (_no_verdict(judge, c) if c.unanswered or c.missing else next(made)
                 for c in completions)  # fmt: skip
        return [
            replace(v, metadata={**v.metadata, "outage": True}) if c.metadata.get("outage") else v
            for v, c in zip(found, completions, strict=True)
        ]

    return records_once(path, Verdict, settings, verdicts, grown)


def costs_once(
    behaviors: Sequence[Behavior], reached: Reached, folder: str | Path, *, max_new_tokens: int
) -> list[Cost]:
    """What the model's answers to these behaviors cost (`answer_costs`), in ``folder/costs.json``.

    They are asked directly, and for this alone: an answer taken from a file has no seconds. With
    further behaviors all are asked again.
    """
    settings = {
        "behaviors": _told_each(behaviors),
        "model": reached.name,
        "max_new_tokens": max_new_tokens,
        "counts": COUNTS,
    }
    rows = rows_once(
        Path(folder) / "costs.json",
        settings,
        lambda: answer_costs(reached.generator, behaviors, max_new_tokens),
        partial(_more_behaviors, settings),
    )
    return [Cost(**(row | {name: _mean(row[name]) for name in COUNTS})) for row in rows]


def utility_config(given: Mapping[str, Any], reached: Reached) -> UtilityConfig:
    """Settings of `UtilityConfig`, as a notebook's parameter has them.

    Raises InputError for an unknown setting, and for a model that is not in this process: before
    anything is asked, where it is called then.
    """
    fields = [field.name for field in dataclasses.fields(UtilityConfig)]
    for name in given:
        if name not in fields:
            raise InputError(f"utility: {unknown('setting', name, fields)}")
    tasks = given.get("tasks", PAPER_TASKS)  # of a notebook's parameter: a list
    config = UtilityConfig(**{**given, "tasks": tuple(tasks) if isinstance(tasks, list) else tasks})
    if reached.model is None or reached.tokenizer is None:
        raise InputError("utility: the model has to be in this process; take 'transformers'")
    return config


def utility_once(given: Mapping[str, Any], reached: Reached, folder: str | Path) -> list[Score]:
    """The model's scores in lm-evaluation-harness (`measure_utility`), in ``folder/utility.json``.

    ``given`` is as `utility_config` takes it. It is the model that is measured, whatever defence or
    bare prompt is round it. Raises InputError as `utility_config` and `measure_utility` do.
    """
    config = utility_config(given, reached)
    settings = {"model": reached.name, **dataclasses.asdict(config)}
    rows = rows_once(
        Path(folder) / "utility.json",
        settings,
        lambda: measure_utility(reached.model, reached.tokenizer, config),
    )
    return [Score(**{**row, "stderr": _number(row["stderr"])}) for row in rows]


def _hangs_on(attack: Attack, setting: str) -> bool:
    """Whether an attack's test cases hang on a setting of `attack_all`."""
    if setting == "model":
        return bool({"generator", "model", "tokenizer"} & {*attack.uses})
    return ("generator" if setting == "max_new_tokens" else setting) in attack.uses


def _drawn(behaviors: Sequence[Behavior], material: Material) -> dict[str, str]:
    """Of each behavior a digest of what the material has for it."""
    return {
        f"for {b.id}": digest(
            repr([list(material.shots(b)), material.rewrite(b, b.prompt, Random(b.id))])
        )
        for b in behaviors
    }


def _known_to(attack: Attack, behavior: Behavior) -> Behavior:
    """The behavior without what is known of it for the sake of other attacks."""
    aims = {need for other in ATTACKS.values() for need in other.needs}
    foreign = aims - {*attack.needs, *attack.uses}
    kept = {key: value for key, value in behavior.metadata.items() if key not in foreign}
    return replace(behavior, metadata=kept)


def _check_prefill(what: str, generator: Any) -> None:
    while hasattr(generator, "generator"):  # a defence round it
        generator = generator.generator
    if getattr(generator, "dialect", "") == "openai":
        raise InputError(
            f"{what} begins the answer itself, and nothing standard has a server go on with a "
            "beginning; give the server dialect 'vllm' where it is vLLM's, or leave it out"
        )


def _place(completion: Completion) -> str:
    """What tells a completion from others of its attack, whatever was answered."""
    c = completion
    return digest(repr([c.behavior_id, c.attack, c.prompt, c.prefill]))


def _told(completions: Sequence[Completion], without: Sequence[str]) -> dict[str, dict[str, str]]:
    """`_told_by_behavior` of each attack, but for completions that are none or left out."""
    some: dict[str, list[Completion]] = {}
    for each in completions:
        kept = some.setdefault(each.attack, [])
        if not each.unanswered and (not without or _place(each) not in without):
            kept.append(each)
    return {attack: _told_by_behavior(kept) for attack, kept in some.items()}


def _told_by_behavior(records: Sequence[TestCase] | Sequence[Completion]) -> dict[str, str]:
    """A digest of what there is of each behavior."""
    some: dict[str, list[Any]] = {}
    for each in records:
        some.setdefault(each.behavior_id, []).append(each)
    return {behavior: digest(repr(found)) for behavior, found in some.items()}


def _order(records: Sequence[TestCase] | Sequence[Completion]) -> str:
    """A digest of their order: verdicts stand in that of the completions."""
    return digest(repr([(each.attack, each.behavior_id) for each in records]))


def _told_each(behaviors: Sequence[Behavior]) -> dict[str, str]:
    return {behavior.id: digest(repr(behavior)) for behavior in behaviors}


_NOTHING = Generation("", 0, 0, "stop")


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _mean(row: Mapping[str, Any]) -> Mean:
    return Mean(row["estimate"], _number(row["low"]), _number(row["high"]), row["n"])


def _completion(case: TestCase, answer: Generation | Failure) -> Completion:
    if isinstance(answer, Failure):
        none = completion_of(case, _NOTHING)
        lost = {"outage": True} if answer.outage else {}
        return replace(none, metadata={**none.metadata, "error": answer.error, **lost})
    return completion_of(case, answer)


def _no_verdict(judge: Judge, completion: Completion) -> Verdict:
    if completion.missing:
        of, attack = completion.behavior_id, completion.attack
        return Verdict(of, attack, judge.name, NOT_ATTEMPTED, ABSENT, NOT_ATTEMPTED)
    return Verdict(
        behavior_id=completion.behavior_id,
        attack=completion.attack,
        judge=judge.name,
        whole=UNPARSABLE,
        reasoning=ABSENT,  # whether there would have been one is not known
        answer=UNPARSABLE,
        metadata={"error": completion.unanswered},
    )
