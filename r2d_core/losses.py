"""The one public loss: next-token cross-entropy and the pivot contrast, from hidden states.

The authors of R2D call the contrast CPO; here it is the pivot loss, because elsewhere CPO means
contrastive *preference* optimization.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from r2d_core.checking import mismatch, unknown
from r2d_core.errors import InputError
from r2d_core.kernels import KERNELS, triton_available
from r2d_core.kernels.chunked import torch_counts
from r2d_core.kernels.inputs import (
    Denominator,
    Pivots,
    autocasts,
    check_linear,
    check_softcap,
    pivot_ids,
)
from r2d_core.kernels.triton import triton_counts
from r2d_core.pivots import PivotIds
from r2d_core.tokenization import IGNORED

Contrast = Literal["paper", "all"]
WeightGrad = Literal["full", "rows", "none"]
Impl = Literal["auto", "reference", "chunked", "triton"]


@dataclass(frozen=True)
class R2DLoss:
    """One call's loss. Only ``total`` carries gradients; vectors are (safe, unsafe, rethink).

    total           scalar, what to minimise
    cross_entropy   scalar, plain mean over the targets, whatever ``pivot_ce_weight`` is
    pivot           scalar, the contrast before ``pivot_weight``
    pivot_by_class  [3], its parts
    n_items         valid targets in this call (int64), which need not be the denominator
    counts          [3] int64, targets of each class in this call
    correct         [3] int64, of those: the right pivot's logit exceeds the two other pivots'
    greedy          [3] int64, of those: and no other token's logit is higher
    """

    total: Tensor
    cross_entropy: Tensor
    pivot: Tensor
    pivot_by_class: Tensor
    n_items: Tensor
    counts: Tensor
    correct: Tensor
    greedy: Tensor

    @property
    def pivot_accuracy(self) -> Tensor:
        """[3]: share of each class's targets that is ``correct``; nan for a class not present."""
        return self.correct / self.counts


@torch.compiler.disable  # as it is, in a compiled caller: its shapes depend on the targets
def r2d_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    pivots: PivotIds | None,
    *,
    pivot_weight: float = 1.0,
    contrast: Contrast = "paper",
    pivot_ce_weight: float = 1.0,
    softcap: float | None = None,
    n_items: int | Tensor | None = None,
    class_counts: Sequence[int] | Tensor | None = None,
    weight_grad: WeightGrad = "full",
    rows: Tensor | None = None,
    row_values: Tensor | None = None,
    impl: Impl = "auto",
) -> R2DLoss:
    """Cross-entropy of every target plus the contrast between pivots.

    hidden [N, H] and weight [V, H] (the output layer, without bias) share a dtype: float32,
    bfloat16 or float64; under autocast all but float64 is cast to its dtype (a frozen weight piece
    by piece), and gradients are in the dtypes that were given. targets [N] (int64) are already
    shifted: hidden[i] predicts targets[i]; -100 is ignored. With z = hidden @ weight.T:

    cross-entropy  sum of -log softmax(z_i)[y_i] / n_items. ``pivot_ce_weight`` multiplies the terms
                   whose target is a pivot and leaves the denominator: the control "is it the
                   contrast, or only the weight?"
    contrast       "paper" (arXiv 2502.12970, equation 4): -log sigmoid(z_safe - z_unsafe) where the
                   target is [SAFE], -log sigmoid(z_unsafe - z_safe) where it is [UNSAFE], averaged
                   over each class and added; [RETHINK] takes part in the cross-entropy only.
                   "all": -log of the softmax over the three pivots' logits, averaged over each of
                   the three classes and added.
    total          cross-entropy + pivot_weight * contrast.

    ``pivots`` None means that there are none: plain cross-entropy. ``n_items`` and ``class_counts``
    (safe, unsafe, rethink) are the denominators where the loss is accumulated over several calls:
    counted over the whole accumulation window and all ranks, so that the calls' totals add up to
    the loss of the window. Default: counted here. Where nothing is counted, the term is 0.

    softcap      z = softcap * tanh(hidden @ weight.T / softcap), as Gemma 2 has it.

    weight_grad  "full"; "none", weight is frozen; "rows", only ``rows`` (ids [R]) of it are
                 trained: the gradient is zero elsewhere and a third of the work is saved. With
                 ``row_values`` [R, H] besides, they stand for those rows and have the gradient,
                 weight has none: nothing of the size of weight is made.

    impl "reference" is the definition, and holds all logits in float32. "chunked" and "triton" hold
    those of some rows at a time, in hidden's dtype (how many: `kernels.fused.fused_loss`), and make
    the gradients in the forward pass: no second derivatives. "auto" is "triton" on a CUDA device
    that has it, else "chunked", which runs on CPUs and GPUs of CUDA. `torch.compile` breaks its
    graph at a call (there is no ``fullgraph``).

    The device is waited for before the first product, to learn how many targets are not ignored,
    and for rows; and with "triton" once more when it has been given all of the forward pass, until
    the first product is done, to learn whether the targets are ids. Targets and rows that lie on
    the CPU are not waited for.

    Raises InputError for wrong shapes, dtypes, devices, ids, numbers and names, and for numbers
    as denominators that are less than what this call counts; NotImplementedError for an ``impl``
    that cannot run where the tensors are, and in a backward pass that is to be differentiated
    (``create_graph``) for the two that cannot.
    """
    for name, number in (("pivot_weight", pivot_weight), ("pivot_ce_weight", pivot_ce_weight)):
        if problem := mismatch(number, float):
            raise InputError(f"{name}: {problem}")
        if not math.isfinite(number):
            raise InputError(f"{name}: expected a finite number, got {number!r}")
    for name, choice, choices in (
        ("contrast", contrast, Contrast),
        ("weight_grad", weight_grad, WeightGrad),
    ):
        if problem := mismatch(choice, choices):
            raise InputError(f"{name}: {problem}")
    if impl not in get_args(Impl):
        raise InputError(unknown("impl", impl, get_args(Impl)))
    check_softcap(softcap)

    device = hidden.device.type if isinstance(hidden, Tensor) else "cpu"
    autocast = torch.is_autocast_enabled(device)
    if autocast and isinstance(hidden, Tensor) and autocasts(hidden):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    check_linear(hidden, weight, autocast=autocast)
    if impl == "auto":
        impl = "triton" if hidden.is_cuda and triton_available(hidden.device) else "chunked"
    _check_targets(targets, hidden)
    behind = impl == "triton" and targets.device == hidden.device
    # A GPU counts while the rest is looked at.
    ignored = (targets == IGNORED).sum() if behind else None
    ids = None if pivots is None else _pivot_ids(pivots, weight.shape[0])
    rows = _check_rows(rows, row_values, weight_grad, weight)
    items = _denominator("n_items", n_items, [], hidden.device)
    by_class = _denominator("class_counts", class_counts, [3], hidden.device)
    counts = _Counts(targets, ids, weight.shape[0], hidden.device)
    if ignored is None:
        counts.make(torch_counts)
        n_valid = counts.checked(items, by_class)
    else:
        n_valid = len(targets) - int(ignored)

    def denominators() -> tuple[Denominator, Denominator]:
        if behind:
            counts.make(triton_counts)
        return (
            counts.made[0].clamp(min=1) if items is None else items,
            counts.made[1:4].clamp(min=1) if by_class is None else by_class,
        )

    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        result = KERNELS[impl](
            hidden,
            weight,
            _moved(targets, hidden.device),
            ids,
            pivot_weight=pivot_weight,
            contrast=contrast,
            pivot_ce_weight=pivot_ce_weight,
            softcap=softcap,
            n_valid=n_valid,
            denominators=denominators,
            weight_grad=weight_grad,
            rows=rows,
            row_values=row_values,
        )
    if behind:
        counts.checked(items, by_class)
    return R2DLoss(
        total=result.total,
        cross_entropy=result.cross_entropy,
        pivot=result.pivot_by_class.sum(),
        pivot_by_class=result.pivot_by_class,
        n_items=counts.made[0],
        counts=counts.made[1:4],
        correct=result.correct,
        greedy=result.greedy,
    )


class _Counts:
    """What is counted of a call's targets, [5] as `torch_counts` has it.

    A GPU counts when it is told to, and is not waited for until the numbers are read: it may be
    given the first product before and all others after.
    """

    made: Tensor  # on the loss's device

    def __init__(
        self, targets: Tensor, ids: Pivots | None, vocabulary: int, device: torch.device
    ) -> None:
        self.targets, self.ids, self.vocabulary, self.device = targets, ids, vocabulary, device

    def make(self, count: Callable[[Tensor, Pivots | None, int], Tensor]) -> None:
        counted = self.read = count(self.targets, self.ids, self.vocabulary)
        self.made = _moved(counted, self.device)
        if counted.is_cuda:
            # To wait for this copy is not to wait for what the device is given after it.
            self.read = torch.empty_like(counted, device="cpu", pin_memory=True)
            self.read.copy_(counted, non_blocking=True)
            self.copied = torch.cuda.current_stream(counted.device).record_event()

    def checked(self, n_items: Denominator | None, class_counts: Denominator | None) -> int:
        """How many are not ignored.

        Raises InputError unless targets are ids, and denominators that are numbers at least what is
        counted here.
        """
        if self.targets.is_cuda:
            self.copied.synchronize()
        n_valid, *by_class, n_wrong = self.read.tolist()
        if n_wrong:
            targets = self.targets
            wrong = (targets != IGNORED) & ((targets < 0) | (targets >= self.vocabulary))
            raise InputError(
                f"targets: expected ids from 0 to {self.vocabulary - 1} (the rows of weight) or "
                f"{IGNORED}, got {targets[wrong][0].item()} at position "
                f"{wrong.nonzero()[0].item()}"
            )
        if isinstance(n_items, Real) and n_items < n_valid:
            raise InputError(_too_few("n_items", n_valid, n_items))
        if isinstance(class_counts, Sequence) and any(map(operator.lt, class_counts, by_class)):
            raise InputError(_too_few("class_counts", by_class, class_counts))
        return n_valid


def _too_few(name: str, counted: object, given: object) -> str:
    return (
        f"{name}: expected counts over the whole window, at least this call's own {counted}, "
        f"got {given!r}"
    )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Without waiting for the device: a copy from memory that is not pinned waits for all that the
    device was given to do before.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _check_targets(targets: Tensor, hidden: Tensor) -> None:
    if not isinstance(targets, Tensor):
        raise InputError(f"targets: expected a tensor, got {type(targets).__name__}")
    if targets.shape != hidden.shape[:1]:
        raise InputError(
            f"targets: expected shape [{hidden.shape[0]}], one a row of hidden, "
            f"got {list(targets.shape)}"
        )
    if targets.dtype != torch.int64:
        raise InputError(f"targets: expected torch.int64, got {targets.dtype}")
    if targets.device != hidden.device and targets.device.type != "cpu":
        raise InputError(
            f"targets: expected on {hidden.device} like hidden or on the CPU, is {targets.device}"
        )


def _pivot_ids(pivots: PivotIds, vocabulary: int) -> Pivots:
    names = ("safe", "unsafe", "rethink")
    if not all(hasattr(pivots, name) for name in names):
        raise InputError(
            f"pivots: expected PivotIds or None, got {pivots!r}; "
            "make them with PivotIds.from_tokenizer"
        )
    given = [getattr(pivots, name) for name in names]
    ids = pivot_ids(given, vocabulary)
    if ids is None or len(set(ids)) < 3:
        raise InputError(
            f"pivots: expected three different ids from 0 to {vocabulary - 1} (the rows of "
            f"weight), got safe={given[0]!r}, unsafe={given[1]!r}, rethink={given[2]!r}; "
            "was the vocabulary expanded?"
        )
    return ids


def _check_rows(
    rows: Tensor | None, row_values: Tensor | None, weight_grad: str, weight: Tensor
) -> Tensor | None:
    if (rows is None) != (weight_grad != "rows"):
        raise InputError(
            "rows: expected with weight_grad='rows' and only then, "
            f"got rows={'None' if rows is None else 'ids'} with weight_grad={weight_grad!r}"
        )
    if rows is None:
        if row_values is not None:
            raise InputError("row_values: expected with weight_grad='rows' and rows only")
        return None
    if not isinstance(rows, Tensor) or rows.dim() != 1 or rows.dtype != torch.int64:
        raise InputError("rows: expected a 1-d int64 tensor of token ids")
    if rows.device != weight.device and rows.device.type != "cpu":
        raise InputError(
            f"rows: expected on {weight.device} like weight or on the CPU, is {rows.device}"
        )
    ids = rows.tolist()
    if not all(0 <= each < weight.shape[0] for each in ids) or len(set(ids)) < len(ids):
        raise InputError(f"rows: expected different ids from 0 to {weight.shape[0] - 1}, got {ids}")
    if row_values is not None:
        if not isinstance(row_values, Tensor):
            raise InputError(f"row_values: expected a tensor, got {type(row_values).__name__}")
        shape = [len(rows), weight.shape[1]]
        if list(row_values.shape) != shape or row_values.device != weight.device:
            raise InputError(
                f"row_values: expected shape {shape}, one row for each of rows, "
                f"on {weight.device} like weight, got {list(row_values.shape)} on "
                f"{row_values.device}"
            )
        if not row_values.is_floating_point():
            raise InputError(f"row_values: expected floating point numbers, got {row_values.dtype}")
    return _moved(rows, weight.device)


def _denominator(
    name: str,
    given: int | Sequence[int] | Tensor | None,
    expected: list[int],
    device: torch.device,
) -> Denominator | None:
    """Of the ``expected`` shape, [] or [3], and no less than 1: a term without targets is 0 / 1.

    A tensor on a GPU is not read, which would be to wait for it.
    """
    if given is None:
        return None
    if isinstance(given, np.ndarray) or (isinstance(given, Tensor) and given.is_cpu):
        given = given.tolist()
    if isinstance(given, Tensor):
        if given.device != device:
            raise InputError(f"{name}: expected on {device} or the CPU, is {given.device}")
        shape = list(given.shape)
    else:
        shape = [len(given)] if isinstance(given, Sequence) else []
    if shape != expected:
        raise InputError(
            f"{name}: expected {'three counts' if expected else 'one count'}, got shape {shape}"
        )
    if isinstance(given, Tensor):
        return given.clamp(min=1)
    numbers = given if isinstance(given, Sequence) else [given]
    if not all(_is_count(each) for each in numbers):
        raise InputError(f"{name}: expected counts of 0 or more, got {given!r}")
    return given


def _is_count(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf
