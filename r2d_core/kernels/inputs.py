"""What the kernels can take, and errors that name what they cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor

from r2d_core.checking import mismatch
from r2d_core.errors import InputError

Pivots = tuple[int, int, int]
Denominator = float | Sequence[float] | Tensor
"""One number or three; a tensor where only the device knows them."""
Denominators = Callable[[], tuple[Denominator, Denominator]]
"""Gives n_items and class_counts, counted if need be: called once, behind the first product."""
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def check_linear(hidden: Tensor, weight: Tensor, *, autocast: bool = False) -> None:
    """Raise InputError unless hidden [N, H] and weight [V, H] go together.

    Under ``autocast``, to whose dtype hidden was cast, weight may be of any dtype it would cast.
    """
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if hidden.dim() != 2 or hidden.shape[1] == 0:
        mend = "; flatten it" if hidden.dim() > 2 else ""
        raise InputError(f"hidden: expected shape [N, H], got {list(hidden.shape)}{mend}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] == 0:
        raise InputError(
            f"weight: expected shape [V, {hidden.shape[1]}] to go with hidden "
            f"{list(hidden.shape)}, got {list(weight.shape)}"
        )
    if hidden.dtype not in DTYPES:
        by = ", which autocast made of it" if autocast and autocasts(hidden) else ""
        raise InputError(f"hidden: expected float32, bfloat16 or float64, got {hidden.dtype}{by}")
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


def on_device(numbers: Denominator, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[] or [3], at least 1. Filled there: a copy from the host would wait for it."""
    if isinstance(numbers, Tensor):
        return numbers.to(dtype)
    if not isinstance(numbers, Sequence):
        return torch.full((), max(numbers, 1), dtype=dtype, device=device)
    filled = torch.empty(len(numbers), dtype=dtype, device=device)
    for place, number in zip(filled, numbers, strict=True):
        place.fill_(max(number, 1))
    return filled
