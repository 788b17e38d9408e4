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
from typing import ClassVar

from tqdm.auto import tqdm

from r2d_core.attacks.attack import (
    BAR,
    Material,
    Target,
    at_least,
    journal_of,
    known_of,
    recorded_in,
)
from r2d_core.attacks.gradient import response_ids, response_losses
from r2d_core.attacks.journal import Journal
from r2d_core.attacks.prompts import attacker_of
from r2d_core.attacks.queries import Failure, ask
from r2d_core.attacks.zero_shot import first_line, question, test_case_text
from r2d_core.errors import InputError
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

    What fails costs its prompt and a line in ``metadata["errors"]``; where nothing is written, the
    test case is the behavior's own prompt.
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
        for setting in ("pool", "prompts", "shots", "attacker_tokens"):
            at_least(self.name, 1, **{setting: getattr(self, setting)})
        at_least(self.name, 0, rounds=self.rounds)

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        attacker_of(target, self.name)
        if target.model is None or target.tokenizer is None:
            raise InputError(
                f"attack {self.name!r} needs log-probabilities: give Target a model and a tokenizer"
            )
        for behavior in behaviors:
            known_of(behavior, "target", self.name)
        journal = journal_of(self, behaviors, target, seed)
        target = recorded_in(journal, target)
        return [
            self._attack(behavior, target, seed, journal)
            for behavior in tqdm(behaviors, self.name, unit="behavior", **BAR)
        ]

    def _attack(self, behavior: Behavior, target: Target, seed: int, journal: Journal) -> TestCase:
        rng = random.Random(f"few-shot-attacker-{seed}-{behavior.id}")
        written: list[tuple[str, float]] = []  # what the attacker wrote, and its loss
        errors: list[str] = []
        for number in range(1 + self.rounds):
            lines = self._lines(behavior, target, written if number else [], rng, errors)
            key = f"losses-{behavior.id}-{number}"
            if not journal.entries(key):
                journal.add(key, [self._loss(behavior, target, line) for line in lines])
            for line, (loss, error) in zip(lines, journal.entries(key)[0], strict=True):
                written.append((line, loss))
                errors += [error] if error else []
        prompt, losses = behavior.request, [loss for _, loss in written]
        if written:
            best = min(range(len(losses)), key=losses.__getitem__)
            prompt = test_case_text(behavior, written[best][0])
        metadata = {
            "losses": [loss if math.isfinite(loss) else None for loss in losses],
            **({"errors": errors} if errors else {}),
        }
        return TestCase(behavior.id, self.name, prompt, queries=len(written), metadata=metadata)

    def _lines(
        self,
        behavior: Behavior,
        target: Target,
        written: Sequence[tuple[str, float]],
        rng: random.Random,
        errors: list[str],
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
                errors.append(answer.error)
            elif line := first_line(answer.text):
                lines.append(line)
            else:
                errors.append("the attacker wrote nothing")
        return lines

    def _examples(self, written: Sequence[tuple[str, float]], rng: random.Random) -> list[str]:
        """Distinct prompts drawn by the softmax of −loss, the first drawn last."""
        # The largest of these keys are a draw without replacement (Gumbel's trick).
        keys = {line: -loss - math.log(rng.expovariate(1.0)) for line, loss in written}
        return sorted(keys, key=keys.__getitem__)[-self.shots :]

    def _loss(self, behavior: Behavior, target: Target, line: str) -> tuple[float, str]:
        """−log-probability of the target, a mean over its tokens, and what was raised."""
        prompt, response = test_case_text(behavior, line), behavior.metadata["target"]
        try:
            aimed = [True] * len(response_ids(target.tokenizer, behavior.request, response))
            found = response_losses(target.model, target.tokenizer, [prompt], response, aimed)
        except InputError:
            raise
        except Exception as raised:
            return math.inf, Failure.of(raised).error
        loss = float(found.loss[0])
        return math.inf if math.isnan(loss) else loss, ""
