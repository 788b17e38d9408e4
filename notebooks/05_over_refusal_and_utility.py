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
# # Over-refusal and utility
#
# A defence that refuses everything is safe and useless. Here each method is asked harmless things:
# plain how-to and information requests (*utility*), and two kinds that look dangerous and are not:
# information about banned items, and an allowed request with a banned item mentioned in passing
# (*over-refusal*). The answers are compared word for word with the true ones.

# %% tags=["parameters"]
# Parameters of this notebook
# models_dir holds <method>/training/seed<s>/model, and expanded/model for vanilla
models_dir: str = ""  # empty: the toy models, trained if need be
methods: list[str] = ["vanilla", "r2d"]  # compared: "vanilla" (the base) and methods of 03
base_seed: int = 0  # of the base model, a column of the tables
seeds: list[int] = [0]  # safety seeds
world_seed: int = 0  # the language, the splits and the requests
partition: str = "development"  # "report" is opened for the reported runs only
n_per_split: int = 40  # requests of each category and split
output_dir: str = "results/interactive/base0/utility"  # tables here, a folder a method and seed

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
from pathlib import Path

import pandas as pd
from IPython.display import HTML, display

from r2d_core import plots
from r2d_core.attack_titles import attack_title
from r2d_core.errors import InputError
from r2d_core.provenance import footer_html, provenance
from r2d_core.records import write_json_atomic
from r2d_core.sampling_error import (
    asked,
    clustered_matrix,
    clustered_mean,
    clustered_rate,
    seed_matrix,
)
from r2d_core.toy.arms import TITLES, VANILLA
from r2d_core.toy.evaluation import LOOK_ALIKES
from r2d_core.toy.measure import measure_benign
from r2d_core.toy.outcomes import write_outcomes
from r2d_core.toy.stages import checkpoints_of, find_checkpoint

if n_per_split < 1:
    raise InputError(f"parameter 'n_per_split': expected 1 or more, got {n_per_split}")

# %% [markdown]
# ## Measuring

# %%
measured = {
    (method, seed): measure_benign(
        find_checkpoint("", checkpoints_of(models_dir, method), method, seed, world_seed), method,
        partition=partition, n_per_split=n_per_split, world_seed=world_seed,
        output_dir=Path(output_dir) / method / f"seed{seed}",
    )
    for method in methods
    # The base model has no safety seeds: once is all there is to measure.
    for seed in (seeds if method != VANILLA else seeds[:1])
}  # fmt: skip
judged = pd.concat([run.judged(m, base_seed, seed) for (m, seed), run in measured.items()])
outcomes = write_outcomes(output_dir, judged)
answers = outcomes[outcomes["scope"] == "answer"]

# %% [markdown]
# ## Outcomes on harmless requests

# %% tags=["hide-input"]
plots.outcome_bars(
    outcomes,
    scope="answer",
    alt="For each kind of harmless request and each method, how the answers divide into harmful, "
    "refused, correct and garbled.",
)

# %% [markdown]
# ## Over-refusal and utility
#
# Judged on the answer, all splits and seeds pooled. The 95% intervals (of a rate Wilson's on the
# effective number, of the tokens a bootstrap's) take a request (n) with all of its seeds for one
# draw; what another training would give, the tables seed by seed show.

# %% tags=["hide-input"]
summary = {}
for method in methods:
    ours = answers[answers["method"] == method]
    alike = ours[ours["attack"].isin(LOOK_ALIKES)]
    put = ours["behavior"].tolist()
    summary[TITLES[method]] = {
        "look-alikes refused": str(
            clustered_rate(alike["refused"].tolist(), alike["behavior"].tolist())
        ),
        "all harmless answered exactly": str(clustered_rate(ours["correct"].tolist(), put)),
        "tokens an answer": str(clustered_mean(ours["response_tokens"].tolist(), put)),
    }
display(plots.table(pd.DataFrame(summary).T))

# %% tags=["hide-input"]
trained = answers[answers["method"] != VANILLA]
if len(seeds) > 1 and len(trained):
    alike = trained[trained["attack"].isin(LOOK_ALIKES)]
    for some, label, said in (
        (alike, "refused", "Look-alikes refused, seed by seed"),
        (trained, "correct", "All harmless answered exactly, seed by seed"),
    ):
        by_seed = seed_matrix(some, "method", label).rename(index=TITLES)
        display(plots.table(by_seed, caption=said))

# %% [markdown]
# ## Exact answers by split
#
# Of *new topics* the safety training said nothing: what a method forgets, it forgets there first.

# %% tags=["hide-input"]
kind = answers["attack"].map(attack_title) + ", " + answers["split"].str.replace("_", " ")
named = answers.assign(kind=kind, method=answers["method"].map(TITLES))
exact = clustered_matrix(named, "kind", "method", "correct", counts=False)
said = f"Answered exactly, with 95% intervals; {asked(named, 'kind', 'method')}"
display(plots.table(exact.rename_axis(None), caption=said))

# %% [markdown]
# ## Answers that were not exact
#
# A few of each method, for reading. Forgetting shows as *garbled*, over-refusal as *refused*.

# %% tags=["hide-input"]
pd.set_option("display.max_colwidth", None)
wrong = pd.DataFrame(
    [
        (TITLES[m], attack_title(v.attack), run.behaviors[v.behavior_id].split.replace("_", " "))
        + (c.prompt, c.text, v.answer)
        for (m, seed), run in measured.items()
        if seed == seeds[0]
        for c, v in zip(run.completions, run.verdicts, strict=True)
        if v.answer != "correct"
    ],
    columns=["method", "category", "split", "prompt", "response", "answer"],
)
display(plots.table(wrong.groupby("method", sort=False).head(3), index=False))

# %% tags=["hide-input"]
record = provenance(parameters, seeds, started)
write_json_atomic(Path(output_dir) / "utility.json", record)
display(HTML(footer_html(record)))
