"""What the scripts in `benchmarks/` measured, read for the book: runs with their provenance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from r2d_core.errors import InputError
from r2d_core.records import read_json

FOLDER = Path("benchmarks/results")
AIMS = {
    "attacks": ("nanoGCG", 1.5),
    "generation": ("one prompt at a time", 5.0),
    "training": ("authors' script", 3.0),
}
"""Benchmark -> (peer, how many times as fast as the peer ours is to be)."""
PEERS = ("TRL", "Liger", "CCE", "QuACK")
"""Fused losses that the loss is to be at least as fast as, beside torch's own."""


def read_benchmarks(files: Sequence[str], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The runs of the benchmarks called ``names``: for each its JSON objects, by file name.

    Args:
        files: their paths; none: what is in `FOLDER`, which may be nothing.
        names: benchmarks, which the files' names begin with ("loss" for loss-cpu.json).

    Raises:
        InputError: a file of ``files`` is missing, of another benchmark, or not what one writes.
    """
    paths = map(Path, files) if files else FOLDER.glob("*.json")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for path in sorted(paths):
        name = path.stem.split("-")[0]
        if name in found:
            found[name].append(_run(path))
        elif files:
            raise InputError(
                f"{path}: expected a file of benchmarks/ whose name begins with "
                f"{' or '.join(f'{name}-' for name in names)}"
            )
    return found


def made_by(run: dict[str, Any]) -> str:
    """Date, hardware, torch and commit of a run, for a caption."""
    made = run["provenance"]
    return (
        f"{made['ended'][:10]}, {made['hardware']['cpu']}, {_gpus(made, 'no GPU')}, "
        f"torch {made['versions']['torch']}, commit {str(made['commit'])[:12]}"
    )


def speedups(measured: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """What `read_benchmarks` read, at a glance: a row a run and model, beside the aim."""
    rows = []
    for benchmark, (peer, aim) in AIMS.items():
        for run in measured[benchmark]:
            for model, ratio in _ratios(benchmark, run).items():
                rows.append(
                    {
                        "of": benchmark,
                        "against": peer,
                        "model": model,
                        "on": _gpus(run["provenance"], "CPU"),
                        "times as fast": ratio,
                        "aim": aim,
                        "reached": "yes" if ratio >= aim else "no",
                    }
                )
    return pd.DataFrame(rows)


def losses_drawn(run: dict[str, Any]) -> list[str]:
    """Of a run of ``benchmarks/loss.py`` the losses that a figure shows: no more than it can.

    The bare products and ours first; of torch's the one with the longer chunks.
    """
    gpu = bool(run["provenance"]["hardware"]["gpus"])
    own = ["products", "triton", "authors"] if gpu else ["products", "chunked", "naive", "authors"]
    drawn = [*own, f"torch ({4096 if gpu else 512} rows)", *PEERS]
    found = {row["loss"] for row in run["rows"]}
    return [name for name in drawn if name in found]


def loss_aims(run: dict[str, Any]) -> pd.DataFrame:
    """What a run of ``benchmarks/loss.py`` was to reach: columns what, aim, measured, reached.

    On a GPU, time over that of the bare matrix products, scratch memory and every peer, in the
    other cases the fastest of them over ours without the contrast, which none of them makes; on a
    CPU, time and memory over those of the authors' loss; on both, error over that of the naive loss
    in the same dtype. All but the other sizes are of the run's first case, or that with one thing
    changed; what it has not measured is nan and not reached.
    """
    gpu = bool(run["provenance"]["hardware"]["gpus"])
    rows = pd.DataFrame(run["rows"])
    first = rows.iloc[0]
    of_first = rows[(rows["n"] == first["n"]) & (rows["v"] == first["v"])]
    cells = {(row["loss"], row["mode"], row["ignored"]): row for row in of_first.to_dict("records")}
    ours = "triton" if gpu else "chunked"

    def of(column: str, mode: str = "full", ignored: float = 0.0, loss: str = ours) -> float:
        return cells.get((loss, mode, ignored), {}).get(column, math.nan)

    most: list[tuple[str, float, float]] = []
    least: list[tuple[str, float, float]] = []
    if gpu:
        term = "time with the pivot term, over that without"
        if pairs := run.get("pivot_term"):
            term += " ({:.3f} to {:.3f})".format(*pairs["interval"])
            over = pairs["ratio"]
        else:  # a run of before they were measured in pairs
            over = of("seconds") / of("seconds", loss="without contrast")
        most += [
            ("time, all gradients, over three products", 1.10, of("to_products")),
            ("time, only the new rows, over two products", 1.12, of("to_products", "rows")),
            ("time, matrix frozen, over two products", 1.12, of("to_products", "none")),
            ("time, half of the targets ignored, over three products of all", 0.55,
             of("to_products", ignored=0.5)),
            (term, 1.01, over),
            # Beyond the inputs and a float32 gradient of the matrix, whether one is made or not.
            ("memory beside a float32 gradient of the matrix, GiB", 1.1,
             (of("bytes") - 4 * first["v"] * first["h"]) / 2**30),
        ]  # fmt: skip
        rivals = [loss for loss, mode, ignored in cells if (mode, ignored) == ("full", 0.0)]
        least += [
            (f"time of {loss}, over ours", 1.0, of("seconds", loss=loss) / of("seconds"))
            for loss in rivals
            if _is_rival(loss)
        ]
        other_sizes = rows[~rows.index.isin(of_first.index)]
        for what, cases in (
            ("only the new rows", of_first[of_first["mode"] == "rows"]),
            ("matrix frozen", of_first[of_first["mode"] == "none"]),
            ("half of the targets ignored", of_first[of_first["ignored"] == 0.5]),
            ("any other size", other_sizes),
        ):
            ratio, name = _closest_rival(cases, run.get("beside_quack", []))
            least.append((f"time of the fastest other, {what}{name}, over ours", 1.0, ratio))
    else:
        most += [
            ("time, all gradients, of the authors'", 0.65, of("to_authors")),
            ("time, half of the targets ignored, of the authors'", 0.35,
             of("to_authors", ignored=0.5)),
            ("memory, all gradients, of the authors'", 0.25, of("bytes_to_authors")),
            ("memory, only the new rows, of the authors'", 0.08, of("bytes_to_authors", "rows")),
        ]  # fmt: skip
    errors = {(row["loss"], row["dtype"]): row for row in run["errors"] if "hidden" in row}
    for dtype in dict.fromkeys(dtype for _, dtype in errors):
        own, naive = errors.get((ours, dtype)), errors.get(("naive", dtype))
        for what, name in (("hidden", "hidden states"), ("weight", "matrix")):
            ratio = own[what] / naive[what] if own and naive else math.nan
            most.append((f"error, gradient of {name}, {dtype}, of the naive loss's", 1.5, ratio))
    table = [
        (what, f"≤\N{NO-BREAK SPACE}{aim:g}", found, found <= aim) for what, aim, found in most
    ]
    table += [
        (what, f"≥\N{NO-BREAK SPACE}{aim:g}", found, found >= aim) for what, aim, found in least
    ]
    frame = pd.DataFrame(table, columns=["what", "aim", "measured", "reached"])
    return frame.assign(reached=["yes" if each else "no" for each in frame["reached"]])


def _is_rival(loss: str) -> bool:
    return loss in PEERS or loss.startswith("torch")


def _closest_rival(cases: pd.DataFrame, paired: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """The least time of another fused loss over ours on the same work, and whose and where; nan
    and nobody's where there are none. Where they were ``paired``, by the pairs.
    """
    keys = ["n", "v", "mode", "ignored"]
    ours = cases[cases["loss"] == "without contrast"].set_index(keys)["seconds"]
    found = []
    for row in cases[cases["loss"].map(_is_rival)].to_dict("records"):
        case = tuple(row[key] for key in keys)
        ratio, interval = row["seconds"] / ours.get(case, math.nan), ""
        for pairs in paired:
            if row["loss"] == pairs["loss"] and case == tuple(pairs[key] for key in keys):
                ratio = pairs["ratio"]
                interval = " ({:.3f} to {:.3f})".format(*pairs["interval"])
        found.append((ratio, f", {row['loss']}, N={row['n']:,} V={row['v']:,}{interval}"))
    if not found or any(math.isnan(ratio) for ratio, _ in found):
        return math.nan, ""
    return min(found)


def plans(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The runs of ``benchmarks/planning.py``: a row a training, planned beside taken.

    Gigabytes (10**9) are those of one GPU; taken is what its driver gave as in use at the end,
    which the caching allocator never gives back. The share of the peak is the plan's operations
    over the time and those that the GPU can do in it.
    """
    rows = []
    for run in runs:
        for row in run["rows"]:
            taken = row.get("taken_bytes", row["allocated_bytes"])
            rows.append(
                {
                    "model": row["model"],
                    "trained": row["trained"],
                    "tokens": f"{row['batch_size']} × {row['length']:,}",
                    "kept": "no" if row["checkpointing"] else "yes",
                    "planned": row["planned_bytes"] / 1e9,
                    "taken": taken / 1e9,
                    "of peak": row["utilisation"],
                }
            )
    return pd.DataFrame(rows)


def _ratios(benchmark: str, run: dict[str, Any]) -> dict[str, float]:
    if benchmark == "attacks":
        return {result["model"]: result["speedup"]["mean"] for result in run["results"]}
    if benchmark == "generation":
        return {row["model"]: row["speedup"] for row in run["rows"]}
    return {row["model"]: row["times_authors"] for row in run["rows"] if row["way"] == "ours"}


def _gpus(made: dict[str, Any], none: str) -> str:
    return ", ".join(map(str, made["hardware"]["gpus"])) or none


def _run(path: Path) -> dict[str, Any]:
    run = read_json(path)
    if not isinstance(run.get("provenance"), dict):
        raise InputError(f"{path}: expected what a script of benchmarks/ writes, with provenance")
    return run
