"""Attacks, for measuring a defence: one file an attack, every attack the same call.

An attack is a dataclass of its settings with one method,
``run(behaviors, target, material, seed) -> list[TestCase]``: what it makes of each behavior, in
their order. Completions and verdicts are made from the test cases afterwards, for all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Protocol

from r2d_core.errors import InputError
from r2d_core.generation import Generator
from r2d_core.judges import Judge
from r2d_core.records import Behavior, TestCase


@dataclass(frozen=True)
class Target:
    """What is attacked, and what the attacker sees of it.

    Gradient attacks need ``model`` and ``tokenizer``; attacks that climb ask ``judge`` for a score.
    """

    generator: Generator
    judge: Judge
    max_new_tokens: int
    model: Any = None
    tokenizer: Any = None


@dataclass(frozen=True)
class Material:
    """Published or held-out material an attack draws on.

    Attributes:
        wrappers: prompt templates with ``{request}`` in them.
        shots: behavior -> question–answer pairs for in-context attacks, none of which holds
            anything of the behavior's own answer.
        rewrite: (behavior, best prompt so far, random generator) -> another way to ask.
    """

    wrappers: tuple[str, ...]
    shots: Callable[[Behavior], Sequence[tuple[str, str]]]
    rewrite: Callable[[Behavior, str, Random], str]


class Attack(Protocol):
    """One attack and its settings."""

    name: ClassVar[str]

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        """One test case per behavior, in order."""
        ...


def known_of(behavior: Behavior, key: str, attack: str) -> str:
    """A text the attack needs to know of a behavior (``metadata[key]``); InputError without it."""
    if key not in behavior.metadata:
        raise InputError(
            f"attack {attack!r} needs metadata[{key!r}] of behavior {behavior.id!r}, which has "
            f"only {sorted(behavior.metadata)}; add it to the behaviors or leave the attack out"
        )
    return behavior.metadata[key]
