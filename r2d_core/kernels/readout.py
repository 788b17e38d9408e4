"""What the model thinks of the pivots at every position, without the logits.

For telemetry during training, and for decoding that watches the pivots.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from r2d_core.checking import mismatch, unknown
from r2d_core.errors import InputError
from r2d_core.kernels.chunked import torch_readout, torch_scratch
from r2d_core.kernels.fused import bytes_at_a_time, logits_buffer
from r2d_core.kernels.inputs import Pivots, check_linear, check_softcap, pivot_ids
from r2d_core.kernels.triton import ALIGNMENT, require_triton, triton_available, triton_readout


class PivotReading(NamedTuple):
    """log_probs [N, 3] of safe, unsafe, rethink in the softmax over the whole vocabulary, and
    entropy [N] of that softmax, in nats; float32 (float64 for float64 input), no gradients.
    """

    log_probs: Tensor
    entropy: Tensor


@torch.no_grad()
def read_pivots(
    hidden: Tensor,
    weight: Tensor,
    pivots: Pivots,
    *,
    softcap: float | None = None,
    impl: Literal["auto", "chunked", "triton"] = "auto",
    chunk_bytes: int | None = None,
) -> PivotReading:
    """The naive code it equals, for hidden [N, H] and weight [V, H] of one dtype:

        log_p = (hidden @ weight.T).float().log_softmax(dim=1)
        PivotReading(log_p[:, pivots], -(log_p.exp() * log_p).sum(dim=1))

    with at most ``chunk_bytes`` of logits at a time (one row at least), and with ``softcap``
    softcap * tanh(logits / softcap) in the logits' place. ``pivots`` are the ids of safe, unsafe,
    rethink. Raises InputError for shapes, dtypes and ids that do not fit, NotImplementedError for
    "triton" where it cannot run.
    """
    check_linear(hidden, weight)
    check_softcap(softcap)
    ids = pivot_ids(pivots, len(weight))
    if ids is None:
        raise InputError(
            f"pivots: expected three ids from 0 to {len(weight) - 1} (the rows of weight), "
            f"as (safe, unsafe, rethink), got {pivots!r}"
        )
    if chunk_bytes is not None and (mismatch(chunk_bytes, int) or chunk_bytes < 1):
        raise InputError(f"chunk_bytes: expected None or 1 or more, got {chunk_bytes!r}")
    if impl == "auto":
        impl = "triton" if triton_available(hidden.device) and hidden.is_cuda else "chunked"
    if impl not in ("chunked", "triton"):
        raise InputError(unknown("impl", impl, ("auto", "chunked", "triton")))
    if impl == "triton":
        require_triton(hidden.device)
    readout, alignment, scratch = torch_readout, 1, torch_scratch(hidden.dtype, slopes=False)
    if impl == "triton":
        readout, alignment, scratch = triton_readout, ALIGNMENT, 0
    n = len(hidden)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    reading = PivotReading(hidden.new_empty(n, 3, dtype=exact), hidden.new_empty(n, dtype=exact))
    budget = bytes_at_a_time(hidden.device, chunk_bytes)
    buffer = logits_buffer(hidden, n, len(weight), alignment, scratch, budget)
    for begin in range(0, n, max(1, len(buffer))):
        part = slice(begin, begin + len(buffer))
        logits = torch.mm(hidden[part], weight.T, out=buffer[: len(hidden[part])])
        readout(logits, ids, softcap, reading.log_probs[part], reading.entropy[part])
    return reading
