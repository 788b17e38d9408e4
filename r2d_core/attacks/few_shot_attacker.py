"""Few-shot: an attacker model writes prompts after the best it has written (Perez et al. 2022).

HarmBench's FewShot baseline: prompts of `zero_shot` fill a pool; from then on the attacker sees
``shots`` prompts of the pool as a list begun, drawn by how likely the behavior's ``target`` is
after them (log-probabilities of the local model), and writes the next, which joins the pool. The
result is the prompt after which the target is likeliest.

HarmBench's attacker is Mixtral 8x7B, and it counts the mean over all prompts of a behavior. Perez
et al. draw examples by a classifier's score of the answers. Here the attacker is the user's, one
prompt a behavior is handed over, and the budget is by default 16 zero-shot prompts and 4 rounds of
16, each a pass of the target.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from r2d_core.attacks.attack import (
    Material,
    Target,
    at_least,
    journal_of,
    known_of,
    recorded_in,
    require_model,
)
from r2d_core.attacks.gradient import response_ids
from r2d_core.attacks.journal import Journal, digest
from r2d_core.attacks.prompts import attacker_of
from r2d_core.attacks.queries import Failure, ask, attack_each, no_attack, try_response
from r2d_core.attacks.zero_shot import first_line, question, test_case_text
from r2d_core.generation import Request
from r2d_core.records import Behavior, TestCase


@dataclass(frozen=True)
class FewShotAttacker:
    """One prompt a behavior, the likeliest of all that were written.

    Attributes:
        pool: zero-shot prompts that it begins with.
        rounds: times that more are written, each time ``prompts``.
        shots: prompts of the pool that the attacker sees, at most.
        temperature: of the attacker.
        attacker_tokens: length of what it writes.

    What fails costs its prompt and a line in ``metadata["errors"]``; where nothing is written there
    is no prompt, and ``metadata["missing"]``.
    """

    name: ClassVar[str] = "few_shot_attacker"
    needs: ClassVar[tuple[str, ...]] = ("target",)
    uses: ClassVar[tuple[str, ...]] = ("model", "attacker", "seed")
    pool: int = 16
    rounds: int = 4
    prompts: int = 16
    shots: int = 5
    temperature: float = 1.0
    attacker_tokens: int = 256

    def __post_init__(self) -> None:
        at_least(1, self, "pool", "prompts", "shots", "attacker_tokens")
        at_least(0, self, "rounds")

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        attacker_of(target, self.name)
        require_model(target, self.name, "log-probabilities")
        for behavior in behaviors:
            known_of(behavior, "target", self.name)
        journal = journal_of(self, behaviors, target, seed)
        target = recorded_in(journal, target)
        return attack_each(
            self.name, behaviors, lambda each: self._attack(each, target, seed, journal)
        )

    def _attack(self, behavior: Behavior, target: Target, seed: int, journal: Journal) -> TestCase:
        rng = random.Random(f"few-shot-attacker-{seed}-{behavior.id}")
        written: list[tuple[str, float]] = []  # what the attacker wrote, and its loss
        failures: list[Failure] = []
        for number in range(1 + self.rounds):
            lines = self._lines(behavior, target, written if number else [], rng, failures)
            # By the lines: others are written where the attacker failed at some before.
            key = f"losses-{behavior.id}-{number}-{digest(repr(lines))}"
            if not journal.entries(key):
                journal.add((key, [self._loss(behavior, target, line) for line in lines]))
            for line, (loss, error) in zip(lines, journal.entries(key)[0], strict=True):
                written.append((line, loss))
                failures += [Failure(error)] if error else []
        losses = [loss for _, loss in written]
        metadata: dict[str, Any] = {
            "losses": [loss if math.isfinite(loss) else None for loss in losses],
            **({"errors": [each.error for each in failures]} if failures else {}),
            **({"outage": True} if any(each.outage for each in failures) else {}),
        }
        if not written:
            return no_attack(behavior.id, self.name, **metadata)
        best = min(range(len(losses)), key=losses.__getitem__)
        prompt = test_case_text(behavior, written[best][0])
        return TestCase(behavior.id, self.name, prompt, queries=len(written), metadata=metadata)

    def _lines(
        self,
        behavior: Behavior,
        target: Target,
        written: Sequence[tuple[str, float]],
        rng: random.Random,
        failures: list[Failure],
    ) -> list[str]:
        """What the attacker writes in one round, after examples of ``written`` where it has any."""
        asked, begun = question(behavior)
        requests = []
        for _ in range(self.prompts if written else self.pool):
            shown = [*self._examples(written, rng), ""]
            listed = "\n".join(f"{i}. {line}".rstrip() for i, line in enumerate(shown, start=1))
            requests.append(
                Request(
                    asked,
                    prefill=begun.removesuffix("1.") + listed,
                    temperature=self.temperature,
                    seed=rng.randrange(2**31),
                )
            )
        lines = []
        for answer in ask(attacker_of(target, self.name), requests, self.attacker_tokens):
            if isinstance(answer, Failure):
                failures.append(answer)
            elif line := first_line(answer.text):
                lines.append(line)
            else:
                failures.append(Failure("the attacker wrote nothing"))
        return lines

    def _examples(self, written: Sequence[tuple[str, float]], rng: random.Random) -> list[str]:
        """Distinct prompts drawn by the softmax of −loss, the first drawn last."""
        # The largest of these keys are a draw without replacement (Gumbel's trick).
        keys = {line: -loss - math.log(rng.expovariate(1.0)) for line, loss in written}
        return sorted(keys, key=keys.__getitem__)[-self.shots :]

    def _loss(self, behavior: Behavior, target: Target, line: str) -> tuple[float, str]:
        """−log-probability of the target, a mean over its tokens, and what was raised."""
        prompt, response = test_case_text(behavior, line), behavior.metadata["target"]
        aimed = [True] * len(response_ids(target.tokenizer, behavior.request, response))
        (loss,), _, failure = try_response(target, [prompt], response, aimed)
        return loss, failure.error if failure else ""
