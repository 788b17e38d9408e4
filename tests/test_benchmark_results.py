"""The book reads what the benchmarks wrote, and says what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2d_core.benchmarks import (
    AIMS,
    loss_aims,
    losses_drawn,
    made_by,
    plans,
    read_benchmarks,
    speedups,
)
from r2d_core.errors import InputError


def write(path: Path, **values: object) -> str:
    path.write_text(json.dumps({"provenance": {"commit": "c"}} | values))
    return str(path)


def test_runs_by_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_benchmarks([], ["loss", "training"]) == {"loss": [], "training": []}
    folder = Path("benchmarks/results")
    folder.mkdir(parents=True)
    files = [write(folder / name, rows=name) for name in ("loss-b.json", "loss-a.json", "x-c.json")]
    found = read_benchmarks([], ["loss", "training"])
    assert [run["rows"] for run in found["loss"]] == ["loss-a.json", "loss-b.json"]
    assert not found["training"]
    assert [run["rows"] for run in read_benchmarks(files[:1], ["loss"])["loss"]] == ["loss-b.json"]
    with pytest.raises(InputError, match=r"x-c\.json: expected a file .* begins with loss- or t-"):
        read_benchmarks(files, ["loss", "t"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read .No such file"),
        ("{", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ('{"rows": []}', "with provenance"),
        ('{"provenance": 3}', "with provenance"),
    ],
)
def test_what_is_none_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "loss-a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"loss-a\.json: .*{says}"):
        read_benchmarks([str(path)], ["loss"])


@pytest.mark.parametrize("name", ["attacks", "generation", "loss", "planning", "training"])
def test_those_of_the_project_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    for run in read_benchmarks([], [name])[name]:
        assert {"commit", "versions", "hardware", "parameters"} <= run["provenance"].keys()


def test_speedups_beside_the_aims() -> None:
    def run(gpus: list[str], **values: object) -> dict[str, object]:
        return {"provenance": {"hardware": {"gpus": gpus}}} | values

    ways = [("ours", 3.0), ("authors", 1.0)]
    training = [{"model": "m", "way": way, "times_authors": ratio} for way, ratio in ways]
    found = speedups(
        {
            "attacks": [run([], results=[{"model": "m", "speedup": {"mean": 1.4}}])],
            "generation": [],
            "training": [run(["H200"], rows=training)],
        }
    )
    shown = found[["of", "against", "on", "times as fast", "reached"]].to_numpy().tolist()
    assert shown == [
        ["attacks", "nanoGCG", "CPU", 1.4, "no"],
        ["training", "authors' script", "H200", 3.0, "yes"],
    ]


def test_the_plan_held_and_an_8b_model_fitted_80_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """As measured: what is planned is what is taken, or up to an eighth more."""
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    found = plans(read_benchmarks([], ["planning"])["planning"])
    assert (found["planned"] / found["taken"]).between(1, 1.125).all()
    long = found[(found["model"] == "Llama-3-8B") & found["tokens"].str.endswith("4,096")]
    assert len(long) >= 3 and (long["taken"] < 80).all()


def test_a_plan_without_a_gpu_is_held_against_what_was_allocated() -> None:
    row = {"model": "m", "trained": "t", "batch_size": 2, "length": 4096, "checkpointing": True,
           "planned_bytes": 3e9, "allocated_bytes": 2e9, "tokens_per_second": 5.0,
           "utilisation": 0.4}  # fmt: skip
    found = plans([{"rows": [row, row | {"taken_bytes": 2.5e9}]}])
    assert found["taken"].tolist() == [2.0, 2.5] and found["tokens"][0] == "2 × 4,096"


def test_the_projects_own_at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    measured = read_benchmarks([], list(AIMS))
    assert set(speedups(measured)["of"]) == set(AIMS)
    for run in (run for runs in measured.values() for run in runs):
        made = run["provenance"]
        assert made["commit"][:12] in made_by(run) and made["hardware"]["cpu"] in made_by(run)


def loss_run(gpus: list[str], ours: str, **measured: dict[tuple[str, float], float]) -> dict:
    """A run of two losses in four cases; ``measured``: column -> case -> the value of ours."""
    rows = []
    for case in (("full", 0.0), ("full", 0.5), ("rows", 0.0), ("none", 0.0)):
        for loss in (ours, "without contrast", "authors", "QuACK", "torch (4096 rows)"):
            row = {"n": 8, "h": 4, "v": 9, "mode": case[0], "ignored": case[1], "loss": loss}
            row |= {"seconds": 1.0, "to_products": 1.0, "to_authors": 0.3, "bytes": 2**29 + 144,
                    "bytes_to_authors": 0.05}  # fmt: skip
            if loss == ours:
                row |= {column: cases.get(case, row[column]) for column, cases in measured.items()}
            rows.append(row)
    rows += [{**row, "n": 16, "to_products": 9.0} for row in rows[:5]]  # another case: no bar
    errors = [
        {"loss": loss, "dtype": dtype, "hidden": error, "weight": 1e-7}
        for dtype in ("float32", "bfloat16")
        for loss, error in ((ours, 1.4e-7), ("naive", 1e-7))
    ]
    errors.append({"loss": "Liger", "dtype": "float32", "failed": "no kernel"})
    return {"rows": rows, "errors": errors, "provenance": {"hardware": {"gpus": gpus}}}


def test_the_aims_of_the_loss_on_a_cpu_and_on_a_gpu() -> None:
    half = {"to_authors": {("full", 0.5): 0.36}, "bytes_to_authors": {("rows", 0.0): 0.081}}
    found = loss_aims(loss_run([], "chunked", **half)).set_index("what")
    assert len(found) == 4 + 4
    missed = set(found.index[found["reached"] == "no"])
    assert missed == {"time, half of the targets ignored, of the authors'",
                      "memory, only the new rows, of the authors'"}  # fmt: skip
    slow = {
        "to_products": {("full", 0.0): 1.11, ("full", 0.5): 0.54},
        "seconds": {("full", 0): 1.02},
    }
    found = loss_aims(loss_run(["H200"], "triton", **slow)).set_index("what")
    assert len(found) == 6 + 2 + 4 + 4
    missed = set(found.index[found["reached"] == "no"])
    assert missed == {
        "time, all gradients, over three products",
        "time with the pivot term, over that without",
        "time of QuACK, over ours",
        "time of torch (4096 rows), over ours",
    }
    frozen = "time of the fastest other, matrix frozen, {}, over ours".format
    assert found.loc[frozen("QuACK, N=8 V=9"), "measured"] == 1
    memory = "memory beside a float32 gradient of the matrix, GiB"
    assert found.loc[memory, "measured"] == 0.5
    paired = loss_run(["H200"], "triton", **slow)
    paired["pivot_term"] = {"ratio": 1.002, "interval": [1.0013, 1.0041]}
    found = loss_aims(paired).set_index("what")
    term = "time with the pivot term, over that without (1.001 to 1.004)"
    assert found.loc[term, ["measured", "reached"]].tolist() == [1.002, "yes"]
    ahead = loss_run(["H200"], "triton", to_products={("full", 0.5): 0.54})
    for row in ahead["rows"]:
        if row["loss"] == "torch (4096 rows)" and (row["n"] == 16 or row["mode"] == "none"):
            row["seconds"] = 0.9
    found = loss_aims(ahead).set_index("what")
    assert set(found.index[found["reached"] == "no"]) == {
        frozen("torch (4096 rows), N=8 V=9"),
        "time of the fastest other, any other size, torch (4096 rows), N=16 V=9, over ours",
    }
    pairs = {"loss": "QuACK", "ratio": 0.98, "interval": [0.97, 0.991], "n": 8, "v": 9,
             "mode": "none", "ignored": 0.0}  # fmt: skip
    beside = loss_run(["H200"], "triton") | {"beside_quack": [pairs, pairs | {"mode": "full"}]}
    found = loss_aims(beside).set_index("what")
    closest = frozen("QuACK, N=8 V=9 (0.970 to 0.991)")
    assert found.loc[closest, ["measured", "reached"]].tolist() == [0.98, "no"]
    unmeasured = loss_run(["H200"], "another")
    unmeasured["rows"] = [row for row in unmeasured["rows"] if row["loss"] != "without contrast"]
    nothing = loss_aims(unmeasured)
    assert (nothing["reached"] == "no").all() and nothing["measured"].isna().all()


def test_the_project_s_own_loss_beside_its_aims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    for run in read_benchmarks([], ["loss"])["loss"]:
        assert loss_aims(run)["measured"].notna().all()
        drawn = losses_drawn(run)
        assert {"products", "authors", "TRL"} < set(drawn) and len(drawn) <= 8  # a figure's lines
        assert ("triton" in drawn) == bool(run["provenance"]["hardware"]["gpus"])
