"""LoRA and the new tokens' rows: every family from expansion to generation; what is never made."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import CORPUS, FAMILIES, GEMMAS, OF_THE_MATRIX, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2d_core.adapters import (
    LoraSettings,
    add_adapters,
    base_state,
    merge_adapters,
    new_token_ids,
)
from r2d_core.anchor import mark_benign
from r2d_core.batching import PackingCollator
from r2d_core.errors import InputError
from r2d_core.generation import Request, TransformersGenerator
from r2d_core.losses import r2d_loss
from r2d_core.output_layer import OutputLayer
from r2d_core.packed_attention import attend_by_example, attention_by_example
from r2d_core.pivots import PivotIds, expand_vocabulary
from r2d_core.tokenization import Collator, encode_example
from r2d_core.training import CHECKPOINTING, R2DTrainer, TrainConfig, train

# family, tied as the real ones are, rows the embedding has more than the tokenizer has tokens
MATRIX = [
    ("llama", False, 0),
    ("llama2", False, 0),
    ("vicuna", False, 0),
    ("mistral", False, 0),
    ("qwen2", True, 17),
    ("qwen2", False, 5),
    ("qwq", False, 11),
    ("qwen3", True, 3),
    ("qwen3", False, 0),
    ("r1", False, 0),
    *((family, True, 0) for family in GEMMAS),
]
RESPONSES = [
    "<think>the request is safe [SAFE] so i may answer [SAFE]</think>hello there .",
    "<think>wait , reconsider [RETHINK] that is harmful [UNSAFE]</think>i must refuse .",
]


def examples(tokenizer, n=12):
    return [encode_example(tokenizer, CORPUS[i % len(CORPUS)], RESPONSES[i % 2]) for i in range(n)]


def settings(**changes):
    return LoraSettings(**({"rank": 4, "alpha": 8.0} | changes))


def matrices(model):
    """Embedding and, where it is another, output matrix."""
    found = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return found[:1] if found[0] is found[1] else found


@pytest.mark.parametrize(("family", "tied", "padding"), MATRIX)
@pytest.mark.parametrize("new_rows", ["rows", "modules_to_save"])
def test_from_expansion_to_generation(tmp_path, family, tied, padding, new_rows):
    if new_rows == "modules_to_save" and family not in ("llama", "qwen3", "gemma3"):
        pytest.skip("one family of each kind of tying trains its matrices whole")
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer, tied=tied, padding_rows=padding)
    n_old = len(tokenizer)
    ids = expand_vocabulary(model, tokenizer)
    fresh = new_token_ids(tokenizer)
    assert min(fresh) == n_old and len(fresh) == (6 if family in ("qwen3", "r1", "qwq") else 8)
    base, size = copy.deepcopy(model), matrices(model)[0].shape[0]
    rows = examples(tokenizer)
    config = TrainConfig(
        tmp_path,
        max_steps=20,
        batch_size=4,
        learning_rate=1e-2,
        lora=settings(new_rows=new_rows),
        logging_steps=1,
    )
    result = train(config, model, tokenizer, rows, rows[:4])
    losses = [json.loads(line).get("loss") for line in result.log.read_text().splitlines()]
    assert losses[-2] < 0.9 * losses[0]

    # The model that was given is itself again, trained, and so is what lies on disk.
    assert not any("lora" in name or "token_adapter" in name for name, _ in model.named_modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    saved = AutoModelForCausalLM.from_pretrained(
        result.model_dir, attn_implementation=model.config._attn_implementation
    )
    again = AutoTokenizer.from_pretrained(result.model_dir)
    assert PivotIds.from_tokenizer(again) == ids
    assert again.chat_template and again.chat_template == tokenizer.chat_template
    assert [len(matrices(each)) for each in (model, saved)] == [1 if tied else 2] * 2
    assert all(each.shape[0] == size == saved.config.vocab_size for each in matrices(saved))
    for name, weight in model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight), name
    prompt = torch.tensor([rows[0]["input_ids"][:6]])
    written = [
        each.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
        for each in (model, saved)
    ]
    assert torch.equal(*written)

    # Only the new tokens' rows have moved, or all that occurred.
    for before, after in zip(matrices(base), matrices(saved), strict=True):
        moved = (before != after).any(dim=1).nonzero().flatten().tolist()
        assert set(fresh[:3]) <= set(moved)
        if new_rows == "rows":
            assert set(moved) <= set(fresh)
        else:
            assert len(moved) > len(fresh)
    assert not torch.equal(
        base.model.layers[0].mlp.up_proj.weight, saved.model.layers[0].mlp.up_proj.weight
    )
    assert torch.equal(
        base.model.layers[0].mlp.gate_proj.weight, saved.model.layers[0].mlp.gate_proj.weight
    )

    # The adapter loads with plain PEFT on the base that anyone has.
    elsewhere = tiny_model(family, tiny_tokenizer(family), tied=tied, padding_rows=padding)
    elsewhere.resize_token_embeddings(size, mean_resizing=False)
    adapted = PeftModel.from_pretrained(elsewhere, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(prompt).logits, saved(prompt).logits, rtol=1e-4, atol=1e-4
        )
    if new_rows == "rows":  # no copy of the vocabulary in it
        stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert all(size not in tensor.shape for tensor in stored.values())


@pytest.mark.parametrize("family", OF_THE_MATRIX)
def test_the_template_is_trained_with_and_saved(tmp_path, family):
    """Vicuna's, that its tokenizer comes without; QwQ's, where the prompt opens the reasoning."""
    tokenizer = tiny_tokenizer(family)
    prompt = [{"role": "user", "content": CORPUS[0]}]
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    assert text.endswith({"vicuna": " ASSISTANT:", "qwq": "<think>\n"}.get(family, "[/INST]"))
    model = tiny_model(family, tokenizer)
    expand_vocabulary(model, tokenizer)
    rows = examples(tokenizer)
    config = TrainConfig(
        tmp_path, max_steps=20, batch_size=4, learning_rate=1e-2, lora=settings(), logging_steps=1
    )
    result = train(config, model, tokenizer, rows)
    losses = [json.loads(line).get("loss") for line in result.log.read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    again = AutoTokenizer.from_pretrained(result.model_dir)
    assert again.chat_template == tokenizer.chat_template
    assert examples(again) == rows
    saved = AutoModelForCausalLM.from_pretrained(result.model_dir)
    (said,) = TransformersGenerator(saved, again).generate([Request(CORPUS[0])], 8)
    assert said.response_tokens > 0


def loss_and_gradients(adapted, ids, batch, **changes):
    """The trainer's way: the output layer asked for the loss."""
    head = OutputLayer.of(adapted)
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100).flatten()

    def loss_of(hidden):
        arguments = head.loss_arguments() | {"softcap": softcap} | changes
        return r2d_loss(hidden.flatten(0, 1), targets=targets, pivots=ids, **arguments).total

    softcap = head.softcap
    names = ("input_ids", "position_ids", "example_lengths")
    read = {name: batch[name] for name in names if name in batch}
    with head.replaced_by(loss_of):
        total = adapted(**read, use_cache=False).logits
    return total, gradients(adapted, total)


def gradients(adapted, total):
    adapted.zero_grad()
    total.backward()
    return {n: p.grad.clone() for n, p in adapted.named_parameters() if p.grad is not None}


def with_adapters(family, tied, *, new_rows="rows", padding=3):
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer, tied=tied, padding_rows=padding)
    ids = expand_vocabulary(model, tokenizer)
    torch.manual_seed(0)
    adapted = add_adapters(model, settings(new_rows=new_rows), new_token_ids(tokenizer))
    with torch.no_grad():  # B begins at zero: nothing would reach A
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "tokens_delta" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return adapted, tokenizer, ids


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("qwen2", True), *((each, True) for each in GEMMAS)]
)
@pytest.mark.parametrize("new_rows", ["rows", "modules_to_save", "none"])
def test_gradients_are_those_of_plain_peft_and_a_naive_loss(family, tied, new_rows):
    adapted, tokenizer, ids = with_adapters(family, tied, new_rows=new_rows)
    batch = Collator(0)(examples(tokenizer, 3))
    total, ours = loss_and_gradients(adapted, ids, batch)

    if new_rows == "rows":  # PEFT's own look-up again
        del adapted.get_input_embeddings().forward
    logits = adapted(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
    targets = batch["labels"][:, 1:].flatten()
    naive = F.cross_entropy(logits, targets, ignore_index=-100)
    for own, other in ((ids.safe, ids.unsafe), (ids.unsafe, ids.safe)):
        at = targets == own
        naive = naive + F.softplus(logits[at, other] - logits[at, own]).mean()
    theirs = gradients(adapted, naive)
    assert total.item() == pytest.approx(naive.item(), rel=1e-5)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert any("tokens_delta" in name for name in ours) == (new_rows == "rows")
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_adapters_drop_out_as_they_are_told():
    tokenizer = tiny_tokenizer("llama")
    ids = torch.tensor([[5, 6, 7]])
    for dropout in (0.0, 0.5):
        model = tiny_model("llama", tokenizer)
        adapted = add_adapters(model, settings(dropout=dropout, new_rows="none"), [])
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1)
            adapted.train()
            same = torch.equal(adapted(ids).logits, adapted(ids).logits)
            assert same == (dropout == 0)
            adapted.eval()
            assert torch.equal(adapted(ids).logits, adapted(ids).logits)


class Largest(TorchDispatchMode):
    """Notes the size of the largest storage that an operation made."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    size = storage.nbytes() // tensor.element_size()
                    self.elements = max(self.elements, size)
        return out


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen2", True), ("gemma2", True)])
@pytest.mark.parametrize("new_rows", ["rows", "modules_to_save"])
def test_nothing_of_the_size_of_the_vocabulary_is_made(family, tied, new_rows):
    adapted, tokenizer, ids = with_adapters(family, tied, new_rows=new_rows)
    weight = OutputLayer.of(adapted).linear.weight
    batch = {name: tensor[:, -20:] for name, tensor in Collator(0)(examples(tokenizer, 1)).items()}
    assert batch["labels"].ne(-100).any() and batch["labels"].numel() < weight.shape[1]
    gc.collect()
    with Largest([*adapted.parameters(), *adapted.buffers()]) as made:
        loss_and_gradients(adapted, ids, batch)
    whole = made.elements >= weight.numel()
    assert whole == (new_rows == "modules_to_save")  # which shows that the measure can see it


@pytest.fixture
def flash(monkeypatch):
    """Flash attention as transformers calls it, its kernel replaced by SDPA; notes how it cuts."""
    cuts = []

    def varlen(q, k, v, *, cu_seqlens_q, cu_seqlens_k, softmax_scale, sliding_window, **_):
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        cuts.append(cu_seqlens_q.tolist())
        module = torch.nn.Module()
        module.num_key_value_groups = q.shape[1] // k.shape[1]
        out, _ = attend_by_example(
            module,
            *(each.transpose(0, 1)[None] for each in (q, k, v)),
            None,
            example_lengths=cu_seqlens_q.diff().tolist(),
            sliding_window=sliding_window,
            scaling=softmax_scale,
        )
        return out[0]

    monkeypatch.setattr(
        "transformers.modeling_flash_attention_utils.lazy_import_flash_attention",
        lambda *_, **__: ((None, varlen, None, None, None), (dict, None)),
    )
    return cuts


@pytest.mark.parametrize("way", ["eager", "sdpa", "by_example", "flash"])
@pytest.mark.parametrize("family", sorted({family for family, *_ in MATRIX}))
def test_packed_examples_do_not_see_each_other(family, way, flash):
    """Loss and gradients of a packed batch are those of the padded one, however it is attended.

    No kernel of flash attention runs here; what transformers would have it cut and mask does.
    """
    if family == "gemma2" and way != "eager":
        pytest.skip("its scores are capped, which of these only the eager attention does")
    adapted, tokenizer, ids = with_adapters(family, family not in ("llama", "mistral", "r1"))
    model = adapted.get_base_model()
    rows = examples(tokenizer, 4)
    rows[2]["labels"][0] = rows[2]["input_ids"][0]  # a target that nothing predicts
    padded, expected = loss_and_gradients(adapted, ids, Collator(0)(rows))
    batch = PackingCollator()(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    assert batch["input_ids"].shape == (1, sum(lengths))
    if way == "flash":
        model.config._attn_implementation = "flash_attention_2"  # whose package is not here
    else:
        model.set_attn_implementation("eager" if way == "eager" else "sdpa")
    by_example = way == "by_example"
    with attention_by_example(model) if by_example else nullcontext():
        packed, found = loss_and_gradients(adapted, ids, batch)
        assert packed.item() == pytest.approx(padded.item(), rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
        if way == "flash":
            boundaries = [0, *itertools.accumulate(lengths)]
            assert flash == [boundaries] * model.config.num_hidden_layers
            return
        # Without its boundaries, they do see each other.
        one = {"example_lengths": [sum(lengths)]} if by_example else {}
        names = ("input_ids", "labels", "position_ids")[: 3 if by_example else 2]
        leaking, _ = loss_and_gradients(adapted, ids, {name: batch[name] for name in names} | one)
        assert leaking.item() != pytest.approx(padded.item(), rel=1e-4)


@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_by_example_is_attention_under_the_whole_mask(window, kv_heads):
    lengths, heads, size = [5, 1, 23, 11], 4, 8
    total = sum(lengths)
    q, k, v = (
        torch.randn(1, n, total, size, dtype=torch.float64, requires_grad=True)
        for n in (heads, kv_heads, kv_heads)
    )
    example = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    back = torch.arange(total)[:, None] - torch.arange(total)[None, :]
    mask = (example[:, None] == example[None, :]) & (back >= 0)
    if window is not None:
        mask &= back < window
    module = torch.nn.Module()
    module.num_key_value_groups = heads // kv_heads
    found, _ = attend_by_example(
        module, q, k, v, None, example_lengths=lengths, sliding_window=window, scaling=0.3
    )
    whole = [each.repeat_interleave(heads // kv_heads, dim=1) for each in (k, v)]
    expected = F.scaled_dot_product_attention(q, *whole, attn_mask=mask, scale=0.3).transpose(1, 2)
    assert found.shape == (1, total, heads, size)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), upstream),
        torch.autograd.grad(expected, (q, k, v), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_training_attends_by_example_and_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    """No score of one packed example with another is computed, also when activations are not kept;
    a run that breaks off leaves the model with the attention it came with."""
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    expand_vocabulary(model, tokenizer)
    assert model.config._attn_implementation == "sdpa"
    rows, seen = examples(tokenizer, 6), set()
    real = F.scaled_dot_product_attention

    def noted(query, key, *others, **settings):
        seen.add((query.shape[2], key.shape[2], settings.get("is_causal")))
        return real(query, key, *others, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    options = {"packing": True, "gradient_checkpointing": True, "kl_weight": 0.1}
    marked = [mark_benign(row, n % 2 == 0) for n, row in enumerate(rows)]
    config = TrainConfig(tmp_path / "run", max_steps=1, batch_size=6, lora=settings(), **options)
    train(config, model, tokenizer, marked, rows[:2])
    lengths = {len(row["input_ids"]) for row in rows}
    assert seen == {(length, length, True) for length in lengths}
    assert model.config._attn_implementation == "sdpa"

    bad = {"learning_rate": 1e30, "max_grad_norm": 1e30, "packing": True, "logging_steps": 1}
    with pytest.raises(InputError, match="the loss is"):
        train(TrainConfig(tmp_path / "bad", max_steps=5, **bad), model, tokenizer, rows)
    assert model.config._attn_implementation == "sdpa"


def test_options_of_a_step_change_memory_and_not_the_result(tmp_path):
    outcomes = {}
    for name, options in {
        "plain": {},
        "packing": {"packing": True},
        "checkpointing": {"gradient_checkpointing": True},
        "bf16": {"bf16": True},
    }.items():
        tokenizer = tiny_tokenizer("llama")
        model = tiny_model("llama", tokenizer)
        expand_vocabulary(model, tokenizer)
        config = TrainConfig(
            tmp_path / name,
            max_steps=4,
            batch_size=3,
            learning_rate=1e-3,
            lora=settings(),
            **options,
        )
        rows = examples(tokenizer, 8)
        result = train(config, model, tokenizer, rows, rows[:3])
        assert not getattr(model, f"is_{CHECKPOINTING}")
        outcomes[name] = result.metrics, model.state_dict()
    metrics, weights = outcomes.pop("plain")
    for name, (other_metrics, other_weights) in outcomes.items():
        close = {"rtol": 1e-3, "atol": 1e-5} if name != "bf16" else {"rtol": 0.1, "atol": 4e-3}
        assert other_metrics["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=close["rtol"])
        for key, weight in weights.items():
            torch.testing.assert_close(other_weights[key], weight, **close)
    assert outcomes["bf16"][0]["loss"] != metrics["loss"]


@pytest.mark.parametrize("new_rows", ["rows", "modules_to_save"])
def test_a_model_in_bfloat16_gets_adapters_in_float32(tmp_path, new_rows):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer, dtype=torch.bfloat16)
    expand_vocabulary(model, tokenizer)
    config = TrainConfig(
        tmp_path, max_steps=2, batch_size=3, lora=settings(new_rows=new_rows), bf16=True
    )
    rows = examples(tokenizer, 6)
    with pytest.raises(InputError, match="bf16: expected true for adapters on a model in torch.bf"):
        train(
            TrainConfig(tmp_path, max_steps=2, lora=settings(new_rows=new_rows)),
            model,
            tokenizer,
            rows,
        )
    adapted = add_adapters(
        copy.deepcopy(model), settings(new_rows=new_rows), new_token_ids(tokenizer)
    )
    trained = {p.dtype for p in adapted.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    train(config, model, tokenizer, rows)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_no_adapter_of_another_run_stays_beside_a_model(tmp_path):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    expand_vocabulary(model, tokenizer)
    rows = examples(tokenizer, 2)
    for lora in (settings(), None):
        config = TrainConfig(tmp_path, max_steps=1, batch_size=2, lora=lora)
        result = train(config, model, tokenizer, rows)
        assert result.model_dir.is_dir() and (tmp_path / "adapter").exists() == (lora is not None)


@pytest.mark.parametrize("new_rows", ["rows", "modules_to_save"])
def test_a_run_that_breaks_off_leaves_the_model_as_it_was(tmp_path, monkeypatch, new_rows):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    expand_vocabulary(model, tokenizer)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    config = TrainConfig(
        tmp_path, max_steps=4, batch_size=3, save_steps=1, lora=settings(new_rows=new_rows)
    )
    rows = examples(tokenizer, 6)
    step = R2DTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(R2DTrainer, "training_step", interrupted)
        train(config, model, tokenizer, rows)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())

    # So the same call goes on where the run was, and ends as one that nothing interrupted.
    resumed = train(config, model, tokenizer, rows)
    whole = copy.deepcopy(model)
    whole.load_state_dict(before)
    unbroken = train(
        dataclasses.replace(config, output_dir=tmp_path / "whole"), whole, tokenizer, rows
    )
    assert resumed.run == unbroken.run
    assert all(
        torch.equal(model.state_dict()[name], weight) for name, weight in whole.state_dict().items()
    )


def test_the_base_is_found_again_in_the_state_of_an_adapted_model():
    for new_rows in ("rows", "modules_to_save"):
        adapted, _, _ = with_adapters("llama", False, new_rows=new_rows)
        state = base_state(adapted.state_dict())
        merge_adapters(adapted)
        model = adapted.get_base_model()
        assert state.keys() == model.state_dict().keys()
        assert torch.equal(
            state["model.layers.0.mlp.gate_proj.weight"], model.model.layers[0].mlp.gate_proj.weight
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "LoraSettings: expected rank of 1 or more"),
        ({"alpha": "x"}, "LoraSettings alpha: expected float, got 'x'"),
        ({"targets": []}, "at least one of targets"),
        ({"new_rows": "row"}, "new_rows: expected one of 'rows', 'modules_to_save', 'none'"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(InputError, match=message):
        settings(**change)


def test_targets_and_tokens_that_are_not_there_are_named(tmp_path):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    with pytest.raises(InputError, match="unknown linear layer 'q_prj', did you mean 'q_proj'"):
        add_adapters(model, settings(targets=["q_prj"]), [1])
    with pytest.raises(InputError, match="unknown linear layer 'lm_head'; known: [^;]*v_proj$"):
        add_adapters(model, settings(targets=["q_proj", "lm_head"]), [1])
    with pytest.raises(InputError, match="the tokenizer has no new tokens; add them with expand"):
        add_adapters(model, settings(), new_token_ids(tokenizer))
    with pytest.raises(InputError, match="TrainConfig lora: expected LoraSettings or None, got 4"):
        TrainConfig(tmp_path, max_steps=1, lora=4)


def test_families_are_all_in_the_matrix():
    assert {family for family, _, _ in MATRIX} == {*FAMILIES, *OF_THE_MATRIX, *GEMMAS} - {"word"}
