"""Jailbreak wrappers: the request inside a template.

After the human jailbreaks of Shen et al. 2023 and the templates of jailbreakchat.com (JBC in the
R2D paper). HarmBench puts each request into several templates and counts their mean; here it is one
of the material's, drawn by seed, so the budget is one query. The target is not asked, nor is the
template chosen by what works on it. All templates of a file, one a seed or by number: attack
``templates``.
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
class Wrapper:
    """Each behavior inside one of the material's wrappers, drawn by seed and behavior id."""

    name: ClassVar[str] = "wrapper"
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ("material", "seed")

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        if not material.wrappers:
            raise InputError("attack 'wrapper' needs at least one template in material.wrappers")
        cases = []
        for behavior in behaviors:
            rng = random.Random(f"wrapper-{seed}-{behavior.id}")
            number = rng.randrange(len(material.wrappers))
            prompt = material.wrappers[number].replace("{request}", behavior.request)
            cases.append(TestCase(behavior.id, self.name, prompt, metadata={"wrapper": number}))
        return cases
