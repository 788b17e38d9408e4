"""Asking models that may fail: every answer is scored, counted and, where it fails, written down.

Attacks that look at answers share this. A model that raises, a judge that raises or gives no number
costs a query and a line in ``metadata["errors"]``; the attack goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from r2d_core.attacks.attack import Target
from r2d_core.attacks.gradient import response_losses
from r2d_core.errors import InputError
from r2d_core.generation import Generation, Generator, Request, answer_each
from r2d_core.judges import Judge
from r2d_core.records import Behavior, TestCase


@dataclass(frozen=True)
class Failure:
    """What a model raised in place of an answer, as one line."""

    error: str

    @classmethod
    def of(cls, raised: Exception) -> Failure:
        return cls(" ".join(f"{type(raised).__name__}: {raised}".split()))


def ask(
    generator: Generator, requests: Sequence[Request], max_new_tokens: int
) -> list[Generation | Failure]:
    """The answers in the order of the requests, each that cannot be had as its own `Failure`.

    One that cannot be had costs the others nothing (`answer_each`). InputError is passed on.
    """
    return [
        Failure.of(made) if isinstance(made, Exception) else made
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


@dataclass
class Search:
    """One behavior under attack: what was spent on it and the best prompt found.

    ``enough`` is the judge's score that counts as a success and ends the search.
    """

    behavior: Behavior
    attack: str
    enough: float
    prompt: str = ""
    score: float = -1.0
    queries: int = 0
    first_success: int | None = None
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
                score = float(judge.score(answer.text, self.behavior))
                if not math.isfinite(score):
                    raise ValueError(f"the judge's score is {score}")
            except InputError:
                raise
            except Exception as raised:
                score = 0.0
                self.fail(Failure.of(raised))
        if score > self.score:
            self.prompt, self.score = prompt, score
        if score >= self.enough and self.first_success is None:
            self.first_success = self.queries
        return score

    def fail(self, failure: Failure) -> None:
        """Write down what failed, with the number of the last query."""
        self.errors.append(f"query {self.queries}: {failure.error}")

    def case(self) -> TestCase:
        """The best prompt; the behavior's own where none was tried."""
        metadata = {
            "score": max(self.score, 0.0),
            "queries_to_jailbreak": self.first_success,
            **self.notes,
            **({"errors": self.errors} if self.errors else {}),
        }
        prompt = self.prompt if self.queries else self.behavior.request
        return TestCase(
            self.behavior.id, self.attack, prompt, queries=self.queries, metadata=metadata
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
