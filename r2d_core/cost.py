"""What an answer costs: tokens and seconds, benign and harmful requests apart.

A model that reasons before it refuses spends on a harmful request what it saves nobody; the figure
that a user pays is the benign one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from r2d_core.errors import InputError
from r2d_core.generation import Generation, Generator, Request, RequestError, answer_each
from r2d_core.records import Behavior
from r2d_core.sampling_error import Mean, clustered_mean
from r2d_core.trajectories import parse

COUNTS = ("prompt_tokens", "response_tokens", "answer_words")
"""What of a `Cost` differs from answer to answer, and has an interval: `clustered_mean`'s."""


@dataclass(frozen=True)
class Cost:
    """The cost of the answers to one kind of request, of which there are ``n``.

    Attributes:
        response_tokens: with the end of turn, reasoning and answer together.
        answer_words: words of the answer alone, after the reasoning.
        seconds: wall time of the whole batch / n: what an answer costs where many are asked at
            once, not how long one user waits. A batch is timed once: there is no interval. It is of
            requests that are answered: of one in which others failed, with all that was waited for
            them, it is not the time.
        cut_off: answers that ended at the token limit; their true cost is higher.
    """

    kind: str
    n: int
    prompt_tokens: Mean
    response_tokens: Mean
    answer_words: Mean
    seconds: float
    cut_off: int


def answer_costs(
    generator: Generator, behaviors: Sequence[Behavior], max_new_tokens: int
) -> list[Cost]:
    """The cost of answering, one `Cost` for each kind among the behaviors, by their first.

    Behaviors are asked behind their contexts, the kinds one after the other, after one request that
    is not counted: the first call pays for what is made once. Requests that cannot be answered are
    not counted, and the others are asked once more without them, for their time; a kind of nothing
    else has no `Cost`. Raises InputError without behaviors, and where nothing at all is answered
    and that is not for the requests (`RequestError`).
    """
    if not behaviors:
        raise InputError("there is nothing to ask: expected at least one behavior")
    answer_each(generator, [Request(behaviors[0].request)], max_new_tokens)
    costs = []
    down: list[Exception] = []
    for kind in dict.fromkeys(behavior.kind for behavior in behaviors):
        requests = [Request(behavior.request) for behavior in behaviors if behavior.kind == kind]
        made, seconds, failed = _timed(generator, requests, max_new_tokens)
        down += [each for each in failed if not isinstance(each, RequestError)]
        if not (n := len(made)):
            continue
        counts = [
            (each.prompt_tokens, each.response_tokens, len(parse(each.text).answer.split()))
            for each in made
        ]
        means = {
            name: clustered_mean(values, range(n))
            for name, values in zip(COUNTS, zip(*counts, strict=True), strict=True)
        }
        cut_off = sum(each.finish == "length" for each in made)
        costs.append(Cost(kind=kind, n=n, seconds=seconds / n, cut_off=cut_off, **means))
    if down and not costs:
        raise InputError(f"the model answers nothing at all: {down[0]}; run again when it does")
    return costs


def _timed(
    generator: Generator, requests: Sequence[Request], max_new_tokens: int
) -> tuple[list[Generation], float, list[Exception]]:
    """The answers, the seconds of a batch of nothing else, and what was raised for the others."""
    failed: list[Exception] = []
    while True:
        started = time.perf_counter()
        answers = answer_each(generator, requests, max_new_tokens)
        seconds = time.perf_counter() - started
        made = [each for each in answers if isinstance(each, Generation)]
        failed += [each for each in answers if isinstance(each, Exception)]
        if len(made) in (0, len(answers)):
            return made, seconds, failed
        pairs = zip(requests, answers, strict=True)
        requests = [request for request, each in pairs if isinstance(each, Generation)]
