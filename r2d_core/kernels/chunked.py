"""The fused loss in pure torch, for CPUs and GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r2d_core.kernels.fused import Averages, RowTerms, Steps, fused_loss
from r2d_core.kernels.inputs import Pivots
from r2d_core.kernels.reference import KernelResult
from r2d_core.tokenization import IGNORED


def chunked_loss(*tensors: Any, **settings: Any) -> KernelResult:
    """`fused_loss` (which see for the arguments) with the steps of this file."""
    return fused_loss(TORCH_STEPS, *tensors, **settings)


def torch_counts(targets: Tensor, pivots: Pivots | None, vocabulary: int) -> Tensor:
    """[5] int64 of targets [n]: how many are not ignored, how many are safe, unsafe and rethink,
    and how many are neither ignored nor ids.
    """
    valid = targets != IGNORED
    wrong = valid & ((targets < 0) | (targets >= vocabulary))
    of_class = [targets == each for each in pivots or (-1, -1, -1)]
    return torch.stack([valid, *of_class, wrong]).sum(dim=1)


def torch_rows(
    logits: Tensor,
    targets: Tensor,
    terms: RowTerms,
    pivots: Pivots | None,
    softcap: float | None,
    nll: Tensor,
    top: Tensor,
    backward: bool,
) -> Tensor:
    """Of each row: logsumexp(z) - z[target], and scale * (softmax(z) - onehot(target))."""
    scale = terms.scale
    z = logits.to(scale.dtype)
    slope = None
    if softcap is not None:
        z = z.div_(softcap).tanh_()
        slope = z.square().neg_().add_(1) if backward else None
        z.mul_(softcap)
    target = targets[:, None]
    highest, of_target = z.amax(dim=1, keepdim=True), z.gather(1, target)
    torch.ge(of_target.squeeze(1), highest.squeeze(1), out=top)
    torch.softmax(z, dim=1, out=z)  # in place, and in one reading of a row that fits the cache
    # The highest logit's share is 1 / sum of exp(z - highest).
    torch.sub((highest - of_target).squeeze(1), z.amax(dim=1).log_(), out=nll)
    if backward:
        z.mul_(scale[:, None]).scatter_add_(1, target, -scale[:, None])
        if slope is not None:
            z.mul_(slope)
        if pivots is not None and terms.gradient is not None:
            for column, pivot in enumerate(pivots):
                z[:, pivot] += terms.gradient[:, column]
    return logits if z is logits else logits.copy_(z)


def torch_scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    """In one pass."""
    fits = gradient.dtype == dtype and not keep
    out = gradient if fits else torch.empty_like(gradient, dtype=dtype)
    # As a scalar tensor it would be cast to the gradient's dtype, which may be narrower.
    return torch.mul(gradient, upstream.reshape(1, 1), out=out)


def torch_scratch(dtype: torch.dtype, slopes: bool) -> int:
    """Bytes a logit: of its copy, if that is wider, and of the soft cap's slope."""
    exact = torch.promote_types(dtype, torch.float32)
    return exact.itemsize * ((dtype != exact) + slopes)


def torch_contrast(
    hidden: Tensor,
    three: Tensor,
    targets: Tensor,
    pivots: Pivots,
    contrast: str,
    softcap: float | None,
    averages: Averages,
) -> RowTerms:
    """In float64, of the rows whose target is a pivot alone; nought in the others."""
    places, classes = torch.stack([targets == pivot for pivot in pivots], dim=1).nonzero().unbind(1)
    own = classes[:, None]
    h, w = hidden[places].double(), three.double()
    logits = h @ w.T
    # From the difference of the rows: that of the logits would cancel where the rows are alike.
    odds = torch.einsum("ph,pch->pc", h, w - w[classes][:, None])
    slope = torch.ones_like(logits)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
        slope = 1 - (logits / softcap).square()
        odds = logits - logits.gather(1, own)
    odds.scatter_(1, own, -torch.inf)
    right = odds.amax(dim=1) < 0

    if contrast == "paper":  # [SAFE] against [UNSAFE] and back
        odds[:, 2] = -torch.inf
        odds.masked_fill_(own == 2, -torch.inf)
    term = torch.logaddexp(odds.logsumexp(dim=1), torch.zeros_like(odds[:, 0]))
    share = (odds - term[:, None]).exp()
    gradient = share.scatter(1, own, -share.sum(dim=1, keepdim=True)) * slope

    n, exact = len(targets), averages.n_items.dtype
    gradient *= averages.pivot_weight / averages.class_counts[classes].double()[:, None]
    scale = (1 / averages.n_items).repeat(n)
    scale[places] *= averages.pivot_ce_weight
    term_of_all = hidden.new_zeros(n, dtype=exact)
    gradient_of_all = hidden.new_zeros(n, 3, dtype=exact)
    right_of_all = torch.zeros(n, dtype=torch.bool, device=hidden.device)
    term_of_all[places] = term.to(exact)
    gradient_of_all[places] = gradient.to(exact)
    right_of_all[places] = right
    return RowTerms(scale, term_of_all, gradient_of_all, right_of_all)


def torch_sums(
    nll: Tensor,
    top: Tensor,
    terms: RowTerms,
    targets: Tensor,
    pivots: Pivots | None,
    averages: Averages,
) -> KernelResult:
    """As `reference_loss` sums."""
    cross_entropy = nll.sum() / averages.n_items
    total = (nll * terms.scale).sum()
    if pivots is None or terms.term is None or terms.right is None:
        none = torch.zeros(3, dtype=torch.int64, device=nll.device)
        return KernelResult(total, cross_entropy, none.to(nll.dtype), none, none.clone())
    at = torch.stack([targets == pivot for pivot in pivots], dim=1)
    pivot_by_class = (terms.term[:, None] * at).sum(0) / averages.class_counts
    right = at & terms.right[:, None]
    return KernelResult(
        total + averages.pivot_weight * pivot_by_class.sum(),
        cross_entropy,
        pivot_by_class,
        right.sum(0),
        (right & top[:, None]).sum(0),
    )


def torch_readout(
    logits: Tensor, pivots: Pivots, softcap: float | None, log_probs: Tensor, entropy: Tensor
) -> None:
    """Of each row: the log-softmax at the pivots into log_probs [c, 3], its entropy into [c]."""
    z = logits.to(entropy.dtype)
    if softcap is not None:
        z = z.div_(softcap).tanh_().mul_(softcap)
    for column, pivot in enumerate(pivots):
        log_probs[:, column] = z[:, pivot]
    log_probs.sub_(z.amax(dim=1, keepdim=True))
    torch.softmax(z, dim=1, out=z)
    # The highest logit's share is 1 / sum of exp(z - highest).
    log_probs.add_(z.amax(dim=1, keepdim=True).log_())
    torch.sum(torch.special.entr(z, out=z), dim=1, out=entropy)


TORCH_STEPS = Steps(
    contrast=torch_contrast,
    rows=torch_rows,
    sums=torch_sums,
    scaled=torch_scaled,
    scratch=torch_scratch,
    alignment=1,
)
