"""What a training run is: every setting with its meaning, checked when it is made."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from r2d_core.adapters import LoraSettings
from r2d_core.checking import check_fields
from r2d_core.errors import InputError
from r2d_core.losses import Contrast, Impl


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Give ``max_steps`` or ``epochs``; the other defaults are the paper's.

    A step is one update of the weights, from ``batch_size * accumulation`` examples on each
    process. ``save_steps`` 0 keeps no checkpoints; ``eval_steps`` 0 evaluates at the end only.
    ``warmup_ratio`` is a share of all steps. ``group_by_length`` puts examples of like length into
    a step, which saves padding. ``pivot_weight``, ``contrast``, ``pivot_ce_weight`` and ``impl``
    are `r2d_loss`'s.

    ``kl_weight`` adds the divergence from the model as it was before training, on the targets of
    benign rows (`r2d_core.anchor`), divided by all targets of the step, as the cross-entropy is.
    ``normalize`` "micro_batch" takes the loss's means over each batch and adds them up, as the
    authors' code does: with ``accumulation`` 8 the gradient is about eight times that of "window".

    ``lora`` None trains every weight. ``packing`` lays the examples of a batch end to end instead
    of padding them; no example attends to another. ``gradient_checkpointing`` holds one activation
    a layer and computes the others again. ``bf16`` is autocast, with weights as they are.

    ``report_to`` "tensorboard" writes to output_dir/tensorboard; "wandb" sends the log to
    Weights & Biases, and is the only setting that sends anything anywhere.

    Raises InputError for a wrong type and a value out of range.
    """

    output_dir: str | os.PathLike[str]
    seed: int = 0
    max_steps: int | None = None
    epochs: float | None = None
    learning_rate: float = 2e-4
    batch_size: int = 32
    accumulation: int = 1
    warmup_ratio: float = 0.02
    weight_decay: float = 0.0
    lr_scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    max_grad_norm: float = 1.0
    group_by_length: bool = True
    bf16: bool = False
    packing: bool = False
    gradient_checkpointing: bool = False
    lora: LoraSettings | None = None
    pivot_weight: float = 1.0
    contrast: Contrast = "paper"
    pivot_ce_weight: float = 1.0
    impl: Impl = "auto"
    kl_weight: float = 0.0
    normalize: Literal["window", "micro_batch"] = "window"
    save_steps: int = 0
    eval_steps: int = 0
    logging_steps: int = 10
    report_to: Literal["none", "tensorboard", "wandb"] = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.output_dir, str | os.PathLike) or not os.fspath(self.output_dir):
            raise InputError(f"TrainConfig output_dir: expected a path, got {self.output_dir!r}")
        if os.path.isfile(self.output_dir):
            raise InputError(f"TrainConfig output_dir: expected a folder, {self.output_dir} is not")
        if not isinstance(self.lora, LoraSettings | None):
            raise InputError(f"TrainConfig lora: expected LoraSettings or None, got {self.lora!r}")
        check_fields(self, "TrainConfig", skip=("output_dir", "lora"))
        if (self.max_steps is None) == (self.epochs is None):
            raise InputError(
                "TrainConfig: expected either max_steps or epochs, "
                f"got max_steps={self.max_steps}, epochs={self.epochs}"
            )
        bounds = {
            "max_steps": (1, math.inf),
            "epochs": (1e-9, math.inf),
            "seed": (0, 2**32 - 1),
            "learning_rate": (0, math.inf),
            "batch_size": (1, math.inf),
            "accumulation": (1, math.inf),
            "warmup_ratio": (0, 0.999),
            "weight_decay": (0, math.inf),
            "max_grad_norm": (0, math.inf),
            "pivot_weight": (0, math.inf),
            "pivot_ce_weight": (0, math.inf),
            "kl_weight": (0, math.inf),
            "save_steps": (0, math.inf),
            "eval_steps": (0, math.inf),
            "logging_steps": (1, math.inf),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise InputError(
                    f"TrainConfig {name}: expected a number from {low:g} to {high:g}, got {value}"
                )
