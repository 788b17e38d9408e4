"""The questions every reader of outside input asks: is the name known, does the value fit?"""

from __future__ import annotations

import difflib
import re
import reprlib
import types
from collections.abc import Collection, Iterable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from r2d_core.errors import InputError


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """One line for a name nobody declared: ``unknown method 'r2', did you mean 'r2d'? known: …``.

    ``what`` says what kind of name it is ("method", "field", …); the caller raises.
    """
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    return f"unknown {what} {reprlib.repr(name)}{hint} known: {', '.join(names) or 'none'}"


def mismatch(value: object, annotation: Any) -> str | None:
    """None when ``value`` fits ``annotation``, else "expected list[int], got 'three' (str)".

    Knows what dataclass fields and notebook parameters are annotated with: str, int, float, bool,
    None, Any, Literal, ``X | None`` and list[...], tuple[X, ...] or dict[...] of those. A bool is
    not an int; an int is a float. Raises TypeError for any other annotation: that is a bug in our
    source, not bad input.
    """
    if _fits(value, annotation):
        return None
    said = f"expected {show(annotation)}, got {reprlib.repr(value)} ({type(value).__name__})"
    if _fits(0.5, annotation) and isinstance(value, str) and is_number(value):
        return (
            f"{said}; write {_with_point(float(value))}, without quotes: YAML's floats have a point"
        )
    return said


def check_fields(record: object, what: str = "", skip: Collection[str] = ()) -> None:
    """Raise InputError where a dataclass's field does not fit its annotation (see `mismatch`).

    ``what`` stands before the field's name in the message; ``skip``: fields with checks of their
    own, for annotations that are none of `mismatch`'s.
    """
    for name, annotation in get_type_hints(type(record)).items():
        if name not in skip and (problem := mismatch(getattr(record, name), annotation)):
            raise InputError(f"{what} {name}: {problem}".lstrip())


def is_number(text: str) -> bool:
    """True for what is meant as a number: 2e-4 is a text to YAML."""
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?", text) is not None


def _with_point(number: float) -> str:
    """The number as YAML reads it: 7.0e-4, 2.0."""
    text = repr(number)
    return text if "." in text else text.replace("e", ".0e")


def show(annotation: Any) -> str:
    """The annotation as one writes it: ``list[int]``, ``str | None``, ``one of 'a', 'b'``."""
    if annotation is None or annotation is type(None):
        return "None"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " | ".join(map(show, inner))
    if origin is tuple:
        return f"tuple of {show(inner[0])}"
    if inner:
        return f"{origin.__name__}[{', '.join(map(show, inner))}]"
    return str(getattr(annotation, "__name__", annotation))


def _fits(value: object, annotation: Any) -> bool:
    if annotation is Any:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool, list, dict):
        return isinstance(value, annotation)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is list or (origin is tuple and inner[1:] == (...,)):
        return isinstance(value, origin) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items()
        )
    raise TypeError(f"checking does not know the annotation {annotation!r}")
