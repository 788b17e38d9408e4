"""Attention over packed examples, each by itself.

A packed row of examples with T tokens in all, given to SDPA as it is, needs a mask [T, T], and all
T² scores are computed to be thrown away where two examples meet. Here every example is a call of
SDPA of its own, causal and without a mask, as its fastest kernels want it: of the scores, the sum
of the squares of the lengths. Flash attention does this by itself, from the positions; this is for
where it is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

LENGTHS = "example_lengths"
"""The argument of a model's forward pass that tells how a packed row is cut: a list of ints."""
NAME = "sdpa_by_example"


@contextmanager
def attention_by_example(model: PreTrainedModel) -> Iterator[None]:
    """Let a model that uses SDPA attend example by example, as `PackingCollator` packs them.

    Its forward pass then takes ``example_lengths``, and nothing but packed rows. A model with
    another attention stays as it is: the eager one masks by positions, and so does flash attention.
    """
    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attend_by_example(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    example_lengths: Sequence[int],
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, T, D], key and value [1, kv heads, T, D] -> [1, T, heads, D].

    Equal to SDPA under a mask that lets position i see j where both are of one example, j <= i,
    and i - j < ``sliding_window`` if there is one.
    """
    lengths = list(example_lengths)
    parts = [
        sdpa_attention_forward(
            module, q, k, v, _window(q, sliding_window), **{**settings, "is_causal": True}
        )[0]
        for q, k, v in zip(*(each.split(lengths, 2) for each in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=1), None


def _window(query: Tensor, sliding_window: int | None) -> Tensor | None:
    """The mask [1, 1, L, L] of an example that is longer than the window; None for another."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    at = torch.arange(length, device=query.device)
    back = at[:, None] - at[None, :]
    return ((back >= 0) & (back < sliding_window))[None, None]


AttentionInterface.register(NAME, attend_by_example)
