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
# # Speed, beside what others offer
#
# Training, generation and the gradient attack, each against the code that a researcher would
# otherwise take, on the same model and the same work, in one process and in turn: so a ratio holds
# where seconds do not. [The loss](09_the_loss.ipynb) has a page of its own. The scripts in
# `benchmarks/` make these tables on your machine.

# %% tags=["parameters"]
# Parameters of this notebook
results: list[str] = []  # JSON files; empty: benchmarks/results

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
import pandas as pd
from IPython.display import HTML, Markdown, display

from r2d_core import plots
from r2d_core.benchmarks import AIMS, made_by, read_benchmarks, speedups
from r2d_core.metrics import Rate
from r2d_core.provenance import footer_html, provenance

measured = read_benchmarks(results, list(AIMS))


def show(frame: pd.DataFrame, run: dict, caption: str, number: str = "{:.3g}") -> None:
    """One run's table; what made it is its caption's second half."""
    display(plots.table(frame, caption=f"{caption} ({made_by(run)})", index=False, number=number))


for benchmark in AIMS:
    if not measured[benchmark]:
        display(Markdown(f"*{benchmark}*: not measured; `python benchmarks/{benchmark}.py` does."))
if any(measured.values()):
    display(plots.table(speedups(measured), caption="At a glance", index=False, number="{:.3g}"))

# %% [markdown]
# ## GCG against nanoGCG
#
# Same model, prompts, targets, first suffix, steps, candidates and seeds. A candidate counts when
# its loss was computed; a final loss is that of the text which each side returns, tokenised anew.
# An attack succeeds when the greedy answer begins with the target, which a model of random weights,
# *toy* and *100m*, has no leaning to say; *refusal* is the toy world's refusal-tuned model.

# %% tags=["hide-input"]
for run in measured["attacks"]:
    for result in run["results"]:
        table = pd.DataFrame(
            {
                "GCG": side,
                "candidates a second": found["candidates_per_second"],
                "final loss, median": found["loss_median"],
                "quartiles": " to ".join(f"{found['loss_quartiles'][q]:.3f}" for q in (0, 2)),
                "success": str(Rate(round(found["success"] * found["runs"]), found["runs"])),
            }
            for side, found in result["summary"].items()
        )
        speedup, settings = result["speedup"], result["settings"]
        show(
            table,
            run,
            f"{result['model']}, {result['weights'] / 1e6:.1f} million weights, "
            f"{result['vocabulary']} tokens; {settings['steps']} steps of "
            f"{settings['candidates']} candidates: ours {speedup['mean']:.2f} × as fast "
            f"({speedup['least']:.2f} to {speedup['most']:.2f})",
            "{:.4g}",
        )

# %% [markdown]
# ## Generation against one prompt at a time
#
# Batches of prompts of like length and a key-value cache, against transformers' `generate` on one
# prompt after the other, and on padded batches of the same size as they come. *Same answers* is the
# share of prompts whose greedy answer is the same, word for word.

# %% tags=["hide-input"]
columns = {
    "model": "model", "parameters": "million weights", "requests": "requests",
    "tokens_per_s": "tokens a second", "speedup": "times one at a time",
    "over_as_they_come": "times as they come", "same_answers": "same answers",
}  # fmt: skip
for run in measured["generation"]:
    rows = pd.DataFrame(run["rows"]).assign(parameters=lambda rows: rows["parameters"] / 1e6)
    show(rows[list(columns)].rename(columns=columns), run, "Generation", "{:.5g}")

# %% [markdown]
# ## Training against the authors' script
#
# One optimizer step of LoRA on the same examples. *ours*: packed, attention by example, the fused
# loss, only the new tokens' rows trained. *authors*: as they launch it, one example at a time,
# activations computed again, all logits in float32, embedding and output matrix trained whole.
# *kept*: theirs with the activations kept. *whole*: ours, but training what they train. *Memory* is
# what a step adds to weights, adapters and optimizer states; ours holds a batch of examples where
# theirs holds one. The first losses must agree, the last, after as many steps on the same examples,
# those of *whole* and theirs but for the dropout: ours trains eight rows in place of two matrices,
# and comes less far on random texts. *Operations*, of a run on a CPU, counts those of the matrix
# products: where they take all the time, as a large model's do there, this ratio is the most that
# can be gained. What is gained beyond it comes from longer batches and from logits that are never
# written. A GPU gains more: one example at a time leaves most of it idle.

# %% tags=["hide-input"]
columns = {
    "model": "model", "way": "way", "tokens_per_second": "tokens a second",
    "times_authors": "times theirs", "step_peak_mib": "MiB of a step",
    "memory_of_authors": "memory, of theirs", "flops_of_authors": "operations, of theirs",
    "first_loss": "first loss", "last_loss": "last loss",
}  # fmt: skip
for run in measured["training"]:
    rows = pd.DataFrame(run["rows"]).reindex(columns=list(columns)).dropna(axis="columns")
    show(rows.rename(columns=columns), run, "Training", "{:.4g}")

# %% tags=["hide-input"]
display(HTML(footer_html(provenance(parameters, [0], started))))
