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
# # Beyond the paper
#
# R2D with one ingredient more, another, or none: the KL divergence to the base model on benign
# data; the contrast over all three pivots; other shares of harmful prompts; and no recovery
# examples, which begin inside a harmful answer and turn back. What helps against attacks that were
# held out of training without more refusals of harmless requests?

# %% tags=["parameters"]
# Parameters of this notebook
recompute: bool = False  # train and measure again; else show the tables of tables_dir
tables_dir: str = "book/recipes"  # finished tables; where they are not there, all is recomputed
checkpoint: str = ""  # an expanded checkpoint to start from; empty: the toy one, made if need be
seeds: list[int] = [0, 1, 2]  # safety seeds
steps: int = 800  # optimizer steps of 16 examples
n_per_split: int = 24  # requests of each attack, or benign category, and split
partition: str = "report"  # whose items: report or development
world_seed: int = 0  # the language and the splits
output_dir: str = "results/interactive/recipes"  # models and texts; what is there is not made again

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
import json
from pathlib import Path

from IPython.display import HTML, Markdown, display

from r2d_core import plots
from r2d_core.provenance import footer_html, provenance
from r2d_core.records import write_json_atomic
from r2d_core.toy import recipe_tables, recipes
from r2d_core.toy.stages import default_expanded

folder = Path(tables_dir)
stored = None if recompute else recipe_tables.Tables.read(folder, "beyond")
if stored is None:
    folder = Path(output_dir)
    runs = recipes.RecipeRuns(
        output_dir, seeds, steps, partition=partition, n_per_split=n_per_split,
        world_seed=world_seed,
    )  # fmt: skip
    source = checkpoint or default_expanded(world_seed)
    trained = recipes.measure_recipes(source, runs, recipes.BEYOND_NAMES)
    trained.titles["ours"] = "R2D"
    recipe_tables.Tables.of(trained).write(folder, "beyond")
    record = provenance(parameters, seeds, started)
    record["trainings"] = recipes.trainings(source, trained)
    write_json_atomic(folder / "beyond_provenance.json", record)
    stored = recipe_tables.Tables.read(folder, "beyond")
record = json.loads((folder / "beyond_provenance.json").read_text())

# %% [markdown]
# ## Held-out attacks against over-refusal
#
# Bottom left is best. *Held-out attacks* are the wrappers never trained on and few-shot prompts,
# both weighing the same. The two prefills are not among them: recovery examples begin with exactly
# that form, the lead of a harmful answer and up to two of its steps, about other items. They are
# counted apart, as *prefills as in training*; only the run without recovery examples has not seen
# the form.
#
# 95% intervals, seeds pooled; all answers to a request count as one draw in them, since all seeds
# and attacks put the same requests.

# %% tags=["hide-input"]
plots.trade_off(
    stored.rates,
    recipe_tables.LOOK_ALIKES_REFUSED,
    recipe_tables.HELD_OUT,
    alt="Attack success rate under held-out attacks against refusals of harmless look-alikes, one "
    "point with intervals for R2D and for each ingredient.",
)

# %% tags=["hide-input"]
display(plots.table(recipe_tables.shown_rates(stored.rates), index=False))

# %% [markdown]
# ## What helps and what does not
#
# A difference is called one where p (Holm) is below 0.05 and no seed points the other way.
# On all benign examples the KL has two masters: the data teach reasoning and pivots, and the base,
# which has never reasoned nor said a pivot, holds against it. On the restatement replay alone,
# written in the base's own form, it does not.

# %% tags=["hide-input"]
display(Markdown(recipe_tables.answer(stored)))
display(Markdown(recipe_tables.differences(stored)))

# %% [markdown]
# ## Attack by attack

# %% tags=["hide-input"]
plots.rate_intervals(
    stored.rates,
    alt="The same recipes attack by attack, with refusals of look-alikes and exact answers.",
)

# %% [markdown]
# ## Paired tests
#
# Against R2D: a permutation test that exchanges the two request by request, all seeds of a request
# together, Holm-corrected over the table. Three seeds are too few to test between trainings: hence
# the seeds that have more and less beside the p-value.

# %% tags=["hide-input"]
display(plots.table(recipe_tables.shown_tests(stored), index=False, number="{:.2g}"))

# %% [markdown]
# ## Training
#
# The KL is KL(base || model) on the targets of benign examples, weight 1, against the base with the
# expanded vocabulary and before any safety training. Means over seeds.

# %% tags=["hide-input"]
display(plots.table(stored.training.drop(columns="recipe"), index=False, missing="–"))

# %% tags=["hide-input"]
display(HTML(footer_html(record)))
