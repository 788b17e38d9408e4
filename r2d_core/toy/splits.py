"""Which items are for training, which for development, which only for the reported runs.

Every suffix's sixteen prefixes are shuffled and cut: the first eight pairs may appear in safety
training (*seen*), the next four are known to the base model only, the last four are withheld from
the base model too. A few suffixes of every kind appear in no how-to request of the safety data at
all (*new topics*). Development and reported runs use disjoint parts of everything.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from r2d_core.toy.language import Item, Language
from r2d_core.toy.policy import KINDS
from r2d_core.toy.requests import HOW_TO_PHRASINGS, INFORMATION_PHRASINGS, WRAPPERS

PARTITIONS = ("development", "report")
SPLITS = ("seen", "new_pair", "new_topic")

NEW_TOPICS_PER_KIND = 3
N_SEEN, N_KNOWN = 8, 4

TRAINING_WRAPPERS = WRAPPERS[:4]
HELD_OUT_WRAPPERS = {"development": WRAPPERS[4:7], "report": WRAPPERS[7:]}
TRAINING_HOW_TO = tuple(range(len(HOW_TO_PHRASINGS) - 2))
HELD_OUT_HOW_TO = {
    "development": len(HOW_TO_PHRASINGS) - 2,
    "report": len(HOW_TO_PHRASINGS) - 1,
}
TRAINING_INFORMATION = tuple(range(len(INFORMATION_PHRASINGS) - 1))


@dataclass(frozen=True)
class Splits:
    """Items by role.

    Attributes:
        base_items: items whose procedures and colours the base model is taught.
        base_held_out: items (pairs) it must compose.
        safety_items: items that how-to requests of the safety data draw on.
        evaluation: (partition, split) -> items; partitions are disjoint, and only ``seen`` items
            overlap with ``safety_items``.
    """

    base_items: tuple[Item, ...]
    base_held_out: tuple[Item, ...]
    safety_items: tuple[Item, ...]
    evaluation: dict[tuple[str, str], tuple[Item, ...]]


def make_splits(language: Language, seed: int = 0) -> Splits:
    """Cut the language's items into the roles above, by seed."""
    rng = random.Random(f"toy-splits-{seed}")
    new_topics: dict[str, str] = {}
    for kind in KINDS:
        of_kind = [s for s in language.suffixes if language.kind_of[s] == kind]
        rng.shuffle(of_kind)
        for i, suffix in enumerate(of_kind[:NEW_TOPICS_PER_KIND]):
            new_topics[suffix] = PARTITIONS[(i + 1) % 2]
    base: list[Item] = []
    held_out: list[Item] = []
    safety: list[Item] = []
    evaluation: dict[tuple[str, str], list[Item]] = {(p, s): [] for p in PARTITIONS for s in SPLITS}
    for suffix in language.suffixes:
        prefixes = list(language.prefixes)
        rng.shuffle(prefixes)
        for i, prefix in enumerate(prefixes):
            item = Item(prefix, suffix)
            (base if i < N_SEEN + N_KNOWN else held_out).append(item)
            partition = PARTITIONS[i % 2]
            if suffix in new_topics:
                evaluation[new_topics[suffix], "new_topic"].append(item)
            elif i < N_SEEN:
                safety.append(item)
                evaluation[partition, "seen"].append(item)
            else:
                evaluation[partition, "new_pair"].append(item)
    return Splits(
        tuple(base),
        tuple(held_out),
        tuple(safety),
        {key: tuple(items) for key, items in evaluation.items()},
    )
