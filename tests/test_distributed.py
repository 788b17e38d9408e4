"""Two processes train what one trains: by data, with DeepSpeed ZeRO and with FSDP2, on the CPU.

Each test starts two gloo processes with `accelerate launch` and the project's own launch files.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from distributed_child import training_rows
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from r2d_core.adapters import LoraSettings
from r2d_core.pivots import expand_vocabulary
from r2d_core.training import TrainConfig, train

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "experiments" / "launch"
pytestmark = pytest.mark.timeout(1500)
LIMIT_S = 600
"""Of one run; the first builds what DeepSpeed compiles. One that hangs is a failure, not a wait."""
SETTINGS = {"max_steps": 6, "learning_rate": 1e-3, "logging_steps": 1, "eval_steps": 3}
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "up_proj"]}
ENGINES = {
    "ddp": "DistributedDataParallel",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
    "zero3_offload": "DeepSpeedEngine",
    "fsdp2": "FSDP",
}


@pytest.fixture(scope="module", autouse=True)
def own_builds(tmp_path_factory):
    """What DeepSpeed compiles, once, where no killed run has left it locked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        yield


def start(
    name: str, output: Path, settings: dict, machine: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """distributed_child as the launch file says: two processes, or as ``machine`` says."""
    if "zero" in name:
        pytest.importorskip("deepspeed", reason="ZeRO needs it; it is installed on Linux")
    settings = {"engine": ENGINES[name], "batch_size": 2, "accumulation": 2} | SETTINGS | settings
    command = ["-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(LAUNCH / f"{name}.yaml"), "--num_processes", "2"]
    command += machine or ["--main_process_port", "0"]
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return subprocess.Popen(
        [sys.executable, *command, "tests/distributed_child.py", str(output), json.dumps(settings)],
        cwd=ROOT,  # the launch files name their DeepSpeed configuration from there
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(*started: subprocess.Popen[str]) -> list[subprocess.CompletedProcess[str]]:
    """What became of them; the test fails where one is not done in time."""
    until, done = time.monotonic() + LIMIT_S, []
    try:
        for process in started:
            said = process.communicate(timeout=max(1, until - time.monotonic()))
            done.append(subprocess.CompletedProcess(process.args, process.returncode, *said))
    except subprocess.TimeoutExpired:
        for process in started:
            process.terminate()  # which ends the processes that it started
        words = [process.communicate(timeout=60)[1][-2000:] for process in started]
        pytest.fail("\n".join([f"not done in {LIMIT_S} s; the last words:", *words]))
    return done


def launch(name: str, output: Path, **settings) -> subprocess.CompletedProcess[str]:
    (done,) = ended(start(name, output, settings))
    return done


def steps(done: subprocess.CompletedProcess[str]) -> list[int]:
    """The steps that the first process made, in order, as distributed_child says them."""
    said = re.findall(r"^step (\d+)$", done.stdout, re.MULTILINE)
    return list(dict.fromkeys(map(int, said)))


def by_one_process(
    output: Path, family: str, tied: bool, dtype: torch.dtype = torch.float32, **settings
):
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer, tied=tied, dtype=dtype)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
    expand_vocabulary(model, tokenizer)
    rows = training_rows(tokenizer)
    config = TrainConfig(output, **({"batch_size": 8} | SETTINGS | settings))
    return train(config, model, tokenizer, rows, rows[:5])


def lines(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def assert_same_training(one: Path, two: Path) -> None:
    assert len(lines(one)) == len(lines(two)) == 8
    for ours, theirs in zip(lines(one), lines(two), strict=True):
        assert theirs.keys() == ours.keys()
        for name in ours.keys() & {"loss", "grad_norm", "pivot_loss", "targets", "eval_loss"}:
            assert theirs[name] == pytest.approx(ours[name], rel=2e-5), name
    expected = load_file(one / "model" / "model.safetensors")
    actual = load_file(two / "model" / "model.safetensors")
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():  # of updates of 1e-3 a step
        torch.testing.assert_close(actual[name], weight, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("family", "tied", "lora"),
    [("qwen2", True, None), ("llama", False, LORA)],
    ids=["full", "lora"],
)
def test_two_processes_train_like_one(tmp_path, name, family, tied, lora):
    changes = {} if lora is None else {"lora": LoraSettings(**lora)}
    one = by_one_process(tmp_path / "one", family, tied, **changes)
    more = {} if lora is None else {"lora": lora}
    engine = f"FSDP{family.capitalize()}ForCausalLM" if lora is None else "FSDPPeftModelForCausalLM"
    if name == "fsdp2":
        more["engine"] = engine
    done = launch(name, tmp_path / "two", family=family, tied=tied, **more)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same_training(tmp_path / "one", tmp_path / "two")

    generation = [tmp_path / run / "model" / "generation_config.json" for run in ("one", "two")]
    assert generation[0].read_text() == generation[1].read_text()
    assert len(json.loads(generation[0].read_text())["eos_token_id"]) == 2

    # What was gathered loads in plain transformers, and the adapter in plain PEFT.
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "model")
    assert (saved.lm_head.weight is saved.model.embed_tokens.weight) == tied
    assert (
        type(saved).__name__
        == json.loads((tmp_path / "two" / "model" / "config.json").read_text())["architectures"][0]
    )
    if lora is not None:
        base = tiny_model(family, tiny_tokenizer(family), tied=tied)
        base.resize_token_embeddings(saved.config.vocab_size, mean_resizing=False)
        adapted = PeftModel.from_pretrained(base, tmp_path / "two" / "adapter").eval()
        prompt = torch.tensor([[5, 6, 7, 8]])
        torch.testing.assert_close(
            adapted(prompt).logits, saved(prompt).logits, rtol=1e-4, atol=1e-4
        )
    assert one.steps == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3", "fsdp2"])
def test_what_saves_memory_goes_together(tmp_path, name):
    """A bfloat16 model, packing, activations computed again, adapters, what is shared out."""
    options = {"bf16": True, "packing": True, "gradient_checkpointing": True}
    by_one_process(
        tmp_path / "one", "llama", False, torch.bfloat16, lora=LoraSettings(**LORA), **options
    )
    engine = {"engine": "FSDPPeftModelForCausalLM"} if name == "fsdp2" else {}
    done = launch(name, tmp_path / "two", dtype="bfloat16", lora=LORA, **options, **engine)
    assert done.returncode == 0, done.stderr[-4000:]
    for ours, theirs in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for each in ours.keys() & {"loss", "eval_loss"}:
            assert theirs[each] == pytest.approx(ours[each], rel=1e-2)
        if "loss" in theirs:  # the sum of its parts, which no engine rounds to bfloat16
            parts = theirs["cross_entropy"] + theirs["pivot_loss"]
            assert theirs["loss"] == pytest.approx(parts, rel=1e-5)
    AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp2"])
def test_a_killed_process_ends_the_run_and_a_second_start_ends_it_alike(tmp_path, name):
    lora = {"lora": LORA} | ({"engine": "FSDPPeftModelForCausalLM"} if name == "fsdp2" else {})
    by_one_process(tmp_path / "one", "llama", False, save_steps=2, lora=LoraSettings(**LORA))
    killed = launch(name, tmp_path / "two", save_steps=2, kill=5, **lora)
    assert killed.returncode != 0
    assert steps(killed)[:5] == [0, 1, 2, 3, 4]
    assert (
        "exitcode" in killed.stderr and "-9" in killed.stderr
    )  # says what became of which process
    assert not (tmp_path / "two" / "model").exists()
    (checkpoints,) = (tmp_path / "two").glob("checkpoints-*")
    assert (checkpoints / "checkpoint-4" / "whole").exists()

    resumed = launch(name, tmp_path / "two", save_steps=2, **lora)
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    assert steps(resumed) == [4, 5]  # from the checkpoint, not from the beginning
    assert_same_training(tmp_path / "one", tmp_path / "two")
    assert not checkpoints.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero2"])
def test_the_window_that_an_epoch_cuts_off_counts_as_it_is(tmp_path, name):
    """22 examples in windows of 6: the last has 4, two batches of three in each process."""
    by_one_process(tmp_path / "one", "llama", False, batch_size=6)
    done = launch(name, tmp_path / "two", batch_size=1, accumulation=3)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same_training(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_the_divergence_from_the_base_is_that_of_all_processes(tmp_path):
    by_one_process(tmp_path / "one", "llama", False, kl_weight=2.0)
    done = launch("ddp", tmp_path / "two", kl_weight=2.0)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same_training(tmp_path / "one", tmp_path / "two")
    one, two = ([line["kl_to_base"] for line in lines(tmp_path / run) if "kl_to_base" in line]
                for run in ("one", "two"))  # fmt: skip
    assert two == pytest.approx(one, rel=1e-3, abs=1e-8) and len(one) == 6 and one[-1] > 1e-4


@pytest.mark.slow
def test_the_authors_gradient_is_averaged_over_processes_and_added_up_over_batches(tmp_path):
    """Two processes of two batches make half of what one makes of the same four."""
    theirs = {"normalize": "micro_batch", "max_grad_norm": 1e6}  # never clipped
    by_one_process(tmp_path / "one", "llama", False, batch_size=2, accumulation=4, **theirs)
    done = launch("ddp", tmp_path / "two", **theirs)
    assert done.returncode == 0, done.stderr[-4000:]
    for ours, of_two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        if "grad_norm" in ours:
            assert of_two["grad_norm"] == pytest.approx(ours["grad_norm"] / 2, rel=1e-3)
            assert of_two["cross_entropy"] == pytest.approx(ours["cross_entropy"], rel=1e-4)
            assert of_two["targets"] == ours["targets"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp2"])
def test_two_machines_train_like_one_process(tmp_path, name):
    """Each starts its own process, as book/your_own_model.md says; both are this machine."""
    by_one_process(tmp_path / "one", "llama", False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    machine = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    engine = {"engine": "FSDPLlamaForCausalLM"} if name == "fsdp2" else {}
    runs = [
        start(name, tmp_path / "two", engine, [*machine, "--machine_rank", rank]) for rank in "01"
    ]
    for done in ended(*runs):
        assert done.returncode == 0, done.stderr[-4000:]
    assert_same_training(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("*.yaml")), ids=lambda file: file.stem)
def test_launch_files_are_what_accelerate_reads(file):
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(file))
    assert read.num_processes == 4 and file.stem in ENGINES
    if deepspeed := getattr(read, "deepspeed_config", None):
        assert (ROOT / deepspeed["deepspeed_config_file"]).is_file()


@pytest.mark.parametrize("name", [name for name in ENGINES if "zero" in name])
def test_each_of_several_machines_starts_its_own_processes(name, monkeypatch):
    """Not by a host file and pdsh, which is accelerate's choice where the file makes none."""
    from accelerate.commands import launch as of_accelerate
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    monkeypatch.setattr(sys, "argv", ["accelerate launch"])  # of whose words it takes notice
    command = ["--config_file", str(LAUNCH / f"{name}.yaml"), "--num_machines", "2"]
    command += ["--machine_rank", "1", "--num_processes", "8", "--main_process_ip", "10.0.0.1"]
    given = of_accelerate.launch_command_parser().parse_args([*command, "train.py"])
    given, *_ = of_accelerate._validate_launch_command(given)
    given.deepspeed_fields_from_accelerate_config = ""  # as launch_command sets it
    started, _ = prepare_deepspeed_cmd_env(given)
    assert started is None  # torchrun's, in this process
    assert (given.node_rank, given.nproc_per_node, given.nnodes) == (1, "4", "2")
    assert given.rdzv_endpoint.startswith("10.0.0.1:")
