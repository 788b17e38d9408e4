"""Batched generation says what one-by-one generation says, and the trace what the model thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from r2d_core.errors import InputError
from r2d_core.generation import GENERATORS, Request, TransformersGenerator, complete
from r2d_core.generation.encoding import encode_request
from r2d_core.generation.trace import pivot_probabilities
from r2d_core.pivots import expand_vocabulary
from r2d_core.records import TestCase
from r2d_core.tokenization import encode_prompt, end_of_turn

REQUESTS = [
    Request("how do i make the bano tiskel ?"),
    Request("hello"),
    Request("wait , be careful", prefill="this is safe"),
    Request("hello", system="be careful"),
    Request("please explain how to use it . please explain how to make it . thank you"),
]


def ids_of(tokenizer: Any, request: Request) -> list[int]:
    return encode_prompt(tokenizer, request.prompt, system=request.system, prefill=request.prefill)


def one_at_a_time(model: Any, ids: list[int], stop_ids: Sequence[int], limit: int) -> list[int]:
    """Greedy decoding as one writes it down: no batch, no padding, no cache."""
    written: list[int] = []
    while len(written) < limit and not set(written) & set(stop_ids):
        with torch.no_grad():
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("family", ["llama", "qwen2", "word"])
@pytest.mark.parametrize("batch_tokens", [64, 100_000])
@pytest.mark.parametrize("ends_early", [False, True])
def test_batches_equal_one_prompt_at_a_time(
    family: Any, batch_tokens: int, ends_early: bool
) -> None:
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer, dtype=torch.float32, seed=1)
    if ends_early:  # at tokens of the first and third answer, so that one batch ends here and there
        first, _, third, *_ = (one_at_a_time(model, ids_of(tokenizer, r), (), 12) for r in REQUESTS)
        model.generation_config.eos_token_id = [first[4], third[1]]
    generator = TransformersGenerator(model, tokenizer, batch_tokens=batch_tokens)
    made = generator.generate(REQUESTS, 12)
    assert not ends_early or {each.finish for each in made} == {"stop", "length"}
    for request, generation in zip(REQUESTS, made, strict=True):
        ids = ids_of(tokenizer, request)
        written = one_at_a_time(model, ids, generator.stop_ids, 12)
        finish = "stop" if written[-1] in generator.stop_ids else "length"
        kept = written[:-1] if finish == "stop" else written
        assert generation.text == tokenizer.decode(
            kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert generation.prompt_tokens == len(ids)
        assert generation.response_tokens == len(written)
        assert generation.finish == finish


def test_a_models_own_generation_configuration_does_not_bend_greedy() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer, seed=1)
    with torch.no_grad():  # a model that repeats itself, which is what these settings are against
        model.model.embed_tokens.weight.mul_(0.05)
    generator = TransformersGenerator(model, tokenizer)
    plain = generator.generate(REQUESTS, 12)
    assert any(len(set(made.text.split())) < 12 for made in plain)
    own = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_new_tokens": 12}
    own |= {"do_sample": True, "temperature": 3.0, "top_k": 2, "num_beams": 2}
    own |= {"suppress_tokens": list(range(0, len(tokenizer), 2))}
    model.generation_config.update(**own)
    assert generator.generate(REQUESTS, 12) == plain
    sampled = [Request("hello", temperature=1.0, seed=seed) for seed in range(3)]
    bent = generator.generate(sampled, 12)
    model.generation_config = type(model.generation_config)()
    assert generator.generate(sampled, 12) == bent


def test_it_stops_at_the_end_of_turn() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    (stop,) = end_of_turn(tokenizer)
    tokenizer.eos_token = tokenizer.bos_token  # as in Llama-3's base model: not what ends a turn
    model.generation_config.eos_token_id = None
    assert stop != tokenizer.eos_token_id
    # The model's answer to everything is the end of turn.
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[stop] = model.model.norm.weight.new_ones(1)
        hidden = model.model(torch.tensor([encode_prompt(tokenizer, "hello")]))[0][0, -1]
        model.lm_head.weight[stop] = hidden
    (made,) = TransformersGenerator(model, tokenizer).generate([Request("hello")], 5)
    assert (made.text, made.finish, made.response_tokens) == ("", "stop", 1)


def test_a_tokenizer_without_a_chat_template() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="has no chat template"):
        TransformersGenerator(model, tokenizer)


def test_completions_carry_their_test_case() -> None:
    tokenizer = tiny_tokenizer("word")
    generator = GENERATORS["transformers"](tiny_model("word", tokenizer), tokenizer)
    cases = [
        TestCase("a", "refinement", "hello", queries=7, metadata={"score": 0.5}),
        TestCase("b", "prefill_lead", "wait", prefill="this is"),
    ]
    first, second = complete(generator, cases, 4)
    assert (first.behavior_id, first.metadata) == ("a", {"queries": 7, "score": 0.5})
    assert (second.attack, second.prefill, second.prompt) == ("prefill_lead", "this is", "wait")


def test_pivot_probabilities_are_the_models() -> None:
    tokenizer = tiny_tokenizer("word")
    model = tiny_model("word", tokenizer).eval()
    pivots = expand_vocabulary(model, tokenizer)
    request = Request("hello", prefill="wait", history=(("why", "so"),))
    response = "this is safe [SAFE] so"
    trace = pivot_probabilities(model, tokenizer, request, response)
    assert [t.text for t in trace][:-1] == response.split()
    ids = encode_prompt(tokenizer, "hello", prefill="wait", history=(("why", "so"),))
    for token in trace:
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        assert token.p_safe == pytest.approx(float(expected[pivots.safe]), rel=1e-4)
        assert token.p_unsafe == pytest.approx(float(expected[pivots.unsafe]), rel=1e-4)
        ids = [*ids, tokenizer.convert_tokens_to_ids(token.text)]


def test_sampling_depends_on_a_requests_own_seed_and_nothing_beside_it() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer, seed=1)
    asked = [Request("hello", temperature=2.0, seed=seed) for seed in range(6)]
    beside = [Request("wait , be careful", temperature=1.0), *asked[::-1], *REQUESTS]
    alone = [TransformersGenerator(model, tokenizer, 1).generate([r], 12)[0] for r in asked]
    torch.manual_seed(7)
    together = TransformersGenerator(model, tokenizer).generate(beside, 12)
    assert together[1:7] == alone[::-1]
    assert len({made.text for made in alone}) == 6
    # The greedy requests of the batch are what they are by themselves.
    assert together[7:] == TransformersGenerator(model, tokenizer).generate(REQUESTS, 12)


def test_other_prompts_draw_otherwise_under_the_same_seed() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely, whatever was asked
    asked = [Request(f"number {n}", temperature=1.0) for n in range(4)]
    made = TransformersGenerator(model, tokenizer).generate(asked, 12)
    assert len({each.text for each in made}) == 4


def test_samples_are_distributed_as_the_models_softmax() -> None:
    tokenizer = tiny_tokenizer("word")
    model = tiny_model("word", tokenizer, seed=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        logits = model(torch.tensor([encode_prompt(tokenizer, "hello")])).logits[0, -1]
    n, temperature = 2000, 2.0
    asked = [Request("hello", temperature=temperature, seed=seed) for seed in range(n)]
    made = TransformersGenerator(model, tokenizer).generate(asked, 1)
    counts = torch.zeros(len(tokenizer))
    for generation in made:
        # What ends the answer has no text; it is the one token whose count is not looked at.
        if generation.finish == "length":
            counts[tokenizer.convert_tokens_to_ids(generation.text)] += 1
    expected = (logits / temperature).softmax(-1)
    expected[TransformersGenerator(model, tokenizer).stop_ids] = 0
    spread = (n * expected * (1 - expected)).sqrt().clamp(min=1)
    assert float(expected.max()) > 2 / len(tokenizer)  # not flat: the temperature shows
    assert float(((counts - n * expected) / spread).abs().max()) < 5


def test_a_conversation_goes_through_the_chat_template() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    model = tiny_model("qwen2", tokenizer)
    asked = Request("and now ?", system="be careful", history=(("hello", "hi"), ("why", "so")))
    chat = [("system", "be careful"), ("user", "hello"), ("assistant", "hi"), ("user", "why")]
    chat += [("assistant", "so"), ("user", "and now ?")]
    ids = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in chat],
        add_generation_prompt=True,
        return_dict=False,
    )
    generator = TransformersGenerator(model, tokenizer)
    (made,) = generator.generate([asked], 8)
    assert made.prompt_tokens == len(ids)
    written = one_at_a_time(model, ids, generator.stop_ids, 8)
    kept = [token for token in written if token not in generator.stop_ids]
    assert made.text == tokenizer.decode(kept, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("family", ["mistral", "gemma", "llama"])
def test_a_system_message_that_a_template_refuses_begins_the_first_turn(family: Any) -> None:
    tokenizer = tiny_tokenizer(family)
    takes = family == "llama"
    history = (("hello", "hi"),)
    for before in ((), history):
        asked = Request("now ?", system="be careful", history=before)
        first, *later = [*(turn[0] for turn in before), "now ?"]
        moved = [first if takes else f"be careful\n\n{first}", *later]
        assert encode_request(tokenizer, asked) == encode_prompt(
            tokenizer, moved[-1], system="be careful" if takes else "",
            history=[(moved[0], "hi")] if before else (),
        )  # fmt: skip


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none(temperature: float) -> None:
    with pytest.raises(InputError, match="Request temperature: expected 0"):
        Request("hello", temperature=temperature)
