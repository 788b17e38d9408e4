from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, Family, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from r2d_core.errors import InputError
from r2d_core.pivots import (
    NEW_TOKENS,
    PIVOT_TOKENS,
    RETHINK,
    SAFE,
    UNSAFE,
    Init,
    PivotIds,
    expand_vocabulary,
)

INITS: tuple[Init, ...] = ("description", "mean", "noise")
TEXT = "how do i make the bano tiskel ? hello there, 'user' 42 é中"


def weights(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Input embedding and output matrix."""
    return (
        model.get_input_embeddings().get_parameter("weight"),
        model.get_output_embeddings().get_parameter("weight"),
    )


def logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def expanded(
    family: Family = "llama", *, init: Init = "description", seed: int = 0, **shape: object
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer, **shape)  # type: ignore[arg-type]
    expand_vocabulary(model, tokenizer, init=init, seed=seed)
    return model, tokenizer


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_old_text_stays_as_it_was_and_a_saved_model_is_the_same(
    family: Family, tied: bool, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer, tied=tied)
    old_ids = tokenizer.encode(TEXT, add_special_tokens=False)
    old_logits, old_weights = logits(model, old_ids), [w.clone() for w in weights(model)]
    old_size = len(tokenizer)

    pivots = expand_vocabulary(model, tokenizer)

    assert tokenizer.encode(TEXT, add_special_tokens=False) == old_ids
    torch.testing.assert_close(logits(model, old_ids)[:, :old_size], old_logits)
    for new, old in zip(weights(model), old_weights, strict=True):
        assert torch.equal(new[:old_size], old)
    assert (weights(model)[0] is weights(model)[1]) == tied
    assert weights(model)[0].requires_grad and weights(model)[1].requires_grad

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    text = f"<think> this is safe {SAFE} </think> hello"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert loaded_tokenizer.encode(text, add_special_tokens=False) == ids
    assert PivotIds.from_tokenizer(loaded_tokenizer) == pivots
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer) == weights(loaded)[0].shape[0]
    assert config["tie_word_embeddings"] == tied


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pivot_is_one_id_alone_and_glued_to_text(family: Family) -> None:
    _, tokenizer = expanded(family)
    pivots = PivotIds.from_tokenizer(tokenizer)
    names = tokenizer.convert_ids_to_tokens(
        [pivots.safe, pivots.unsafe, pivots.rethink, pivots.think_open, pivots.think_close]
    )
    assert names == ["[SAFE]", "[UNSAFE]", "[RETHINK]", "<think>", "</think>"]
    for name in NEW_TOKENS:
        number = tokenizer.get_vocab()[name]
        for text in (name, f"fine{name}so", f"fine {name} so", f"{name}\n", f"({name})."):
            assert tokenizer.encode(text, add_special_tokens=False).count(number) == 1, text
    glued = tokenizer.encode("".join(NEW_TOKENS), add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(glued) == list(NEW_TOKENS)


def test_ids_follow_the_authors_order_where_all_are_new() -> None:
    tokenizer = tiny_tokenizer("llama")
    first = len(tokenizer)
    pivots = expand_vocabulary(tiny_model("llama", tokenizer), tokenizer)
    assert pivots == PivotIds(*range(first, first + 5))
    assert len(tokenizer) == first + 8


@pytest.mark.parametrize("family", ["qwen3", "r1"])
def test_a_token_that_is_owned_keeps_its_id_its_row_and_its_kind(family: Family) -> None:
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer)
    own = tokenizer.get_vocab()["<think>"]
    old = [w[own].clone() for w in weights(model)]
    first_new = len(tokenizer)
    pivots = expand_vocabulary(model, tokenizer)
    assert (pivots.think_open, pivots.safe) == (own, first_new)
    assert len(tokenizer) == first_new + 6
    assert all(torch.equal(w[own], o) for w, o in zip(weights(model), old, strict=True))
    assert not tokenizer.added_tokens_decoder[own].special


@pytest.mark.parametrize(("padding", "grown"), [(20, 0), (8, 0), (3, 5), (0, 8)])
def test_padding_rows_are_used_and_never_cut_off(padding: int, grown: int) -> None:
    tokenizer = tiny_tokenizer("qwen2")
    model = tiny_model("qwen2", tokenizer, padding_rows=padding)
    rows, first = weights(model)[0].shape[0], len(tokenizer)
    spare = [w[first + 8 :].clone() for w in weights(model)]
    mean = weights(model)[1][:first].mean(0)
    pivots = expand_vocabulary(model, tokenizer, init="mean")
    assert pivots.safe == first
    for matrix, rest in zip(weights(model), spare, strict=True):
        assert matrix.shape[0] == model.config.vocab_size == rows + grown
        assert torch.equal(matrix[first + 8 :], rest)
    # The mean is that of tokens: a padding row is nobody's embedding.
    torch.testing.assert_close(weights(model)[1][first : first + 8], mean.expand(8, -1))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "word"])
def test_a_second_call_changes_nothing(family: Family, init: Init, tmp_path: Path) -> None:
    model, tokenizer = expanded(family, init=init)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = tokenizer.backend_tokenizer.to_str()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expand_vocabulary(model, tokenizer, init=init, seed=1)
    assert tokenizer.backend_tokenizer.to_str() == first
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("init", INITS)
def test_the_seed_decides_and_the_global_random_state_is_left_alone(init: Init) -> None:
    torch.manual_seed(1)
    one, _ = expanded(init=init)
    state = torch.get_rng_state()
    two, _ = expanded(init=init)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    three, _ = expanded(init=init)
    other, _ = expanded(init=init, seed=1)
    for a, b, c, d in zip(weights(one), weights(two), weights(three), weights(other), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
        assert torch.equal(a, d) == (init == "mean")


@pytest.mark.parametrize("init", INITS)
def test_new_rows_are_those_of_any_default_device(init: Init) -> None:
    """Where torch.set_default_device says "cuda", the draws are still the CPU's."""
    model, _ = expanded(init=init)
    other_tokenizer = tiny_tokenizer("llama")
    other = tiny_model("llama", other_tokenizer)
    with torch.device("meta"):
        expand_vocabulary(other, other_tokenizer, init=init, seed=0)
    for ours, theirs in zip(weights(model), weights(other), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tied", [False, True])
def test_description_rows_lie_near_their_words_on_both_sides_and_differ(tied: bool) -> None:
    tokenizer = tiny_tokenizer("llama")
    words = {
        SAFE: tokenizer.encode("safe harmless allowed fine"),
        UNSAFE: tokenizer.encode("unsafe harmful dangerous refuse"),
    }
    bos = tokenizer.bos_token_id
    model = tiny_model("llama", tokenizer, tied=tied)
    expand_vocabulary(model, tokenizer)
    for matrix in weights(model):
        for name, ids in words.items():
            centre = matrix[[i for i in ids if i != bos]].mean(0)
            row = matrix[tokenizer.get_vocab()[name]]
            assert not torch.equal(row, centre)
            # 1% of the spread of a tiny model's rows (0.02) is 2e-4 an entry.
            assert (row - centre).abs().max() < 1e-3
        rows = matrix[[tokenizer.get_vocab()[name] for name in NEW_TOKENS]]
        assert len(rows.unique(dim=0)) == len(NEW_TOKENS)


def test_words_that_a_tokenizer_does_not_know_are_reported_and_the_mean_taken() -> None:
    tokenizer = tiny_tokenizer("word", ["this is safe", "that is unsafe", "hello there"])
    model = tiny_model("word", tokenizer)
    size = len(tokenizer)
    with pytest.warns(UserWarning, match=r"describes \[RETHINK\], <think>, </think>;") as caught:
        expand_vocabulary(model, tokenizer)
    assert caught[0].filename == __file__
    for matrix in weights(model):
        vocabulary = tokenizer.get_vocab()
        mean = matrix[:size].mean(0)
        assert (matrix[vocabulary[RETHINK]] - mean).abs().max() < 1e-3
        assert (matrix[vocabulary[SAFE]] - matrix[vocabulary["safe"]]).abs().max() < 1e-3
        assert (matrix[vocabulary[SAFE]] - mean).abs().max() > 1e-2


def test_noise_has_the_covariance_of_the_old_rows() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    model = tiny_model("qwen2", tokenizer, dtype=torch.float64)
    mixing = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for matrix in weights(model):
            matrix.copy_(matrix @ mixing + 3)
    old = weights(model)[1].detach().clone()
    # A tokenizer with many unseen tokens: each of its new rows is a draw.
    tokenizer.add_tokens([f"<new{i}>" for i in range(4000)])
    expand_vocabulary(model, tokenizer, init="noise")
    new = weights(model)[1].detach()[len(old) :]
    assert len(new) == 4008 and new.dtype == torch.float64
    expected = torch.cov(old.T, correction=0)
    error = (torch.cov(new.T) - expected).norm() / expected.norm()
    assert error < 0.15
    spread = expected.diagonal().sqrt()
    assert ((new.mean(0) - old.mean(0)) / spread).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    model, _ = expanded(dtype=dtype)
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    assert all(bool(matrix.isfinite().all()) for matrix in weights(model))


def test_a_bias_of_the_output_grows_and_is_initialised_too() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = PhiForCausalLM(
        PhiConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
        )
    ).eval()
    bias = model.get_output_embeddings().get_parameter("bias")
    with torch.no_grad():
        bias.copy_(torch.arange(len(bias)) / 100)
    old = bias.detach().clone()
    expand_vocabulary(model, tokenizer, init="mean")
    new = model.get_output_embeddings().get_parameter("bias").detach()
    assert torch.equal(new[: len(old)], old)
    torch.testing.assert_close(new[len(old) :], old.mean().expand(8))


def test_a_second_model_of_an_expanded_tokenizer_gets_the_rows_it_lacks() -> None:
    one, tokenizer = expanded()
    other = tiny_model("llama", tiny_tokenizer("llama"))
    pivots = expand_vocabulary(other, tokenizer)
    assert pivots == PivotIds.from_tokenizer(tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_a_piece_that_is_spelled_like_a_pivot_becomes_the_pivot() -> None:
    # A word-level vocabulary knows the word only where it stands alone.
    tokenizer = tiny_tokenizer("word", ["fine [SAFE] hello"])
    piece = tokenizer.get_vocab()[SAFE]
    with pytest.raises(InputError, match=r"no token \[SAFE\], \[UNSAFE\]"):
        PivotIds.from_tokenizer(tokenizer)
    model = tiny_model("word", tokenizer)
    row = weights(model)[0][piece].clone()
    with pytest.warns(UserWarning):
        assert expand_vocabulary(model, tokenizer).safe == piece
    assert piece in tokenizer.encode("fine[SAFE]", add_special_tokens=False)
    assert torch.equal(weights(model)[0][piece], row)


def test_bad_input_is_named_before_anything_changes() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    size = len(tokenizer)
    with pytest.raises(InputError, match=r"tiny-llama.*\[SAFE\].*expand_vocabulary"):
        PivotIds.from_tokenizer(tokenizer)
    with pytest.raises(InputError, match="'means', did you mean 'mean'"):
        expand_vocabulary(model, tokenizer, init="means")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="LlamaModel has no output embeddings"):
        expand_vocabulary(model.base_model, tokenizer)  # type: ignore[arg-type]
    assert len(tokenizer) == size == weights(model)[0].shape[0]
    assert not set(PIVOT_TOKENS) & set(tokenizer.get_vocab())
