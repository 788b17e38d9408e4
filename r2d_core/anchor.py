"""Holding a model in training to what it was: KL divergence to the frozen base on benign data.

The paper has no such term. Per position it is KL(base || model) over the whole vocabulary, as in
distillation: what the base would say to a benign request is to stay as likely as it was, also where
the one token in the data does not show it. `TrainConfig(kl_weight=...)` switches it on, and a flag
in the data says which rows are benign (`mark_benign`).

The base is a second copy of the model. Its logits and the model's exist for some rows at a time
only, in the forward and again in the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from r2d_core.batching import Row
from r2d_core.errors import InputError
from r2d_core.output_layer import OutputLayer
from r2d_core.tokenization import IGNORED

BENIGN_LABELS = "benign_labels"
"""The field of a row that holds its labels where it is benign, and -100 everywhere where not."""
KL_CHUNK_ROWS = 512
"""Rows whose logits, the model's and the base's, exist at a time."""


def mark_benign(row: Row, benign: bool) -> Row:
    """The training row with the flag: is the base to be kept on its targets?"""
    labels = row["labels"]  # not copied: a data set's are many
    return {**row, BENIGN_LABELS: labels if benign else [IGNORED] * len(labels)}


def is_benign(row: Row) -> bool:
    """Whether a row is marked benign; InputError for one that is not marked at all."""
    if BENIGN_LABELS not in row:
        raise InputError(
            "kl_weight: expected rows that say whether they are benign; make them with "
            "mark_benign(row, benign)"
        )
    return any(label != IGNORED for label in row[BENIGN_LABELS])


@dataclass(frozen=True)
class AnchorCollator:
    """Another collator with ``benign_labels`` besides, laid out like ``labels``."""

    inner: Callable[[Sequence[Row]], dict[str, Any]]

    def __call__(self, examples: Sequence[Row]) -> dict[str, Any]:
        nothing = [[IGNORED] * len(example["labels"]) for example in examples]
        flagged: list[Row] = [
            {"input_ids": example["input_ids"], "labels": example.get(BENIGN_LABELS, none)}
            for example, none in zip(examples, nothing, strict=True)
        ]
        return {**self.inner(examples), BENIGN_LABELS: self.inner(flagged)["labels"]}


class FrozenBase:
    """The model as it was when this was made, on ``device``."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model: Any = copy.deepcopy(model).eval().requires_grad_(False).to(device)
        self.head = OutputLayer.of(self.model)

    @torch.no_grad()
    def hidden(self, inputs: Mapping[str, Any]) -> Tensor:
        """Its last hidden states [B, T, H] of a batch."""
        with self.head.replaced_by(lambda hidden: hidden):
            return self.model(**inputs, use_cache=False).logits

    def divergence(
        self, hidden: Tensor, base_hidden: Tensor, softcap: float | None, layer: Mapping[str, Any]
    ) -> Tensor:
        """`kl_to_base` of hidden states [M, H]; ``layer`` is `OutputLayer.loss_arguments`."""
        return kl_to_base(
            hidden,
            layer["weight"],
            base_hidden,
            self.head.linear.weight,
            softcap=softcap,
            rows=layer.get("rows"),
            row_values=layer.get("row_values"),
        )


def kl_to_base(
    hidden: Tensor,
    weight: Tensor,
    base_hidden: Tensor,
    base_weight: Tensor,
    *,
    softcap: float | None = None,
    rows: Tensor | None = None,
    row_values: Tensor | None = None,
    chunk_rows: int = KL_CHUNK_ROWS,
) -> Tensor:
    """Sum over rows of KL(softmax(base_hidden @ base_weight.T) || softmax(hidden @ weight.T)).

    hidden, base_hidden [M, H]; weight, base_weight [V, H]. Returns a scalar in float32, or float64
    where hidden is; gradients go to hidden, weight and ``row_values`` [R, H], which stand for the
    ``rows`` [R] of weight where given. ``softcap`` as in `r2d_loss`. At most ``chunk_rows`` rows of
    logits exist at a time, computed again in the backward pass: 256 MiB a matrix at a vocabulary of
    128k. Without rows: a zero that is connected to hidden.
    """
    total = hidden[:0].sum().to(torch.promote_types(hidden.dtype, torch.float32))
    for start in range(0, hidden.shape[0], chunk_rows):
        chunk = slice(start, start + chunk_rows)
        total = total + checkpoint(
            _chunk_kl, hidden[chunk], weight, base_hidden[chunk], base_weight,
            softcap, rows, row_values,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
    return total


def _chunk_kl(
    hidden: Tensor,
    weight: Tensor,
    base_hidden: Tensor,
    base_weight: Tensor,
    softcap: float | None,
    rows: Tensor | None,
    row_values: Tensor | None,
) -> Tensor:
    ours = _log_probabilities(hidden, weight, softcap, rows, row_values)
    base = _log_probabilities(base_hidden, base_weight, softcap, None, None)
    return F.kl_div(ours, base, reduction="sum", log_target=True)


def _log_probabilities(
    hidden: Tensor,
    weight: Tensor,
    softcap: float | None,
    rows: Tensor | None,
    row_values: Tensor | None,
) -> Tensor:
    logits = F.linear(hidden, weight.to(hidden.dtype))
    if rows is not None and row_values is not None:
        own = F.linear(hidden, row_values.to(hidden.dtype))
        logits = logits.index_copy(1, rows.to(logits.device), own.to(logits.dtype))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.log_softmax(logits, dim=-1)
