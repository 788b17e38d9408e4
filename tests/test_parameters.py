from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell, new_notebook

from r2d_core.errors import InputError
from r2d_core.parameters import (
    DECLARED,
    NOTEBOOKS,
    Parameter,
    check_parameters,
    declared_parameters,
)

DECLARATION = """# Parameters of this notebook
seed: int = 0
rate: float = 0.5  # per step
name: str = "a"
attacks: list[str] = ["direct"]
quick: bool = False
limit: int | None = None"""
CHECK = "from r2d_core.parameters import check_parameters\nparameters = check_parameters(globals())"
DEFAULTS = {
    "seed": 0,
    "rate": 0.5,
    "name": "a",
    "attacks": ["direct"],
    "quick": False,
    "limit": None,
}


@pytest.fixture
def shell() -> InteractiveShell:
    """A real IPython session without a process of its own: what is interactive is tested in it."""
    return InteractiveShell()


def run(shell: InteractiveShell, *sources: str) -> dict[str, Any]:
    for source in sources:
        shell.run_cell(source, store_history=True).raise_error()
    return check_parameters(shell.user_ns)


def save(path: Path, *sources: str, tagged: int = 1) -> Path:
    cells = [new_code_cell(source) for source in sources]
    for cell in cells[:tagged]:
        cell.metadata["tags"] = ["parameters"]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    return path


def test_values_come_back_in_order(shell: InteractiveShell) -> None:
    assert list(run(shell, "1 + 1", DECLARATION).items()) == list(DEFAULTS.items())


def test_a_value_changed_by_hand_is_seen_and_checked(shell: InteractiveShell) -> None:
    assert run(shell, DECLARATION, "seed = 7")["seed"] == 7
    with pytest.raises(InputError, match="parameter 'seed': expected int, got 'seven'"):
        run(shell, "seed = 'seven'")


def test_cells_may_be_edited_and_run_again(shell: InteractiveShell) -> None:
    with pytest.raises(InputError, match="unknown parameter 'sede', did you mean 'seed'"):
        run(shell, DECLARATION, "# Parameters\nsede = 3")
    # Mended in place: the refused cell of before is history.
    assert run(shell, "# Parameters\nseed = 3")["seed"] == 3
    # The declaration run again brings its defaults back, and may declare anew.
    assert run(shell, DECLARATION)["seed"] == 0
    assert run(shell, "# Parameters of this notebook\nsede: int = 4") == {"sede": 4}


def test_a_cell_that_did_not_parse_is_told(shell: InteractiveShell) -> None:
    shell.run_cell("# Parameters of this notebook\nseed: int = ", store_history=True)
    with pytest.raises(InputError, match="the parameters cell: line 2: not valid Python"):
        check_parameters(shell.user_ns)
    run(shell, DECLARATION)
    shell.run_cell("# Parameters\nseed = ", store_history=True)
    with pytest.raises(InputError, match="injected parameters: line 2: not valid Python"):
        check_parameters(shell.user_ns)


def test_no_declaration(shell: InteractiveShell) -> None:
    with pytest.raises(InputError, match="no parameters cell has run"):
        run(shell, "seed: int = 0")
    with pytest.raises(InputError, match="no parameters cell has run"):
        check_parameters({"seed": 0})


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("seed = True", "'seed': expected int, got True (bool)"),
        ("seed = 1.0", "'seed': expected int, got 1.0 (float)"),
        ("quick = 1", "'quick': expected bool, got 1 (int)"),
        (
            "rate = '7e-4'",
            "'rate': expected float, got '7e-4' (str); write 0.0007, without quotes: YAML's",
        ),
        ("rate = '2e9'", "write 2000000000.0, without quotes"),
        ("rate = '1e-5'", "write 1.0e-05, without quotes"),
        ("rate = 'fast'", "got 'fast' (str); write a number, such as 0.5"),
        ("name = 7", "'name': expected str, got 7 (int); quote it in YAML, or give it to papermil"),
        ("attacks = 'direct'", "expected list[str], got 'direct' (str); write [a, b] in YAML"),
        ("attacks = ['direct', 1]", "'attacks': expected list[str], got ['direct', 1] (list)"),
        ("limit = 'no'", "'limit': expected int | None, got 'no' (str)"),
    ],
)
def test_wrong_types(shell: InteractiveShell, assignment: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        run(shell, DECLARATION, f"# Parameters\n{assignment}")
    assert said in str(caught.value)


def test_values_that_fit(shell: InteractiveShell) -> None:
    values = run(
        shell, DECLARATION, "# Parameters\nrate = 1\nname = '007'\nlimit = 3\nattacks = ['direct']"
    )
    assert values == DEFAULTS | {"rate": 1, "name": "007", "limit": 3, "attacks": ["direct"]}


def test_declared_parameters_of_a_file(tmp_path: Path) -> None:
    declared = declared_parameters(save(tmp_path / "n.ipynb", DECLARATION, CHECK))
    assert {name: each.default for name, each in declared.items()} == DEFAULTS
    assert declared["attacks"] == Parameter(list[str], ["direct"])
    assert declared["limit"].annotation == int | None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seed = 0", "line 2: expected `name: type = literal` and nothing else, got `seed = 0`"),
        ("seed: int", "expected `name: type = literal`"),
        ("import os", "got `import os`"),
        ("for a in b:\n    c", "got `for a in b:`"),
        ("seed: int = len('a')", "the default of 'seed' must be a literal, got `len('a')`"),
        ("seed: int = 'a'", "the default of 'seed' does not fit: expected int, got 'a'"),
        ("seed: complex = 1", "the type `complex` is not one a parameter can have"),
        ("seed: os.PathLike = 1", "the type `os.PathLike`"),
        ("seed: int = 0\nseed: int = 1", "line 3: parameter 'seed' is declared twice"),
        ("seed: int = (", "not valid Python"),
    ],
)
def test_a_declaration_against_the_rules(tmp_path: Path, line: str, said: str) -> None:
    path = save(tmp_path / "n.ipynb", f"# Parameters of this notebook\n{line}")
    with pytest.raises(InputError) as caught:
        declared_parameters(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_declare_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such notebook"):
        declared_parameters(tmp_path / "absent.ipynb")
    for tagged, found in ((0, "found 0"), (2, "found 2")):
        path = save(tmp_path / "n.ipynb", DECLARATION, DECLARATION, tagged=tagged)
        with pytest.raises(InputError, match=f"one cell with the tag 'parameters', {found}"):
            declared_parameters(path)
    with pytest.raises(InputError, match="must begin with the line '# Parameters of this notebook"):
        declared_parameters(save(tmp_path / "n.ipynb", "seed: int = 0"))
    for junk in ("# a script", "[]", "{}", "\xff"):
        (tmp_path / "junk.ipynb").write_bytes(junk.encode("latin-1"))
        with pytest.raises(InputError, match=r"junk.ipynb: not a notebook"):
            declared_parameters(tmp_path / "junk.ipynb")


def in_kernel(*command: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )


def test_papermill_refuses_a_misspelt_parameter_in_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "n.ipynb", DECLARATION, CHECK)
    done = in_kernel("papermill", str(path), str(tmp_path / "o.ipynb"), "-p", "sede", "3")
    assert done.returncode != 0
    output = nbformat.read(tmp_path / "o.ipynb", as_version=4)
    errors = [o for cell in output.cells for o in cell.get("outputs", []) if o.get("traceback")]
    assert [error.traceback for error in errors] == [
        [
            "InputError: unknown parameter 'sede', did you mean 'seed'? "
            "known: seed, rate, name, attacks, quick, limit"
        ]
    ]


def test_papermill_gives_values_their_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    shown = "print(parameters == {'seed': 3, 'rate': 1, 'name': '007', 'attacks': ['a', 'b'], "
    path = save(tmp_path / "n.ipynb", DECLARATION, CHECK, shown + "'quick': True, 'limit': None})")
    given = {"seed": 3, "rate": 1, "name": "007", "attacks": ["a", "b"], "quick": True}
    done = papermill.execute_notebook(
        path, tmp_path / "o.ipynb", parameters=given | {"limit": None}, progress_bar=False
    )
    assert done.cells[-1].outputs[0].text == "True\n"


def test_nbconvert_runs_with_the_defaults(tmp_path: Path) -> None:
    path = save(tmp_path / "n.ipynb", DECLARATION, CHECK, "print(parameters)")
    done = in_kernel("nbconvert", "--execute", "--to", "notebook", "--inplace", str(path))
    assert done.returncode == 0, done.stderr
    assert nbformat.read(path, as_version=4).cells[-1].outputs[0].text == f"{DEFAULTS}\n"


def test_from_the_notebooks_own_folder_paths_are_the_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where JupyterLab starts a kernel; from anywhere else the directory stays as it is."""
    cell = f"{DECLARED}\nseed: int = 0"
    monkeypatch.chdir(NOTEBOOKS)
    check_parameters({"In": ["", cell], "seed": 0})
    assert Path.cwd() == NOTEBOOKS.parent
    monkeypatch.chdir(NOTEBOOKS.parent / "book")
    check_parameters({"In": ["", cell], "seed": 0})
    assert Path.cwd() == NOTEBOOKS.parent / "book"


def test_an_empty_list_is_refused_where_the_default_has_something() -> None:
    cell = f"{DECLARED}\nseeds: list[int] = [0]\nfiles: list[str] = []"
    check_parameters({"In": ["", cell], "seeds": [1], "files": []})
    with pytest.raises(InputError, match="parameter 'seeds': the list is empty; name at least one"):
        check_parameters({"In": ["", cell], "seeds": [], "files": []})
