"""transformers' Trainer with the R2D loss in place of its own, and the loss's parts in the log."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from r2d_core.anchor import BENIGN_LABELS, FrozenBase
from r2d_core.batching import TARGETS, Row, WindowSampler
from r2d_core.checkpoints import WHOLE
from r2d_core.errors import InputError
from r2d_core.losses import R2DLoss, r2d_loss
from r2d_core.output_layer import OutputLayer
from r2d_core.packed_attention import LENGTHS
from r2d_core.pivots import PivotIds
from r2d_core.records import write_text_atomic
from r2d_core.tokenization import IGNORED
from r2d_core.train_config import TrainConfig

CLASSES = ("safe", "unsafe", "rethink")
NO_TARGET: Row = {"input_ids": [0], "labels": [IGNORED]}
"""The example that counts for nothing: it fills batches that come out uneven over processes."""


class R2DTrainer(Trainer):
    """Trainer with `r2d_loss` in the place of logits and loss, and its parts in the log."""

    # r2d_loss divides by the counts of the whole accumulation window.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        config: TrainConfig,
        pivots: PivotIds | None,
        base: FrozenBase | None = None,
        **trainer: Any,
    ) -> None:
        super().__init__(**trainer)
        self.head = OutputLayer.of(self.model)
        self.config = config
        self.pivots = pivots
        self.base = base
        if base is not None:
            base.model.to(self.args.device)
        held_out: Any = self.eval_dataset or []
        self._check_launch()
        self.fill = 0
        if (processes := self.accelerator.num_processes) > 1:
            # accelerate fills an uneven last batch with examples a second time; fill it with
            # examples that count for nothing instead.
            rows: Any = self.train_dataset
            window = self.args.per_device_train_batch_size * processes
            self.fill = -len(rows) % window
            self.train_dataset = rows + [NO_TARGET] * self.fill
            missing = -len(held_out) % (self.args.per_device_eval_batch_size * processes)
            self.eval_dataset = [NO_TARGET] * missing + held_out
        labels = [label for row in held_out for label in row["labels"][1:]]
        self.eval_counts = self._count(torch.tensor(labels, dtype=torch.int64))
        self.tally = self._nothing()
        self.divergence = self._nothing(2)
        self.loss_is_last = False
        self.seconds_before = 0.0
        self.started = time.monotonic()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The micro-batch's share of the window's loss.

        The model's output layer is asked for the loss instead of logits.
        """
        counts = num_items_in_batch if model.training else self.eval_counts
        per_batch = model.training and self.config.normalize == "micro_batch"
        if per_batch:
            counts = self._count(inputs["labels"][:, 1:])
        head, softcap = self.head, self.head.softcap
        targets = torch.from_numpy(inputs[TARGETS]).flatten()
        losses: list[R2DLoss] = []
        made: list[Tensor] = []

        def loss_of(hidden: Tensor) -> Tensor:
            loss = r2d_loss(
                hidden.flatten(0, 1),
                targets=targets,
                pivots=self.pivots,
                softcap=softcap,
                pivot_weight=self.config.pivot_weight,
                contrast=self.config.contrast,
                pivot_ce_weight=self.config.pivot_ce_weight,
                n_items=counts[0],
                class_counts=counts[1:],
                impl=self.config.impl,
                **head.loss_arguments(),
            )
            losses.append(loss)
            total = loss.total
            if base is not None and base_hidden is not None:
                kl = base.divergence(
                    hidden[benign], base_hidden[benign], softcap, head.loss_arguments()
                )
                self.divergence += torch.stack([kl.detach(), benign.sum()])
                total = total + self.config.kl_weight * kl / counts[0].clamp(min=1)
            made.append(total.detach())
            return total

        # No attention mask: padding is on the right, where causal attention never looks.
        names: tuple[str, ...] = ("input_ids", "position_ids", LENGTHS)
        read = {name: inputs[name] for name in names if name in inputs}
        base = self.base if model.training else None
        base_hidden = None
        if base is not None:
            base_hidden = base.hidden(read)
            benign = F.pad(inputs[BENIGN_LABELS][:, 1:], (0, 1), value=IGNORED) != IGNORED
        with head.replaced_by(loss_of):
            total = model(**read, use_cache=False).logits
        if not self.loss_is_last:
            head.require_last(made[0], total.detach())
            self.loss_is_last = bool(made[0])  # nought is nought whatever is done to it
        if self.is_fsdp_enabled:
            # FSDP2 rounds what a model returns to the dtype that it computes in; its gradient is 1.
            total = total + (made[0] - total.detach())
        self.tally += _tally(losses[0], counts)
        # Data-parallel training averages gradients over processes; ours are shares of one sum.
        if not per_batch:
            total = total * self.accelerator.num_processes
        return (total, {}) if return_outputs else total

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The window's batches and the denominators of its loss: int64 [4], targets in all and of
        each pivot class, over all processes.
        """
        batches = list(itertools.islice(epoch_iterator, num_batches))
        counts = self._nothing(4).long()
        for batch in batches:
            counts += self._count(batch["labels"][:, 1:])
        return batches, self.accelerator.reduce(counts, "sum")

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's loop, with the split's own loss and parts in place of a mean of batch means."""
        training_tally, self.tally = self.tally, self._nothing()
        output: Any = super().evaluation_loop(*args, **kwargs)
        total, summary = self._summary()
        self.tally = training_tally
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = total
        output.metrics.update({f"{prefix}_{name}": value for name, value in summary.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss and the seconds; stop at a loss that is not finite."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise InputError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: "
                    "lower learning_rate or max_grad_norm, or lengthen the warm-up"
                )
            logs.update(self._summary()[1])
            self.tally = self._nothing()
            if self.base is not None:
                kl, targets = self.accelerator.reduce(self.divergence, "sum").tolist()
                logs["kl_to_base"] = kl / max(targets, 1)
                self.divergence = self._nothing(2)
        logs["seconds"] = round(self.seconds_before + time.monotonic() - self.started, 3)
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: Trainer walks through all modules for it at every micro-batch."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> WindowSampler:
        rows: Any = self.train_dataset
        self.sampler = WindowSampler(
            [len(row["input_ids"]) for row in rows[: len(rows) - self.fill]],
            fill=self.fill,
            window=self.args.per_device_train_batch_size
            * self.args.gradient_accumulation_steps
            * self.accelerator.num_processes,
            seed=self.args.seed,
            group_by_length=self.config.group_by_length,
        )
        return self.sampler

    @property
    def sharded(self) -> bool:
        """Whether no process holds the whole model."""
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        return self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)

    def _check_launch(self) -> None:
        """Hold what accelerate made of the launch against what was asked for: it may ignore it."""
        asked = int(os.environ.get("WORLD_SIZE", 1))
        if self.accelerator.num_processes != asked:
            raise RuntimeError(f"{asked} processes run, {self.accelerator.num_processes} train")
        for engine, on in (
            ("deepspeed", self.is_deepspeed_enabled),
            ("fsdp", self.is_fsdp_enabled),
        ):
            if launch_engine() == engine and not on:
                wrong = f"the launch asks for {engine}, which accelerate does not use"
                if engine == "fsdp" and not torch.cuda.is_available():
                    raise InputError(f"{wrong}: FSDP2 needs GPUs; launch with DeepSpeed or DDP")
                raise RuntimeError(wrong)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            checkpoint = f"checkpoint-{self.state.global_step}"
            write_text_atomic(Path(str(self.args.output_dir), checkpoint, WHOLE), "")

    def _nothing(self, length: int = 15) -> Tensor:
        return torch.zeros(length, dtype=torch.float64, device=self.args.device)

    def _count(self, labels: Tensor) -> Tensor:
        ids = dataclasses.astuple(self.pivots)[:3] if self.pivots else (IGNORED - 1,) * 3
        counts = [(labels != IGNORED).sum(), *((labels == each).sum() for each in ids)]
        return torch.stack(counts).to(self.args.device)

    def _summary(self) -> tuple[float, dict[str, float]]:
        """Objective and parts of all that was tallied, over all processes."""
        tally = self.accelerator.reduce(self.tally, "sum").tolist()
        total, nll, items = tally[:3]
        pivot_nll, counts, correct, greedy = (tally[i : i + 3] for i in (3, 6, 9, 12))
        summary = {"targets": int(items), "cross_entropy": nll / max(items, 1)}
        if any(counts):
            summary["pivot_loss"] = sum(
                nll / count for nll, count in zip(pivot_nll, counts, strict=True) if count
            )
        for c, name in enumerate(CLASSES):
            if counts[c]:
                summary[f"pivot_count_{name}"] = int(counts[c])
                summary[f"pivot_accuracy_{name}"] = correct[c] / counts[c]
                summary[f"pivot_greedy_{name}"] = greedy[c] / counts[c]
        return total, summary


class RunLog(TrainerCallback):
    """Writes log.jsonl, and sees that nothing measured is lost between two sessions of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainer: R2DTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        lines = measured_lines(state.log_history)
        self.trainer.seconds_before = lines[-1]["seconds"] if lines else 0.0
        self.trainer.started = time.monotonic()
        if state.is_world_process_zero:
            # What a killed session wrote after its last checkpoint will be written again.
            write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # accelerate does not pass the epoch through to the sampler of a resumed, sharded loader.
        assert self.trainer is not None
        self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = state.global_step >= state.max_steps
        if last:
            control.should_save = False  # the finished model is saved instead
        if control.should_save or last:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and measured_lines(state.log_history[-1:]):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")


def _tally(loss: R2DLoss, counts: Tensor) -> Tensor:
    """Sums, float64 [15]: objective, NLL, targets; and by class NLL, targets, correct, greedy."""
    denominators = counts.clamp(min=1)
    return torch.cat(
        [
            loss.total.detach()[None].double(),
            (loss.cross_entropy * denominators[0])[None],
            loss.n_items[None],
            loss.pivot_by_class * denominators[1:],
            loss.counts,
            loss.correct,
            loss.greedy,
        ]
    )


def measured_lines(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the log: without Trainer's closing summary, which knows only this session."""
    return [line for line in history if "loss" in line or "eval_loss" in line]


def launch_engine() -> Literal["none", "deepspeed", "fsdp"]:
    """What `accelerate launch` was configured to train with."""
    for engine in ("deepspeed", "fsdp"):
        if os.environ.get(f"ACCELERATE_USE_{engine.upper()}", "").lower() in ("true", "1"):
            return engine
    return "none"
