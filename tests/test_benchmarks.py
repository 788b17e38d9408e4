"""The benchmarks run, whatever this machine has; nothing here is timed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(script, out, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, str(BENCHMARKS / script), *arguments, "--out", str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(out.read_text())


def test_what_training_has_written_is_no_change_of_its_own_code(tmp_path, monkeypatch):
    """It writes after each model, into a file that may be git's."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    specification = importlib.util.spec_from_file_location("training", BENCHMARKS / "training.py")
    training = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "training", training)
    specification.loader.exec_module(training)
    out = tmp_path / "training.json"
    monkeypatch.setattr(training, "measure", lambda name, *_: [{"model": name}])
    monkeypatch.setattr(
        training, "provenance", lambda *_: {"commit": "1f", "dirty": out.exists(), "seconds": 2}
    )
    monkeypatch.setattr(sys, "argv", ["training.py", "--models", "tiny", "1B", "--out", str(out)])
    training.main()
    written = json.loads(out.read_text())
    assert written["rows"] == [{"model": "tiny"}, {"model": "1B"}]
    assert written["provenance"] == {"commit": "1f", "dirty": False, "seconds": 2}


def test_loss(tmp_path):
    """Where there is a GPU, also the compiled kernels' error and memory."""
    few = ("--rounds", "1", "--pairs", "4")
    found = run("loss.py", tmp_path / "loss.json", "--quick", *few)
    errors = {(row["dtype"], row["loss"]): row for row in found["errors"]}
    ours = [name for name in ("chunked", "triton") if ("float32", name) in errors]
    assert "chunked" in ours and ("triton" in ours) != ("triton" in found["absent"])
    for dtype in ("float32", "bfloat16"):
        for name in ours:
            for gradient in ("hidden", "weight"):
                plain = errors[dtype, "naive"][gradient]
                assert 0 < errors[dtype, name][gradient] <= 1.5 * plain
    rows = {(row["mode"], row["ignored"], row["loss"]): row for row in found["rows"]}
    for case in (("full", 0.0), ("full", 0.5), ("rows", 0.0)):
        for name in ("products", "naive", "authors", *ours):
            assert rows[*case, name]["seconds"] > 0 and "failed" not in rows[*case, name]
            assert rows[*case, name]["bytes"] >= rows[*case, name]["scratch_bytes"] > 0
        gradients = 4 * 64 * (128 + (1000 if case[0] == "full" else 0))
        plain = rows[*case, "naive"]
        assert plain["bytes"] - plain["scratch_bytes"] >= gradients
    assert rows["full", 0.5, "chunked"]["bytes"] < rows["full", 0.0, "authors"]["bytes"] / 2
    term = found["pivot_term"]
    assert (term["pairs"], term["n"]) == (4, 128)
    assert 0 < term["interval"][0] <= term["ratio"] <= term["interval"][1]
    read, plain = found["reading"]
    assert (read["way"], plain["way"]) == ("read_pivots", "naive")
    assert read["difference"] < 1e-4 and read["seconds"] > 0 and read["bytes"] < plain["bytes"]


def test_training(tmp_path):
    few = ("--models", "tiny", "--window", "3", "--batch-size", "2", "--rounds", "1")
    found = run("training.py", tmp_path / "training.json", *few)["rows"]
    ours, whole, *theirs = found
    assert [row["way"] for row in found] == ["ours", "whole", "authors", "kept"]
    assert whole["first_loss"] == pytest.approx(ours["first_loss"], rel=1e-4)
    assert whole["last_loss"] == pytest.approx(theirs[0]["last_loss"], rel=1e-2)
    for row in theirs:
        assert abs(row["first_loss"] - ours["first_loss"]) < 1e-4 * ours["first_loss"]
        assert row["flops"] > ours["flops"] and row["step_peak_mib"] > ours["step_peak_mib"] > 0
    for row in found:
        assert row["steps"] == 3 and 0 < row["last_loss"] < row["first_loss"]


def test_planning(tmp_path):
    (row,) = run("planning.py", tmp_path / "planning.json", "--cases", "tiny", "--steps", "2")[
        "rows"
    ]
    assert 4096 * 128 * 2 * 2 < row["allocated_bytes"] < row["planned_bytes"]
    assert row["seconds_a_step"] > 0 and 0 < row["utilisation"] < 1
    command = [sys.executable, str(BENCHMARKS / "planning.py"), "--device", "cpu"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "--out: expected on a CPU" in refused.stderr


def test_attacks(tmp_path):
    if importlib.util.find_spec("nanogcg") is None:
        pytest.skip("nanogcg is not installed (pip install --no-deps nanogcg==0.3.0)")
    few = ("--models", "toy", "--behaviors", "2", "--steps", "2", "--candidates", "6",
           "--top-k", "8", "--device", "cpu")  # fmt: skip
    (found,) = run("attacks.py", tmp_path / "attacks.json", *few)["results"]
    assert found["settings"] == {"steps": 2, "candidates": 6, "top_k": 8}
    runs = {(row["side"], row["behavior"]): row for row in found["runs"]}
    behaviors = {row["behavior"] for row in found["runs"]}
    assert len(behaviors) == 2 and len(runs) == len(found["runs"]) == 4
    for side in ("ours", "nanogcg"):
        assert found["summary"][side]["runs"] == 2
        for behavior in behaviors:
            row = runs[side, behavior]
            assert 0 < row["candidates"] <= 2 * 6 and row["seconds"] > 0
            assert 0 < row["loss"] < 2 * math.log(found["vocabulary"])
            assert row["success"] in (True, False)
    assert found["speedup"]["least"] <= found["speedup"]["mean"] <= found["speedup"]["most"]


def test_quick_numbers_do_not_take_the_place_of_published_ones(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "loss.py"), "--quick"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "--quick: expected --out" in refused.stderr
