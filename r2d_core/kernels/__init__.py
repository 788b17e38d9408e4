"""Fused linear layer + cross-entropy + pivot contrast: implementations of one signature.

    kernel(hidden, weight, targets, pivots, *, pivot_weight, contrast, pivot_ce_weight,
           n_items, class_counts, weight_grad, rows) -> KernelResult

Arguments arrive checked and complete (`r2d_core.losses.r2d_loss` does that and says what each of
them means); ``pivots`` is the ids of (safe, unsafe, rethink) or None, ``n_items`` and
``class_counts`` are the denominators, at least 1.

    reference  the definition, plain autograd, logits held whole
    chunked    pure torch, logits in chunks, gradients made during the forward pass
"""

from __future__ import annotations

from collections.abc import Callable

from r2d_core.kernels.chunked import chunked_loss
from r2d_core.kernels.reference import KernelResult, reference_loss

KERNELS: dict[str, Callable[..., KernelResult]] = {
    "reference": reference_loss,
    "chunked": chunked_loss,
}

__all__ = ["KERNELS", "KernelResult", "chunked_loss", "reference_loss"]
