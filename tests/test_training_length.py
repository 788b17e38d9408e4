"""Training four times as long, beside the full experiment."""

import sys
from pathlib import Path

import pandas as pd
from test_measure import measurement

from r2d_core.toy.outcomes import packed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import training_length  # noqa: E402

BOOK = Path(__file__).resolve().parents[1] / "book"


def published(folder: Path, runs) -> Path:
    tables = [run.judged(*key) for key, run in runs.items()]
    parts = [pd.concat(tables).assign(part=part) for part in ("attack", "benign")]
    folder.mkdir()
    (folder / "outcomes.csv.gz").write_bytes(packed(pd.concat(parts)))
    return folder


def test_lengths_are_compared_on_the_runs_that_both_have(tmp_path):
    bad, good = (measurement({"wrapper": [label] * 8}) for label in ("harmful", "refused"))
    full = published(
        tmp_path / "full",
        {("r2d", 0, 0): bad, ("r2d", 0, 1): good, ("refusal", 0, 0): bad, ("vanilla", 0, 0): bad},
    )
    longer = published(tmp_path / "longer", {("r2d", 0, 0): good, ("refusal", 0, 0): bad})
    found = training_length.compared(full, longer).set_index("method")
    assert list(found.index) == ["r2d", "refusal"]  # no other seed, no method of one alone
    r2d, refusal = found.loc["r2d"], found.loc["refusal"]
    assert r2d["shorter"].startswith("100% [") and r2d["longer"].startswith("0% [")
    assert (r2d["requests"], r2d["runs_better"], r2d["runs_worse"]) == (8, 1, 0)
    assert (r2d["p_value"], r2d["p_holm"]) == (2 / 2**8, 4 / 2**8)
    assert refusal["shorter"] == refusal["longer"] and refusal["p_holm"] == 1
    lines = training_length.table(found.reset_index()).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| R2D | held-out wrapper | 100% [")


def test_the_book_s_own_are_compared_whole():
    found = training_length.compared(BOOK / "full", BOOK / "longer")
    assert set(found["method"]) == {"refusal", "refusal_recovery", "r2d"}
    assert (found["requests"] == 360).all() and len(found) == 18
