"""One real model's training: a YAML file in experiments/models, read and checked before any work.

    title: Llama-3-8B-Instruct
    model: meta-llama/Meta-Llama-3-8B-Instruct   # a name on the hub, or a folder
    shape: {model_type: llama, hidden_size: 4096, …}   # its configuration, for planning offline
    train: {epochs: 1, batch_size: 2, …}         # of `training.TrainConfig`
    lora: {rank: 64, …}                          # of `adapters.LoraSettings`; null trains all

`experiments/train.py` runs it, alone or under `accelerate launch`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from r2d_core.adapters import LoraSettings
from r2d_core.anchor import mark_benign
from r2d_core.authors_recipe import (
    THEIR_DATA,
    THEIR_LORA,
    THEIR_PROCESSES,
    THEIR_TRAINING,
    authors_row,
    pivots_by_position,
)
from r2d_core.batching import Row
from r2d_core.checking import check_fields, unknown
from r2d_core.datasets import R2D_R1, read_trajectories, training_rows
from r2d_core.decontamination import compare
from r2d_core.errors import InputError
from r2d_core.pivots import PivotIds, expand_vocabulary
from r2d_core.planning import Plan, Sharing, plan_training
from r2d_core.pretrained import loaded
from r2d_core.processes import LAUNCHER
from r2d_core.records import read_behaviors
from r2d_core.tokenization import CHAT_TEMPLATES, install_chat_template
from r2d_core.training import TrainConfig, TrainResult, check_dtype, check_machine, train
from r2d_core.trajectories import Trajectory
from r2d_core.yaml_text import parse_yaml

Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]
R2D_R1_ROWS = 52_520
"""Rows of the authors' data, as the paper counts them."""
# What the file says elsewhere, the command line says, or follows from the number of processes.
NOT_OF_THE_FILE = frozenset({"output_dir", "accumulation", "lora"})


@dataclass(frozen=True)
class ParameterSet:
    """How one model is trained.

    Attributes:
        title: the model as one writes it.
        model: its name on the hub, or a folder; ``revision`` a commit of it.
        shape: its configuration, ``model_type`` and sizes, so that it can be planned for offline.
        chat_template: one of `CHAT_TEMPLATES`, or None for the tokenizer's own.
        attention: "auto" takes flash attention where it is installed, there is a GPU and it
            computes in bfloat16, else SDPA; where the scores are capped (Gemma 2), which SDPA
            cannot do, eager.
        dtype: of the weights. Where all of them are trained, and neither DeepSpeed nor FSDP2
            keeps a float32 copy, it has to be "float32".
        data: a data set on the hub, or a file (`datasets.read_trajectories`); ``columns`` are its
            names for instruction, input and output, where they are others, ``split`` and
            ``data_revision`` those of the hub.
        exclude: files of behaviors, of any suite, that the model will be evaluated on: examples
            whose instruction is too like one of them (`decontamination.compare`) are left out.
        harmful: files of behaviors whose prompts are the harmful instructions of the data, for
            ``kl_weight``: all other examples are benign.
        max_length: tokens; longer examples are left out.
        global_batch: examples a step, over all processes and accumulated batches.
        held_out: examples kept from training, drawn by the seed; the loss is evaluated on them.
        train: settings of `TrainConfig`.
        lora: settings of `LoraSettings`; None trains every weight.
        recipe: "r2d", or "paper": the authors' run, its defects included (`authors_recipe`). Their
            settings stand in place of the file's, which keeps seed, checkpoints and logs:
            adapters, schedule, global_batch, nothing held out, and no example left out for its
            length (``max_length`` is the plan's). Examples have their beginnings of sequence and no
            chat template, and where their arithmetic misses the pivots' rows (an embedding longer
            than its tokenizer, a `<think>` that was there) there is no contrast, as with them.

    Raises InputError "key: what was expected".
    """

    title: str
    model: str
    shape: dict[str, Any]
    train: dict[str, Any]
    lora: dict[str, Any] | None = field(default_factory=dict)
    revision: str | None = None
    chat_template: str | None = None
    attention: Attention = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    data: str = R2D_R1
    columns: dict[str, str] = field(default_factory=dict)
    split: str = "train"
    data_revision: str | None = None
    exclude: list[str] = field(default_factory=list)
    harmful: list[str] = field(default_factory=list)
    max_length: int = 4096
    global_batch: int = 32
    held_out: int = 256
    recipe: Literal["r2d", "paper"] = "r2d"

    def __post_init__(self) -> None:
        if self.recipe == "paper":
            for name, value in THEIR_DATA.items():
                object.__setattr__(self, name, value)
        check_fields(self)
        if self.chat_template is not None and self.chat_template not in CHAT_TEMPLATES:
            raise InputError(
                f"chat_template: {unknown('template', self.chat_template, CHAT_TEMPLATES)}"
            )
        if self.max_length < 1 or self.global_batch < 1 or self.held_out < 0:
            raise InputError("max_length, global_batch: expected 1 or more; held_out: 0 or more")
        if self.train_config("checked", processes=1).kl_weight and not self.harmful:
            raise InputError(
                "train: kl_weight: expected files in 'harmful' with it, whose instructions are not "
                "benign: the data does not say which are"
            )
        _ = self.configuration

    @property
    def configuration(self) -> PreTrainedConfig:
        """The model's configuration, from ``shape``."""
        shape = dict(self.shape)
        family = shape.pop("model_type", "")
        try:
            default = AutoConfig.for_model(family)
            _known("shape", shape, {*vars(default), *default.attribute_map})
            return AutoConfig.for_model(family, **shape)
        except InputError:
            raise
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise InputError(f"shape: {' '.join(str(error).split())}") from None

    @property
    def lora_settings(self) -> LoraSettings | None:
        if self.lora is None:
            if self.recipe == "paper":
                raise InputError("lora: expected settings, since the recipe 'paper' has adapters")
            return None
        _known("lora", self.lora, {each.name for each in dataclasses.fields(LoraSettings)})
        return LoraSettings(**THEIR_LORA if self.recipe == "paper" else self.lora)

    def train_config(self, output: str | os.PathLike[str], processes: int) -> TrainConfig:
        """The settings of a run on so many processes.

        Raises InputError when ``global_batch`` is no multiple of ``batch_size`` times processes.
        """
        fields = {each.name for each in dataclasses.fields(TrainConfig)} - NOT_OF_THE_FILE
        _known("train", self.train, fields)
        settings = {"batch_size": 1} | self.train
        if self.recipe == "paper":
            settings |= THEIR_TRAINING
        step = settings["batch_size"] * processes if isinstance(settings["batch_size"], int) else 1
        if step < 1 or self.global_batch % step:
            raise InputError(
                f"global_batch: expected a multiple of {settings['batch_size']} examples on each "
                f"of {processes} processes, got {self.global_batch}"
            )
        return TrainConfig(
            output,
            accumulation=self.global_batch // step,
            lora=self.lora_settings,
            **settings,
        )

    def plan(
        self,
        *,
        gpus: int,
        sharing: Sharing = "ddp",
        examples: int = R2D_R1_ROWS,
        mean_tokens: int = 1000,
        **hardware: Any,
    ) -> Plan:
        """`plan_training` of this run: memory at the longest examples, hours at the mean.

        ``examples`` are those of the data, seen ``epochs`` times; with ``max_steps`` their number
        does not matter. ``hardware``: ``gpu_bytes``, ``peak_flops``, ``utilisation``. InputError
        for what so many GPUs could not begin, as in `train_config`.
        """
        config = self.train_config("planned", processes=gpus)
        if config.max_steps is not None:
            seen: float = config.max_steps * self.global_batch
        else:
            seen = (config.epochs or 0) * examples
        return plan_training(
            self.configuration,
            config.lora,
            length=self.max_length,
            batch_size=config.batch_size,
            gpus=gpus,
            sharing=sharing,
            gradient_checkpointing=config.gradient_checkpointing,
            dtype=getattr(torch, self.dtype),
            bf16=config.bf16,
            frozen_base=config.kl_weight > 0,
            tokens=max(1, round(seen * mean_tokens)),
            **hardware,
        )


def read_parameter_set(path: str | os.PathLike[str], **others: Any) -> ParameterSet:
    """Read a file of experiments/models; ``others`` are settings in the place of its own.

    Raises InputError "file: key: what was expected".
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; correct the name") from None
    try:
        content = parse_yaml(text)
        if not isinstance(content, dict):
            raise InputError(f"expected keys and values, got {type(content).__name__}")
        content |= others
        fields = dataclasses.fields(ParameterSet)
        _known("the file", content, {each.name for each in fields})
        for each in fields[:4]:
            if each.name not in content:
                example = "; model_type and sizes, as in the model's config.json"
                raise InputError(f"{each.name}: missing{example if each.name == 'shape' else ''}")
        return ParameterSet(**content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def train_parameter_set(parameters: ParameterSet, output: str | os.PathLike[str]) -> TrainResult:
    """Load model and data, expand the vocabulary, train; `training.train` says what is written.

    Beside it ``validation.json`` says which rows of the data were left out, and why, and
    ``decontamination.json`` which for being too like what the model will be evaluated on.

    Raises InputError for whatever of it cannot be had.
    """
    config = parameters.train_config(output, int(os.environ.get("WORLD_SIZE", 1)))
    check_dtype(config, getattr(torch, parameters.dtype))  # before gigabytes are loaded
    check_machine(config)
    name, revision, dtype = parameters.model, parameters.revision, getattr(torch, parameters.dtype)
    tokenizer = loaded(name, AutoTokenizer.from_pretrained, revision=revision)
    configuration = loaded(name, AutoConfig.from_pretrained, revision=revision)
    attention = choose_attention(
        parameters.attention, configuration, torch.bfloat16 if config.bf16 else dtype
    )
    model = loaded(
        name,
        AutoModelForCausalLM.from_pretrained,
        revision=revision,
        dtype=dtype,
        attn_implementation=attention,
    )
    first = int(os.environ.get("RANK", 0)) == 0
    if first:
        _say_of_another_shape(parameters, configuration)
    if parameters.chat_template is not None:
        install_chat_template(tokenizer, parameters.chat_template)
    expand_vocabulary(model, tokenizer)
    paper = parameters.recipe == "paper"
    if first and paper and int(os.environ.get("WORLD_SIZE", 1)) != THEIR_PROCESSES:
        print(
            f"recipe 'paper' adds up {config.accumulation} batches' gradients undivided on each "
            f"process; the authors', on {THEIR_PROCESSES} processes, "
            f"{parameters.global_batch // THEIR_PROCESSES}"
        )
    source = read_trajectories(
        parameters.data,
        columns=parameters.columns,
        split=parameters.split,
        revision=parameters.data_revision,
        tokenizer=tokenizer,
        max_length=None if paper else parameters.max_length,
    )
    trajectories = list(source)
    if first:  # what was left out of another run is not of this one
        (Path(output) / "decontamination.json").unlink(missing_ok=True)
    if parameters.exclude:
        asked = [b.prompt for file in parameters.exclude for b in read_behaviors(file)]
        report = compare([each.instruction for each in trajectories], asked)
        trajectories = report.clean(trajectories)
        if first:
            report.save(Path(output) / "decontamination.json")
            print(f"{len(report.training)} examples left out, too like those of the evaluation")
    rows: Sequence[Row]
    if paper:
        rows = training_rows(trajectories, tokenizer, authors_row)
        theirs = pivots_by_position(len(model.get_output_embeddings().weight))
        pivots = PivotIds.from_tokenizer(tokenizer)
        if (theirs.safe, theirs.unsafe) != (pivots.safe, pivots.unsafe):
            config = dataclasses.replace(config, pivot_weight=0.0)
    else:
        rows = training_rows(trajectories, tokenizer)
    if config.kl_weight:
        rows = _marked(rows, trajectories, parameters.harmful)
    if first:
        source.report.save(Path(output) / "validation.json")
        print(f"{parameters.data}: {source.report.kept} of {source.report.rows} rows kept")
        if source.report.defects:
            print(source.report.table().to_string(index=False))
    if parameters.held_out >= len(rows):
        raise InputError(
            f"held_out: expected fewer than the {len(rows)} examples that are left of "
            f"{parameters.data}, got {parameters.held_out}"
        )
    # Drawn, not the last: files are often sorted by kind.
    chosen = np.random.default_rng(config.seed).permutation(len(rows))[: parameters.held_out]
    apart = set(chosen.tolist())
    learned = [row for number, row in enumerate(rows) if number not in apart]
    held_out = [rows[number] for number in sorted(apart)]
    return train(config, model, tokenizer, learned, held_out or None)


def _say_of_another_shape(parameters: ParameterSet, loaded: PreTrainedConfig) -> None:
    """Where the model is not the one that ``shape`` describes, for which alone plans hold."""
    planned, text = parameters.configuration, loaded.get_text_config()
    for key in ("model_type", *parameters.shape):
        wanted, found = getattr(planned, key, None), getattr(text, key, getattr(loaded, key, None))
        if isinstance(wanted, str | int) and found is not None and found != wanted:
            print(
                f"{parameters.model} is not what shape says ({key}: {found}, not {wanted}): "
                "plans of this parameter set are of another model"
            )
            return


def launch_training(
    file: str | os.PathLike[str], output: str | os.PathLike[str], launch: str, processes: int
) -> None:
    """`train_parameter_set` of a file in several processes, as a file of experiments/launch says.

    What they print goes to this process's output. Raises InputError, with their last words, where
    the training fails, and for a launch file that is not there.
    """
    if not Path(launch).is_file():
        raise InputError(
            f"launch: expected a file, as those of experiments/launch, for {processes} processes, "
            f"got {launch!r}"
        )
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", launch, "--num_processes", str(processes)]
    command += ["--main_process_port", "0", "experiments/train.py", str(file)]
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        [*command, "--output", str(output)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), LAUNCHER: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    errors, last = list[str](), ""
    assert child.stdout is not None
    try:
        for line in child.stdout:
            print(line, end="")
            last = line.strip() or last
            errors += [last] if last.startswith("error: ") else []
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait()
    if child.returncode:
        said = errors[0] if errors else f"{last} (exit status {child.returncode})"
        raise InputError(f"training in {processes} processes failed: {said}")


def choose_attention(wanted: Attention, config: PreTrainedConfig, dtype: torch.dtype) -> str:
    """The implementation of attention that this machine has and this model may use.

    ``dtype`` is the one that is computed in. Raises InputError for flash attention in float32.
    """
    low = dtype in (torch.bfloat16, torch.float16)
    if wanted == "flash_attention_2" and not low:
        raise InputError(
            f"attention: expected 'auto', 'sdpa' or 'eager' in {dtype}, got {wanted!r}, which "
            "computes in 16 bits; set bf16: true of train, or change it"
        )
    if wanted != "auto":
        return wanted
    if low and torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None:
        return "flash_attention_2"
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "eager" if capped else "sdpa"


def _marked(
    rows: Sequence[Row], trajectories: Sequence[Trajectory], harmful: Sequence[str]
) -> list[Row]:
    """The rows, marked benign where their instruction is none of the files' ``harmful`` prompts."""
    prompts = {b.prompt.strip() for file in harmful for b in read_behaviors(file)}
    benign = [each.instruction not in prompts for each in trajectories]
    if all(benign):
        raise InputError(
            f"harmful: none of the {len(prompts)} prompts of {', '.join(harmful)} is an "
            "instruction of the data; give the file that its harmful ones are from"
        )
    return [mark_benign(row, each) for row, each in zip(rows, benign, strict=True)]


def _known(where: str, content: Mapping[str, Any], known: set[str]) -> None:
    for key in content:
        if key not in known:
            raise InputError(f"{where}: {unknown('setting', key, sorted(known))}")
