"""The parameter sets of real models: all are planned for; a tiny one runs from the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import CORPUS, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from r2d_core.adapters import LoraSettings
from r2d_core.anchor import is_benign
from r2d_core.authors_recipe import authors_row
from r2d_core.datasets import read_report
from r2d_core.errors import InputError
from r2d_core.parameter_sets import (
    ParameterSet,
    choose_attention,
    read_parameter_set,
    train_parameter_set,
)
from r2d_core.pivots import expand_vocabulary
from r2d_core.planning import plan_training
from r2d_core.pretrained import loaded
from r2d_core.tokenization import IGNORED, encode_example

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "experiments" / "models").glob("*.yaml"))
BILLIONS = {  # as the model cards say
    "llama2-7b": 6.74,
    "llama3-8b": 8.03,
    "mistral-7b": 7.25,
    "vicuna-7b": 6.74,
    "vicuna-13b": 13.0,
    "qwen2-7b": 7.62,
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-14b": 14.8,
    "qwen3-8b": 8.19,
    "r1-distill-llama-8b": 8.03,
    "qwq-32b": 32.8,
    "gemma-7b": 8.54,
    "gemma2-9b": 9.24,
    "gemma3-1b": 1.0,
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_parameter_set_is_valid_and_can_be_planned(file):
    parameters = read_parameter_set(file)
    plan = parameters.plan(gpus=4)
    assert plan.parameters / 1e9 == pytest.approx(BILLIONS[file.stem], rel=0.01)
    assert plan.fits != (file.stem == "qwq-32b")
    config = parameters.train_config("somewhere", processes=4)
    assert config.batch_size * config.accumulation * 4 == 32
    assert config.learning_rate == 2e-4 and config.lora.rank == 64


def test_there_is_one_for_each_family():
    assert {file.stem for file in FILES} == set(BILLIONS)


def written(folder: Path, **changes) -> Path:
    """A parameter set, a model and data of few bytes."""
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    output = "<think>the request is safe [SAFE] so i may answer [SAFE]</think>hello there ."
    lines = [{"instruction": CORPUS[i % 6], "input": "", "output": output} for i in range(10)]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = {
        "title": "Tiny",
        "model": str(folder / "base"),
        "shape": {"model_type": "llama"},
        "data": str(folder / "data.jsonl"),
        "dtype": "float32",
        "global_batch": 4,
        "held_out": 2,
        "train": {"max_steps": 3, "batch_size": 2, "packing": True, "logging_steps": 1},
        "lora": {"rank": 2},
    } | changes
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder / "tiny.yaml"


def test_a_parameter_set_trains(tmp_path):
    result = train_parameter_set(read_parameter_set(written(tmp_path)), tmp_path / "out")
    assert result.steps == 3 and "eval_loss" in result.metrics
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["train_rows"] == 8 and record["config"]["lora"]["rank"] == 2
    assert record["config"]["accumulation"] == 2
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")


def test_what_is_held_out_is_drawn_and_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    file = written(tmp_path, held_out=4)
    lines = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):  # sorted by kind, as Alpaca and then AdvBench
        line["instruction"] = f"{CORPUS[0]} {'hello ' * number}"
    lines.insert(3, {"instruction": "how ?", "input": "", "output": "no reasoning"})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = {}

    def train(config, model, tokenizer, rows, held_out):
        seen["lengths"] = [len(row["input_ids"]) for row in rows]
        seen["held out"] = [len(row["input_ids"]) for row in held_out]

    monkeypatch.setattr("r2d_core.parameter_sets.train", train)
    train_parameter_set(read_parameter_set(file), tmp_path / "out")
    everything = sorted([*seen["lengths"], *seen["held out"]])
    assert len(seen["held out"]) == 4 and len(everything) == 10
    assert sorted(seen["held out"]) != everything[-4:] and seen["lengths"] == sorted(
        seen["lengths"]
    )
    report = read_report(tmp_path / "out" / "validation.json")
    assert (report.rows, report.kept) == (11, 10)
    said = capsys.readouterr().out
    assert "10 of 11 rows kept" in said and "no_pivot" in said


def test_the_seed_draws_what_is_held_out_and_too_long_is_left_out(tmp_path, monkeypatch):
    held = {}

    def train(config, model, tokenizer, rows, held_out):
        held[config.seed] = [[*row["input_ids"]] for row in held_out]
        assert max(len(row["input_ids"]) for row in [*rows, *held_out]) == chosen.max_length

    monkeypatch.setattr("r2d_core.parameter_sets.train", train)
    for seed in (0, 1):
        file = written(tmp_path, held_out=3, train={"max_steps": 1, "seed": seed})
        numbered = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
        for number, line in enumerate(numbered):
            line["instruction"] = f"{CORPUS[0]} {'hello ' * number}"
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in numbered))
        tokenizer = tiny_tokenizer("llama")
        expand_vocabulary(tiny_model("llama", tokenizer), tokenizer)
        eighth = encode_example(tokenizer, numbered[7]["instruction"], numbered[7]["output"])
        chosen = dataclasses.replace(read_parameter_set(file), max_length=len(eighth["input_ids"]))
        train_parameter_set(chosen, tmp_path / "out")
        report = read_report(tmp_path / "out" / "validation.json")
        assert (report.kept, report.defects) == (8, {"too_long": 2})
    assert held[0] != held[1]


def test_one_commit_of_the_model_is_taken(tmp_path, monkeypatch):
    recorded(monkeypatch)
    asked = []

    def noting(name, load, **settings):
        asked.append(settings.get("revision"))
        return loaded(name, load, **settings)

    monkeypatch.setattr("r2d_core.parameter_sets.loaded", noting)
    train_parameter_set(read_parameter_set(written(tmp_path, revision="abc")), tmp_path / "out")
    assert asked == ["abc"] * 3  # tokenizer, configuration, weights


def test_data_of_other_columns_is_read_by_their_names(tmp_path, monkeypatch):
    file = written(tmp_path, columns={"instruction": "prompt", "output": "response"})
    old = (tmp_path / "data.jsonl").read_text()
    (tmp_path / "data.jsonl").write_text(
        old.replace('"instruction"', '"prompt"').replace('"output"', '"response"')
    )
    seen = recorded(monkeypatch)
    train_parameter_set(read_parameter_set(file), tmp_path / "out")
    assert len(seen["rows"]) == 8

    asked = []
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda *names, **given: (
            asked.append((names, given)) or (json.loads(line) for line in old.splitlines())
        ),
    )
    pinned = {"data": "someone/data", "split": "sft", "data_revision": "abc"}
    train_parameter_set(read_parameter_set(written(tmp_path, **pinned)), tmp_path / "out")
    assert asked == [(("someone/data",), {"split": "sft", "revision": "abc", "streaming": True})]


def recorded(monkeypatch) -> dict:
    """What `train` is called with, in place of training."""
    seen: dict = {}

    def train(config, model, tokenizer, rows, held_out):
        seen.update(config=config, tokenizer=tokenizer, rows=rows, model=model)

    monkeypatch.setattr("r2d_core.parameter_sets.train", train)
    return seen


def test_what_the_model_is_evaluated_on_is_not_trained_on(tmp_path, monkeypatch, capsys):
    seen = recorded(monkeypatch)
    ours = read_parameter_set(written(tmp_path, held_out=0))
    table = tmp_path / "behaviors.csv"
    table.write_text(f'goal,target\n"{CORPUS[0].upper()}",Sure\nsomething else entirely,Sure\n')
    train_parameter_set(dataclasses.replace(ours, exclude=[str(table)]), tmp_path / "out")
    tokenizer = seen["tokenizer"]
    prompts = [tokenizer.decode(row["input_ids"]) for row in seen["rows"]]
    assert len(prompts) == 8  # CORPUS[0] is two of the ten
    assert not any(CORPUS[0] in prompt for prompt in prompts)
    assert "2 examples left out" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "decontamination.json").read_text())
    assert {match["training_text"] for match in found["matches"]} == {CORPUS[0]}
    train_parameter_set(ours, tmp_path / "out")  # nothing is excluded: nor does a report say so
    assert not (tmp_path / "out" / "decontamination.json").exists()
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        missing = dataclasses.replace(ours, exclude=[str(tmp_path / "nowhere.csv")])
        train_parameter_set(missing, tmp_path / "other")


def test_the_base_is_kept_on_what_is_not_named_harmful(tmp_path):
    """`kl_weight` from a file: with it, and to the end, for all but the named instruction."""
    table = tmp_path / "harmful.csv"
    table.write_text(f'goal,target\n"{CORPUS[0]}",Sure\n')
    settings = {"max_steps": 2, "batch_size": 2, "kl_weight": 0.5, "logging_steps": 1}
    ours = read_parameter_set(written(tmp_path, train=settings, harmful=[str(table)]))
    result = train_parameter_set(ours, tmp_path / "out")
    assert result.metrics["kl_to_base"] >= 0
    assert dataclasses.replace(ours, recipe="paper").train_config("x", 1).kl_weight == 0
    table.write_text("goal,target\nsomething else,Sure\n")
    with pytest.raises(InputError, match=r"harmful: none of the 1 prompts of .*harmful\.csv"):
        train_parameter_set(ours, tmp_path / "other")


def test_rows_are_benign_but_for_the_instructions_of_the_files(tmp_path, monkeypatch):
    seen = recorded(monkeypatch)
    table = tmp_path / "harmful.csv"
    table.write_text(f'goal,target\n" {CORPUS[0]} ",Sure\n')  # spaces around it bear on nothing
    settings = {"max_steps": 2, "kl_weight": 0.5}
    changes = {"train": settings, "harmful": [str(table)], "held_out": 0}
    train_parameter_set(read_parameter_set(written(tmp_path, **changes)), tmp_path / "out")
    named = [
        CORPUS[0] in seen["tokenizer"].decode(row["input_ids"]) and not is_benign(row)
        for row in seen["rows"]
    ]
    assert sum(named) == 2 and sum(map(is_benign, seen["rows"])) == 8


def test_the_authors_recipe_is_theirs_whatever_the_file_says(tmp_path, monkeypatch, capsys):
    """As their script launches it, on four processes of which this is one."""
    seen = recorded(monkeypatch)
    others = {
        "max_steps": 3, "batch_size": 2, "packing": True, "learning_rate": 1e-3,
        "warmup_ratio": 0.5, "lr_scheduler": "linear", "weight_decay": 0.1,
        "max_grad_norm": 0.5, "pivot_weight": 2.0, "contrast": "all", "pivot_ce_weight": 3.0,
        "gradient_checkpointing": False, "bf16": False,
        "group_by_length": True, "eval_steps": 1, "seed": 7, "logging_steps": 1,
    }  # fmt: skip
    lora = {"rank": 2, "alpha": 3, "dropout": 0.5, "targets": ["o_proj"], "new_rows": "rows"}
    file = written(tmp_path, train=others, lora=lora, max_length=5)
    monkeypatch.setenv("WORLD_SIZE", "4")
    theirs = dataclasses.replace(read_parameter_set(file), recipe="paper")
    train_parameter_set(theirs, tmp_path / "out")
    config = dataclasses.asdict(seen["config"])
    assert config.pop("lora") == {
        "rank": 64,
        "alpha": 64.0,
        "dropout": 0.05,
        "targets": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        "new_rows": "modules_to_save",
    }
    script = {
        "epochs": 1.0, "max_steps": None, "batch_size": 1, "accumulation": 8, "learning_rate": 2e-4,
        "lr_scheduler": "cosine", "warmup_ratio": 0.02, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "gradient_checkpointing": True, "bf16": True, "packing": False, "group_by_length": False,
        "normalize": "micro_batch", "pivot_weight": 1.0, "contrast": "paper",
        "pivot_ce_weight": 1.0, "eval_steps": 0,
    }  # fmt: skip
    assert config | script == config
    assert (config["seed"], config["logging_steps"]) == (7, 1)  # these bear on no choice of theirs
    assert len(seen["rows"]) == 10  # all of them: none is held out, none too long
    assert "undivided" not in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "2")
    train_parameter_set(theirs, tmp_path / "two")
    assert seen["config"].accumulation == 16
    said = [line for line in capsys.readouterr().out.splitlines() if "undivided" in line]
    assert len(said) == 1 and "16 batches' gradients" in said[0] and said[0].endswith(" 8")


def test_a_file_of_the_authors_recipe_keeps_its_own_settings_for_ours(tmp_path):
    file = written(tmp_path, recipe="paper")
    theirs, ours = read_parameter_set(file), read_parameter_set(file, recipe="r2d")
    assert (theirs.global_batch, theirs.held_out) == (32, 0)
    assert (ours.global_batch, ours.held_out, ours.recipe) == (4, 2, "r2d")
    with pytest.raises(InputError, match=r"tiny\.yaml: recipe: expected one of 'r2d', 'paper'"):
        read_parameter_set(file, recipe="papper")


def test_the_authors_recipe_trains(tmp_path):
    file = written(tmp_path, train={"max_steps": 1, "logging_steps": 1})
    (tmp_path / "data.jsonl").write_text(7 * (tmp_path / "data.jsonl").read_text())
    theirs = dataclasses.replace(read_parameter_set(file), recipe="paper")
    result = train_parameter_set(theirs, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["train_rows"] == 70 and record["steps"] == 3  # an epoch, its last window cut off
    log = [json.loads(line) for line in result.log.read_text().splitlines()]
    assert [line["pivot_count_safe"] for line in log] == [64, 64, 12]
    assert all(line["pivot_loss"] > 0 for line in log)
    base = load_file(tmp_path / "base" / "model.safetensors")
    trained = load_file(result.model_dir / "model.safetensors")
    changed = {
        name for name, old in base.items() if not torch.equal(old, trained[name][: len(old)])
    }
    assert {name.split(".")[-2] for name in changed} == {
        "embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_the_authors_recipe_is_theirs_to_the_row(tmp_path, monkeypatch):
    seen = recorded(monkeypatch)
    ours = read_parameter_set(written(tmp_path))
    train_parameter_set(dataclasses.replace(ours, recipe="paper"), tmp_path / "out")
    config, tokenizer = seen["config"], seen["tokenizer"]
    assert config.pivot_weight == 1.0  # the tokens are the last eight rows: their ids are right
    row, bos = seen["rows"][0], tokenizer.bos_token_id
    target = list(row["labels"]).index(bos)
    assert list(row["labels"][:target]) == [-100] * target
    prompts = {(bos, *tokenizer.encode(text, add_special_tokens=False), bos) for text in CORPUS[:6]}
    assert tuple(row["input_ids"][:target]) in prompts  # no template, and one of the empty input
    assert row["labels"][target:] == row["input_ids"][target:]
    said = tokenizer.decode(row["labels"][target + 1 :])
    assert said.startswith("<think>") and said.count("[SAFE]") == 2


def test_the_authors_recipe_has_no_contrast_where_their_arithmetic_fails(tmp_path, monkeypatch):
    seen = recorded(monkeypatch)
    ours = read_parameter_set(written(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(len(model.get_input_embeddings().weight) + 64)  # as Qwen's
    model.save_pretrained(tmp_path / "base")
    train_parameter_set(dataclasses.replace(ours, recipe="paper"), tmp_path / "out")
    assert seen["config"].pivot_weight == 0.0
    train_parameter_set(ours, tmp_path / "out")
    assert seen["config"].pivot_weight == 1.0
    with pytest.raises(InputError, match="lora: expected settings"):
        dataclasses.replace(ours, recipe="paper", lora=None)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_an_authors_row_opens_the_reasoning_itself(family):
    tokenizer = tiny_tokenizer(family)
    expand_vocabulary(tiny_model(family, tokenizer), tokenizer)
    template = tokenizer.chat_template
    tokenizer.chat_template = template + "{% if add_generation_prompt %}<think>{% endif %}"
    row = authors_row(tokenizer, "how ?", "<think>it is [SAFE]</think>hello")
    learned = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(learned).count("<think>") == 1
    has_bos = tokenizer.bos_token_id is not None
    assert row["input_ids"].count(tokenizer.bos_token_id) == (3 if has_bos else 0)
    plain = authors_row(tokenizer, "how ?", "<think>it is</think>a", bos=False, bare=False)
    assert plain == encode_example(tokenizer, "how ?", "<think>it is</think>a")


def test_all_weights_are_not_trained_in_16_bits(tmp_path):
    """Named before gigabytes are loaded: the model does not exist."""
    file = written(tmp_path, lora=None, dtype="bfloat16", model="/nowhere")
    with pytest.raises(InputError, match=r"every weight of a model in torch.bfloat16 .* float32"):
        train_parameter_set(read_parameter_set(file), tmp_path / "out")


def test_the_command_line_plans_trains_and_names_what_is_wrong(tmp_path):
    file = written(tmp_path)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "experiments/train.py", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"},
            capture_output=True,
            text=True,
        )

    done = run(file, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("3 steps in ")
    wrong = run(file, "--output", tmp_path / "other", "--model", tmp_path / "nowhere")
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[-1].startswith("error: model '")
    plan = [ROOT / "experiments/models/llama3-8b.yaml", "--plan"]
    planned = run(*plan, "--gpu-gb", "16")
    assert planned.returncode == 0 and "does not fit" in planned.stdout
    assert planned.stdout.splitlines()[-1].startswith("  try more GPUs")
    planned = run(*plan, "--gpus", "2", "--gpu-gb", "24")
    assert (
        planned.stdout.splitlines()[-1]
        == "  it fits with --sharing zero3 or zero3_offload or fsdp2"
    )
    assert "1000 tokens an example, 52520 examples an epoch" in planned.stdout
    wrong = run(*plan, "--tflops", "0")
    assert wrong.returncode == 2 and "--tflops: expected a number above 0" in wrong.stderr
    wrong = run(*plan, "--gpus", "3")
    assert wrong.returncode == 2 and "on each of 3 processes, got 32" in wrong.stderr
    (tmp_path / "taken").write_text("")
    wrong = run(file, "--output", tmp_path / "taken")
    assert wrong.returncode == 2 and "output_dir: expected a folder" in wrong.stderr
    train = {"max_steps": 1, "impl": "triton"}
    wrong = run(written(tmp_path, train=train), "--output", tmp_path / "triton")
    said = "error: TrainConfig impl='triton': needs an NVIDIA GPU"  # before the model is loaded
    assert wrong.returncode == 2 and wrong.stderr.splitlines()[-1].startswith(said)


def test_an_interrupt_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import train

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_parameter_set", interrupted)
    assert train.main([str(written(tmp_path)), "--output", str(tmp_path / "out")]) == 130
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("interrupted; started again, it goes on from its last")


def test_a_model_of_another_shape_is_said(tmp_path, monkeypatch, capsys):
    recorded(monkeypatch)
    train_parameter_set(read_parameter_set(written(tmp_path)), tmp_path / "out")
    assert "is not what shape says" not in capsys.readouterr().out
    shape = {"model_type": "llama", "hidden_size": 4096}
    train_parameter_set(read_parameter_set(written(tmp_path, shape=shape)), tmp_path / "out")
    assert "not what shape says (hidden_size: 32, not 4096): plans" in capsys.readouterr().out


def test_what_was_left_out_is_said_where_too_little_is_left(tmp_path, capsys):
    file = written(tmp_path, held_out=9)
    lines = (tmp_path / "data.jsonl").read_text().replace("[SAFE]", "", 2).splitlines()
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match="fewer than the 9 examples that are left of .*, got 9"):
        train_parameter_set(read_parameter_set(file), tmp_path / "out")
    assert "9 of 10 rows kept" in capsys.readouterr().out
    assert read_report(tmp_path / "out" / "validation.json").kept == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, "the file: unknown setting 'titel', did you mean 'title'"),
        ({"model": None}, "model: expected str, got None"),
        ({"train": {"lr": 1}}, "train: unknown setting 'lr'"),
        ({"train": {"max_steps": 0}}, "TrainConfig max_steps: expected a number from 1"),
        ({"train": {"accumulation": 2, "epochs": 1}}, "train: unknown setting 'accumulation'"),
        ({"train": {"max_steps": 1, "batch_size": 3}}, "global_batch: expected a multiple of 3"),
        ({"train": {"max_steps": 1, "kl_weight": 0.5}}, "kl_weight: expected files in 'harmful'"),
        ({"lora": {"rnk": 2}}, "lora: unknown setting 'rnk', did you mean 'rank'"),
        ({"shape": {"model_type": "lama"}}, "shape: "),
        ({"shape": {"model_type": "llama", "hidden_size": "512"}}, "shape: .*hidden_size"),
        ({"shape": {"model_type": "llama", "hidden_size": 511}}, "shape: .*511"),
        (
            {"shape": {"model_type": "qwen2", "num_hidden_layer": 2}},
            "shape: unknown setting 'num_hidden_layer', did you mean 'num_hidden_layers'",
        ),
        (
            {"train": {"max_steps": 1, "learning_rate": "2e-4"}},
            "learning_rate: expected float, got '2e-4' .*; write 0.0002, without quotes",
        ),
        ({"chat_template": "vicunna"}, "unknown template 'vicunna', did you mean 'vicuna'"),
    ],
)
def test_a_bad_parameter_set_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as raised:
        read_parameter_set(written(tmp_path, **change))
    assert str(raised.value).startswith(f"{tmp_path}/tiny.yaml: ") and "\n" not in str(raised.value)


def test_no_file_and_no_yaml_are_named(tmp_path):
    with pytest.raises(InputError, match="absent.yaml: cannot be read: No such file"):
        read_parameter_set(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("title: [")
    with pytest.raises(InputError, match=r"broken.yaml: line 1: not valid YAML: "):
        read_parameter_set(tmp_path / "broken.yaml")
    for text, said in (
        (b"title: x\nmodel: y\nmodel: z", "line 3: not valid YAML: the key 'model' stands twice"),
        (b"title: \xff", "not valid YAML: "),
        (b"title: 2026-13-45", "not valid YAML: month must be in 1..12"),
    ):
        (tmp_path / "broken.yaml").write_bytes(text)
        with pytest.raises(InputError, match=f"broken.yaml: {said}"):
            read_parameter_set(tmp_path / "broken.yaml")
    (tmp_path / "short.yaml").write_text("title: x")
    with pytest.raises(InputError, match="short.yaml: model: missing$"):
        read_parameter_set(tmp_path / "short.yaml")
    (tmp_path / "short.yaml").write_text("{title: x, model: y, train: {}}")
    with pytest.raises(InputError, match="shape: missing; model_type and sizes, as in the model's"):
        read_parameter_set(tmp_path / "short.yaml")


def test_attention_is_what_machine_and_model_allow(monkeypatch):
    plain, capped = LlamaConfig(), Gemma2Config()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    low, whole = torch.bfloat16, torch.float32
    assert choose_attention("auto", plain, low) == "sdpa"
    assert choose_attention("auto", capped, low) == "eager"
    assert choose_attention("eager", plain, low) == "eager"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "flash_attn")
    assert choose_attention("auto", capped, low) == "flash_attention_2"
    # Flash attention has no kernel for float32, and would fail at the first forward pass.
    assert choose_attention("auto", plain, whole) == "sdpa"
    assert choose_attention("auto", capped, whole) == "eager"
    with pytest.raises(
        InputError, match="attention: expected 'auto', .* in torch.float32, got 'fl"
    ):
        choose_attention("flash_attention_2", plain, whole)


@pytest.mark.parametrize(
    ("dtype", "bf16", "computed"),
    [
        ("float32", False, torch.float32),
        ("float32", True, torch.bfloat16),
        ("bfloat16", True, torch.bfloat16),
    ],
)
def test_attention_is_chosen_for_what_is_computed_in(tmp_path, monkeypatch, dtype, bf16, computed):
    recorded(monkeypatch)
    asked = []
    monkeypatch.setattr(
        "r2d_core.parameter_sets.choose_attention",
        lambda wanted, config, dtype: asked.append((wanted, dtype)) or "sdpa",
    )
    train = {"max_steps": 1, "batch_size": 2, "bf16": bf16}
    file = written(tmp_path, dtype=dtype, train=train)
    train_parameter_set(read_parameter_set(file), tmp_path / "out")
    assert asked == [("auto", computed)]


def test_replacing_a_value_checks_again():
    with pytest.raises(InputError, match="held_out: 0 or more"):
        ParameterSet("x", "y", {"model_type": "llama"}, {"max_steps": 1}, held_out=-1)


def test_hours_follow_steps_epochs_and_data():
    llama = read_parameter_set(ROOT / "experiments/models/llama3-8b.yaml")
    one = llama.plan(gpus=4)
    twice = dataclasses.replace(llama, train={**llama.train, "epochs": 2})
    assert twice.plan(gpus=4).hours == pytest.approx(2 * one.hours)
    assert llama.plan(gpus=4, examples=26_260).hours == pytest.approx(one.hours / 2)
    assert llama.plan(gpus=4, mean_tokens=500).hours == pytest.approx(one.hours / 2)
    steps = {**llama.train, "max_steps": 100}
    del steps["epochs"]
    short = dataclasses.replace(llama, train=steps).plan(gpus=4)
    assert short.hours == pytest.approx(one.hours * 3200 / 52_520)
    assert short.total == one.total


@pytest.mark.parametrize(
    ("settings", "planned"),
    [
        ({}, {}),
        ({"batch_size": 2}, {"batch_size": 2}),
        ({"gradient_checkpointing": True}, {"gradient_checkpointing": True}),
        ({"bf16": True}, {"bf16": True}),
        ({"kl_weight": 0.5}, {"frozen_base": True}),
    ],
)
def test_what_is_planned_is_what_will_be_trained(tmp_path, settings, planned):
    train = {"max_steps": 3, "bf16": False} | settings
    file = written(tmp_path, train=train, max_length=100, harmful=["advbench.csv"])
    parameters = read_parameter_set(file)
    plain = {"batch_size": 1, "gradient_checkpointing": False, "bf16": False, "frozen_base": False}
    assert parameters.plan(gpus=1, mean_tokens=50) == plan_training(
        parameters.configuration,
        LoraSettings(rank=2),
        length=100,
        dtype=torch.float32,
        tokens=3 * 4 * 50,
        **(plain | planned),
    )


@pytest.mark.slow
def test_the_notebook_plans_and_trains_in_two_processes(tmp_path):
    import papermill
    from papermill.exceptions import PapermillExecutionError

    def run(**parameters):
        papermill.execute_notebook(
            ROOT / "notebooks" / "16_train_a_model.ipynb",
            tmp_path / "done.ipynb",
            {"parameter_set": str(written(tmp_path)), "output_dir": str(tmp_path), **parameters},
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=False,
        )

    run(only_plan=True, sharing="zero3")
    assert not (tmp_path / "run").exists()
    run(only_plan=True, launch=str(ROOT / "experiments/launch/zero3.yaml"), processes=2)
    assert "at the start" in (tmp_path / "done.ipynb").read_text()  # the plan is the launch's
    with pytest.raises(PapermillExecutionError, match="launch: expected a file, .*2 processes"):
        run(processes=2)
    two = {"launch": str(ROOT / "experiments/launch/ddp.yaml"), "processes": 2}
    run(**two)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["train_rows"] == 8 and record["steps"] == 3
    assert read_report(tmp_path / "run" / "validation.json").kept == 10
    one = train_parameter_set(read_parameter_set(tmp_path / "tiny.yaml"), tmp_path / "one")
    assert record["metrics"]["eval_loss"] == pytest.approx(one.metrics["eval_loss"], rel=2e-5)
    with pytest.raises(PapermillExecutionError, match="in 2 processes failed: error: model '/no"):
        run(**two, model="/nowhere")
    # FSDP2 wants a GPU: accelerate would quietly take DDP.
    fsdp2 = str(ROOT / "experiments/launch/fsdp2.yaml")
    with pytest.raises(PapermillExecutionError, match="not use: FSDP2 needs GPUs; launch with"):
        run(launch=fsdp2, processes=2, output_dir=str(tmp_path / "sharded"))
    with pytest.raises(PapermillExecutionError, match="unknown sharing 'zero4', did you mean"):
        run(sharing="zero4")
    with pytest.raises(PapermillExecutionError, match="'dpp'.* which dpp.yaml is not named after"):
        run(launch="dpp.yaml", processes=2)
