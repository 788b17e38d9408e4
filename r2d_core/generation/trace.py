"""What the model thought of the pivots while it wrote: probabilities at every response token.

From hidden states, without the logits: a long response of a model with a large vocabulary fits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from r2d_core.errors import InputError
from r2d_core.generation.generator import Request
from r2d_core.kernels import PivotReading, read_pivots
from r2d_core.output_layer import OutputLayer
from r2d_core.pivots import PivotIds
from r2d_core.tokenization import encode_example, encode_prompt


@dataclass(frozen=True)
class TokenPivots:
    """One response token, the probabilities of the three pivots in its place, and the entropy of
    the whole distribution there, in nats. ``text`` is what it adds to the response, with its space.
    """

    text: str
    p_safe: float
    p_unsafe: float
    p_rethink: float
    entropy: float


@torch.inference_mode()
def pivot_probabilities(
    model: Any, tokenizer: Any, request: Request, response: str
) -> list[TokenPivots]:
    """Teacher-force ``response`` after ``request``; one entry for each of its tokens.

    Probabilities are the softmax over the whole vocabulary at the position that predicts the
    token. The end of turn is the last entry; the texts before it, joined, are the response.
    """
    pivots = PivotIds.from_tokenizer(tokenizer)
    before: dict[str, Any] = {
        "system": request.system,
        "prefill": request.prefill,
        "history": request.history,
    }
    begin = len(encode_prompt(tokenizer, request.prompt, **before))
    ids = encode_example(tokenizer, request.prompt, response, **before)["input_ids"]
    layer = OutputLayer.of(model)
    if layer.wrapper is not None:
        raise InputError("the model's new rows are still adapters; merge them first")
    readings: list[PivotReading] = []

    def read(hidden_1TH: Tensor) -> Tensor:
        readings.append(
            read_pivots(
                hidden_1TH[0, begin - 1 : -1],
                layer.linear.weight,
                (pivots.safe, pivots.unsafe, pivots.rethink),
                softcap=softcap,
            )
        )
        return sentinel.to(hidden_1TH)

    softcap = layer.softcap
    sentinel = torch.tensor(1000.0)
    with layer.replaced_by(read):
        returned = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    layer.require_last(sentinel, returned.cpu())
    (reading,) = readings
    rows = torch.cat([reading.log_probs.exp(), reading.entropy[:, None]], dim=1).tolist()
    return [
        TokenPivots(text, safe, unsafe, rethink, entropy)
        for text, (safe, unsafe, rethink, entropy) in zip(
            token_texts(tokenizer, ids[begin:]), rows, strict=True
        )
    ]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of all; joined they are that text, as generators decode it.

    A token decoded alone has lost the space before it, and a part of a character is none yet: the
    token that completes the character has all of it, those before it have "".
    """

    def read(begin: int, end: int) -> str:
        some = list(ids[begin:end])
        text: str = tokenizer.decode(
            some, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    # Read behind the token before alone, not behind all: ids[begin:] are the text from `at` on.
    whole, ends = read(0, len(ids)), [0]
    begin = at = given = 0
    for n in range(1, len(ids) + 1):
        text = read(begin, n)
        same = len(os.path.commonprefix([whole[at : at + len(text)], text]))
        ends.append(max(ends[-1], at + same))
        if same == len(text) and ends[-1] > ends[-2]:
            last = read(given, n)
            if whole.endswith(last, 0, ends[-1]):
                begin, at, given = given, ends[-1] - len(last), n
    ends[-1] = len(whole)  # with what is no whole character
    return [whole[start:end] for start, end in pairwise(ends)]
