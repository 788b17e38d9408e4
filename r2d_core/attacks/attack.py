"""Attacks, for measuring a defence: one file an attack, every attack the same call.

An attack is a dataclass of its settings with one method,
``run(behaviors, target, material, seed) -> list[TestCase]``: what it makes of each behavior, in
their order. Completions and verdicts are made from the test cases afterwards, for all alike.

What every attack keeps to:

- The same seed gives the same test cases, whatever ran before and, but for attacks on all behaviors
  at once, whichever other behaviors are attacked: as long as the models' numbers are the same. A
  model in this process gives other last bits in batches of another size, and they count where two
  candidates or two tokens are as near as that. Batches are others where gradient attacks find less
  than twice the memory free that `gradient.ROWS` candidates take (a run that goes on keeps those
  that it began with), and where a generator answers other behaviors beside, or what was left of a
  batch when a run was killed.
- A model, attacker or judge that raises ends nothing: ``metadata["errors"]`` of the test case says
  what was raised at which query, and the attack goes on. Where it was no `RequestError`, the model
  may answer another time: ``metadata["outage"]``, and the evaluation attacks the behavior again
  (but for GCG and random search, which the answers can only end sooner).
- A behavior for which nothing came of it (an attacker that writes nothing readable, no answer but
  outages) has no prompt and ``metadata["missing"]``: it was not attempted. Where outages left
  nothing of all behaviors, or of three in a row, that is an InputError; beside it only a mistake in
  what the attack was given is one, and ends the run.
- An attack that looks at answers leaves in ``metadata["queries_to_jailbreak"]`` the number of the
  first query (from 1) that the judge scored a success, or None: JailbreakBench's name. With
  ``TestCase.queries``, all that were spent, it makes the curve of success against budget.
- With ``target.progress`` a killed run goes on where it was, and gradient attacks and random search
  leave every step there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Protocol

from r2d_core.attacks.identity import identity
from r2d_core.attacks.journal import Journal, RecordedGenerator, digest
from r2d_core.errors import InputError
from r2d_core.generation import Generator
from r2d_core.judges import Judge
from r2d_core.records import Behavior, TestCase

BAR: dict[str, Any] = {"leave": False, "delay": 10}
"""How the bar of a long attack looks: not at all where all is over in some seconds."""


@dataclass(frozen=True)
class Surrogate:
    """A local model that a transfer attack is made on, in place of the target."""

    model: Any
    tokenizer: Any


@dataclass(frozen=True)
class Target:
    """What is attacked, what the attacker sees of it, and what helps him.

    Attributes:
        generator: the target, answering requests; a defence round a model where that is attacked.
        judge: its ``score`` is what attacks climb.
        max_new_tokens: length of the target's answers.
        model, tokenizer: the target's own, for attacks that need gradients or log-probabilities.
        attacker: a model that writes prompts (PAIR, TAP, zero- and few-shot).
        evaluator: a model that says whether a prompt is on topic (TAP); the attacker where None.
        surrogates: models that transfer attacks are made on; one vocabulary for all.
        progress: a folder for the progress of long attacks.
        name: stands in the names of the files there for what `identity` does not see of the models:
            the weights behind a server's name or in vLLM's engine, settings of an attacker of one's
            own, what a function given to a defence closes over. Give each its own name, or folder.
    """

    generator: Generator
    judge: Judge
    max_new_tokens: int
    model: Any = None
    tokenizer: Any = None
    attacker: Generator | None = None
    evaluator: Generator | None = None
    surrogates: tuple[Surrogate, ...] = ()
    progress: Path | None = None
    name: str = ""


def no_rewrite(behavior: Behavior, prompt: str, rng: Random) -> str:
    """The ``rewrite`` of material that has none; refinement refuses it."""
    return prompt


def dialogue(pairs: Sequence[tuple[str, str]], request: str) -> str:
    """Question–answer pairs and then the request as one user turn: a dialogue written out."""
    before = "".join(f"User: {asked}\n\nAssistant: {said}\n\n" for asked, said in pairs)
    return f"{before}User: {request}\n\nAssistant:"


@dataclass(frozen=True)
class Material:
    """Published or held-out material an attack draws on.

    Attributes:
        wrappers: prompt templates with ``{request}`` in them.
        shots: behavior -> question–answer pairs for in-context attacks, none of which holds
            anything of the behavior's own answer.
        rewrite: (behavior, best prompt so far, random generator) -> another way to ask.
        dialogue: (pairs, request) -> one user turn with both, in a form that the target reads.
    """

    wrappers: tuple[str, ...]
    shots: Callable[[Behavior], Sequence[tuple[str, str]]]
    rewrite: Callable[[Behavior, str, Random], str]
    dialogue: Callable[[Sequence[tuple[str, str]], str], str] = dialogue


class Attack(Protocol):
    """One attack and its settings.

    ``needs`` names what it must know of every behavior (keys of its metadata). ``uses`` names what
    else its test cases hang on, beside its settings and the requests: fields of `Target` (of
    "generator" with ``max_new_tokens``, of "model" with the tokenizer), "material", "seed", keys of
    metadata that it reads where they are there, "behaviors" where one's test case hangs on the
    others; and "prefill" where it writes the beginning of the answer. What it does not name may
    change, and its test cases stay what they are.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]

    @property
    def uses(self) -> tuple[str, ...]: ...

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        """One test case per behavior, in order.

        Of no behaviors there are none; what the target or the material lacks for the attack is said
        (InputError) even then.
        """
        ...


def known_of(behavior: Behavior, key: str, attack: str) -> str:
    """A text the attack needs to know of a behavior (``metadata[key]``); InputError without it."""
    if key not in behavior.metadata:
        raise InputError(
            f"attack {attack!r} needs metadata[{key!r}] of behavior {behavior.id!r}, which has "
            f"only {sorted(behavior.metadata)}; add it to the behaviors or leave the attack out"
        )
    return str(behavior.metadata[key])


def at_least(minimum: int, attack: Attack, *settings: str) -> None:
    """Raise InputError for one of the settings of an attack that is below its minimum."""
    for name in settings:
        if (value := getattr(attack, name)) < minimum:
            raise InputError(
                f"attack {attack.name!r}: {name} is {value}, expected at least {minimum}"
            )


def require_model(target: Target, attack: str, needed: str) -> None:
    """Raise InputError where the target has not its own model and tokenizer."""
    if target.model is None or target.tokenizer is None:
        raise InputError(f"attack {attack!r} needs {needed}: give Target a model and a tokenizer")


def journal_of(
    attack: Any,
    behaviors: Sequence[Behavior],
    target: Target,
    seed: int,
    material: Sequence[str] = (),
) -> Journal:
    """The journal of one run of an attack: its file is named after what the run depends on.

    That is the attack's settings, the behaviors, the seed, the target's name, and of what it uses
    (`Attack.uses`) the judge's name and its model's, the answers' length, and what `identity` sees
    of generator, attacker, evaluator, model, tokenizer and surrogates: what it does not use may be
    another when a killed run goes on. ``material``: what entries are made of without naming
    it, AutoDAN's templates; the answers of models stand under the very request, whatever material
    that was made of. Raises InputError where two behaviors have one id.
    """
    ids = [behavior.id for behavior in behaviors]
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise InputError(
            f"attack {attack.name!r}: {ids.count(twice)} behaviors have the id {twice!r}; give "
            "each its own"
        )
    if target.progress is None:
        return Journal()
    used = {*attack.uses} | ({"tokenizer"} if "model" in attack.uses else set())
    run = [repr(attack), [repr(b) for b in behaviors], seed, target.name, list(material)]
    if "judge" in used:
        run.append((getattr(target.judge, "name", ""), getattr(target.judge, "model", "")))
    if "generator" in used:
        run.append(target.max_new_tokens)
    models = ("generator", "attacker", "evaluator", "model", "tokenizer", "surrogates")
    run.append([(name, identity(getattr(target, name))) for name in models if name in used])
    return Journal(target.progress / f"{attack.name}-{digest(repr(run))}.jsonl")


def recorded(attack: Any, behaviors: Sequence[Behavior], target: Target, seed: int) -> Target:
    """The target, its models' answers kept in the run's journal where there is a folder for it."""
    return recorded_in(journal_of(attack, behaviors, target, seed), target)


def recorded_in(journal: Journal, target: Target) -> Target:
    """The target, its models' answers kept in the journal where that has a file."""
    if journal.path is None:
        return target
    roles: dict[str, Any] = {"generator": RecordedGenerator(target.generator, journal, "target")}
    for role in ("attacker", "evaluator"):
        generator = getattr(target, role)
        if generator is not None:
            roles[role] = RecordedGenerator(generator, journal, role)
    return replace(target, **roles)
