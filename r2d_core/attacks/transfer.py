"""Test cases that another run made: JailbreakBench artifacts, HarmBench's test cases, our own.

Transfer as HarmBench and JailbreakBench do it: what worked on one model is put to another. The file
is read by `records.read_test_cases`, which knows the suites' formats by their content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from r2d_core.attacks.attack import Material, Target
from r2d_core.errors import InputError
from r2d_core.records import Behavior, TestCase, read_test_cases


@dataclass(frozen=True)
class Transfer:
    """The test cases of ``file`` for the behaviors, matched by id, in the behaviors' order.

    Of several for one behavior (HarmBench's human jailbreaks, say) the first is taken, and
    ``metadata["left_out"]`` says how many were not: with any, the rate is of the first of each and
    not HarmBench's, which is the mean over all. A behavior without one (a null prompt of
    JailbreakBench's) is an attack that failed: its test case has no prompt and
    ``metadata["missing"]``, and is not put to the model (`evaluation.answer_all`).
    ``metadata["made_by"]`` is the attack that made the test case.
    """

    name: ClassVar[str] = "transfer"
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    file: str = ""

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        if not behaviors:
            return []
        made: dict[str, list[TestCase]] = {}
        for case in self.content():
            made.setdefault(case.behavior_id, []).append(case)
        if not any(behavior.id in made for behavior in behaviors):
            raise InputError(
                f"{self.file}: holds no test case for any of the behaviors; its first are for "
                f"{', '.join(list(made)[:3]) or 'none'}, the behaviors are {behaviors[0].id}, …"
            )
        cases = []
        for behavior in behaviors:
            if behavior.id in made:
                case, *others = made[behavior.id]
                metadata = {**case.metadata, "made_by": case.attack, "left_out": len(others)}
                cases.append(replace(case, attack=self.name, metadata=metadata))
            else:
                cases.append(TestCase(behavior.id, self.name, "", metadata={"missing": True}))
        return cases

    def content(self) -> list[TestCase]:
        """The test cases of the file, all of them; InputError where it is none."""
        if not self.file:
            raise InputError(
                "attack 'transfer': give file, test cases that an attack on another model made "
                "(a JailbreakBench artifact, HarmBench's test_cases.json or our JSON lines)"
            )
        return read_test_cases(self.file)
