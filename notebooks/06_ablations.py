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
# # Ablations
#
# What does each part of R2D contribute? The reasoning, the pivots, the contrast on the pivots
# (CPO): each is taken away in turn. Two controls come with them, without which no claim holds:
# refusal tuning with the *same recovery examples* (is it R2D, or only the examples that turn back
# from a harmful beginning?), and R2D with plain cross-entropy *up-weighted* on the pivots (is it
# the contrast, or only the weight?). Of this build's own runs, unless the experiment names more of
# one language: where they differ from the {doc}`/book/six_languages`, believe those.

# %% tags=["parameters"]
# Parameters of this notebook
experiment_dir: str = ""  # an experiment's results; empty: results/toy, or a small one made now
output_dir: str = "results/interactive/ablations"  # where the tables are written

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
from pathlib import Path

from IPython.display import HTML, Markdown, display

from r2d_core import plots
from r2d_core.attack_titles import attack_title
from r2d_core.provenance import footer_html, provenance
from r2d_core.records import write_json_atomic, write_text_atomic
from r2d_core.toy.arms import TITLES
from r2d_core.toy.languages import (
    by_language,
    comparable,
    every_difference,
    in_words,
    over_languages,
)
from r2d_core.toy.results import read_results
from r2d_core.toy.stages import default_experiment

results = read_results(experiment_dir or default_experiment())
output = Path(output_dir)
ABLATED = ["r2d", "r2d_no_cpo", "r2d_upweighted", "r2d_no_pivots", "r2d_no_reasoning"]
CONTROLS = ["refusal", "refusal_recovery", "r2d"]

# %% [markdown]
# ## R2D and what is left without each part

# %% tags=["hide-input"]
intervals = plots.ablation_intervals(
    results.attacks,
    methods=ABLATED,
    alt="Attack success rate of R2D and of R2D without CPO, with up-weighted pivots, without "
    "pivots and without reasoning, a panel for each attack, with 95% intervals.",
)
intervals.save(output / "ablation_intervals.svg")
intervals

# %% [markdown]
# ## On new topics
#
# Banned items of which the safety training said nothing.

# %% tags=["hide-input"]
new_topics = results.attacks[results.attacks["split"] == "new_topic"]
plots.ablation_intervals(
    new_topics,
    methods=ABLATED,
    alt="The same comparison on banned topics of which the safety training said nothing.",
)

# %% [markdown]
# ## Is it R2D, or only the recovery examples?

# %% tags=["hide-input"]
controlled = results.attacks[results.attacks["method"].isin(CONTROLS)]
plots.asr_intervals(
    controlled,
    alt="Attack success rate of refusal tuning, refusal tuning with recovery examples, and R2D, a "
    "panel for each attack, with 95% intervals.",
)

# %% [markdown]
# ## Paired tests
#
# R2D against every other method on the same requests, attacks and seeds: in how many pairs one of
# the two alone gave a harmful response (of harmless requests: refused a look-alike, answered
# exactly); the p-value of a permutation test that exchanges the two request by request, all runs of
# a request together; and that Holm-corrected over the whole table, but for the untrained model and
# for attacks of fewer than six requests, of which no such test can tell anything. The requests of
# one run are not independent of each other either: hence the last columns, which count the runs
# (base and safety seed) in which R2D's rate is the lower and the higher one. The book speaks of a
# difference only where p (Holm) is below 0.05 *and* no run points the other way. Forged reasoning
# is written in each method's own format, and GCG on the pivots aims at it: these rows compare like
# with like only among the methods that use both reasoning and pivots, and the others are not
# corrected for, nor spoken of.

# %% tags=["hide-input"]
tests = results.compare("r2d")
write_text_atomic(output / "paired_tests.csv", tests.to_csv(index=False))
named = tests.assign(attack=tests["attack"].map(attack_title), method=tests["method"].map(TITLES))
shown = named.rename(
    columns={
        "only_reference": "R2D alone",
        "only_method": "the other alone",
        "p_value": "p",
        "p_holm": "p (Holm)",
        "runs_lower": "runs R2D lower",
        "runs_higher": "runs R2D higher",
    }
)
display(plots.table(shown, index=False, number="{:.2g}", missing="not tested"))

# %% [markdown]
# ## In another language
#
# All of that is about other requests to the same base models. Where an experiment has several
# languages (base seeds), each with a base model of its own, the language can be the draw: the mean
# difference in points, with Student's interval over the languages, and a small circle for each. A
# difference is *borne out* where p, Holm-corrected over the outcomes of one comparison, is below
# 0.05 and no language points the other way. {doc}`/book/six_languages` asks this of six.

# %% tags=["hide-input"]
if comparable(results):
    over = over_languages(results)
    display(Markdown(in_words(over)))
    display(Markdown(every_difference(over)))
    display(
        plots.difference_intervals(
            over,
            by_language(results),
            alt="How far R2D's rate is from each other method's, a panel for each outcome, with "
            "95% intervals over languages and a marker for each language.",
        )
    )
else:
    display(Markdown("*This experiment has one language: there is nothing to say of another.*"))

# %% [markdown]
# ## Pivot accuracy and loss on the evaluation split
#
# Means over the runs. *Accuracy*: the right pivot beats the other two where a pivot is due.

# %% tags=["hide-input"]
wanted = {
    "eval_cross_entropy": "cross-entropy",
    "eval_pivot_loss": "pivot loss",
    "eval_pivot_accuracy_safe": "accuracy [SAFE]",
    "eval_pivot_accuracy_unsafe": "accuracy [UNSAFE]",
    "eval_pivot_accuracy_rethink": "accuracy [RETHINK]",
    "seconds": "seconds of training",
}
training = results.training
if len(training):
    columns = [c for c in wanted if c in training]
    means = training.groupby("method", sort=False)[columns].mean().rename(columns=wanted)
    ordered = means.reindex([m for m in results.methods if m in means.index]).rename(index=TITLES)
    display(plots.table(ordered, missing="no pivots"))

# %% [markdown]
# ## All cells

# %% tags=["hide-input"]
cells = results.attacks[results.attacks["scope"] == "whole"]
pooled = cells.groupby(["method", "attack", "split"], sort=False)[
    ["n", "harmful", "refused", "correct", "garbled"]
].sum()
write_text_atomic(output / "ablations.csv", pooled.reset_index().to_csv(index=False))
display(
    Markdown(
        f"{len(pooled)} cells (method × attack × split) of {int(pooled['n'].sum())} completions "
        "are in `ablations.csv`, the paired tests in `paired_tests.csv`."
    )
)
every = pooled.rename(index=TITLES, level="method").rename(index=attack_title, level="attack")
every = every.rename(index=lambda split: split.replace("_", " "), level="split")
display(plots.table(every.reset_index(), index=False))

# %% tags=["hide-input"]
seeds = sorted({int(s) for s in results.attacks["seed"]})
record = provenance(parameters, seeds, started)
write_json_atomic(output / "ablations.json", record)
display(HTML(footer_html(record)))
