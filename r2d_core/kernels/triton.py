"""The fused loss with Triton kernels between the matrix products, which stay cuBLAS's.

A chunk of logits is read twice and written once: a row is one program, which finds its logsumexp,
then overwrites the logits with their gradient. Its arithmetic is in float32 (float64 for
float64), that of the contrast in float64.

Kernels run on CUDA devices; on any other in Triton's interpreter, when TRITON_INTERPRET=1 was set
before Python started. There bfloat16 arithmetic is silently wrong (as of Triton 3.9), which is one
more reason to convert at every load.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from r2d_core.kernels.fused import Averages, RowTerms, Steps, fused_loss
from r2d_core.kernels.inputs import Pivots
from r2d_core.kernels.reference import KernelResult
from r2d_core.tokenization import IGNORED

# Of one row, what a program holds at one time, of it each of its threads 64 bytes; and the
# registers that a thread may use, of which nothing spills (compiled for sm_80 and sm_90). A row of
# 128 thousand then has a multiprocessor for itself, and is still in the cache when it is read
# again: on an H200 a fifth less time than with four rows at once.
BLOCK_BYTES = 2**16
BYTES_OF_A_WARP = 2**11
REGISTERS = 64
BLOCK_H = 1024
LANE = 8  # of bfloat16, the 16 bytes that a thread reads at once
BLOCK_COUNTED = 4096  # targets at one time
BLOCK_SUMMED = 1024  # rows whose terms are added at one time
BLOCK_SCALED, PROGRAMS_SCALING = 2048, 1024  # numbers at a time; programs, which share them out
ALIGNMENT = 64  # rows of logits begin at multiples of it: they are moved 16 bytes at a time


def triton_available(device: torch.device) -> bool:
    """Can the Triton kernels run on this device (or be interpreted for it)?"""
    if importlib.util.find_spec("triton") is None:
        return False
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia or os.environ.get("TRITON_INTERPRET") == "1"


def triton_loss(hidden: Tensor, *tensors: Any, **settings: Any) -> KernelResult:
    """`fused_loss` (which see for the arguments) with the kernels of this file.

    Raises NotImplementedError where they cannot run.
    """
    require_triton(hidden.device)
    return fused_loss(TRITON_STEPS, hidden, *tensors, **settings)


def require_triton(device: torch.device) -> None:
    """Raise NotImplementedError, with the mend, unless `triton_available`."""
    if not triton_available(device):
        missing = importlib.util.find_spec("triton") is None
        raise NotImplementedError(
            "impl='triton': "
            + ("the package triton is not installed" if missing else "")
            + (f"needs an NVIDIA GPU, the tensors are on {device}" if not missing else "")
            + "; use impl='auto' or impl='chunked'"
            + ("" if missing else ", or set TRITON_INTERPRET=1 before Python starts to try it here")
        )


def triton_counts(targets: Tensor, pivots: Pivots | None, vocabulary: int) -> Tensor:
    """What `torch_counts` counts, by one program: ten launches less before the first product."""
    require_triton(targets.device)
    from r2d_core.kernels import triton_kernels

    counts = targets.new_empty(5)
    with torch.cuda.device_of(targets):  # Triton launches on the current device
        triton_kernels.count_kernel[(1,)](
            targets,
            targets.stride(0),
            counts,
            len(targets),
            vocabulary,
            IGNORED,
            *(pivots or (-1, -1, -1)),
            BLOCK=BLOCK_COUNTED,
            num_warps=16,
        )
    return counts


def triton_rows(
    logits: Tensor,
    targets: Tensor,
    terms: RowTerms,
    pivots: Pivots | None,
    softcap: float | None,
    nll: Tensor,
    top: Tensor,
    backward: bool,
) -> Tensor:
    """What `torch_rows` computes, in place."""
    from r2d_core.kernels import triton_kernels

    n, vocabulary = logits.shape
    safe, unsafe, rethink = pivots or (-1, -1, -1)
    block, warps = block_of(vocabulary, logits.dtype, softcap is not None)
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        triton_kernels.row_kernel[(n,)](
            logits,
            logits.stride(0),
            targets,
            terms.scale,
            terms.scale if terms.gradient is None else terms.gradient,
            nll,
            top,
            vocabulary,
            safe,
            unsafe,
            rethink,
            softcap or 0.0,
            SOFTCAP=softcap is not None,
            BACKWARD=backward,
            BLOCK=block,
            LANE=min(LANE, block),
            num_warps=warps,
            maxnreg=REGISTERS,
        )
    return logits


def triton_contrast(
    hidden: Tensor,
    three: Tensor,
    targets: Tensor,
    pivots: Pivots,
    contrast: str,
    softcap: float | None,
    averages: Averages,
) -> RowTerms:
    """What `torch_contrast` computes, without waiting to learn how many rows have a pivot; in rows
    that have none all but the scale is left uninitialised.
    """
    from r2d_core.kernels import triton_kernels

    n, exact = len(targets), averages.n_items.dtype
    terms = RowTerms(
        hidden.new_empty(n, dtype=exact),
        hidden.new_empty(n, dtype=exact),
        hidden.new_empty(n, 3, dtype=exact),
        hidden.new_empty(n, dtype=torch.bool),
    )
    if n:
        with torch.cuda.device_of(hidden):  # Triton launches on the current device
            triton_kernels.contrast_kernel[(n,)](
                hidden,
                hidden.stride(0),
                hidden.stride(1),
                three,
                targets,
                averages.n_items,
                averages.class_counts,
                *terms,
                hidden.shape[1],
                *pivots,
                averages.pivot_weight,
                averages.pivot_ce_weight,
                softcap or 0.0,
                SOFTCAP=softcap is not None,
                ALL=contrast == "all",
                BLOCK=min(BLOCK_H, _power_of_two(hidden.shape[1])),
                num_warps=4,
            )
    return terms


def triton_sums(
    nll: Tensor,
    top: Tensor,
    terms: RowTerms,
    targets: Tensor,
    pivots: Pivots | None,
    averages: Averages,
) -> KernelResult:
    """What `torch_sums` computes, summed in float64, by one program."""
    from r2d_core.kernels import triton_kernels

    # Apart, not views of one: they are handed out.
    result = KernelResult(
        nll.new_empty(()),
        nll.new_empty(()),
        nll.new_empty(3),
        targets.new_empty(3),
        targets.new_empty(3),
    )
    with torch.cuda.device_of(nll):  # Triton launches on the current device
        triton_kernels.sum_kernel[(1,)](
            nll,
            top,
            *(nll if each is None else each for each in (terms.scale, terms.term, terms.right)),
            targets,
            averages.n_items,
            averages.class_counts,
            *result,
            len(targets),
            *(pivots or (-1, -1, -1)),
            averages.pivot_weight,
            PIVOTS=pivots is not None,
            BLOCK=BLOCK_SUMMED,
            num_warps=8,
        )
    return result


def triton_scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    """What `torch_scaled` computes; without a pass where it stays in place and upstream is 1."""
    from r2d_core.kernels import triton_kernels

    in_place = gradient.dtype == dtype and not keep
    # Dense, and in the order of ``gradient`` in memory, which has no gaps either.
    out = gradient if in_place else torch.empty_like(gradient, dtype=dtype)
    n = gradient.numel()
    if n:
        block = min(BLOCK_SCALED, _power_of_two(n))
        with torch.cuda.device_of(gradient):  # Triton launches on the current device
            triton_kernels.scale_kernel[(min(PROGRAMS_SCALING, -(-n // block)),)](
                gradient, upstream, out, n, IN_PLACE=in_place, BLOCK=block, num_warps=8
            )
    return out


def triton_readout(
    logits: Tensor, pivots: Pivots, softcap: float | None, log_probs: Tensor, entropy: Tensor
) -> None:
    """What `torch_readout` computes, in one reading of the logits."""
    from r2d_core.kernels import triton_kernels

    n, vocabulary = logits.shape
    block, warps = block_of(vocabulary, logits.dtype, softcap is not None)
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        triton_kernels.readout_kernel[(n,)](
            logits,
            logits.stride(0),
            log_probs,
            entropy,
            vocabulary,
            *pivots,
            softcap or 0.0,
            SOFTCAP=softcap is not None,
            BLOCK=block,
            LANE=min(LANE, block),
            num_warps=warps,
            maxnreg=REGISTERS,
        )


def block_of(vocabulary: int, dtype: torch.dtype, capped: bool) -> tuple[int, int]:
    """Logits of a row that a program takes at a time, and its warps.

    At most half of V rounded up: of a block that reaches beyond V, all is computed.
    """
    # A capped logit takes twice the registers.
    width = dtype.itemsize * (2 if capped else 1)
    block = max(1, min(BLOCK_BYTES // width, _power_of_two(vocabulary) // 2))
    return block, max(1, block * width // BYTES_OF_A_WARP)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _in_place(dtype: torch.dtype, slopes: bool) -> int:
    return 0


TRITON_STEPS = Steps(
    contrast=triton_contrast,
    rows=triton_rows,
    sums=triton_sums,
    scaled=triton_scaled,
    scratch=_in_place,
    alignment=ALIGNMENT,
)
