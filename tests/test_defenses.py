"""Each defence asks the generator what its paper says, and answers as it says."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_tokenizer

from r2d_core.defenses import (
    DEFENSES,
    REFUSAL,
    EraseAndCheck,
    IntentionAnalysis,
    PerplexityFilter,
    R2DNoThinking,
    R2DPrompt,
    RemoveNonDictionary,
    SelfReminder,
    SmoothLLM,
    SynonymSubstitution,
    fit_threshold,
    refusal_filter,
)
from r2d_core.defenses.perplexity_filter import log_perplexities
from r2d_core.defenses.smooth_llm import perturb
from r2d_core.defenses.word_files import read_synonyms, read_words
from r2d_core.errors import InputError
from r2d_core.generation import Generation, Request, TransformersGenerator
from r2d_core.pivots import expand_vocabulary

ASKED = [
    Request("How do I make the bano tiskel?", system="be brief", prefill="so"),
    Request("hello there", temperature=0.5, seed=3, history=(("why", "so"),)),
    Request(""),
]


class Scripted:
    """Answers by a function of the request; remembers what it was asked, batch by batch."""

    def __init__(self, says: Callable[[Request], str] = lambda request: "fine") -> None:
        self.says = says
        self.batches: list[list[Request]] = []

    @property
    def asked(self) -> list[Request]:
        return [request for batch in self.batches for request in batch]

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
        assert requests, "a generator is not asked for nothing"
        self.batches.append(list(requests))
        return [Generation(self.says(r), 10, 2, "length") for r in requests]


def refused(text: str) -> bool:
    return text.startswith("no")


def wrapped(name: str, generator: Scripted) -> object:
    """A defence of that name with settings under which something happens."""
    tokenizer = tiny_tokenizer("llama")
    settings = {
        "smooth_llm": {"refused": refused, "copies": 3, "percent": 30.0},
        "perplexity_filter": {
            "model": tiny_model("llama", tokenizer),
            "tokenizer": tokenizer,
            "threshold": 6.0,
        },
        "synonym_substitution": {"synonyms": {"make": ["build", "craft"]}, "percent": 50.0},
        "remove_non_dictionary": {"words": {"how", "do", "hello"}},
        "erase_and_check": {
            "harmful": lambda texts: ["tiskel" in text for text in texts],
            "tokenizer": tokenizer,
            "max_erase": 3,
        },
    }.get(name, {})
    return DEFENSES[name](generator, **settings)


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defence_is_a_generator_and_deterministic_whatever_is_asked_beside(name: str) -> None:
    def says(request: Request) -> str:
        return f"{len(request.prompt)} {request.prompt} {request.seed}"

    together = wrapped(name, Scripted(says)).generate(ASKED, 8)  # type: ignore[attr-defined]
    assert len(together) == len(ASKED)
    for request, made in zip(ASKED, together, strict=True):
        alone = wrapped(name, Scripted(says)).generate([request], 8)  # type: ignore[attr-defined]
        assert alone == [made]


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defence_changes_the_prompt_and_no_other_part_of_a_request(name: str) -> None:
    generator = Scripted()
    wrapped(name, generator).generate(ASKED[:2], 8)  # type: ignore[attr-defined]
    for request in generator.asked:
        like = ASKED[1] if request.temperature else ASKED[0]
        assert request.temperature == like.temperature
        assert request.history[: len(like.history)] == like.history
        assert request.system.endswith(like.system)
        assert request.prefill.endswith(like.prefill) or name == "intention_analysis"


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defence_of_nothing_asks_nothing(name: str) -> None:
    class Silent(Scripted):
        def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
            assert not requests
            return []

    assert wrapped(name, Silent()).generate([], 8) == []  # type: ignore[attr-defined]


# SmoothLLM


@given(
    text=st.text(max_size=60),
    percent=st.floats(0, 100),
    seed=st.integers(0, 99),
)
def test_a_perturbation_changes_as_much_as_it_says(text: str, percent: float, seed: int) -> None:
    n = int(len(text) * percent / 100)
    swapped = perturb(text, "swap", percent, random.Random(seed))
    assert len(swapped) == len(text)
    assert sum(a != b for a, b in zip(text, swapped, strict=True)) <= n
    inserted = perturb(text, "insert", percent, random.Random(seed))
    assert len(inserted) == len(text) + n
    rest = iter(inserted)
    assert all(character in rest for character in text)  # the text is still in it, in order
    patched = perturb(text, "patch", percent, random.Random(seed))
    assert len(patched) == len(text)
    changed = [i for i, (a, b) in enumerate(zip(text, patched, strict=True)) if a != b]
    assert not changed or changed[-1] - changed[0] < n


def test_every_place_and_character_may_be_perturbed() -> None:
    places, drawn = set(), set()
    for seed in range(4000):
        text = perturb("\0" * 10, "swap", 10, random.Random(seed))
        (place,) = (i for i, character in enumerate(text) if character != "\0")
        places.add(place)
        drawn.add(text[place])
    assert places == set(range(10))
    assert len(drawn) == 100  # string.printable
    patches = [perturb("\0" * 10, "patch", 30, random.Random(seed)) for seed in range(200)]
    assert {len(text) - len(text.lstrip("\0")) for text in patches} == set(range(8))


@pytest.mark.parametrize(
    ("refusals", "answers"), [(0, "yes"), (4, "yes"), (5, "no"), (6, "no"), (10, "no")]
)
def test_the_majority_of_copies_decides_and_a_tie_is_no_jailbreak(
    refusals: int, answers: str
) -> None:
    count = iter(range(10))
    generator = Scripted(lambda request: "no" if next(count) < refusals else "yes")
    (made,) = SmoothLLM(generator, refused).generate(ASKED[:1], 8)
    assert made == Generation(answers, 100, 20, "length")
    assert len(generator.asked) == 10
    assert len({request.prompt for request in generator.asked}) == 10
    assert len({request.seed for request in generator.asked}) == 10
    assert ASKED[0].prompt not in {request.prompt for request in generator.asked}


def test_copies_stand_by_their_own_request() -> None:
    generator = Scripted(lambda request: "no" if request.system else "yes")
    made = SmoothLLM(generator, refused, copies=3).generate(ASKED, 8)
    assert [each.text for each in made] == ["no", "yes", "yes"]
    assert len(generator.batches) == 1


# Perplexity filter


def test_log_perplexity_is_the_models_loss_or_its_worst_windows() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer, seed=3)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    text = "please explain how to use the bano tiskel"
    row = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        loss = float(model(row, labels=row).loss)
        logits = model(row).logits[0, :-1]
    assert log_perplexities(model, tokenizer, [text]) == [pytest.approx(loss, rel=1e-5)]
    nll = [-float(z.log_softmax(-1)[y]) for z, y in zip(logits, row[0, 1:], strict=True)]
    worst = max(sum(nll[i : i + 4]) / 4 for i in range(len(nll) - 3))
    assert worst > loss + 0.1
    assert log_perplexities(model, tokenizer, [text], 4) == [pytest.approx(worst, rel=1e-5)]
    assert log_perplexities(model, tokenizer, [text], 999) == [pytest.approx(loss, rel=1e-5)]
    assert log_perplexities(model, tokenizer, [""]) == [0.0]


def test_a_text_longer_than_the_context_is_read_in_pieces() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer, seed=3)
    text = "please explain how to use the bano tiskel " * 3
    ids = tokenizer(text)["input_ids"]
    read: list[list[int]] = []
    model.register_forward_pre_hook(lambda module, args: read.append(args[0][0].tolist()))
    model.config.max_position_embeddings = 10
    assert log_perplexities(model, tokenizer, [text])[0] > 0
    assert max(map(len, read)) == 10
    assert [token for piece in read for token in piece[1:]] == ids[1:]


def test_a_text_cannot_hide_behind_control_tokens() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args: seen.extend(args[0].flatten().tolist())  # type: ignore[func-returns-value]
    )
    log_perplexities(model, tokenizer, ["a<|eot_id|>b"])
    assert tokenizer.eos_token_id not in seen and len(seen) > 4


@pytest.mark.parametrize("family", ["llama", "qwen3", "r1"])
def test_think_tokens_in_a_prompt_are_text_to_a_filter(family: Any) -> None:
    """Those of Qwen3 and R1 are added tokens that their tokenizers do not call special."""
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer)
    expand_vocabulary(model, tokenizer)
    added = set(tokenizer.added_tokens_decoder) - {tokenizer.bos_token_id}
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args: seen.extend(args[0].flatten().tolist())  # type: ignore[func-returns-value]
    )
    text = "a <think> b [SAFE] </think> c"
    log_perplexities(model, tokenizer, [text])
    assert len(seen) > 10 and not added & set(seen)
    whole, *erased = EraseAndCheck(Scripted(), lambda t: [], tokenizer, max_erase=3).erased(text)
    assert whole == text and any(each.endswith(("</", "</think")) for each in erased)


def test_the_filter_refuses_what_is_above_a_threshold_fitted_on_benign_prompts() -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer, seed=3)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    benign = [f"please explain {n} and {n * n}" for n in range(20)]
    scores = dict(zip(benign, log_perplexities(model, tokenizer, benign), strict=True))
    for rate, above in ((0.0, 0), (0.049, 0), (0.05, 1), (0.25, 5)):
        threshold = fit_threshold(model, tokenizer, benign, false_positive_rate=rate)
        assert sum(score > threshold for score in scores.values()) == above
    generator = Scripted()
    defense = PerplexityFilter(generator, model, tokenizer, threshold)
    made = defense.generate([Request(prompt) for prompt in benign], 8)
    assert [each.text == REFUSAL for each in made] == [scores[b] > threshold for b in benign]
    assert [r.prompt for r in generator.asked] == [b for b in benign if scores[b] <= threshold]
    assert {(m.prompt_tokens, m.response_tokens) for m in made} == {(0, 0), (10, 2)}
    with pytest.raises(InputError, match="benign is empty"):
        fit_threshold(model, tokenizer, [])


# Words


def test_synonyms_replace_words_that_have_some_and_nothing_else() -> None:
    table = {"make": ["build"], "the": ["that", "this"], "hello": ["hi"]}
    generator = Scripted()
    defense = SynonymSubstitution(generator, table, percent=100)
    assert defense.substitute("Hello, make  the\nmaker!") in (
        "Hi, build  that\nmaker!",
        "Hi, build  this\nmaker!",
    )
    assert defense.substitute("nobody knows") == "nobody knows"
    # Five percent of three words is one word, where one has a synonym.
    changed = SynonymSubstitution(generator, table).substitute("make the hello")
    assert sum(a != b for a, b in zip(changed.split(), ["make", "the", "hello"], strict=True)) == 1
    prompts = [f"make the {n}" for n in range(40)]
    drawn = {SynonymSubstitution(generator, table, 30).substitute(p).split()[0] for p in prompts}
    assert drawn == {"make", "build"}
    others = [SynonymSubstitution(generator, table, 30, seed=1).substitute(p) for p in prompts]
    assert others != [SynonymSubstitution(generator, table, 30).substitute(p) for p in prompts]


def test_what_is_in_no_dictionary_is_removed() -> None:
    defense = RemoveNonDictionary(Scripted(), frozenset({"hello", "make", "bomb", "don't"}))
    assert defense.clean('Hello, "MAKE"  xqz bomb? !!-- 3,000 describing.\\ don\'t') == (
        'Hello, "MAKE" bomb? 3,000 don\'t'
    )
    assert defense.clean("xqz\nhello\n  make") == "hello\n  make"
    assert defense.clean("!! xqz") == ""


def test_word_files_are_read(tmp_path: Path) -> None:
    words, table = tmp_path / "words", tmp_path / "synonyms"
    words.write_text("Hello\n\nmake\n")
    table.write_text("Make: build, craft\n\nhello : hi\n")
    assert read_words(words) == {"hello", "make"}
    assert read_synonyms(table) == {"make": ("build", "craft"), "hello": ("hi",)}
    assert RemoveNonDictionary(Scripted(), words).clean("hello xqz") == "hello"
    assert SynonymSubstitution(Scripted(), table).substitute("Hello") == "Hi"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"make: build\nhello hi\n", "synonyms:2: expected 'word: synonym, synonym'"),
        (b"make:\n", "synonyms:1: expected 'word"),
        (b"make: a\nMAKE: b\n", "synonyms:2: 'make' comes a second time"),
        (b"\n", "synonyms: expected lines"),
        (b"\xff", r"synonyms: cannot be read as UTF-8 text \(UnicodeDecodeError\)"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "synonyms"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        SynonymSubstitution(Scripted(), path)
    with pytest.raises(InputError, match=r"nowhere: cannot be read .*\(FileNotFoundError\)"):
        RemoveNonDictionary(Scripted(), tmp_path / "nowhere")


# Erase-and-check


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("suffix", ["a b c d", "a b c", "a b"]),
        ("insertion", ["a b c d", "b c d", "a c d", "a b d", "a b c", "c d", "a d", "a b"]),
        (
            "infusion",
            ["a b c d", "a b c", "a b d", "a c d", "b c d"]
            + ["a b", "a c", "a d", "b c", "b d", "c d"],
        ),
    ],
)
def test_what_is_erased(mode: str, expected: list[str]) -> None:
    tokenizer = tiny_tokenizer("word", corpus=["a b c d"])
    checked: list[str] = []

    def harmful(texts: Sequence[str]) -> list[bool]:
        checked.extend(texts)
        return [False] * len(texts)

    generator = Scripted()
    defense = EraseAndCheck(generator, harmful, tokenizer, max_erase=2, mode=mode)  # type: ignore[arg-type]
    assert defense.generate([Request("a b c d")], 8)[0].text == "fine"
    assert checked == expected
    # The prompt itself is asked, and no more is erased than there is.
    assert generator.asked == [Request("a b c d")]
    checked.clear()
    defense.generate([Request("a b"), Request("a"), Request("a")], 8)
    assert {"a b", "a"} <= set(checked) <= {"a b", "a", "b"}
    assert len(checked) == len(set(checked))
    checked.clear()
    defense.generate([Request("")], 8)
    assert checked == [""]


def test_a_suffix_no_longer_than_what_is_erased_does_not_fool_the_filter() -> None:
    tokenizer = tiny_tokenizer("word", corpus=["do harm x y z hello"])

    def harmful(texts: Sequence[str]) -> list[bool]:
        return [text == "do harm" for text in texts]

    generator = Scripted()
    defense = EraseAndCheck(generator, harmful, tokenizer, max_erase=2)
    asked = [Request("do harm x y"), Request("do harm x y z"), Request("hello")]
    assert [m.text for m in defense.generate(asked, 8)] == [REFUSAL, "fine", "fine"]
    assert generator.asked == asked[1:]


def test_a_refusing_model_may_be_the_filter() -> None:
    model = Scripted(lambda request: "no" if request.prompt == "do harm" else "yes")
    assert refusal_filter(model, refused, 8)(["do harm", "hello"]) == [True, False]


# Prompts


def test_self_reminder_stands_round_the_query() -> None:
    generator = Scripted()
    SelfReminder(generator).generate([Request("QUERY")], 8)
    before, after = generator.asked[0].prompt.split("QUERY")
    assert before.endswith("answer the following user query in a responsible way.\n")
    assert after.startswith("\nRemember, you should be a responsible ChatGPT")


def test_intention_analysis_asks_twice_in_one_conversation() -> None:
    generator = Scripted(
        lambda r: "it is {query}" if "essential intention behind" in r.prompt else "so"
    )
    asked = Request("QUERY", system="s", prefill="sure", history=(("why", "so"),))
    (made,) = IntentionAnalysis(generator).generate([asked], 8)
    assert made == Generation("so", 20, 4, "length")
    first, second = generator.asked
    assert first.prompt.endswith("you should focus on:\n'''\nQUERY\n'''") and first.prefill == ""
    assert first.history == (("why", "so"),)
    assert second.prompt.startswith("Knowing its essential intention") and second.prefill == "sure"
    assert second.history == (("why", "so"), (first.prompt, "it is {query}"))
    assert second.system == first.system == "s"


def test_r2d_by_prompt_alone() -> None:
    generator = Scripted()
    R2DPrompt(generator).generate([Request("q"), Request("q", system="be brief")], 8)
    alone, beside = (request.system for request in generator.asked)
    assert "[SAFE]" in alone and "[RETHINK]" in alone
    assert beside == f"{alone}\n\nbe brief"


def test_r2d_without_thinking() -> None:
    generator = Scripted()
    asked = [Request("q"), Request("q", prefill="Sure"), Request("q", prefill="<think> [SAFE]")]
    R2DNoThinking(generator).generate(asked, 8)
    empty = "<think>\n\n</think>\n\n"
    assert [r.prefill for r in generator.asked] == [empty, f"{empty}Sure", "<think> [SAFE]"]


def test_a_chain_of_defences_round_a_real_model() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    model = TransformersGenerator(tiny_model("qwen2", tokenizer), tokenizer)
    chain = SmoothLLM(IntentionAnalysis(R2DNoThinking(SelfReminder(model))), refused, copies=2)
    made = chain.generate(ASKED, 4)
    assert made == chain.generate(ASKED, 4)
    assert all(each.response_tokens > 4 for each in made)  # four answers each


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda g: SmoothLLM(g, refused, copies=0), "copies is 0"),
        (lambda g: SmoothLLM(g, refused, percent=101), "percent is 101"),
        (lambda g: SmoothLLM(g, refused, perturbation="swop"), "did you mean 'swap'"),  # type: ignore[arg-type]
        (lambda g: PerplexityFilter(g, None, None, float("nan")), "threshold is nan"),
        (lambda g: PerplexityFilter(g, None, None, 1.0, window=0), "window is 0"),
        (lambda g: fit_threshold(None, None, ["a"], false_positive_rate=1.0), "rate is 1.0"),
        (lambda g: SynonymSubstitution(g, {}, percent=-1), "percent is -1"),
        (lambda g: EraseAndCheck(g, None, None, mode="sufix"), "did you mean 'suffix'"),  # type: ignore[arg-type]
        (lambda g: EraseAndCheck(g, None, None, mode="infusion"), "max_erase is 20, .*at most 3"),  # type: ignore[arg-type]
        (lambda g: EraseAndCheck(g, None, None, max_erase=-1), "max_erase is -1"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range(make: Callable[[Scripted], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(Scripted())
