"""The definition of the loss, in plain torch. Every other kernel is tested against this one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from r2d_core.kernels.inputs import Denominators, on_device
from r2d_core.tokenization import IGNORED


class KernelResult(NamedTuple):
    """What every kernel gives back; only ``total`` carries gradients.

    Scalars and [3] vectors in float32 (float64 for float64 input), ``correct`` and ``greedy`` in
    int64; the classes are in the order safe, unsafe, rethink.
    """

    total: Tensor
    cross_entropy: Tensor
    pivot_by_class: Tensor
    correct: Tensor
    greedy: Tensor


def reference_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    pivots: tuple[int, int, int] | None,
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
) -> KernelResult:
    """Equations 3 and 4 of the R2D paper (arXiv 2502.12970), line by line."""
    weight = weight.to(hidden.dtype)
    if row_values is not None and rows is not None:
        weight = weight.detach().index_copy(0, rows, row_values.to(hidden.dtype))
    elif weight_grad == "none":
        weight = weight.detach()
    elif weight_grad == "rows":
        trained = torch.zeros(len(weight), 1, dtype=torch.bool, device=weight.device)
        trained[rows] = True
        weight = torch.where(trained, weight, weight.detach())

    valid = targets != IGNORED
    targets = targets[valid]
    logits = F.linear(hidden[valid], weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)

    items, counts = (on_device(each, logits.dtype, logits.device) for each in denominators())
    nll = F.cross_entropy(logits, targets, reduction="none")
    cross_entropy = nll.sum() / items
    zero = nll.sum() * 0
    if pivots is None:
        none = torch.zeros(3, dtype=torch.int64, device=nll.device)
        return KernelResult(
            cross_entropy, cross_entropy.detach(), zero.detach().expand(3), none, none
        )

    # [3, n]: where the target is [SAFE], where [UNSAFE], where [RETHINK].
    at = torch.stack([targets == pivot for pivot in pivots])
    weighted = torch.where(at.any(0), pivot_ce_weight * nll, nll).sum() / items

    three = logits[:, pivots]
    if contrast == "paper":
        margin = three[:, 0] - three[:, 1]
        terms = [-F.logsigmoid(margin)[at[0]].sum(), -F.logsigmoid(-margin)[at[1]].sum(), zero]
    else:
        log_p = three.log_softmax(dim=1)
        terms = [-log_p[at[c], c].sum() for c in range(3)]
    pivot_by_class = torch.stack(terms) / counts

    total = weighted + pivot_weight * pivot_by_class.sum()
    # A tie among pivots is not right: rows that start from one vector would all look right.
    correct, greedy = [], []
    highest = logits.amax(dim=1)
    for c in range(3):
        others = three[:, [other for other in range(3) if other != c]].amax(dim=1)
        right = at[c] & (three[:, c] > others)
        correct.append(right.sum())
        greedy.append((right & (three[:, c] >= highest)).sum())
    return KernelResult(
        total,
        cross_entropy.detach(),
        pivot_by_class.detach(),
        torch.stack(correct),
        torch.stack(greedy),
    )
