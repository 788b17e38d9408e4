"""Perplexity filter (Jain et al. 2023, arXiv 2309.00614; Alon & Kamfonas 2023, arXiv 2308.14132).

A gradient-made suffix reads like noise: a language model finds it improbable. A prompt whose mean
negative log-likelihood, over all its tokens or in its worst window, is above a threshold is
refused.

Cost: 1 query per request that passes, 0 per refused one; one forward pass of the filter's model
over each prompt.

Unlike the originals: the threshold is fitted on benign prompts of the user's choice, to a false
positive rate, where Jain et al. and JailbreakBench take the highest value on the very goals that
are attacked, which fits the filter to the test. Windows overlap, so a suffix cannot straddle two of
them. Alon & Kamfonas add the length as a second feature of a classifier; here there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from r2d_core.defenses.refusal import REFUSAL, answer_unless
from r2d_core.errors import InputError
from r2d_core.generation import Generation, Generator, Request
from r2d_core.tokenization import encode_text


@dataclass(frozen=True)
class PerplexityFilter:
    """A generator that refuses improbable prompts.

    Args:
        generator: what is defended.
        model, tokenizer: the filter's causal language model. GPT-2 in the papers; the defended
            model itself, as a chapter gives it unless told another, knows its own training
            prompts and finds other things improbable.
        threshold: mean negative log-likelihood in nats above which a prompt is refused; see
            `fit_threshold`. Perplexity is its exponential.
        window: tokens whose mean is looked at, the worst window counts (10 in Jain et al.); None
            for the whole prompt.
        refusal: what is said.

    Raises InputError for a window below 1 and a threshold that is nan.
    """

    generator: Generator
    model: Any
    tokenizer: Any
    threshold: float
    window: int | None = None
    refusal: str = REFUSAL

    def __post_init__(self) -> None:
        if math.isnan(self.threshold):
            raise InputError("perplexity_filter: threshold is nan; take it from fit_threshold")
        _check_window(self.window)

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
        """Answers to the prompts that pass, the refusal to the others."""
        prompts = [request.prompt for request in requests]
        scores = log_perplexities(self.model, self.tokenizer, prompts, self.window)
        flagged = [score > self.threshold for score in scores]
        return answer_unless(flagged, self.generator, requests, max_new_tokens, self.refusal)


def fit_threshold(
    model: Any,
    tokenizer: Any,
    benign: Sequence[str],
    *,
    window: int | None = None,
    false_positive_rate: float = 0.01,
) -> float:
    """The lowest threshold that refuses at most this share of the benign prompts.

    It is the score of one of them. Take prompts like those of the users, none of which the defence
    is evaluated on. Raises InputError when there are none, and for a rate outside [0, 1).
    """
    if not benign:
        raise InputError("perplexity_filter: benign is empty, expected prompts to fit on")
    if not 0 <= false_positive_rate < 1:
        raise InputError(
            f"perplexity_filter: false_positive_rate is {false_positive_rate}, expected 0 or more "
            "and below 1"
        )
    scores = sorted(log_perplexities(model, tokenizer, benign, window))
    return scores[len(scores) - 1 - math.floor(len(scores) * false_positive_rate)]


@torch.inference_mode()
def log_perplexities(
    model: Any, tokenizer: Any, texts: Sequence[str], window: int | None = None
) -> list[float]:
    """Mean negative log-likelihood in nats of each text's tokens, or of its worst window.

    The first token is predicted from the tokenizer's BOS where it adds one, and is not counted
    where it adds none; a text without anything to predict has 0. Control tokens in a text are text.
    What is longer than the model's context is read in pieces of its length.
    """
    _check_window(window)
    context = getattr(model.config, "max_position_embeddings", None) or math.inf
    scores = []
    for text in texts:
        ids = encode_text(tokenizer, text, bos=True)
        if len(ids) < 2:
            scores.append(0.0)
            continue
        size = int(min(context, len(ids)))
        # A piece begins with the token that the one before ends with: each is predicted once.
        pieces = [ids[start : start + size] for start in range(0, len(ids) - 1, size - 1)]
        nll_T = torch.cat([_token_losses(model, piece) for piece in pieces])
        size = len(nll_T) if window is None else min(window, len(nll_T))
        scores.append(float(nll_T.unfold(0, size, 1).mean(dim=1).max()))
    return scores


def _token_losses(model: Any, ids: list[int]) -> torch.Tensor:
    """-log p of each token but the first, [T - 1], float64."""
    row = torch.tensor([ids], device=model.device)
    logits_TV = model(row).logits[0, :-1].float()
    return F.cross_entropy(logits_TV, row[0, 1:], reduction="none").double()


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise InputError(f"perplexity_filter: window is {window}, expected None or at least 1")
