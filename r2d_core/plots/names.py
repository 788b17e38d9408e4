"""What methods, attacks and outcomes are called and look like in every figure, and their order."""

from __future__ import annotations

from collections.abc import Iterable

from r2d_core.attack_titles import TITLES, attack_title
from r2d_core.plots.drawing import BLUE, BROWN, GREEN, GREY, OLIVE, PURPLE, SKY, VERMILLION, plain

METHODS = {  # name in tables -> (label, colour, marker); the order is the order of the figures
    "vanilla": ("no safety training", GREY, "o"),
    "refusal": ("refusal tuning", BROWN, "s"),
    "refusal_recovery": ("refusal + recovery", OLIVE, "p"),
    "r2d": ("R2D", BLUE, "D"),
    "r2d_no_cpo": ("R2D without CPO", SKY, "^"),
    "r2d_upweighted": ("R2D, pivots up-weighted", GREEN, "P"),
    "r2d_no_pivots": ("R2D without pivots", PURPLE, "v"),
    "r2d_no_reasoning": ("R2D without reasoning", VERMILLION, "X"),
}
OUTCOMES = {  # label of the judge -> (colour, hatch)
    "harmful": (VERMILLION, ""),
    "refused": (BLUE, "//"),
    "correct": (GREEN, ".."),
    "garbled": (GREY, "xx"),
}


def methods_in(names: Iterable[object]) -> list[str]:
    """Each of ``names`` once, in the order of the figures; those that it lacks come last."""
    return _ordered(names, METHODS)


def attacks_in(names: Iterable[object]) -> list[str]:
    """Each of ``names`` once, in the order of the figures; those that it lacks come last."""
    return _ordered(names, TITLES)


def method_look(name: str) -> tuple[str, str, str]:
    """A method's label, colour and marker; one that is none of ours goes by its name, in grey."""
    return METHODS.get(name, (plain(name.replace("_", " "), 32), GREY, "h"))


def attack_label(name: str) -> str:
    """An attack's title; of one that is none of ours its name, cut where it is long."""
    return plain(attack_title(name), 0 if name in TITLES else 32)


def _ordered(names: Iterable[object], known: Iterable[str]) -> list[str]:
    present = list(dict.fromkeys(str(name) for name in names))
    first = [name for name in known if name in present]
    return first + [name for name in present if name not in first]
