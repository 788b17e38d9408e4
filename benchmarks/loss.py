"""Time, memory and error of the R2D loss against the losses it competes with.

    python benchmarks/loss.py                    # the grid for this machine, table and JSON
    python benchmarks/loss.py --quick --out x.json  # small sizes: does everything run?

The losses it is held against: pip install -c constraints.txt -e ".[bench]"; on a GPU, besides,
cut-cross-entropy and quack-kernels.

Each contender computes the loss and its gradients from the same hidden states [N, H], output
matrix [V, H] and targets, in one process, round after round, each round in another order, so that a
busy machine slows all of them alike; a time is the median over rounds (on a GPU, of two calls a
round after one that is not counted), and what counts is its ratio to the bare matrix products of
all rows (three; two where the matrix is frozen). Memory is the peak of what the call allocates, and
scratch what of it is not the gradients that are asked for. Errors are those of the gradients
against float64, relative to their norm.

The R2D losses (ours, the authors', naive) compute cross-entropy and pivot contrast; the others know
of no pivots and compute cross-entropy alone, which is less.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import bootstrap
from torch import Tensor
from tqdm import tqdm

from r2d_core.kernels import fused, read_pivots
from r2d_core.losses import r2d_loss
from r2d_core.pivots import PivotIds
from r2d_core.provenance import provenance
from r2d_core.records import write_json_atomic

PIVOTS = PivotIds(safe=5, unsafe=6, rethink=7, think_open=8, think_close=9)
READ = (PIVOTS.safe, PIVOTS.unsafe, PIVOTS.rethink)
ROWS = torch.arange(5, 13)  # the eight new tokens
RESULTS = Path(__file__).parent / "results"
WARM_S = 0.03  # of calls before those that are timed, on a GPU


@dataclass(frozen=True)
class Case:
    """One problem. ``ignored`` is a share of the targets; mode says what of the weight is trained:
    "full" all rows, "rows" the eight new ones, "none" nothing.
    """

    n: int
    h: int
    v: int
    dtype: str = "float32"
    ignored: float = 0.0
    mode: str = "full"

    def inputs(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states and weight scaled so that logits have a spread of about 3; one target in
        32 is a pivot.
        """
        generator = torch.Generator(device).manual_seed(0)
        draw = partial(torch.randn, generator=generator, device=device)
        hidden = draw(self.n, self.h)
        weight = draw(self.v, self.h) * (3 / self.h**0.5)
        targets = torch.randint(self.v, (self.n,), generator=generator, device=device)
        for place, pivot in enumerate((PIVOTS.safe, PIVOTS.unsafe, PIVOTS.safe, PIVOTS.rethink)):
            targets[32 * place :: 128] = pivot
        # Every other token, not a block: what a prompt leaves is scattered over a batch.
        ignored = torch.rand(self.n, generator=generator, device=device) < self.ignored
        targets[ignored] = -100
        dtype = getattr(torch, self.dtype)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        return hidden.requires_grad_(), weight.requires_grad_(self.mode != "none"), targets


Loss = Callable[[Tensor, Tensor, Tensor, str], Tensor]


def ours(
    impl: str,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    mode: str,
    pivots: PivotIds | None = PIVOTS,
) -> Tensor:
    trained: dict[str, Any] = {"weight_grad": mode}
    if mode == "rows":
        # A slice: ids on the CPU would have to be copied first, which waits for the device.
        values = weight.detach()[int(ROWS[0]) : int(ROWS[-1]) + 1].clone().requires_grad_()
        trained |= {"rows": ROWS, "row_values": values}
        weight = weight.detach()
    return r2d_loss(hidden, weight, targets, pivots, impl=impl, **trained).total  # type: ignore[arg-type]


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, mode: str) -> Tensor:
    """The definition in five lines, logits in float32 from the start of the loss on."""
    logits = F.linear(hidden, weight).float()
    total = F.cross_entropy(logits, targets)
    for own, opposite in ((PIVOTS.safe, PIVOTS.unsafe), (PIVOTS.unsafe, PIVOTS.safe)):
        margin = (logits[:, own] - logits[:, opposite])[targets == own]
        if len(margin):
            total = total - F.logsigmoid(margin).mean()
    return total


def authors(hidden: Tensor, weight: Tensor, targets: Tensor, mode: str) -> Tensor:
    """What the authors' training script does (commit 4ca859e): the whole batch's logits in float32,
    copied when they are shifted, and the pivots' picked out of the copy element by element.
    """
    logits = F.linear(torch.cat([hidden, hidden[-1:]])[None], weight).float()
    shifted = logits[:, :-1].contiguous().view(-1, logits.shape[-1])
    total = F.cross_entropy(shifted, targets, ignore_index=-100)
    for own, opposite in ((PIVOTS.safe, PIVOTS.unsafe), (PIVOTS.unsafe, PIVOTS.safe)):
        at = targets == own
        if at.any():
            total = total - F.logsigmoid(shifted[at, own] - shifted[at, opposite]).mean()
    return total


def torch_linear_cross_entropy(
    rows: int, hidden: Tensor, weight: Tensor, targets: Tensor, mode: str
) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    return F.linear_cross_entropy(hidden, weight, targets, options=options)


def trl(hidden: Tensor, weight: Tensor, targets: Tensor, mode: str) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    kept = targets != -100
    chunk = 8192  # columns of the vocabulary, TRL's own default
    log_probs = ChunkedLogProbFunction.apply(
        hidden[kept], weight, None, targets[kept], 1.0, chunk, None, 1.0, ()
    )[0]
    return -log_probs.mean()


def liger(hidden: Tensor, weight: Tensor, targets: Tensor, mode: str) -> Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Fused

    return Fused.apply(hidden, weight, targets)[0]


def cce(hidden: Tensor, weight: Tensor, targets: Tensor, mode: str) -> Tensor:
    from cut_cross_entropy import LinearCrossEntropyImpl, linear_cross_entropy

    # The release on PyPI (25.1.1) has no name yet for CCE without its filter of small gradients.
    if not hasattr(LinearCrossEntropyImpl, "CCE_EXACT"):
        return linear_cross_entropy(hidden, weight, targets, filter_eps=None)
    return linear_cross_entropy(hidden, weight, targets, impl="cce_exact")


def quack(hidden: Tensor, weight: Tensor, targets: Tensor, mode: str) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    # Where V is a multiple of 128 it has another way, which refuses chunks as long as hidden states
    # are wide (0.6.5). Its search for the fastest of its kernels had not ended for one shape in two
    # and a half minutes.
    rows = 2048 if weight.shape[0] % 128 == 0 else 4096
    return chunked_linear_cross_entropy(hidden, weight, targets, chunk_size=rows, tuned=False)


def take_linear_cross_entropy(folder: Path) -> str:
    """Let this torch have the linear_cross_entropy of a later one; the version of that.

    ``folder`` is the torch of a later release, or of it: version.py, nn/functional.py and
    nn/modules/linear_cross_entropy*.py. The function is written in Python.
    """
    for name in ("linear_cross_entropy_options", "linear_cross_entropy"):
        place = folder / "nn" / "modules" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"torch.nn.modules.{name}", place)
        if spec is None or spec.loader is None or not place.is_file():
            raise SystemExit(f"error: --torch-source: expected {place}")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    options = sys.modules["torch.nn.modules.linear_cross_entropy_options"]
    torch.nn.LinearCrossEntropyOptions = options.LinearCrossEntropyOptions  # type: ignore[misc]
    tree = ast.parse((folder / "nn" / "functional.py").read_text(encoding="utf-8"))
    tree.body = [each for each in tree.body if getattr(each, "name", "") == "linear_cross_entropy"]
    vars(F).setdefault("dataclasses", dataclasses)
    exec(compile(tree, str(folder / "nn" / "functional.py"), "exec"), vars(F))
    version: dict[str, Any] = {}
    exec((folder / "version.py").read_text(encoding="utf-8"), version)
    return str(version["__version__"])


def contenders(device: str) -> tuple[dict[str, Loss], dict[str, str]]:
    """The losses that can run here, and of those that cannot, why."""
    losses: dict[str, Loss] = {
        "chunked": partial(ours, "chunked"),
        "reference": partial(ours, "reference"),
        "without contrast": partial(ours, "auto", pivots=None),
        "naive": naive,
        "authors": authors,
        **{
            f"torch ({rows} rows)": partial(torch_linear_cross_entropy, rows)
            for rows in ((256, 512) if device == "cpu" else (2048, 4096))
            if hasattr(F, "linear_cross_entropy")
        },
    }
    absent = {}
    if not hasattr(F, "linear_cross_entropy"):
        absent["torch"] = f"{torch.__version__} has no linear_cross_entropy"
    if device == "cuda":
        losses = {"triton": partial(ours, "triton"), **losses}
    else:
        absent["triton"] = "needs an NVIDIA GPU"
    for name, loss, package, gpu_only in (
        ("TRL", trl, "trl", False),
        ("Liger", liger, "liger_kernel", True),
        ("CCE", cce, "cut_cross_entropy", True),
        ("QuACK", quack, "quack", True),
    ):
        if gpu_only and device == "cpu":
            absent[name] = "needs a GPU"
            continue
        try:
            importlib.import_module(package)
        except Exception as error:  # an optional peer may break in ways of its own
            absent[name] = f"does not import: {type(error).__name__}: {error}"
        else:
            losses[name] = loss
    return losses, absent


def products(hidden: Tensor, weight: Tensor, targets: Tensor, mode: str) -> None:
    """The floor: the matrix products of forward and backward pass, of all rows."""
    with torch.no_grad():
        logits = hidden @ weight.T
        logits @ weight
        if mode == "full":
            logits.T @ hidden


def backward(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor, mode: str) -> None:
    hidden.grad = weight.grad = None
    total = loss(hidden, weight, targets, mode)
    if total is not None:
        total.backward()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """Appends the peak of the bytes allocated inside the block to the list it yields."""
    peak: list[int] = []
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        torch.cuda.synchronize()
        peak.append(torch.cuda.max_memory_allocated() - before)
        return
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profiler:
        yield peak
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = highest = 0
    for _, change in changes:
        held += change
        highest = max(highest, held)
    peak.append(highest)


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds that a call takes, with all that it has the device do."""
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


def in_pairs(
    case: Case, name: str, over: str, losses: dict[str, Loss], device: str, pairs: int
) -> dict[str, Any]:
    """The time of one loss over that of another, pair by pair.

    A pair is one, other, other, one, one after the other, so that a clock that drifts slows both
    alike; the median of the pairs' ratios, and its 95% bootstrap interval. A hundredth cannot be
    told from chance by medians of a few calls that others came between.
    """
    inputs = case.inputs(device)
    one, other = (partial(backward, losses[each], *inputs, case.mode) for each in (name, over))
    begin = time.perf_counter()
    while time.perf_counter() - begin < 10 * WARM_S:
        one(), other()
    ratios = []
    for _ in tqdm(range(pairs), desc=f"{name} over {over}", unit="pair"):
        first, second, third, fourth = (timed(call, device) for call in (one, other, other, one))
        ratios.append((first + fourth) / (second + third))
    interval = bootstrap(
        (ratios,), statistics.median, vectorized=False, method="percentile", rng=0
    ).confidence_interval
    return {
        **asdict(case),
        "loss": name,
        "over": over,
        "pairs": pairs,
        "ratio": statistics.median(ratios),
        "interval": [float(interval.low), float(interval.high)],
    }


def measure(case: Case, losses: dict[str, Loss], device: str, rounds: int) -> list[dict[str, Any]]:
    """One row a contender: median seconds, its ratios, peak bytes."""
    inputs = case.inputs(device)
    running: dict[str, Loss] = {"products": products} | losses  # type: ignore[dict-item]
    failed: dict[str, str] = {}
    memory: dict[str, int] = {}
    outputs: dict[str, int] = {}
    for name, loss in list(running.items()):
        try:
            backward(loss, *inputs, case.mode)
            inputs[0].grad = inputs[1].grad = None  # or their going would hide as much
            with peak_memory(device) as peak:
                backward(loss, *inputs, case.mode)
            memory[name] = peak[0]
            outputs[name] = sum(x.grad.nbytes for x in inputs[:2] if x.grad is not None)
        except Exception as error:  # a peer that cannot do this case is a result, too
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            del running[name]
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for number in range(rounds):
        # In another order each round and case: none always follows the same one.
        for name in random.Random(f"{case} {number}").sample(list(running), len(running)):
            call = partial(backward, running[name], *inputs, case.mode)
            # A GPU lowers its clock under matrix products, for longer than one call: each of its
            # contenders begins with calls of its own, so that none pays for the one before it.
            if device == "cuda":
                begin = time.perf_counter()
                while time.perf_counter() - begin < WARM_S:
                    timed(call, device)
            seconds[name] += [timed(call, device) for _ in range(1 if device == "cpu" else 2)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name in ("products", *losses):
        row: dict[str, Any] = {**asdict(case), "loss": name}
        if name in failed:
            rows.append(row | {"failed": failed[name]})
            continue
        rows.append(
            row
            | {
                "seconds": medians[name],
                "spread": [min(seconds[name]), max(seconds[name])],
                "to_products": medians[name] / medians["products"],
                "to_authors": medians[name] / medians["authors"] if "authors" in medians else None,
                "bytes": memory[name],
                "scratch_bytes": memory[name] - outputs[name],
                "bytes_to_authors": memory[name] / memory["authors"]
                if "authors" in memory
                else None,
            }
        )
    return rows


def naive_reading(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What `read_pivots` says it equals, with all logits in float32."""
    log_p = F.linear(hidden, weight).float().log_softmax(dim=1)
    return log_p[:, READ], -(log_p.exp() * log_p).sum(dim=1)


def reading(case: Case, device: str, rounds: int) -> list[dict[str, Any]]:
    """`read_pivots` and the naive code: median seconds, peak bytes, the largest difference between
    their log-probabilities.
    """
    hidden, weight, _ = (x.detach() for x in case.inputs(device))
    ways: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "read_pivots": partial(read_pivots, pivots=READ),
        "naive": naive_reading,
    }
    found, memory = {}, {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in ways.items():
        found[name] = way(hidden, weight)[0]
        with peak_memory(device) as peak:
            way(hidden, weight)
        memory[name] = peak[0]
    for _ in range(rounds):
        for name, way in ways.items():
            synchronize(device)
            begin = time.perf_counter()
            way(hidden, weight)
            synchronize(device)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            **asdict(case),
            "way": name,
            "seconds": medians[name],
            "spread": [min(seconds[name]), max(seconds[name])],
            "to_naive": medians[name] / medians["naive"],
            "bytes": memory[name],
            "difference": float((found[name] - found["naive"]).abs().max()),
        }
        for name in ways
    ]


def errors(case: Case, losses: dict[str, Loss], device: str) -> list[dict[str, Any]]:
    """Relative error of the gradients of hidden states and weight, against float64.

    Of the losses that know no pivots, against cross-entropy alone.
    """
    inputs = case.inputs(device)
    knows_pivots = ("triton", "chunked", "reference", "naive", "authors")
    rows = []
    exact: dict[bool, list[Tensor]] = {}
    for name, loss in losses.items():
        contrast = name in knows_pivots
        if contrast not in exact:
            doubles = [x.detach().double().requires_grad_() for x in inputs[:2]]
            total = r2d_loss(*doubles, inputs[2], PIVOTS if contrast else None, impl="reference")
            total.total.backward()
            exact[contrast] = [x.grad for x in doubles]  # type: ignore[misc]
        try:
            backward(loss, *inputs, "full")
        except Exception as error:
            rows.append({**asdict(case), "loss": name, "failed": str(error).splitlines()[0]})
            continue
        found = [
            float((x.grad.double() - true).norm() / true.norm())  # type: ignore[union-attr]
            for x, true in zip(inputs[:2], exact[contrast], strict=True)
        ]
        rows.append({**asdict(case), "loss": name, "hidden": found[0], "weight": found[1]})
    return rows


def grid(device: str, quick: bool) -> list[Case]:
    """The case of the bars first, then one thing changed at a time."""
    if quick:
        bar = Case(n=128, h=64, v=1000)
        return [bar, replace(bar, ignored=0.5), replace(bar, mode="rows")]
    if device == "cpu":
        bar, lengths, vocabularies = Case(2048, 256, 32000), (512, 1024), (8000, 64000)
    else:
        bar = Case(8192, 4096, 128264, "bfloat16")
        lengths, vocabularies = (2048, 4096, 16384), (32000, 64000, 256000)
    return [
        bar,
        replace(bar, ignored=0.5),
        replace(bar, ignored=0.9),
        replace(bar, mode="rows"),
        replace(bar, mode="none"),
        *(replace(bar, n=n) for n in lengths),
        *(replace(bar, v=v) for v in vocabularies),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--pairs",
        type=int,
        default=40,
        help="of calls, for the pivot term's cost; a third as many of each case beside QuACK",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/…")
    parser.add_argument(
        "--torch-source",
        type=Path,
        help="folder torch of a later release, for linear_cross_entropy where this one has none",
    )
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error("--pairs: expected 2 or more; one has no interval")
    if arguments.quick and arguments.out is None:
        parser.error("--quick: expected --out besides; its numbers are none to publish")
    device, started = arguments.device, datetime.now(UTC)
    peers: dict[str, str | None] = {}
    if arguments.torch_source and not hasattr(F, "linear_cross_entropy"):
        peers["torch's linear_cross_entropy"] = take_linear_cross_entropy(arguments.torch_source)
    losses, absent = contenders(device)

    small = Case(n=512, h=256, v=4096)
    rows, wrong = [], []
    for dtype in ("float32", "bfloat16"):
        wrong += errors(replace(small, dtype=dtype, ignored=0.3), losses, device)
    for case in tqdm(grid(device, arguments.quick), desc="loss", unit="case"):
        rows += measure(case, losses, device, arguments.rounds)
    paired = partial(in_pairs, over="without contrast", losses=losses, device=device)
    own = "triton" if "triton" in losses else "chunked"
    contrast = paired(grid(device, arguments.quick)[0], own, pairs=arguments.pairs)
    # The one peer that is as fast as ours, but for hundredths, in the cases that it can do.
    able = [row for row in rows if row["loss"] == "QuACK" and "failed" not in row]
    beside = [
        paired(case, "QuACK", pairs=max(2, arguments.pairs // 3))
        for case in grid(device, arguments.quick)
        if any(asdict(case).items() <= row.items() for row in able)
    ]
    read = reading(grid(device, arguments.quick)[0], device, arguments.rounds)

    for name in ("trl", "liger-kernel", "cut-cross-entropy", "quack-kernels"):
        try:
            peers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            peers[name] = None
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    settings = {"device": where, "rounds": arguments.rounds, "quick": arguments.quick}
    settings["pairs"] = arguments.pairs
    settings["chunk_bytes"] = fused.CPU_CHUNK_BYTES if device == "cpu" else fused.GPU_CHUNK_BYTES
    out = arguments.out or RESULTS / f"loss-{where.replace(' ', '-').lower()}.json"
    write_json_atomic(
        out,
        {
            "rows": rows,
            "errors": wrong,
            "reading": read,
            "pivot_term": contrast,
            "beside_quack": beside,
            "absent": absent,
            "peers": peers,
            "provenance": provenance(settings, [0], started),
        },
    )
    pd.set_option("display.width", 160, "display.max_rows", None)
    table = pd.DataFrame(rows).drop(columns=["spread"])
    print(table.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
    print(pd.DataFrame([contrast, *beside]).to_string(index=False))
    print(pd.DataFrame(read).drop(columns=["spread"]).to_string(index=False))
    print(pd.DataFrame(wrong).to_string(index=False, float_format=lambda x: f"{x:.2e}"))
    for name, why in absent.items():
        print(f"{name}: not run, {why}")
    print(out)


if __name__ == "__main__":
    main()
