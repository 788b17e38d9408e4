"""In-context attack: question–answer pairs of the kind that ought to be refused, then the request.

After Wei et al. 2023 (in-context attack: up to 20 pairs as turns of a chat) and Anil et al. 2024
(many-shot jailbreaking: up to 256 pairs, a dialogue written out in one user turn). Here too they
stand in one user turn, as `Material.dialogue` writes them; the default is 2 pairs, the target is
not asked and nothing is optimised, so the budget is one query. The papers' pairs are written by a
model that does not refuse; here they are the user's (`Material.shots`).

This is not HarmBench's FewShot, in which an attacker model writes the prompts: that is attack
``few_shot_attacker``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from r2d_core.attacks.attack import Material, Target
from r2d_core.errors import InputError
from r2d_core.records import Behavior, TestCase


@dataclass(frozen=True)
class FewShot:
    """``shots`` pairs before the request, drawn by seed and behavior id."""

    name: ClassVar[str] = "few_shot"
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ("material", "seed")
    shots: int = 2

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise InputError(f"attack 'few_shot': shots is {self.shots}, expected at least 1")

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        cases = []
        for behavior in behaviors:
            pairs = material.shots(behavior)
            if len(pairs) < self.shots:
                raise InputError(
                    f"attack 'few_shot' wants {self.shots} shots, material.shots has {len(pairs)} "
                    f"for behavior {behavior.id!r}; lower shots or give more pairs"
                )
            rng = random.Random(f"few-shot-{seed}-{behavior.id}")
            pairs = rng.sample(pairs, self.shots)
            prompt = material.dialogue(pairs, behavior.request)
            cases.append(TestCase(behavior.id, self.name, prompt))
        return cases
