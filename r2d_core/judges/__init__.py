"""The judges by name, and the way to judge many completions.

Each has a file of its own; the toy world's exact one lives in its world. Strings need nothing,
model judges a Generator and the name of its model::

    verdicts = judge_all(GCGStrings(), behaviors, completions)
    judge = LlamaGuard3(generator, "meta-llama/Llama-Guard-3-8B", cache=Path("results/judged"))
    verdicts = judge_all(judge, behaviors, completions)

How far a judge is to be trusted says `r2d_core.judges.agreement`.

Libraries have most of these judges, each for the whole response as one text. judgezoo (0.1.9) asks
transformers, OpenAI or Anthropic and no other generator, leaves the prompt's own marks in the text
under judgement whole, and its StrongREJECT rubric drops an unreadable answer from the list of
scores; strong_reject asks another model instead. JailbreakBench's package (1.0.0) asks at Together
only, and its judge of jailbreaks calls safe whatever does not say "unsafe"; HarmBench's code counts
its third label, -1, as a failed attack. Here what cannot be read is `UNPARSABLE`, and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.judges.harmbench import HarmBench
from r2d_core.judges.jailbreakbench import JailbreakBench, JailbreakBenchRefusal
from r2d_core.judges.judge import ABSENT, SCOPES, UNPARSABLE, Judge, Parts, parts_of
from r2d_core.judges.llama_guard import LlamaGuard3
from r2d_core.judges.model_judge import ModelJudge
from r2d_core.judges.or_bench import ORBench
from r2d_core.judges.strings import GCGStrings, HarmBenchStrings, RefusalStrings, XSTestStrings
from r2d_core.judges.strongreject import StrongReject
from r2d_core.judges.xstest import XSTest
from r2d_core.records import Behavior, Completion, Verdict

__all__ = [
    "ABSENT",
    "JUDGES",
    "SCOPES",
    "UNPARSABLE",
    "Judge",
    "ModelJudge",
    "Parts",
    "RefusalStrings",
    "install_judge_template",
    "judge_all",
    "judge_pairs",
    "parts_of",
]

JUDGES: dict[str, type[Any]] = {
    judge.name: judge
    for judge in (
        GCGStrings,
        HarmBenchStrings,
        XSTestStrings,
        LlamaGuard3,
        HarmBench,
        JailbreakBench,
        JailbreakBenchRefusal,
        XSTest,
        ORBench,
        StrongReject,
    )
}


def judge_all(
    judge: Judge, behaviors: Sequence[Behavior], completions: Sequence[Completion]
) -> list[Verdict]:
    """The judge's verdicts on all completions, in their order, with a bar.

    A model judge is asked in batches and, given a cache, not again about what it has answered.
    Raises InputError where a completion's behavior is missing or two behaviors have one id.
    """
    known = {behavior.id: behavior for behavior in behaviors}
    if len(known) < len(behaviors):
        ids = [behavior.id for behavior in behaviors]
        twice = next(each for each in ids if ids.count(each) > 1)
        raise InputError(f"{ids.count(twice)} behaviors have the id {twice!r}; give each its own")
    pairs = []
    for completion in completions:
        if completion.behavior_id not in known:
            raise InputError(
                f"a completion is of {unknown('behavior', completion.behavior_id, list(known)[:8])}"
                "; judge it with the behaviors that it was made from"
            )
        pairs.append((known[completion.behavior_id], completion))
    return judge_pairs(judge, pairs, progress=True)


def judge_pairs(
    judge: Judge, pairs: Sequence[tuple[Behavior, Completion]], progress: bool = False
) -> list[Verdict]:
    """The judge's verdicts on completions, each with its behavior, in their order.

    A model judge is asked in batches.
    """
    if isinstance(judge, ModelJudge):
        return judge.judge_pairs(pairs, progress)
    bar = tqdm(pairs, judge.name, unit="text", delay=5, disable=not progress)
    return [judge.judge(*pair) for pair in bar]


def install_judge_template(tokenizer: Any, name: str) -> None:
    """Give a local judge model's tokenizer the chat template that its judge's prompt needs.

    For judges whose model was trained on the prompt itself; the others use the model's own
    template. Raises InputError for any other name.
    """
    trained = {n: j for n, j in JUDGES.items() if getattr(j, "chat_template", "")}
    if name not in trained:
        raise InputError(unknown("judge with a chat template of its own", name, trained))
    tokenizer.chat_template = trained[name].chat_template
