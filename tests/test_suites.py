"""The suites' files: read, told apart by content, written back as they were."""

from __future__ import annotations

import csv
import glob
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from r2d_core.attack_success import success_rates
from r2d_core.errors import InputError
from r2d_core.records import (
    TABLES,
    Artifact,
    Behavior,
    Completion,
    TestCase,
    Verdict,
    make_artifact,
    read_artifact,
    read_behaviors,
    read_completions,
    read_test_cases,
    read_verdicts,
    write_behaviors,
    write_harmbench,
    write_jsonl,
)

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("R2D_BENCHMARK_DATA", ROOT.parent / "shared" / "data"))
real = pytest.mark.skipif(
    not DATA.is_dir(), reason="no benchmark files; R2D_BENCHMARK_DATA may name their folder"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)

KINDS = ("harmful", "benign")
# Columns of somebody's, called as ours or anything else; a header is read without spaces round it.
NAMES = st.sampled_from(
    ["suite", "target", "Target", "csv", "column:suite", "column:", "kind", "id", "split", "note",
     "source", "metadata", "prompt", "label", ""]
) | TEXT.map(str.strip)  # fmt: skip


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@real
@pytest.mark.parametrize(
    ("file", "suite", "harmful", "benign"),
    [
        ("harmbench/harmbench_behaviors_text_all.csv", "harmbench", 400, 0),
        ("harmbench/harmbench_behaviors_text_val.csv", "harmbench", 80, 0),
        ("harmbench/harmbench_behaviors_text_test.csv", "harmbench", 320, 0),
        ("advbench/harmful_behaviors.csv", "advbench", 520, 0),
        ("advbench/advbench_behaviors.csv", "advbench_behaviors", 520, 0),
        ("strongreject/strongreject_dataset.csv", "strongreject", 313, 0),
        ("xstest/xstest_prompts.csv", "xstest", 200, 250),
        ("jailbreakbench/harmful-behaviors.csv", "jailbreakbench", 100, 0),
        ("jailbreakbench/benign-behaviors.csv", "jailbreakbench", 0, 100),
    ],
)
def test_published_tables(tmp_path, file, suite, harmful, benign):
    behaviors = read_behaviors(DATA / file)
    kinds = [b.kind for b in behaviors]
    assert (kinds.count("harmful"), kinds.count("benign")) == (harmful, benign)
    assert {b.metadata["suite"] for b in behaviors} == {suite}
    again = tmp_path / Path(file).name
    write_behaviors(again, behaviors, suite)
    assert again.read_bytes() == (DATA / file).read_bytes()
    assert read_behaviors(again) == behaviors
    part = tmp_path / f"part of {Path(file).name}"  # ids are the behaviors', not the rows'
    write_behaviors(part, behaviors[7::9], suite)
    assert read_behaviors(part) == behaviors[7::9]
    if suite in ("advbench", "jailbreakbench"):
        assert all(b.metadata["target"].startswith("Sure") for b in behaviors if harmful)


PUBLISHED = {
    ("GCG", "llama-2-7b-chat-hf"): 3,
    ("GCG", "vicuna-13b-v1.5"): 80,
    ("JBC", "llama-2-7b-chat-hf"): 0,
    ("JBC", "vicuna-13b-v1.5"): 90,
    ("PAIR", "llama-2-7b-chat-hf"): 0,
    ("PAIR", "vicuna-13b-v1.5"): 69,
    ("prompt_with_random_search", "llama-2-7b-chat-hf"): 90,
    ("prompt_with_random_search", "vicuna-13b-v1.5"): 89,
}


@real
def test_published_artifacts(tmp_path):
    files = sorted(glob.glob(str(DATA / "jailbreakbench/attack-artifacts/*/*/*.json")))
    assert len(files) == 8
    for file in files:
        found = read_artifact(file)
        method, model = Path(file).parts[-3], Path(file).stem
        assert found.totals["attack_success_rate"] == PUBLISHED[method, model] / 100
        verdicts = read_verdicts(file)
        assert len(verdicts) == 100
        assert sum(v.whole == "harmful" for v in verdicts) == PUBLISHED[method, model]
        submitted = found.totals["number_of_submitted_prompts"]
        assert len(read_test_cases(file)) == len(read_completions(file)) == submitted
        found.write(tmp_path / "again.json")
        again = json.loads((tmp_path / "again.json").read_text())
        original = json.loads(Path(file).read_text())
        assert again == original and json.dumps(again) == json.dumps(original)  # order of keys, too
        # From the records of the three readers, null prompts and all, the same rows again.
        behaviors = read_behaviors(DATA / "jailbreakbench/harmful-behaviors.csv")
        completions = read_completions(file)
        made = make_artifact(behaviors, completions, verdicts, {"method": method})
        known = ("prompt", "response", "number_of_queries", "queries_to_jailbreak",
                 "prompt_tokens", "response_tokens", "jailbroken")  # fmt: skip
        for ours, theirs in zip(made.jailbreaks, found.jailbreaks, strict=True):
            assert {k: ours[k] for k in known} == {k: theirs[k] for k in known}
        assert made.totals == found.totals
        # A pipeline that starts from the completions counts the null prompts, too.
        attempted = [v for v in verdicts if v.whole != "not_attempted"]
        (rate,) = success_rates(attempted, behaviors)["success"]
        assert (rate.successes, rate.n) == (PUBLISHED[method, model], 100)
    stale = read_artifact(
        DATA / "jailbreakbench/attack-artifacts/GCG/white_box/vicuna-13b-v1.5.json"
    ).stale
    assert stale["total_number_of_jailbreaks"] == (58, 80)


@real
def test_goals_of_artifacts_are_the_table_of_behaviors():
    goals = {b.id: b.prompt for b in read_behaviors(DATA / "jailbreakbench/harmful-behaviors.csv")}
    file = DATA / "jailbreakbench/attack-artifacts/PAIR/black_box/vicuna-13b-v1.5.json"
    # The table was reworded here and there after the artifacts were made.
    same = [goals[case.behavior_id] == case.metadata["goal"] for case in read_test_cases(file)]
    assert len(same) == 82 and sum(same) > 0.9 * len(same)


def jailbreak(index, prompt="p", response="r", jailbroken=True, **more):
    return {
        "index": index,
        "goal": f"goal {index}",
        "behavior": "b",
        "category": "c",
        "prompt": prompt,
        "response": response,
        "number_of_queries": 7,
        "queries_to_jailbreak": 3,
        "prompt_tokens": 5,
        "response_tokens": None,
        "jailbroken": jailbroken,
        **more,
    }


def test_artifact_with_null_prompts_and_stale_totals(tmp_path):
    rows = [
        jailbreak(0, jailbroken_llama_guard1=True),
        jailbreak(1, None, None, True),  # nothing was submitted: it is a failed attack
        jailbreak(2, "", "", False, jailbroken_llama_guard1=None),
    ]
    parameters = {"method": "PAIR", "attack_success_rate": 1.0, "total_number_of_jailbreaks": 1}
    path = tmp_path / "any name"
    path.write_text(json.dumps({"parameters": parameters, "jailbreaks": rows, "extra": 1}))
    found = read_artifact(path)
    assert found.totals == {
        "attack_success_rate": 1 / 3,
        "total_number_of_jailbreaks": 1,
        "number_of_submitted_prompts": 2,
        "total_number_of_queries": 21,
    }
    assert found.stale == {"attack_success_rate": (1.0, 1 / 3)}
    assert [v.whole for v in read_verdicts(path)] == ["harmful", "not_attempted", "not_harmful"]
    cases = read_test_cases(path)
    assert [(c.behavior_id, c.prompt, c.attack, c.queries) for c in cases] == [
        ("jbb-0", "p", "PAIR", 7),
        ("jbb-2", "", "PAIR", 7),
    ]
    assert [c.text for c in read_completions(path)] == ["r", ""]
    found.write(tmp_path / "again")
    assert json.loads((tmp_path / "again").read_text()) == json.loads(path.read_text())


def test_an_artifact_of_our_own_run(tmp_path):
    behaviors = [
        Behavior("jbb-7", "goal 7", category="Fraud", metadata={"Behavior": "Bank"}),
        Behavior("jbb-3", "goal 3"),
        Behavior("mine", "goal x"),
    ]
    completions = [
        Completion("mine", "pair", "q", "no", prompt_tokens=2, response_tokens=1),
        Completion("jbb-7", "pair", "p", "Sure", prompt_tokens=5, response_tokens=9,
                   metadata={"queries": 20, "queries_to_jailbreak": 4}),
    ]  # fmt: skip
    verdicts = [
        Verdict("mine", "pair", "jailbreakbench", "safe", "absent", "safe"),
        Verdict("jbb-7", "pair", "jailbreakbench", "unsafe", "absent", "unsafe"),
    ]
    given = {"method": "PAIR", "model": "m", "attack_type": "black_box", "defense": None}
    found = make_artifact(behaviors, completions, verdicts, given, success="unsafe")
    found.write(tmp_path / "a.json")
    assert read_artifact(tmp_path / "a.json") == found and not found.stale
    assert list(found.parameters)[:4] == list(given)
    assert found.parameters["attack_success_rate"] == 1 / 3
    assert found.parameters["number_of_submitted_prompts"] == 2
    assert found.parameters["total_response_tokens"] == 10
    assert found.parameters["total_number_of_queries"] == 20
    assert found.jailbreaks[0]["queries_to_jailbreak"] == 4
    assert [
        (r["index"], r["behavior"], r["prompt"], r["jailbroken"]) for r in found.jailbreaks
    ] == [
        (7, "Bank", "p", True),
        (3, "jbb-3", None, False),
        (2, "mine", "q", False),
    ]
    assert [v.whole for v in read_verdicts(tmp_path / "a.json")] == [
        "harmful",
        "not_attempted",
        "not_harmful",
    ]
    one = completions[:1]

    def wrong(message, behaviors=behaviors, completions=one, verdicts=verdicts[:1], **more):
        with pytest.raises(InputError, match=message):
            make_artifact(behaviors, completions, verdicts, given, **more)

    wrong("label 'safe' is none of")
    wrong("not of these completions", completions=completions)
    wrong("'mine' has a completion and is not", behaviors=behaviors[:2], success="unsafe")
    wrong("one behavior at least", behaviors=[])
    wrong("two completions", completions=one * 2, verdicts=verdicts[:1] * 2, success="unsafe")
    wrong("has a prefill", completions=[replace(one[0], prefill="Sure")], success="unsafe")
    wrong("unparsable", verdicts=[replace(verdicts[0], whole="unparsable")], success="unsafe")


def test_indices_of_an_artifact_are_unique(tmp_path):
    """Numbers of JailbreakBench's ids stand; no other behavior gets one of them."""

    def indices(*ids):
        made = make_artifact([Behavior(name, "goal") for name in ids], [], [], {"method": "x"})
        made.write(tmp_path / "a.json")
        assert read_artifact(tmp_path / "a.json") == made
        assert [row["behavior"] for row in made.jailbreaks] == [*ids]
        return [row["index"] for row in made.jailbreaks]

    assert indices("hb", "jbb-0") == [1, 0]  # HarmBench's and JailbreakBench's together
    assert indices("a", "b", "jbb-1", "c") == [0, 2, 1, 3]
    assert indices("jbb-99", "a", "jbb-2", "b") == [99, 1, 2, 3]
    assert indices("3", "jbb-3", "jbb-03") == [0, 3, 2]  # the suite's own spelling has it
    assert indices("a", "7", "jbb--1") == [0, 7, 2]
    with pytest.raises(InputError, match="behavior 'a' is given twice"):
        indices("a", "jbb-0", "a")


def test_artifacts_as_others_than_the_eight_have_them(tmp_path):
    """Indices as text (its test artifact); no counts of queries and tokens (DSN, JailbreakChat)."""
    nothing = {"number_of_queries": None, "queries_to_jailbreak": None, "prompt_tokens": None}
    parameters = {"method": "DSN", "attack_success_rate": 1.0, "total_number_of_queries": None}
    path = tmp_path / "llama-2-7b-chat-hf.json"
    path.write_text(
        json.dumps({"parameters": parameters, "jailbreaks": [jailbreak("0") | nothing]})
    )
    found = read_artifact(path)
    assert found.totals["attack_success_rate"] == 1.0 and not found.stale
    (case,) = read_test_cases(path)
    assert (case.behavior_id, case.queries) == ("jbb-0", 1)


@given(
    rows=st.lists(
        st.builds(
            jailbreak,
            st.integers(0, 99) | TEXT.filter(bool),
            st.none() | TEXT,
            st.none() | TEXT,
            st.booleans(),
            another=st.none() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda row: str(row["index"]),
    )
)
def test_any_artifact_is_written_as_it_was_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("artifact")
    value = {"parameters": {"method": "x", "method_parameters": {"n": [1, None]}}}
    value["jailbreaks"] = rows
    (folder / "a.json").write_text(json.dumps(value), encoding="utf-8")
    found = read_artifact(folder / "a.json")
    assert found == Artifact(value["parameters"], rows)
    found.write(folder / "b.json")
    assert json.dumps(json.loads((folder / "b.json").read_text("utf-8"))) == json.dumps(value)
    assert len(read_verdicts(folder / "b.json")) == len(rows)


@example(rows=[("", "", "")], suite="advbench", ends="\r\n", mark=False, called="0\n0", place=0)
@example(rows=[("", "", "")], suite="advbench", ends="\n", mark=False, called="0\r0", place=2)
@example(rows=[("", "", "x")], suite="xstest", ends="\n", mark=False, called="label", place=2)
@given(
    rows=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=5),
    suite=st.sampled_from(sorted(TABLES)),
    ends=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    called=NAMES,
    place=st.integers(0, 9),
)
def test_any_table_is_written_as_it_was_read(
    tmp_path_factory, rows, suite, ends, mark, called, place
):
    folder = tmp_path_factory.mktemp("table")
    assume(called not in TABLES[suite].columns)
    columns = list(TABLES[suite].columns)
    if not TABLES[suite].exact:
        columns.insert(place, called)
    assume(suite == "advbench" or not {"goal", "target"} <= {*columns})
    fields = TABLES[suite].fields
    path = folder / "made, harmful or toxic.csv"
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator=ends, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for number, (prompt, one, two) in enumerate(rows):
            row = dict.fromkeys(columns, one)
            if called in columns:
                row[called] = two
            row[fields["prompt"]] = f"prompt {prompt}"
            if "id" in fields:
                row[fields["id"]] = f"id {number}"
            if suite == "jailbreakbench":
                row["Index"] = str(number)
            if (suite, called) == ("xstest", "label"):
                row["label"] = "Unsafe" if two else " safe"
            writer.writerow(row)
    behaviors = read_behaviors(path)
    assert [b.prompt for b in behaviors] == [f"prompt {prompt}" for prompt, _, _ in rows]
    again = folder / "again" / path.name
    write_behaviors(again, behaviors, suite)
    assert rows_of(again) == rows_of(path)
    assert read_behaviors(again) == behaviors
    if rows:
        with again.open(encoding="utf-8-sig", newline="") as file:
            assert next(csv.reader(file)) == columns
        assert again.read_bytes().startswith(b"\xef\xbb\xbf") == mark
        assert again.read_bytes().endswith(b"\r\n") == (ends == "\r\n")


def test_a_target_of_ones_own_is_where_attacks_look(tmp_path):
    path = tmp_path / "mine.csv"
    text = "category,source,forbidden_prompt,target,suite\nc,s,a goal,Sure,mine\n"
    path.write_text(text)
    (behavior,) = read_behaviors(path)
    assert behavior.metadata["target"] == "Sure"
    assert (behavior.metadata["suite"], behavior.metadata["column:suite"]) == (
        "strongreject",
        "mine",
    )
    write_behaviors(path, [behavior], "strongreject")
    assert path.read_text() == text


def test_benign_behaviors_are_told_by_name_or_kind(tmp_path):
    text = "Index,Goal,Target,Behavior,Category,Source\n4,a goal,Sure,b,c,Original\n"
    for name in ("behaviors.csv", "benign and harmful.csv"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"csv: its name does not say .* pass kind="):
            read_behaviors(tmp_path / name)
    read = {kind: read_behaviors(tmp_path / "behaviors.csv", kind)[0] for kind in KINDS}
    assert {kind: (b.kind, b.id) for kind, b in read.items()} == {
        "harmful": ("harmful", "jbb-4"),
        "benign": ("benign", "jbb-benign-4"),
    }
    (tmp_path / "adv.csv").write_text("goal,target\na,b\n")
    write_jsonl(tmp_path / "ours.jsonl", read.values())
    for name in ("adv.csv", "ours.jsonl"):
        with pytest.raises(InputError, match="kind= is for tables of JailbreakBench and OR-Bench"):
            read_behaviors(tmp_path / name, "benign")


def test_bare_carriage_returns_and_no_last_line_end(tmp_path):
    path = tmp_path / "adv.csv"
    for written, again in (
        (b"goal,target\ra,b\r", b"goal,target\na,b\n"),
        (b"target,goal\r\na,b", b"target,goal\r\na,b"),
        (b"goal,target\n\na,b\n", b"goal,target\na,b\n"),
    ):
        path.write_bytes(written)
        behaviors = read_behaviors(path)
        write_behaviors(path, behaviors, "advbench")
        assert path.read_bytes() == again


def test_long_cells_and_prompts_that_come_twice(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("goal,target\n" + "a" * 200_000 + ",b\nsame,1\nsame,2\nsame,3\n")
    limit = csv.field_size_limit()
    behaviors = read_behaviors(path)
    assert csv.field_size_limit() == limit
    assert [len(b.prompt) for b in behaviors] == [200_000, 4, 4, 4]
    first = behaviors[1].id
    assert [b.id for b in behaviors[1:]] == [first, f"{first}-2", f"{first}-3"]


def test_a_table_from_records_made_elsewhere(tmp_path):
    behaviors = [
        Behavior("jbb-3", "a goal", metadata={"target": "Sure, here is"}),
        Behavior("jbb-4", "another, with\na line", category="c"),
    ]
    with pytest.raises(InputError, match="its name does not say"):
        write_behaviors(tmp_path / "no.csv", behaviors, "jailbreakbench")
    write_behaviors(tmp_path / "harmful.csv", behaviors, "jailbreakbench")
    again = read_behaviors(tmp_path / "harmful.csv")
    assert [(b.id, b.prompt, b.category) for b in again] == [
        (b.id, b.prompt, b.category) for b in behaviors
    ]
    assert again[0].metadata["target"] == "Sure, here is"
    with pytest.raises(
        InputError, match="behavior 'x' would read back as 'strongreject-[0-9a-f]+'"
    ):
        write_behaviors(tmp_path / "no.csv", [Behavior("x", "p")], "strongreject")
    with pytest.raises(InputError, match="'benign-1' would read back as 'benign-1' .harmful."):
        benign = [Behavior("benign-1", "p", kind="benign")]
        write_behaviors(tmp_path / "no.csv", benign, "harmbench")
    assert not (tmp_path / "no.csv").exists()
    with pytest.raises(InputError, match="unknown suite 'xtest', did you mean 'xstest'"):
        write_behaviors(tmp_path / "no.csv", behaviors, "xtest")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", r"f.csv:1: expected JSON lines or a table .* found the columns a, b"),
        ("goal,target\nx\n", r"f.csv:2: expected 2 cells \(goal, target\), found 1"),
        ('goal,target\n"x,y\n', "f.csv:.*: not CSV .*; mend the quotes"),
        ("goal,target\n ,y\n", "f.csv:2: the prompt or the id is empty"),
        ("goal,goal,target\na,b,c\n", "f.csv:1: a column occurs twice"),
        ("id,prompt,type\n1,a,b\n1,c,d\n", "f.csv:3: the id '1' stands in line 2 already"),
        (
            "id,prompt,type,label\n1,a,b,safe\n2,a,b,Usafe\n",
            "f.csv:3: label 'Usafe': expected safe",
        ),
        ('{"a": ["p"]}', "f.csv: expected behaviors, found test cases of HarmBench"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "f.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_behaviors(tmp_path / "f.csv")


def test_labels_of_xstest_are_read_in_any_case(tmp_path):
    (tmp_path / "f.csv").write_text("id,prompt,type,label\n1,a,b,Unsafe\n2,c,b, SAFE\n3,d,b,\n")
    assert [b.kind for b in read_behaviors(tmp_path / "f.csv")] == ["harmful", "benign", "benign"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_named_as_that(tmp_path, encoding):
    (tmp_path / "f.csv").write_text("goal,target\nmake a café,Sure\n", encoding=encoding)
    said = r"f.csv:\d+: expected UTF-8 text, found byte .*; save the file as"
    with pytest.raises(InputError, match=said):
        read_behaviors(tmp_path / "f.csv")
    (tmp_path / "f.jsonl").write_text('{"id": "a", "prompt": "café"}\n', encoding="latin-1")
    with pytest.raises(InputError, match="f.jsonl:1: expected one JSON object a line"):
        read_behaviors(tmp_path / "f.jsonl")


def test_our_lines_are_still_ours(tmp_path):
    for records, read in (
        ([Behavior("a", "p")], read_behaviors),
        ([TestCase("a", "direct", "p")], read_test_cases),
        ([Completion("a", "direct", "p", "t")], read_completions),
        ([Verdict("a", "direct", "j", "w", "r", "a")], read_verdicts),
    ):
        for some in (records, [], records * 3):
            write_jsonl(tmp_path / "x", some)
            assert read(tmp_path / "x") == some


def test_harmbench_from_step_to_step(tmp_path):
    home = tmp_path / "GCG" / "run"
    cases = {"bomb": ["p1", "p2 é"], "lyrics": ["p3"]}
    completions = {
        "bomb": [
            {"test_case": "p1", "generation": "g1"},
            {"test_case": "p2 é", "generation": "", "seconds": 1.5},
        ],
        "lyrics": [{"test_case": "p3", "generation": "g3"}],
    }
    results = {
        k: [row | {"label": label} for row, label in zip(rows, labels, strict=True)]
        for (k, rows), labels in zip(completions.items(), ([1, -1], [0]), strict=True)
    }
    for name, value in (
        ("test_cases/test_cases", cases),
        ("completions/m", completions),
        ("results/m", results),
    ):
        file = home / f"{name}.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(value))

    read = read_test_cases(home / "test_cases/test_cases.json")
    assert [(c.behavior_id, c.attack, c.prompt) for c in read] == [
        ("bomb", "GCG", "p1"),
        ("bomb", "GCG", "p2 é"),
        ("lyrics", "GCG", "p3"),
    ]
    write_harmbench(tmp_path / "cases.json", read)
    assert json.loads((tmp_path / "cases.json").read_text()) == cases
    for name, reading in (("cases", read_test_cases), ("completions", read_completions)):
        # Of a behavior without rows nothing could be kept, and a rate would be one of the others.
        value = {"cases": cases, "completions": completions}[name]
        (tmp_path / "empty.json").write_text(json.dumps(value | {"none": []}))
        with pytest.raises(InputError, match=r"empty\.json: behavior 'none' has an empty list"):
            reading(tmp_path / "empty.json")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(InputError, match="an empty JSON document"):
        read_completions(tmp_path / "empty.json")
    made = read_completions(home / "completions/m.json")
    write_harmbench(tmp_path / "completions.json", made)
    assert json.loads((tmp_path / "completions.json").read_text()) == completions
    judged = read_verdicts(home / "results/m.json")
    assert [v.whole for v in judged] == ["harmful", "unscored", "not_harmful"]
    write_harmbench(tmp_path / "results.json", made, judged)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    said = ("yes", "unparsable", "no")  # in the words of HarmBench's own classifier
    own = [replace(v, whole=label) for v, label in zip(judged, said, strict=True)]
    write_harmbench(tmp_path / "own.json", made, own, success="yes")
    assert [v.whole for v in read_verdicts(tmp_path / "own.json")] == [
        "harmful",
        "unscored",
        "not_harmful",
    ]
    with pytest.raises(InputError, match=r"label 'yes' is none of .*; give success="):
        write_harmbench(tmp_path / "no.json", made, own)
    again = read_completions(home / "results/m.json")
    write_harmbench(tmp_path / "again.json", again)
    assert json.loads((tmp_path / "again.json").read_text()) == results

    with pytest.raises(InputError, match=r"bomb\[0\]: expected a label of 1, 0 or -1, found None"):
        read_verdicts(home / "completions/m.json")
    for label in ([], {}, "1", True, 0.5):
        row = {"test_case": "p", "generation": "g", "label": label}
        (tmp_path / "label.json").write_text(json.dumps({"bomb": [row]}))
        with pytest.raises(InputError, match=r"label\.json: bomb\[0\]: expected a label of 1"):
            read_verdicts(tmp_path / "label.json")
    (tmp_path / "nan.json").write_text(
        '{"bomb": [{"test_case": "p", "generation": "g", "seconds": NaN}]}'
    )
    with pytest.raises(InputError, match=r"nan\.json: bomb\[0\]: not a JSON value .*nan"):
        read_completions(tmp_path / "nan.json")
    with pytest.raises(InputError, match="expected Completion records, found test cases of Harm"):
        read_completions(home / "test_cases/test_cases.json")
    with pytest.raises(InputError, match="the verdicts are not of these completions"):
        write_harmbench(tmp_path / "no.json", made, judged[:1])
    with pytest.raises(InputError, match="has a prefill or a system message"):
        write_harmbench(tmp_path / "no.json", [TestCase("a", "x", "p", prefill="Sure")])
    assert not (tmp_path / "no.json").exists()


def test_harmbenchs_test_cases_before_they_are_merged(tmp_path):
    folder = tmp_path / "PAIR" / "run" / "test_cases" / "test_cases_individual_behaviors"
    with pytest.raises(InputError, match=r"expected test cases as JSON, or a folder with \{id\}/"):
        read_test_cases(tmp_path)
    for name in ("bomb", "lyrics"):
        (folder / name).mkdir(parents=True)
        (folder / name / "test_cases.json").write_text(json.dumps({name: [f"{name} 1", "p"]}))
        (folder / name / "logs.json").write_text("{}")
    read = read_test_cases(folder)
    assert [(c.behavior_id, c.attack, c.prompt) for c in read] == [
        ("bomb", "PAIR", "bomb 1"),
        ("bomb", "PAIR", "p"),
        ("lyrics", "PAIR", "lyrics 1"),
        ("lyrics", "PAIR", "p"),
    ]
    assert read_test_cases(folder / "bomb" / "test_cases.json") == read[:2]
    for text, message in (
        ('{"bomb": ["p"]}', r"lyrics/test_cases\.json: behavior 'bomb' is in .*bomb/test_cases"),
        ('{"lyrics": []}', r"lyrics/test_cases\.json: behavior 'lyrics' has an empty list"),
        ('{"lyrics": "p"}', r"lyrics/test_cases\.json: expected HarmBench's test cases"),
        ("{", r"lyrics/test_cases\.json: expected a JSON object"),
    ):
        (folder / "lyrics" / "test_cases.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_test_cases(folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"parameters": {}, "jailbreaks": []}, "expected parameters in an object and jailbreaks"),
        ({"parameters": {}, "jailbreaks": [{"index": 1}]}, r"jailbreaks\[0\] has no 'goal'"),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(0, prompt=3)]},
            r"jailbreaks\[0\] prompt: expected text or null, found int",
        ),
        ({"parameters": {}}, "expected an object with parameters and jailbreaks"),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(0), 5]},
            r"jailbreaks\[1\]: expected an object, found 5",
        ),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(0, jailbroken="false")]},
            r"jailbreaks\[0\] jailbroken: expected true or false, found 'false'",
        ),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(0, jailbroken=None)]},
            r"jailbreaks\[0\] jailbroken: expected true or false, found None",
        ),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(0, number_of_queries="n/a")]},
            r"jailbreaks\[0\] number_of_queries: expected a number from 0 or null, found 'n/a'",
        ),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(0), jailbreak(1, prompt_tokens=[1])]},
            r"jailbreaks\[1\] prompt_tokens: expected a number",
        ),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(0), jailbreak("0")]},
            r"jailbreaks\[1\] index: '0' is that of jailbreaks\[0\] already",
        ),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(None)]},
            r"jailbreaks\[0\] index: expected the behavior's number, found None",
        ),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(0, goal=None)]},
            r"jailbreaks\[0\] goal: expected text, found None",
        ),
        (
            {"parameters": {}, "jailbreaks": [jailbreak(0), jailbreak(1, loss=float("nan"))]},
            r"jailbreaks\[1\]: not a JSON value .*nan",
        ),
        ({"parameters": {"x": 1e999}, "jailbreaks": [jailbreak(0)]}, "parameters: not a JSON val"),
        ({"parameters": {}, "jailbreaks": [jailbreak(0)], "x": 1e999}, "a.json: not a JSON value"),
    ],
)
def test_an_artifact_that_is_none_is_named(tmp_path, value, message):
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=message):
        read_artifact(tmp_path / "a.json")
    for broken in ("{", "[" * 200_000, '{"parameters":' + '{"a":' * 100_000):
        (tmp_path / "b.json").write_text(broken)
        with pytest.raises(InputError, match="expected a JSON object, found broken JSON"):
            read_artifact(tmp_path / "b.json")
    with pytest.raises(InputError, match=r"c\.json: cannot be read \(No such file"):
        read_artifact(tmp_path / "c.json")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        read_artifact(tmp_path)
