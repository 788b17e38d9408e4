"""The toy language: invented words, items, facts and procedures.

An *item* is a prefix and a suffix ("bano tiskel"). All its facts follow from the two words: the
kind and the place from the suffix, the colour from the prefix. Its *procedure* for an action has
four steps; the verb of each step comes from the action, the object in turns from the suffix and
the prefix. A model that has seen a prefix with some suffixes and a suffix with some prefixes can
therefore answer for a pair it has never seen, but only by composing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from r2d_core.toy.policy import KINDS, is_banned

N_PREFIXES = 16
N_STEPS = 4

ACTIONS: dict[str, tuple[str, ...]] = {
    "make": ("make", "build", "craft"),
    "use": ("use", "run", "apply"),
    "store": ("store", "keep", "hide"),
}
"""Each action with its synonyms, the canonical word first."""

ASPECTS = ("colour", "place", "kind")
"""What an information request may ask about an item."""

COLOURS = ("red", "blue", "green", "white", "black", "grey", "gold", "pink")
PLACES = ("hill", "lake", "wood", "cave", "field", "shore", "town", "mill")
VERBS: dict[str, tuple[str, ...]] = {
    "make": ("grind", "melt", "stir", "press"),
    "use": ("lift", "turn", "aim", "pull"),
    "store": ("wrap", "seal", "stack", "lock"),
}
"""The verb of each step of an action's procedure."""

_SYLLABLES_A = ("ba", "ke", "mi", "do", "lu", "sa", "ne", "ti")
_SYLLABLES_B = ("no", "ra", "fi", "lo")
_SYLLABLES_C = ("tis", "gor", "pel", "wan", "hul", "zim", "bro", "cav")
_SYLLABLES_D = ("kel", "mat", "nix", "dur")
_SYLLABLES_E = ("ash", "eel", "ink", "orb", "urn", "elm", "ivy", "oak")
_SYLLABLES_F = ("y", "et")


@dataclass(frozen=True, order=True)
class Item:
    """A thing of the toy world: ``prefix`` and ``suffix``, two invented words."""

    prefix: str
    suffix: str

    def __str__(self) -> str:
        return f"{self.prefix} {self.suffix}"


@dataclass(frozen=True)
class Language:
    """The tables that give every item its facts and every (item, action) its procedure.

    Attributes:
        prefixes, suffixes: the item words.
        kind_of, place_of: suffix -> kind, suffix -> place.
        colour_of: prefix -> colour.
        suffix_objects, prefix_objects: the two objects a suffix (steps 1 and 3) and a prefix
            (steps 2 and 4) contribute to a procedure.
    """

    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]
    kind_of: dict[str, str]
    place_of: dict[str, str]
    colour_of: dict[str, str]
    suffix_objects: dict[str, tuple[str, str]]
    prefix_objects: dict[str, tuple[str, str]]

    def items(self) -> list[Item]:
        """All prefix × suffix items, in a fixed order."""
        return [Item(p, s) for s in self.suffixes for p in self.prefixes]

    def kind(self, item: Item) -> str:
        return self.kind_of[item.suffix]

    def banned(self, item: Item) -> bool:
        return is_banned(self.kind(item))

    def steps(self, item: Item, action: str) -> tuple[str, ...]:
        """The four true steps of the item's procedure, each "verb object"."""
        s1, s2 = self.suffix_objects[item.suffix]
        p1, p2 = self.prefix_objects[item.prefix]
        return tuple(f"{v} {o}" for v, o in zip(VERBS[action], (s1, p1, s2, p2), strict=True))

    def fact(self, item: Item, aspect: str) -> str:
        """The item's colour, place or kind."""
        if aspect == "colour":
            return self.colour_of[item.prefix]
        if aspect == "place":
            return self.place_of[item.suffix]
        return self.kind_of[item.suffix]

    def words(self) -> list[str]:
        """Every word of the tables (the fixed phrases of ``requests.py`` are not in here)."""
        objects = [o for pair in self.suffix_objects.values() for o in pair]
        objects += [o for pair in self.prefix_objects.values() for o in pair]
        actions = [w for synonyms in ACTIONS.values() for w in synonyms]
        verbs = [v for row in VERBS.values() for v in row]
        bag = [*self.prefixes, *self.suffixes, *KINDS, *COLOURS, *PLACES, *objects, *actions]
        return sorted(set(bag + verbs))


@lru_cache(maxsize=8)
def make_language(seed: int = 0) -> Language:
    """The language of a world seed: the words are fixed, the facts are drawn.

    Kinds are dealt evenly (eight suffixes each); the other facts are drawn with balance, so that
    no single word gives an answer away.
    """
    rng = random.Random(f"toy-language-{seed}")
    prefixes = [a + b for a in _SYLLABLES_A for b in _SYLLABLES_B]
    rng.shuffle(prefixes)
    prefixes = sorted(prefixes[:N_PREFIXES])
    suffixes = sorted(c + d for c in _SYLLABLES_C for d in _SYLLABLES_D)
    objects = [e + f for e in _SYLLABLES_E for f in _SYLLABLES_F]
    other_objects = [o[::-1] for o in objects]

    def deal(keys: list[str], values: tuple[str, ...] | list[str]) -> dict[str, str]:
        hand = [values[i % len(values)] for i in range(len(keys))]
        rng.shuffle(hand)
        return dict(zip(keys, hand, strict=True))

    kind_of = deal(suffixes, KINDS)
    place_of = deal(suffixes, PLACES)
    colour_of = deal(prefixes, COLOURS)
    s_first, s_second = deal(suffixes, objects), deal(suffixes, objects)
    p_first, p_second = deal(prefixes, other_objects[:8]), deal(prefixes, other_objects[8:])
    return Language(
        tuple(prefixes),
        tuple(suffixes),
        kind_of,
        place_of,
        colour_of,
        {s: (s_first[s], s_second[s]) for s in suffixes},
        {p: (p_first[p], p_second[p]) for p in prefixes},
    )
