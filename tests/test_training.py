"""Training: what is optimised and logged, against hand computation; interrupted runs."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import FAMILIES, GEMMAS, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2d_core import trainer, training
from r2d_core.batching import PackingCollator, TargetsCollator, WindowSampler
from r2d_core.checkpoints import WHOLE, fingerprint, last_whole_checkpoint
from r2d_core.errors import InputError
from r2d_core.pivots import expand_vocabulary
from r2d_core.provenance import source_sha256
from r2d_core.run_lock import LOCK, only_run_in
from r2d_core.tokenization import Collator
from r2d_core.training import R2DTrainer, TrainConfig, train


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-equal results need one order of summation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def setup(family="llama", *, tied=False, n=22, seed=0):
    tokenizer = tiny_tokenizer("word")
    model = tiny_model(family, tokenizer, tied=tied)
    # Dropout draws from the global generator: a resumed run must find it where it was.
    model.config.attention_dropout = 0.1
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    ids = expand_vocabulary(model, tokenizer)
    generator = random.Random(seed)
    rows = []
    for _ in range(n):
        tokens = [generator.randrange(len(tokenizer)) for _ in range(generator.randrange(4, 12))]
        tokens[-2] = generator.choice([ids.safe, ids.unsafe, ids.rethink])
        rows.append({"input_ids": tokens, "labels": [-100, -100, *tokens[2:]]})
    return model, tokenizer, ids, rows


def without_dropout(model):
    model.config.attention_dropout = 0.0
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    return model


def config(output, **changes):
    defaults = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
    return TrainConfig(str(output), **(defaults | changes))


def lines(result):
    return [json.loads(line) for line in result.log.read_text().splitlines()]


def by_hand(model, rows, ids):
    """Sums over unpadded examples, one at a time: NLLs, pivot terms and hits by class."""
    nll, terms = [], {"safe": [], "unsafe": []}
    right = {"safe": [], "unsafe": [], "rethink": []}
    three = [ids.safe, ids.unsafe, ids.rethink]
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        for z, y in zip(logits, row["labels"][1:], strict=True):
            if y == -100:
                continue
            nll.append(-z.log_softmax(0)[y])
            if y == ids.safe:
                terms["safe"].append(F.softplus(z[ids.unsafe] - z[ids.safe]))
            if y == ids.unsafe:
                terms["unsafe"].append(F.softplus(z[ids.safe] - z[ids.unsafe]))
            if y in three:
                name = list(right)[three.index(y)]
                right[name].append(three[int(z[three].argmax())] == y)
    return nll, terms, right


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_given_targets_that_no_gpu_holds(tmp_path, monkeypatch, packing):
    """Of targets on the GPU it would wait for it, at every batch, to learn how many there are."""
    model, tokenizer, _, rows = setup()
    inner = PackingCollator() if packing else Collator(0)
    batch = TargetsCollator(inner)(rows[:3])
    moved = send_to_device(batch, torch.device("meta"))
    assert moved["labels"].is_meta and moved["targets"] is batch["targets"]

    seen, arrays = [], []
    r2d_loss, compute_loss = trainer.r2d_loss, R2DTrainer.compute_loss

    def noting_targets(*tensors, targets, **options):
        seen.append(targets.data_ptr())
        return r2d_loss(*tensors, targets=targets, **options)

    def noting_batches(self, model, inputs, *arguments, **options):
        arrays.append(inputs["targets"].ctypes.data)
        return compute_loss(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(trainer, "r2d_loss", noting_targets)
    monkeypatch.setattr(R2DTrainer, "compute_loss", noting_batches)
    train(config(tmp_path, max_steps=2, packing=packing), model, tokenizer, rows, rows[:3])
    assert seen == arrays and len(seen) == 3


def mean(values):
    return sum(values) / len(values) if values else torch.zeros(())


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        *((name, tied) for name in FAMILIES[:4] for tied in (True, False)),
        *((name, True) for name in GEMMAS),
    ],
)
def test_log_is_what_one_computes_by_hand(tmp_path, family, tied):
    model, tokenizer, ids, rows = setup(family, tied=tied)
    without_dropout(model)
    # The weights stay as they are, so that two steps of 11 examples measure all 22 of them.
    frozen = config(
        tmp_path,
        max_steps=2,
        batch_size=6,
        accumulation=2,
        learning_rate=0.0,
        logging_steps=2,
        pivot_weight=0.5,
        pivot_ce_weight=3.0,
        epochs=None,
    )
    result = train(frozen, model, tokenizer, rows[:24], rows[3:10])
    logged, evaluated = lines(result)
    with torch.no_grad():
        nll, terms, right = by_hand(model, rows, ids)
        assert logged["targets"] == len(nll) and logged["step"] == 2
        assert logged["cross_entropy"] == pytest.approx(float(mean(nll)), rel=1e-5)
        pivot = sum(float(mean(values)) for values in terms.values())
        assert logged["pivot_loss"] == pytest.approx(pivot, rel=1e-5)
        for name, hits in right.items():
            assert logged[f"pivot_count_{name}"] == len(hits)
            assert logged[f"pivot_accuracy_{name}"] == pytest.approx(sum(hits) / len(hits))
            assert logged[f"pivot_greedy_{name}"] <= logged[f"pivot_accuracy_{name}"]

        nll, terms, right = by_hand(model, rows[3:10], ids)
        pivot_nll, _, _ = by_hand(model, [only_pivot(row) for row in rows[3:10]], ids)
        objective = float(sum(nll) + 2.0 * sum(pivot_nll)) / len(nll) + 0.5 * sum(
            float(mean(values)) for values in terms.values()
        )
        assert evaluated["eval_loss"] == pytest.approx(objective, rel=1e-5)
        assert evaluated["eval_cross_entropy"] == pytest.approx(float(mean(nll)), rel=1e-5)
    assert result.metrics["eval_loss"] == evaluated["eval_loss"]
    assert result.metrics["loss"] == logged["loss"] and result.steps == 2


def only_pivot(row):
    """The example with its one pivot target and no other."""
    labels = [-100] * len(row["labels"])
    labels[-2] = row["labels"][-2]
    return {"input_ids": row["input_ids"], "labels": labels}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_batches_and_accumulation_split_alike(tmp_path, family, tied):
    outcomes = []
    for batch_size, accumulation in ((8, 1), (4, 2), (1, 8), (3, 3)):
        model, tokenizer, _, rows = setup(family, tied=tied)
        without_dropout(model)
        window = batch_size * accumulation
        split = config(
            tmp_path / f"{batch_size}x{accumulation}",
            batch_size=batch_size,
            accumulation=accumulation,
            max_steps=5,
            learning_rate=1e-3,
        )
        result = train(split, model, tokenizer, rows)
        outcomes.append((window, [line["loss"] for line in lines(result)], model.state_dict()))
    _, losses, weights = outcomes[0]
    for window, other_losses, other_weights in outcomes[1:]:
        if window != 8:  # other examples in a step: the test can fail
            assert other_losses != pytest.approx(losses, rel=1e-5)
            continue
        assert other_losses == pytest.approx(losses, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(other_weights[name], weight, rtol=1e-4, atol=2e-6)


def test_without_pivot_weight_it_is_cross_entropy(tmp_path):
    """Against a plain loop on the model's own loss."""
    model, tokenizer, _, rows = setup()
    without_dropout(model)
    rows = rows[:4]
    plain, _, _, _ = setup()
    without_dropout(plain).load_state_dict(model.state_dict())
    schedule = {"lr_scheduler": "constant_with_warmup", "warmup_ratio": 0.0}
    train(
        config(tmp_path, pivot_weight=0.0, max_grad_norm=0.0, max_steps=3, **schedule),
        model,
        tokenizer,
        rows,
    )
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        nll = []
        for row in rows:
            logits = plain(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            target = torch.tensor(row["labels"][1:])
            nll.append(F.cross_entropy(logits, target, reduction="none")[target != -100])
        torch.cat(nll).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in plain.state_dict().items():
        # Of updates of 3e-2: Adam magnifies the rounding of a gradient that is almost zero.
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("scheduler", "shares"),
    [
        ("constant_with_warmup", [0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ("linear", [0, 1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0, 1 / 3, 2 / 3, *((1 + math.cos(math.pi * n / 6)) / 2 for n in range(6))]),
    ],
)
def test_the_rate_rises_over_its_share_of_the_steps(tmp_path, scheduler, shares):
    model, tokenizer, _, rows = setup(n=4)
    result = train(
        config(tmp_path, max_steps=9, warmup_ratio=1 / 3, lr_scheduler=scheduler),
        model,
        tokenizer,
        rows,
    )
    rates = [line["learning_rate"] for line in lines(result)]
    assert rates == pytest.approx([1e-2 * share for share in shares], abs=1e-9)


def test_weights_decay_by_the_rate(tmp_path):
    step = {"max_steps": 1, "warmup_ratio": 0.0, "lr_scheduler": "constant_with_warmup"}
    found = []
    for decay in (0.0, 0.5):
        model, tokenizer, _, rows = setup(n=4)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        train(
            config(tmp_path / str(decay), weight_decay=decay, **step),
            without_dropout(model),
            tokenizer,
            rows,
        )
        found.append(model.state_dict())
    for name, weight in before.items():
        expected = found[0][name] - (0 if "norm" in name else 1e-2 * 0.5 * weight)
        torch.testing.assert_close(found[1][name], expected, rtol=0, atol=1e-6)


def test_an_evaluation_between_two_lines_of_the_log_is_not_in_them(tmp_path):
    model, tokenizer, ids, rows = setup(n=8)
    often = config(
        tmp_path, max_steps=4, logging_steps=4, eval_steps=1, learning_rate=0.0, batch_size=4
    )
    result = train(often, without_dropout(model), tokenizer, rows, rows[:3])
    (logged,) = (line for line in lines(result) if "loss" in line)
    with torch.no_grad():
        nll, _, right = by_hand(model, rows, ids)
    assert logged["targets"] == 2 * len(nll)  # two epochs
    assert logged["cross_entropy"] == pytest.approx(float(mean(nll)), rel=1e-5)
    assert logged["pivot_count_safe"] == 2 * len(right["safe"])


def test_the_last_of_ten_checkpoints_is_the_tenth(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / WHOLE).touch()
    tenth = str(tmp_path / "checkpoint-10")
    assert last_whole_checkpoint(tmp_path, remove_broken=False) == tenth
    assert (tmp_path / "checkpoint-100").exists()
    assert last_whole_checkpoint(tmp_path, remove_broken=True) == tenth
    assert not (tmp_path / "checkpoint-100").exists()


def test_what_decides_is_in_the_name_of_a_run(tmp_path):
    model, _, _, rows = setup(n=2)
    names = [fingerprint({"seed": 0}, (rows, rows[:1]), model)]
    names.append(fingerprint({"seed": 1}, (rows, rows[:1]), model))
    for field in ("input_ids", "labels"):
        other = {**rows[1], field: [*rows[1][field][:-1], 3 + rows[1][field][-1] % 2]}
        names.append(fingerprint({"seed": 0}, ([rows[0], other], rows[:1]), model))
    model.lm_head.weight.requires_grad_(False)
    names.append(fingerprint({"seed": 0}, (rows, rows[:1]), model))
    assert len(set(names)) == 5 and all(len(name) == 16 for name in names)

    model.lm_head.weight.requires_grad_(True)
    _, tokenizer, _, _ = setup(n=2)
    runs = [
        train(config(tmp_path, max_steps=1, learning_rate=0.0, **change), model, tokenizer, rows)
        for change in ({}, {"seed": 1}, {"contrast": "all"}, {"packing": True}, {"save_steps": 1})
    ]
    assert len({result.run for result in runs}) == 4 and runs[-1].run == runs[0].run
    # With the same weights, other norms are another model; and the template is saved with it.
    still = config(tmp_path, max_steps=1, learning_rate=0.0)
    model.config.rms_norm_eps = 0.5
    runs.append(train(still, model, tokenizer, rows))
    tokenizer.chat_template += "{# another #}"
    runs.append(train(still, model, tokenizer, rows))
    assert len({result.run for result in runs}) == 6
    saved = AutoTokenizer.from_pretrained(runs[-1].model_dir)
    assert saved.chat_template == tokenizer.chat_template
    assert train(still, model, saved, rows).run == runs[-1].run


def interrupted(output):
    return config(output, max_steps=9, save_steps=2, accumulation=2, eval_steps=3)


class Killed(R2DTrainer):
    """Ends its process without a word while it is in its sixth step."""

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(*args, **kwargs)


def test_killed_run_ends_like_an_unbroken_one(tmp_path):
    model, tokenizer, _, rows = setup()
    whole = train(interrupted(tmp_path / "whole"), model, tokenizer, rows, rows[:5])
    assert len(rows) / 8 < 4  # an epoch is three steps: the checkpoint lies inside the second

    broken = tmp_path / "broken"
    child = subprocess.run(
        [sys.executable, __file__, str(broken)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not (broken / "model").exists() and not (broken / "training.json").exists()
    assert json.loads((broken / "log.jsonl").read_text().splitlines()[-1])["step"] == 5
    (checkpoints,) = broken.glob("checkpoints-*")
    assert {p.name for p in checkpoints.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    # As a kill in the middle of the next checkpoint would have left it.
    shutil.copytree(checkpoints / "checkpoint-4", checkpoints / "checkpoint-6")
    (checkpoints / "checkpoint-6" / WHOLE).unlink()
    (checkpoints / "checkpoint-6" / "optimizer.pt").write_bytes(b"half")

    model, tokenizer, _, rows = setup()
    steps = []
    unpatched = R2DTrainer.training_step

    def counted(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return unpatched(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(R2DTrainer, "training_step", counted)
        patch.setattr("r2d_core.checkpoints.source_sha256", lambda: "an edit later")
        resumed = train(interrupted(broken), model, tokenizer, rows, rows[:5])
    assert min(steps) == 4
    expected = load_file(whole.model_dir / "model.safetensors")
    actual = load_file(resumed.model_dir / "model.safetensors")
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())
    assert without_time(lines(resumed)) == without_time(lines(whole))
    assert resumed.run == whole.run and resumed.steps == whole.steps == 9
    assert whole.sources == [source_sha256()]
    assert resumed.sources == [source_sha256(), "an edit later"]  # both have trained it
    again, tokenizer, _, rows = setup()
    assert train(interrupted(broken), again, tokenizer, rows, rows[:5]) == resumed
    left = {path.name for path in broken.iterdir()} - {LOCK}
    assert left == {"model", "log.jsonl", "training.json"}


def without_time(log):
    timed = ("seconds", "runtime", "per_second")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in log]


def test_finished_run_is_not_run_again(tmp_path, monkeypatch):
    model, tokenizer, _, rows = setup()
    initial = {name: weight.clone() for name, weight in model.state_dict().items()}
    first = train(config(tmp_path), model, tokenizer, rows)
    trained = {name: weight.clone() for name, weight in model.state_dict().items()}

    with monkeypatch.context() as patch:
        patch.setattr(training, "R2DTrainer", None)
        model.load_state_dict(initial)
        assert train(config(tmp_path), model, tokenizer, rows) == first
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in trained.items())

    # Another parameter, other data and another initial model are other runs.
    changed = [train(config(tmp_path, learning_rate=2e-2), model, tokenizer, rows)]
    model.load_state_dict(initial)
    changed.append(train(config(tmp_path), model, tokenizer, rows[:-1]))
    changed.append(train(config(tmp_path), model, tokenizer, rows))
    assert len({first.run, *(result.run for result in changed)}) == 4
    # Another place is not.
    model.load_state_dict(initial)
    elsewhere = train(config(tmp_path / "elsewhere"), model, tokenizer, rows)
    assert elsewhere.run == first.run and elsewhere.metrics["loss"] == first.metrics["loss"]


def test_saved_model_is_the_trained_one(tmp_path):
    model, tokenizer, _, rows = setup(tied=True)
    assert model.config.use_cache
    result = train(config(tmp_path, bf16=True), model, tokenizer, rows)
    assert model.config.use_cache and not model.training
    assert "forward" not in vars(model.lm_head)
    saved = AutoModelForCausalLM.from_pretrained(result.model_dir)
    assert saved.config.use_cache and saved.dtype == torch.float32
    tokens = torch.tensor([rows[0]["input_ids"]])
    assert torch.equal(saved(tokens).logits, model(tokens).logits)
    assert AutoTokenizer.from_pretrained(result.model_dir).get_vocab() == tokenizer.get_vocab()
    assert not [*result.model_dir.glob("*.bin"), *result.model_dir.glob("*.pt")]
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["steps"] == 6 and record["config"]["bf16"] is True
    assert record["metrics"] == result.metrics


def test_plain_cross_entropy_asks_for_no_pivots(tmp_path):
    tokenizer = tiny_tokenizer("word")
    model = tiny_model("llama", tokenizer)
    rows = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}]
    with pytest.raises(InputError, match="expand_vocabulary"):
        train(config(tmp_path), model, tokenizer, rows)
    result = train(config(tmp_path, pivot_weight=0.0), model, tokenizer, rows)
    assert "pivot_loss" not in result.metrics and result.metrics["cross_entropy"] > 0


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    model, tokenizer, _, rows = setup()
    with torch.no_grad():
        model.lm_head.weight[0] = torch.nan
    with pytest.raises(InputError, match="the loss is nan at step 1: lower learning_rate"):
        train(config(tmp_path), model, tokenizer, rows)
    assert not (tmp_path / "model").exists()


def test_what_only_says_how_often_to_save_and_report_goes_on_with_the_run(
    tmp_path, monkeypatch, capsys
):
    class Interrupted(R2DTrainer):
        steps: list[int] = []
        end: int | None = 3

        def training_step(self, *args, **kwargs):
            if self.state.global_step == self.end:
                raise KeyboardInterrupt
            self.steps.append(self.state.global_step)
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr("r2d_core.training.R2DTrainer", Interrupted)

    def run(**changes):
        model, tokenizer, _, rows = setup(n=8)
        Interrupted.steps = []
        settings = {"max_steps": 4, "save_steps": 2} | changes
        return train(config(tmp_path, **settings), model, tokenizer, rows)

    with pytest.raises(KeyboardInterrupt):
        run()
    (checkpoints,) = tmp_path.glob("checkpoints-*")
    assert "a new run" not in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        run(learning_rate=2e-3)  # another run, which says what it does not go on with
    assert Interrupted.steps == [0, 1, 2]
    assert f"a new run; {checkpoints}: of another run" in capsys.readouterr().out
    Interrupted.end = None
    run(save_steps=1)
    assert Interrupted.steps == [2, 3]
    assert f"goes on from {checkpoints / 'checkpoint-2'}" in capsys.readouterr().out
    run(learning_rate=3e-3)
    assert f"a new run; {tmp_path / 'model'}: of another run" in capsys.readouterr().out


def test_two_do_not_train_into_one_folder(tmp_path):
    model, tokenizer, _, rows = setup(n=4)
    with only_run_in(tmp_path), pytest.raises(InputError, match="another run is writing"):
        train(config(tmp_path, max_steps=1), model, tokenizer, rows)
    assert train(config(tmp_path, max_steps=1), model, tokenizer, rows).steps == 1


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def refused(number):
        raise OSError(number, "no lock")

    monkeypatch.setattr("fcntl.flock", lambda *_: refused(errno.ENOLCK))
    with only_run_in(tmp_path):
        pass
    monkeypatch.setattr("fcntl.flock", lambda *_: refused(errno.EIO))
    with pytest.raises(OSError, match="no lock"), only_run_in(tmp_path):
        pass


def test_what_transformers_refuses_is_one_line(tmp_path, monkeypatch):
    """bfloat16 on a CPU where an engine is to choose the device."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^TrainConfig: transformers refuses it .*bf16"):
        training._arguments(config(tmp_path, bf16=True), tmp_path, evaluate=False)


def test_tensorboard_shows_what_the_log_holds(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="report_to='tensorboard' needs it",
    )
    model, tokenizer, _, rows = setup()
    result = train(config(tmp_path, report_to="tensorboard"), model, tokenizer, rows, rows[:4])
    curves = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    loss = {event.step: event.value for event in curves.Scalars("train/loss")}
    assert loss == pytest.approx({e["step"]: e["loss"] for e in lines(result) if "loss" in e})
    shown = curves.Tags()["scalars"]
    assert {"train/pivot_accuracy_safe", "train/pivot_loss", "eval/loss"} <= set(shown)


@pytest.mark.parametrize("library", ["wandb", "tensorboard"])
def test_what_reports_is_asked_for_by_name(tmp_path, monkeypatch, library):
    model, tokenizer, _, rows = setup(n=4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = f"report_to='{library}': expected the library: pip install {library}"
    with pytest.raises(InputError, match=wanted):
        train(config(tmp_path, report_to=library), model, tokenizer, rows)


def test_wandb_gets_what_the_log_holds(tmp_path, monkeypatch):
    """Against a module that takes the calls in the library's place."""
    wandb = MagicMock(run=None, __spec__=ModuleSpec("wandb", None))
    wandb.init.side_effect = lambda **_: setattr(wandb, "run", MagicMock())
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    problems = MagicMock(ConfigError=ValueError)
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.config_util", problems)
    model, tokenizer, _, rows = setup()
    result = train(config(tmp_path, report_to="wandb"), model, tokenizer, rows, rows[:4])
    wandb.init.assert_called_once()
    sent = [call.args[0] for call in wandb.log.call_args_list]
    assert [each["train/loss"] for each in sent if "train/loss" in each] == [
        line["loss"] for line in lines(result) if "loss" in line
    ]
    assert any("eval/loss" in each for each in sent)
    assert any("train/pivot_loss" in each for each in sent)


def test_wandb_writes_a_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="report_to='wandb' needs it; the stub's test does not")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    model, tokenizer, _, rows = setup(n=4)
    train(config(tmp_path / "run", max_steps=2, report_to="wandb"), model, tokenizer, rows)
    assert [*tmp_path.glob("wandb/offline-run-*/*.wandb")]


def test_a_build_that_a_kill_left_locked_is_named(tmp_path, monkeypatch):
    """DeepSpeed, and without a word, would wait for it until somebody else ends it."""
    lock = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    training.check_machine(config(tmp_path))  # one that goes on
    os.utime(lock, (0, time.time() - 3600))
    model, tokenizer, _, rows = setup(n=4)
    with pytest.raises(InputError, match=f"{lock}: a build that began 60 minutes ago has not"):
        train(config(tmp_path), model, tokenizer, rows)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    training.check_machine(config(tmp_path))  # nothing waits for it


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200),
    window=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 3),
    grouped=st.booleans(),
)
def test_sampler_visits_everything_once(lengths, window, seed, epoch, grouped):
    def sampler():
        made = WindowSampler(lengths, window=window, seed=seed, group_by_length=grouped)
        made.set_epoch(epoch)
        return made

    order = list(sampler())
    assert sorted(order) == list(range(len(lengths))) and len(sampler()) == len(lengths)
    assert list(sampler()) == order
    filled = WindowSampler(lengths, window=window, seed=seed, group_by_length=grouped, fill=3)
    filled.set_epoch(epoch)
    assert list(filled) == order + [len(lengths) + i for i in range(3)] and len(filled) == len(
        list(filled)
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_examples_are_drawn_as_the_configuration_says(tmp_path, monkeypatch, grouped):
    model, tokenizer, _, rows = setup(n=9)
    read = []
    compute_loss = R2DTrainer.compute_loss

    def noting(self, model, inputs, *arguments, **options):
        widths = inputs["attention_mask"].sum(1).tolist()
        read.extend(ids[:n] for ids, n in zip(inputs["input_ids"].tolist(), widths, strict=True))
        return compute_loss(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(R2DTrainer, "compute_loss", noting)
    size = {"batch_size": 2, "accumulation": 2, "max_steps": 2}
    train(config(tmp_path, seed=7, group_by_length=grouped, **size), model, tokenizer, rows)
    lengths = [len(row["input_ids"]) for row in rows]
    order = list(WindowSampler(lengths, window=4, seed=7, group_by_length=grouped))
    assert read == [rows[place]["input_ids"] for place in order[:8]]
    other = WindowSampler(lengths, window=4, seed=7, group_by_length=not grouped)
    assert list(other)[:8] != order[:8]


def test_sampler_groups_and_mixes():
    lengths = [random.Random(i).randrange(1, 1000) for i in range(2000)]
    sampler = WindowSampler(lengths, window=20, seed=1, group_by_length=True)
    windows = [list(sampler)[i : i + 20] for i in range(0, 2000, 20)]
    spreads = [max(x) - min(x) for x in ([lengths[i] for i in w] for w in windows)]
    assert sum(spreads) / len(spreads) < 200  # of 1000 at random
    means = [sum(lengths[i] for i in window) / 20 for window in windows]
    falls = sum(a > b for a, b in zip(means, means[1:], strict=False))
    assert 25 < falls < 75  # from one step to the next lengths rise as often as they fall
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(WindowSampler(lengths, window=20, seed=2, group_by_length=True)) != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": "1e-3"}, r"TrainConfig learning_rate: expected float, got '1e-3' \(str"),
        (
            {"learning_rate": float("nan")},
            "learning_rate: expected a number from 0 to inf, got nan",
        ),
        ({"batch_size": 0}, "batch_size: expected a number from 1 to inf, got 0"),
        ({"warmup_ratio": 2}, "warmup_ratio: expected a number from 0 to 0.999, got 2"),
        ({"contrast": "papper"}, "contrast: expected one of 'paper', 'all', got 'papper'"),
        ({"epochs": 1.0}, "expected either max_steps or epochs, got max_steps=6, epochs=1.0"),
        ({"max_steps": None}, "expected either max_steps or epochs"),
        ({"seed": -1}, "seed: expected a number from 0"),
        ({"output_dir": ""}, "output_dir: expected a path, got ''"),
    ],
)
def test_bad_configuration_is_named(change, message):
    defaults = {"output_dir": "somewhere", "max_steps": 6}
    with pytest.raises(InputError, match=message):
        TrainConfig(**(defaults | change))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "train_rows: expected at least one example, got none"),
        ([{"input_ids": [1]}], r"train_rows\[0\]: expected a dict with input_ids and labels"),
        ([{"input_ids": [1, 2], "labels": [1]}], r"train_rows\[0\]: .* got 2 and 1"),
        ([{"input_ids": [1, 9999], "labels": [-100, 2]}], r"train_rows\[0\] input_ids: .* 1 to 99"),
        ([{"input_ids": [1, 2], "labels": [-100, -1]}], r"train_rows\[0\] labels: .* -1 to -1"),
        ([{"input_ids": [1, "rows"], "labels": [-100, 2]}], r"input_ids: .* 0 to \d+ \(the rows"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    model, tokenizer, _, _ = setup(n=1)
    n_rows = len(model.get_input_embeddings().weight)  # one more than the last id
    for row in rows:
        row["input_ids"] = [n_rows if each == "rows" else each for each in row["input_ids"]]
    with pytest.raises(InputError, match=message):
        train(config(tmp_path), model, tokenizer, rows)


def test_logits_that_are_more_than_a_linear_layer_are_refused(tmp_path):
    model, tokenizer, _, rows = setup(n=1)
    model.config.logits_scaling = 8.0  # Granite's
    with pytest.raises(InputError, match="the configuration has logits_scaling"):
        train(config(tmp_path), model, tokenizer, rows)
    model.config.logits_scaling = None
    model.lm_head = torch.nn.Linear(32, 8, bias=True)
    with pytest.raises(InputError, match="its output layer is Linear"):
        train(config(tmp_path), model, tokenizer, rows)


@pytest.mark.parametrize("extra", [lambda logits: logits * 0.9, lambda z: 30 * (z / 30).tanh()])
def test_logits_that_the_model_goes_on_with_are_refused(tmp_path, extra):
    """Where neither the layer nor the configuration tells; before any step is taken."""
    model, tokenizer, _, rows = setup(n=4)
    before = model.lm_head.weight.clone()

    def goes_on(module, args, output):
        output.logits = extra(output.logits)

    model.register_forward_hook(goes_on)
    with pytest.raises(InputError, match="the model does more to them: its output layer made "):
        train(config(tmp_path), model, tokenizer, rows)
    assert torch.equal(model.lm_head.weight, before)


def test_a_broken_record_is_named(tmp_path):
    model, tokenizer, _, rows = setup(n=4)
    train(config(tmp_path, max_steps=1), model, tokenizer, rows)
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(InputError, match="training.json: not the record of a training run"):
        train(config(tmp_path, max_steps=1), model, tokenizer, rows)


if __name__ == "__main__":  # the child process of the test of killed runs
    torch.set_num_threads(1)
    training.R2DTrainer = Killed
    model, tokenizer, _, rows = setup()
    train(interrupted(sys.argv[1]), model, tokenizer, rows, rows[:5])
