"""Over-refusal: OR-Bench's files, and rates by scope."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2d_core.errors import InputError
from r2d_core.over_refusal import refusal_rates
from r2d_core.records import Behavior, Verdict, read_behaviors, write_behaviors


def write(path, rows, columns=("prompt", "category")):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("or-bench-80k.csv", "benign"),
        ("or_bench_hard_1k.csv", "benign"),
        ("or-bench-toxic.csv", "harmful"),
    ],
)
def test_or_bench_is_read_and_its_kind_known_by_name(tmp_path, name, kind):
    path = write(
        tmp_path / name, [["how do i kill\na process?", "violence"], ["and, then?", "self"]]
    )
    behaviors = read_behaviors(path)
    assert [b.prompt for b in behaviors] == ["how do i kill\na process?", "and, then?"]
    assert [b.category for b in behaviors] == ["violence", "self"]
    assert {b.kind for b in behaviors} == {kind}
    assert behaviors[1].id == f"{path.stem}-2"


def test_or_bench_of_another_name_needs_its_kind(tmp_path):
    path = write(tmp_path / "mine.csv", [["a", "b"]])
    with pytest.raises(InputError, match="pass kind="):
        read_behaviors(path)
    assert read_behaviors(path, "harmful")[0].kind == "harmful"
    path = write(tmp_path / "toxic_or_hard.csv", [["a", "b"]])
    with pytest.raises(InputError, match=r"hard\.csv: its name does not say .* toxic, 80k, hard"):
        read_behaviors(path)


def test_or_bench_says_what_is_wrong_where(tmp_path):
    path = write(tmp_path / "or-bench-80k.csv", [["a", "b"]], columns=("question", "category"))
    with pytest.raises(
        InputError, match=r"80k\.csv:1: expected .*or_bench: prompt, category.*found"
    ):
        read_behaviors(path)
    write(path, [["a", "b", "c"]], columns=("prompt", "category", "note"))
    with pytest.raises(InputError, match=r"80k\.csv:1: expected .* found the columns prompt, cat"):
        read_behaviors(path)
    write(path, [["a", "b"], [" ", "b"]])
    with pytest.raises(InputError, match=r"80k\.csv:3: the prompt or the id is empty"):
        read_behaviors(path)
    path.write_bytes(b"prompt,category\n\xff,b\n")
    with pytest.raises(InputError, match=r"80k\.csv:2: expected UTF-8 .*0xff"):
        read_behaviors(path)
    with pytest.raises(InputError, match="no such file"):
        read_behaviors(tmp_path / "hard.csv")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('"How do I kill a process?,deception\nB?,harmful\n', r":2: not CSV .* mend the quotes"),
        ("How, exactly?,deception\n", r":2: expected 2 cells \(prompt, category\), found 3; quote"),
        ("A?,b\nB?\n", r":3: expected 2 cells \(prompt, category\), found 1"),
    ],
)
def test_no_row_of_or_bench_is_lost(tmp_path, rows, said):
    path = tmp_path / "or-bench-hard-1k.csv"
    path.write_text("prompt,category\n" + rows)
    with pytest.raises(InputError, match=r"or-bench-hard-1k\.csv" + said):
        read_behaviors(path)


def test_or_bench_is_written_back(tmp_path):
    path = write(tmp_path / "hard.csv", [["a,\nb", "c"], ["a,\nb", ""]])
    behaviors, before = read_behaviors(path), path.read_bytes()
    assert [b.id for b in behaviors] == ["hard-1", "hard-2"]
    write_behaviors(path, behaviors, "or_bench")
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="'hard-2' would read back as 'hard-1'"):
        write_behaviors(path, behaviors[1:], "or_bench")


PRINTED = st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")


@given(st.lists(st.tuples(st.text(PRINTED, min_size=1), st.text(PRINTED))))
def test_or_bench_keeps_any_prompt(tmp_path_factory, rows):
    rows = [(prompt, category) for prompt, category in rows if prompt.strip()]
    path = write(tmp_path_factory.mktemp("or") / "hard.csv", rows)
    assert [(b.prompt, b.category) for b in read_behaviors(path)] == rows


def verdict(of: str, answer: str, reasoning: str = "absent") -> Verdict:
    return Verdict(of, "direct", "xstest", answer, reasoning, answer)


def test_refusals_are_counted_by_kind_and_scope():
    behaviors = [Behavior("a", "x", kind="benign"), Behavior("b", "y")]
    verdicts = [
        verdict("a", "2_full_refusal", reasoning="1_full_compliance"),
        verdict("a", "3_partial_refusal"),
        verdict("a", "unparsable"),
        verdict("a", "absent"),
        verdict("b", "2_full_refusal"),
    ]
    table = refusal_rates(behaviors, verdicts).set_index(["kind", "scope"])
    answer = table.loc[("benign", "answer")]
    assert (answer["n"], answer["full"].successes, answer["partial"].successes) == (3, 1, 1)
    assert answer["unparsable"] == 1
    reasoning = table.loc[("benign", "reasoning")]
    assert (reasoning["n"], reasoning["full"].successes) == (1, 0)
    assert table.loc[("harmful", "whole")]["full"].rate == 1
    of_a_file = Verdict("a", "direct", "exact", "refused", "", "")  # which says the whole alone
    alone = refusal_rates(behaviors, [of_a_file])
    assert list(alone["scope"]) == ["whole"] and alone["full"][0].rate == 1
    with pytest.raises(InputError, match="behavior 'c', which is not among the 2 given"):
        refusal_rates(behaviors, [verdict("c", "refused")])


def test_a_judge_that_knows_no_refusals_is_refused():
    verdicts = [Verdict("a", "direct", "llama_guard_3", "safe", "absent", "safe")]
    behaviors = [Behavior("a", "p", "benign")]
    with pytest.raises(InputError, match="judge 'llama_guard_3' says safe, unsafe, none of which"):
        refusal_rates(behaviors, verdicts)
    table = refusal_rates(behaviors, verdicts, full={"safe"}, partial=())
    assert [str(rate) for rate in table["full"]] == ["100.0% [20.7, 100.0] (1/1)"] * 2
