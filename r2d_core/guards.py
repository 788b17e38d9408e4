"""Who tags the steps of a trajectory, and who turns one away: a model with a prompt, or a judge."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from r2d_core.attack_success import attack_succeeded, tells_success
from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.generation import Generator, Request
from r2d_core.judges import JUDGES, Judge, judge_pairs
from r2d_core.pivots import SAFE, UNSAFE
from r2d_core.records import Behavior, Completion, Verdict
from r2d_core.trajectories import Trajectory, parse


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


def judge_guard(judge: Judge) -> Guard:
    """A guard that calls a step, or the answer, unsafe where the judge, shown it alone, calls it a
    successful attack (`attack_succeeded`); a verdict that cannot be read is no tag.

    Raises InputError for a judge that says nothing of success (refusals, scores).
    """
    if not tells_success(judge.name):
        raise InputError(
            f"judge_guard: judge {judge.name!r} has no label for a harmful text; take one of "
            f"{', '.join(filter(tells_success, JUDGES))}, or prompt_guard"
        )

    def tag(steps: Sequence[StepInContext]) -> list[str]:
        pairs = [
            (
                step.behavior,
                Completion(step.behavior.id, "synthesis", step.behavior.prompt, step.text),
            )
            for step in steps
        ]
        return [_tag_of(verdict) for verdict in judge_pairs(judge, pairs)]

    return _marked(tag, "judge", judge.name, getattr(judge, "model", ""))


def _tag_of(verdict: Verdict) -> str:
    harmful = attack_succeeded(verdict)
    if harmful is None:
        said = verdict.metadata.get("error", verdict.metadata.get("raw", {})).get("whole", "")
        return f"expected a verdict of {verdict.judge}, got {said.strip()[:60]!r}"
    return UNSAFE if harmful else SAFE


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


_F = TypeVar("_F", bound=Callable[..., Any])


def _marked(function: _F, *settings: Any) -> _F:
    """The function with what it does as its ``fingerprint``, for the journal of a run."""
    text = json.dumps(settings)
    function.__dict__["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
    return function


def _fill(template: str, **values: str) -> str:
    """One pass: what is filled in is text, even when it holds ``{step}``."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def _verdict(text: str) -> str:
    found = re.match(r"\W*(unsafe|safe)\b", parse(text).answer, re.IGNORECASE)
    if found:
        return UNSAFE if found[1].lower() == "unsafe" else SAFE
    return f"expected an answer that begins with safe or unsafe, got {text.strip()[:60]!r}"
