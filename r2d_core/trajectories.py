"""A response as R2D sees it: reasoning in steps, each closed by a pivot, and then the answer.

    <think> first step [RETHINK] second step [SAFE] </think> the answer
    └─────┘└──────────────────┘└─────────────────┘ └──────┘└──────────┘
    opening      steps[0]            steps[1]      closing    answer

Whatever a model writes can be parsed, and the parts joined are the text again, to the character.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from r2d_core.errors import InputError
from r2d_core.pivots import PIVOT_TOKENS, THINK_CLOSE, THINK_OPEN, UNSAFE

HIDDEN_NOTICE = "(hidden: the model called this step unsafe)"
"""What `hide_unsafe` shows in place of a step."""

END_OF_TURN = (
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",  # DeepSeek, with these very characters
)
"""How the model families spell the end of a turn."""

START_OF_TURN = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<｜User｜>",  # DeepSeek
    "<｜Assistant｜>",
)
"""How the model families spell the beginning of a turn."""

VERDICTS = frozenset(
    ("danger", "dangerous", "harmful", "harmless", "unsure", "uncertain", "risk", "risky")
    + ("benign", "toxic", "illegal", "refuse", "refusal")
)
"""What a writer of pivots puts in brackets without its being a pivot, whatever its capitals."""

PLACEHOLDERS = frozenset(
    ("name", "date", "time", "city", "address", "email", "phone", "company", "number", "location")
    + ("blank", "redacted", "title", "url", "link")
)
"""What stands in brackets to be filled in, at the end of a step as anywhere."""

_PIVOT = re.compile("|".join(map(re.escape, PIVOT_TOKENS)))
_BRACKETED = re.compile(r"\[ *([A-Za-z][A-Za-z_ -]*?) *\]")
_NAMES = [token.strip("[]") for token in PIVOT_TOKENS]
# A word in brackets where pivots stand: at the end of a step's text, or behind a finished sentence
# at the end of a line.
_AT_THE_END = re.compile(
    r"(?<=\s)\[ *([A-Za-z-]{3,}) *\](?=\s*\Z)"
    r"|(?<=[.!?])\s+\[ *([A-Za-z-]{3,}) *\](?=\s*\Z|[ \t]*\n)"
)
# Line by line, Alpaca's and Vicuna's headings; Llama-2's [INST] may be an institution.
_START_OF_TURN = re.compile(
    "|".join(map(re.escape, START_OF_TURN))
    + r"|^### (?:Instruction|Human|User|Assistant):|^\[INST\]",
    re.MULTILINE,
)
_END_OF_TURN = re.compile("|".join(map(re.escape, END_OF_TURN)))
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Step:
    """A step of reasoning: its text, spaces included, and the pivot that ends it (None: none does).

    Raises InputError for a pivot that is none of `PIVOT_TOKENS`.
    """

    text: str
    pivot: str | None = None

    def __post_init__(self) -> None:
        if self.pivot is not None and self.pivot not in PIVOT_TOKENS:
            raise InputError(
                f"Step pivot: expected one of {', '.join(PIVOT_TOKENS)} or None, got {self.pivot!r}"
            )

    def __str__(self) -> str:
        return self.text + (self.pivot or "")


@dataclass(frozen=True)
class Trajectory:
    """A parsed response. ``str()`` gives its text back; the instruction is no part of it.

    Attributes:
        instruction: what was asked, "" when unknown.
        steps: the reasoning.
        answer: the rest, spaces included; always the end of the text.
        opening: all before the first step: "" or some text, as a rule none, and `<think>`.
        closing: all between the last step and the answer: spaces, and `</think>` if there is one.
    """

    instruction: str
    steps: tuple[Step, ...]
    answer: str
    opening: str = ""
    closing: str = ""

    def __str__(self) -> str:
        return self.opening + self.reasoning + self.closing + self.answer

    @property
    def preamble(self) -> str:
        """The text before `<think>`: neither reasoning nor answer, but a reader sees it."""
        return self.opening.removesuffix(THINK_OPEN)

    @property
    def reasoning(self) -> str:
        """The text of all steps with their pivots; it begins at ``len(opening)``."""
        return "".join(map(str, self.steps))

    @property
    def pivots(self) -> tuple[str, ...]:
        """The pivots of the reasoning in their order."""
        return tuple(step.pivot for step in self.steps if step.pivot is not None)

    @property
    def final_pivot(self) -> str | None:
        """The model's last word on safety, None when it gave none."""
        return self.pivots[-1] if self.pivots else None

    @property
    def finished(self) -> bool:
        """False when `<think>` was opened and never closed: cut off, or lost in thought."""
        return THINK_OPEN not in self.opening or THINK_CLOSE in self.closing


def parse(text: str, *, instruction: str = "") -> Trajectory:
    """Split a response; every text parses, and ``str(parse(text)) == text``.

    - `<think>` … `</think>`: the first of each; a preamble may come before. All after the first
      `</think>` is answer, further tokens included: it is what a reader is shown.
    - `<think>` alone: unfinished, the answer is empty.
    - `</think>` alone or first: the chat template opened the reasoning (R1-Distill, QwQ).
    - neither, but pivots: reasoning up to the last pivot, then the answer.
    - none of them: all is answer.
    """
    opening, reasoning, closing, answer = _regions(text)
    steps = _steps(reasoning)
    if steps and steps[-1].pivot is None and steps[-1].text.isspace():
        # Spaces between the last pivot and </think> are no step.
        steps, closing = steps[:-1], steps[-1].text + closing
    return Trajectory(instruction, steps, answer, opening, closing)


def _regions(text: str) -> tuple[str, str, str, str]:
    """Opening, reasoning, closing (without spaces) and answer."""
    before, opened, after = text.partition(THINK_OPEN)
    if THINK_CLOSE in before:
        opened = ""
    if opened:
        reasoning, closing, answer = after.partition(THINK_CLOSE)
        return before + opened, reasoning, closing, answer
    if THINK_CLOSE in text:
        reasoning, closing, answer = text.partition(THINK_CLOSE)
        return "", reasoning, closing, answer
    end = max((match.end() for match in _PIVOT.finditer(text)), default=0)
    return "", text[:end], "", text[end:]


def _steps(reasoning: str) -> tuple[Step, ...]:
    steps, start = [], 0
    for pivot in _PIVOT.finditer(reasoning):
        steps.append(Step(reasoning[start : pivot.start()], pivot[0]))
        start = pivot.end()
    if start < len(reasoning):
        steps.append(Step(reasoning[start:]))
    return tuple(steps)


def format_response(steps: Iterable[Step | tuple[str, str | None]], answer: str) -> str:
    """The canonical text: `<think> step [PIVOT] step [PIVOT] </think> answer`.

    Texts are stripped and single spaces stand around the tokens, which suits a tokenizer of words
    as well as one of pieces. A step without pivot runs into the next one.

    Raises InputError for a step whose text holds a pivot or think token: it would not read back.
    """
    parts = [THINK_OPEN]
    for number, step in enumerate(steps, start=1):
        step = step if isinstance(step, Step) else Step(*step)
        for token in (*PIVOT_TOKENS, THINK_OPEN, THINK_CLOSE):
            if token in step.text:
                raise InputError(f"step {number}: the text holds {token}; give the pivot apart")
        parts += [step.text.strip(), step.pivot or ""]
    parts += [THINK_CLOSE, answer.strip()]
    return " ".join(part for part in parts if part)


def from_record(record: Mapping[str, object]) -> Trajectory:
    """A row of the R2D-R1 data set: ``instruction``, ``input`` (may be missing) and ``output``.

    The instruction and a non-empty input become one, an empty line between them, as in Alpaca.
    Raises InputError for a field that is missing or no text that can be written as UTF-8.
    """
    fields = []
    for name in ("instruction", "input", "output"):
        value = record.get(name)
        if name == "input" and value is None:
            value = ""
        elif name not in record:
            raise InputError(f"record has no field {name!r}; it has {', '.join(record) or 'none'}")
        if not isinstance(value, str):
            raise InputError(f"record field {name!r}: expected text, got {type(value).__name__}")
        if half := _HALF_A_CHARACTER.search(value):  # of \ud83d in JSON; no tokenizer takes it
            raise InputError(
                f"record field {name!r}: expected text, got half a character, {half[0]!r} "
                f"at position {half.start()}"
            )
        fields.append(value)
    instruction, context, output = fields
    parts = (instruction.strip(), context.strip())
    return parse(output, instruction="\n\n".join(part for part in parts if part))


def problems(trajectory: Trajectory) -> list[str]:
    """What forbids training on a trajectory, in words; an empty list when nothing does."""
    found = []
    if not trajectory.finished:
        found.append(f"unfinished: {THINK_OPEN} without {THINK_CLOSE}")
    elif not trajectory.answer.strip():
        found.append("the answer is empty")
    if not trajectory.pivots:
        found.append("no pivot")
    elif trajectory.steps[-1].pivot is None:
        found.append("the last step ends in no pivot")
    for number, step in enumerate(trajectory.steps, start=1):
        for name in dict.fromkeys(_like_pivots(step.text)):
            found.append(f"step {number}: {name} is not one of {', '.join(PIVOT_TOKENS)}")
    for name in dict.fromkeys(match[0] for match in _PIVOT.finditer(trajectory.answer)):
        found.append(f"{name} in the answer, after the reasoning")
    text = str(trajectory)
    for name in (THINK_OPEN, THINK_CLOSE):
        if (count := text.count(name)) > 1:
            found.append(f"{count} times {name}")
    if end := _END_OF_TURN.search(text):
        after = "text after the" if text[end.end() :].strip() else "a written"
        found.append(f"{after} end of turn {end[0]}")
    if start := _START_OF_TURN.search(text):
        found.append(f"a new turn is opened: {start[0]}")
    return found


def _like_pivots(text: str) -> Iterator[str]:
    """What a writer of pivots may have meant for one: its name in any case, a word close to it, one
    of `VERDICTS`; and any single word in brackets that stands where a pivot would.

    Elsewhere, what is in brackets is what it is: [NAME], [YOUR CITY], [1], [sic].
    """
    ends = {
        match[0].strip()
        for match in _AT_THE_END.finditer(text)
        if match[0].strip(" []\n\t").lower() not in PLACEHOLDERS | {"sic"}
    }
    for match in _BRACKETED.finditer(text):
        name = match[1]
        near = name.isupper() and difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.65)
        if near or name.upper() in _NAMES or name.lower() in VERDICTS or match[0] in ends:
            yield match[0]


def hide_unsafe(trajectory: Trajectory) -> Trajectory:
    """A copy for display: the text of every step that ends in `[UNSAFE]` is a notice instead."""
    steps = tuple(
        Step(f" {HIDDEN_NOTICE} ", UNSAFE) if step.pivot == UNSAFE else step
        for step in trajectory.steps
    )
    return dataclasses.replace(trajectory, steps=steps)
