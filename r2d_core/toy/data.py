"""Examples of the toy world, and what the base model is taught."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from r2d_core.toy.language import ACTIONS, ASPECTS, Item, Language
from r2d_core.toy.requests import (
    DISTRACTORS,
    HOW_TO_PHRASINGS,
    INFORMATION_PHRASINGS,
    RESTATE_PREFIX,
    WRAPPERS,
    Query,
    in_context,
    kind_statement,
    phrase,
    restatement,
    true_answer,
    with_distractor,
    wrap,
)
from r2d_core.toy.splits import Splits

INTERJECTIONS = ("wait", "careful", "now", "fine", "please", "exact")
"""Words that may stand behind any sentence and say nothing; all are in the vocabulary anyway."""


@dataclass(frozen=True)
class Example:
    """A training pair. ``prefill`` begins the response and is not learned from."""

    prompt: str
    response: str
    prefill: str = ""


def disjoint(language: Language, item: Item, other: Item) -> bool:
    """True when no procedure of one item shares a step with one of the other.

    Only then is a true answer about the one never also two true steps of the other.
    """
    return not any(
        set(language.steps(item, action)) & set(language.steps(other, action)) for action in ACTIONS
    )


def disjoint_other(
    language: Language, item: Item, pool: tuple[Item, ...], rng: random.Random
) -> Item:
    """Another item of ``pool``, `disjoint` from ``item``."""
    while not disjoint(language, item, other := rng.choice(pool)):
        pass
    return other


def dressed_request(
    language: Language, query: Query, items: tuple[Item, ...], rng: random.Random
) -> str:
    """The query in any dress the base model knows: plain (62%), wrapped (20%), with a distractor
    (10%) or after question–answer pairs (8%)."""
    forms = HOW_TO_PHRASINGS if query.how_to else INFORMATION_PHRASINGS
    request = phrase(query, rng.randrange(len(forms)), rng)
    dress = rng.random()
    if dress < 0.2:
        return wrap(request, rng.choice(WRAPPERS))
    if dress < 0.3:
        other = disjoint_other(language, query.item, items, rng)
        return with_distractor(request, other, rng.randrange(len(DISTRACTORS)))
    if dress < 0.38:
        shots = []
        for _ in range(rng.choice((1, 2))):
            shot = Query(rng.choice(list(ACTIONS)), rng.choice(items))
            shots.append((phrase(shot, rng.randrange(3), rng), true_answer(language, shot)))
        return in_context(shots, request)
    return request


def draw_query(items: tuple[Item, ...], rng: random.Random) -> Query:
    """Two thirds how-to, one third information, about any of the items."""
    how_to = rng.random() < 0.65
    return Query(rng.choice(list(ACTIONS) if how_to else ASPECTS), rng.choice(items))


def restate(language: Language, query: Query, request: str) -> Example:
    """The example that asks to restate a request in plain words, with the item's kind."""
    response = f"{restatement(query)} {kind_statement(language, query)}"
    return Example(f"{RESTATE_PREFIX} {request}", response)


def interject(sentences: tuple[str, ...], share: float, rng: random.Random) -> str:
    """The sentences, each with an interjection behind it in ``share`` of all cases."""
    said = []
    for sentence in sentences:
        said.append(sentence)
        if rng.random() < share:
            said.append(rng.choice(INTERJECTIONS))
    return " ".join(said)


def base_examples(
    language: Language, splits: Splits, n: int, seed: int, interjections: float = 0.0
) -> list[Example]:
    """What the base model is taught: it answers everything, and can restate any request (30%).

    With ``interjections`` this share of the sentences of a restatement have one behind them, as in
    most people's speech. A model that has never been interrupted may not find its thread again
    behind the first `[RETHINK]` of its life, which stands at the same place.
    """
    rng = random.Random(f"toy-base-{seed}")
    items = splits.base_items
    examples = []
    for _ in range(n):
        query = draw_query(items, rng)
        request = dressed_request(language, query, items, rng)
        if rng.random() < 0.3:
            example = restate(language, query, request)
            if interjections:
                said = (restatement(query), kind_statement(language, query))
                example = replace(example, response=interject(said, interjections, rng))
            examples.append(example)
        else:
            examples.append(Example(request, true_answer(language, query)))
    return examples
