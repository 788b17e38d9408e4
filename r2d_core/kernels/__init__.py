"""Fused linear layer + cross-entropy + pivot contrast: implementations of one signature.

    kernel(hidden, weight, targets, pivots, *, pivot_weight, contrast, pivot_ce_weight, softcap,
           n_valid, denominators, weight_grad, rows, row_values) -> KernelResult

Arguments arrive checked and complete (`r2d_core.losses.r2d_loss` does that and says what each of
them means); ``pivots`` is the ids of (safe, unsafe, rethink) or None, ``n_valid`` the number of
targets that are not ignored; ``denominators()``, called once and behind the first product, gives
``n_items`` and ``class_counts``, Python's numbers or tensors on the device.
``weight`` and ``row_values`` may be wider than ``hidden``, in whose dtype the products are made.

    reference  the definition, plain autograd, logits held whole
    chunked    pure torch, logits in chunks, gradients made during the forward pass (CPU, CUDA)
    triton     the same loop, with Triton kernels between the products (CUDA)

Beside them `read_pivots`: the pivots' log-probabilities and the entropy at every position, again
without the logits.
"""

from __future__ import annotations

from collections.abc import Callable

from r2d_core.kernels.chunked import chunked_loss
from r2d_core.kernels.readout import PivotReading, read_pivots
from r2d_core.kernels.reference import KernelResult, reference_loss
from r2d_core.kernels.triton import triton_available, triton_loss

KERNELS: dict[str, Callable[..., KernelResult]] = {
    "reference": reference_loss,
    "chunked": chunked_loss,
    "triton": triton_loss,
}

__all__ = [
    "KERNELS",
    "KernelResult",
    "PivotReading",
    "chunked_loss",
    "read_pivots",
    "reference_loss",
    "triton_available",
    "triton_loss",
]
