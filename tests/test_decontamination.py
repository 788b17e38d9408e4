"""Training texts against evaluation texts: what is found, what is not, that nothing is made up."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from r2d_core.decontamination import (
    DecontaminationReport,
    SimilarTexts,
    Thresholds,
    compare,
    jaccard,
    words,
)
from r2d_core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

import decontaminate  # noqa: E402

DATA = Path(os.environ.get("R2D_BENCHMARK_DATA", Path(__file__).parents[2] / "shared" / "data"))
VOCABULARY = [a + b for a in ("ka", "lo", "mi", "nu", "se", "ti") for b in ("ra", "do", "fe", "bo")]
TEXT = st.lists(st.sampled_from(VOCABULARY), max_size=14).map(" ".join)
SENTENCE = "Explain step by step how a kettle is cleaned with vinegar and a soft brush"


@pytest.mark.parametrize(
    ("training", "rules"),
    [
        (SENTENCE, ("exact", "ngram", "minhash")),
        (f"  {SENTENCE.upper()} !!", ("exact", "ngram", "minhash")),
        (SENTENCE.replace(" ", "\u00a0"), ("exact", "ngram", "minhash")),
        (SENTENCE.replace("soft", "hard"), ("ngram", "minhash")),
        # Inside a longer text: the phrase is all there, the sets are not alike.
        (f"You are a cook of many years. {SENTENCE}. Write it for children of ten, in "
         "short rhymes, each with a title of its own, and end with a riddle.", ("ngram",)),
        # Half of the words changed here and there: no phrase of five left, and too few pairs.
        ("Explain slowly step and step how your kettle was cleaned", ()),
        ("What is the capital of France?", ()),
        ("", ()),
        ("?!", ()),
    ],
)  # fmt: skip
def test_near_duplicates_are_found_and_unrelated_texts_are_not(
    training: str, rules: tuple[str, ...]
) -> None:
    other = "Name three rivers that end in a lake"
    report = compare([other, training], [SENTENCE, "Which bird lays the largest egg of all"])
    assert [(m.training, m.evaluation, m.rules) for m in report.matches] == (
        [(1, 0, rules)] if rules else []
    )
    assert report.clean(["a", "b"]) == (["a"] if rules else ["a", "b"])


def test_paraphrases_without_a_shared_phrase_are_beyond_these_rules() -> None:
    assert not compare(["How does one descale a jug?"], [SENTENCE]).matches


def test_a_short_evaluation_text_is_looked_for_whole() -> None:
    report = compare(["tell me : what is fentanyl ?", "what is it"], ["What is fentanyl?"])
    assert [(m.training, m.rules) for m in report.matches] == [(0, ("ngram", "minhash"))]
    assert report.matches[0].coverage == 1.0


def test_thresholds_are_reached_at_their_value() -> None:
    two_of_four = ["one two, other words"], ["one two three four"]
    for thresholds, found in (
        (Thresholds(ngram=1, coverage=0.5, similarity=1.0), 1),
        (Thresholds(ngram=1, coverage=0.51, similarity=1.0), 0),
        (Thresholds(coverage=1.0, shingle=1, similarity=2 / 6), 1),
        (Thresholds(coverage=1.0, shingle=1, similarity=0.34), 0),
    ):
        assert len(compare(*two_of_four, thresholds).matches) == found


def test_text_without_spaces_is_compared_by_character() -> None:
    assert words("カタカナと漢字 abc") == (*"カタカナと漢字", "abc")
    assert compare(["请写一篇关于春天的短文"], ["写一篇关于春天的短文"]).matches


def test_vowel_signs_belong_to_their_words() -> None:
    """Hindi's "day" and "donation" share their consonants and nothing else."""
    assert words("दिन, दान") == ("दिन", "दान")
    assert words("e\u0301te\u0301 ❤\ufe0f 1\ufe0f") == ("été", "1")
    assert not compare(["दान का अर्थ"], ["दिन का अर्थ"], Thresholds(ngram=3, similarity=1.0)).matches
    # Thai has no spaces: a character with its signs is a word.
    assert words("ที่นี่ ๓") == ("ที่", "นี่", "๓")
    assert compare(["บอกวิธีทำขนมปัง"], ["วิธีทำขนมปัง"]).matches


@given(st.lists(TEXT, max_size=6), st.lists(TEXT, max_size=6))
@settings(max_examples=40, deadline=None)
def test_what_is_reported_holds_and_what_is_certain_is_reported(
    training: list[str], evaluation: list[str]
) -> None:
    thresholds = Thresholds(ngram=3)
    report = compare(training, evaluation, thresholds)
    assert report == compare(training, evaluation, thresholds)
    for match in report.matches:
        one, other = training[match.training], evaluation[match.evaluation]
        assert (match.training_text, match.evaluation_text) == (one, other)
        assert match.similarity == jaccard(one, other, 2) == jaccard(other, one, 2)
        assert ("exact" in match.rules) == (words(one) == words(other))
        assert ("ngram" in match.rules) == (match.coverage >= thresholds.coverage)
        assert "minhash" not in match.rules or match.similarity >= thresholds.similarity
        assert 0 <= match.coverage <= 1
    found = {(m.training, m.evaluation) for m in report.matches}
    for i, one in enumerate(training):
        for j, other in enumerate(evaluation):
            if words(one) and words(one) == words(other):
                assert (i, j) in found
    assert report.training == {i for i, _ in found}
    assert report.clean(training) == [
        text for i, text in enumerate(training) if i not in report.training
    ]


@given(TEXT.filter(bool), st.lists(TEXT, max_size=3), st.randoms())
@settings(max_examples=40, deadline=None)
def test_one_changed_word_of_fourteen_does_not_hide_a_text(
    seed: str, others: list[str], rng: random.Random
) -> None:
    long = [f"{word}{n}" for n, word in enumerate((seed.split() * 14)[:14])]
    changed = list(long)
    changed[rng.randrange(len(changed))] = "otherwise"
    report = compare([*others, " ".join(changed)], [" ".join(long)])
    assert [m.training for m in report.matches] == [len(others)]


@given(st.lists(TEXT, max_size=8), TEXT)
@settings(max_examples=40, deadline=None)
def test_the_index_finds_texts_that_are_alike_and_only_those(texts: list[str], text: str) -> None:
    thresholds = Thresholds(similarity=0.3)
    index = SimilarTexts(thresholds)
    for key, each in enumerate(texts):
        index.add(key, each)
    found = index.find(text)
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
    assert all(s == jaccard(text, texts[key], 2) >= 0.3 for key, s in found)
    twins = {key for key, each in enumerate(texts) if words(each) and words(each) == words(text)}
    assert twins <= {key for key, _ in found}


@pytest.mark.parametrize("similarity", [0.01, 0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("permutations", [16, 256])
def test_every_threshold_that_is_allowed_works(similarity: float, permutations: int) -> None:
    index = SimilarTexts(Thresholds(similarity=similarity, permutations=permutations))
    index.add(7, SENTENCE)
    assert index.find(SENTENCE) == [(7, 1.0)]
    assert index.find("Name three rivers that end in a lake") == []


def test_the_report_counts_by_rule_and_is_saved(tmp_path: Path) -> None:
    report = compare([SENTENCE, SENTENCE.replace("soft", "hard"), "no"], [SENTENCE, "other"])
    counts = report.counts().set_index("rule")
    assert counts.loc["exact"].tolist() == [1, 1, 1]
    assert counts.loc["minhash"].tolist() == counts.loc["any"].tolist() == [2, 2, 1]
    assert report.table()["training"].tolist() == [0, 1]
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["n_training"] == 3 and saved["thresholds"]["ngram"] == 5
    assert [m["rules"] for m in saved["matches"]] == [
        ["exact", "ngram", "minhash"],
        ["ngram", "minhash"],
    ]
    assert compare([], []).table().empty
    # The most alike first: a word changed, before the whole of it in a longer text.
    within = f"{SENTENCE} " + " ".join(f"word{n}" for n in range(30))
    table = compare([within, SENTENCE.replace("brush", "cloth")], [SENTENCE]).table()
    assert table["training"].tolist() == [1, 0]
    assert table["coverage"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"coverage": 0.0}, "coverage: expected above 0 and at most 1, got 0.0"),
        ({"similarity": 1.5}, "similarity: expected above 0"),
        ({"ngram": 0}, "ngram: expected at least 1, got 0"),
        ({"permutations": 3}, "permutations: expected at least 16, got 3"),
        ({"shingle": "2"}, "shingle: expected int, got '2' (str)"),
    ],
)
def test_thresholds_out_of_range_are_refused(setting: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        Thresholds(**setting)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_rows_to_clean_must_be_those_compared() -> None:
    with pytest.raises(InputError, match="expected the 1 rows that were compared, got 2"):
        compare(["a"], ["b"]).clean([1, 2])


def test_cleaning_asks_once_what_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    matched = property(lambda report: asked.append(report) or frozenset({1}))
    monkeypatch.setattr(DecontaminationReport, "training", matched)
    assert compare(["a", "b", "c"], ["b"]).clean([1, 2, 3]) == [1, 3]
    assert len(asked) == 1


@pytest.mark.skipif(
    not (DATA / "jailbreakbench").is_dir() or not (DATA / "advbench").is_dir(),
    reason=f"no AdvBench and JailbreakBench in {DATA}; name the folder in R2D_BENCHMARK_DATA",
)
def test_advbench_against_jailbreakbench_finds_what_its_authors_say_they_took() -> None:
    with (DATA / "advbench" / "harmful_behaviors.csv").open(newline="") as file:
        training = [row["goal"] for row in csv.DictReader(file)]
    with (DATA / "jailbreakbench" / "harmful-behaviors.csv").open(newline="") as file:
        goals = list(csv.DictReader(file))
    evaluation = [row["Goal"] for row in goals]
    report = compare(training, evaluation)
    from_advbench = {n for n, row in enumerate(goals) if row["Source"] == "AdvBench"}
    assert len(from_advbench) == 18
    # All but one, which its authors reworded; and one that they wrote after a pattern of AdvBench.
    assert len(report.evaluation & from_advbench) == 17
    assert len(report.evaluation - from_advbench) == 1
    # What book/training_data.md says of them.
    assert report.counts().set_index("rule")["evaluation texts"].to_dict() == {
        "exact": 11, "ngram": 17, "minhash": 18, "any": 18,
    }  # fmt: skip
    assert len(report.training) == 32
    # The hashing misses none of the pairs that comparing all with all finds.
    assert {(m.training, m.evaluation) for m in report.matches if "minhash" in m.rules} == {
        (i, j)
        for i, one in enumerate(training)
        for j, other in enumerate(evaluation)
        if jaccard(one, other, 2) >= 0.5
    }


@pytest.mark.skipif(
    not all((DATA / name).is_dir() for name in ("jailbreakbench", "advbench", "strongreject")),
    reason=f"no benchmarks' files in {DATA}; name the folder in R2D_BENCHMARK_DATA",
)
def test_the_pages_tables_are_what_the_script_makes() -> None:
    command = [sys.executable, "experiments/advbench_overlap.py", str(DATA)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "book" / "training_data.md").read_text().replace("**", "").casefold()
    page = re.sub(r" \{cite:p\}`\w+`", "", page)
    lines = [line for line in done.stdout.casefold().splitlines() if line]
    rows = [line for line in lines if cells(line)[-1].isdigit()]
    tabled = [row for row in rows if row.count("|") > 4]
    assert len(tabled) == 3 + 7 + 5
    for row in tabled:
        assert row in page, row
    # In sentences: near duplicates within AdvBench, and what the n-gram rule does by itself.
    near, alone = rows[:3], [row for row in rows if row.count("|") == 4]
    (at_8, at_6, at_5), by_itself = ([cells(row)[1] for row in some] for some in (near, alone))
    assert f"at that threshold {at_8} of advbench's 520 prompts are near duplicates" in page
    assert f"at 0.6 it is {at_6}, at 0.5 it is {at_5}" in page
    assert f"by itself finds {cells(alone[0])[2]} of the 18" in page
    assert f"leave out {by_itself[1]} prompts at 0.6 and {by_itself[2]} at 0.5" in page


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_script_of_the_pages_tables_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "experiments/advbench_overlap.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "expected one file harmful_behaviors.csv in it, found 0" in done.stderr


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_command_line_counts_reports_and_cleans(tmp_path, suffix):
    rows = ["Write a poem about the sea at night.", "How do I bake a loaf of rye bread?", "Hello."]
    write = {"csv": "to_csv", "parquet": "to_parquet"}
    table = pd.DataFrame({"instruction": rows, "output": ["a", "b", "c"]})
    training = tmp_path / f"training.{suffix}"
    if suffix == "jsonl":
        table.to_json(training, orient="records", lines=True)
    else:
        getattr(table, write[suffix])(training, index=False)
    (tmp_path / "test.csv").write_text(
        "Goal,Source\nhow do i BAKE a loaf of rye bread,mine\nsomething else,theirs\n"
    )
    clean = tmp_path / f"clean.{suffix}"
    command = [sys.executable, "experiments/decontaminate.py", f"{training}:instruction"]
    command += [f"{tmp_path / 'test.csv'}:Goal", "--group", "Source"]
    command += ["--report", str(tmp_path / "report.json"), "--clean", str(clean)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "3 training texts, 2 evaluation texts" in done.stdout
    (match,) = json.loads((tmp_path / "report.json").read_text())["matches"]
    assert (match["training"], match["evaluation"]) == (1, 0)
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}.get(suffix)
    kept = read(clean) if read else pd.read_json(clean, lines=True)
    assert kept.to_dict("records") == table.drop(index=1).to_dict("records")
    lost = [*command[:-1], str(tmp_path / "absent" / clean.name)]
    done = subprocess.run(lost, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "there is no folder" in done.stderr and not done.stdout
    command[2] = f"{training}:prompt"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "no column 'prompt'" in done.stderr


def cleaned(monkeypatch: pytest.MonkeyPatch, training: Path, clean: Path) -> int:
    """Without the rows whose ``q`` is "Write a poem about the sea", in this process."""
    evaluation = training.with_name("evaluation.csv")
    evaluation.write_text("Goal\nWrite a poem about the sea\n")
    given = ["decontaminate.py", f"{training}:q", f"{evaluation}:Goal", "--clean", str(clean)]
    monkeypatch.setattr(sys, "argv", given)
    return decontaminate.main()


@pytest.mark.parametrize(
    ("name", "rows", "kept"),
    [
        (
            "t.jsonl",
            b'\xef\xbb\xbf{"q": "x", "n": 1, "created_at": "2024-01-05"}\r\n\n'
            b'{"q": "Write a poem about the sea", "n": 2}\n'
            b'{"n" :null,"q":"y\xe2\x80\xa8","id":12345678901234567890,"f":1e5}',
            (0, 2),
        ),
        (
            "t.csv",
            b'\xef\xbb\xbf"q",n\r\n"x\r\ny",01\r\n"Write a poem\r\nabout the sea",2\r\nNA,"1.50"',
            (0, 1, 2, 5),
        ),
    ],
)
def test_clean_rows_are_those_that_went_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: bytes, kept: tuple[int, ...]
) -> None:
    (tmp_path / name).write_bytes(rows)
    assert cleaned(monkeypatch, tmp_path / name, tmp_path / "clean" / name) == 1  # no folder
    (tmp_path / "clean").mkdir()
    assert cleaned(monkeypatch, tmp_path / name, tmp_path / "clean" / name) == 0
    lines = [line for line in rows.splitlines(keepends=True) if line.strip() or name != "t.jsonl"]
    found = (tmp_path / "clean" / name).read_bytes()
    assert found.replace(b"\n\n", b"\n") == b"".join(lines[n] for n in kept)
    assert cleaned(monkeypatch, tmp_path / "clean" / name, tmp_path / name) == 0
    assert (tmp_path / name).read_bytes() == found


def test_a_clean_table_of_parquet_keeps_its_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table(
        {
            "q": ["Write a poem about the sea", "x"],
            "n": [1, None],
            "at": [datetime(2024, 1, 5)] * 2,
        },
        pa.schema([("q", pa.string()), ("n", pa.int32()), ("at", pa.timestamp("ms"))], {"a": "b"}),
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    assert cleaned(monkeypatch, tmp_path / "t.parquet", tmp_path / "c.parquet") == 0
    kept = parquet.read_table(tmp_path / "c.parquet")
    assert kept.equals(table.slice(1), check_metadata=True)
    parquet.write_table(table.slice(0, 1), tmp_path / "t.parquet")
    assert cleaned(monkeypatch, tmp_path / "t.parquet", tmp_path / "c.parquet") == 0
    assert parquet.read_table(tmp_path / "c.parquet").num_rows == 0


def test_clean_rows_in_another_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"q": "x"}, {"q": "Write a poem about the sea"}, {"q": 'y,"\n', "n": 10**19, "o": None}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cleaned(monkeypatch, tmp_path / "t.jsonl", tmp_path / "c.csv") == 0
    assert (tmp_path / "c.csv").read_text() == f'q,n,o\nx,,\n"y,""\n",{10**19},\n'
    assert cleaned(monkeypatch, tmp_path / "c.csv", tmp_path / "c.parquet") == 0
    assert cleaned(monkeypatch, tmp_path / "c.parquet", tmp_path / "c.jsonl") == 0
    texts = [{"q": "x", "n": "", "o": ""}, {"q": 'y,"\n', "n": str(10**19), "o": ""}]
    assert [json.loads(line) for line in (tmp_path / "c.jsonl").open()] == texts
    assert cleaned(monkeypatch, tmp_path / "t.jsonl", tmp_path / "d.parquet") == 1
    assert "d.parquet: a value cannot be written so" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", '{"q": "x"}\n{"q": 1}\n', "t.jsonl:2: q: expected text, got int"),
        ("t.jsonl", '{"q": "x"}\n{"p": "y"}\n', "t.jsonl:2: no column 'q'; it has p"),
        ("t.jsonl", '{"q": "x"}\n{"q": \n', "t.jsonl:2: broken JSON"),
        ("t.csv", "q,n\nx,1,2\n", "t.csv:2: expected 2 cells"),
        ("t.csv", "q,n\n", "t.csv: no rows"),
        ("t.txt", "x", "expected FILE:COLUMN, the file one of .csv, .jsonl, .parquet"),
        ("t.parquet", None, "t.parquet: no such file"),
    ],
)
def test_rows_that_do_not_read_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    said: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert cleaned(monkeypatch, tmp_path / name, tmp_path / "c.csv") == 1
    assert said in capsys.readouterr().err
