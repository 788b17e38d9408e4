"""Training with the R2D loss on the transformers Trainer.

    result = train(TrainConfig("results/run", epochs=1), model, tokenizer, train_rows, eval_rows)

leaves in ``output_dir``

    model/          the trained model and its tokenizer (safetensors), written at once at the end;
                    adapters are merged into it
    adapter/        with LoRA: the adapters alone, as PEFT saves them, and the tokenizer
    log.jsonl       what was measured, one JSON object a line
    training.json   the finished run: configuration, steps, seconds, last metrics, and the hash of
                    the code that trained it

and while it runs ``checkpoints-<run>/``, where <run> is a fingerprint of configuration, data and
initial model. A killed run goes on from its last whole checkpoint and ends as if it had not been
killed; a changed parameter is another run and starts afresh; a finished run is not run again.

Several processes (`accelerate launch`) share a run: by data (DDP), or with the weights sharded
besides (DeepSpeed ZeRO, FSDP2), as the launch configuration says.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from r2d_core.adapters import (
    LoraSettings,
    add_adapters,
    base_state,
    merge_adapters,
    new_token_ids,
    remove_adapters,
)
from r2d_core.anchor import BENIGN_LABELS, AnchorCollator, FrozenBase, is_benign
from r2d_core.batching import TARGETS, PackingCollator, Row, TargetsCollator, WindowSampler
from r2d_core.checking import mismatch
from r2d_core.checkpoints import (
    WHOLE,
    fingerprint,
    finished_record,
    last_whole_checkpoint,
    sources_of,
)
from r2d_core.errors import InputError
from r2d_core.losses import Contrast, Impl, R2DLoss, r2d_loss
from r2d_core.output_layer import OutputLayer
from r2d_core.packed_attention import LENGTHS, attention_by_example
from r2d_core.pivots import PivotIds
from r2d_core.records import atomic_directory, write_json_atomic, write_text_atomic
from r2d_core.tokenization import IGNORED, Collator

CLASSES = ("safe", "unsafe", "rethink")
LONGEST_BUILD_S = 300
NO_TARGET: Row = {"input_ids": [0], "labels": [IGNORED]}
"""The example that counts for nothing: it fills batches that come out uneven over processes."""


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
        if not isinstance(self.lora, LoraSettings | None):
            raise InputError(f"TrainConfig lora: expected LoraSettings or None, got {self.lora!r}")
        for name, annotation in get_type_hints(TrainConfig).items():
            if name in ("output_dir", "lora"):
                continue
            if problem := mismatch(getattr(self, name), annotation):
                raise InputError(f"TrainConfig {name}: {problem}")
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


@dataclass(frozen=True)
class TrainResult:
    """A finished run. ``seconds`` are those spent training, over all sessions of a resumed run;
    ``metrics`` are the last of each kind in the log: those of the last training steps, and under
    ``eval_…`` those of the evaluation split; ``sources`` the code that trained, each session's
    `source_sha256`.
    """

    model_dir: Path
    log: Path
    run: str
    steps: int
    seconds: float
    metrics: dict[str, float]
    sources: list[str]


def train(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Sequence[Row],
    eval_rows: Sequence[Row] | None = None,
) -> TrainResult:
    """Train ``model`` in place, save it to ``config.output_dir``, say what came of it.

    Rows are as `encode_example` makes them: ``input_ids`` and ``labels`` of one length, not
    shifted, -100 where nothing is learnt. Seeds the global random generators. When this very run is
    already finished there, its weights are loaded into ``model`` and its result is returned.

    With ``config.lora`` the adapters are merged into ``model`` at the end. Where processes share
    out the weights (ZeRO-3, FSDP2), ``model`` is left in pieces: load the trained one from
    ``model_dir``.

    Logged are, over the steps since the last line: ``loss`` (mean of the steps' objectives),
    ``cross_entropy`` (mean over all targets, whatever ``pivot_ce_weight`` is), ``pivot_loss`` (mean
    over each class, added), and for each pivot ``pivot_count_…``, ``pivot_accuracy_…`` (the right
    pivot beats the other two) and ``pivot_greedy_…`` (and every other token). On the evaluation
    split ``eval_loss`` is the objective of the whole split, as if it were one step.

    Raises InputError for rows that do not fit the model, a model whose logits are more than a
    linear layer of its hidden states and a soft cap, a tokenizer without pivots, a loss that is not
    finite, and ``kl_weight`` with rows that do not say whether they are benign or with weights that
    processes share out.
    """
    rows, held_out = list(train_rows), list(eval_rows or [])
    vocabulary = OutputLayer.of(model).linear.weight.shape[0]
    _check_rows("train_rows", rows, vocabulary)
    if eval_rows is not None:
        _check_rows("eval_rows", held_out, vocabulary)
    if config.lora and model.dtype != torch.float32 and not config.bf16:
        raise InputError(
            f"TrainConfig bf16: expected true for adapters on a model in {model.dtype}; set it, or "
            "load the model in float32"
        )
    check_dtype(config, model.dtype)
    check_builds()
    if config.kl_weight and _engine() != "none":
        raise InputError(
            "TrainConfig kl_weight: expected 0 with DeepSpeed and FSDP, got "
            f"{config.kl_weight}: the frozen base is whole in every process; train without them"
        )
    pivots = _pivots(config, tokenizer)
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    output = Path(config.output_dir)
    run = fingerprint(_decisive(config, pivots, rows, held_out), (rows, held_out), model)
    if (record := finished_record(output, run)) is not None:
        finished = TrainResult(output / "model", output / "log.jsonl", **record)
        trained = type(model).from_pretrained(finished.model_dir, dtype=model.dtype)
        model.load_state_dict(trained.state_dict())
        return finished

    checkpoints = output / f"checkpoints-{run}"
    run_log = _RunLog(output / "log.jsonl")
    model_class, use_cache = type(model), model.config.use_cache
    with attention_by_example(model) if config.packing else nullcontext():
        base = FrozenBase(model, model.device) if config.kl_weight else None
        collator = PackingCollator() if config.packing else Collator(pad_id)
        set_seed(config.seed)  # the adapters begin at random
        adapted = (
            add_adapters(model, config.lora, new_token_ids(tokenizer)) if config.lora else None
        )
        try:
            trainer = R2DTrainer(
                config=config,
                pivots=pivots,
                base=base,
                model=adapted or model,
                args=_arguments(config, checkpoints, evaluate=bool(held_out)),
                data_collator=TargetsCollator(
                    collator if base is None else AnchorCollator(collator)
                ),
                train_dataset=rows,
                # Like lengths together; the order has no bearing on a sum over the whole split.
                eval_dataset=sorted(held_out, key=lambda row: len(row["input_ids"])) or None,
                callbacks=[run_log, *_reports(config, output)],
            )
            run_log.trainer = trainer
            first = trainer.is_world_process_zero()
            last = last_whole_checkpoint(checkpoints, remove_broken=first)
            sources = sources_of(
                checkpoints, resumed=last is not None, note=first and config.save_steps > 0
            )
            trainer.train(resume_from_checkpoint=last)
        except BaseException:  # an interrupted cell, say, which will be run again
            if adapted is not None:
                remove_adapters(adapted)
            raise
        finally:
            # Trainer turns the cache off in the model's configuration, which is saved with it.
            model.config.use_cache = use_cache
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if config.gradient_checkpointing:
        model.activation_checkpointing_disable()
    model.eval()

    history = _measured(trainer.state.log_history)
    metrics = {name: value for line in history for name, value in line.items()}
    steps, seconds = trainer.state.global_step, metrics.pop("seconds")
    del metrics["step"], metrics["epoch"]
    result = TrainResult(
        output / "model", output / "log.jsonl", run, steps, seconds, metrics, sources
    )
    # A collective: every process takes part, the first has it whole.
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.sharded else None
    if first:
        # The record names the run that the model came from: it must not outlive that model.
        (output / "training.json").unlink(missing_ok=True)
        if adapted is not None:
            with atomic_directory(output / "adapter") as directory:
                adapted.save_pretrained(str(directory), state_dict=state)
                tokenizer.save_pretrained(directory)
    if state is None and adapted is not None:
        merge_adapters(adapted)
    if first:
        whole = model
        if state is not None:
            unset_hf_deepspeed_config()  # or from_pretrained would share out the weights again
            adapter = None if adapted is None else output / "adapter"
            whole = _put_together(model_class, model.config, state, adapter, model.dtype)
            whole.generation_config = model.generation_config  # the config alone does not know it
        with atomic_directory(result.model_dir) as directory:
            whole.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        write_json_atomic(
            output / "training.json",
            {
                "run": run,
                "config": _as_json(config),
                "train_rows": len(rows),
                "eval_rows": len(held_out),
                "steps": steps,
                "seconds": seconds,
                "metrics": metrics,
                "source_sha256": sources,
            },
        )
        shutil.rmtree(checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return result


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
            if base is None or base_hidden is None:
                return loss.total
            kl = base.divergence(
                hidden[benign], base_hidden[benign], softcap, head.loss_arguments()
            )
            self.divergence += torch.stack([kl.detach(), benign.sum()])
            return loss.total + self.config.kl_weight * kl / counts[0].clamp(min=1)

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
            if _engine() == engine and not on:
                raise RuntimeError(f"the launch asks for {engine}, which accelerate does not use")

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


class _RunLog(TrainerCallback):
    """Writes log.jsonl, and sees that nothing measured is lost between two sessions of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainer: R2DTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        lines = _measured(state.log_history)
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
        if state.is_world_process_zero and _measured(state.log_history[-1:]):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")


def _engine() -> Literal["none", "deepspeed", "fsdp"]:
    """What `accelerate launch` was configured to train with."""
    for engine in ("deepspeed", "fsdp"):
        if os.environ.get(f"ACCELERATE_USE_{engine.upper()}", "").lower() in ("true", "1"):
            return engine
    return "none"


def check_builds() -> None:
    """Raise InputError for a build that a kill left locked: DeepSpeed would wait for ever."""
    if _engine() != "deepspeed":
        return
    from torch.utils.cpp_extension import get_default_build_root  # slow to import

    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    root = Path(given or get_default_build_root())
    for lock in sorted(root.glob("*/lock" if given else "*/*/lock")):
        with suppress(FileNotFoundError):  # released meanwhile
            if (age := time.time() - lock.stat().st_mtime) > LONGEST_BUILD_S:
                raise InputError(
                    f"{lock}: a build that began {age / 60:.0f} minutes ago has not ended, and "
                    "DeepSpeed waits for it: delete the file if no training is starting elsewhere"
                )


def check_dtype(config: TrainConfig, dtype: torch.dtype) -> None:
    """Raise InputError where whole weights of 16 bits would be trained without a float32 copy.

    A step of 1e-5 on a weight of 0.1 is lost in bfloat16. DeepSpeed keeps a copy, FSDP2 trains in
    float32; `adapters.add_adapters` makes what it adds float32.
    """
    if config.lora is None and dtype not in (torch.float32, torch.float64) and _engine() == "none":
        raise InputError(
            f"TrainConfig lora: to train every weight of a model in {dtype} rounds small steps "
            "away; load it in float32 (bf16: true still computes in bfloat16), start it with "
            "DeepSpeed or FSDP2, or give lora"
        )


def _decisive(
    config: TrainConfig, pivots: PivotIds | None, rows: Sequence[Row], held_out: Sequence[Row]
) -> list[Any]:
    """All settings that decide what comes out, but not where it is written."""
    settings = {name: value for name, value in _as_json(config).items() if name != "output_dir"}
    launch = [int(os.environ.get("WORLD_SIZE", 1)), _engine()]
    pivot_ids = dataclasses.astuple(pivots) if pivots else None
    benign = [is_benign(row) for row in rows] if config.kl_weight else []
    return [settings, launch, pivot_ids, len(rows), len(held_out), benign]


def _put_together(
    model_class: type[PreTrainedModel],
    config: Any,
    state: dict[str, Tensor],
    adapter: Path | None,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """The whole trained model from a state that was gathered, the adapter merged into it."""
    if adapter is not None:
        state = base_state(state)
    model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model


def _arguments(config: TrainConfig, checkpoints: Path, *, evaluate: bool) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        seed=config.seed,
        max_steps=config.max_steps or -1,
        num_train_epochs=config.epochs or 0,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.lr_scheduler,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        **_device_arguments(),
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,  # it hides a broken run, and reads the loss at every batch
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        save_total_limit=2,  # while the newest is being written, one is whole
        eval_strategy="steps" if evaluate else "no",
        eval_steps=config.eval_steps or 10**9,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=False,
        report_to="none",
    )
    # Several GPUs are used by starting several processes (accelerate launch), not by DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _device_arguments() -> dict[str, Any]:
    if torch.cuda.is_available():
        return {}
    if _engine() == "none":
        return {"use_cpu": True}  # sums are in float64, which Apple's GPUs lack
    # With use_cpu, accelerate quietly turns to DDP; without a backend, to one process.
    return {"ddp_backend": "gloo"}


def _reports(config: TrainConfig, output: Path) -> list[TrainerCallback]:
    if config.report_to == "none":
        return []
    if config.report_to == "wandb":
        if importlib.util.find_spec("wandb") is None:
            raise InputError(
                "TrainConfig report_to='wandb': expected the library: pip install wandb"
            )
        return [WandbCallback()]
    if int(os.environ.get("RANK", 0)):
        return []  # every writer makes a file, and the first process alone reports
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return [TensorBoardCallback(SummaryWriter(str(output / "tensorboard")))]


def _pivots(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PivotIds | None:
    try:
        return PivotIds.from_tokenizer(tokenizer)
    except InputError:
        if config.pivot_weight == 0 and config.pivot_ce_weight == 1:
            return None  # plain cross-entropy asks for no pivots
        raise


def _check_rows(name: str, rows: Sequence[Row], vocabulary: int) -> None:
    if not rows:
        raise InputError(f"{name}: expected at least one example, got none")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not {"input_ids", "labels"} <= row.keys():
            raise InputError(f"{name}[{number}]: expected a dict with input_ids and labels")
        ids, labels = row["input_ids"], row["labels"]
        if len(ids) != len(labels) or not len(ids):
            raise InputError(
                f"{name}[{number}]: expected input_ids and labels of one length, "
                f"got {len(ids)} and {len(labels)}"
            )
        for field, values in (("input_ids", ids), ("labels", [y for y in labels if y != IGNORED])):
            if values and not 0 <= min(values) <= max(values) < vocabulary:
                raise InputError(
                    f"{name}[{number}] {field}: expected ids from 0 to {vocabulary - 1} (the rows "
                    f"of the embedding), got {min(values)} to {max(values)}; "
                    "was the vocabulary expanded?"
                )


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


def _measured(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the log: without Trainer's closing summary, which knows only this session."""
    return [line for line in history if "loss" in line or "eval_loss" in line]


def _as_json(config: TrainConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config), "output_dir": os.fspath(config.output_dir)}
