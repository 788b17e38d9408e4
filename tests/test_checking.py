from __future__ import annotations

from typing import Any, Literal

import pytest

from r2d_core.checking import mismatch, show, unknown


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        (True, float, False),
        ("007", str, True),
        (7, str, False),
        (1, bool, False),
        (None, str | None, True),
        (None, str, False),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ("12", list[str], False),
        ([1, 0.5], list[float], True),
        ([], list[str], True),
        ((1, 2), list[int], False),
        ({"a": [1]}, dict[str, Any], True),
        ({1: 1}, dict[str, Any], False),
        ("stop", Literal["stop", "length"], True),
        ("end", Literal["stop", "length"], False),
        (True, Literal[1], False),
        (["a"], list[str] | None, True),
    ],
)
def test_values_against_annotations(value: object, annotation: Any, fits: bool) -> None:
    assert (mismatch(value, annotation) is None) == fits


def test_the_message_shows_both_sides_on_one_short_line() -> None:
    assert mismatch("three", list[int]) == "expected list[int], got 'three' (str)"
    message = mismatch("a\n" * 500, int | None)
    assert message is not None and "\n" not in message and len(message) < 100
    assert show(dict[str, Any]) == "dict[str, Any]"


def test_an_annotation_it_does_not_know_is_our_bug() -> None:
    with pytest.raises(TypeError, match="does not know"):
        mismatch(1, complex)


def test_unknown_name() -> None:
    assert unknown("parameter", "sede", ["seed", "attacks"]) == (
        "unknown parameter 'sede', did you mean 'seed'? known: seed, attacks"
    )
    assert unknown("method", "zzz", ["r2d"]) == "unknown method 'zzz'; known: r2d"
    assert unknown("method", "zzz", []) == "unknown method 'zzz'; known: none"
