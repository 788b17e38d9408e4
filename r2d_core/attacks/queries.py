"""Asking models that may fail: every answer is scored, counted and, where it fails, written down.

Attacks that look at answers share this. A model that raises, a judge that raises or gives no number
costs a query and a line in ``metadata["errors"]``; the attack goes on. What a model raises is its
own outage, of which ``metadata["outage"]`` tells, unless it is a `RequestError`: then the request
is the reason. A behavior of which nothing came has no prompt and ``metadata["missing"]``: no attack
was made on it, and the bare request in place of one would count as an attack that failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm.auto import tqdm

from r2d_core.attacks.attack import BAR, Target
from r2d_core.attacks.gradient import response_losses
from r2d_core.errors import InputError
from r2d_core.generation import Generation, Generator, Request, RequestError, answer_each
from r2d_core.judges import Judge
from r2d_core.records import Behavior, TestCase

DOWN_AFTER = 3
"""Behaviors in a row of which outages leave an attack nothing, and it is over."""


@dataclass(frozen=True)
class Failure:
    """What a model raised in place of an answer, as one line.

    ``outage``: the model is the reason and not the request; asked later, it may answer.
    """

    error: str
    outage: bool = False

    @classmethod
    def of(cls, raised: Exception, outage: bool = False) -> Failure:
        return cls(" ".join(f"{type(raised).__name__}: {raised}".split()), outage)

    @classmethod
    def of_model(cls, raised: Exception) -> Failure:
        """Of what a model raised that was asked."""
        return cls.of(raised, outage=not isinstance(raised, RequestError))


def ask(
    generator: Generator, requests: Sequence[Request], max_new_tokens: int
) -> list[Generation | Failure]:
    """The answers in the order of the requests, each that cannot be had as its own `Failure`.

    One that cannot be had costs the others nothing (`answer_each`). InputError is passed on.
    """
    return [
        Failure.of_model(made) if isinstance(made, Exception) else made
        for made in answer_each(generator, requests, max_new_tokens)
    ]


def try_response(
    target: Target, prompts: Sequence[str], response: str, aimed: Sequence[bool]
) -> tuple[list[float], list[bool], Failure | None]:
    """`response_losses` on the target's own model: losses, which match, and what it raised.

    A loss that is no number, or that cannot be had, is infinite, or nothing were ever below it.
    InputError is passed on.
    """
    try:
        found = response_losses(target.model, target.tokenizer, prompts, response, aimed)
        losses, matched = found.loss.tolist(), found.matched.tolist()
    except InputError:
        raise
    except Exception as raised:
        return [math.inf] * len(prompts), [False] * len(prompts), Failure.of(raised)
    return [math.inf if math.isnan(loss) else loss for loss in losses], matched, None


def check_answers(made: Sequence[Generation | Failure]) -> None:
    """Raise InputError where outages took every one of the model's answers."""
    lost = [each for each in made if isinstance(each, Failure) and each.outage]
    if lost and len(lost) == len(made):
        raise InputError(
            f"the model answers nothing at all: {lost[-1].error}; run again when it does: what it "
            "has answered is not asked again"
        )


@dataclass
class Search:
    """One behavior under attack: what was spent on it and the best prompt found.

    ``enough`` is the judge's score that counts as a success and ends the search; ``scored`` says
    whether any prompt has a score, the judge's or another, and ``outage`` whether one was lost to
    an outage.
    """

    behavior: Behavior
    attack: str
    enough: float
    prompt: str = ""
    score: float = -1.0
    queries: int = 0
    first_success: int | None = None
    scored: bool = False
    outage: bool = False
    errors: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether the judge was content with an answer."""
        return self.first_success is not None

    def note(self, prompt: str, answer: Generation | Failure, judge: Judge) -> float:
        """Count an answer and score it from 0 to 1; what failed scores 0."""
        self.queries += 1
        score = 0.0
        if isinstance(answer, Failure):
            self.fail(answer)
        else:
            try:
                said: Any = judge.score(answer.text, self.behavior)
                self.scored = True  # if only with what is no number
                if said is None or not math.isfinite(said):
                    self.fail(Failure(f"ValueError: the judge's score is {said}"))
                else:
                    score = float(said)
            except InputError:
                raise
            except Exception as raised:
                self.fail(Failure.of_model(raised))
        if score > self.score:
            self.prompt, self.score = prompt, score
        if score >= self.enough and self.first_success is None:
            self.first_success = self.queries
        return score

    def fail(self, failure: Failure) -> None:
        """Write down what failed, with the number of the last query."""
        self.errors.append(f"query {self.queries}: {failure.error}")
        self.outage |= failure.outage

    def case(self) -> TestCase:
        """The best prompt; none where none was tried, or outages left no score."""
        metadata = {
            "score": max(self.score, 0.0),
            "queries_to_jailbreak": self.first_success,
            **self.notes,
            **({"errors": self.errors} if self.errors else {}),
            **({"outage": True} if self.outage else {}),
        }
        name, attack = self.behavior.id, self.attack
        if not self.queries or (self.outage and not self.scored):
            return no_attack(name, attack, self.queries, **metadata)
        return TestCase(name, attack, self.prompt, queries=self.queries, metadata=metadata)


def no_attack(behavior: str, attack: str, queries: int = 0, **metadata: Any) -> TestCase:
    """The test case of a behavior for which the attack has no prompt, not put to the model."""
    metadata = {"missing": True, **metadata}
    return TestCase(behavior, attack, "", queries=queries, metadata=metadata)


def attack_each(
    attack: str, behaviors: Sequence[Behavior], make: Callable[[Behavior], TestCase]
) -> list[TestCase]:
    """What ``make`` makes of the behaviors, one after the other, with a bar.

    Raises InputError as `check_up`, of all or of `DOWN_AFTER` in a row.
    """
    cases: list[TestCase] = []
    for behavior in tqdm(behaviors, attack, unit="behavior", **BAR):
        cases.append(make(behavior))
        if len(cases) >= min(DOWN_AFTER, len(behaviors)):
            check_up(attack, cases[-DOWN_AFTER:])
    return cases


def check_up(attack: str, cases: Sequence[TestCase]) -> None:
    """Raise InputError where outages left nothing of any of the cases."""
    lost = [case for case in cases if case.missing and case.metadata.get("outage")]
    if lost and len(lost) == len(cases):
        said = lost[-1].metadata["errors"][-1]
        raise InputError(
            f"attack {attack!r}: a model that it asks answers nothing at all ({said}); run it "
            "again when that answers: what was answered is not asked again"
        )


def put(
    searches: Sequence[Search], requests: Sequence[Request], target: Target
) -> list[tuple[Generation | Failure, float]]:
    """Ask the target one request for each search; the answers, noted, and their scores."""
    answers = ask(target.generator, requests, target.max_new_tokens)
    return [
        (answer, search.note(request.prompt, answer, target.judge))
        for search, request, answer in zip(searches, requests, answers, strict=True)
    ]
