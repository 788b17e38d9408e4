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
besides (DeepSpeed ZeRO, FSDP2), as the launch configuration says. Their program then ends with
`end_processes`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from r2d_core.adapters import (
    add_adapters,
    base_state,
    merge_adapters,
    new_token_ids,
    remove_adapters,
)
from r2d_core.anchor import AnchorCollator, FrozenBase, is_benign
from r2d_core.batching import PackingCollator, Row, TargetsCollator
from r2d_core.checkpoints import (
    fingerprint,
    finished_record,
    last_whole_checkpoint,
    sources_of,
)
from r2d_core.errors import InputError
from r2d_core.kernels.triton import require_triton
from r2d_core.output_layer import OutputLayer
from r2d_core.packed_attention import attention_by_example
from r2d_core.pivots import PivotIds
from r2d_core.records import atomic_directory, write_json_atomic
from r2d_core.run_lock import only_run_in
from r2d_core.tokenization import IGNORED, Collator
from r2d_core.train_config import TrainConfig
from r2d_core.trainer import R2DTrainer, RunLog, launch_engine, measured_lines

LONGEST_BUILD_S = 300
# transformers has renamed it after 5.17, and drops the old name with 6.
CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(TrainingArguments, "activation_checkpointing")
    else "gradient_checkpointing"
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
    finite, a folder that another process is training into, and ``kl_weight`` with rows that do not
    say whether they are benign or with weights that processes share out.
    """
    rows, held_out = list(train_rows), list(eval_rows or [])
    vocabulary = OutputLayer.of(model).linear.weight.shape[0]
    _check_rows("train_rows", rows, vocabulary)
    if eval_rows is not None:
        _check_rows("eval_rows", held_out, vocabulary)
    check_dtype(config, model.dtype)
    check_machine(config)
    if config.kl_weight and launch_engine() != "none":
        raise InputError(
            "TrainConfig kl_weight: expected 0 with DeepSpeed and FSDP, got "
            f"{config.kl_weight}: the frozen base is whole in every process; train without them"
        )
    # One process of a run speaks for all: when it ends, the launch ends the others.
    first = int(os.environ.get("RANK", 0)) == 0
    with only_run_in(Path(config.output_dir)) if first else nullcontext():
        return _run(config, model, tokenizer, rows, held_out)


def _run(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    held_out: list[Row],
) -> TrainResult:
    """`train`, when it is known that it can."""
    pivots = _pivots(config, tokenizer)
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    output = Path(config.output_dir)
    settings = [
        *_decisive(config, pivots, rows, held_out),
        _configuration(model),
        tokenizer.chat_template,  # is saved with the model
    ]
    run = fingerprint(settings, (rows, held_out), model)
    if (record := finished_record(output, run)) is not None:
        finished = TrainResult(output / "model", output / "log.jsonl", **record)
        trained = type(model).from_pretrained(finished.model_dir, dtype=model.dtype)
        model.load_state_dict(trained.state_dict())
        return finished

    checkpoints = output / f"checkpoints-{run}"
    run_log = RunLog(output / "log.jsonl")
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
            if first:
                _say_what_is_there(output, checkpoints, last)
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
        getattr(model, f"{CHECKPOINTING}_disable")()
    model.eval()

    history = measured_lines(trainer.state.log_history)
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
        if adapted is None:  # nor may another run's adapter lie beside this one's model
            shutil.rmtree(output / "adapter", ignore_errors=True)
        else:
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


def _say_what_is_there(output: Path, checkpoints: Path, last: str | None) -> None:
    """From where the run goes on; or what another run has left in its folder."""
    if last is not None:
        print(f"goes on from {last}")
        return
    other = "of another run, with other settings, data, model or number of processes"
    if others := sorted(set(output.glob("checkpoints-*")) - {checkpoints}):
        left = ", ".join(map(str, others))
        print(f"a new run; {left}: {other}; delete what is not to be resumed")
    if (output / "training.json").exists():
        print(
            f"a new run; {output / 'model'}: {other}; it stays, with its training.json, until this "
            "run has ended and takes its place"
        )


def check_machine(config: TrainConfig) -> None:
    """Raise InputError for an ``impl`` that cannot run here, and for a build that a kill left
    locked: DeepSpeed would wait for ever.
    """
    if config.impl == "triton":
        try:
            require_triton(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        except NotImplementedError as error:
            raise InputError(f"TrainConfig {error}") from None
    if launch_engine() != "deepspeed":
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
    """Raise InputError where whole weights of 16 bits would be trained without a float32 copy, and
    where float32 adapters would meet a model of 16 bits that does not compute in them.

    A step of 1e-5 on a weight of 0.1 is lost in bfloat16. DeepSpeed keeps a copy, FSDP2 trains in
    float32; `adapters.add_adapters` makes what it adds float32.
    """
    if config.lora and dtype != torch.float32 and not config.bf16:
        raise InputError(
            f"TrainConfig bf16: expected true for adapters on a model in {dtype}; set it, or load "
            "the model in float32 (dtype: float32 of a parameter set)"
        )
    if (
        config.lora is None
        and dtype not in (torch.float32, torch.float64)
        and launch_engine() == "none"
    ):
        raise InputError(
            f"TrainConfig lora: to train every weight of a model in {dtype} rounds small steps "
            "away; load it in float32 (bf16: true still computes in bfloat16), start it with "
            "DeepSpeed or FSDP2, or give lora"
        )


def _decisive(
    config: TrainConfig, pivots: PivotIds | None, rows: Sequence[Row], held_out: Sequence[Row]
) -> list[Any]:
    """All settings that decide what comes out, but not where it is written and kept meanwhile."""
    besides = {"output_dir", "save_steps", "report_to"}
    settings = {name: value for name, value in _as_json(config).items() if name not in besides}
    launch = [int(os.environ.get("WORLD_SIZE", 1)), launch_engine()]
    pivot_ids = dataclasses.astuple(pivots) if pivots else None
    benign = [is_benign(row) for row in rows] if config.kl_weight else []
    return [settings, launch, pivot_ids, len(rows), len(held_out), benign]


def _configuration(model: PreTrainedModel) -> dict[str, Any]:
    """What the weights do not show: how the norms and the positions are computed, for one."""
    besides = {"_name_or_path", "transformers_version", "use_cache"}
    besides |= {"architectures", "dtype"}  # which saving a model writes into it
    values = json.loads(model.config.to_json_string())
    return {name: value for name, value in values.items() if name not in besides}


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
    checkpointing: dict[str, Any] = {
        CHECKPOINTING: config.gradient_checkpointing,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},
    }
    try:
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
            **checkpointing,
            **_device_arguments(),
            logging_steps=config.logging_steps,
            logging_nan_inf_filter=False,  # hides a broken run, and reads the loss at every batch
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
    except ValueError as error:
        said = " ".join(str(error).split())
        raise InputError(f"TrainConfig: transformers refuses it on this machine: {said}") from None
    # Several GPUs are used by starting several processes (accelerate launch), not by DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _device_arguments() -> dict[str, Any]:
    if torch.cuda.is_available():
        return {}
    if launch_engine() == "none":
        return {"use_cpu": True}  # sums are in float64, which Apple's GPUs lack
    # With use_cpu, accelerate quietly turns to DDP; without a backend, to one process.
    return {"ddp_backend": "gloo"}


def _reports(config: TrainConfig, output: Path) -> list[TrainerCallback]:
    if config.report_to == "none":
        return []
    if importlib.util.find_spec(config.report_to) is None:
        raise InputError(
            f"TrainConfig report_to={config.report_to!r}: expected the library: pip install "
            f"{config.report_to}"
        )
    if config.report_to == "wandb":
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


def _as_json(config: TrainConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config), "output_dir": os.fspath(config.output_dir)}
