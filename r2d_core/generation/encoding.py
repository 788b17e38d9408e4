"""What generators that hold the tokenizer share: a request to ids, new ids to a generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from r2d_core.generation.generator import Generation, Request
from r2d_core.tokenization import encode_prompt, end_of_turn, takes_system


def encode_request(tokenizer: Any, request: Request) -> list[int]:
    """The ids after which the model answers the request.

    A system message that the chat template has no place for (Gemma's, Mistral's) begins the first
    user turn.
    """
    if request.system and not takes_system(tokenizer):
        request = _without_system(request)
    return encode_prompt(
        tokenizer,
        request.prompt,
        system=request.system,
        prefill=request.prefill,
        history=request.history,
    )


def _without_system(request: Request) -> Request:
    first, *later = [*request.history, (request.prompt, "")]
    turns = [(f"{request.system}\n\n{first[0]}", first[1]), *later]
    return dataclasses.replace(request, system="", history=tuple(turns[:-1]), prompt=turns[-1][0])


def stop_ids_of(tokenizer: Any, stated: int | Sequence[int] | None) -> list[int]:
    """What ends an answer: the template's end of turn, the tokenizer's EOS, and those ``stated``.

    ``stated`` is the model's ``generation_config.eos_token_id``. Raises InputError when the
    tokenizer has no chat template, or nothing that ends a turn.
    """
    if stated is None:
        stated = []
    elif isinstance(stated, int):
        stated = [stated]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return sorted({*end_of_turn(tokenizer), *own, *stated})


def decode_answer(
    tokenizer: Any, stop_ids: Sequence[int], prompt_tokens: int, row: Sequence[int]
) -> Generation:
    """The answer in a row of new ids: what stands before the first id that ends it."""
    end = next((i for i, token in enumerate(row) if token in stop_ids), None)
    kept = list(row if end is None else row[:end])
    text = tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    response_tokens = len(row) if end is None else end + 1
    return Generation(text, prompt_tokens, response_tokens, "length" if end is None else "stop")
