"""The layer that makes the logits, asked for the loss instead.

A model's forward pass ends in its output layer, and in Gemma 2 a soft cap after it. Here the
layer's forward is replaced for one call: it receives the hidden states and returns a scalar, so
that logits never exist. It stays inside the model's forward pass, where wrappers (autocast, DDP,
ZeRO, FSDP) expect its weight to be used and gather it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn

from r2d_core.adapters import trained_rows
from r2d_core.errors import InputError

FURTHER_STEPS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_soft_cap")
"""Names in configurations (Cohere's, Granite's, Falcon-H1's, RecurrentGemma's) for what is done to
logits after the linear layer."""


@dataclass(frozen=True)
class OutputLayer:
    """linear    the layer whose weight [V, H] makes the logits
    wrapper   PEFT's, of which ``linear`` is the frozen base, where only some rows are trained
    config    the model's configuration of text, which holds the soft cap
    """

    linear: nn.Linear
    wrapper: TrainableTokensWrapper | None
    config: Any

    @classmethod
    def of(cls, model: Any) -> OutputLayer:
        """The output layer of a causal model, plain or with PEFT's adapters.

        Raises InputError for logits that are more than a linear layer and a soft cap, where the
        layer or the configuration tells; `require_last` sees the rest.
        """
        head, config = model.get_output_embeddings(), model.config.get_text_config()
        wrapper = None
        if isinstance(head, TrainableTokensWrapper):
            wrapper, head = head, head.token_adapter.base_layer
        elif isinstance(head, ModulesToSaveWrapper):
            (name,) = head.active_adapters
            head = head.modules_to_save[name]
        scaled = [name for name in FURTHER_STEPS if getattr(config, name, None) not in (None, 1)]
        if not isinstance(head, nn.Linear) or head.bias is not None or scaled:
            reason = (
                f"the configuration has {scaled[0]}" if scaled else f"its output layer is {head}"
            )
            raise InputError(
                f"model {type(model).__name__}: expected logits that are a linear layer, without "
                f"bias, of the hidden states, but {reason}"
            )
        return cls(head, wrapper, config)

    @property
    def softcap(self) -> float | None:
        """logits = softcap · tanh(linear / softcap), or None."""
        cap = getattr(self.config, "final_logit_softcapping", None)
        return None if cap is None else float(cap)

    def loss_arguments(self) -> dict[str, Any]:
        """What `r2d_loss` is told of this layer: its weight and which part of it is trained.

        To be asked inside the layer's forward pass, when a sharded weight is whole.
        """
        weight = self.linear.weight
        if self.wrapper is None:
            return {
                "weight": weight,
                "weight_grad": "full" if weight.requires_grad else "none",
            }
        ids, values = trained_rows(self.wrapper)
        rows = torch.tensor(ids)
        return {"weight": weight, "weight_grad": "rows", "rows": rows, "row_values": values}

    def require_last(self, made: Tensor, returned: Tensor) -> None:
        """Raise InputError where a model did not return what `replaced_by` let this layer make.

        Values are compared, which waits for the device: a wrapper may return a copy, and under
        mixed precision (FSDP2's) one that is rounded.
        """
        rounded = [made.to(dtype).item() for dtype in (made.dtype, torch.bfloat16, torch.float16)]
        if returned.isfinite() and returned.item() not in rounded:
            raise InputError(
                f"model of {type(self.config).__name__}: expected logits that are a linear layer "
                "of the hidden states, but the model does more to them: its output layer made "
                f"{rounded[0]:.6g}, it returned {returned.item():.6g}"
            )

    @contextmanager
    def replaced_by(self, loss_of: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let the model's forward pass end in ``loss_of(hidden)`` [B, T, H] instead of logits."""
        with ExitStack() as stack:
            stack.enter_context(_set(self.linear, "forward", loss_of))
            if self.wrapper is not None:
                stack.enter_context(_set(self.wrapper, "forward", self.linear))
            if self.softcap is not None:  # it has its part in the loss, and none after it
                stack.enter_context(_set(self.config, "final_logit_softcapping", None))
            yield


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an attribute of ``owner`` itself, not of its class, be something else."""
    absent = object()
    own = vars(owner).get(name, absent)
    object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        if own is absent:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, own)
