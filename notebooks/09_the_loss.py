# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.0
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The loss, and what it costs
#
# Cross-entropy over a vocabulary of 128 thousand words needs, written naively, the logits of every
# token in float32: four gibibytes for 8192 tokens, and twice to three times that with copies and
# gradients. `r2d_loss` takes as many rows at a time as fit a byte budget, makes their logits with
# one matrix product and in the model's own dtype, turns them in place into their gradient,
# multiplies that into the gradients of hidden states and matrix, and forgets it. What remains is
# the time of the matrix products themselves: the *floor* in the figures below. On a GPU the budget
# is 1 GiB, and half of a float32 gradient of the matrix besides where that then need not be made:
# 8192 tokens are then one chunk, of 2 GiB.
#
# Beyond what general kernels do, it makes the pivot contrast on the way, drops tokens without a
# target before any product, and trains only the rows of the new tokens where the rest is frozen.

# %% tags=["parameters"]
# Parameters of this notebook
results: list[str] = []  # files of benchmarks/loss.py; empty: those in benchmarks/results
tokens: int = 96  # of the small problem on which the implementations are compared
vocabulary: int = 500  # its vocabulary

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display

from r2d_core import plots
from r2d_core.benchmarks import loss_aims, losses_drawn, read_benchmarks
from r2d_core.errors import InputError
from r2d_core.kernels import KERNELS, triton_available
from r2d_core.losses import r2d_loss
from r2d_core.pivots import PivotIds
from r2d_core.provenance import footer_html, provenance

runs = read_benchmarks(results, ["loss"])["loss"]
if not runs:
    raise InputError("results: no file of benchmarks/loss.py; run it, or name one")

# %% [markdown]
# ## One definition, several implementations
#
# `reference` is the text of the definition in plain torch; every other implementation is tested
# against it in float64. Here they all compute the same small problem, in float32, beside float64.

# %%
generator = torch.Generator().manual_seed(0)
hidden = torch.randn(tokens, 64, generator=generator)
weight = torch.randn(vocabulary, 64, generator=generator) / 3
targets = torch.randint(vocabulary, (tokens,), generator=generator)
targets[::8], targets[4::8], targets[1::3] = 5, 6, -100
pivots = PivotIds(safe=5, unsafe=6, rethink=7, think_open=8, think_close=9)


def gradients(impl: str, dtype: torch.dtype) -> list[torch.Tensor]:
    inputs = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
    loss = r2d_loss(*inputs, targets, pivots, impl=impl).total
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


exact = gradients("reference", torch.float64)
names = [name for name in KERNELS if name != "triton" or triton_available(hidden.device)]
agreement = {
    name: [
        float((ours.double() - true).norm() / true.norm())
        for ours, true in zip(gradients(name, torch.float32), exact, strict=True)
    ]
    for name in names
}
display(
    plots.table(
        pd.DataFrame(agreement, index=["loss", "gradient of hidden", "gradient of matrix"]).T,
        caption="Relative error of each implementation in float32, against float64",
        number="{:.1e}",
    )
)

# %% [markdown]
# ## Measured
#
# `python benchmarks/loss.py` measures all contenders in one process, in turn, round after round:
# ratios hold on a busy machine, seconds do not. Of general kernels the loss is cross-entropy alone,
# which is less work; they cannot train some rows and not others either. Peers that run on GPUs only
# are absent from a CPU's table, and said to be. A GPU lowers its clock under matrix products: its
# single calls differ by some percent, and so may ratios that are close to one another. What was to
# be told to the hundredth, the cost of the contrast and ours beside QuACK's, was timed pair by pair
# instead, and has its interval. With few tokens, what comes before the first product counts, too:
# ours waits there to learn how many targets are ignored, which QuACK multiplies with the others.

# %% tags=["hide-input"]
MIB = 2**20


def sizes(row: pd.Series) -> str:
    return f"N={row.n:,} H={row.h:,} V={row.v:,} {row['dtype']}"


for run in runs:
    made = run["provenance"]
    rows = pd.DataFrame(run["rows"])
    rows["MiB"] = rows["bytes"] / MIB
    rows["case"] = [f"{row['mode']}, {row.ignored:.0%} ignored" for _, row in rows.iterrows()]
    bar = rows.iloc[0]
    of_bar = rows[(rows.n == bar.n) & (rows.v == bar.v)]
    hardware = made["hardware"]
    display(
        Markdown(
            f"### On {made['parameters']['device']}\n\n{sizes(bar)}; {made['ended'][:10]}, "
            f"torch {made['versions']['torch']}, commit `{str(made['commit'])[:12]}`."
        )
    )
    display(plots.table(loss_aims(run), caption="What was to be reached", index=False,
                        number="{:.4g}", missing="not measured"))  # fmt: skip
    versions = [f"{name} {version}" for name, version in run["peers"].items() if version]
    if versions:
        display(Markdown(f"Beside it: {', '.join(versions)}."))
    for column, caption, number in (
        ("to_products", "Time, as a multiple of the bare matrix products of all rows", "{:.2f}"),
        ("to_authors", "Time, as a share of the authors' loss", "{:.2f}"),
        ("MiB", "Peak memory of the call beyond its inputs, in MiB", "{:.0f}"),
    ):
        wide = of_bar.pivot(index="loss", columns="case", values=column)
        order = [name for name in dict.fromkeys(of_bar["loss"]) if name in wide.index]
        shown = wide.loc[order, list(dict.fromkeys(of_bar["case"]))]
        display(plots.table(shown, caption=caption, number=number, missing="cannot"))
    for column, what in (("v", "vocabulary"), ("n", "tokens")):
        same = rows[(rows["mode"] == "full") & (rows.ignored == 0)]
        same = same[same["n" if column == "v" else "v"] == bar["n" if column == "v" else "v"]]
        same = same[same["loss"].isin(losses_drawn(run))].rename(
            columns={"loss": "name", column: what}
        )
        for y, unit in (("seconds", "seconds, forward and backward"), ("MiB", "peak MiB")):
            display(
                plots.benchmark_lines(
                    same, what, y, unit=unit, floor="products",
                    title=f"{'Time' if y == 'seconds' else 'Memory'} against {what}",
                    alt=f"{unit} of each loss against {what}, both axes logarithmic; "
                    "the numbers are in the file of the benchmark",
                )
            )  # fmt: skip
    wrong = pd.DataFrame(run["errors"])
    wide = wrong.pivot(index="loss", columns="dtype", values=["hidden", "weight"])
    wide.columns = [f"{dtype}, gradient of {what}" for what, dtype in wide.columns]
    display(
        plots.table(
            wide.loc[list(dict.fromkeys(wrong["loss"]))],
            caption="Relative error of the gradients, against float64",
            number="{:.1e}",
        )
    )
    for name, why in run["absent"].items():
        display(Markdown(f"*{name}* was not run here: {why}."))

# %% tags=["hide-input"]
display(HTML(footer_html(provenance(parameters, [0], started))))
