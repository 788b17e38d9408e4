from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from r2d_core.errors import InputError
from r2d_core.pivots import PIVOT_TOKENS, RETHINK, SAFE, THINK_CLOSE, THINK_OPEN, UNSAFE
from r2d_core.trajectories import (
    HIDDEN_NOTICE,
    Step,
    Trajectory,
    format_response,
    from_record,
    hide_unsafe,
    parse,
    problems,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
PIECE = st.one_of(
    st.sampled_from([*PIVOT_TOKENS, THINK_OPEN, THINK_CLOSE, " ", "\n", "[SAFE", "]", "[UNSURE]"]),
    ANY_TEXT,
)
RESPONSE = st.lists(PIECE, max_size=12).map("".join)
GOOD = "<think> what is it ? [RETHINK] it is fine . [SAFE] </think> the answer ."


@settings(max_examples=500)
@given(RESPONSE)
@example("<think>a[SAFE]\n</think>")
@example("a</think>b<think>c[SAFE]")
@example("[SAFE] \u2003")
@example("<think> ")
@example("\ud800<think>\x00[UNSAFE]\ud800")
def test_every_text_parses_and_comes_back_to_the_character(text: str) -> None:
    t = parse(text)
    assert str(t) == text
    # What judges rely on: where the parts lie in the text.
    assert text.startswith(t.opening + t.reasoning) and text.endswith(t.answer)
    assert all(not token_in(step.text, PIVOT_TOKENS) for step in t.steps)
    assert all(step.pivot for step in t.steps[:-1])
    assert t.final_pivot == (t.pivots[-1] if t.pivots else None)
    assert t.finished or t.answer == ""
    assert isinstance(problems(t), list)


def token_in(text: str, tokens: tuple[str, ...]) -> bool:
    return any(token in text for token in tokens)


@settings(max_examples=300)
@given(RESPONSE)
def test_no_word_is_lost_between_the_parts(text: str) -> None:
    t = parse(text)
    assert t.closing.strip() in ("", THINK_CLOSE)
    assert t.opening in (t.preamble, t.preamble + THINK_OPEN)
    if THINK_OPEN not in text and THINK_CLOSE not in text:
        assert t.preamble == "" and t.reasoning + t.answer == text


@pytest.mark.parametrize(
    ("text", "preamble", "steps", "answer", "finished"),
    [
        (
            GOOD,
            "",
            [(" what is it ? ", RETHINK), (" it is fine . ", SAFE)],
            " the answer .",
            True,
        ),
        ("hm <think>a[SAFE]</think>b", "hm ", [("a", SAFE)], "b", True),
        # The last step has no pivot.
        ("<think>a[SAFE] b</think>c", "", [("a", SAFE), (" b", None)], "c", True),
        ("<think>a</think>b", "", [("a", None)], "b", True),
        ("<think>\n</think>b", "", [], "b", True),
        # Opened and never closed.
        ("<think> a [SAFE] b", "", [(" a ", SAFE), (" b", None)], "", False),
        ("<think> a [UNSAFE] ", "", [(" a ", UNSAFE)], "", False),
        ("sure : <think>", "sure : ", [], "", False),
        # Opened by the chat template.
        ("\na [UNSAFE]\n</think>\nb", "", [("\na ", UNSAFE)], "\nb", True),
        ("a</think>b<think>c[SAFE]", "", [("a", None)], "b<think>c[SAFE]", True),
        # No think tokens.
        ("a [RETHINK] b [SAFE] c", "", [("a ", RETHINK), (" b ", SAFE)], " c", True),
        ("[UNSAFE] i must refuse .", "", [("", UNSAFE)], " i must refuse .", True),
        ("a [SAFE]", "", [("a ", SAFE)], "", True),
        ("just an answer", "", [], "just an answer", True),
        ("", "", [], "", True),
        # The first </think> ends the reasoning; what follows is shown to the reader.
        ("<think>a[SAFE]</think>b</think>c", "", [("a", SAFE)], "b</think>c", True),
        ("<think>a[SAFE]</think>b [UNSAFE] c", "", [("a", SAFE)], "b [UNSAFE] c", True),
        ("<think>a<think>b[SAFE]</think>c", "", [("a<think>b", SAFE)], "c", True),
        # Spelled otherwise, it is no pivot.
        ("<think>a[UNSURE]b[safe]</think>c", "", [("a[UNSURE]b[safe]", None)], "c", True),
    ],
)
def test_what_is_reasoning_and_what_is_answer(
    text: str, preamble: str, steps: list[tuple[str, str | None]], answer: str, finished: bool
) -> None:
    t = parse(text)
    assert t.preamble == preamble
    assert t.steps == tuple(Step(*step) for step in steps)
    assert (t.answer, t.finished) == (answer, finished)
    assert str(t) == text


def test_the_properties_of_a_good_one() -> None:
    t = parse(GOOD, instruction="what is it")
    assert t.instruction == "what is it"
    assert t.reasoning == " what is it ? [RETHINK] it is fine . [SAFE]"
    assert t.pivots == (RETHINK, SAFE)
    assert t.final_pivot == SAFE
    assert problems(t) == []
    assert parse("an answer").final_pivot is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("an answer", ["no pivot"]),
        ("<think> a </think> b", ["no pivot"]),
        (
            "<think> a [SAFE] b",
            ["unfinished: <think> without </think>", "the last step ends in no"],
        ),
        ("<think> a [SAFE] </think> \n", ["the answer is empty"]),
        ("", ["the answer is empty", "no pivot"]),
        ("<think> a [SAFE] b </think> c", ["the last step ends in no pivot"]),
        (
            "<think> a [SAFE] b [UNSURE] c [UNSURE] [RETHINK] </think> d",
            ["step 2: [UNSURE] is not one of [SAFE], [UNSAFE], [RETHINK]"],
        ),
        ("<think> a [Safe] b [ SAFE ] c [SAFE] </think> d", ["step 1: [Safe]", "step 1: [ SAFE ]"]),
        ("<think> a [SAFE] </think> b [UNSAFE] c", ["[UNSAFE] in the answer"]),
        ("<think> a [SAFE] </think> b </think> c", ["2 times </think>"]),
        ("<think> a <think> b [SAFE] </think> c", ["2 times <think>"]),
        ("<think> a [SAFE] </think> b <|eot_id|> c", ["text after the end of turn <|eot_id|>"]),
        ("<think> a [SAFE] </think> b </s>\n", ["a written end of turn </s>"]),
        (
            "<think> a [SAFE] </think> b <|im_start|>user\nc",
            ["a new turn is opened: <|im_start|>"],
        ),
        (
            "<think> a [SAFE] </think> b\n\n### Instruction:\nc",
            ["a new turn is opened: ### Instruction:"],
        ),
        ("<think> a [SAFE] </think> b\n[INST] c", ["a new turn is opened: [INST]"]),
        (
            "<think> a [SAFE] </think> b<end_of_turn>\n<start_of_turn>user c",
            ["text after the end of turn", "a new turn is opened: <start_of_turn>"],
        ),
    ],
)
def test_problems_are_named_and_no_others(text: str, said: list[str]) -> None:
    found = problems(parse(text))
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True))


@pytest.mark.parametrize(
    "text", ["[NAME]", "[YOUR CITY]", "[BLANK]", "[DNA]", "[INST]", "[DATE]", "[Safely]", "[ok]"]
)
def test_placeholders_in_reasoning_pass(text: str) -> None:
    assert problems(parse(f"<think> dear {text} , [SAFE] </think> hello")) == []


@pytest.mark.parametrize("word", ["[DANGER]", "[HARMFUL]", "[Unsure]", "[Concerned]", "[STOP]"])
@pytest.mark.parametrize(
    "text",
    [
        "It burns. {}\n\nnow what? [SAFE]",
        "It burns. {} [SAFE]",
        "it burns {} [SAFE]",
    ],
)
def test_a_word_where_a_pivot_would_stand_is_named(text: str, word: str) -> None:
    (found,) = problems(parse(f"<think> {text.format(word)} </think> hello"))
    assert found.startswith(f"step 1: {word} is not one of")


@pytest.mark.parametrize("word", ["[DANGER]", "[Harmful]", "[unsure]"])
def test_a_verdict_in_brackets_is_named_wherever_it_stands(word: str) -> None:
    (found,) = problems(parse(f"<think> it burns {word} so no . [SAFE] </think> hello"))
    assert found.startswith(f"step 1: {word} is not one of")


WORDS = st.sampled_from(
    ["the", "cat", "Rome", "is", "harmful", "user:", "Human:", "USER", "Instruction:", "safe",
     "[1]", "[12]", "[sic]", "[NAME]", "[YOUR NAME]", "[i]", "x[0]", "(see [3])", "###", "<b>"]
)  # fmt: skip
SENTENCE = st.tuples(
    st.lists(WORDS, min_size=1, max_size=7), st.sampled_from(["it .", "them?", "so!", "why [2]."])
).map(lambda parts: " ".join([*parts[0], parts[1]]))


@given(st.lists(SENTENCE, min_size=1, max_size=4), st.sampled_from([" ", "\n", "\n\n"]))
@example(["As Gibbon says [sic] it .", "Dear [NAME] , them?"], " ")
def test_ordinary_prose_is_not_flagged(sentences: list[str], between: str) -> None:
    text = between.join(sentences)
    # A heading of that name is a template's turn (Vicuna's, Alpaca's), and no ordinary prose.
    assume(not re.search("### (Human|Instruction):", text))
    assert problems(parse(f"<think> {text} [SAFE] </think> {text}")) == []


def test_a_heading_that_a_template_opens_a_turn_with_is_named() -> None:
    (found,) = problems(parse("<think> the it .\n### Human: it . [SAFE] </think> hello"))
    assert found == "a new turn is opened: ### Human:"


@pytest.mark.parametrize("text", ["[UNSURE]", "[RE-THINK]", "[THINK]", "[SAVE]", "[unsafe]"])
def test_what_was_meant_for_a_pivot_is_named(text: str) -> None:
    (found,) = problems(parse(f"<think> so {text} it is [SAFE] </think> hello"))
    assert found.startswith(f"step 1: {text} is not one of")


def test_brackets_that_are_no_pivots_pass() -> None:
    assert problems(parse("<think> dear [NAME] [SAFE] write to [Email] [SAFE] </think> a")) == []
    assert problems(parse("<think> x[0], [i], [A] and [1, 2] [SAFE] </think> dear [NAME] .")) == []


STEP = st.tuples(
    ANY_TEXT.filter(lambda t: not token_in(t, (*PIVOT_TOKENS, THINK_OPEN, THINK_CLOSE))),
    st.sampled_from(PIVOT_TOKENS),
)


@given(st.lists(STEP, max_size=4), ANY_TEXT)
def test_what_is_formatted_parses_to_the_same_steps(
    steps: list[tuple[str, str]], answer: str
) -> None:
    t = parse(format_response(steps, answer))
    assert [(s.text.strip(), s.pivot) for s in t.steps] == [(x.strip(), p) for x, p in steps]
    assert t.answer.strip() == answer.strip()
    assert t.finished and t.preamble == ""


def test_the_canonical_form_has_single_spaces_around_tokens() -> None:
    steps: list[Step | tuple[str, str | None]] = [
        Step("what is it ?\n", RETHINK),
        (" it is fine . ", SAFE),
    ]
    assert format_response(steps, "\nthe answer .") == GOOD
    again = parse(GOOD)
    assert format_response(again.steps, again.answer) == GOOD
    assert format_response([("a", None), ("b", None)], "c") == "<think> a b </think> c"
    assert format_response([("", SAFE)], "c") == "<think> [SAFE] </think> c"
    assert format_response([], "c") == "<think> </think> c"


def test_a_step_that_would_not_read_back_is_refused() -> None:
    with pytest.raises(InputError, match=r"step 2: the text holds \[SAFE\]"):
        format_response([("a", SAFE), ("b [SAFE] c", UNSAFE)], "d")
    with pytest.raises(InputError, match="step 1: the text holds </think>"):
        format_response([("</think>", SAFE)], "d")
    with pytest.raises(InputError, match=r"expected one of \[SAFE\].*got '\[UNSURE\]'"):
        format_response([("a", "[UNSURE]")], "d")


@given(RESPONSE)
@example("<think>the steps are a b c[UNSAFE]fine[SAFE]</think>answer")
def test_hidden_steps_are_gone_and_nothing_else_is(text: str) -> None:
    t = parse(text)
    hidden = hide_unsafe(t)
    assert parse(str(hidden)) == hidden
    assert (hidden.pivots, hidden.answer, hidden.opening) == (t.pivots, t.answer, t.opening)
    for before, after in zip(t.steps, hidden.steps, strict=True):
        if before.pivot == UNSAFE:
            assert after.text.strip() == HIDDEN_NOTICE
        else:
            assert after == before


def test_a_row_of_the_data_set_is_read() -> None:
    t = from_record({"instruction": "sum up\n", "input": " a text ", "output": GOOD, "more": 1})
    assert (t.instruction, str(t)) == ("sum up\n\na text", GOOD)
    for record in ({"instruction": "ask", "output": GOOD}, {"instruction": "ask", "input": None}):
        t = from_record({**record, "output": GOOD})
        assert isinstance(t, Trajectory) and t.instruction == "ask"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"instruction": "ask"}, "no field 'output'; it has instruction"),
        ({}, "no field 'instruction'; it has none"),
        ({"instruction": "ask", "output": None}, "'output': expected text, got NoneType"),
        ({"instruction": 3, "output": GOOD}, "'instruction': expected text, got int"),
        ({"instruction": "ask", "input": [], "output": GOOD}, "'input': expected text, got list"),
    ],
)
def test_a_row_that_is_none_is_refused(record: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_record(record)
    assert said in str(caught.value)
