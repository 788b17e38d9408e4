"""The loss without the logits: pure torch, any device.

Rows without a target are dropped first. The logits of as many rows as fit a byte budget are made,
turned in place into their gradient, multiplied into the gradients of hidden states and weight, and
forgotten; the backward pass only scales what the forward pass has made. Sums are kept in float32
(float64 for float64 input). The contrast needs three logits of few rows: it is made apart, in
float64, so that a small margin z_safe - z_unsafe does not drown in the rounding of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r2d_core.kernels.reference import KernelResult
from r2d_core.tokenization import IGNORED

# Logits held at one time: on a CPU not much more than its caches, on a GPU enough to keep the
# matrix products busy.
CPU_CHUNK_BYTES = 16 * 2**20
GPU_CHUNK_BYTES = 512 * 2**20


def chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    pivots: tuple[int, int, int] | None,
    *,
    pivot_weight: float,
    contrast: str,
    pivot_ce_weight: float,
    n_items: Tensor,
    class_counts: Tensor,
    weight_grad: str,
    rows: Tensor | None,
    chunk_bytes: int | None = None,
) -> KernelResult:
    """`reference_loss`, with at most ``chunk_bytes`` of logits at a time (one row at least)."""
    if chunk_bytes is None:
        chunk_bytes = CPU_CHUNK_BYTES if hidden.device.type == "cpu" else GPU_CHUNK_BYTES
    exact = torch.promote_types(hidden.dtype, torch.float32)
    values = _Chunked.apply(
        hidden,
        weight,
        targets,
        pivots,
        pivot_weight,
        contrast,
        pivot_ce_weight,
        n_items.to(exact),
        class_counts.to(exact),
        torch.is_grad_enabled() and hidden.requires_grad,
        weight_grad if torch.is_grad_enabled() and weight.requires_grad else "none",
        rows,
        chunk_bytes,
    )
    return KernelResult(*values)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        pivots: tuple[int, int, int] | None,
        pivot_weight: float,
        contrast: str,
        pivot_ce_weight: float,
        n_items: Tensor,
        class_counts: Tensor,
        hidden_grad: bool,
        weight_grad: str,
        rows: Tensor | None,
        chunk_bytes: int,
    ) -> tuple[Tensor, ...]:
        shape, dtype, exact = hidden.shape, hidden.dtype, n_items.dtype
        kept = (targets != IGNORED).nonzero().squeeze(1)
        if len(kept) < len(targets):
            hidden, targets = hidden[kept], targets[kept]

        scale = (1 / n_items).repeat(len(targets))
        pivot_by_class = torch.zeros_like(class_counts)
        correct = torch.zeros(3, dtype=torch.int64, device=hidden.device)
        greedy = correct.clone()
        if pivots is not None:
            columns = torch.tensor(pivots, device=hidden.device)
            at, pivot_class = (targets[:, None] == columns).nonzero(as_tuple=True)
            scale[at] *= pivot_ce_weight
            pivot_by_class, margin_grad, right = _contrast(
                hidden[at], weight[columns], pivot_class, pivot_weight, contrast, class_counts
            )
            correct.index_add_(0, pivot_class, right.long())
            contrast_grad = torch.zeros(len(targets), 3, dtype=exact, device=hidden.device)
            contrast_grad[at] = margin_grad

        hidden_gradient = torch.empty_like(hidden) if hidden_grad else None
        weight_gradient = None
        if weight_grad != "none":
            trained = weight.shape if rows is None else (len(rows), weight.shape[1])
            weight_gradient = torch.zeros(trained, dtype=exact, device=hidden.device)

        nll = torch.empty_like(scale)
        highest_is_target = torch.empty_like(targets, dtype=torch.bool)
        step = max(1, chunk_bytes // (weight.shape[0] * exact.itemsize))
        buffer = hidden.new_empty(min(step, len(targets)), weight.shape[0])
        for begin in range(0, len(targets), step):
            part = slice(begin, begin + step)
            h, target, weights = hidden[part], targets[part, None], scale[part, None]

            z = torch.mm(h, weight.T, out=buffer[: len(h)]).to(exact)
            highest, of_target = z.amax(dim=1, keepdim=True), z.gather(1, target)
            total = z.sub_(highest).exp_().sum(dim=1, keepdim=True)
            nll[part] = (total.log() + highest - of_target).squeeze(1)
            highest_is_target[part] = (of_target >= highest).squeeze(1)
            if hidden_gradient is None and weight_gradient is None:
                continue

            z.mul_(weights / total).scatter_add_(1, target, -weights)
            if pivots is not None:
                z.index_add_(1, columns, contrast_grad[part])
            gradient = z.to(dtype)
            if hidden_gradient is not None:
                torch.mm(gradient, weight, out=hidden_gradient[part])
            if weight_gradient is not None:
                if rows is not None:
                    gradient = gradient[:, rows]
                if dtype == exact:
                    weight_gradient.addmm_(gradient.T, h)
                else:
                    weight_gradient += gradient.T @ h

        if pivots is not None:
            greedy.index_add_(0, pivot_class, (right & highest_is_target[at]).long())
        cross_entropy = nll.sum() / n_items
        total = (nll * scale).sum() + pivot_weight * pivot_by_class.sum()

        ctx.shape, ctx.weight_shape, ctx.dtype = shape, weight.shape, dtype
        ctx.save_for_backward(kept, hidden_gradient, weight_gradient, rows)
        ctx.mark_non_differentiable(cross_entropy, pivot_by_class, correct, greedy)
        ctx.set_materialize_grads(False)
        return total, cross_entropy, pivot_by_class, correct, greedy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        none = (None,) * 11
        if upstream is None:
            return None, None, *none
        kept, hidden_gradient, weight_gradient, rows = ctx.saved_tensors
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient * upstream.to(ctx.dtype)
            if len(kept) < ctx.shape[0]:
                whole = hidden_gradient.new_zeros(ctx.shape)
                hidden_gradient = whole.index_copy_(0, kept, hidden_gradient)
        if weight_gradient is not None:
            weight_gradient = (weight_gradient * upstream).to(ctx.dtype)
            if rows is not None:
                whole = weight_gradient.new_zeros(ctx.weight_shape)
                weight_gradient = whole.index_copy_(0, rows, weight_gradient)
        return hidden_gradient, weight_gradient, *none


def _contrast(
    hidden: Tensor,
    weight: Tensor,
    pivot_class: Tensor,
    pivot_weight: float,
    contrast: str,
    class_counts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The pivot term of rows whose target is a pivot.

    hidden [P, H], weight [3, H], pivot_class [P] in 0..2. Returns the term by class [3], its
    gradient with respect to the three logits [P, 3], weighted, and whether the right pivot's logit
    exceeds both others [P].
    """
    logits = hidden.double() @ weight.double().T
    target = pivot_class[:, None]
    odds = (logits - logits.gather(1, target)).scatter_(1, target, -torch.inf)
    right = odds.amax(dim=1) < 0

    counts = class_counts.double()
    average = 1 / counts[pivot_class]
    if contrast == "paper":
        odds[:, 2] = -torch.inf
        average = torch.where(pivot_class == 2, 0, average)
    nll = torch.logaddexp(odds.logsumexp(dim=1), torch.zeros_like(average))
    by_class = torch.zeros_like(counts).index_add_(0, pivot_class, nll * average)
    rivals = (odds - nll[:, None]).exp()
    gradient = rivals.scatter(1, target, -rivals.sum(dim=1, keepdim=True))
    gradient *= pivot_weight * average[:, None]
    return by_class.to(class_counts.dtype), gradient.to(class_counts.dtype), right
