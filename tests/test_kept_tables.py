"""Tables that notebooks show instead of computing: were they made as the notebook says?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2d_core.parameters import declared_parameters

ROOT = Path(__file__).resolve().parents[1]
WHERE = {"recompute", "tables_dir", "checkpoint", "output_dir"}
"""Parameters that say what is read and written, and change no number."""


@pytest.mark.parametrize(
    ("notebook", "record"),
    [("11_authors_recipe", "paper_provenance"), ("12_beyond_the_paper", "beyond_provenance")],
)
def test_kept_tables_were_made_with_the_defaults_of_their_notebook(notebook: str, record: str):
    made = json.loads((ROOT / "book" / "recipes" / f"{record}.json").read_text())
    declared = declared_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")
    defaults = {name: each.default for name, each in declared.items() if name not in WHERE}
    assert {name: made["parameters"][name] for name in defaults} == defaults
    assert made["dirty"] is False
