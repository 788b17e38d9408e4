from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from r2d_core.errors import InputError
from r2d_core.records import (
    Behavior,
    Completion,
    TestCase,
    Verdict,
    atomic_directory,
    read_behaviors,
    read_completions,
    read_jsonl,
    read_test_cases,
    read_verdicts,
    write_json_atomic,
    write_jsonl,
    write_text_atomic,
)

# Any text at all, lone surrogates included, with the awkward characters made common.
TEXT = st.text(
    st.one_of(
        st.sampled_from(
            list('\0\n\r\t\x7f\x85\u2028\u2029\ufeff\\"{}\ud83d\ude00\ud800\udfffé中😀')
        ),
        st.characters(exclude_categories=()),
    ),
    max_size=20,
)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
GOOD = '{"id": "a", "prompt": "p"}\n'


@given(prompt=TEXT, key=TEXT, value=TEXT)
@example(prompt="\ud83d\ude00", key="\ud83d", value="\\\ude00\u2028")
@SAME_FOLDER
def test_any_text_reads_back_exactly(tmp_path: Path, prompt: str, key: str, value: str) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [Behavior("a", prompt, metadata={key: [value, 1, 0.1, None, True]}), Behavior("b", key)]
    write_jsonl(path, rows)
    assert read_jsonl(path, Behavior) == rows
    # One line a record, however a reader cuts lines.
    text = path.read_bytes().decode("utf-8", "surrogatepass")
    assert len(text.splitlines()) == 2


def test_lone_surrogate_leaves_valid_utf8_and_other_text_readable(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [Behavior("a", "中 \ud800")])
    assert "中 \\ud800" in path.read_text(encoding="utf-8")


def test_every_record_class_round_trips_through_its_named_reader(tmp_path: Path) -> None:
    pairs: list[tuple[Any, Any]] = [
        (read_behaviors, Behavior("a", "p", "benign", "c", "s", "e", {"k": 1})),
        (read_test_cases, TestCase("a", "prefill_lead", "p", "Sure,", "sys", 3, {})),
        (read_completions, Completion("a", "direct", "p", "t", "pre", 3, 4, "length")),
        (read_verdicts, Verdict("a", "direct", "toy", "harmful", "harmful", "refused")),
    ]
    for reader, row in pairs:
        write_jsonl(tmp_path / "rows.jsonl", [row])
        assert reader(tmp_path / "rows.jsonl") == [row]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "a", "prompt": "cut o', "broken JSON"),
        ("not json", "broken JSON"),
        ("\xff", "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ('{"id": "a", "prompt": "p", "metadata": {"x": NaN}}', "NaN is not a JSON value"),
        ('["a", "p"]', "expected a JSON object with the fields of Behavior, got list"),
        ('{"id": "a"}', "field 'prompt' is missing"),
        ('{"id": "a", "promt": "p"}', "'promt', did you mean 'prompt'?"),
        ('{"id": 7, "prompt": "p"}', "'id': expected str, got 7 (int)"),
        ('{"id": "a", "prompt": null}', "'prompt': expected str, got None"),
        ('{"id": "a", "prompt": "p", "kind": "evil"}', "one of 'harmful', 'benign', got 'evil'"),
        ('{"id": "a", "prompt": "p", "metadata": []}', "'metadata': expected dict[str, Any]"),
    ],
)
def test_bad_line_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes((GOOD + line).encode("latin-1"))
    with pytest.raises(InputError) as caught:
        read_behaviors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ")
    assert said in message
    assert "\n" not in message


@given(junk=st.binary(max_size=60))
@example(junk=b"\x00\x0b\x00")
@example(junk="a\u2028b\x1b[2J\x85".encode())
@SAME_FOLDER
def test_junk_is_an_input_error_or_nothing(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(junk)
    try:
        assert read_behaviors(path) == []
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and str(error).isprintable()


def test_bom_crlf_and_empty_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n\r\n").encode())
    assert read_behaviors(path) == [Behavior("a", "p")]


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_behaviors(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="is a directory"):
        read_behaviors(tmp_path)


def test_a_record_is_checked_where_it_is_made() -> None:
    with pytest.raises(InputError, match="queries.*expected int, got True"):
        TestCase("a", "direct", "p", queries=True)
    with pytest.raises(InputError, match="finish"):
        Completion("a", "direct", "p", "t", finish="eos")  # type: ignore[arg-type]


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [Behavior("a", "p")])
    with pytest.raises(InputError, match=r"rows.jsonl:2: cannot be written as JSON"):
        write_jsonl(path, [Behavior("b", "p"), Behavior("c", "p", metadata={"x": float("nan")})])
    with pytest.raises(InputError, match="cannot be written as JSON"):
        write_json_atomic(path, {1, 2})
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "\ud800")
    assert read_behaviors(path) == [Behavior("a", "p")]
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_failed_replace_leaves_no_litter(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text_atomic(tmp_path / "taken", "text")
    assert os.listdir(tmp_path) == ["taken"]


def test_written_files_make_their_folders_and_obey_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "gate.json"
    write_json_atomic(path, {"exact": 0.995})
    assert json.loads(path.read_text()) == {"exact": 0.995}
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    write_text_atomic(path, "a\r\nb\n")
    assert path.read_bytes() == b"a\r\nb\n"


def test_atomic_directory_appears_whole_and_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "base0" / "model"
    for content in ("one", "two"):
        with atomic_directory(target) as folder:
            (folder / f"{content}.txt").write_text(content)
            (folder / "sub").mkdir()
            assert not (target / f"{content}.txt").exists()
        assert sorted(os.listdir(target)) == sorted(["sub", f"{content}.txt"])
    with pytest.raises(KeyboardInterrupt), atomic_directory(target) as folder:
        (folder / "three.txt").write_text("half")
        raise KeyboardInterrupt
    assert sorted(os.listdir(target)) == ["sub", "two.txt"]
    assert os.listdir(target.parent) == ["model"]
