"""Making training data: a teacher reasons, a guard tags every step and the answer.

    guard = prompt_guard(guard_model)                       # or judge_guard(judge), or a function
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
    synthesize(behaviors, model, guard, config, keep=judge_filter(judge, accepted))

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
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from tqdm.auto import tqdm

from r2d_core.checking import mismatch, unknown
from r2d_core.decontamination import SimilarTexts, Thresholds, words
from r2d_core.errors import InputError
from r2d_core.generation import Generation, Generator, Request
from r2d_core.judges import Judge
from r2d_core.pivots import PIVOT_TOKENS, RETHINK, SAFE, THINK_CLOSE, THINK_OPEN, UNSAFE
from r2d_core.records import Behavior, Completion, write_text_atomic
from r2d_core.trajectories import (
    Step,
    Trajectory,
    format_response,
    parse,
    problems,
)

STATUSES = ("kept", "rejected", "failed", "duplicate")
"""What becomes of an instruction: a trajectory; one whose answer is unsafe, or that the filter
turned away; none, because teacher or guard failed or the text was no trajectory; nothing, because
it was there before."""

UNSAFE_ANSWER = "guard: the answer is unsafe"
"""The reason of a trajectory that is rejected for its answer."""

REVISION = re.compile(
    r"\W*(?:but\s+)?"
    r"(?:wait|hmm|hold on|actually|on second thought|let me re(?:think|consider))\b",
    re.IGNORECASE,
)
"""How a step begins with which a teacher turns round; the step before it is to be rethought."""

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
            the instruction at fault: the run ends with its error, and these are not recorded.

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
        for name, annotation in get_type_hints(SynthesisConfig).items():
            value = getattr(self, name)
            if name != "output_dir" and (problem := mismatch(value, annotation)):
                raise InputError(f"SynthesisConfig {name}: {problem}")
            if annotation is int and value < (0 if name == "seed" else 1):
                raise InputError(f"SynthesisConfig {name}: expected at least 1, got {value}")
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
class StepInContext:
    """What a guard is asked about: a step or the answer, the thoughts before, what was asked."""

    behavior: Behavior
    reasoning: str
    text: str


Guard = Callable[[Sequence[StepInContext]], Sequence[str]]
"""Tags each step or answer `[SAFE]` or `[UNSAFE]`, in order; any other text says why it cannot."""

Filter = Callable[[Behavior, Trajectory], str]
"""Why a trajectory is not to be kept; "" keeps it."""


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
    journal = _Journal(Path(config.output_dir) / "journal.jsonl", settings)
    done = journal.resume(behaviors)
    twins = find_duplicates([b.prompt for b in behaviors], config.similarity)
    waiting: list[dict[str, Any]] = []  # raised, and nothing has worked since
    worked = done > 0
    counts: collections.Counter[str] = collections.Counter()
    with tqdm(
        total=len(behaviors), initial=done, desc="synthesize", unit="instruction", smoothing=0.05
    ) as bar:
        while done < len(behaviors):
            end = min(len(behaviors), (done // config.batch_size + 1) * config.batch_size)
            entries: dict[int, dict[str, Any]] = {}
            for number in range(done, end):
                if not words(behaviors[number].prompt):
                    entries[number] = {"status": "failed", "reason": "the instruction is empty"}
                elif number in twins:
                    of, similarity = twins[number]
                    entries[number] = {
                        "status": "duplicate",
                        "of": behaviors[of].id,
                        "similarity": round(similarity, 4),
                    }
            todo = [number for number in range(done, end) if number not in entries]
            entries |= _write_trajectories(behaviors, todo, teacher, guard, config, prompts, keep)
            waiting += [_identity(behaviors[n]) | entries[n] for n in range(done, end)]
            settled = [n for n, entry in enumerate(waiting) if _settled(entry)]
            if settled:
                worked = True
                journal.append(waiting[: settled[-1] + 1])
                waiting = waiting[settled[-1] + 1 :]
            raised = sum("raised" in entry for entry in waiting)
            if raised >= config.give_up_after or (raised and end == len(behaviors) and not worked):
                raise InputError(
                    f"{journal.path}: teacher or guard failed {raised} times in a row, the last "
                    f"time with {waiting[-1].get('reason', 'an error')}; mend it and run again: "
                    f"what was written before stays, and these instructions will be asked again"
                )
            counts.update(entry["status"] for entry in entries.values())
            bar.set_postfix(counts)
            bar.update(end - done)
            done = end
    journal.append(waiting)
    return _finish(journal, Path(config.output_dir) / "trajectories.jsonl")


def prompt_guard(generator: Generator, prompt: str = "guard", max_new_tokens: int = 16) -> Guard:
    """A guard that asks a model, with a prompt file that has {instruction}, {reasoning}, {step}.

    The answer has to begin with "safe" or "unsafe", as Llama Guard's does; reasoning before it is
    passed over. Raises InputError for a prompt without ``{step}``.
    """
    template = load_prompt(prompt)
    if "{step}" not in template:
        raise InputError(f"guard prompt {prompt!r}: expected the place {{step}} in it")

    def tag(steps: Sequence[StepInContext]) -> list[str]:
        requests = [
            Request(
                _fill(
                    template,
                    instruction=step.behavior.prompt,
                    reasoning=step.reasoning,
                    step=step.text,
                )
            )
            for step in steps
        ]
        return [_verdict(made.text) for made in generator.generate(requests, max_new_tokens)]

    return _marked(tag, "prompt", template, max_new_tokens)


def judge_guard(judge: Judge, unsafe: Collection[str] = ("harmful",)) -> Guard:
    """A guard that calls a step, or the answer, unsafe when the judge labels it, alone, as one of
    ``unsafe``."""

    def tag(steps: Sequence[StepInContext]) -> list[str]:
        labels = [
            judge.judge(
                step.behavior,
                Completion(step.behavior.id, "synthesis", step.behavior.prompt, step.text),
            ).whole
            for step in steps
        ]
        return [UNSAFE if label in unsafe else SAFE for label in labels]

    return _marked(tag, "judge", judge.name, sorted(unsafe))


def judge_filter(
    judge: Judge,
    accepted: Mapping[str, Collection[str]],
    scope: Literal["whole", "reasoning", "answer"] = "whole",
) -> Filter:
    """A filter that keeps what the judge labels as one of ``accepted[behavior.kind]``.

    For the toy judge: ``{"harmful": ["refused"], "benign": ["correct"]}``. The scope "whole" also
    turns away a refusal after reasoning that has told all.
    """

    def reject(behavior: Behavior, trajectory: Trajectory) -> str:
        completion = Completion(behavior.id, "synthesis", behavior.prompt, str(trajectory))
        label = getattr(judge.judge(behavior, completion), scope)
        if label in accepted.get(behavior.kind, ()):
            return ""
        return f"{judge.name}: the {scope} response to a {behavior.kind} request is {label}"

    allowed = {kind: sorted(labels) for kind, labels in sorted(accepted.items())}
    return _marked(reject, "judge", judge.name, allowed, scope)


_F = TypeVar("_F", bound=Callable[..., Any])


def _marked(function: _F, *settings: Any) -> _F:
    """The function with what it does as its ``fingerprint``, for the journal of a run."""
    text = json.dumps(settings)
    function.__dict__["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
    return function


def load_prompt(name: str) -> str:
    """A prompt of `r2d_core/prompts` by its name, or the text file at a path (ending in .txt).

    Raises InputError when there is none.
    """
    if name.endswith(".txt"):
        try:
            return Path(name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"prompt {name}: cannot be read ({type(error).__name__})") from None
    folder = resources.files("r2d_core") / "prompts"
    known = sorted(each.name.removesuffix(".txt") for each in folder.iterdir())
    if name not in known:
        raise InputError(unknown("prompt", name, known) + "; or give the path of a .txt file")
    return (folder / f"{name}.txt").read_text(encoding="utf-8").strip()


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


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The entries of a journal, one for each instruction so far, without its settings.

    Every entry has ``id``, ``kind``, ``instruction`` and ``status``; "kept" and "rejected" also
    ``output``, ``teacher`` and ``guard`` (the tags, step by step) and ``guard_answer`` (its tag of
    the answer); "rejected" and "failed" a
    ``reason``; "failed" the beginning of the ``text``; "duplicate" ``of`` and ``similarity``.

    Raises InputError when there is no such file or it is no journal.
    """
    _, entries = _read_lines(Path(path))
    return entries


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
                entries.setdefault(number, _raised(made))
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
                entries.setdefault(number, _raised(tags))
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
        return _raised(f"guard: {strange[0]}")
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


def _settled(entry: Mapping[str, Any]) -> bool:
    """True when teacher and guard worked on it, so that raising before was not their end."""
    return entry["status"] != "duplicate" and "raised" not in entry


def _raised(reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "raised": True}


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


def _fill(template: str, **values: str) -> str:
    """One pass: what is filled in is text, even when it holds ``{step}``."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def _verdict(text: str) -> str:
    found = re.match(r"\W*(unsafe|safe)\b", parse(text).answer, re.IGNORECASE)
    if found:
        return UNSAFE if found[1].lower() == "unsafe" else SAFE
    return f"expected an answer that begins with safe or unsafe, got {text.strip()[:60]!r}"


def _identity(behavior: Behavior) -> dict[str, Any]:
    return {"id": behavior.id, "kind": behavior.kind, "instruction": behavior.prompt}


def _settings(config: SynthesisConfig, prompts: Mapping[str, str]) -> dict[str, Any]:
    """What makes a run what it is; the texts of the prompts by their hash."""
    values = dataclasses.asdict(config)
    for name in ("output_dir", "batch_size", "give_up_after"):
        del values[name]
    for kind, text in prompts.items():
        values[f"{kind}_prompt_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return values


class _Journal:
    """A file of JSON lines that grows by whole batches; line 1 holds the settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self._settings = settings

    def resume(self, behaviors: Sequence[Behavior]) -> int:
        """How many instructions are done. Makes the file, or cuts off a torn last line.

        Raises InputError when it was written with other settings or for other behaviors.
        """
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.path, _line({"synthesis": self._settings}))
            return 0
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):
            whole = content[: content.rfind(b"\n") + 1]
            with self.path.open("rb+") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        settings, entries = _read_lines(self.path)
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise InputError(
                    f"{self.path}: written with {name}={settings.get(name)!r}, now {value!r}; "
                    "choose another output_dir, or delete this one to begin again"
                )
        for number, entry in enumerate(entries):
            expected = behaviors[number] if number < len(behaviors) else None
            if expected is None or any(entry[k] != v for k, v in _identity(expected).items()):
                found = f"{expected.id!r}" if expected else "nothing"
                raise InputError(
                    f"{self.path}:{number + 2}: holds instruction {entry['id']!r} where "
                    f"{found} is asked for now; choose another output_dir for other behaviors"
                )
        return len(entries)

    def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """Write the lines in one go and wait until they are on the disk."""
        if not entries:
            return
        lines = "".join(_line({k: v for k, v in e.items() if k != "raised"}) for e in entries)
        with self.path.open("ab") as file:
            file.write(lines.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n"


def _read_lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        values = [json.loads(line) for line in path.read_bytes().splitlines()]
        settings = values[0]["synthesis"]
        if not all(entry["status"] in STATUSES for entry in values[1:]):
            raise ValueError
        return settings, values[1:]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a journal of synthesize()") from None
    except (ValueError, LookupError, TypeError):
        raise InputError(
            f"{path}: not a journal of synthesize(), or damaged; delete it to begin again"
        ) from None


def _finish(journal: _Journal, path: Path) -> Synthesis:
    entries = read_journal(journal.path)
    write_text_atomic(path, "".join(_kept_lines(entries)))
    counts = collections.Counter(entry["status"] for entry in entries)
    return Synthesis(path, journal.path, {status: counts[status] for status in STATUSES})


def _kept_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for entry in entries:
        if entry["status"] == "kept":
            row = {name: entry[name] for name in ("id", "kind", "instruction")}
            yield _line({**row, "input": "", "output": entry["output"]})
