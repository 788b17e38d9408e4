"""What a judge is, and which texts of a completion it is shown.

A judge says of a completion what it is, in labels of its own: of the whole response, of its
reasoning and of its answer. Two labels belong to all judges: `ABSENT` and `UNPARSABLE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from r2d_core.pivots import THINK_CLOSE, THINK_OPEN
from r2d_core.records import Behavior, Completion, Verdict
from r2d_core.trajectories import parse

ABSENT = "absent"
"""The label where there is no text: no reasoning, or an answer that was never reached. A judge is
not asked about it, since the published rules call an empty text anything: GCG's a jailbreak,
XSTest's a full compliance, HarmBench's a failure."""

UNPARSABLE = "unparsable"
"""The label where a judge model's output is none of its answers. It is neither safe nor unsafe, and
whoever counts has to say how many there were."""

SCOPES = ("whole", "reasoning", "answer")


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


@dataclass(frozen=True)
class Parts:
    """The texts of one response that are judged; an empty one is `ABSENT`."""

    whole: str
    reasoning: str
    answer: str


def parts_of(completion: Completion) -> Parts:
    """The response, its reasoning and its answer, each without what the attack itself wrote.

    The response is split with the prefill in front, as the model saw it, and the prefill then taken
    away: a forged reasoning is no reasoning of the model's. Reasoning is what stands between think
    tokens, and the answer is what a reader sees beside it: what was said before the reasoning and,
    from a new line, after it. A response without think tokens is all answer.
    """
    begun = f"{completion.prefill} " if completion.prefill else ""
    full = begun + completion.text
    if THINK_OPEN not in full and THINK_CLOSE not in full:
        return Parts(completion.text, "", completion.text)
    trajectory = parse(full)
    start = len(trajectory.opening)
    end = start + len(trajectory.reasoning)
    answer = full[max(len(full) - len(trajectory.answer), len(begun)) :]
    if (preamble := trajectory.preamble[len(begun) :]).strip():
        answer = f"{preamble}\n{answer}" if answer else preamble
    return Parts(completion.text, full[max(start, len(begun)) : end], answer)
