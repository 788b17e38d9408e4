"""Logs of JSON lines: what is written stays, what a kill cut off goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from r2d_core.errors import InputError
from r2d_core.records import append_log, read_log


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    log = tmp_path / "new" / "log.jsonl"
    append_log(log, [])  # makes it
    assert read_log(log, "mend it") == [] and log.read_bytes() == b""
    values = [["a", 1.5], {"b": None}, "\u2028 \r \udc80 é"]
    append_log(log, values[:1])
    append_log(log, values[1:])
    assert read_log(log, "mend it") == values
    assert log.read_bytes().isascii() and log.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("torn", [b"", b"[2", b"[2]", b'{"a": "' + b"x" * 100_000])
def test_a_torn_line_is_not_read_and_goes_with_the_next(tmp_path: Path, torn: bytes) -> None:
    log = tmp_path / "log.jsonl"
    for whole, read in ((b"", []), (b"[1]\n", [[1]])):
        log.write_bytes(whole + torn)
        assert read_log(log, "mend it") == read
        assert log.read_bytes() == whole + torn  # of a run that is not ours, perhaps
        append_log(log, [[3]])
        assert log.read_bytes() == whole + b"[3]\n"


def test_a_batch_is_on_the_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    append_log(tmp_path / "log.jsonl", range(512))
    assert len(synced) == 1 and len(read_log(tmp_path / "log.jsonl", "mend it")) == 512


@pytest.mark.parametrize("line", [b"[", b"", b'"\xff"', b"[" * 200_000])
def test_a_broken_line_is_named(tmp_path: Path, line: bytes) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"[1]\n" + line + b"\n[3]\n")
    with pytest.raises(
        InputError, match=r"log\.jsonl:2: expected a line of JSON, found .*; mend it$"
    ):
        read_log(log, "mend it")


def test_a_log_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_log(tmp_path / "none.jsonl", "mend it")
