"""Reading training data: every format, every defect, and what the rows come to in training."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_tokenizer

from r2d_core.datasets import (
    DEFECTS,
    TOLERATED,
    Finding,
    describe,
    read_report,
    read_trajectories,
    summarize,
    training_rows,
)
from r2d_core.errors import InputError
from r2d_core.pivots import RETHINK, SAFE, UNSAFE, expand_vocabulary
from r2d_core.tokenization import encode_example
from r2d_core.training import TrainConfig, train
from r2d_core.trajectories import Trajectory, parse, problems

GOOD = "<think> what is it ? [RETHINK] it is fine . [SAFE] </think> the answer ."
# As the paper's figure 2 and appendix show them: a pivot after every step, of the answer too.
PAPER = (
    "<think>\nOkay, so the user asks about that. I should be careful. [RETHINK]\n\n"
    "It is a harmless question. [SAFE] </think>\n\nHere you are. [SAFE]\n\nAnd more. [SAFE]"
)


def row(output: Any = GOOD, instruction: Any = "do it", **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "input": "", "output": output, **more}


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


# --- formats ------------------------------------------------------------------------------------


@pytest.fixture(params=["jsonl", "json lines", "json array", "parquet", "folder", "hub"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> str:
    """Three rows, the second without a pivot, in every way they may be given."""
    rows = [row(instruction="one"), row("no pivot", "two"), row(PAPER, "three", input="this")]
    match request.param:
        case "jsonl":
            return str(write_lines(tmp_path / "a.jsonl", rows))
        case "json lines":
            return str(write_lines(tmp_path / "a.json", ["", *rows, ""]))
        case "json array":
            (tmp_path / "a.json").write_text("\ufeff \n" + json.dumps(rows, indent=2))
            return str(tmp_path / "a.json")
        case "parquet":
            return str(write_parquet(tmp_path / "a.parquet", rows, row_group_size=2))
        case "folder":
            write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:1])
            write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[1:])
            write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [row("no")])
            write_lines(tmp_path / "notes.jsonl", ["no row"])
            write_lines(tmp_path / ".hidden.parquet", ["no row"])
            return str(tmp_path)
        case _:

            def load(name: str, **options: Any) -> Any:
                assert (name, options) == (
                    "chuhac/R2D-R1",
                    {"split": "train", "revision": None, "streaming": True},
                )
                return datasets.IterableDataset.from_generator(lambda: iter(rows))

            monkeypatch.setattr(datasets, "load_dataset", load)
            return "chuhac/R2D-R1"


def test_every_format_reads_the_same(source: str) -> None:
    rows = read_trajectories(source)
    trajectories = list(rows)
    assert [t.instruction for t in trajectories] == ["one", "three\n\nthis"]
    assert [str(t) for t in trajectories] == [GOOD, PAPER]
    report = rows.report
    assert (report.source, report.rows, report.kept) == (source, 3, 2)
    assert report.defects == {"no_pivot": 1, "pivot_in_answer": 1}
    kinds = [(f.defect, f.message) for f in report.findings]
    assert kinds[0] == ("no_pivot", "no pivot")
    assert "the answer, after the reasoning" in kinds[1][1]
    # Iterating once more reads, and counts, once more.
    assert list(rows) == trajectories and rows.report == report and rows.report is not report


def test_places_are_lines_rows_and_elements(tmp_path: Path) -> None:
    bad = row("no pivot")
    lines = write_lines(tmp_path / "a.jsonl", [row(), "", "{broken", "[1]", bad])
    rows = read_trajectories(lines)
    list(rows)
    assert [(f.place, f.defect) for f in rows.report.findings] == [
        (f"{lines}:3", "not_an_object"),
        (f"{lines}:4", "not_an_object"),
        (f"{lines}:5", "no_pivot"),
    ]
    assert rows.report.findings[0].message.startswith("broken JSON: ")
    table = write_parquet(tmp_path / "a.parquet", [row(), bad, row(), bad])
    rows = read_trajectories(table)
    list(rows)
    assert [f.place for f in rows.report.findings] == [f"{table}:2", f"{table}:4"]


def test_columns_of_another_name_and_extra_ones(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        [{"prompt": "ask", "answer": GOOD, "input": 3}, {"prompt": "ask", "output": GOOD}],
    )
    columns = {"instruction": "prompt", "output": "answer", "input": "context"}
    rows = read_trajectories(path, columns=columns)
    assert [t.instruction for t in rows] == ["ask"]
    assert rows.report.findings == [
        Finding(f"{path}:2", "missing_column", "no column 'answer'; the row has prompt, output")
    ]


def test_large_files_are_streamed(tmp_path: Path) -> None:
    long = row(GOOD + " word" * 5_000)
    lines = write_lines(tmp_path / "a.jsonl", itertools.repeat(long, 400))
    table = write_parquet(tmp_path / "a.parquet", [long] * 400, row_group_size=20)
    for path in (lines, table):
        assert sum(1 for _ in read_trajectories(path)) == 400  # imports done
        tracemalloc.start()
        first = next(iter(read_trajectories(path)))
        assert isinstance(first, Trajectory)
        for _ in read_trajectories(path):
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        size = 400 * len(str(first))
        assert peak < size / 3, (path.name, peak, size)


# --- defects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "defects"),
    [
        ("[]", ["not_an_object"]),
        ({"instruction": "ask"}, ["missing_column"]),
        (row(3), ["wrong_type"]),
        (row(None), ["wrong_type"]),
        (row(instruction=["ask"]), ["wrong_type"]),
        (row(input={}), ["wrong_type"]),
        (row(instruction="cut in the middle of \ud83d"), ["wrong_type"]),
        (row(instruction=" \n"), ["empty_instruction"]),
        (row(""), ["empty_answer", "no_pivot"]),
        (row("<think> a [SAFE] </think> "), ["empty_answer"]),
        (row("<think> a [SAFE] b"), ["unfinished", "last_step_without_pivot"]),
        (row("<think> a </think> b"), ["no_pivot"]),
        (row("<think> a [SAFE] b </think> c"), ["last_step_without_pivot"]),
        (row("<think> a [UNSURE] b [SAFE] </think> c"), ["unknown_pivot"]),
        (row("<think> a [SAFE] </think> b </think> c"), ["repeated_think"]),
        (row("<think> a [SAFE] </think> b </s> c"), ["end_of_turn"]),
        (row("<think> a [SAFE] </think> b </s>"), ["end_of_turn"]),
        (row("<think> a [SAFE] </think> b [SAFE]"), ["pivot_in_answer"]),
    ],
)
def test_every_defect_has_its_kind(tmp_path: Path, bad: Any, defects: list[str]) -> None:
    tokenizer = tiny_tokenizer("llama")
    path = write_lines(tmp_path / "a.jsonl", [row(), bad, row(GOOD, "last")])
    rows = read_trajectories(path, tokenizer=tokenizer)
    kept = [t.instruction for t in rows]
    expected = [f.defect for f in rows.report.findings]
    assert expected == defects
    assert kept == ["do it", *(["do it"] if set(defects) <= TOLERATED else []), "last"]
    assert rows.report.rows == 3 and rows.report.kept == len(kept)


PIECE = st.sampled_from(
    ["<think>", "</think>", "[SAFE]", "[UNSAFE]", "[UNSURE]", "[ safe ]", "</s>", "word", " ", "\n"]
)


@given(st.lists(PIECE, max_size=9).map("".join))
@settings(max_examples=200)
def test_every_problem_has_a_kind_and_none_is_lost(output: str) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        rows = read_trajectories(write_lines(Path(folder) / "a.jsonl", [row(), row(output)]))
        kept = len(list(rows)) == 2
    said = problems(parse(output))
    assert [f.message for f in rows.report.findings] == said
    assert {f.defect for f in rows.report.findings} <= set(DEFECTS)
    assert kept == all("in the answer" in message for message in said)


def test_what_is_tolerated_is_counted_and_kept(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row(PAPER), row("<think>a[SAFE]b</think>c")])
    rows = read_trajectories(path, tolerated=["last_step_without_pivot"])
    assert len(list(rows)) == 1
    assert rows.report.defects == {"pivot_in_answer": 1, "last_step_without_pivot": 1}
    table = rows.report.table().set_index("defect")
    assert table["kept"].to_dict() == {"pivot_in_answer": "no", "last_step_without_pivot": "yes"}
    assert table.loc["pivot_in_answer", "first at"] == f"{path}:1"


def test_length_is_counted_in_tokens_of_the_whole_example(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("llama")
    expand_vocabulary(tiny_model("llama", tokenizer), tokenizer)
    path = write_lines(tmp_path / "a.jsonl", [row(), row(GOOD + " word" * 50)])
    short = len(encode_example(tokenizer, "do it", GOOD)["input_ids"])
    rows = read_trajectories(path, tokenizer=tokenizer, max_length=short)
    assert len(list(rows)) == 1
    assert list(rows.lengths) == [short]
    assert rows.report.defects == {"too_long": 1}
    assert rows.report.findings[0].message.endswith(f"tokens, more than {short}")
    with pytest.raises(InputError, match="none of its 2 rows .* too_long .*; raise max_length"):
        list(read_trajectories(path, tokenizer=tokenizer, max_length=short - 1))


def test_the_report_is_saved_and_read_back(tmp_path: Path) -> None:
    rows = read_trajectories(write_lines(tmp_path / "a.jsonl", [row(), "no", row("no")]))
    list(rows)
    rows.report.save(tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == rows.report
    for name, said in (("none.json", "No such file"), (".", "Is a directory")):
        with pytest.raises(InputError, match=rf"cannot be read \({said}"):
            read_report(tmp_path / name)
    for content, said in (
        ("[]", "expected a JSON object"),
        ("{", "expected a JSON object"),
        ('{"source": "x"}', "not a validation report"),
        ('{"tolerated": [], "findings": ["x"]}', "not a validation report"),
    ):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(InputError, match=rf"other\.json: {said}"):
            read_report(tmp_path / "other.json")


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"source": "nowhere.jsonl"}, "nowhere.jsonl: no such file or folder, and no name"),
        ({"source": "data/train.jsonl"}, "data/train.jsonl: no such file"),
        ({"columns": {"outptu": "x"}}, "unknown field to map a column to 'outptu', did you mean"),
        ({"tolerated": ["no_pivots"]}, "unknown defect to tolerate 'no_pivots', did you mean"),
        ({"tolerated": ["wrong_type"]}, "a row with 'wrong_type' is no trajectory"),
        ({"max_length": 5}, "max_length counts tokens; give a tokenizer too"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row()])
    with pytest.raises(InputError) as caught:
        read_trajectories(**{"source": path, **arguments})
    assert said in str(caught.value)


def test_of_a_folder_the_split_s_files_and_no_journal(tmp_path: Path) -> None:
    def asked(split: str = "train") -> list[str]:
        return [each.instruction for each in read_trajectories(tmp_path, split=split)]

    # What a synthesis leaves: rejected trajectories stand in its journal alone.
    journal = write_lines(tmp_path / "journal.jsonl", [row(instruction="rejected")])
    write_lines(tmp_path / "trajectories.jsonl", [row(instruction="kept")])
    assert asked() == ["kept"]
    with pytest.raises(InputError, match="holds what was rejected, too; give trajectories.jsonl"):
        read_trajectories(journal)
    write_lines(tmp_path / "test.jsonl", [row(instruction="test")])
    assert asked("test") == ["test"]
    with pytest.raises(InputError, match=r"of the split 'train'; there are test \(test\.jsonl, …"):
        asked()
    write_lines(tmp_path / "train-0.jsonl", [row(instruction="train")])
    assert asked() == ["train"]
    write_parquet(tmp_path / "train-1.parquet", [row()])
    with pytest.raises(
        InputError, match=r"of one format, there are train-1\.parquet, train-0\.jsonl; name"
    ):
        asked()


def test_a_folder_s_folders_tell_its_splits(tmp_path: Path) -> None:
    """As the hub exports data sets: default/train/0000.parquet beside default/test/0000.parquet."""
    for split in ("train", "test"):
        folder = tmp_path / "default" / split
        folder.mkdir(parents=True)
        write_parquet(folder / "0000.parquet", [row(instruction=f"{split} {n}") for n in range(2)])
    for split in ("train", "test"):
        library = datasets.load_dataset(str(tmp_path), split=split, streaming=True)
        found = [each.instruction for each in read_trajectories(tmp_path, split=split)]
        assert found == [each["instruction"] for each in library] == [f"{split} 0", f"{split} 1"]


def test_a_folder_s_name_is_no_pattern(tmp_path: Path) -> None:
    for name in ("data[1]", "data*"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "train.jsonl", [row(instruction=name)])
    (tmp_path / "data1").mkdir()
    write_lines(tmp_path / "data1" / "train.jsonl", [row(instruction="another")])
    for name in ("data[1]", "data*"):
        assert [each.instruction for each in read_trajectories(tmp_path / name)] == [name]


def test_sources_that_hold_nothing_say_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file in this folder ends in .parquet"):
        read_trajectories(tmp_path / "empty")
    with pytest.raises(InputError, match="expected a file that ends in"):
        read_trajectories(write_lines(tmp_path / "a.csv", []))
    with pytest.raises(InputError, match="no rows; expected instruction, input, output"):
        list(read_trajectories(write_lines(tmp_path / "a.jsonl", [])))
    path = write_lines(tmp_path / "b.jsonl", [{"q": "x", "a": GOOD}] * 3)
    with pytest.raises(InputError, match=r"none of its 3 rows .*b.jsonl:1: no column .*columns="):
        list(read_trajectories(path))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[{]")
    with pytest.raises(InputError, match=r"a.json: expected a JSON array .* write JSON lines"):
        list(read_trajectories(path))
    table = write_parquet(tmp_path / "a.parquet", [row()] * 50)
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(InputError, match="a.parquet: cannot be read as Parquet after row 0"):
        list(read_trajectories(table))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: Any) -> None:
    def load(name: str, **options: Any) -> Any:
        raise ConnectionError("no network\nand a long trace")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError) as caught:
        list(read_trajectories("chuhac/R2D-R1", revision="v1"))
    assert str(caught.value) == (
        "chuhac/R2D-R1: cannot be read from the hub (ConnectionError: no network); check the name, "
        "the split and the network, or give the path of a local copy"
    )


# --- statistics and training --------------------------------------------------------------------


def test_statistics_are_what_a_count_by_hand_gives() -> None:
    unsafe = "<think> a b [UNSAFE] c [RETHINK] d [SAFE] </think> i cannot ."
    trajectories = [parse(text, instruction="q") for text in (GOOD, PAPER, unsafe)]
    table = describe(
        trajectories,
        tokens=[10, 20, 30],
        labels={"refused": lambda t: "cannot" in t.answer},
    )
    assert table["safe"].tolist() == [1, 1, 1] and table["rethink"].tolist() == [1, 1, 1]
    assert table["unsafe"].tolist() == [0, 0, 1] and table["answer_pivots"].tolist() == [0, 2, 0]
    assert table["steps"].tolist() == [2, 2, 3] and table["words"].tolist()[0] == 15
    found = summarize(table)
    assert found.trajectories == 3
    assert found.pivots == {SAFE: 3, UNSAFE: 1, RETHINK: 3}
    assert found.final_pivots == {SAFE: 3, UNSAFE: 0, RETHINK: 0}
    assert found.shares == {"unsafe step": pytest.approx(1 / 3), "refused": pytest.approx(1 / 3)}
    assert found.lengths["tokens"]["50%"] == 20 and found.lengths["tokens"]["mean"] == 20
    assert found.lengths["steps"]["max"] == 3


def test_quantiles_and_pivots_of_answers() -> None:
    answers = [f"<think> a [SAFE] </think> b {pivot}" for pivot in (SAFE, UNSAFE, RETHINK, "c")]
    table = describe([parse(text) for text in answers] * 25, tokens=range(1, 101))
    assert table["answer_pivots"].tolist() == [1, 1, 1, 0] * 25
    lengths = summarize(table).lengths["tokens"]
    assert lengths["min"] == 1 and lengths["max"] == 100 and lengths["mean"] == 50.5
    assert (lengths["50%"], lengths["95%"], lengths["99%"]) == pytest.approx((50.5, 95.05, 99.01))


def test_a_row_counts_once_for_each_kind_of_its_defects(tmp_path: Path) -> None:
    twice = row("<think> a [UNSURE] b [DANGER] c [SAFE] </think> d")
    rows = read_trajectories(write_lines(tmp_path / "a.jsonl", [row(), twice, twice]))
    assert len(list(rows)) == 1
    assert rows.report.defects == {"unknown_pivot": 2} and len(rows.report.findings) == 4
    assert rows.report.table()["rows"].tolist() == [2]


def test_statistics_are_saved_and_nothing_has_none(tmp_path: Path) -> None:
    statistics = summarize(describe([parse(GOOD)]))
    statistics.save(tmp_path / "statistics.json")
    saved = json.loads((tmp_path / "statistics.json").read_text())
    assert saved["trajectories"] == 1 and "tokens" not in saved["lengths"]
    with pytest.raises(InputError, match="no rows"):
        summarize(describe([]))
    with pytest.raises(InputError, match="2 token counts for 1 trajectories"):
        describe([parse(GOOD)], tokens=[1, 2])


def test_what_was_read_can_be_trained_on(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    expand_vocabulary(model, tokenizer)
    path = write_lines(tmp_path / "a.jsonl", [row(PAPER), row(input="with a text"), row("no")])
    trajectories = list(read_trajectories(path))
    rows = training_rows(trajectories, tokenizer)
    for trajectory, made in zip(trajectories, rows, strict=True):
        expected = encode_example(tokenizer, trajectory.instruction, str(trajectory))
        assert {name: list(ids) for name, ids in made.items()} == expected
    result = train(TrainConfig(tmp_path / "run", max_steps=2, batch_size=2), model, tokenizer, rows)
    assert result.steps == 2
