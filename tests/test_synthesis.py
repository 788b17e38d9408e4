"""Making trajectories: what teachers write, what pivots come of it, and runs that are killed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_tokenizer

from r2d_core.datasets import read_trajectories
from r2d_core.decontamination import words
from r2d_core.errors import InputError
from r2d_core.generation import Generation, Request, RequestError, TransformersGenerator
from r2d_core.guards import (
    Guard,
    StepInContext,
    judge_filter,
    judge_guard,
    load_prompt,
    prompt_guard,
)
from r2d_core.judges import JUDGES
from r2d_core.pivots import PIVOT_TOKENS, RETHINK, SAFE, UNSAFE
from r2d_core.records import Behavior
from r2d_core.synthesis import (
    UNSAFE_ANSWER,
    SynthesisConfig,
    choose_pivots,
    find_duplicates,
    read_response,
    split_steps,
    synthesize,
)
from r2d_core.synthesis_journal import STATUSES, read_journal
from r2d_core.toy.evaluation import benign_behaviors, harmful_behaviors
from r2d_core.toy.judge import ToyJudge
from r2d_core.toy.language import make_language
from r2d_core.toy.policy import REFUSAL
from r2d_core.toy.requests import Query, true_answer
from r2d_core.toy.splits import make_splits
from r2d_core.toy.teacher import ToyTeacher
from r2d_core.trajectories import Step, parse, problems

LANGUAGE = make_language(0)
JUDGE = ToyJudge(LANGUAGE)
GOOD = "<think> what is it ? [RETHINK] it is fine . [SAFE] </think> the answer ."


def toy_behaviors() -> list[Behavior]:
    splits = make_splits(LANGUAGE, 0)
    harmful = harmful_behaviors(LANGUAGE, splits, "development", 16, 0)
    benign = benign_behaviors(LANGUAGE, splits, "development", 6, 0)
    return [*harmful, *benign]


class Scripted:
    """A teacher that writes what the script says of a prompt; an exception is raised."""

    def __init__(self, script: dict[str, str | Exception], otherwise: str = GOOD) -> None:
        self.script = script
        self.otherwise = otherwise
        self.calls: list[list[Request]] = []

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
        self.calls.append(list(requests))
        made = []
        for request in requests:
            text = self.script.get(request.prompt, self.otherwise)
            if isinstance(text, Exception):
                raise text
            kept = text.split()[:max_new_tokens]
            cut = len(kept) < len(text.split())
            made.append(
                Generation(
                    " ".join(kept) if cut else text, 1, len(kept), "length" if cut else "stop"
                )
            )
        return made


def safe(steps: Sequence[StepInContext]) -> list[str]:
    return [SAFE for _ in steps]


# Words that share nothing, so that no instruction repeats another.
NAMES = ["alder tree", "brown bear", "copper coin", "deep dish", "early edge", "fine flour"]


def ask(*prompts: str) -> list[Behavior]:
    return [Behavior(id=f"b{n}", prompt=prompt) for n, prompt in enumerate(prompts)]


# --- from a response to steps -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps", "answer"),
    [
        (GOOD, [("what is it ?", RETHINK), ("it is fine .", SAFE)], "the answer ."),
        # As DeepSeek-R1 does under the paper's instruction: pivots in the answer, too.
        (
            "<think>\nOkay, so. [RETHINK]\n\nWait, no. [SAFE]\n</think>\n\n"
            "I'm sorry. [SAFE]\nBye. [SAFE]",
            [("Okay, so.", RETHINK), ("Wait, no.", SAFE)],
            "I'm sorry.\nBye.",
        ),
        # The last step's pivot behind </think>; opened by the chat template.
        ("One. [SAFE] Two.</think>[UNSAFE]\n\nNo.", [("One.", SAFE), ("Two.", UNSAFE)], "No."),
        ("<think>1. [Safe] 2. [ UN-SAFE ]</think>No.", [("1.", SAFE), ("2.", UNSAFE)], "No."),
        ("<think>One.\n\n Two\n3.\n\n\n</think>No.", [("One.", None), ("Two\n3.", None)], "No."),
        ("<think>[SAFE] One. [SAFE][SAFE]</think>No.", [("One.", SAFE)], "No."),
        ("One. [SAFE] No.", [("One.", SAFE)], "No."),
    ],
)  # fmt: skip
def test_what_teachers_write_is_read(
    text: str, steps: list[tuple[str, str | None]], answer: str
) -> None:
    found, said, missing = read_response(text, "paragraph")
    assert [(step.text, step.pivot) for step in found] == steps
    assert (said, missing) == (answer, "")


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", "the teacher wrote nothing"),
        (" \n", "the teacher wrote nothing"),
        ("Sure, here you are.", "there is no reasoning"),
        ("<think> </think> yes", "there is no reasoning"),
        ("<think> on and on", "the reasoning does not end"),
        ("<think> a [SAFE] </think>", "there is no answer"),
        ("<think> a [SAFE] </think> [SAFE]", "there is no answer"),
    ],
)
def test_what_is_missing_is_said(text: str, missing: str) -> None:
    assert read_response(text, "paragraph")[2].startswith(missing)


@given(st.text(max_size=60), st.sampled_from(["paragraph", "sentence"]))
def test_any_text_is_read_without_a_crash(text: str, split: str) -> None:
    for written in (text, f"<think>{text}</think>{text}"):
        steps, answer, _ = read_response(written, split)  # type: ignore[arg-type]
        assert all(step.text.strip() for step in steps)
        assert not any(pivot in answer for pivot in PIVOT_TOKENS)


def test_reasoning_is_cut_at_paragraphs_or_sentences() -> None:
    text = "It costs 3.5 now. Is that much?\nPerhaps not.\n\nSo I buy it!"
    assert split_steps(text, "paragraph") == [
        "It costs 3.5 now. Is that much?\nPerhaps not.",
        "So I buy it!",
    ]
    assert split_steps(text, "sentence") == [
        "It costs 3.5 now.",
        "Is that much?",
        "Perhaps not.",
        "So I buy it!",
    ]
    assert split_steps("it is red . is it ? yes .", "sentence") == [
        "it is red .",
        "is it ?",
        "yes .",
    ]


# --- pivots -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "guard", "pivot"),
    [
        (None, SAFE, SAFE),
        (None, UNSAFE, UNSAFE),
        (SAFE, SAFE, SAFE),
        (UNSAFE, UNSAFE, UNSAFE),
        (SAFE, UNSAFE, RETHINK),
        (UNSAFE, SAFE, RETHINK),
        (RETHINK, SAFE, RETHINK),
        (RETHINK, UNSAFE, RETHINK),
    ],
)
def test_the_pivot_is_what_both_agree_on(teacher: str | None, guard: str, pivot: str) -> None:
    assert choose_pivots([Step("a step", teacher)], [guard]) == [Step("a step", pivot)]


@pytest.mark.parametrize(
    "turn", ["Wait, no.", "wait , be careful .", "But wait.", "Hmm.", "Let me reconsider."]
)
def test_a_step_before_a_turn_is_to_be_rethought(turn: str) -> None:
    steps = [Step("do it", None), Step(turn, None)]
    assert [s.pivot for s in choose_pivots(steps, [SAFE, SAFE])] == [RETHINK, SAFE]
    # Both have seen that it is unsafe: that says more.
    steps = [Step("do it", UNSAFE), Step(turn, None)]
    assert [s.pivot for s in choose_pivots(steps, [UNSAFE, SAFE])] == [UNSAFE, SAFE]
    # The guard alone does not.
    steps = [Step("do it", None), Step(turn, None)]
    assert [s.pivot for s in choose_pivots(steps, [UNSAFE, SAFE])] == [RETHINK, SAFE]


def test_a_waiter_is_no_turn() -> None:
    steps = [Step("do it", None), Step("Waiters are paid.", None)]
    assert choose_pivots(steps, [SAFE, SAFE])[0].pivot == SAFE


# --- guards and prompts -------------------------------------------------------------------------


def test_a_model_is_asked_about_each_step_in_its_context() -> None:
    model = Scripted({}, otherwise="\n\nsafe")
    guard = prompt_guard(model)
    behavior = Behavior(id="b", prompt="tell me {step} of {reasoning}")
    steps = [StepInContext(behavior, "", "first"), StepInContext(behavior, "first", "second {x}")]
    assert guard(steps) == [SAFE, SAFE]
    one, other = (request.prompt for request in model.calls[0])
    # What is filled in is text, even when it looks like a place to fill.
    assert "tell me {step} of {reasoning}" in one and "first" in one
    assert "second {x}" in other and "{instruction}" not in other


@pytest.mark.parametrize(
    ("judge", "said", "tag"),
    [
        ("llama_guard_3", "safe", SAFE),
        ("llama_guard_3", "unsafe\nS9", UNSAFE),
        (
            "llama_guard_3",
            "I cannot say",
            "expected a verdict of llama_guard_3, got 'I cannot say'",
        ),
        ("jailbreakbench", "unsafe", UNSAFE),
        ("jailbreakbench", "safe", SAFE),
    ],
)
def test_a_judge_of_models_as_guard(judge: str, said: str, tag: str) -> None:
    model = Scripted({}, otherwise=said)
    guard = judge_guard(JUDGES[judge](model, "m"))
    behavior = Behavior(id="b", prompt="p")
    assert guard([StepInContext(behavior, "", f"step {n}") for n in range(6)]) == [tag] * 6
    assert [len(call) for call in model.calls] == [6]


def test_a_judge_that_tells_no_harm_is_no_guard() -> None:
    for name in ("xstest", "strongreject"):
        with pytest.raises(InputError, match=f"judge {name!r} has no label for a harmful text; ta"):
            judge_guard(JUDGES[name](Scripted({}), "m"))


def test_an_empty_step_is_safe_and_what_the_model_cannot_take_is_no_tag() -> None:
    model = TooLong({}, otherwise="unsafe")
    guard = judge_guard(JUDGES["llama_guard_3"](model, "m"))
    behavior = Behavior(id="b", prompt="p")
    assert guard([StepInContext(behavior, "", " ")]) == [SAFE] and not model.calls
    one, other = guard([StepInContext(behavior, "", text) for text in ("good", "too long")])
    assert one == UNSAFE and other.startswith("expected a verdict of llama_guard_3, got 'Requ")


class TooLong(Scripted):
    """Has no room for what says so."""

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
        if failed := {r: RequestError("too long") for r in requests if "too long" in r.prompt}:
            raise RequestError("too long", failed)
        return super().generate(requests, max_new_tokens)


@pytest.mark.parametrize(
    ("said", "tag"),
    [
        ("safe", SAFE),
        ("unsafe\nS1", UNSAFE),
        ("**Unsafe**", UNSAFE),
        ("<think>is it safe ?</think> unsafe", UNSAFE),
        ("safety first", "expected an answer that begins with safe or unsafe"),
        ("I cannot tell", "expected an answer that begins with safe or unsafe"),
        ("", "expected an answer that begins with safe or unsafe"),
    ],
)
def test_what_a_guard_may_say(said: str, tag: str) -> None:
    guard = prompt_guard(Scripted({}, otherwise=said))
    assert guard([StepInContext(Behavior(id="b", prompt="p"), "", "s")])[0].startswith(tag)


def test_prompts_are_files(tmp_path: Path) -> None:
    for name in ("teacher", "teacher_paper", "on_policy", "guard"):
        assert load_prompt(name)
    own = tmp_path / "own.txt"
    own.write_text("be kind\n")
    assert load_prompt(str(own)) == "be kind"
    own.write_text('Say {"verdict": "safe"} or not of {step}')
    model = Scripted({}, otherwise="safe")
    prompt_guard(model, str(own))([StepInContext(ask("p")[0], "", "this")])
    assert model.calls[0][0].prompt == 'Say {"verdict": "safe"} or not of this'
    with pytest.raises(InputError, match="unknown prompt 'techer', did you mean 'teacher'"):
        load_prompt("techer")
    with pytest.raises(InputError, match="none.txt: cannot be read"):
        load_prompt(str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match=r"expected the place \{step\}"):
        prompt_guard(Scripted({}), "teacher")


def test_the_prompt_goes_where_it_is_wanted_by_kind(tmp_path: Path) -> None:
    behaviors = [
        Behavior(id="h", prompt=NAMES[0]),
        Behavior(id="b", prompt=NAMES[1], kind="benign"),
    ]
    teacher = Scripted({})
    synthesize(
        behaviors, teacher, safe, SynthesisConfig(tmp_path / "a", harmful_prompt="on_policy",
                                                  benign_prompt="")
    )  # fmt: skip
    assert [r.system for r in teacher.calls[0]] == [load_prompt("on_policy"), ""]
    assert [r.prompt for r in teacher.calls[0]] == NAMES[:2]
    teacher = Scripted({})
    synthesize(behaviors, teacher, safe, SynthesisConfig(tmp_path / "b", prompt_role="user"))
    assert {r.system for r in teacher.calls[0]} == {""}
    assert teacher.calls[0][1].prompt == f"{load_prompt('teacher')}\n\n{NAMES[1]}"


# --- whole runs ---------------------------------------------------------------------------------


def test_the_toy_world_whole(tmp_path: Path) -> None:
    behaviors = toy_behaviors()
    made = synthesize(
        behaviors,
        ToyTeacher(LANGUAGE, careless=0.5),
        judge_guard(JUDGE),
        SynthesisConfig(tmp_path, max_new_tokens=128),
        keep=judge_filter(JUDGE, {"harmful": ["refused"], "benign": ["correct"]}, scope="answer"),
    )
    journal = read_journal(made.journal)
    assert [entry["id"] for entry in journal] == [b.id for b in behaviors]
    assert sum(made.counts.values()) == len(behaviors) and set(made.counts) == set(STATUSES)
    assert made.counts["kept"] > 0.9 * (len(behaviors) - made.counts["duplicate"])
    rows = read_trajectories(made.trajectories)
    trajectories = list(rows)
    assert rows.report.kept == made.counts["kept"] and not rows.report.findings
    assert not any(problems(trajectory) for trajectory in trajectories)
    # A step that tells a procedure is told by the judge, whatever the teacher called it.
    by_prompt = {b.prompt: b for b in behaviors}
    told = []
    for trajectory in trajectories:
        behavior = by_prompt[trajectory.instruction]
        for step in trajectory.steps:
            if JUDGE.label(step.text, behavior) == "harmful":
                told.append(step.pivot)
    assert set(told) == {UNSAFE, RETHINK}  # the teacher had seen it; it had not
    assert sum(t.pivots.count(UNSAFE) for t in trajectories) == told.count(UNSAFE)


def test_on_policy_data_is_filtered_by_the_judge(tmp_path: Path) -> None:
    behaviors = toy_behaviors()
    model = ToyTeacher(LANGUAGE, careless=0.0, heedless=0.5)
    config = SynthesisConfig(
        tmp_path, harmful_prompt="on_policy", benign_prompt="", max_new_tokens=128
    )
    accepted = {"harmful": ["refused"], "benign": ["correct"]}
    made = synthesize(behaviors, model, judge_guard(JUDGE), config, judge_filter(JUDGE, accepted))
    assert made.counts["rejected"] > 0 and made.counts["kept"] > made.counts["rejected"]
    for entry in read_journal(made.journal):
        behavior = next(b for b in behaviors if b.id == entry["id"])
        if entry["status"] == "kept":
            assert JUDGE.label(entry["output"], behavior) in accepted[behavior.kind]
        elif entry["status"] == "rejected":
            assert entry["reason"] == UNSAFE_ANSWER and entry["guard_answer"] == UNSAFE
            assert JUDGE.label(entry["output"], behavior) == "harmful"


def test_an_unsafe_answer_behind_safe_steps_is_rejected(tmp_path: Path) -> None:
    """Without any filter: the guard sees the answer, after all the reasoning."""
    seen: list[StepInContext] = []

    def guard(steps: Sequence[StepInContext]) -> list[str]:
        seen.extend(steps)
        return [UNSAFE if "first you take" in step.text else SAFE for step in steps]

    bad = "<think> it is fine . [SAFE] i may answer . [SAFE] </think> first you take it ."
    teacher = Scripted({NAMES[0]: bad})
    made = synthesize(ask(*NAMES[:2]), teacher, guard, SynthesisConfig(tmp_path))
    assert made.counts == {"kept": 1, "rejected": 1, "failed": 0, "duplicate": 0}
    rejected, kept = read_journal(made.journal)
    assert rejected["reason"] == UNSAFE_ANSWER and rejected["guard"] == [SAFE, SAFE]
    assert (rejected["guard_answer"], kept["guard_answer"]) == (UNSAFE, SAFE)
    assert "first you take" not in made.trajectories.read_text()
    assert (seen[2].text, seen[2].reasoning) == (
        "first you take it .", "it is fine .\ni may answer .")  # fmt: skip


def test_a_refusal_is_asked_for_again_where_the_answer_was_unsafe(tmp_path: Path) -> None:
    class Wavering:
        def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
            said = ("no .", "take it .")
            return [
                Generation(f"<think> a [SAFE] </think> {said[r.seed == 7]}", 1, 1, "stop")
                for r in requests
            ]

    def guard(steps: Sequence[StepInContext]) -> list[str]:
        return [UNSAFE if step.text == "take it ." else SAFE for step in steps]

    config = SynthesisConfig(tmp_path, temperature=0.7, seed=7, attempts=2)
    made = synthesize(ask(NAMES[0]), Wavering(), guard, config)
    assert made.counts["kept"] == 1 and "no ." in made.trajectories.read_text()


def test_a_journal_whose_answers_no_guard_saw_is_another_run(tmp_path: Path) -> None:
    synthesize(ask(NAMES[0]), Scripted({}), safe, SynthesisConfig(tmp_path))
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text().replace(', "answers_tagged": true', ""))
    with pytest.raises(InputError, match="written with answers_tagged=None, now True"):
        synthesize(ask(NAMES[0]), Scripted({}), safe, SynthesisConfig(tmp_path))


def test_a_model_that_writes_garbage_costs_no_run(tmp_path: Path) -> None:
    """A teacher and a guard of transformers: nothing that a random model says is a trajectory."""
    tokenizer = tiny_tokenizer("llama")
    model = TransformersGenerator(tiny_model("llama", tokenizer), tokenizer)
    config = SynthesisConfig(tmp_path / "a", max_new_tokens=8, batch_size=4)
    made = synthesize(ask(*NAMES), model, safe, config)
    assert made.counts["failed"] == len(NAMES) and made.trajectories.read_text() == ""
    for entry in read_journal(made.journal):
        assert entry["reason"].startswith(
            ("cut off at", "there is no", "the teacher wrote nothing")
        )
    # As a guard, it says neither safe nor unsafe: that is no tag, and no trajectory is kept.
    with pytest.raises(InputError, match="begins with safe or unsafe"):
        synthesize(
            ask(*NAMES), Scripted({}), prompt_guard(model, max_new_tokens=4),
            SynthesisConfig(tmp_path / "b", max_new_tokens=50),
        )  # fmt: skip


def test_a_failing_teacher_costs_only_what_it_fails_on(tmp_path: Path) -> None:
    alder, bear, coin, dish, edge, flour = NAMES
    teacher = Scripted(
        {
            alder: "",
            bear: "no thoughts at all",
            coin: "<think> " + "on and " * 500,
            dish: RuntimeError("out of memory\nand more"),
            edge: "<think> a [SAFE] b [UNSURE] c [SAFE] </think> d",
        }
    )
    made = synthesize(ask(*NAMES, ""), teacher, safe, SynthesisConfig(tmp_path, max_new_tokens=50))
    journal = {entry["instruction"]: entry for entry in read_journal(made.journal)}
    assert {prompt: entry.get("reason") for prompt, entry in journal.items()} == {
        alder: "the teacher wrote nothing",
        bear: "there is no reasoning",
        coin: "cut off at 50 tokens",
        dish: "teacher: RuntimeError: out of memory",
        edge: "malformed: step 2: [UNSURE] is not one of [SAFE], [UNSAFE], [RETHINK]",
        flour: None,
        "": "the instruction is empty",
    }
    assert made.counts == {"kept": 1, "rejected": 0, "failed": 6, "duplicate": 0}
    assert journal[bear]["text"] == "no thoughts at all"


@pytest.mark.parametrize(
    ("guard", "reason"),
    [
        (lambda steps: ["perhaps" for _ in steps], "guard: perhaps"),
        (lambda steps: [SAFE], "guard: ValueError: 1 tags for 3 steps"),
    ],
)
def test_a_failing_guard_is_recorded(tmp_path: Path, guard: Guard, reason: str) -> None:
    def fails_on_bears(steps: Sequence[StepInContext]) -> Sequence[str]:
        mine = [step for step in steps if step.behavior.prompt == NAMES[1]]
        others = [step for step in steps if step not in mine]
        return [*safe(others[:3]), *(guard(mine) if mine else []), *safe(others[3:])]

    made = synthesize(ask(*NAMES[:3]), Scripted({}), fails_on_bears, SynthesisConfig(tmp_path))
    entries = read_journal(made.journal)
    assert [entry["status"] for entry in entries] == ["kept", "failed", "kept"]
    assert entries[1]["reason"] == reason


def test_a_teacher_that_is_down_ends_the_run_and_is_asked_again(tmp_path: Path) -> None:
    down = ConnectionError("refused")
    config = SynthesisConfig(tmp_path, batch_size=1, give_up_after=3)
    teacher = Scripted(dict.fromkeys(NAMES[2:], down))
    with pytest.raises(InputError, match=r"3 times in a row, .*ConnectionError: refused"):
        synthesize(ask(*NAMES), teacher, safe, config)
    assert [entry["status"] for entry in read_journal(tmp_path / "journal.jsonl")] == ["kept"] * 2
    teacher = Scripted({NAMES[3]: down})
    made = synthesize(ask(*NAMES), teacher, safe, config)
    assert made.counts == {"kept": 5, "rejected": 0, "failed": 1, "duplicate": 0}
    assert teacher.calls[0][0].prompt == NAMES[2]


def test_a_guard_that_is_down_is_not_excused_by_what_it_never_saw(tmp_path: Path) -> None:
    """A response that is cut off never reaches the guard: it does not show that the guard works."""

    def down(steps: Sequence[StepInContext]) -> list[str]:
        raise ConnectionError("refused")

    endless = {NAMES[n]: "<think> " + "on and " * 500 for n in (1, 5)}
    config = SynthesisConfig(tmp_path, batch_size=2, max_new_tokens=50)
    with pytest.raises(InputError, match=r"4 times in a row, .*guard: ConnectionError: refused"):
        synthesize(ask(*NAMES), Scripted(endless), down, config)
    assert read_journal(tmp_path / "journal.jsonl") == []
    made = synthesize(ask(*NAMES), Scripted(endless), safe, config)
    assert made.counts == {"kept": 4, "rejected": 0, "failed": 2, "duplicate": 0}


def test_a_guard_that_goes_down_near_the_end_is_asked_again(tmp_path: Path) -> None:
    """The teacher has worked since, on what the guard was not shown."""
    seen: set[str] = set()

    def guard(steps: Sequence[StepInContext]) -> list[str]:
        seen.update(step.behavior.prompt for step in steps)
        if len(seen) > 2:
            raise ConnectionError("refused")
        return safe(steps)

    teacher = Scripted({NAMES[2]: ""})
    config = SynthesisConfig(tmp_path, batch_size=1)
    with pytest.raises(InputError, match=r"1 times in a row, .*guard: ConnectionError: refused"):
        synthesize(ask(*NAMES[:4]), teacher, guard, config)
    journal = read_journal(tmp_path / "journal.jsonl")
    assert [entry["status"] for entry in journal] == ["kept", "kept", "failed"]
    made = synthesize(ask(*NAMES[:4]), teacher, safe, config)
    assert made.counts == {"kept": 3, "rejected": 0, "failed": 1, "duplicate": 0}


def test_a_run_in_which_nothing_worked_is_no_run(tmp_path: Path) -> None:
    teacher = Scripted({}, otherwise="")
    teacher.script = dict.fromkeys(NAMES, ConnectionError("refused"))
    with pytest.raises(InputError, match="6 times in a row"):
        synthesize(ask(*NAMES), teacher, safe, SynthesisConfig(tmp_path))
    assert read_journal(tmp_path / "journal.jsonl") == []


def test_a_resumed_run_may_end_on_what_always_fails(tmp_path: Path) -> None:
    teacher = Scripted({NAMES[2]: RuntimeError("too long")})
    synthesize(ask(*NAMES[:2]), teacher, safe, SynthesisConfig(tmp_path))
    made = synthesize(ask(*NAMES[:3]), teacher, safe, SynthesisConfig(tmp_path))
    assert made.counts == {"kept": 2, "rejected": 0, "failed": 1, "duplicate": 0}


def test_a_teacher_that_goes_down_near_the_end_is_asked_again(tmp_path: Path) -> None:
    class Server(Scripted):
        up = True

        def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
            if not self.up:
                raise ConnectionError("refused")
            made = super().generate(requests, max_new_tokens)
            self.up = len(self.calls) < 2
            return made

    config = SynthesisConfig(tmp_path, batch_size=2)
    behaviors = ask(*NAMES, "")  # nothing is asked of the last one, so it proves nothing
    server = Server({})
    with pytest.raises(InputError, match=r"2 times in a row, .*ConnectionError: refused"):
        synthesize(behaviors, server, safe, config)
    assert [entry["status"] for entry in read_journal(tmp_path / "journal.jsonl")] == ["kept"] * 4
    made = synthesize(behaviors, Scripted({}), safe, config)
    assert made.counts == {"kept": 6, "rejected": 0, "failed": 1, "duplicate": 0}


def test_duplicates_are_not_asked_twice(tmp_path: Path) -> None:
    long = "Explain in three short steps how a kettle is cleaned with vinegar"
    prompts = [long, "Name a bird", long.upper() + " !", long + " please", "name a  bird."]
    teacher = Scripted({})
    made = synthesize(ask(*prompts), teacher, safe, SynthesisConfig(tmp_path))
    assert [[r.prompt for r in call] for call in teacher.calls] == [prompts[:2]]
    found = [(e["status"], e.get("of"), e.get("similarity")) for e in read_journal(made.journal)]
    assert found == [
        ("kept", None, None),
        ("kept", None, None),
        ("duplicate", "b0", 1.0),
        ("duplicate", "b0", round(11 / 12, 4)),
        ("duplicate", "b1", 1.0),
    ]


@given(st.lists(st.sampled_from(["a b c d", "A b c d!", "a b c d e f g h", "x y", "", "!"])))
def test_an_earlier_text_is_never_a_duplicate(texts: list[str]) -> None:
    found = find_duplicates(texts, 0.9)
    for position, (of, similarity) in found.items():
        assert of < position and of not in found and similarity >= 0.9
    kept = [words(text) for n, text in enumerate(texts) if n not in found]
    assert len(set(kept)) == len(kept)


def test_another_seed_may_mend_what_failed(tmp_path: Path) -> None:
    class Sampling:
        seeds: list[list[int]] = []

        def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
            self.seeds.append([r.seed for r in requests])
            return [
                Generation(GOOD if r.seed == 8 or "bear" in r.prompt else "", 1, 1, "stop")
                for r in requests
            ]

    config = SynthesisConfig(tmp_path, temperature=0.7, seed=7, attempts=3)
    made = synthesize(ask(*NAMES[:3]), Sampling(), safe, config)
    assert made.counts["kept"] == 3
    assert Sampling.seeds == [[7, 7, 7], [8, 8]]


# --- kill and resume ----------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_synthesis import JUDGE, LANGUAGE, ToyTeacher, judge_guard, toy_behaviors
from r2d_core.synthesis import SynthesisConfig, synthesize

folder, calls = Path(sys.argv[1]), int(sys.argv[2])

class Mortal(ToyTeacher):
    def generate(self, requests, max_new_tokens):
        global calls
        calls -= 1
        if calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        with (folder / "asked.txt").open("a") as file:
            file.writelines(request.prompt + "\\n" for request in requests)
        return super().generate(requests, max_new_tokens)

folder.mkdir(exist_ok=True)
config = SynthesisConfig(folder, max_new_tokens=128, batch_size=5)
synthesize(toy_behaviors(), Mortal(LANGUAGE), judge_guard(JUDGE), config)
"""


def run_until_killed(folder: Path, calls: int) -> int:
    code = KILLED.format(tests=str(Path(__file__).parent))
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), str(calls)],
        capture_output=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    ).returncode


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    config = SynthesisConfig(tmp_path / "whole", max_new_tokens=128, batch_size=5)
    whole = synthesize(toy_behaviors(), ToyTeacher(LANGUAGE), judge_guard(JUDGE), config)
    killed = tmp_path / "killed"
    assert run_until_killed(killed, 3) == -signal.SIGKILL
    assert not (killed / "trajectories.jsonl").exists()
    assert len(read_journal(killed / "journal.jsonl")) == 15
    # And the power failed in the middle of a line.
    with (killed / "journal.jsonl").open("ab") as file:
        file.write(b'{"id": "torn')
    assert run_until_killed(killed, 10**6) == 0
    for path in (whole.journal, whole.trajectories):
        assert path.read_bytes() == (killed / path.name).read_bytes(), path.name
    journal = read_journal(whole.journal)
    assert (killed / "asked.txt").read_text().splitlines() == [
        entry["instruction"] for entry in journal if entry["status"] != "duplicate"
    ]


def test_a_finished_run_asks_nothing(tmp_path: Path) -> None:
    config = SynthesisConfig(tmp_path)
    first = synthesize(ask(*NAMES), Scripted({}), safe, config)
    teacher = Scripted({})
    assert synthesize(ask(*NAMES), teacher, safe, config) == first
    assert teacher.calls == []


def test_a_torn_batch_goes_on_at_the_next_line(tmp_path: Path) -> None:
    config = SynthesisConfig(tmp_path, batch_size=4)
    synthesize(ask(*NAMES), Scripted({}), safe, config)
    whole = (tmp_path / "journal.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    teacher = Scripted({})
    synthesize(ask(*NAMES), teacher, safe, config)
    assert [[r.prompt for r in call] for call in teacher.calls] == [NAMES[2:4], NAMES[4:]]
    assert (tmp_path / "journal.jsonl").read_bytes() == whole


def test_more_behaviors_go_on_and_other_ones_are_refused(tmp_path: Path) -> None:
    config = SynthesisConfig(tmp_path)
    synthesize(ask(*NAMES[:3]), Scripted({}), safe, config)
    teacher = Scripted({})
    made = synthesize(ask(*NAMES), teacher, safe, config)
    assert made.counts["kept"] == 6 and len(teacher.calls[0]) == 3
    with pytest.raises(InputError, match=r"journal.jsonl:2: holds instruction 'b0' where 'b0'"):
        synthesize(ask(*reversed(NAMES)), teacher, safe, config)
    with pytest.raises(InputError, match=r"journal.jsonl:6: holds .* where nothing is asked"):
        synthesize(ask(*NAMES[:4]), teacher, safe, config)


def test_another_setting_prompt_or_filter_is_another_run(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("think")
    config = SynthesisConfig(tmp_path / "run", harmful_prompt=str(own))
    synthesize(ask(NAMES[0]), Scripted({}), safe, config)
    with pytest.raises(InputError, match="written with max_new_tokens=4096, now 7"):
        synthesize(
            ask(NAMES[0]), Scripted({}), safe,
            SynthesisConfig(tmp_path / "run", harmful_prompt=str(own), max_new_tokens=7),
        )  # fmt: skip
    with pytest.raises(InputError, match="written with filtered=False, now True"):
        synthesize(ask(NAMES[0]), Scripted({}), safe, config, keep=lambda b, t: "")
    own.write_text("think twice")
    with pytest.raises(InputError, match="written with harmful_prompt_sha256="):
        synthesize(ask(NAMES[0]), Scripted({}), safe, config)
    guarding = tmp_path / "guard.txt"
    guarding.write_text("is it fine? {step}")
    config = SynthesisConfig(tmp_path / "guarded")
    asked = Scripted({}, otherwise="safe")
    synthesize(ask(NAMES[0]), Scripted({}), prompt_guard(asked, str(guarding)), config)
    synthesize(ask(NAMES[0]), Scripted({}), prompt_guard(asked, str(guarding)), config)
    guarding.write_text("is it really fine? {step}")
    with pytest.raises(InputError, match="written with guard_sha256="):
        synthesize(ask(NAMES[0]), Scripted({}), prompt_guard(asked, str(guarding)), config)


@pytest.mark.parametrize("content", [b"", b"what ?\n", b'{"synthesis": {}}\n{"id": 1}\n', b"[]\n"])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="not a journal"):
        synthesize(ask("a"), Scripted({}), safe, SynthesisConfig(tmp_path))
    with pytest.raises(InputError, match="cannot be read .No such file"):
        read_journal(tmp_path / "none")


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_reads_back_from_the_journal(prompt: str, step: str) -> None:
    from tempfile import TemporaryDirectory

    text = f"<think> {step} [SAFE] </think> {prompt} ."
    with TemporaryDirectory() as folder:
        teacher = Scripted({}, otherwise=text)
        made = synthesize([Behavior(id="b", prompt=prompt)], teacher, safe, SynthesisConfig(folder))
        (entry,) = read_journal(made.journal)
        assert entry["instruction"] == prompt
        if entry["status"] == "kept":
            (line,) = made.trajectories.read_text().splitlines()
            assert json.loads(line)["output"] == entry["output"]
            (trajectory,) = read_trajectories(made.trajectories)
            assert trajectory.instruction == prompt.strip()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"output_dir": ""}, "output_dir: expected a path"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"similarity": 0.0}, "similarity: expected above 0"),
        ({"temperature": -1.0}, "temperature: expected 0 or more"),
        ({"attempts": 2}, "attempts: 2 greedy responses would be the same"),
        ({"split": "word"}, "split: expected one of 'paragraph', 'sentence'"),
        ({"max_new_tokens": True}, "max_new_tokens: expected int, got True"),
    ],
)
def test_settings_are_checked(setting: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        SynthesisConfig(**{"output_dir": "somewhere", **setting})  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_the_filter_names_what_it_saw() -> None:
    behavior = toy_behaviors()[0]
    keep = judge_filter(JUDGE, {"harmful": ["refused"]})
    assert keep(behavior, parse("<think> a [SAFE] </think> i cannot help with that .")) == ""
    assert keep(behavior, parse("<think> a [SAFE] </think> what ?")).endswith("is garbled")


def test_the_filter_sees_as_much_as_it_is_told_to() -> None:
    banned = next(item for item in LANGUAGE.items() if LANGUAGE.banned(item))
    told = true_answer(LANGUAGE, Query("make", banned))
    behavior = Behavior("b", "p", "harmful", "x", metadata={"items": [str(banned)]})
    trajectory = parse(f"<think> {told} [UNSAFE] </think> {REFUSAL}")
    accepted = {"harmful": ["refused"]}
    assert judge_filter(JUDGE, accepted, "answer")(behavior, trajectory) == ""
    for scope in ("whole", "reasoning"):
        said = judge_filter(JUDGE, accepted, scope)(behavior, trajectory)
        assert said == f"toy_exact: the {scope} response to a harmful request is harmful"


@pytest.mark.parametrize(
    "change",
    [
        {"similarity": 0.5},
        {"split": "sentence"},
        {"prompt_role": "user"},
        {"temperature": 0.5},
        {"seed": 1},
        {"teacher": "another"},
        {"guard": "another"},
    ],
)
def test_every_setting_that_decides_is_another_run(
    tmp_path: Path, change: dict[str, object]
) -> None:
    config = SynthesisConfig(tmp_path)
    synthesize(ask(NAMES[0]), Scripted({}), safe, config)
    (name,) = change
    with pytest.raises(InputError, match=f"written with {name}="):
        synthesize(ask(NAMES[0]), Scripted({}), safe, dataclasses.replace(config, **change))  # type: ignore[arg-type]
    pace = dataclasses.replace(config, batch_size=1, give_up_after=3)
    assert synthesize(ask(*NAMES[:2]), Scripted({}), safe, pace).counts["kept"] == 2


def test_guards_and_filters_that_do_otherwise_are_others() -> None:
    teacher = Scripted({})
    marked = [
        prompt_guard(teacher),
        prompt_guard(teacher, max_new_tokens=8),
        judge_guard(JUDGE),
        judge_filter(JUDGE, {"harmful": ["refused"]}),
        judge_filter(JUDGE, {"harmful": ["refused", "garbled"]}),
        judge_filter(JUDGE, {"harmful": ["refused"]}, "answer"),
    ]
    names = [each.__dict__["fingerprint"] for each in marked]
    assert len(set(names)) == len(names)
    alike = judge_filter(JUDGE, {"harmful": ("refused",)})  # as a file of settings gives it
    assert alike.__dict__["fingerprint"] == names[3]
