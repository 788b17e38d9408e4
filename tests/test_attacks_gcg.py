"""GCG: its steps are what its docstrings say, its cache changes nothing, a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attack_world import BEHAVIORS, KNOWN, MATERIAL, Echo, ScoreByLength, local_target
from tiny_models import FAMILIES, Family, tiny_tokenizer

from r2d_core.attacks import Surrogate, Target, gcg, gradient, make_attack
from r2d_core.attacks.gcg import GCGAnswer, GCGMulti, GCGPivot
from r2d_core.attacks.gradient import (
    Losses,
    Place,
    first_suffix,
    joined,
    neighbour_losses,
    response_ids,
    response_losses,
    summed_gradient,
    text_tokens,
    written_suffix,
)
from r2d_core.errors import InputError
from r2d_core.records import Behavior, write_jsonl
from r2d_core.tokenization import encode_prompt

SMALL = {"steps": 6, "suffix_tokens": 4, "candidates": 16, "top_k": 8}


@pytest.fixture(scope="module")
def target() -> Target:
    return local_target()


def place_of(target: Target, behavior: Behavior = BEHAVIORS[0]) -> Place:
    response = behavior.metadata["target"]
    aimed = [True] * len(response_ids(target.tokenizer, behavior.prompt, response))
    return Place(target.model, target.tokenizer, behavior.prompt, response, aimed)


def loss_of(attack: Any, target: Target, behavior: Behavior, prompt: str) -> float:
    """The attack's loss from the prompt's text, written out anew."""
    known = "pivot_target" if attack.name == "gcg_pivot" else "target"
    response = behavior.metadata[known]
    if attack.name == "gcg_reasoning":
        response = f"<think> {response}"
    start = len(encode_prompt(target.tokenizer, prompt))
    ids = encode_prompt(target.tokenizer, prompt, prefill=response)
    with torch.no_grad():
        logp = target.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    safe = target.tokenizer.convert_tokens_to_ids("[SAFE]")
    places = [p for p in range(start, len(ids)) if attack.name != "gcg_pivot" or ids[p] == safe]
    assert places
    return -sum(float(logp[p - 1, ids[p]]) for p in places) / len(places)


@pytest.mark.parametrize("name", ["gcg_answer", "gcg_pivot", "gcg_reasoning"])
def test_it_lowers_its_loss_and_returns_the_prompt_that_has_it(name: str, target: Target) -> None:
    attack = make_attack(name, **SMALL)
    (case,) = attack.run(BEHAVIORS[:1], target, MATERIAL, 0)
    losses = case.metadata["losses"]
    assert len(losses) == 7 and losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert losses[-1] == pytest.approx(loss_of(attack, target, BEHAVIORS[0], case.prompt), rel=1e-4)
    assert 1 < case.queries <= 1 + 6 * 16
    suffix = case.prompt.removeprefix(BEHAVIORS[0].prompt).split()
    assert len(suffix) == 4
    assert not set(suffix) & set(target.tokenizer.all_special_tokens)
    assert target.tokenizer.decode(case.metadata["suffix_ids"]).split() == suffix


def test_gradient_and_candidates(target: Target) -> None:
    place = place_of(target)
    suffix = written_suffix([place], "this is safe")
    gradient, flops = place.gradient(suffix)

    ids = torch.tensor([*place.before, *suffix, *place.after])
    embedding = target.model.get_input_embeddings().weight.detach()
    inputs = embedding[ids].clone().requires_grad_(True)
    logits = target.model(inputs_embeds=inputs[None]).logits[0]
    torch.nn.functional.cross_entropy(logits[-5:-1], ids[-4:]).backward()
    start = len(place.before)
    assert inputs.grad is not None
    expected = inputs.grad[start : start + 3] @ embedding.T
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert flops > 0

    allowed = torch.arange(10, 30)
    suffix = [10, 11, 12]
    attack = GCGAnswer(suffix_tokens=3, candidates=20, top_k=5)
    generator = torch.Generator().manual_seed(0)
    tried = attack._candidates(gradient, suffix, allowed, generator)
    assert tried and len({tuple(ids) for _, ids in tried}) == len(tried)
    assert [at for at, _ in tried] == sorted(at for at, _ in tried)
    for at, candidate in tried:
        changed = [i for i, token in enumerate(candidate) if token != suffix[i]]
        assert changed in ([], [at])
        for position in changed:
            ranked = allowed[gradient[position, allowed].argsort()[:5]]
            assert candidate[position] in ranked


def test_the_gradient_of_many_prompts_is_the_sum_of_their_directions() -> None:
    """At every position each prompt counts alike, however steep its own loss is there."""
    target = local_target("llama", torch.float64)
    places = [place_of(target, behavior) for behavior in BEHAVIORS]
    places[1].response, places[1].aimed = "red", [True]
    suffix = first_suffix(places, 3, text_tokens(target.tokenizer), seed=0)
    one, other = (place.gradient(suffix)[0] for place in places)
    lengths = torch.stack([one.norm(dim=1), other.norm(dim=1)])
    assert ((lengths[0] / lengths[1] - 1).abs() > 0.05).all()  # or it would not matter
    found, flops = summed_gradient(places, suffix)
    expected = one / lengths[0][:, None] + other / lengths[1][:, None]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    alone, less = summed_gradient(places[:1], suffix)
    torch.testing.assert_close(alone, one)
    assert 0 < less < flops


def test_even_positions_change_every_position_alike(target: Target) -> None:
    attack = GCGAnswer(suffix_tokens=4, candidates=40, top_k=32, positions="even")
    gradient = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    tried = attack._candidates(
        gradient, [100] * 4, torch.arange(90), torch.Generator().manual_seed(1)
    )
    counts = [sum(at == position for at, _ in tried) for position in range(4)]
    assert counts == [10] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_changes_nothing(family: Family) -> None:
    """Same losses and matches with and without, in float64 to the last digits but a few."""
    target = local_target(family, torch.float64)
    cached, plain = place_of(target), place_of(target)
    plain.use_cache = False
    allowed = text_tokens(target.tokenizer)
    suffix = first_suffix([cached, plain], 4, allowed, seed=1)
    with_cache, _ = cached.gradient(suffix)
    without, _ = plain.gradient(suffix)
    torch.testing.assert_close(with_cache, without, rtol=1e-9, atol=1e-12)
    assert cached.use_cache and cached._known[0][0].shape[2] == len(cached.before) + 4
    neighbours = []
    for at in range(4):
        for token in allowed[:20].tolist():
            neighbours.append((at, [*suffix[:at], token, *suffix[at + 1 :]]))
    one, other = neighbour_losses([cached], neighbours), neighbour_losses([plain], neighbours)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-10, atol=1e-12)
    assert torch.equal(one.matched, other.matched)
    assert one.flops < other.flops
    alone = torch.stack([plain.losses([ids]).loss[0] for _, ids in neighbours])
    torch.testing.assert_close(one.loss, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", ["word", "llama", "qwen3"])
def test_the_same_string_with_and_without_cache(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = local_target(family, torch.float64)
    attack = GCGAnswer(**SMALL)
    with_cache = attack.run(BEHAVIORS, target, MATERIAL, 0)
    monkeypatch.setattr(Place, "_check_cache", lambda self: setattr(self, "use_cache", False))
    without = attack.run(BEHAVIORS, target, MATERIAL, 0)
    assert [c.prompt for c in with_cache] == [c.prompt for c in without]
    for one, other in zip(with_cache, without, strict=True):
        assert one.metadata["losses"] == pytest.approx(other.metadata["losses"], rel=1e-10)
        assert one.metadata["flops"] < other.metadata["flops"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_cache_is_used_in_every_precision(family: Family, dtype: torch.dtype) -> None:
    target = local_target(family, dtype)
    place = place_of(target)
    place.gradient(first_suffix([place], 4, text_tokens(target.tokenizer), seed=1))
    assert place.use_cache and place._known


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.05)]
)
def test_a_cache_that_changes_losses_a_little_is_not_used(
    dtype: torch.dtype, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = local_target("llama", dtype)
    losses = Place._losses

    def off(self: Place, ids: Any, start: int) -> Losses:
        found = losses(self, ids, start)
        return replace(found, loss=found.loss * (1 + share * (start > 0)))

    monkeypatch.setattr(Place, "_losses", off)
    place = place_of(target)
    place.gradient(first_suffix([place], 4, text_tokens(target.tokenizer), seed=1))
    assert not place.use_cache


def test_what_another_batch_changes_a_cache_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    target = local_target("llama")
    losses = Place._losses

    def noisy(self: Place, ids: Any, start: int) -> Losses:
        found = losses(self, ids, start)
        return replace(found, loss=found.loss + 1e-3 * (len(ids) > 1) + 3e-3 * (start > 0))

    monkeypatch.setattr(Place, "_losses", noisy)
    place = place_of(target)
    place.gradient(first_suffix([place], 4, text_tokens(target.tokenizer), seed=1))
    assert place.use_cache


def test_losses_of_half_precision_tell_candidates_apart() -> None:
    target = local_target("llama", torch.bfloat16)
    place = place_of(target)
    allowed = text_tokens(target.tokenizer)
    suffix = first_suffix([place], 4, allowed, seed=0)
    found = place.losses([[*suffix[:2], token, *suffix[3:]] for token in allowed.tolist()]).loss
    assert found.dtype == torch.float32
    assert len(set(found.tolist())) > len(found) / 2  # in bfloat16 they are a handful


def test_a_cache_that_changes_losses_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    target = local_target(dtype=torch.float64)
    place = place_of(target)
    suffix = first_suffix([place], 4, text_tokens(target.tokenizer), seed=0)
    expected, _ = place.gradient(suffix)
    forward = type(target.model).forward

    def wrong(self: Any, *args: Any, past_key_values: Any = None, **given: Any) -> Any:
        for layer in getattr(past_key_values, "layers", []):
            layer.values = layer.values + 1.0
        return forward(self, *args, past_key_values=past_key_values, **given)

    monkeypatch.setattr(type(target.model), "forward", wrong)
    broken = place_of(target)
    broken.settle(suffix)
    gradient, _ = broken.gradient(suffix)
    assert not broken.use_cache
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_memory_decides_how_many_are_computed_at_once(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(target)
    suffix = first_suffix([place], 4, text_tokens(target.tokenizer), seed=0)
    rows: list[int] = []
    forward = type(target.model).forward

    def small(self: Any, ids: Any = None, **given: Any) -> Any:
        rows.append(len(ids))
        if len(ids) > 4:
            raise torch.OutOfMemoryError("too many")
        return forward(self, ids, **given)

    expected = place.losses([suffix] * 9).loss
    monkeypatch.setattr(type(target.model), "forward", small)
    torch.testing.assert_close(place.losses([suffix] * 9).loss, expected)
    assert rows == [9, 4, 4, 1]
    rows.clear()
    torch.testing.assert_close(place.losses([suffix] * 9).loss, expected)
    assert rows == [4, 4, 1]  # what did not fit is not tried again
    monkeypatch.setattr(Place, "_rows", lambda self, *_: 2)
    rows.clear()
    fresh = place_of(target)
    assert fresh.settle(suffix)
    torch.testing.assert_close(fresh.losses([suffix] * 9).loss, expected)
    assert rows == [2, 2, 2, 2, 1]


def test_as_many_are_computed_at_once_wherever_memory_has_room(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran before changes a loss's last bits only by leaving less memory than they take."""
    for free, enough in ((2**40, True), (2**33, True), (2**20, False)):
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(gradient.psutil, "virtual_memory", lambda memory=memory: memory)
        place = place_of(target)
        suffix = first_suffix([place], 4, text_tokens(target.tokenizer), seed=0)
        place.losses([suffix])
        assert (place.rows == gradient.ROWS["cpu"]) == enough


def test_a_resumed_run_computes_as_many_at_once(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of other batches may differ in the last bits, whatever memory is free by then."""
    kept = replace(target, progress=tmp_path)
    monkeypatch.setattr(Place, "_rows", lambda self, *_: 8)
    expected = GCGAnswer(**SMALL).run(BEHAVIORS[:1], kept, MATERIAL, 0)
    (file,) = tmp_path.glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]))
    monkeypatch.setattr(Place, "_rows", lambda self, *_: 2)
    batches: list[int] = []
    losses = Place._losses

    def note(self: Place, ids: Any, start: int) -> Any:
        batches.append(len(ids))
        return losses(self, ids, start)

    monkeypatch.setattr(Place, "_losses", note)
    assert GCGAnswer(**SMALL).run(BEHAVIORS[:1], kept, MATERIAL, 0) == expected
    assert max(batches) == 8
    assert {json.loads(line)[1]["rows"][0] for line in file.read_bytes().splitlines()} == {8}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "r1"])
def test_on_word_pieces(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces merge with their neighbours; a suffix in which they would is never tried."""
    target = local_target(family)
    tokenizer = target.tokenizer
    attack = GCGAnswer(steps=4, suffix_tokens=4, candidates=12, top_k=8)
    refused = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    assert not refused & set(text_tokens(tokenizer).tolist())
    tried: list[list[int]] = []
    losses = Place.losses

    def note(self: Place, suffixes: Any, shared: int = 0) -> Any:
        for suffix in suffixes:
            text = joined(self.prompt, tokenizer.decode(suffix))
            ids = encode_prompt(tokenizer, text, prefill=KNOWN["target"])
            assert ids == [*self.before, *suffix, *self.after]
            assert not refused & set(suffix)
            tried.append(list(suffix))
        return losses(self, suffixes, shared)

    for seed in range(4):
        tried.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Place, "losses", note)
            (case,) = attack.run(BEHAVIORS[:1], target, MATERIAL, seed)
        assert len(tried) > 4
        assert case.metadata["losses"][-1] < case.metadata["losses"][0]
        assert case.metadata["losses"][-1] == pytest.approx(
            loss_of(attack, target, BEHAVIORS[0], case.prompt), 1e-4
        )


def test_early_stop_returns_the_string_that_matched(target: Target) -> None:
    """A target that some suffix makes the greedy answer: found, and the answer begins with it."""
    stopped = 0
    for word in ("red", "wait", "safe", "it", "fine", "answer"):
        behavior = Behavior("b", "explain it .", metadata={"target": word})
        attack = GCGAnswer(steps=12, suffix_tokens=6, candidates=32, top_k=32, stop_on_match=True)
        on = [Surrogate(target.model, target.tokenizer)]
        steps = attack.optimise([behavior], on, target, 0).steps
        assert not any(step.matched for step in steps[:-1])  # the first match is the last step
        assert len(steps) == 13 or steps[-1].matched
        (case,) = attack.run([behavior], target, MATERIAL, 0)
        ids = encode_prompt(target.tokenizer, case.prompt)
        with torch.no_grad():
            greedy = target.model(torch.tensor([ids])).logits[0, -1].argmax()
        assert case.metadata["matched"] == (target.tokenizer.decode([int(greedy)]) == word)
        stopped += case.metadata["matched"]
    assert stopped


def test_what_matched_is_taken_even_where_another_has_a_lower_loss(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[int]] = []

    def found(places: Any, neighbours: Any) -> Losses:
        tried[:] = [ids for _, ids in neighbours]
        order = torch.arange(len(tried))
        return Losses(order + 1.0, (order == 3) | (order == 5))

    monkeypatch.setattr(gcg, "neighbour_losses", found)
    on = [Surrogate(target.model, target.tokenizer)]
    attack = GCGAnswer(**SMALL, stop_on_match=True)
    result = attack.optimise(BEHAVIORS[:1], on, target, 0)
    assert result.chosen is result.steps[-1] and len(result.steps) == 2
    assert result.chosen.matched and result.chosen.ids == tried[3] and result.chosen.loss == 4.0


def test_the_judge_may_end_it(target: Target) -> None:
    echo = replace(target, generator=Echo())  # nine words and a suffix of four: a success at once
    settings = {**SMALL, "judge_every": 2, "judge_below": 1e9}
    long = replace(BEHAVIORS[0], prompt="how do i make it and use it ?")
    (case,) = GCGAnswer(**settings).run([long], echo, MATERIAL, 0)
    assert len(case.metadata["losses"]) == 3  # the first suffix and two steps
    assert case.metadata["queries_to_jailbreak"] == case.queries
    settings["judge_below"] = 0.0
    (case,) = GCGAnswer(**settings).run([long], echo, MATERIAL, 0)
    assert len(case.metadata["losses"]) == 7 and case.metadata["queries_to_jailbreak"] is None


def test_presets_are_the_documented_ones() -> None:
    for name in ("gcg_answer", "gcg_reasoning", "gcg_pivot"):
        budget = asdict(make_attack(name))
        assert (budget["steps"], budget["candidates"], budget["top_k"]) == (250, 512, 256)
        assert budget["suffix_tokens"] == 20 and not budget["stop_on_match"]
    nano, harmbench = asdict(make_attack("gcg_nanogcg")), asdict(make_attack("gcg_harmbench"))
    both = {"candidates": 512, "top_k": 256, "keep": "any"}
    for preset in (nano, harmbench):
        assert {name: preset[name] for name in both} == both and not preset["stop_on_match"]
    assert (nano["steps"], nano["positions"], nano["result"]) == (250, "random", "best")
    assert nano["init"] == "x x x x x x x x x x x x x x x x x x x x" and not nano["judge_every"]
    assert (harmbench["steps"], harmbench["positions"], harmbench["result"]) == (
        500,
        "even",
        "last",
    )
    assert harmbench["init"] == "! " * 19 + "!"
    assert (harmbench["judge_every"], harmbench["judge_below"]) == (50, 0.05)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["gcg_nanogcg", "gcg_harmbench"])
def test_presets_run(name: str, family: Family) -> None:
    target = local_target(family)
    attack = make_attack(name, steps=2, candidates=24)
    (case,) = attack.run(BEHAVIORS[:1], target, MATERIAL, 0)
    losses = case.metadata["losses"]
    assert len(losses) == 3
    best = losses[-1] if name == "gcg_harmbench" else min(losses)
    assert best == pytest.approx(loss_of(attack, target, BEHAVIORS[0], case.prompt), rel=1e-4)
    assert case.prompt != BEHAVIORS[0].prompt and "errors" not in case.metadata


def test_a_first_suffix_that_does_not_stand_is_said(target: Target) -> None:
    with pytest.raises(
        InputError, match=r"init '\[SAFE\] red' does not tokenise to ids of its own"
    ):
        GCGAnswer(**{**SMALL, "init": "[SAFE] red"}).run(BEHAVIORS, target, MATERIAL, 0)


def test_one_suffix_for_all() -> None:
    target = local_target("llama", torch.float64)
    attack = GCGMulti(**{**SMALL, "init": "", "keep": "lower", "progressive": False})
    cases = attack.run(BEHAVIORS, target, MATERIAL, 0)
    texts = {c.prompt.removeprefix(b.prompt) for c, b in zip(cases, BEHAVIORS, strict=True)}
    assert len(texts) == 1
    losses = [loss_of(attack, target, b, c.prompt) for b, c in zip(BEHAVIORS, cases, strict=True)]
    assert cases[0].metadata["losses"][-1] == pytest.approx(sum(losses) / 2)
    assert cases[0].metadata["losses"][-1] < cases[0].metadata["losses"][0]


def test_progressive_takes_in_the_next_when_all_so_far_match(target: Target) -> None:
    easy = [
        Behavior(f"b{i}", b.prompt, metadata={"target": "red"}) for i, b in enumerate(BEHAVIORS)
    ]
    for word in ("red", "wait", "safe", "it", "fine", "answer"):
        easy = [replace(b, metadata={"target": word}) for b in easy]
        attack = GCGMulti(steps=14, suffix_tokens=6, candidates=32, top_k=32, init="")
        result = attack.optimise(easy, [Surrogate(target.model, target.tokenizer)], target, 0)
        active = [step.active for step in result.steps]
        assert active[0] == 1 and active == sorted(active)
        for before, after in zip(result.steps, result.steps[1:], strict=False):
            assert after.active == min(2, before.active + before.matched)
        if active[-1] == 2:
            assert result.chosen.active == 2
            return
    raise AssertionError("no target was easy enough for the test to see a second behavior")


def test_a_loss_of_other_prompts_is_no_measure(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a behavior joins, the suffix moves although the loss of both is above that of one."""
    tried: list[list[list[int]]] = []

    def found(places: Any, neighbours: Any) -> Losses:
        tried.append([ids for _, ids in neighbours])
        order = torch.arange(len(neighbours))
        start = {1: 0.5, 2: 9.0, 3: 10.0}[len(tried)]
        return Losses(order + start, torch.full_like(order, len(tried) == 1, dtype=torch.bool))

    monkeypatch.setattr(gcg, "neighbour_losses", found)
    attack = GCGMulti(**{**SMALL, "steps": 3, "init": "", "keep": "lower"})
    on = [Surrogate(target.model, target.tokenizer)]
    steps = attack.optimise(BEHAVIORS[:2], on, target, 0).steps
    assert [step.active for step in steps] == [1, 1, 2, 2]
    assert [step.loss for step in steps[1:]] == [0.5, 9.0, 9.0]
    assert steps[2].ids == tried[1][0] and steps[3].ids == steps[2].ids


@pytest.mark.parametrize("keep", ["lower", "any"])
def test_where_no_candidate_stands_the_suffix_is_held_against_the_behavior_that_joins(
    keep: Any, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, calls = gcg.neighbour_losses, [0]

    def found(places: Any, neighbours: Any) -> Losses:
        calls[0] += 1
        made = computed(places, neighbours)
        if calls[0] > 1:
            return made
        monkeypatch.setattr(Place, "stand", lambda self, suffixes: [False] * len(suffixes))
        return replace(made, matched=torch.ones_like(made.matched))

    monkeypatch.setattr(gcg, "neighbour_losses", found)
    settings = {**SMALL, "steps": 3, "init": "", "keep": keep, "stop_on_match": True}
    attack = GCGMulti(**settings)
    on = [Surrogate(target.model, target.tokenizer)]
    result = attack.optimise(BEHAVIORS, on, target, 0)
    assert [step.active for step in result.steps] == [1, 1, 2, 2]
    assert [step.matched for step in result.steps[1:]] == [True, False, False]
    losses = [loss_of(attack, target, b, b.prompt + result.text) for b in BEHAVIORS]
    for step in result.steps[2:]:
        assert step.ids == result.steps[1].ids
        assert step.loss == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert [step.queries for step in result.steps[2:]] == [2, 0]


def test_transfer_never_sees_the_target(target: Target) -> None:
    surrogates = tuple(
        Surrogate(t.model, t.tokenizer) for t in (local_target(seed=1), local_target(seed=2))
    )
    behind = Target(Echo(), ScoreByLength(), 4, surrogates=surrogates)
    attack = make_attack("gcg_transfer", **{**SMALL, "init": "", "progressive": False})
    cases = attack.run(BEHAVIORS, behind, MATERIAL, 0)
    losses = [
        loss_of(attack, replace(target, model=s.model), b, c.prompt)
        for b, c in zip(BEHAVIORS, cases, strict=True)
        for s in surrogates
    ]
    steps = cases[0].metadata["losses"]
    assert min(steps) == pytest.approx(sum(losses) / 4, rel=1e-4) and min(steps) < steps[0]
    with pytest.raises(InputError, match="give Target surrogates"):
        attack.run(BEHAVIORS, target, MATERIAL, 0)
    other = local_target("llama")
    mixed = replace(behind, surrogates=(surrogates[0], Surrogate(other.model, other.tokenizer)))
    with pytest.raises(InputError, match="different vocabularies"):
        attack.run(BEHAVIORS, mixed, MATERIAL, 0)


def test_every_step_is_recorded(target: Target) -> None:
    on = [Surrogate(target.model, target.tokenizer)]
    result = GCGAnswer(**SMALL).optimise(BEHAVIORS[:1], on, target, 0)
    assert len(result.steps) == 7
    place = place_of(target)
    for step in result.steps:
        assert len(step.ids) == 4 and step.seconds > 0 and step.flops > 0 and step.queries > 0
        assert place.settle(step.ids)
        assert float(place.losses([step.ids]).loss[0]) == pytest.approx(step.loss, rel=1e-4)
    assert result.queries == sum(step.queries for step in result.steps)
    assert BEHAVIORS[0].prompt + result.text == place.text(result.chosen.ids)
    (case,) = GCGAnswer(**SMALL).run(BEHAVIORS[:1], target, MATERIAL, 0)  # with no folder
    assert case.metadata["step_ids"] == [step.ids for step in result.steps]
    assert case.metadata["losses"] == [step.loss for step in result.steps]
    assert case.metadata["step_flops"] == [step.flops for step in result.steps]


def test_a_run_goes_on_where_it_was(tmp_path: Path, target: Target) -> None:
    attack = GCGAnswer(**SMALL)
    expected = attack.run(BEHAVIORS, target, MATERIAL, 0)
    kept = replace(target, progress=tmp_path)
    assert attack.run(BEHAVIORS, kept, MATERIAL, 0) == expected
    (file,) = tmp_path.glob("gcg_answer-*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 14
    entry = json.loads(lines[3])[1]
    assert {"ids", "loss", "seconds", "flops"} <= set(entry)
    for cut in (0, 1, 5, 7, 12, 14):
        file.write_bytes(b"".join(lines[:cut]) + b'["b0", {"id')
        assert attack.run(BEHAVIORS, kept, MATERIAL, 0) == expected
        again = file.read_bytes().splitlines()
        assert len(again) == 14
        assert [json.loads(a)[1]["ids"] for a in again] == [json.loads(b)[1]["ids"] for b in lines]

    # What it does not use, the judge and how long answers are, is another as it likes.
    class Another(ScoreByLength):
        name = "another"

    rejudged = replace(kept, judge=Another(), max_new_tokens=3)
    assert attack.run(BEHAVIORS, rejudged, MATERIAL, 0) == expected
    assert len(file.read_bytes().splitlines()) == 14 and len(list(tmp_path.iterdir())) == 1
    # Other settings, seeds and models are other runs.
    attack.run(BEHAVIORS, kept, MATERIAL, 1)
    replace(attack, top_k=7).run(BEHAVIORS, kept, MATERIAL, 0)
    other = local_target(seed=5, progress=tmp_path)
    assert attack.run(BEHAVIORS, other, MATERIAL, 0) != expected
    assert len(list(tmp_path.glob("gcg_answer-*.jsonl"))) == 4


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from attack_world import BEHAVIORS, MATERIAL, local_target
from r2d_core.attacks import make_attack
attack = make_attack("gcg_answer", **{settings})
attack.run(BEHAVIORS, local_target(progress=Path(sys.argv[2])), MATERIAL, 0)
"""


def test_killed_in_mid_run_and_resumed_gives_the_same_file(tmp_path: Path) -> None:
    settings = {**SMALL, "steps": 40}
    attack, kept = make_attack("gcg_answer", **settings), tmp_path / "killed"
    command = [sys.executable, "-c", KILLED.format(settings=settings)]
    command += [str(Path(__file__).parent), str(kept)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    steps: list[bytes] = []
    while len(steps) < 10 and running.poll() is None:
        for file in kept.glob("*.jsonl"):
            steps = file.read_bytes().splitlines()
    running.send_signal(signal.SIGKILL)
    running.wait()
    (file,) = kept.glob("*.jsonl")
    before = file.read_bytes()
    assert 10 <= len(before.splitlines()) < 2 * 41, "it was over before it was killed"
    write_jsonl(tmp_path / "whole", attack.run(BEHAVIORS, local_target(), MATERIAL, 0))
    resumed = attack.run(BEHAVIORS, local_target(progress=kept), MATERIAL, 0)
    write_jsonl(tmp_path / "resumed", resumed)
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert file.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert len(file.read_bytes().splitlines()) == 2 * 41  # no step twice


def test_what_is_no_progress_is_said(tmp_path: Path, target: Target) -> None:
    kept = replace(target, progress=tmp_path)
    GCGAnswer(**SMALL).run(BEHAVIORS[:1], kept, MATERIAL, 0)
    (file,) = tmp_path.glob("*.jsonl")
    file.write_bytes(b"rubbish\n")
    with pytest.raises(InputError, match=r"\.jsonl:1: expected a line of JSON, found broken"):
        GCGAnswer(**SMALL).run(BEHAVIORS[:1], kept, MATERIAL, 0)


def test_vocabulary_is_read_once_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer("qwen2")
    once = text_tokens(tokenizer)
    monkeypatch.setattr(type(tokenizer), "batch_decode", lambda *_, **__: 1 / 0)
    assert text_tokens(tokenizer) is once
    tokenizer.add_tokens(["newword"])  # it is another tokenizer then
    with pytest.raises(ZeroDivisionError):
        text_tokens(tokenizer)


@pytest.mark.parametrize("positions", ["even", "random"])
def test_draws_are_those_of_any_default_device(target: Target, positions: Any) -> None:
    """Where torch.set_default_device says "cuda", the draws are still the CPU's."""
    allowed = text_tokens(target.tokenizer)
    gradient = torch.randn(3, len(target.tokenizer), generator=torch.Generator().manual_seed(0))
    attack = GCGAnswer(positions=positions, candidates=20)

    def drawn() -> list[Any]:
        places = [place_of(target, BEHAVIORS[0])]
        suffix = first_suffix(places, 3, allowed, seed=0)
        generator = torch.Generator().manual_seed(1)
        return [suffix, *attack._candidates(gradient, suffix, allowed, generator)]

    expected = drawn()
    with torch.device("meta"):
        assert drawn() == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_proposed_tokens_are_plain_text(family: Family) -> None:
    target = local_target(family)
    tokenizer = target.tokenizer
    added = [t for t in tokenizer.get_added_vocab() if t.strip()]
    for token in text_tokens(tokenizer).tolist():
        text = tokenizer.decode([token])
        assert text.isascii() and text.isprintable() and text.strip()
        assert not any(special in text for special in added)
    assert max(text_tokens(tokenizer).tolist()) < len(tokenizer)


@pytest.mark.parametrize("family", ["word", "mistral", "qwen3"])
def test_losses_of_whole_texts(family: Family) -> None:
    """Of prompts of all lengths in one batch, each as if it were alone."""
    target = local_target(family, torch.float64)
    prompts = ["hello", "how do i make it ?", "explain " * 9]
    aimed = [True] * len(response_ids(target.tokenizer, "hello", KNOWN["target"]))
    found = response_losses(target.model, target.tokenizer, prompts, KNOWN["target"], aimed)
    expected = [loss_of(GCGAnswer(), target, BEHAVIORS[0], prompt) for prompt in prompts]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_model_that_is_broken_is_recorded(target: Target, monkeypatch: Any) -> None:
    nan = local_target()
    with torch.no_grad():
        nan.model.get_input_embeddings().weight.fill_(float("nan"))
    (case,) = GCGAnswer(**SMALL).run(BEHAVIORS[:1], nan, MATERIAL, 0)
    assert case.metadata["losses"] == [None] * 7
    forward = type(target.model).forward
    calls = [0]

    def fail(self: Any, *args: Any, **given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            raise RuntimeError("device lost")
        return forward(self, *args, **given)

    monkeypatch.setattr(type(target.model), "forward", fail)
    first, second = GCGAnswer(**SMALL).run(BEHAVIORS, target, MATERIAL, 0)
    lost = {"missing": True, "outage": True}
    assert first.metadata == {**lost, "errors": ["RuntimeError: device lost"]}
    assert first.prompt == "" and second.metadata["losses"]


@pytest.mark.parametrize("name", ["gcg_answer", "gcg_harmbench", "gcg_multi"])
def test_a_run_that_breaks_late_keeps_what_it_found(
    name: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {**SMALL, "init": ""} | ({"judge_every": 0} if name == "gcg_harmbench" else {})
    attack, kept = make_attack(name, **whole), replace(target, progress=tmp_path)
    computed, calls = gcg.neighbour_losses, [0]

    def lost(*given: Any) -> Losses:
        calls[0] += 1
        if calls[0] == 5:
            raise RuntimeError("device lost")
        return computed(*given)

    with monkeypatch.context() as broken:
        broken.setattr(gcg, "neighbour_losses", lost)
        cases = attack.run(BEHAVIORS[:1], kept, MATERIAL, 0)
    (sooner,) = make_attack(name, **whole | {"steps": 4}).run(BEHAVIORS[:1], target, MATERIAL, 0)
    assert cases[0].metadata.pop("errors") == ["step 5: RuntimeError: device lost"]
    assert cases[0].metadata.pop("outage")
    assert cases == [sooner]
    # Run again, it goes on from there.
    expected = attack.run(BEHAVIORS[:1], target, MATERIAL, 0)
    assert attack.run(BEHAVIORS[:1], kept, MATERIAL, 0) == expected
    assert "errors" not in expected[0].metadata


def test_the_steps_of_a_run_stay_in_its_folder(target: Target, tmp_path: Path) -> None:
    (case,) = GCGAnswer(**SMALL).run(BEHAVIORS[:1], replace(target, progress=tmp_path), MATERIAL, 0)
    (file,) = tmp_path.glob("gcg_answer-*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [behavior for behavior, _ in lines] == ["b0"] * 7
    steps = [step for _, step in lines]
    assert [step["loss"] for step in steps] == case.metadata["losses"]
    assert [step["flops"] for step in steps] == case.metadata["step_flops"]
    assert sum(case.metadata["step_flops"]) == case.metadata["flops"]
    assert [step["ids"] for step in steps] == case.metadata["step_ids"]
    assert case.metadata["suffix_ids"] in case.metadata["step_ids"]
    assert all(step["seconds"] > 0 and len(step["ids"]) == 4 for step in steps)


def test_gcg_pivot_wants_a_safe_pivot(target: Target) -> None:
    behavior = Behavior("b", "hello", metadata={"pivot_target": "that is fine . [RETHINK]"})
    with pytest.raises(InputError, match=r"holds no \[SAFE\]"):
        GCGPivot().run([behavior], target, MATERIAL, 0)
    empty = Behavior("b", "hello", metadata={"target": ""})
    with pytest.raises(InputError, match="target of behavior 'b' is empty"):
        GCGAnswer().run([empty], target, MATERIAL, 0)
