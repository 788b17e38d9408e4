"""Evaluate a model of your own, each step a file: attacks, answers, verdicts.

    behaviors --attacks--> test cases --model--> completions --judges--> verdicts --> rates

`attack_all`, `answer_all` and `judge_once` each write one file of records into a folder and find it
there the next time, so a killed run goes on where it was, inside a step too. Every step may begin
from somebody else's file instead (`r2d_core.records` reads the suites' formats). A file made under
other settings is never written over: it is said, and stays.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pandas as pd
from tqdm.auto import tqdm

from r2d_core.attack_success import attack_succeeded, success_rates, tells_success
from r2d_core.attacks import Attack, Material, Surrogate, Target
from r2d_core.attacks.attack import no_rewrite
from r2d_core.attacks.journal import Journal, RecordedGenerator, digest
from r2d_core.attacks.queries import Failure, ask, check_answers
from r2d_core.checking import unknown
from r2d_core.cost import COUNTS, Cost, answer_costs
from r2d_core.errors import InputError
from r2d_core.generation import Generation, answer_directly, completion_of, request_of
from r2d_core.judges import ABSENT, SCOPES, UNPARSABLE, Judge, judge_all
from r2d_core.over_refusal import refusal_rates, tells_refusals
from r2d_core.reach import Reached
from r2d_core.records import (
    Behavior,
    Completion,
    TestCase,
    Verdict,
    make_artifact,
    read_json,
    read_jsonl,
    write_harmbench,
    write_json_atomic,
    write_jsonl,
)
from r2d_core.records.outcomes import FAILURES, NOT_ATTEMPTED, SUCCESS
from r2d_core.sampling_error import Mean, clustered_mean
from r2d_core.utility import PAPER_TASKS, Score, UtilityConfig, measure_utility

BATCH = 64
"""Requests put to the generator at once; after each batch their answers are on disk."""
UNASKED = Material((), lambda behavior: (), no_rewrite)
"""For attacks that draw on no material."""

R = TypeVar("R", TestCase, Completion, Verdict)


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
    what transferred GCG is made on. Raises InputError for what an attack lacks, before the first
    attack where it can be known, and for a surrogate that is not in this process.
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
    drawn = [
        [list(material.shots(b)), material.rewrite(b, b.prompt, Random(b.id))] for b in harmful
    ]
    around = {
        "model": reached.name,
        "judge": f"{judge.name} {getattr(judge, 'model', '')}".strip(),
        "attacker": "" if attacker is None else attacker.name,
        "evaluator": "" if evaluator is None else evaluator.name,
        "surrogates": [surrogate.name for surrogate in surrogates],
        "material": digest(repr([material.wrappers, drawn])),
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    target = Target(
        reached.generator,
        judge,
        max_new_tokens,
        reached.model,
        reached.tokenizer,
        None if attacker is None else attacker.generator,
        None if evaluator is None else evaluator.generator,
        tuple(Surrogate(each.model, each.tokenizer) for each in surrogates),
        progress=folder / "progress",
        name=digest(json.dumps(around)),
    )
    found: list[TestCase] = []
    for name, attack in tqdm(attacks.items(), desc="attacks", unit="attack"):
        settings = {"attack": repr(attack), "behaviors": digest(repr(harmful)), **around}
        content = getattr(attack, "content", None)
        if content and harmful:
            settings["file_content"] = digest(repr(content()))  # the repr has the file's name alone

        def run(attack: Attack = attack) -> list[TestCase]:
            return attack.run(harmful, target, material, seed)

        found += _once(folder / "test_cases" / f"{name}.jsonl", TestCase, settings, run)
    if benign:
        path = folder / "test_cases" / "benign.jsonl"
        asked = {"behaviors": digest(repr(benign))}
        found += _once(path, TestCase, asked, lambda: answer_directly(benign, "benign"))
    return found


def answer_all(
    cases: Sequence[TestCase], reached: Reached, folder: str | Path, *, max_new_tokens: int
) -> list[Completion]:
    """The model's answer to every test case, in order, in ``folder/completions.jsonl``.

    Greedy, or as a test case says that it was found. A request at which the model raises has an
    empty answer with ``metadata["error"]``, is judged by nobody, and counts as unparsable. Unless
    the request is the reason (`RequestError`), it has ``metadata["outage"]`` and is asked again the
    next time; where all of a batch are such, the model is down, and that ends the run. What is no
    prompt (``metadata["missing"]``: the attack has none) is not asked; its answer is empty, and a
    failure of the attack.
    """
    folder = Path(folder)
    settings = {
        "cases": digest(repr(list(cases))),
        "model": reached.name,
        "max_new_tokens": max_new_tokens,
    }

    def answers() -> list[Completion]:
        path = folder / "progress" / f"answers-{digest(json.dumps(settings))}.jsonl"
        recorded = RecordedGenerator(reached.generator, Journal(path), "target")
        made: list[Generation | Failure] = []
        asked = [case for case in cases if not _missing(case)]
        with tqdm(total=len(asked), desc="answers", unit="answer") as bar:
            for start in range(0, len(asked), BATCH):
                batch = [request_of(case) for case in asked[start : start + BATCH]]
                made += ask(recorded, batch, max_new_tokens)
                if len(batch) == BATCH:
                    check_answers(made[-BATCH:])
                bar.update(len(batch))
        failed = [each for each in made if isinstance(each, Failure)]
        if failed and len(failed) == len(made):
            raise InputError(f"the model answers nothing at all: {failed[0].error}")
        answers = iter(made)
        return [_completion(c, _NOTHING if _missing(c) else next(answers)) for c in cases]

    return _once(folder / "completions.jsonl", Completion, settings, answers)


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
    before, has ``metadata["outage"]`` and is judged again the next time.
    """
    path = Path(folder) / "verdicts" / f"{judge.name}.jsonl"
    settings = {
        "completions": digest(repr(list(completions))),
        "behaviors": digest(repr(list(behaviors))),
        "model": model,
    }

    def verdicts() -> list[Verdict]:
        texts = [c for c in completions if not (_error(c) or _missing(c))]
        made = iter(judge_all(judge, behaviors, texts))
        found = (_no_verdict(judge, c) if _error(c) or _missing(c) else next(made)
                 for c in completions)  # fmt: skip
        return [
            replace(v, metadata={**v.metadata, "outage": True}) if c.metadata.get("outage") else v
            for v, c in zip(found, completions, strict=True)
        ]

    return _once(path, Verdict, settings, verdicts)


def spending(completions: Sequence[Completion]) -> pd.DataFrame:
    """What was spent by each attack, a row an attack, and how many of its completions are none.

    ``tokens`` of an answer and ``queries`` of a prompt are text: the mean with `clustered_mean`'s
    interval and its n, the behaviors. What is no answer has no tokens, what is no prompt no queries
    either, and a suite's file may say neither (HarmBench's): that is in no mean, and where nothing
    is left "not known". Counted are answers "cut off", "no answer" (the model raised, or a
    provider's filter withheld it), "no prompt",
    and "left out": further test cases of a behavior that a transferred attack did not put.
    """
    rows = []
    for attack in dict.fromkeys(completion.attack for completion in completions):
        some = [completion for completion in completions if completion.attack == attack]
        asked = [c for c in some if not _missing(c)]
        tokens = [(c.behavior_id, c.response_tokens) for c in asked if c.response_tokens]
        queries = [(c.behavior_id, _said(c, "queries")) for c in asked]
        rows.append(
            {
                "attack": attack,
                "completions": len(some),
                "tokens": _mean_of(tokens),
                "queries": _mean_of([(of, n) for of, n in queries if n is not None]),
                "cut off": sum(c.finish == "length" for c in some),
                "no answer": sum(bool(_error(c)) for c in some),
                "no prompt": len(some) - len(asked),
                "left out": sum(_said(c, "left_out") or 0 for c in some),
            }
        )
    return pd.DataFrame(rows)


def costs_once(
    behaviors: Sequence[Behavior], reached: Reached, folder: str | Path, *, max_new_tokens: int
) -> list[Cost]:
    """What the model's answers to these behaviors cost (`answer_costs`), in ``folder/costs.json``.

    They are asked directly, and for this alone: an answer taken from a file has no seconds.
    """
    settings = {
        "behaviors": digest(repr(list(behaviors))),
        "model": reached.name,
        "max_new_tokens": max_new_tokens,
        "counts": COUNTS,
    }
    rows = _rows_once(
        Path(folder) / "costs.json",
        settings,
        lambda: answer_costs(reached.generator, behaviors, max_new_tokens),
    )
    return [Cost(**(row | {name: _mean(row[name]) for name in COUNTS})) for row in rows]


def utility_once(given: Mapping[str, Any], reached: Reached, folder: str | Path) -> list[Score]:
    """The model's scores in lm-evaluation-harness (`measure_utility`), in ``folder/utility.json``.

    ``given`` are settings of `UtilityConfig`. It is the model that is measured, whatever defence or
    bare prompt is round it. Raises InputError for an unknown setting, for a model that is not in
    this process, and as `measure_utility` does.
    """
    fields = [field.name for field in dataclasses.fields(UtilityConfig)]
    for name in given:
        if name not in fields:
            raise InputError(f"utility: {unknown('setting', name, fields)}")
    tasks = given.get("tasks", PAPER_TASKS)  # of a notebook's parameter: a list
    config = UtilityConfig(**{**given, "tasks": tuple(tasks) if isinstance(tasks, list) else tasks})
    if reached.model is None or reached.tokenizer is None:
        raise InputError("utility: the model has to be in this process; take 'transformers'")
    settings = {"model": reached.name, **dataclasses.asdict(config)}
    rows = _rows_once(
        Path(folder) / "utility.json",
        settings,
        lambda: measure_utility(reached.model, reached.tokenizer, config),
    )
    return [Score(**{**row, "stderr": _number(row["stderr"])}) for row in rows]


def summary(
    behaviors: Sequence[Behavior], verdicts: Mapping[str, Sequence[Verdict]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Attack success on harmful behaviors, and refusals on benign ones.

    As `success_rates` and `refusal_rates` count, of the judges that say such a thing; ``verdicts``
    are by judge. Every harmful behavior counts under every attack: one on which there is no
    verdict is one for which the attack found no prompt, a failure. Raises InputError for a verdict
    on a behavior that is not given.
    """
    kinds = {behavior.id: behavior.kind for behavior in behaviors}
    harmful: list[Verdict] = []
    benign: list[Verdict] = []
    for name, some in verdicts.items():
        for verdict in some:
            if verdict.behavior_id not in kinds:
                raise InputError(
                    f"a verdict of {name!r} is on {unknown('behavior', verdict.behavior_id, [])}; "
                    "give the behaviors that it was made from"
                )
            if kinds[verdict.behavior_id] == "benign":
                benign += [verdict] if tells_refusals(name) else []
            else:
                harmful += [verdict] if tells_success(name) else []
    return success_rates(harmful, behaviors), refusal_rates(behaviors, benign)


def write_suite_files(
    suite: str,
    folder: str | Path,
    model: str,
    behaviors: Sequence[Behavior],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
) -> dict[str, str]:
    """What was found on harmful behaviors as "harmbench" or "jailbreakbench" files, by attack.

    HarmBench: ``folder/<attack>/r2d/{test_cases,completions,results}/``; JailbreakBench:
    ``folder/<attack>/<model>.json``. Of an attack that the suite's format has no place for (one
    with prefills, say) no file is written, and the value says why; else it is the file.

    A behavior for which the attack has no prompt is a null prompt for JailbreakBench and an empty
    test case with an empty generation, no success, for HarmBench: none is left out of a rate.
    """
    if suite not in ("harmbench", "jailbreakbench"):
        raise InputError(unknown("suite", suite, ("harmbench", "jailbreakbench")))
    if len(completions) != len(verdicts):
        raise InputError(
            f"{suite}: its files hold completions with their verdicts, and there are "
            f"{len(completions)} completions and {len(verdicts)} verdicts; leave export empty "
            "where verdicts alone were given"
        )
    kinds = {behavior.id: behavior.kind for behavior in behaviors}
    harmful = [behavior for behavior in behaviors if behavior.kind == "harmful"]
    file = "".join(c if c.isalnum() or c in "._-" else "-" for c in model) or "model"
    pairs = [
        pair
        for pair in zip(completions, verdicts, strict=True)
        if kinds.get(pair[0].behavior_id) == "harmful" and not _missing(pair[0])
    ]
    said = {}
    for attack in dict.fromkeys(completion.attack for completion, _ in pairs):
        made = [completion for completion, _ in pairs if completion.attack == attack]
        judged = [verdict for completion, verdict in pairs if completion.attack == attack]
        try:
            judged = [_in_words_of_suites(verdict) for verdict in judged]
            if suite == "harmbench":
                home = Path(folder) / attack / "r2d"
                found = {completion.behavior_id for completion in made}
                lacking = [b.id for b in harmful if b.id not in found]
                made += [Completion(name, attack, "", "") for name in lacking]
                judged += [
                    Verdict(name, attack, judged[0].judge, NOT_ATTEMPTED, "", NOT_ATTEMPTED)
                    for name in lacking
                ]
                cases = [
                    TestCase(c.behavior_id, c.attack, c.prompt, prefill=c.prefill) for c in made
                ]
                write_harmbench(home / "test_cases" / "test_cases.json", cases)
                write_harmbench(home / "completions" / f"{file}.json", made)
                path = home / "results" / f"{file}.json"
                write_harmbench(path, made, judged)
            else:
                path = Path(folder) / attack / f"{file}.json"
                parameters = {"method": attack, "model": model, "attack_type": "", "defense": None}
                make_artifact(harmful, made, judged, parameters).write(path)
            said[attack] = str(path)
        except InputError as error:
            said[attack] = f"not written: {error}"
    return said


def _in_words_of_suites(verdict: Verdict) -> Verdict:
    """What a judge said, as the suites' writers know it: their own words, and `UNPARSABLE`."""
    said = attack_succeeded(verdict)
    if said is None or verdict.whole in FAILURES:
        return verdict
    return replace(verdict, whole=SUCCESS if said else "not_harmful")


def _once(
    path: Path, cls: type[R], settings: Mapping[str, Any], make: Callable[[], list[R]]
) -> list[R]:
    """The records at ``path``, made now unless they are there with these settings.

    Of which outages lost some are made again, from test cases or completions that are other now
    because theirs were; what was answered is in the journals.
    """
    settings = json.loads(json.dumps(settings))
    record = path.with_suffix(".settings.json")
    if path.is_file() and record.is_file():
        before = read_json(record)
        other = [name for name, value in settings.items() if before.get(name) != value]
        known = read_jsonl(path, cls) if set(other) <= {"cases", "completions"} else []
        lost = any(each.metadata.get("outage") for each in known)
        if before == settings and not lost:
            return known
        if not lost:
            raise InputError(
                f"{path} was made with another {' and '.join(other)}; give another output folder, "
                f"or delete {path.name} to have it made anew"
            )
    records = make()
    # The settings first: records without them would be written over, the other way round they are
    # made anew.
    write_json_atomic(record, settings)
    write_jsonl(path, records)
    return records


_NOTHING = Generation("", 0, 0, "stop")


def _missing(record: TestCase | Completion) -> bool:
    """Whether there is no prompt: the attack has none for the behavior."""
    return bool(record.metadata.get("missing"))


def _rows_once(
    path: Path, settings: Mapping[str, Any], make: Callable[[], Sequence[Any]]
) -> list[dict[str, Any]]:
    """The fields of dataclasses at ``path``, made now unless they are there with these settings.

    A number that is none (nan) is null.
    """
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        before = read_json(path)
        if before.get("settings") != settings:
            raise InputError(
                f"{path} was made with another model or other settings; give another output "
                "folder, or delete the file to have it made anew"
            )
        if not isinstance(before.get("rows"), list):
            raise InputError(f"{path}: has no rows; delete it to have it made anew")
        return list(before["rows"])
    made = json.dumps([dataclasses.asdict(each) for each in make()])
    rows = list(json.loads(made, parse_constant=lambda _: None))
    write_json_atomic(path, {"settings": settings, "rows": rows})
    return rows


def _said(completion: Completion, name: str) -> float | None:
    """A number of the metadata; None for what a file of somebody's has otherwise, or not at all."""
    value = completion.metadata.get(name)
    return value if isinstance(value, int | float) else None


def _mean_of(counts: Sequence[tuple[str, float]]) -> str:
    if not counts:
        return "not known"
    return str(clustered_mean([n for _, n in counts], [of for of, _ in counts]))


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


def _error(completion: Completion) -> str:
    """Why there is no answer, "" where there is one."""
    if completion.finish == "filtered" and not completion.text.strip():
        return "a filter of the provider's withheld the answer"
    return str(completion.metadata.get("error", ""))


def _no_verdict(judge: Judge, completion: Completion) -> Verdict:
    if _missing(completion):
        of, attack = completion.behavior_id, completion.attack
        return Verdict(of, attack, judge.name, NOT_ATTEMPTED, ABSENT, NOT_ATTEMPTED)
    return Verdict(
        behavior_id=completion.behavior_id,
        attack=completion.attack,
        judge=judge.name,
        metadata={"error": _error(completion)},
        **dict.fromkeys(SCOPES, UNPARSABLE),
    )
