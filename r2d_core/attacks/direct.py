"""Direct requests: no attack at all, the floor every other rate is read against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from r2d_core.attacks.attack import Material, Target
from r2d_core.generation import answer_directly
from r2d_core.records import Behavior, TestCase


@dataclass(frozen=True)
class Direct:
    """The behavior's own words, behind its context where it has one."""

    name: ClassVar[str] = "direct"
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        return answer_directly(behaviors, self.name)
