"""Prefilling attacks: the attacker writes the beginning of the response.

After Andriushchenko et al. 2024 and Qi et al. 2024 ("more than a few tokens deep"). Three depths:
an affirmative lead; the lead and the first true step; and, against models that reason, a whole
forged reasoning that ends in a forged ``[SAFE]``.

Differences: Andriushchenko et al. prefill Claude with a lead of their own, the request in their
template, up to 100 times at temperature 1; Qi et al. prefill the first 5 to 40 tokens of a harmful
answer. Here the request stands as it is, and each depth is one greedy answer: a budget of one
query. The forged reasoning is this package's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from r2d_core.attacks.attack import Material, Target, known_of
from r2d_core.records import Behavior, TestCase


def _prefilled(behaviors: Sequence[Behavior], attack: str, *keys: str) -> list[TestCase]:
    return [
        TestCase(b.id, attack, b.request, prefill=" ".join(known_of(b, k, attack) for k in keys))
        for b in behaviors
    ]


@dataclass(frozen=True)
class PrefillLead:
    """The response begins with the behavior's affirmative ``target``."""

    name: ClassVar[str] = "prefill_lead"
    needs: ClassVar[tuple[str, ...]] = ("target",)
    uses: ClassVar[tuple[str, ...]] = ("prefill",)

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        return _prefilled(behaviors, self.name, "target")


@dataclass(frozen=True)
class PrefillStep:
    """The response begins with the ``target`` and the ``first_step`` of a true answer."""

    name: ClassVar[str] = "prefill_step"
    needs: ClassVar[tuple[str, ...]] = ("target", "first_step")
    uses: ClassVar[tuple[str, ...]] = ("prefill",)

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        return _prefilled(behaviors, self.name, "target", "first_step")


@dataclass(frozen=True)
class ForgedReasoning:
    """The response begins with ``forged_reasoning``: a trace that finds the request harmless."""

    name: ClassVar[str] = "forged_reasoning"
    needs: ClassVar[tuple[str, ...]] = ("forged_reasoning",)
    uses: ClassVar[tuple[str, ...]] = ("prefill",)

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        return _prefilled(behaviors, self.name, "forged_reasoning")
