"""Making training data: a teacher reasons, a guard tags every step and the answer.

    guard = prompt_guard(guard_model)  # of `guards`, as judge_guard(judge); or any function
    made = synthesize(behaviors, teacher, guard, SynthesisConfig("results/data"))
    rows = read_trajectories(made.trajectories)             # feeds training

The pivot of a step is what teacher and guard agree on. `[RETHINK]` stands where they disagree,
where the teacher says so, and where it turns round in the next step ("wait, …"). The paper (3.3)
has the teacher tag itself and a guard model tag again; it does not say how the two were joined, and
the authors' code leaves the making of the data out. The rule here is ours, and so is that a
trajectory whose *answer* the guard calls unsafe is rejected, however safe its steps look: pivots
stand behind steps, and nothing else would tell a model that such an answer is not to be given.

**On-policy data** is the same call with another teacher and a filter: the model that will be
trained writes its own trajectories, under a safety prompt that training then leaves out, and a
judge keeps the good ones (ThinkSafe, arXiv 2601.23143; OPSA, arXiv 2605.15239, goes further and
distils token by token)::

    config = SynthesisConfig("results/own", harmful_prompt="on_policy", benign_prompt="")
    synthesize(behaviors, model, guard, config, keep=guards.judge_filter(judge, accepted))

In ``output_dir``:

    journal.jsonl        settings, then one line for each instruction in its order: what became of
                         it, with the teacher's and the guard's tags; appended batch by batch
    trajectories.jsonl   the trajectories kept: instruction, input, output; written at the end

A killed run goes on behind the last whole line of its journal. Another prompt or setting, of the
guard and the filter too, and another name of teacher or guard in the settings, is another run and
wants a folder of its own; another model under the same name is not noticed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from r2d_core.checking import check_fields
from r2d_core.dataset_rows import JOURNAL
from r2d_core.decontamination import SimilarTexts, Thresholds, words
from r2d_core.errors import InputError
from r2d_core.generation import Generation, Generator, Request
from r2d_core.guards import Filter, Guard, StepInContext, load_prompt
from r2d_core.pivots import PIVOT_TOKENS, RETHINK, SAFE, THINK_CLOSE, THINK_OPEN, UNSAFE
from r2d_core.records import Behavior, write_text_atomic
from r2d_core.synthesis_journal import STATUSES, Journal, identity, json_line, read_journal
from r2d_core.trajectories import Step, format_response, parse, problems

UNSAFE_ANSWER = "guard: the answer is unsafe"
"""The reason of a trajectory that is rejected for its answer."""

REVISION = re.compile(
    r"\W*(?:but\s+)?"
    r"(?:wait|hmm|hold on|actually|on second thought|let me re(?:think|consider))\b",
    re.IGNORECASE,
)
"""How a step begins with which a teacher turns round; the step before it is to be rethought."""

EMPTY = "the instruction is empty"
_PIVOT = re.compile("|".join(map(re.escape, PIVOT_TOKENS)))
_ALMOST_A_PIVOT = re.compile(r"\[\s*(safe|un-?safe|rethink)\s*\]", re.IGNORECASE)
_PARAGRAPH = re.compile(r"\n\s*\n")
# After a full stop, a capital follows; or the stop is a word of its own, as in the toy language.
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z])|(?<=\s[.!?])\s+")


@dataclass(frozen=True)
class SynthesisConfig:
    """One run.

    Attributes:
        output_dir: where journal and trajectories are written.
        teacher, guard: their names, for the journal.
        harmful_prompt, benign_prompt: the instruction to the teacher, by the kind of the behavior:
            the name of a file in ``r2d_core/prompts`` ("teacher", "teacher_paper", "on_policy"),
            the path of a text file, or "" for none.
        prompt_role: where it goes: the system message, or before the request for chat templates
            that refuse one (Gemma).
        max_new_tokens: a response that is longer is endless, and fails.
        split: how reasoning without pivots is cut into steps: at empty lines or after sentences.
        similarity: instructions from this Jaccard similarity of their word pairs on are near
            duplicates, of which the first counts.
        temperature, seed, attempts: an instruction whose response fails or is rejected is tried
            again with the next seed; that takes a temperature above 0.
        batch_size: instructions to a call of the teacher, and to a write of the journal.
        give_up_after: when so many calls in a row raise, the teacher (or guard) is down rather than
            the instruction at fault: the run ends with its error, and these are not recorded. So
            it does where the last calls of all raise, and then an instruction that had worked, too.

    Raises InputError for a wrong type and a value out of range.
    """

    output_dir: str | os.PathLike[str]
    teacher: str = "teacher"
    guard: str = "guard"
    harmful_prompt: str = "teacher"
    benign_prompt: str = "teacher"
    prompt_role: Literal["system", "user"] = "system"
    max_new_tokens: int = 4096
    split: Literal["paragraph", "sentence"] = "paragraph"
    similarity: float = 0.8
    temperature: float = 0.0
    seed: int = 0
    attempts: int = 1
    batch_size: int = 16
    give_up_after: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.output_dir, str | os.PathLike) or not os.fspath(self.output_dir):
            raise InputError(
                f"SynthesisConfig output_dir: expected a path, got {self.output_dir!r}"
            )
        check_fields(self, "SynthesisConfig", skip=("output_dir",))
        for name in ("max_new_tokens", "attempts", "batch_size", "give_up_after"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"SynthesisConfig {name}: expected at least 1, got {value}")
        if self.seed < 0:
            raise InputError(f"SynthesisConfig seed: expected 0 or more, got {self.seed}")
        if not 0 < self.similarity <= 1:
            raise InputError(
                f"SynthesisConfig similarity: expected above 0 and at most 1, got {self.similarity}"
            )
        if self.temperature < 0:
            raise InputError(
                f"SynthesisConfig temperature: expected 0 or more, got {self.temperature}"
            )
        if self.attempts > 1 and self.temperature == 0:
            raise InputError(
                f"SynthesisConfig attempts: {self.attempts} greedy responses would be the same; "
                "set a temperature above 0, or attempts=1"
            )


@dataclass(frozen=True)
class Synthesis:
    """A finished run: its files, and how many instructions came to each of `STATUSES`."""

    trajectories: Path
    journal: Path
    counts: dict[str, int]


def synthesize(
    behaviors: Sequence[Behavior],
    teacher: Generator,
    guard: Guard,
    config: SynthesisConfig,
    keep: Filter | None = None,
) -> Synthesis:
    """Write a trajectory for every instruction that can have one; say what became of the others.

    ``behaviors`` are the instructions: their ``prompt`` is what is asked, their ``kind`` chooses
    the teacher's prompt, and guard and filter see all of them. A finished run is not run again; one
    with more behaviors behind the old ones goes on with those.

    Raises InputError when the folder holds another run (other settings, prompts or behaviors), and
    when teacher or guard keep raising. What was written stays.
    """
    prompts = {
        "harmful": load_prompt(config.harmful_prompt) if config.harmful_prompt else "",
        "benign": load_prompt(config.benign_prompt) if config.benign_prompt else "",
    }
    settings = {
        **_settings(config, prompts),
        "guard_sha256": getattr(guard, "fingerprint", ""),
        "answers_tagged": True,  # journals of before have trajectories whose answers no guard saw
        "filtered": keep is not None,
        "filter_sha256": getattr(keep, "fingerprint", ""),
    }
    journal = Journal(Path(config.output_dir) / JOURNAL, settings)
    done = journal.resume(behaviors)
    twins = find_duplicates([b.prompt for b in behaviors], config.similarity)
    waiting: list[dict[str, Any]] = []  # raised, and nothing has worked since
    works = _last_made(journal) if done else None  # an instruction on which all has worked
    counts: collections.Counter[str] = collections.Counter()
    with tqdm(
        total=len(behaviors), initial=done, desc="synthesize", unit="instruction", smoothing=0.05
    ) as bar:
        while done < len(behaviors):
            end = min(len(behaviors), (done // config.batch_size + 1) * config.batch_size)
            entries: dict[int, dict[str, Any]] = {}
            for number in range(done, end):
                if not words(behaviors[number].prompt):
                    entries[number] = {"status": "failed", "reason": EMPTY}
                elif number in twins:
                    of, similarity = twins[number]
                    entries[number] = {
                        "status": "duplicate",
                        "of": behaviors[of].id,
                        "similarity": round(similarity, 4),
                    }
            todo = [number for number in range(done, end) if number not in entries]
            entries |= _write_trajectories(behaviors, todo, teacher, guard, config, prompts, keep)
            waiting += [identity(behaviors[n]) | entries[n] for n in range(done, end)]
            if settled := _settled(waiting):
                made = [n for n in range(settled) if "output" in waiting[n]]
                if made or works is None:
                    works = end - len(waiting) + (made[-1] if made else settled - 1)
                journal.append(waiting[:settled])
                waiting = waiting[settled:]
            raised = [entry["reason"] for entry in waiting if "raised" in entry]
            down = len(raised) >= config.give_up_after
            if raised and not down and end == len(behaviors):  # were they at fault, all of them?
                probe = [] if works is None else [works]
                again = _write_trajectories(behaviors, probe, teacher, guard, config, prompts, keep)
                down = not _settled([*waiting, *again.values()])
            if down:
                raise InputError(
                    f"{journal.path}: teacher or guard failed {len(raised)} times in a row, the "
                    f"last time with {raised[-1]}; mend it and run again: "
                    f"what was written before stays, and these instructions will be asked again"
                )
            counts.update(entry["status"] for entry in entries.values())
            bar.set_postfix(counts)
            bar.update(end - done)
            done = end
    journal.append(waiting)
    return _finish(journal, Path(config.output_dir) / "trajectories.jsonl")


def find_duplicates(texts: Sequence[str], similarity: float) -> dict[int, tuple[int, float]]:
    """Position of a text -> position of an earlier one that it repeats, and their similarity.

    The same words are the same text (similarity 1.0), whatever case, spaces and punctuation; else
    texts whose sets of word pairs have at least this Jaccard similarity. An earlier one is never a
    duplicate itself. Texts without words repeat only each other.
    """
    index = SimilarTexts(Thresholds(similarity=similarity))
    seen: dict[tuple[str, ...], int] = {}
    found: dict[int, tuple[int, float]] = {}
    bar = tqdm(texts, desc="find duplicates", unit="text", delay=2, leave=False)
    for position, text in enumerate(bar):
        if (first := seen.get(words(text))) is not None:
            found[position] = (first, 1.0)
        elif similar := index.find(text):
            found[position] = similar[0]
        else:
            seen[words(text)] = position
            index.add(position, text)
    return found


def split_steps(text: str, split: Literal["paragraph", "sentence"]) -> list[str]:
    """Reasoning without pivots in steps: its paragraphs, or its sentences (by rule of thumb)."""
    pattern = _PARAGRAPH if split == "paragraph" else _SENTENCE
    return [piece.strip() for piece in pattern.split(text) if piece.strip()]


def read_response(
    text: str, split: Literal["paragraph", "sentence"]
) -> tuple[list[Step], str, str]:
    """What a teacher wrote: its steps with its own pivots, the answer, and what is missing ("").

    Forgiving of what teachers do: ``[Safe]`` and ``[UN-SAFE]`` are pivots; the pivot of the last
    step may stand behind ``</think>``; pivots in the answer are taken out. Steps that the teacher
    left without a pivot are cut by ``split``.
    """
    text = _ALMOST_A_PIVOT.sub(lambda m: f"[{m[1].replace('-', '').upper()}]", text)
    trajectory = parse(text)
    answer = trajectory.answer
    steps: list[Step] = []
    for step in trajectory.steps:
        if step.pivot is None:
            steps += [Step(piece) for piece in split_steps(step.text, split)]
        elif step.text.strip():
            steps.append(Step(step.text.strip(), step.pivot))
    if steps and steps[-1].pivot is None and (late := _PIVOT.match(answer.lstrip())):
        steps[-1] = Step(steps[-1].text, late[0])
    answer = re.sub(rf"[ \t]*(?:{_PIVOT.pattern})", "", answer).strip()
    if not text.strip():
        missing = "the teacher wrote nothing"
    elif not trajectory.finished:
        missing = f"the reasoning does not end: {THINK_OPEN} without {THINK_CLOSE}"
    elif not steps:
        missing = "there is no reasoning"
    elif not answer:
        missing = "there is no answer"
    else:
        missing = ""
    return steps, answer, missing


def choose_pivots(steps: Sequence[Step], tags: Sequence[str]) -> list[Step]:
    """The steps with the pivots that teacher (in ``steps``) and guard (``tags``) come to.

    ==================  ============  ==============
    teacher             guard         pivot
    ==================  ============  ==============
    none                any           the guard's
    the same            the same      that one
    `[RETHINK]`         any           `[RETHINK]`
    the other one       the other     `[RETHINK]`
    ==================  ============  ==============

    A step on which they do not agree that it is unsafe, and after which the teacher turns round
    (`REVISION`), gets `[RETHINK]` as well.
    """
    chosen = []
    following = [step.text for step in steps[1:]] + [""]
    for step, tag, after in zip(steps, tags, following, strict=True):
        pivot = tag if step.pivot in (None, tag) else RETHINK
        agreed_unsafe = step.pivot == tag == UNSAFE
        if REVISION.match(after) and not agreed_unsafe:
            pivot = RETHINK
        chosen.append(Step(step.text, pivot))
    return chosen


def _write_trajectories(
    behaviors: Sequence[Behavior],
    todo: Sequence[int],
    teacher: Generator,
    guard: Guard,
    config: SynthesisConfig,
    prompts: Mapping[str, str],
    keep: Filter | None,
) -> dict[int, dict[str, Any]]:
    """What became of the behaviors at ``todo``, after at most ``attempts`` each."""
    entries: dict[int, dict[str, Any]] = {}
    for attempt in range(config.attempts):
        open_ = [n for n in todo if n not in entries or entries[n]["status"] != "kept"]
        requests = [_request(behaviors[n], prompts, config, config.seed + attempt) for n in open_]
        written = _each(
            requests, lambda some: teacher.generate(some, config.max_new_tokens), "teacher"
        )
        read: dict[int, tuple[list[Step], str]] = {}
        for number, made in zip(open_, written, strict=True):
            if isinstance(made, str):
                entries.setdefault(number, _raised(made, "teacher"))
                continue
            steps, answer, missing = read_response(made.text, config.split)
            if made.finish == "length":
                missing = f"cut off at {made.response_tokens} tokens"
            if missing:
                entries[number] = _failed(missing, made)
            else:
                read[number] = steps, answer
        for number, tags in _tag(behaviors, read, guard).items():
            steps, answer = read[number]
            if isinstance(tags, str):
                entries.setdefault(number, _raised(tags, "guard"))
            else:
                entry = _entry(behaviors[number], steps, answer, tags, keep)
                if "raised" not in entry or number not in entries:
                    entries[number] = entry
    return entries


def _entry(
    behavior: Behavior,
    steps: Sequence[Step],
    answer: str,
    tags: Sequence[str],
    keep: Filter | None,
) -> dict[str, Any]:
    """``tags``: the guard's of every step, and of the answer behind them."""
    strange = [tag for tag in tags if tag not in (SAFE, UNSAFE)]
    if strange:
        return _raised(f"guard: {strange[0]}", "guard")
    *of_steps, of_answer = tags
    try:
        output = format_response(choose_pivots(steps, of_steps), answer)
    except InputError as error:
        return {"status": "failed", "reason": f"malformed: {error}"}
    trajectory = parse(output, instruction=behavior.prompt)
    if defects := problems(trajectory):
        return {"status": "failed", "reason": f"malformed: {'; '.join(defects)}", "text": output}
    reason = UNSAFE_ANSWER if of_answer == UNSAFE else ""
    if keep and not reason:
        reason = keep(behavior, trajectory)
    return {
        "status": "rejected" if reason else "kept",
        **({"reason": reason} if reason else {}),
        "output": output,
        "teacher": [step.pivot for step in steps],
        "guard": of_steps,
        "guard_answer": of_answer,
    }


def _settled(entries: Sequence[Mapping[str, Any]]) -> int:
    """How many of them, from the first, are what they are: up to the last that shows that who had
    raised before works. What never came to the guard shows that of the teacher alone.
    """
    of_guard = [n for n, entry in enumerate(entries) if entry.get("raised") == "guard"]
    for n in reversed(range(len(entries))):
        unasked = entries[n]["status"] == "duplicate" or entries[n].get("reason") == EMPTY
        guarded = "output" in entries[n] or not (of_guard and of_guard[0] < n)
        if not unasked and "raised" not in entries[n] and guarded:
            return n + 1
    return 0


def _last_made(journal: Journal) -> int | None:
    """The last instruction of a journal that has a trajectory, kept or rejected."""
    made = [n for n, entry in enumerate(read_journal(journal.path)) if "output" in entry]
    return made[-1] if made else None


def _raised(reason: str, by: Literal["teacher", "guard"]) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "raised": by}


def _failed(reason: str, made: Generation) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "text": made.text[:500]}


def _request(
    behavior: Behavior, prompts: Mapping[str, str], config: SynthesisConfig, seed: int
) -> Request:
    told = prompts[behavior.kind]
    prompt, system = behavior.prompt, told
    if told and config.prompt_role == "user":
        prompt, system = f"{told}\n\n{prompt}", ""
    return Request(prompt, system, temperature=config.temperature, seed=seed)


def _tag(
    behaviors: Sequence[Behavior], read: Mapping[int, tuple[list[Step], str]], guard: Guard
) -> dict[int, list[str] | str]:
    """The guard's tags of steps and answer by instruction, or how it failed.

    All are asked for in one call; where that fails, instruction by instruction.
    """
    asked = {}
    for number, (steps, answer) in read.items():
        texts = [*(step.text for step in steps), answer]
        asked[number] = [
            StepInContext(behaviors[number], "\n".join(texts[:position]), text)
            for position, text in enumerate(texts)
        ]

    def tag_all(some: Sequence[list[StepInContext]]) -> list[list[str]]:
        together = [step for steps in some for step in steps]
        tags = list(guard(together))
        if len(tags) != len(together):
            raise ValueError(f"{len(tags)} tags for {len(together)} steps")
        return [[tags.pop(0) for _ in steps] for steps in some]

    return dict(zip(asked, _each(list(asked.values()), tag_all, "guard"), strict=True))


def _each(items: Sequence[Any], call: Callable[[Sequence[Any]], Any], who: str) -> list[Any]:
    """``call`` on all items at once; when that raises, on each by itself, errors as texts."""
    if not items:
        return []
    try:
        made = list(call(items))
        if len(made) != len(items):
            raise ValueError(f"{len(made)} results for {len(items)} requests")
        return made
    except Exception as error:  # whatever it is, the other instructions go on
        if len(items) == 1:
            said = str(error).strip().partition("\n")[0]
            return [f"{who}: {type(error).__name__}: {said}"[:300]]
        return [result for item in items for result in _each([item], call, who)]


def _settings(config: SynthesisConfig, prompts: Mapping[str, str]) -> dict[str, Any]:
    """What makes a run what it is; the texts of the prompts by their hash."""
    values = dataclasses.asdict(config)
    for name in ("output_dir", "batch_size", "give_up_after"):
        del values[name]
    for kind, text in prompts.items():
        values[f"{kind}_prompt_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return values


def _finish(journal: Journal, path: Path) -> Synthesis:
    entries = read_journal(journal.path)
    write_text_atomic(path, "".join(_kept_lines(entries)))
    counts = collections.Counter(entry["status"] for entry in entries)
    return Synthesis(path, journal.path, {status: counts[status] for status in STATUSES})


def _kept_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for entry in entries:
        if entry["status"] == "kept":
            row = {name: entry[name] for name in ("id", "kind", "instruction")}
            yield json_line({**row, "input": "", "output": entry["output"]})
