"""What a safety training has cost in ability: lm-evaluation-harness on a model of ours.

    scores = measure_utility(model, tokenizer, UtilityConfig(tasks=PAPER_TASKS))

The library does the work; this room sees to it that a model is asked as it was trained to be asked:

- The chat template, and one BOS where training has one. By default the library adds none to a
  rendered chat, so that a model whose tokenizer and not its template writes it (Mistral's) is asked
  without.
- Greedy decoding and nothing else. The library generates under the model's own generation
  configuration, which may hold a repetition penalty (Qwen2.5's); it is set aside meanwhile.
- Reasoning is not the answer. In tasks that generate, all up to the last `</think>` is cut before
  scoring, and there is room to reach it; what never does has the empty answer and is counted
  (`reasoning_lm`).

**What multiple choice measures.** ARC, BoolQ, MMLU, PIQA and SciQ compare the log-probabilities of
given answers as the *first* words of the response, where an R2D model would begin to reason. The
numbers are comparable with the paper's and other people's; they are no test of what a model answers
after reasoning. GSM8K is one.

The library is the extra ``eval``; data sets of named tasks come from the hub or its cache, those of
local tasks from where their YAML says.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from r2d_core.checking import check_fields, unknown
from r2d_core.errors import InputError
from r2d_core.generation.encoding import stop_ids_of
from r2d_core.pivots import THINK_CLOSE
from r2d_core.tokenization import require_chat_template

PAPER_TASKS = ("arc_easy", "arc_challenge", "boolq", "mmlu", "piqa", "sciq", "gsm8k")
"""The paper's table 3 by the library's names (MMLU-STEM is a part of ``mmlu``), and GSM8K."""


@dataclass(frozen=True)
class UtilityConfig:
    """What is measured.

    Attributes:
        tasks: names of tasks or groups.
        task_folder: a folder with tasks of one's own (YAML files), beside the library's; with
            ``own_tasks_only`` instead of them, which starts in no time.
        limit: items of each task, None for all.
        shots: worked examples in the prompt; None: each task's default.
        system: the system message.
        batch_size: items at once.
        max_new_tokens: length of an answer with its reasoning, in tasks that generate, whatever
            the task says (GSM8K leaves it at the library's 256).
        seed: of the choice of worked examples.

    Raises InputError for a wrong type, no task, a task named twice and numbers out of range.
    """

    tasks: tuple[str, ...] = PAPER_TASKS
    task_folder: str = ""
    own_tasks_only: bool = False
    limit: int | None = None
    shots: int | None = None
    system: str = ""
    batch_size: int = 8
    max_new_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "UtilityConfig")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise InputError(f"UtilityConfig tasks: expected names, each once, got {self.tasks}")
        if self.own_tasks_only and not self.task_folder:
            raise InputError("UtilityConfig own_tasks_only: give a task_folder")
        if self.task_folder and not Path(self.task_folder).is_dir():
            raise InputError(f"UtilityConfig task_folder: no folder at {self.task_folder!r}")
        for name, minimum in (("limit", 1), ("shots", 0), ("batch_size", 1), ("max_new_tokens", 1),
                              ("seed", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise InputError(
                    f"UtilityConfig {name}: expected at least {minimum}, got {value!r}"
                )


@dataclass(frozen=True)
class Score:
    """One metric of one task or group.

    ``stderr`` is the library's standard error over items, nan where it gives none; ``filter`` says
    how answers were extracted ("none", "strict-match" …). ``unfinished`` of the ``n`` answers ended
    at the token limit or within the reasoning: with many of them the value says little.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float
    n: int
    higher_is_better: bool
    version: str
    unfinished: int = 0

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ± {100 * self.stderr:.1f}"


def measure_utility(model: Any, tokenizer: Any, config: UtilityConfig) -> list[Score]:
    """The scores of a model that is in memory, in the order of the library's table.

    Raises InputError where the library is not installed, a task is not known, the tokenizer has no
    chat template, or the model's context no room for an answer.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from r2d_core.reasoning_lm import ReasoningLM
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness is not installed ({error}); pip install 'r2d_core[eval]'"
        ) from None
    require_chat_template(tokenizer)
    manager = TaskManager(
        include_path=config.task_folder or None, include_defaults=not config.own_tasks_only
    )
    for task in config.tasks:
        if task not in manager.all_tasks:
            raise InputError(unknown("task", task, manager.all_tasks[:20]))
    model.eval()
    wrapped = ReasoningLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),  # it gives a tokenizer without a padding token one
        batch_size=config.batch_size,
        add_bos_token=True,  # as the tokenizer does, unless the template has written it
        think_end_token=_think_end(tokenizer),
    )
    with _greedy(model, tokenizer):
        found = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(config.tasks),
            task_manager=manager,
            num_fewshot=config.shots,
            limit=config.limit,
            gen_kwargs={"max_gen_toks": config.max_new_tokens},
            system_instruction=config.system or None,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
            log_samples=False,
            bootstrap_iters=1000,
        )
    assert found is not None  # None is for the other ranks of a distributed run
    return _scores(found, wrapped.unfinished)


def _scores(found: Any, unfinished: Mapping[str, int]) -> list[Score]:
    scores = []
    for task, values in found["results"].items():
        for key, value in values.items():
            name, _, how = key.partition(",")
            if not how or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{name}_stderr,{how}")
            better = found.get("higher_is_better", {}).get(task, {}).get(name)
            samples = found.get("n-samples", {}).get(task, {})
            scores.append(
                Score(
                    task=task,
                    metric=name,
                    filter=how,
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else math.nan,
                    n=int(samples.get("effective", values.get("sample_len", 0)) or 0),
                    higher_is_better=better is not False,
                    version=str(found.get("versions", {}).get(task, "")),
                    unfinished=unfinished.get(task, 0),
                )
            )
    return scores


def _think_end(tokenizer: Any) -> int | str:
    """The id of `</think>`: as a special token it would be gone from the decoded text.

    The string itself where it is several tokens, and so there.
    """
    ids = tokenizer(THINK_CLOSE, add_special_tokens=False)["input_ids"]
    single = len(ids) == 1 and tokenizer.decode(ids).strip() == THINK_CLOSE
    return ids[0] if single else THINK_CLOSE


@contextlib.contextmanager
def _greedy(model: Any, tokenizer: Any) -> Iterator[None]:
    """The model under a generation configuration that says where an answer ends, and no more."""
    own = model.generation_config
    stop = stop_ids_of(tokenizer, own.eos_token_id)
    pad = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=stop, pad_token_id=stop[0] if pad is None else pad
    )
    try:
        yield
    finally:
        model.generation_config = own
