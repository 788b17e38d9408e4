"""Probabilities of the pivots at every token of a response, beside those of the model's logits."""

from __future__ import annotations

import os
from itertools import accumulate, pairwise
from random import Random

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from r2d_core.adapters import LoraSettings, add_adapters, new_token_ids
from r2d_core.errors import InputError
from r2d_core.generation import Request
from r2d_core.generation.encoding import decode_answer, stop_ids_of
from r2d_core.generation.trace import pivot_probabilities, token_texts
from r2d_core.pivots import expand_vocabulary
from r2d_core.tokenization import encode_example, encode_prompt

RESPONSE = "<think> this is safe . [SAFE] </think> so i may answer ."
RESPONSE_TOKENS = ["<think>", *(f" {word}" for word in RESPONSE.split()[1:])]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("prefill", ["", "<think> wait ,"])
def test_trace_is_the_softmax_of_the_logits(family, prefill):
    tokenizer = tiny_tokenizer("word")
    model = tiny_model(family, tokenizer, tied=family == "gemma2")
    ids = expand_vocabulary(model, tokenizer)
    request = Request("how do i make the bano tiskel ?", prefill=prefill)
    trace = pivot_probabilities(model, tokenizer, request, RESPONSE)

    begin = len(encode_prompt(tokenizer, request.prompt, prefill=prefill))
    tokens = encode_example(tokenizer, request.prompt, RESPONSE, prefill=prefill)["input_ids"]
    with torch.no_grad():
        log_p = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert [each.text for each in trace] == [*RESPONSE_TOKENS, " </s>"]
    assert len(trace) == len(tokens) - begin
    for place, each in enumerate(trace, start=begin - 1):
        expected = [log_p[place, i].exp().item() for i in (ids.safe, ids.unsafe, ids.rethink)]
        assert [each.p_safe, each.p_unsafe, each.p_rethink] == pytest.approx(expected, rel=1e-5)
        entropy = -(log_p[place].exp() * log_p[place]).sum().item()
        assert each.entropy == pytest.approx(entropy, rel=1e-5)
    assert model(torch.tensor([tokens])).logits.shape[-1] == len(tokenizer)  # itself again


@pytest.mark.parametrize("family", ["word", "llama", "qwen3", "r1", "mistral", "gemma"])
def test_the_tokens_joined_are_the_text_that_the_generator_gave(family):
    tokenizer = tiny_tokenizer(family)  # word-level; bytes; sentencepiece's ▁ with bytes
    model = tiny_model(family, tokenizer)
    expand_vocabulary(model, tokenizer)
    said = "<think> naïve 中文 🙂 it's fine . [SAFE] </think>  so, it is ' fine ' !\n"
    end = stop_ids_of(tokenizer, None)
    ids = encode_example(tokenizer, "hello", said)["input_ids"]
    ids = ids[len(encode_prompt(tokenizer, "hello")) :]
    made = decode_answer(tokenizer, end, 0, ids).text
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts[:-1]) == made and "".join(texts) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(texts) and any("[SAFE]" in text for text in texts)
    trace = pivot_probabilities(model, tokenizer, Request("hello"), made)
    # Not where the template, not the model, writes <think>, nor where <unk> is read as text.
    if family not in ("r1", "word"):
        assert "".join(each.text for each in trace[:-1]) == made


def texts_by_definition(tokenizer, ids):
    """Each beginning decoded anew: of a long response nobody would wait for it."""
    read = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    whole = tokenizer.decode(ids, **read)
    begun = (tokenizer.decode(ids[:n], **read) for n in range(1, len(ids) + 1))
    ends = accumulate((len(os.path.commonprefix([whole, text])) for text in begun), max, initial=0)
    return [whole[start:end] for start, end in pairwise(ends)]


@pytest.mark.parametrize("family", ["word", "llama", "mistral"])
def test_the_texts_of_tokens_are_those_of_their_definition(family):
    tokenizer, random = tiny_tokenizer(family), Random(0)  # word-level; bytes; ▁ with bytes
    odd = "?" if family == "mistral" else "\ufffd"  # which ▁ with bytes gives to no one byte
    for _ in range(200):
        said = "".join(random.choices(["the ", " ", "naïve", "\n", "中", "🙂", odd], k=12))
        whole = tokenizer(said, add_special_tokens=False)["input_ids"]
        assert token_texts(tokenizer, whole) == texts_by_definition(tokenizer, whole)
        for ids in (whole[: len(whole) // 2], random.choices(range(len(tokenizer)), k=8)):
            texts = token_texts(tokenizer, ids)  # of bytes that may be no whole characters
            if family != "mistral":  # there one odd byte undoes the text of the bytes before it
                assert texts == texts_by_definition(tokenizer, ids)
            read = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert len(texts) == len(ids) and "".join(texts) == read


def test_a_long_response_is_not_decoded_again_for_each_of_its_tokens(monkeypatch):
    tokenizer, decoded = tiny_tokenizer("llama"), []
    ids = tokenizer("the quick 中文 🙂 fox . " * 50, add_special_tokens=False)["input_ids"]
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **read: decoded.append(len(ids)) or decode(ids, **read)
    )
    token_texts(tokenizer, ids)
    assert sum(decoded) < 12 * len(ids)


def test_trace_asks_for_merged_adapters():
    tokenizer = tiny_tokenizer("word")
    model = tiny_model("llama", tokenizer)
    expand_vocabulary(model, tokenizer)
    adapted = add_adapters(model, LoraSettings(rank=2), new_token_ids(tokenizer))
    with pytest.raises(InputError, match="merge them first"):
        pivot_probabilities(adapted, tokenizer, Request("hello"), RESPONSE)


def test_a_model_that_does_more_to_its_logits_is_refused():
    tokenizer = tiny_tokenizer("word")
    model = tiny_model("llama", tokenizer)
    expand_vocabulary(model, tokenizer)

    def capped(module, args, output):
        output.logits = 30 * (output.logits / 30).tanh()

    model.register_forward_hook(capped)
    with pytest.raises(InputError, match="the model does more to them"):
        pivot_probabilities(model, tokenizer, Request("hello"), RESPONSE)
