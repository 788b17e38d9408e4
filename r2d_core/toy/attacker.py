"""The toy world's attacker model: what PAIR, TAP, zero- and few-shot ask of a language model.

It knows no language but the toy one and no tactic but the partition's mutator, the one that the
refinement search climbs with: those attacks are measured by how they use their queries, not by how
well an attacker writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from r2d_core.generation import Generation, Request
from r2d_core.records import Behavior

if TYPE_CHECKING:
    from r2d_core.attacks import Material


class ToyAttacker:
    """A `Generator` that answers the attacks' own prompts, each by its request's seed.

    It finds the behavior by its prompt, which every such request quotes, writes another way to ask
    for it, as PAIR's JSON or, where no system prompt asks for that, bare; and finds every prompt on
    topic, which those of the mutator are.
    """

    def __init__(self, behaviors: Sequence[Behavior], material: Material) -> None:
        # The longest first: a prompt may lie within another.
        self.behaviors = sorted(behaviors, key=lambda behavior: -len(behavior.prompt))
        self.material = material

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
        """One answer a request; words count as tokens."""
        answers = [self._answer(request) for request in requests]
        return [Generation(text, 1, len(text.split()), "stop") for text in answers]

    def _answer(self, request: Request) -> str:
        if "YES or NO" in request.system:
            return "[[YES]]"
        quoted = f"{request.system} {request.prompt}"
        behavior = next((b for b in self.behaviors if b.prompt in quoted), None)
        if behavior is None:
            return "nothing to rewrite"
        prompt = self.material.rewrite(behavior, behavior.prompt, Random(request.seed))
        if "JSON" not in request.system:
            return prompt
        return json.dumps({"improvement": "another dress", "prompt": prompt})
