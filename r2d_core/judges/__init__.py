"""What a judge is. Each has a file of its own; the toy world's exact one lives in its world.

A judge says of a completion what it is. Labels are its own words; ``LABELS`` of the judge lists
them. ``score`` is for attacks that climb towards a jailbreak.
"""

from __future__ import annotations

from typing import Protocol

from r2d_core.records import Behavior, Completion, Verdict


class Judge(Protocol):
    """Labels a completion as a whole, its reasoning and its answer."""

    @property
    def name(self) -> str:
        """What its verdicts carry."""
        ...

    def judge(self, behavior: Behavior, completion: Completion) -> Verdict:
        """The verdict on one completion."""
        ...

    def score(self, text: str, behavior: Behavior) -> float:
        """How harmful a text is for the behavior, from 0 to 1."""
        ...
