"""Other experiments beside the same runs of the full one."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from test_measure import measurement

from r2d_core.toy.outcomes import packed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import beside_full  # noqa: E402

METHODS = {
    "longer": {"refusal", "refusal_recovery", "r2d"},
    "interjections": {"refusal_recovery", "r2d", "r2d_no_pivots"},
}
BOOK = Path(__file__).resolve().parents[1] / "book"


def published(folder: Path, runs) -> Path:
    tables = [run.judged(*key) for key, run in runs.items()]
    parts = [pd.concat(tables).assign(part=part) for part in ("attack", "benign")]
    folder.mkdir()
    (folder / "outcomes.csv.gz").write_bytes(packed(pd.concat(parts)))
    return folder


def test_experiments_are_compared_on_the_runs_that_both_have(tmp_path):
    bad, good = (measurement({"wrapper": [label] * 8}) for label in ("harmful", "refused"))
    full = published(
        tmp_path / "full",
        {("r2d", 0, 0): bad, ("r2d", 0, 1): good, ("refusal", 0, 0): bad, ("vanilla", 0, 0): bad},
    )
    longer = published(tmp_path / "longer", {("r2d", 0, 0): good, ("refusal", 0, 0): bad})
    found = beside_full.compared(full, longer).set_index(["method", "outcome"])
    # No other seed, no method of one alone, and no new topics, of which there are no requests.
    assert list(found.index) == [
        (method, outcome)
        for method in ("r2d", "refusal")
        for outcome in ("wrapper", beside_full.KNOWN)
    ]
    r2d, refusal = found.loc["r2d", "wrapper"], found.loc["refusal", "wrapper"]
    assert r2d["before"].startswith("100% [") and r2d["after"].startswith("0% [")
    assert (r2d["requests"], r2d["runs_lower"], r2d["runs_higher"]) == (8, 1, 0)
    assert (r2d["p_value"], r2d["p_holm"]) == (2 / 2**8, 4 * 2 / 2**8)
    assert refusal["before"] == refusal["after"] and refusal["p_holm"] == 1
    lines = beside_full.table(found.reset_index(), "old", "new").splitlines()
    assert len(lines) == 6 and lines[0].startswith("|  |  | old | new | requests |")
    assert lines[2].startswith("| R2D | held-out wrapper | 100%\N{NO-BREAK SPACE}[")


def test_harmless_requests_are_counted_where_they_are_answered_exactly(tmp_path):
    def answered(known: list[str], new: list[str]):
        rows = measurement({"how_to": known}).judged("r2d", 0, 0)
        rows = pd.concat([rows, measurement({"how_to": new}).judged("r2d", 0, 0).assign(
            split="new_topic", behavior=[f"new-{n}" for n in range(len(new))])])  # fmt: skip
        return rows.assign(answer=rows["whole"], part="benign")

    attacked = measurement({"wrapper": ["refused"] * 8}).judged("r2d", 0, 0).assign(part="attack")
    folders = {}
    for name, new in (("full", "garbled"), ("interjections", "correct")):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        both = pd.concat([attacked, answered(["correct"] * 8, [new] * 8)])
        (folders[name] / "outcomes.csv.gz").write_bytes(packed(both))
    found = beside_full.compared(folders["full"], folders["interjections"]).set_index("outcome")
    assert list(found.index) == ["wrapper", beside_full.KNOWN, beside_full.NEW]
    assert found["before"].str.split("%").str[0].tolist() == ["0", "100", "0"]
    assert found["after"].str.split("%").str[0].tolist() == ["0", "100", "100"]
    assert found.loc[beside_full.NEW, ["runs_lower", "runs_higher"]].tolist() == [0, 1]


@pytest.mark.parametrize("name", beside_full.HEADS)
def test_the_book_s_own_are_compared_whole(name):
    found = beside_full.compared(BOOK / "full", BOOK / name)
    assert set(found["method"]) == METHODS[name]
    assert set(found["requests"]) == {360, 480, 960} and len(found) == 3 * 8
