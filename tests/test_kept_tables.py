"""Tables that notebooks show instead of computing: were they made as the notebook says?"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
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


def test_the_page_on_the_method_has_the_gradients_that_were_measured():
    effects = pd.read_csv(ROOT / "book" / "recipes" / "effects_training.csv").set_index("defect")
    row = effects.loc["normalize"]
    assert row["what"] == "gradient of a step before clipping, 8 micro-batches"
    times, _, _ = row["theirs"].partition(" times as long")
    prose = " ".join((ROOT / "book" / "method.md").read_text().split())
    assert f"with 8 micro-batches gradients are up to 8 times too large before clipping ({times} " \
        "times in the toy;" in prose  # fmt: skip
