"""JSON files that hold no records, cut off and mended by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2d_core.errors import InputError
from r2d_core.records import read_json, read_json_lines


def test_objects_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1]}')
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n\n{"step": 2, "loss": 0.5}\n')
    assert read_json(tmp_path / "a.json") == {"a": [1]}
    assert read_json_lines(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2, "loss": 0.5}]


@pytest.mark.parametrize(
    ("content", "line"),
    [(b'{"step": 1}\n{"step": 2, "lo', 2), (b"[1]\n", 1), (b'{"a": "\xff"}', 1), (b"[" * 9999, 1)],
)
def test_what_is_broken_is_one_line(tmp_path: Path, content: bytes, line: int) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json_lines(file)
    assert str(caught.value).startswith(f"{file}:{line}: expected a JSON object")
    assert str(caught.value).endswith("mend or delete it") and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"log.jsonl: expected a JSON object.* delete it and run"):
        read_json(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.json: cannot be read \(No such file"):
        read_json(tmp_path / "absent.json")
