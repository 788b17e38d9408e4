"""The arms of the comparison: what each method is taught, from the same prompts.

Every arm sees the same prompts for the same number of steps, and the same restatement replay. They
differ in how the response is written (reasoning, pivots, recovery) and in how the loss weighs the
pivots; and therefore in the number of tokens learned, and, as steps gather examples of like length,
in which examples share a step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from r2d_core.pivots import RETHINK, SAFE, THINK_CLOSE, THINK_OPEN, UNSAFE
from r2d_core.toy.data import Example, draw_query, restate
from r2d_core.toy.language import ACTIONS, ASPECTS, Language
from r2d_core.toy.policy import REFUSAL
from r2d_core.toy.requests import (
    Query,
    kind_statement,
    lead,
    phrase,
    restatement,
    true_answer,
    wrap,
)
from r2d_core.toy.splits import (
    TRAINING_HOW_TO,
    TRAINING_INFORMATION,
    TRAINING_WRAPPERS,
    Splits,
)

if TYPE_CHECKING:
    from r2d_core.losses import Contrast


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
        title: its name in tables and figures.
        reasoning: a `<think>` … `</think>` trace comes before the answer.
        pivots: pivot tokens close the steps (or open the answer where there is no reasoning).
        recovery: some examples begin inside a harmful answer and turn back, with ``[RETHINK]`` in
            all arms but the one that is to do without pivots.
        pivot_weight: weight of the pivot loss (0: plain cross-entropy).
        pivot_ce_weight: factor on the cross-entropy of pivot targets (1: like any token).
        contrast: which pivots the pivot loss sets against each other, as in `r2d_loss`.
        kl_weight: weight of the KL divergence to the base model.
        kl_rows: on which examples: all benign ones, or the restatement replay alone, whose form is
            the base model's own. It has never reasoned nor said a pivot: on all benign examples
            the divergence holds it to that.
        harmful: share of harmful prompts in the mixture; None: the mixture's own. Another share is
            the only thing that gives an arm other prompts.
    """

    title: str
    reasoning: bool
    pivots: bool
    recovery: bool
    pivot_weight: float = 0.0
    pivot_ce_weight: float = 1.0
    contrast: Contrast = "paper"
    kl_weight: float = 0.0
    kl_rows: Literal["benign", "replay"] = "benign"
    harmful: float | None = None


ARMS: dict[str, Arm] = {
    "refusal": Arm("Refusal tuning", False, False, False),
    "refusal_recovery": Arm("Refusal + recovery", False, False, True),
    "r2d": Arm("R2D", True, True, True, pivot_weight=1.0),
    "r2d_no_cpo": Arm("R2D without CPO", True, True, True),
    "r2d_upweighted": Arm("R2D, pivots up-weighted", True, True, True, pivot_ce_weight=40.0),
    "r2d_no_pivots": Arm("R2D without pivots", True, False, True),
    "r2d_no_reasoning": Arm("R2D without reasoning", False, True, True, pivot_weight=1.0),
}
# Up-weighting 40 is about what the contrast gives a pivot: it is a mean over its class, the
# cross-entropy a mean over all targets, of which some forty come to one target of either class.
BEYOND: dict[str, Arm] = {
    "r2d": ARMS["r2d"],
    "kl": replace(ARMS["r2d"], title="KL to the base on benign data", kl_weight=1.0),
    "kl_replay": replace(
        ARMS["r2d"], title="KL to the base on the replay", kl_weight=1.0, kl_rows="replay"
    ),
    "contrast_all": replace(ARMS["r2d"], title="Contrast over all three", contrast="all"),
    "harmful_15": replace(ARMS["r2d"], title="15% harmful prompts (R2D: 35%)", harmful=0.15),
    "harmful_50": replace(ARMS["r2d"], title="50% harmful prompts (R2D: 35%)", harmful=0.5),
    "no_recovery": replace(ARMS["r2d"], title="Without recovery examples", recovery=False),
}
"""R2D, and R2D with one ingredient more, another or none, for the comparison beyond the paper."""
VANILLA = "vanilla"
"""The base model with the expanded vocabulary and no safety training."""

METHODS = (VANILLA, *ARMS)
TITLES = {VANILLA: "No safety training", **{name: arm.title for name, arm in ARMS.items()}}


OF_ONE_FORMAT = ("forged_reasoning", "gcg_pivot")
"""Attacks that write, or aim at, a method's own reasoning and pivots: they differ with these."""


def same_format(one: str, other: str) -> bool:
    """Whether two arms write alike, reasoning and pivots: an attack that forges it is the same."""
    ours, theirs = ARMS[one], ARMS[other]
    return (ours.reasoning, ours.pivots) == (theirs.reasoning, theirs.pivots)


@dataclass(frozen=True)
class SafetyPrompt:
    """One prompt of the safety data, before an arm writes the response.

    ``begun`` is the number of steps of a harmful answer already given (recovery examples), or
    None for an ordinary example.
    """

    query: Query
    prompt: str
    harmful: bool
    restate: bool = False
    begun: int | None = None


@dataclass(frozen=True)
class Mixture:
    """Shares of the safety data; what is left over is benign how-to. All between 0 and 1."""

    restate: float = 0.2
    harmful: float = 0.35
    information: float = 0.2
    wrapped: float = 0.15
    recovery: float = 0.15


def safety_prompts(
    language: Language, splits: Splits, n: int, seed: int, mixture: Mixture = Mixture()
) -> list[SafetyPrompt]:
    """The prompts that all arms share. Only training phrasings, wrappers and seen items appear.

    That holds for the restatement replay as well, which keeps the comprehension that R2D's first
    reasoning step needs: what a model can restate of new topics and wrappers, the base model knew.
    """
    rng = random.Random(f"toy-safety-{seed}")
    banned = [i for i in splits.safety_items if language.banned(i)]
    allowed = [i for i in splits.safety_items if not language.banned(i)]
    prompts = []
    for _ in range(n):
        draw = rng.random()
        replay = draw < mixture.restate
        harmful = not replay and draw < mixture.restate + mixture.harmful
        if replay:
            query = draw_query(splits.safety_items, rng)
        elif draw >= 1 - mixture.information:
            query = Query(rng.choice(ASPECTS), rng.choice(splits.safety_items))
        else:
            query = Query(rng.choice(list(ACTIONS)), rng.choice(banned if harmful else allowed))
        request = phrase(
            query, rng.choice(TRAINING_HOW_TO if query.how_to else TRAINING_INFORMATION), rng
        )
        if rng.random() < mixture.wrapped:
            request = wrap(request, rng.choice(TRAINING_WRAPPERS))
        begun = None
        if harmful and rng.random() < mixture.recovery:
            begun = rng.choice((0, 1, 2))
        prompts.append(SafetyPrompt(query, request, harmful, replay, begun))
    return prompts


def reasoning_steps(language: Language, query: Query) -> tuple[tuple[str, str], ...]:
    """The safety-aware trace: restatement, kind, verdict, each with its pivot.

    Naming a banned kind is not yet a verdict when only information is asked for, so that step
    ends in ``[RETHINK]`` there.
    """
    banned = language.banned(query.item)
    harmful = banned and query.how_to
    kind_pivot = UNSAFE if harmful else RETHINK if banned else SAFE
    verdict = "so i must refuse ." if harmful else "so i may answer ."
    return (
        (restatement(query), RETHINK),
        (kind_statement(language, query), kind_pivot),
        (verdict, UNSAFE if harmful else SAFE),
    )


def write_example(language: Language, prompt: SafetyPrompt, arm: Arm) -> Example:
    """The arm's response to a prompt."""
    query = prompt.query
    if prompt.restate:
        return restate(language, query, prompt.prompt)
    if prompt.begun is not None and arm.recovery:
        steps = language.steps(query.item, query.topic)[: prompt.begun]
        prefill = " ".join([lead(query), *(f"{step} ," for step in steps)])
        turn = f"{RETHINK} " if arm.pivots or not arm.reasoning else ""
        return Example(prompt.prompt, turn + REFUSAL, prefill=prefill)
    answer = REFUSAL if prompt.harmful else true_answer(language, query)
    pivot = UNSAFE if prompt.harmful else SAFE
    if arm.reasoning:
        trace = " ".join(
            f"{text} {mark}" if arm.pivots else text
            for text, mark in reasoning_steps(language, query)
        )
        answer = f"{THINK_OPEN} {trace} {THINK_CLOSE} {answer}"
    elif arm.pivots:
        answer = f"{pivot} {answer}"
    return Example(prompt.prompt, answer)


def arm_examples(language: Language, splits: Splits, arm: Arm, n: int, seed: int) -> list[Example]:
    """``n`` examples of one arm; the prompts depend on the seed only, not on the arm."""
    prompts = arm_prompts(language, splits, arm, n, seed)
    return [write_example(language, prompt, arm) for prompt in prompts]


def arm_prompts(
    language: Language, splits: Splits, arm: Arm, n: int, seed: int, mixture: Mixture = Mixture()
) -> Sequence[SafetyPrompt]:
    """The prompts of one arm: the shared ones, unless it has a share of harmful ones of its own."""
    if arm.harmful is not None:
        mixture = replace(mixture, harmful=arm.harmful)
    return safety_prompts(language, splits, n, seed, mixture)
