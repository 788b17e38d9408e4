"""Erase-and-check (Kumar et al. 2023, arXiv 2309.02705): look at the prompt with parts of it gone.

A safety filter is shown the prompt and every prompt that is left when up to ``max_erase`` tokens
are erased from it. If it calls one of them harmful, the prompt is refused. Against suffixes of at
most ``max_erase`` tokens a filter that catches the bare harmful prompt cannot be fooled: that is
the paper's certificate.

Cost: 1 query per request that passes, 0 per refused one; the filter reads ``max_erase`` + 1 texts a
request ("suffix"), about length × max_erase ("insertion"), or about length ** max_erase
("infusion", for which 3 is the most, as in the paper).

Unlike the original: the filter is any function, as the paper's own (Llama-2 with a prompt, a
fine-tuned DistilBERT) are models of their time. JailbreakBench asks the target for an answer to
every erased prompt and has it judged: that is `refusal_filter`. Left out: several stretches
inserted at once, and the paper's RandEC, GreedyEC and GradEC, which look at some of the erased
prompts only and certify nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from r2d_core.checking import unknown
from r2d_core.defenses.refusal import REFUSAL, answer_unless
from r2d_core.errors import InputError
from r2d_core.generation import Generation, Generator, Request
from r2d_core.tokenization import encode_text

Mode = Literal["suffix", "insertion", "infusion"]
SafetyFilter = Callable[[Sequence[str]], Sequence[bool]]
"""Texts in, whether each is harmful out, in the same order."""


@dataclass(frozen=True)
class EraseAndCheck:
    """A generator that refuses a prompt some erased part of which is harmful.

    Args:
        generator: what is defended.
        harmful: the safety filter.
        tokenizer: cuts the prompt into tokens; the certificate counts in its tokens.
        max_erase: d of the paper, tokens erased at most; 20 in JailbreakBench.
        mode: what is erased: "suffix" the last tokens, "insertion" a stretch anywhere, "infusion"
            any tokens.
        refusal: what is said.

    Raises InputError for an unknown mode and a max_erase out of range.
    """

    generator: Generator
    harmful: SafetyFilter
    tokenizer: Any
    max_erase: int = 20
    mode: Mode = "suffix"
    refusal: str = REFUSAL

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError("erase_and_check: " + unknown("mode", self.mode, get_args(Mode)))
        if self.max_erase < 0:
            raise InputError(f"erase_and_check: max_erase is {self.max_erase}, expected 0 or more")
        if self.mode == "infusion" and self.max_erase > 3:
            raise InputError(
                f"erase_and_check: max_erase is {self.max_erase}, expected at most 3 with mode "
                "'infusion': a prompt of 100 tokens has 170,000 ways to lose 3 of them"
            )

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
        """Answers to the prompts that pass; the filter is asked about all erased prompts at once,
        each text once."""
        checked = [list(self.erased(request.prompt)) for request in requests]
        texts = list(dict.fromkeys(text for each in checked for text in each))
        verdict = dict(zip(texts, self.harmful(texts) if texts else [], strict=True))
        flagged = [any(verdict[text] for text in each) for each in checked]
        return answer_unless(flagged, self.generator, requests, max_new_tokens, self.refusal)

    def erased(self, prompt: str) -> Iterator[str]:
        """The prompt, and what is left of it; never nothing at all."""
        yield prompt
        ids = encode_text(self.tokenizer, prompt)
        most = min(self.max_erase, len(ids) - 1)
        for n in range(1, most + 1):
            if self.mode == "suffix":
                kept = [ids[:-n]]
            elif self.mode == "insertion":
                kept = [ids[:i] + ids[i + n :] for i in range(len(ids) - n + 1)]
            else:
                kept = [list(c) for c in itertools.combinations(ids, len(ids) - n)]
            for each in kept:
                yield self.tokenizer.decode(each, clean_up_tokenization_spaces=False)


def refusal_filter(
    generator: Generator, refused: Callable[[str], bool], max_new_tokens: int
) -> SafetyFilter:
    """A filter that calls harmful what a generator refuses to answer; one query a text.

    ``refused`` is shown the whole answer. Of a model that reasons it has to look behind the
    reasoning, and ``max_new_tokens`` to reach there: an unfinished reasoning refuses nothing.
    """

    def harmful(texts: Sequence[str]) -> list[bool]:
        answers = generator.generate([Request(text) for text in texts], max_new_tokens)
        return [refused(answer.text) for answer in answers]

    return harmful
