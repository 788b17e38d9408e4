"""The parameters of a notebook: declared in one cell, checked before anything runs.

A notebook declares them in the cell that carries the tag ``parameters`` (papermill's) and begins
with the line ``# Parameters of this notebook`` (ours: a running kernel sees sources, not tags)::

    # Parameters of this notebook
    seed: int = 0
    attacks: list[str] = ["direct", "prefill_lead"]

The cell holds nothing else: annotated names with literal defaults, and comments. The next cell is
``parameters = check_parameters(globals())``. Papermill on its own lets a misspelt name pass and the
run ends with the default's numbers; here it is refused.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d_core.checking import is_number, mismatch, unknown
from r2d_core.errors import InputError

DECLARED = "# Parameters of this notebook"  # first line of the cell that declares them
NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
INJECTED = "# Parameters"  # first line of the cell that papermill adds


@dataclass(frozen=True)
class Parameter:
    """What a notebook says of one parameter: its type, as an annotation, and its default."""

    annotation: Any
    default: Any


def check_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The notebook's parameters and their values, in the order of their declaration.

    ``namespace`` is the kernel's ``globals()``, whose ``In`` holds the source of every cell run so
    far. The last run of the declaring cell counts, and after it the last cell that papermill added,
    so cells may be edited and run again. Works the same under jupyter lab, papermill and nbconvert.

    JupyterLab starts a kernel in the notebook's own folder: there, the working directory becomes
    the repository's root, from which all paths are named.

    Raises InputError for an added name that is not declared, a value that does not fit its
    annotation, an empty list in place of a default that has something in it, and a declaring cell
    that is absent or breaks the rules above.
    """
    if Path.cwd() == NOTEBOOKS and NOTEBOOKS.is_dir():
        os.chdir(NOTEBOOKS.parent)
    cells = [(source, _first_line(source)) for source in namespace.get("In", [])]
    declarations = [number for number, (_, first) in enumerate(cells) if first == DECLARED]
    if not declarations:
        raise InputError(
            f"no parameters cell has run: run the cell that begins with {DECLARED!r} in a Jupyter "
            "kernel, before this one"
        )
    declared = _declared(cells[declarations[-1]][0], "the parameters cell")
    values = {name: namespace[name] for name in declared if name in namespace}
    injections = [source for source, first in cells[declarations[-1] :] if first == INJECTED]
    if injections:
        values |= {name: namespace.get(name) for name in _assigned(injections[-1])}
    check_values(values, declared)
    return values


def declared_parameters(notebook: str | os.PathLike[str]) -> dict[str, Parameter]:
    """What the notebook file declares, read without running any of it.

    Raises InputError when there is no such notebook, no single cell tagged ``parameters``, or a
    cell that breaks the rules at the top of this file.
    """
    # jsonschema, which nbformat imports, builds a grammar for IRIs as it is imported where this
    # package is installed: a second or more, for a format that no notebook has. Until jsonschema
    # (4.26 does so) does it at the first use.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import nbformat  # here, since no kernel need wait for it

    path = Path(notebook)
    try:
        cells = nbformat.read(path, as_version=4).cells
    except FileNotFoundError:
        raise InputError(f"{path}: no such notebook; correct the name") from None
    except (ValueError, AttributeError, nbformat.ValidationError):
        raise InputError(f"{path}: not a notebook; expected a Jupyter .ipynb file") from None
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise InputError(
            f"{path}: expected one cell with the tag 'parameters', found {len(tagged)}; "
            "tag the cell that declares the parameters, and only that"
        )
    if _first_line(tagged[0]) != DECLARED:
        raise InputError(f"{path}: the parameters cell must begin with the line {DECLARED!r}")
    return _declared(tagged[0], str(path))


def check_values(values: Mapping[str, Any], declared: Mapping[str, Parameter]) -> None:
    """Raise InputError for a name that is not declared or a value that does not fit its type."""
    for name, value in values.items():
        if name not in declared:
            raise InputError(unknown("parameter", name, declared))
        annotation = declared[name].annotation
        if problem := mismatch(value, annotation):
            raise InputError(f"parameter {name!r}: {problem}{_mend(value, annotation)}")
        if value == [] and declared[name].default:
            raise InputError(f"parameter {name!r}: the list is empty; name at least one")


def _mend(value: Any, annotation: Any) -> str:
    if mismatch(0.5, annotation) is None and isinstance(value, str):
        return "" if is_number(value) else "; write a number, such as 0.5, without quotes"
    if mismatch("", annotation) is None and isinstance(value, int | float):
        return "; quote it in YAML, or give it to papermill with -r instead of -p"
    if mismatch([], annotation) is None and isinstance(value, str):
        return "; write [a, b] in YAML, or give it to papermill with -y 'name: [a, b]'"
    if mismatch({}, annotation) is None and isinstance(value, str | list):
        return "; write {a: {}} in YAML, or give it to papermill with -y 'name: {a: {}}'"
    return ""


def _first_line(source: str) -> str:
    return source.strip().partition("\n")[0].rstrip()


def _statements(source: str, place: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"{place}: line {error.lineno}: not valid Python: {error.msg}") from None


def _assigned(source: str) -> list[str]:
    targets = [
        target
        for statement in _statements(source, "the cell of injected parameters")
        if isinstance(statement, ast.Assign)
        for target in statement.targets
    ]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _declared(source: str, place: str) -> dict[str, Parameter]:
    declared: dict[str, Parameter] = {}
    for statement in _statements(source, place):
        where = f"{place}: line {statement.lineno}"
        match statement:
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=node, value=ast.expr() as value
            ):
                pass
            case _:
                raise InputError(
                    f"{where}: expected `name: type = literal` and nothing else, "
                    f"got `{ast.unparse(statement).partition(chr(10))[0]}`"
                )
        try:
            default = ast.literal_eval(value)
        except ValueError:
            raise InputError(
                f"{where}: the default of {name!r} must be a literal, got `{ast.unparse(value)}`"
            ) from None
        parameter = Parameter(_annotation(node, where), default)
        if name in declared:
            raise InputError(f"{where}: parameter {name!r} is declared twice; keep one")
        if problem := mismatch(default, parameter.annotation):
            raise InputError(f"{where}: the default of {name!r} does not fit: {problem}")
        declared[name] = parameter
    return declared


_NAMED: dict[str, Any] = {each.__name__: each for each in (str, int, float, bool, list, dict)}


def _annotation(node: ast.expr, where: str) -> Any:
    """The annotation as an object, read and not evaluated: the file may not have run."""
    match node:
        case ast.Name(id=name) if name in _NAMED:
            return _NAMED[name]
        case ast.Constant(value=None):
            return None
        case ast.Subscript(value=ast.Name(id="list"), slice=inner):
            return list[_annotation(inner, where)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, inner])):
            return dict[_annotation(key, where), _annotation(inner, where)]  # type: ignore[misc]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _annotation(left, where) | _annotation(right, where)
    raise InputError(
        f"{where}: the type `{ast.unparse(node)}` is not one a parameter can have; expected str, "
        "int, float, bool, list[…] or dict[…, …] of these, or `… | None`"
    )
