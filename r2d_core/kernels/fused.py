"""The loss without the logits: the loop over chunks of rows that the fused kernels share.

Rows without a target are dropped before any product. Then, chunk by chunk: the logits of as many
rows as fit a byte budget (one matrix product); a row step that turns them in place into their
gradient and notes the loss; the gradients of hidden states and weight (a product each). The
backward pass only scales what the forward pass has made, where it lies if it can. Nothing in the
loop waits for the device, which begins with the first product: what is small is made ready behind
it.

A kernel is a `Steps`: how the contrast is made, how a chunk of logits becomes its gradient, and how
the rows' terms become the loss. The contrast needs three logits of the rows whose target is a
pivot: it is made apart, from the differences of the pivots' output rows, so that a small margin
z_safe - z_unsafe does not drown in the rounding of the logits; its gradient is one of rank one a
row, added where the rows' own is.

A weight wider than the hidden states (float32 under autocast) is cast to their dtype as a whole
only where its gradient is as large; a frozen one a slice of the vocabulary at a time, product by
product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from r2d_core.kernels.inputs import Denominators, Pivots, on_device
from r2d_core.kernels.reference import KernelResult
from r2d_core.tokenization import IGNORED

# Logits held at one time: enough to keep the matrix products busy, and to add few times to the
# weight's gradient, each time a pass over it. (On a CPU, chunks that fit the caches were slower.)
CPU_CHUNK_BYTES = 64 * 2**20
GPU_CHUNK_BYTES = 2**30
SLICES = 16  # a slice of a weight that is cast takes one part in so many of these bytes, besides

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
    `bytes_of_logits`. Where they can they begin at multiples of 16 rows: Triton compiles a kernel
    anew for pointers that are aligned otherwise.
    """
    most = max(1, budget // bytes_of_logits(like, 1, vocabulary, alignment, scratch))
    rows = -(-n // max(1, -(-n // most)))
    if rows < n:
        rows = min(-(-rows // 16) * 16, most // 16 * 16) or rows
    stride = -(-vocabulary // alignment) * alignment
    return like.new_empty(rows, stride)[:, :vocabulary]


class Averages(NamedTuple):
    """What the rows' terms count for in the total.

    n_items scalar, class_counts [3], in float32 (float64 for float64 input), at least 1
    """

    n_items: Tensor
    class_counts: Tensor
    pivot_weight: float
    pivot_ce_weight: float


class RowTerms(NamedTuple):
    """What is known of each row before its logits. Without pivots there is the scale alone; with
    them the rest says something of the rows whose target is one.

    scale [n]        what the row's cross-entropy counts for, float32 (float64 for float64 input)
    term [n]         -log of the right pivot's share, same dtype
    gradient [n, 3]  of the total with respect to the logits of safe, unsafe, rethink, by the
                     contrast alone, same dtype
    right [n]        bool: the right pivot's logit exceeds both others
    """

    scale: Tensor
    term: Tensor | None = None
    gradient: Tensor | None = None
    right: Tensor | None = None

    def of(self, part: slice) -> RowTerms:
        """Those of some rows."""
        scale, *others = self
        return RowTerms(scale[part], *(None if each is None else each[part] for each in others))


@dataclass(frozen=True)
class Steps:
    """What one kernel does its own way.

    contrast(hidden, three, targets, pivots, contrast, softcap, averages) -> RowTerms
        hidden [n, H], three [3, H] the pivots' output rows, targets [n].
    rows(logits, targets, terms, pivots, softcap, nll, top, backward) -> gradient
        logits [c, V] may be overwritten; targets [c]; terms of these rows. Writes nll [c] and
        top [c] (bool: no token's logit exceeds the target's). With ``backward`` returns the
        gradient [c, V] in the dtype of ``logits``: that of scale * nll, and the contrast's added at
        the pivots.
    sums(nll, top, terms, targets, pivots, averages) -> KernelResult
        of all n rows.
    scaled(gradient, upstream, dtype, keep) -> Tensor
        gradient [n, k] * upstream, a scalar in float32 (float64) that is not rounded first; in
        ``dtype``, and in the memory of ``gradient`` if that is of ``dtype`` and not to be kept.
    scratch(dtype, slopes) -> bytes
        that ``rows`` needs besides, for each logit; ``slopes``: a soft cap's gradient is wanted.
    alignment
        the rows of ``logits`` are apart by V rounded up to a multiple of it.
    """

    contrast: Callable[..., RowTerms]
    rows: Callable[..., Tensor]
    sums: Callable[..., KernelResult]
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
    denominators: Denominators,
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
    recording = torch.is_grad_enabled()
    trained = weight if row_values is None else row_values
    call = _Call(
        steps=steps,
        targets=targets,
        pivots=pivots,
        contrast=contrast,
        softcap=softcap,
        pivot_weight=float(pivot_weight),
        pivot_ce_weight=float(pivot_ce_weight),
        n_valid=n_valid,
        denominators=denominators,
        hidden_grad=recording and hidden.requires_grad,
        weight_grad=weight_grad if recording and trained.requires_grad else "none",
        rows=rows,
        chunk_bytes=chunk_bytes,
    )
    # What gets no gradient is no input of the graph: without any, there is none to go back through.
    if call.weight_grad == "none":
        weight = weight.detach() if weight.requires_grad else weight
        row_values = row_values if row_values is None else row_values.detach()
    return KernelResult(*_Fused.apply(hidden, weight, row_values, call))


@dataclass(slots=True)
class _Call:
    """All that a call brings besides the three tensors that may have gradients."""

    steps: Steps
    targets: Tensor
    pivots: Pivots | None
    contrast: str
    softcap: float | None
    pivot_weight: float
    pivot_ce_weight: float
    n_valid: int
    denominators: Denominators
    hidden_grad: bool
    weight_grad: str
    rows: Tensor | None
    chunk_bytes: int | None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, row_values: Tensor | None, call: _Call
    ) -> tuple[Tensor, ...]:
        shape, dtype = hidden.shape, hidden.dtype
        exact = torch.promote_types(dtype, torch.float32)
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

        n_items, class_counts = call.denominators()
        averages = Averages(
            on_device(n_items, exact, device),
            on_device(class_counts, exact, device),
            call.pivot_weight,
            call.pivot_ce_weight,
        )
        if pivots is None:
            terms = RowTerms((1 / averages.n_items).repeat(n))
        else:
            three = pivot_rows(weight, pivots, rows, row_values, dtype)
            terms = call.steps.contrast(
                hidden, three, targets, pivots, call.contrast, call.softcap, averages
            )

        hidden_gradient = weight_gradient = None
        if call.hidden_grad:
            hidden_sum = dtype if once and row_values is None else exact
            hidden_gradient = torch.empty_like(hidden, dtype=hidden_sum)
        if call.weight_grad != "none":
            shape_of_it = weight_shape if rows is None else (len(rows), weight_shape[1])
            make = torch.empty if n else torch.zeros
            weight_gradient = make(shape_of_it, dtype=weight_sum, device=device)

        nll = torch.empty_like(terms.scale)
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
                terms.of(part),
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

        result = call.steps.sums(nll, top, terms, targets, pivots, averages)

        ctx.shape, ctx.dtype = shape, dtype
        ctx.weight_shape, ctx.weight_dtype = weight_shape, weight_dtype
        ctx.of_row_values = row_values is not None
        ctx.scaled = call.steps.scaled
        ctx.save_for_backward(kept, hidden_gradient, weight_gradient, rows)
        ctx.mark_non_differentiable(*result[1:])
        ctx.set_materialize_grads(False)
        return tuple(result)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        if upstream is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # create_graph
            raise NotImplementedError(
                "the fused loss: its gradients have none of their own (create_graph); "
                "use impl='reference', which holds all logits"
            )
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


def pivot_rows(
    weight: Tensor,
    pivots: Pivots,
    rows: Tensor | None,
    row_values: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """[3, H]: the pivots' output rows, from ``row_values`` where it stands for them."""
    three = torch.stack([weight[pivot] for pivot in pivots]).to(dtype)
    if rows is None or row_values is None or not len(rows):
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
