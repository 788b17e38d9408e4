"""Evaluate a model of your own, each step a file: attacks, answers, verdicts.

    behaviors --attacks--> test cases --model--> completions --judges--> verdicts --> rates

`attack_all`, `answer_all` and `judge_once` each write files of records into a folder and find them
there the next time, so a killed run goes on where it was, inside a step too. Every step may begin
from somebody else's file instead (`r2d_core.records` reads the suites' formats). A file made under
other settings is never written over: it is said, and stays. An evaluation grows, though: with one
more attack or judge what is there stays, and files of answers and verdicts are made anew from what
was answered already, so that only what is new is asked.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pandas as pd
from tqdm.auto import tqdm

from r2d_core.attack_success import (
    attack_succeeded,
    score_means,
    success_outcomes,
    success_rates,
    tells_scores,
    tells_success,
)
from r2d_core.attacks import ATTACKS, Attack, Material, Surrogate, Target
from r2d_core.attacks.attack import no_rewrite
from r2d_core.attacks.journal import Journal, RecordedGenerator, digest
from r2d_core.attacks.queries import Failure, ask, check_answers
from r2d_core.checking import unknown
from r2d_core.cost import COUNTS, Cost, answer_costs
from r2d_core.errors import InputError
from r2d_core.evaluation_inputs import SUITES
from r2d_core.generation import (
    Generation,
    Request,
    answer_directly,
    completion_of,
    request_of,
)
from r2d_core.judges import ABSENT, JUDGES, UNPARSABLE, Judge, judge_all
from r2d_core.over_refusal import refusal_outcomes, refusal_rates, tells_refusals
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

HEALED = {"cases", "completions", "unanswered"}
"""Settings that are others where what an outage had lost is there now."""

R = TypeVar("R", TestCase, Completion, Verdict)


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
        before = _made_with(path)
        if before is not None:
            other = [key for key, value in settings.items() if before.get(key) != value]
            if other:
                raise InputError(_made_with_another(path, other))


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
    nothing else: direct requests are the same ones whatever the judge is.

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
    drawn = [
        [list(material.shots(b)), material.rewrite(b, b.prompt, Random(b.id))] for b in harmful
    ]
    given: dict[str, Any] = {
        "model": reached.name,
        "max_new_tokens": max_new_tokens,
        "judge": f"{judge.name} {getattr(judge, 'model', '')}".strip(),
        "attacker": "" if attacker is None else attacker.name,
        "evaluator": "" if evaluator is None else evaluator.name,
        "surrogates": [surrogate.name for surrogate in surrogates],
        "material": digest(repr([material.wrappers, drawn])),
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
        known = [_known_to(attack, behavior) for behavior in harmful]
        settings = {"attack": repr(attack), "behaviors": digest(repr(known))}
        settings |= {name: given[name] for name in given if _hangs_on(attack, name)}
        content = getattr(attack, "content", None)
        if content and harmful:
            settings["file_content"] = digest(repr(content()))  # the repr has the file's name alone
        path = folder / "test_cases" / f"{name}.jsonl"
        if not _is_there(path, settings) and harmful:
            check_reached([attack], reached)
            target = replace(target_of(attack), progress=None)
            attack.run([], target, material, seed)  # says what it lacks, and asks nothing
            if hasattr(attack, "aim"):
                on = target.surrogates[0] if target.surrogates else target
                for behavior in known:
                    attack.aim(behavior, on.tokenizer)
        steps.append((path, attack, known, settings))
    found: list[TestCase] = []
    for path, attack, known, settings in tqdm(steps, desc="attacks", unit="attack"):

        def run(attack: Attack = attack, known: Sequence[Behavior] = known) -> list[TestCase]:
            return attack.run(known, target_of(attack), material, seed)

        found += _once(path, TestCase, settings, run)
    if benign:
        path = folder / "test_cases" / "benign.jsonl"
        asked = {"behaviors": digest(repr(benign))}
        found += _once(path, TestCase, asked, lambda: answer_directly(benign, "benign"))
    return found


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
    attacks besides, or fewer, the file is made anew from them: what was answered is not asked
    again. Raises InputError where those of an attack are others than those answered.

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

    def answers() -> list[Completion]:
        if any(case.prefill for case in cases):
            _check_prefill("a test case", reached.generator)
        path = folder / "progress" / f"answers-{digest(json.dumps(answered_by))}.jsonl"
        recorded = RecordedGenerator(reached.generator, Journal(path), "target")
        made: dict[Request, Generation | Failure] = {}
        asked = list(dict.fromkeys(request_of(case) for case in cases if not _missing(case)))
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
        return [_completion(c, _NOTHING if _missing(c) else made[request_of(c)]) for c in cases]

    told = {name: digest(repr(some)) for name, some in by_attack.items()}

    def grown(before: Mapping[str, Any], other: Sequence[str]) -> bool:
        return other == ["cases"] and _same_where_both(before["cases"], told)

    settings = {**answered_by, "cases": told}
    return _once(folder / "completions.jsonl", Completion, settings, answers, grown)


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
    attacks have come or gone, or one that was none is there now, the file is made anew; a judge's
    model, whose answers are kept, is asked about those alone. Raises InputError where the
    completions of an attack are others than those judged.
    """
    path = Path(folder) / "verdicts" / f"{judge.name}.jsonl"
    settings = {
        "completions": _told(completions, ()),
        "unanswered": [_place(c) for c in completions if _error(c)],
        "behaviors": digest(repr(list(behaviors))),
        "model": model,
    }

    def grown(before: Mapping[str, Any], other: Sequence[str]) -> bool:
        if not {*other} <= {"completions", "unanswered"}:
            return False
        return _same_where_both(before["completions"], _told(completions, before["unanswered"]))

    def verdicts() -> list[Verdict]:
        texts = [c for c in completions if not (_error(c) or _missing(c))]
        made = iter(judge_all(judge, behaviors, texts))
        found = (_no_verdict(judge, c) if _error(c) or _missing(c) else next(made)
                 for c in completions)  # fmt: skip
        return [
            replace(v, metadata={**v.metadata, "outage": True}) if c.metadata.get("outage") else v
            for v, c in zip(found, completions, strict=True)
        ]

    return _once(path, Verdict, settings, verdicts, grown)


def spending(completions: Sequence[Completion]) -> pd.DataFrame:
    """What was spent by each attack, a row an attack, and how many of its completions are none.

    ``tokens`` of an answer and ``queries`` of a prompt are means with `clustered_mean`'s interval
    and its n, the behaviors. What is no answer has no tokens, what is no prompt no queries either,
    and a suite's file may say neither (HarmBench's): that is in no mean, and where nothing is left
    it is None. Counted are answers "cut off", "no answer" (the model raised, or a provider's filter
    withheld it), "no prompt",
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
    columns = ["attack", "completions", "tokens", "queries", "cut off", "no answer", "no prompt"]
    frame = pd.DataFrame(rows, columns=[*columns, "left out"])
    return frame.astype({"tokens": object, "queries": object})


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
    rows = _rows_once(
        Path(folder) / "utility.json",
        settings,
        lambda: measure_utility(reached.model, reached.tokenizer, config),
    )
    return [Score(**{**row, "stderr": _number(row["stderr"])}) for row in rows]


def summary(
    behaviors: Sequence[Behavior], verdicts: Mapping[str, Sequence[Verdict]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Attack success on harmful behaviors, and refusals on all.

    As `success_rates` and `refusal_rates` count, of the judges that say such a thing; ``verdicts``
    are by judge. Refusals are shown on both kinds, benign ones first: a model that refuses
    everything refuses what is harmful, too. Every harmful behavior counts under every attack: one
    on which there is no verdict is one for which the attack found no prompt, a failure. Raises
    InputError for a verdict on a behavior that is not given.
    """
    success, refusals = _told_apart(behaviors, verdicts)
    return success_rates(success, behaviors), refusal_rates(behaviors, refusals)


def summary_by_source(
    behaviors: Sequence[Behavior],
    verdicts: Mapping[str, Sequence[Verdict]],
    sources: Mapping[str, str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`summary` of the behaviors of each source, in a first column ``source``.

    ``sources``: a behavior's id -> where it comes from, such as its suite's file.
    """
    found: tuple[list[pd.DataFrame], list[pd.DataFrame]] = ([], [])
    for source in dict.fromkeys(sources.values()):
        some = [behavior for behavior in behaviors if sources[behavior.id] == source]
        ids = {behavior.id for behavior in some}
        of = {name: [v for v in made if v.behavior_id in ids] for name, made in verdicts.items()}
        for tables, table in zip(found, summary(some, of), strict=True):
            table.insert(0, "source", source)
            tables.append(table)
    success, refusals = (pd.concat(tables, ignore_index=True) for tables in found)
    return success, refusals


def scores(
    behaviors: Sequence[Behavior], verdicts: Mapping[str, Sequence[Verdict]]
) -> pd.DataFrame:
    """Mean scores on harmful behaviors, as `score_means` counts, of the judges that give some."""
    harmful = {behavior.id for behavior in behaviors if behavior.kind == "harmful"}
    scored = [v for name, made in verdicts.items() if tells_scores(name) for v in made]
    return score_means([v for v in scored if v.behavior_id in harmful], behaviors)


def outcomes(
    behaviors: Sequence[Behavior],
    verdicts: Mapping[str, Sequence[Verdict]],
    sources: Mapping[str, str],
) -> pd.DataFrame:
    """What `summary` counts one by one: for comparisons of evaluations.

    Columns: ``source`` (as in `summary_by_source`), ``measure`` ("success" of an attack, "refusal"
    in full), judge, attack, kind, scope, behavior, ``request`` (a digest of what the behavior
    asks), and ``outcome``: 1, 0, or None where the judge said nothing that can be read.
    """
    success, refusals = _told_apart(behaviors, verdicts)
    told = success_outcomes(success, behaviors).rename(columns={"success": "outcome"})
    refused = refusal_outcomes(behaviors, refusals).rename(columns={"full": "outcome"})
    rows = pd.concat(
        [told.assign(measure="success", kind="harmful"), refused.assign(measure="refusal")]
    )
    request = {behavior.id: digest(behavior.request) for behavior in behaviors}
    rows["request"] = rows["behavior"].map(request)
    rows["source"] = rows["behavior"].map(dict(sources))
    rows["outcome"] = [None if pd.isna(each) else int(each) for each in rows["outcome"]]
    columns = ["source", "measure", "judge", "attack", "kind", "scope", "behavior", "request"]
    return rows[[*columns, "outcome"]].astype({"outcome": "Int64"}).reset_index(drop=True)


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
    if suite not in SUITES:
        raise InputError(unknown("suite", suite, SUITES))
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
    attacks = dict.fromkeys(c.attack for c in completions if kinds.get(c.behavior_id) == "harmful")
    said = {attack: "not written: the attack has a prompt for no behavior" for attack in attacks}
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


def _told_apart(
    behaviors: Sequence[Behavior], verdicts: Mapping[str, Sequence[Verdict]]
) -> tuple[list[Verdict], list[Verdict]]:
    """Verdicts that tell of success, on harmful behaviors; and those that tell of refusals."""
    kinds = {behavior.id: behavior.kind for behavior in behaviors}
    success: list[Verdict] = []
    refusals: dict[str, list[Verdict]] = {"benign": [], "harmful": []}
    for name, some in verdicts.items():
        for verdict in some:
            if verdict.behavior_id not in kinds:
                first = ", ".join(list(kinds)[:3]) or "none"
                raise InputError(
                    f"a verdict of {name!r} is on behavior {verdict.behavior_id!r}, which is not "
                    f"among the {len(kinds)} given ({first}, …); give the behaviors that it was "
                    "made from"
                )
            kind = kinds[verdict.behavior_id]
            # Of a judge nobody here knows, a suite's file has one label, which tells of success.
            if tells_refusals(name) and (name in JUDGES or verdict.answer):
                refusals[kind].append(verdict)
            if kind == "harmful" and tells_success(name):
                success.append(verdict)
    return success, [*refusals["benign"], *refusals["harmful"]]


def _in_words_of_suites(verdict: Verdict) -> Verdict:
    """What a judge said, as the suites' writers know it: their own words, and `UNPARSABLE`."""
    said = attack_succeeded(verdict)
    if said is None or verdict.whole in FAILURES:
        return verdict
    return replace(verdict, whole=SUCCESS if said else "not_harmful")


def _hangs_on(attack: Attack, setting: str) -> bool:
    """Whether an attack's test cases hang on a setting of `attack_all`."""
    if setting == "model":
        return bool({"generator", "model", "tokenizer"} & {*attack.uses})
    return ("generator" if setting == "max_new_tokens" else setting) in attack.uses


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


def _told(completions: Sequence[Completion], without: Sequence[str]) -> dict[str, str]:
    """For each attack a digest of its completions, but for those that are none or left out."""
    some: dict[str, list[Completion]] = {}
    for each in completions:
        kept = some.setdefault(each.attack, [])
        if not _error(each) and (not without or _place(each) not in without):
            kept.append(each)
    return {attack: digest(repr(kept)) for attack, kept in some.items()}


def _same_where_both(before: object, now: Mapping[str, str]) -> bool:
    """Whether what both know is the same; older folders tell no attack apart: then it is not."""
    if not isinstance(before, dict):
        return False
    return all(now[name] == told for name, told in before.items() if name in now)


def _is_there(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the file is there with these settings; InputError where it has others."""
    before = _made_with(path)
    if before is not None and (other := _others(before, settings)):
        raise InputError(_made_with_another(path, other))
    return before is not None


def _made_with(path: Path) -> dict[str, Any] | None:
    """The settings of the file that is there, None where none is. InputError for damaged ones."""
    record = _record(path)
    return read_json(record) if path.is_file() and record.is_file() else None


def _others(before: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The names of the settings that are others than before."""
    now = json.loads(json.dumps(settings))
    names = [*now, *(name for name in before if name not in now)]
    return [name for name in names if before.get(name) != now.get(name)]


def _changed(before: Mapping[str, Any], settings: Mapping[str, Any]) -> set[str]:
    """The attacks of which test cases or completions are others than before."""
    found: set[str] = set()
    for name in ("cases", "completions"):
        were, now = before.get(name, {}), settings.get(name, {})
        if isinstance(were, dict):
            found |= {attack for attack, told in were.items() if now.get(attack, told) != told}
    return found


def _made_with_another(path: Path, other: Sequence[str]) -> str:
    return (
        f"{path} was made with another {' and '.join(other)}; give another output folder, or "
        f"delete {path.name} to have it made anew"
    )


def _once(
    path: Path,
    cls: type[R],
    settings: Mapping[str, Any],
    make: Callable[[], list[R]],
    grown: Callable[[Mapping[str, Any], list[str]], bool] | None = None,
) -> list[R]:
    """The records at ``path``, made now unless they are there with these settings.

    ``grown``: of the settings before and the names of those that differ, whether what is there may
    be made anew, since nothing in it is of other settings. Of which outages lost some are made
    again, too, from test cases or completions that are other now because theirs were; what was
    answered is in the journals.
    """
    before: dict[str, Any] | None = _made_with(path)
    if before is not None:
        other: list[str] = _others(before, settings)
        known = read_jsonl(path, cls) if {*other} <= HEALED else []
        outages = {each.attack for each in known if each.metadata.get("outage")}
        if not other and not outages:
            return known
        lost = bool(outages) and _changed(before, settings) <= outages
        more = grown is not None and before.keys() == settings.keys() and grown(before, other)
        if not lost and not more:
            raise InputError(_made_with_another(path, other))
    records = make()
    # The old ones go first and the settings come next: records that are there without settings, or
    # with those of others, would be taken for made under them.
    path.unlink(missing_ok=True)
    write_json_atomic(_record(path), settings)
    write_jsonl(path, records)
    return records


def lost_to_outages(folder: str | Path) -> bool:
    """Whether a model was down for something of a finished evaluation: run again, it is asked."""
    root = Path(folder)
    some: tuple[TestCase | Completion | Verdict, ...] = (
        *(each for file in root.glob("test_cases/*.jsonl") for each in read_jsonl(file, TestCase)),
        *(each for file in root.glob("completions.jsonl") for each in read_jsonl(file, Completion)),
        *(each for file in root.glob("verdicts/*.jsonl") for each in read_jsonl(file, Verdict)),
    )
    return any(each.metadata.get("outage") for each in some)


def _record(path: Path) -> Path:
    return path.with_suffix(".settings.json")


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


def _mean_of(counts: Sequence[tuple[str, float]]) -> Mean | None:
    if not counts:
        return None
    return clustered_mean([n for _, n in counts], [of for of, _ in counts])


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
        whole=UNPARSABLE,
        reasoning=ABSENT,  # whether there would have been one is not known
        answer=UNPARSABLE,
        metadata={"error": _error(completion)},
    )
