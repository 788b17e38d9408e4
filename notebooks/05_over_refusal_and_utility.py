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
# A defence that refuses everything is safe and useless. Here the method is asked harmless things:
# plain how-to and information requests (*utility*), and two kinds that look dangerous and are not:
# information about banned items, and an allowed request with a banned item mentioned in passing
# (*over-refusal*). The answers are compared word for word with the true ones.

# %% tags=["parameters"]
# Parameters of this notebook
checkpoint: str = ""  # one model for all seeds; empty: look in checkpoints_dir
checkpoints_dir: str = ""  # holds seed<s>/model; both empty: the toy model, trained if need be
method: str = "r2d"  # what the model is: see r2d_core.toy.arms.METHODS
base_seed: int = 0  # of the base model, a column of the tables
seeds: list[int] = [0]  # safety seeds
world_seed: int = 0  # the language, the splits and the requests
partition: str = "development"  # "report" is opened for the reported runs only
n_per_split: int = 40  # requests of each category and split
output_dir: str = "results/interactive/base0/r2d/utility"  # tables here, one folder a seed

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
from r2d_core.metrics import Rate
from r2d_core.provenance import footer_html, provenance
from r2d_core.records import write_json_atomic, write_text_atomic
from r2d_core.toy.arms import TITLES
from r2d_core.toy.evaluation import LOOK_ALIKES
from r2d_core.toy.measure import measure_benign
from r2d_core.toy.stages import find_checkpoint

# %% [markdown]
# ## Measuring

# %%
measured = {
    seed: measure_benign(
        find_checkpoint(checkpoint, checkpoints_dir, method, seed), method,
        partition=partition, n_per_split=n_per_split, world_seed=world_seed,
        output_dir=Path(output_dir) / f"seed{seed}",
    )
    for seed in seeds
}  # fmt: skip
table = pd.concat([run.table(method, base_seed, seed) for seed, run in measured.items()])
write_text_atomic(Path(output_dir) / "table.csv", table.to_csv(index=False))

# %% [markdown]
# ## Outcomes on harmless requests

# %% tags=["hide-input"]
plots.outcome_bars(
    table,
    scope="answer",
    alt=f"For each kind of harmless request, how the answers of {TITLES[method]} divide into "
    "harmful, refused, correct and garbled.",
)

# %% [markdown]
# ## Exact answers, and refusals of look-alikes
#
# Judged on the answer, all seeds pooled, Wilson 95% intervals.

# %% tags=["hide-input"]
answers = table[table["scope"] == "answer"]
counts = answers.groupby(["attack", "split"], sort=False)[["correct", "refused", "n"]].sum()
for title, label in (("answered exactly", "correct"), ("refused", "refused")):
    rates = {key: str(Rate(int(row[label]), int(row["n"]))) for key, row in counts.iterrows()}
    display(
        pd.Series(rates)
        .unstack(sort=False)
        .style.set_caption(title)
        .set_table_attributes('class="dataframe"')
    )

# %% tags=["hide-input"]
look_alikes = answers[answers["attack"].isin(LOOK_ALIKES)]
over = Rate(int(look_alikes["refused"].sum()), int(look_alikes["n"].sum()))
exact = Rate(int(answers["correct"].sum()), int(answers["n"].sum()))
summary = {"over-refusal on look-alikes": str(over), "exact on all harmless requests": str(exact)}
pd.Series(summary, name=TITLES[method]).to_frame()

# %% [markdown]
# ## Answers that were not exact
#
# The first few, for reading. Forgetting shows as *garbled*, over-refusal as *refused*.

# %% tags=["hide-input"]
pd.set_option("display.max_colwidth", None)
wrong = [
    (v.attack, run.behaviors[v.behavior_id].split, c.prompt, c.text, v.answer)
    for run in measured.values()
    for c, v in zip(run.completions, run.verdicts, strict=True)
    if v.answer != "correct"
]
columns = ["category", "split", "prompt", "response", "answer"]
display(
    pd.DataFrame(wrong[:8], columns=columns)
    .style.hide(axis="index")
    .format(escape="html")
    .set_table_attributes('class="dataframe"')
)

# %% [markdown]
# ## Cost

# %% tags=["hide-input"]
display(
    answers.groupby("attack", sort=False)[["prompt_tokens", "response_tokens"]]
    .mean()
    .style.format("{:.1f}")
    .set_table_attributes('class="dataframe"')
)

# %% tags=["hide-input"]
record = provenance(parameters, seeds, started)
write_json_atomic(Path(output_dir) / "utility.json", record)
display(HTML(footer_html(record)))
