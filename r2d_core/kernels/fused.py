"""The loss without the logits: the loop over chunks of rows that the fused kernels share.

Rows without a target are dropped before any product. Then, chunk by chunk: the logits of as many
rows as fit a byte budget (one matrix product); a row step that turns them in place into their
gradient and notes the loss; the gradients of hidden states and weight (a product each). The
backward pass only scales what the forward pass has made, where it lies if it can. Nothing in the
loop waits for the device, which begins with the first product: what is small is made ready behind
it.

A kernel is a `Steps`: how a chunk of logits becomes its gradient, and how the contrast is made.
The contrast needs three logits of the rows whose target is a pivot: it is made apart, from the
differences of the pivots' output rows, so that a small margin z_safe - z_unsafe does not drown in
the rounding of the logits; its gradient is one of rank one a row, added where the rows' own is.

A weight wider than the hidden states (float32 under autocast) is cast to their dtype as a whole
only where its gradient is as large; a frozen one a slice of the vocabulary at a time, product by
product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r2d_core.checking import mismatch
from r2d_core.errors import InputError
from r2d_core.kernels.reference import KernelResult
from r2d_core.tokenization import IGNORED

# Logits held at one time: enough to keep the matrix products busy, and to add few times to the
# weight's gradient, each time a pass over it. (On a CPU, chunks that fit the caches were slower.)
CPU_CHUNK_BYTES = 64 * 2**20
GPU_CHUNK_BYTES = 2**30
SLICES = 16  # a slice of a weight that is cast takes one part in so many of these bytes, besides

Pivots = tuple[int, int, int]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# Where a product of bfloat16 is summed in float32 and rounded once, at its end.
ROUNDING_ONCE = ("cuda",)
DEVICES = ("cpu", "cuda")  # where float64 is at hand, and where what is used here was tried


def bytes_at_a_time(device: torch.device, chunk_bytes: int | None) -> int:
    """The budget that was given, or the device's own."""
    if chunk_bytes is not None:
        return chunk_bytes
    return CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES


def bytes_of_logits(like: Tensor, n: int, vocabulary: int, alignment: int, scratch: int) -> int:
    """What n rows of logits take, each logit its own bytes and those of ``scratch`` besides; rows
    are apart by V rounded up to a multiple of ``alignment``.
    """
    stride = -(-vocabulary // alignment) * alignment
    return n * stride * (like.dtype.itemsize + scratch)


def logits_buffer(
    like: Tensor, n: int, vocabulary: int, alignment: int, scratch: int, budget: int
) -> Tensor:
    """[c, V] uninitialised: room for the logits of c of n rows at a time, one at least.

    n is cut into chunks of (almost) one size, as few as a ``budget`` of bytes allows for what is in
    `bytes_of_logits`.
    """
    most = max(1, budget // bytes_of_logits(like, 1, vocabulary, alignment, scratch))
    chunks = -(-n // most)
    stride = -(-vocabulary // alignment) * alignment
    return like.new_empty(-(-n // max(1, chunks)), stride)[:, :vocabulary]


def check_linear(hidden: Tensor, weight: Tensor, *, autocast: bool = False) -> None:
    """Raise InputError unless hidden [N, H] and weight [V, H] go together.

    Under ``autocast``, to whose dtype hidden was cast, weight may be of any dtype it would cast.
    """
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if hidden.dim() != 2:
        raise InputError(f"hidden: expected shape [N, H], got {list(hidden.shape)}; flatten it")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] == 0:
        raise InputError(
            f"weight: expected shape [V, {hidden.shape[1]}] to go with hidden "
            f"{list(hidden.shape)}, got {list(weight.shape)}"
        )
    if hidden.dtype not in DTYPES:
        raise InputError(f"hidden: expected float32, bfloat16 or float64, got {hidden.dtype}")
    castable = autocast and hidden.dtype != torch.float64 and autocasts(weight)
    if weight.dtype != hidden.dtype and not castable:
        raise InputError(f"weight: expected {hidden.dtype} like hidden, got {weight.dtype}")
    if weight.device != hidden.device:
        raise InputError(f"weight: expected on {hidden.device} like hidden, is {weight.device}")


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast would cast it: float64 it leaves alone."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def pivot_ids(pivots: object, vocabulary: int) -> Pivots | None:
    """(safe, unsafe, rethink) as Python's ints; None unless they are three rows of the weight."""
    if not isinstance(pivots, Sequence) or len(pivots) != 3:
        return None
    if not all(isinstance(each, Integral) and 0 <= int(each) < vocabulary for each in pivots):
        return None
    safe, unsafe, rethink = map(int, pivots)
    return safe, unsafe, rethink


def check_softcap(softcap: float | None) -> None:
    """Raise InputError unless it is None or a finite number above 0."""
    if softcap is not None and (mismatch(softcap, float) or not 0 < softcap < math.inf):
        raise InputError(f"softcap: expected None or a finite number above 0, got {softcap!r}")


class ContrastRows(NamedTuple):
    """The contrast row by row: nought in every row whose target is no pivot.

    term [n]         -log of the right pivot's share, float32 (float64 for float64 input)
    gradient [n, 3]  of term with respect to the logits of safe, unsafe, rethink, same dtype
    right [n]        bool: the right pivot's logit exceeds both others
    """

    term: Tensor
    gradient: Tensor
    right: Tensor


@dataclass(frozen=True)
class Steps:
    """What one kernel does its own way.

    rows(logits, targets, scale, contrast_gradient, pivots, softcap, nll, top, backward) -> gradient
        logits [c, V] may be overwritten; targets [c]; scale [c] multiplies each row's gradient;
        contrast_gradient [c, 3] is added at the pivots (None: no pivots). Writes nll [c] and
        top [c] (bool: no token's logit exceeds the target's). With ``backward`` returns the
        gradient [c, V] in the dtype of ``logits``.
    contrast(hidden, three, targets, pivots, contrast, softcap) -> ContrastRows
        hidden [n, H], three [3, H] the pivots' output rows.
    scaled(gradient, upstream, dtype, keep) -> Tensor
        gradient [n, k] * upstream, a scalar in float32 (float64) that is not rounded first; in
        ``dtype``, and in the memory of ``gradient`` if that is of ``dtype`` and not to be kept.
    scratch(dtype, slopes) -> bytes
        that ``rows`` needs besides, for each logit; ``slopes``: a soft cap's gradient is wanted.
    alignment
        the rows of ``logits`` are apart by V rounded up to a multiple of it.
    """

    rows: Callable[..., Tensor]
    contrast: Callable[..., ContrastRows]
    scaled: Callable[[Tensor, Tensor, torch.dtype, bool], Tensor]
    scratch: Callable[[torch.dtype, bool], int]
    alignment: int


def fused_loss(
    steps: Steps,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    pivots: Pivots | None,
    *,
    pivot_weight: float,
    contrast: str,
    pivot_ce_weight: float,
    softcap: float | None,
    n_valid: int,
    n_items: Tensor,
    class_counts: Tensor,
    weight_grad: str,
    rows: Tensor | None,
    row_values: Tensor | None,
    chunk_bytes: int | None = None,
) -> KernelResult:
    """`reference_loss`, with at most ``chunk_bytes`` of logits at a time (one row at least).

    The default is the device's own number of bytes. Where a weight in bfloat16 is trained, and the
    logits of all rows fit those and half of the bytes of a float32 sum of its gradient, they are
    made at once: no chunk is added to another, no such sum is needed, and no more is held.

    Raises NotImplementedError on a device that is none of `DEVICES`.
    """
    if hidden.device.type not in DEVICES:
        raise NotImplementedError(
            f"the fused loss: runs on {' and '.join(DEVICES)}, the tensors are on {hidden.device}; "
            "use impl='reference', which holds all logits"
        )
    exact = torch.promote_types(hidden.dtype, torch.float32)
    recording = torch.is_grad_enabled()
    trained = weight if row_values is None else row_values
    call = _Call(
        steps=steps,
        targets=targets,
        pivots=pivots,
        pivot_weight=pivot_weight,
        contrast=contrast,
        pivot_ce_weight=pivot_ce_weight,
        softcap=softcap,
        n_valid=n_valid,
        n_items=n_items.to(exact),
        class_counts=class_counts.to(exact),
        hidden_grad=recording and hidden.requires_grad,
        weight_grad=weight_grad if recording and trained.requires_grad else "none",
        rows=rows,
        chunk_bytes=chunk_bytes,
    )
    return KernelResult(*_apply(hidden, weight, row_values, call))


@dataclass(frozen=True)
class _Call:
    """All that a call brings besides the three tensors that may have gradients."""

    steps: Steps
    targets: Tensor
    pivots: Pivots | None
    pivot_weight: float
    contrast: str
    pivot_ce_weight: float
    softcap: float | None
    n_valid: int
    n_items: Tensor
    class_counts: Tensor
    hidden_grad: bool
    weight_grad: str
    rows: Tensor | None
    chunk_bytes: int | None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, row_values: Tensor | None, call: _Call
    ) -> tuple[Tensor, ...]:
        shape, dtype, exact = hidden.shape, hidden.dtype, call.n_items.dtype
        pivots, targets, rows = call.pivots, call.targets, call.rows
        weight_shape, weight_dtype = weight.shape, weight.dtype
        if row_values is not None:
            weight_dtype, row_values = row_values.dtype, row_values.to(dtype)
        if rows is None and call.weight_grad == "full":
            weight = weight.to(dtype)
        kept = None
        if call.n_valid < len(targets):
            # nonzero() would wait for the device to learn its own size, which is known here.
            kept = torch.nonzero_static(targets != IGNORED, size=call.n_valid).squeeze(1)
            hidden, targets = hidden.index_select(0, kept), targets.index_select(0, kept)
        targets = targets.contiguous()

        n, device = len(targets), hidden.device
        backward = call.hidden_grad or call.weight_grad != "none"
        scratch = call.steps.scratch(dtype, backward and call.softcap is not None)
        logits_shape = (len(weight), call.steps.alignment, scratch)
        budget, weight_sum = bytes_at_a_time(device, call.chunk_bytes), exact
        # What one product makes whole can be of its own dtype from the start.
        once = device.type in ROUNDING_ONCE and weight.dtype == dtype
        if once and rows is None and call.weight_grad == "full" and weight_dtype == dtype:
            if call.chunk_bytes is None:
                budget += weight.numel() * (exact.itemsize - dtype.itemsize)
            if bytes_of_logits(hidden, n, *logits_shape) <= budget:
                weight_sum = dtype
            else:
                budget = bytes_at_a_time(device, call.chunk_bytes)
        buffer = logits_buffer(hidden, n, *logits_shape, budget)
        sliced = bytes_at_a_time(device, call.chunk_bytes) // SLICES
        parts = [
            slice(begin, min(begin + len(buffer), n)) for begin in range(0, n, max(1, len(buffer)))
        ]
        # The first product before all that is small: a GPU is given the rest while it computes.
        logits = buffer
        if parts:
            logits_product(hidden[parts[0]], weight, logits, sliced)

        scale = (1 / call.n_items).repeat(n)
        right = contrast_gradient = None
        pivot_by_class = torch.zeros_like(call.class_counts)
        if pivots is not None:
            at = torch.stack([targets == pivot for pivot in pivots], dim=1)
            scale = torch.where(at.any(1), call.pivot_ce_weight * scale, scale)
            three = pivot_rows(weight, pivots, rows, row_values, dtype)
            term, contrast_gradient, right = call.steps.contrast(
                hidden, three, targets, pivots, call.contrast, call.softcap
            )
            pivot_by_class = (term[:, None] * at).sum(0) / call.class_counts
            average = (at * (call.pivot_weight / call.class_counts)).sum(1, keepdim=True)
            contrast_gradient = contrast_gradient * average

        hidden_gradient = weight_gradient = None
        if call.hidden_grad:
            hidden_sum = dtype if once and row_values is None else exact
            hidden_gradient = torch.empty_like(hidden, dtype=hidden_sum)
        if call.weight_grad != "none":
            shape_of_it = weight_shape if rows is None else (len(rows), weight_shape[1])
            make = torch.empty if n else torch.zeros
            weight_gradient = make(shape_of_it, dtype=weight_sum, device=device)

        nll = torch.empty_like(scale)
        top = torch.empty_like(targets, dtype=torch.bool)
        for part in parts:
            h = hidden[part]
            if part.start:
                logits = logits_product(h, weight, buffer[: len(h)], sliced)
            if row_values is not None and rows is not None:
                logits.index_copy_(1, rows, h @ row_values.T)
            gradient = call.steps.rows(
                logits,
                targets[part],
                scale[part],
                None if contrast_gradient is None else contrast_gradient[part],
                pivots,
                call.softcap,
                nll[part],
                top[part],
                backward,
            )
            if not backward:
                continue
            trained = gradient
            if rows is not None:
                trained = gradient.index_select(1, rows)
                if row_values is not None:
                    # The rows of weight that row_values stand for have no part in the logits.
                    gradient.index_fill_(1, rows, 0)
            if hidden_gradient is not None:
                hidden_product(gradient, weight, hidden_gradient[part], sliced)
                if row_values is not None:
                    add_product_(hidden_gradient[part], trained.T, row_values, sliced)
            if weight_gradient is not None:
                add_product_(weight_gradient, trained, h, sliced, first=not part.start)

        cross_entropy = nll.sum() / call.n_items
        total = (nll * scale).sum() + call.pivot_weight * pivot_by_class.sum()
        if right is None:
            correct = greedy = torch.zeros(3, dtype=torch.int64, device=hidden.device)
        else:
            correct, greedy = (at & right[:, None]).sum(0), (at & (right & top)[:, None]).sum(0)

        ctx.shape, ctx.dtype = shape, dtype
        ctx.weight_shape, ctx.weight_dtype = weight_shape, weight_dtype
        ctx.of_row_values = row_values is not None
        ctx.scaled = call.steps.scaled
        ctx.save_for_backward(kept, hidden_gradient, weight_gradient, rows)
        ctx.mark_non_differentiable(cross_entropy, pivot_by_class, correct, greedy)
        ctx.set_materialize_grads(False)
        return total, cross_entropy, pivot_by_class, correct, greedy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        if upstream is None:
            return None, None, None, None
        kept, hidden_gradient, weight_gradient, rows = ctx.saved_tensors
        keep = graph_is_kept()
        if hidden_gradient is not None:
            hidden_gradient = ctx.scaled(hidden_gradient, upstream, ctx.dtype, keep)
            if kept is not None:
                whole = hidden_gradient.new_zeros(ctx.shape)
                hidden_gradient = whole.index_copy_(0, kept, hidden_gradient)
        if weight_gradient is not None:
            weight_gradient = ctx.scaled(weight_gradient, upstream, ctx.weight_dtype, keep)
            if ctx.of_row_values:
                return hidden_gradient, None, weight_gradient, None
            if rows is not None:
                whole = weight_gradient.new_zeros(ctx.weight_shape)
                weight_gradient = whole.index_copy_(0, rows, weight_gradient)
        return hidden_gradient, weight_gradient, None, None


@torch.compiler.disable
def _apply(*arguments: Any) -> tuple[Tensor, ...]:
    """A compiled caller calls it as it is: its shapes depend on the targets."""
    return _Fused.apply(*arguments)


def pivot_rows(
    weight: Tensor,
    pivots: Pivots,
    rows: Tensor | None,
    row_values: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """[3, H]: the pivots' output rows, from ``row_values`` where it stands for them."""
    three = torch.stack([weight[pivot] for pivot in pivots]).to(dtype)
    if rows is None or row_values is None:
        return three
    same = torch.stack([rows == pivot for pivot in pivots])
    return torch.where(
        same.any(1, keepdim=True), row_values.index_select(0, same.long().argmax(1)), three
    )


def graph_is_kept() -> bool:
    """Whether the backward pass that is under way may be repeated (``retain_graph``): what it reads
    must then stay as it is.
    """
    # Nothing public tells (as of torch 2.13); torch's own compiled functions ask here, too.
    return torch._C._autograd._get_current_graph_task_keep_graph()


def weight_slices(
    weight: Tensor, dtype: torch.dtype, width: int, size: int
) -> Iterator[tuple[slice, Tensor]]:
    """The weight in ``dtype``: as it is, or where it must be cast, so many rows at once that
    ``width`` numbers for each take at most ``size`` bytes (one row at least).
    """
    if weight.dtype == dtype:
        yield slice(None), weight
        return
    step = max(1, size // (width * dtype.itemsize))
    for begin in range(0, len(weight), step):
        part = slice(begin, begin + step)
        yield part, weight[part].to(dtype)


def logits_product(hidden: Tensor, weight: Tensor, out: Tensor, size: int) -> Tensor:
    """out [c, V] = hidden [c, H] @ weight [V, H].T, in hidden's dtype; see `weight_slices`."""
    for part, rows in weight_slices(weight, hidden.dtype, weight.shape[1], size):
        torch.mm(hidden, rows.T, out=out[:, part])
    return out


def hidden_product(gradient: Tensor, weight: Tensor, out: Tensor, size: int) -> None:
    """out [c, H] = gradient [c, V] @ weight [V, H], summed in ``out``'s dtype."""
    # A CPU would round a product of bfloat16 to bfloat16.
    dtype = gradient.dtype if out.is_cuda else out.dtype
    for part, rows in weight_slices(weight, dtype, max(out.shape), size):
        add_product_(out, gradient[:, part].T.to(dtype), rows, size, first=not part.start)


def add_product_(
    total: Tensor, gradient: Tensor, hidden: Tensor, size: int, *, first: bool = False
) -> None:
    """total [R, H] += gradient [c, R].T @ hidden [c, H], summed in ``total``'s dtype.

    The first product is not added: ``total`` is not initialised before it.
    """
    beta = 0 if first else 1
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, hidden, beta=beta)
    elif total.is_cuda:
        # cuBLAS adds to the float32 sum itself: no bfloat16 product in between, no second pass.
        torch.addmm(total, gradient.T, hidden, beta=beta, out_dtype=total.dtype, out=total)
    else:
        # A CPU would round the product to bfloat16; cast at most ``size`` bytes at once.
        hidden = hidden.to(total.dtype)
        step = max(1, size // (len(gradient) * total.dtype.itemsize))
        for begin in range(0, len(total), step):
            part = slice(begin, begin + step)
            total[part].addmm_(gradient[:, part].T.to(total.dtype), hidden, beta=beta)
