"""One protocol for everything that generates: requests in, generations out, in the same order."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from r2d_core.errors import InputError
from r2d_core.records import Behavior, Completion, TestCase


@dataclass(frozen=True)
class Request:
    """One user turn. ``prefill`` is the beginning of the response, put into the model's mouth.

    ``temperature`` 0 is greedy; above it the answer is drawn from the softmax of logits /
    temperature, whole vocabulary, by ``seed``: the same request has the same answer, whatever is
    asked beside it. ``history`` holds earlier turns, each (user, assistant), the oldest first.

    Its texts are `encodable`. Raises InputError for a temperature that is negative or not finite.
    """

    prompt: str
    system: str = ""
    prefill: str = ""
    temperature: float = 0.0
    seed: int = 0
    history: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("prompt", "system", "prefill"):
            object.__setattr__(self, name, encodable(getattr(self, name)))
        turns = tuple((encodable(user), encodable(model)) for user, model in self.history)
        object.__setattr__(self, "history", turns)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(
                f"Request temperature: expected 0 (greedy) or more, got {self.temperature!r}"
            )


@dataclass(frozen=True)
class Generation:
    """What the model wrote after the request and its prefill.

    ``text`` keeps pivot and think tokens and leaves out the end of turn, and is `encodable`;
    ``finish`` is "length" when the token limit cut it off, "filtered" when a provider's filter
    withheld the rest of it, or all. Token counts leave the prefill to the prompt and count the end
    of turn as a response token.
    """

    text: str
    prompt_tokens: int
    response_tokens: int
    finish: Literal["stop", "length", "filtered"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", encodable(self.text))


def encodable(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which JSON can hold and no UTF-8 and no page."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


class FailedRequests(RuntimeError):
    """Some requests have no answer, while others may have one.

    ``failed`` says which, each with what it would raise by itself: the rest can be asked again
    without them. What is wrong with every request (an address, a key) is an InputError.
    """

    def __init__(self, message: str, failed: Mapping[Request, Exception] | None = None) -> None:
        super().__init__(message)
        self.failed = dict(failed or {})

    def _render_traceback_(self) -> list[str]:  # one line, as of an InputError
        return [f"{type(self).__name__}: {InputError(self)}"]


class RequestError(FailedRequests):
    """The request is the reason (too long, refused): it would fail again."""


class OutageError(FailedRequests):
    """The generator is the reason (down, overloaded, too slow): asked later, it may answer."""


def sampling_seed(request: Request) -> int:
    """A 63-bit seed of the request's own: other prompts draw otherwise under the same ``seed``."""
    return int.from_bytes(hashlib.sha256(repr(request).encode()).digest()[:8], "big") >> 1


class Generator(Protocol):
    """Anything that answers requests: a local model, a server, a defence round another one."""

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
        """Answers of at most ``max_new_tokens`` tokens, in the order of the requests."""
        ...


def answer_each(
    generator: Generator, requests: Sequence[Request], max_new_tokens: int
) -> list[Generation | Exception]:
    """The answers in the order of the requests, and what was raised in place of one.

    Where a batch raises, those that it names (`FailedRequests`) are left out and the rest is asked;
    where it names none, the requests are put one by one. InputError is passed on.
    """
    if not requests:
        return []
    try:
        made = list(generator.generate(requests, max_new_tokens))
        if len(made) != len(requests):
            raise RuntimeError(f"{len(made)} answers to {len(requests)} requests")
        return list(made)
    except InputError:
        raise
    except Exception as raised:
        if len(requests) == 1:
            return [raised]
        failed = raised.failed if isinstance(raised, FailedRequests) else {}
    left = [request for request in requests if request not in failed]
    if len(left) == len(requests):  # a defence asks other requests than it is asked
        return [answer for r in requests for answer in answer_each(generator, [r], max_new_tokens)]
    rest = iter(answer_each(generator, left, max_new_tokens))
    return [failed[r] if r in failed else next(rest) for r in requests]


def complete(
    generator: Generator, cases: Sequence[TestCase], max_new_tokens: int
) -> list[Completion]:
    """The generator's completion of every test case, in order; greedy.

    A test case that was found by sampling (best-of-N) says how in ``metadata``, ``temperature`` and
    ``sampling_seed``: it is answered that way again.
    """
    generations = generator.generate([request_of(case) for case in cases], max_new_tokens)
    return [completion_of(case, made) for case, made in zip(cases, generations, strict=True)]


def request_of(case: TestCase) -> Request:
    """What a test case asks; greedy, or as its metadata says that it was found."""
    return Request(
        case.prompt,
        case.system,
        case.prefill,
        temperature=case.metadata.get("temperature", 0.0),
        seed=case.metadata.get("sampling_seed", 0),
    )


def completion_of(case: TestCase, made: Generation) -> Completion:
    """The completion of a test case; its metadata is the case's and ``queries``."""
    return Completion(
        behavior_id=case.behavior_id,
        attack=case.attack,
        prompt=case.prompt,
        prefill=case.prefill,
        text=made.text,
        prompt_tokens=made.prompt_tokens,
        response_tokens=made.response_tokens,
        finish=made.finish,
        metadata={"queries": case.queries, **case.metadata},
    )


def answer_directly(behaviors: Sequence[Behavior], attack: str = "direct") -> list[TestCase]:
    """The behaviors as they stand, behind their contexts, one test case each."""
    return [TestCase(behavior_id=b.id, attack=attack, prompt=b.request) for b in behaviors]
