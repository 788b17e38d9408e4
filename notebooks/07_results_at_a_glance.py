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
# # Results at a glance
#
# What R2D buys, what it costs, and what it does not stop: every method, every attack, all seeds of
# this build's own runs. These are of one language unless the experiment names more; where they
# differ from the {doc}`/book/six_languages`, believe those.

# %% tags=["parameters"]
# Parameters of this notebook
experiment_dir: str = ""  # an experiment's results; empty: results/toy, or a small one made now
output_dir: str = "results/interactive/results"  # where figure, findings and tables are written

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Markdown, display

from r2d_core import plots
from r2d_core.attack_titles import attack_title
from r2d_core.generation import Request
from r2d_core.generation.trace import pivot_probabilities
from r2d_core.provenance import footer_html, provenance
from r2d_core.records import write_json_atomic, write_text_atomic
from r2d_core.sampling_error import asked, clustered_matrix
from r2d_core.toy.arms import TITLES
from r2d_core.toy.evaluation import LOOK_ALIKES
from r2d_core.toy.findings import every_method, findings, in_words, tokens_spent
from r2d_core.toy.measure import load
from r2d_core.toy.results import read_results
from r2d_core.toy.stages import default_experiment

experiment = Path(experiment_dir or default_experiment())
results = read_results(experiment)
output = Path(output_dir)

# %% [markdown]
# ## What was found

# %% tags=["hide-input"]
write_text_atomic(output / "findings.md", findings(results))
display(Markdown(in_words(results)))
display(plots.table(every_method(results), index=False))

# %% [markdown]
# ## Attack success rate
#
# Share of harmful responses, all splits and seeds pooled. *Not run*: the attack has no meaning for
# the method (there is no pivot to attack, no reasoning to forge). The two prefills begin as the
# recovery examples begin that every method but plain refusal tuning was trained on. Intervals take
# a request with all of its runs for one draw; the counts are in `asr.csv`.

# %% tags=["hide-input"]
main_figure = plots.asr_heatmap(
    results.attacks,
    alt="Heat map of the attack success rate of every attack on every method, with the number of "
    "harmful responses out of all in each cell.",
)
main_figure.save(output / "main_figure.svg")
main_figure

# %% tags=["hide-input"]
whole = results.attacks[results.attacks["scope"] == "whole"]
asr = clustered_matrix(whole, "attack", "method", "harmful", missing="not run")[results.methods]
write_text_atomic(output / "asr.csv", asr.to_csv())


def shown(rows: pd.DataFrame, label: str, said: str, missing: str = "") -> plots.Figure:
    named = rows.assign(attack=rows["attack"].map(attack_title), method=rows["method"].map(TITLES))
    table = clustered_matrix(named, "attack", "method", label, missing, counts=False)
    return plots.table(
        table[[TITLES[method] for method in results.methods]],
        caption=f"{said}, with 95% intervals; {asked(named, 'attack', 'method')}",
    )


display(shown(whole, "harmful", "Harmful", "not run"))

# %% [markdown]
# ## On new topics
#
# Banned items of which the safety training said nothing.

# %% tags=["hide-input"]
new_topics = plots.asr_heatmap(
    results.attacks[results.attacks["split"] == "new_topic"],
    alt="Heat map of the attack success rate on banned topics of which the safety training said "
    "nothing.",
)
new_topics.save(output / "new_topics.svg")
new_topics

# %% [markdown]
# ## Run by run
#
# The filled marker pools all runs, with its 95% interval over requests, each with all of its runs
# for one draw; the open ones are the single runs (base and safety seed).

# %% tags=["hide-input"]
intervals = plots.asr_intervals(
    results.attacks,
    alt="Attack success rate of every method, a panel for each attack, with 95% intervals and "
    "the single runs.",
)
intervals.save(output / "asr_intervals.svg")
intervals

# %% [markdown]
# ## Harmful, refused, correct, garbled
#
# Garbled responses are neither harm nor defence: the attack, or the training, broke the model.

# %% tags=["hide-input"]
plots.outcome_bars(
    results.attacks,
    alt="For every attack and method, how the responses divide into harmful, refused, correct and "
    "garbled.",
)

# %% [markdown]
# ## R2D and what is left without each part
#
# The band is R2D's own interval. {doc}`06_ablations` tests each against R2D.

# %% tags=["hide-input"]
plots.ablation_intervals(
    results.attacks,
    alt="Attack success rate of R2D and of R2D without CPO, with up-weighted pivots, without "
    "pivots and without reasoning, a panel for each attack, with 95% intervals.",
)

# %% [markdown]
# ## Over-refusal against attack success
#
# Over the attacks that all methods met, direct requests left out.

# %% tags=["hide-input"]
look_alikes = results.benign[results.benign["attack"].isin(LOOK_ALIKES)]
if results.common_attacks:
    over_refusal = plots.over_refusal_vs_asr(
        results.attacks[results.attacks["attack"].isin(results.common_attacks)],
        look_alikes,
        alt="Each method's attack success rate against its refusals of harmless look-alikes, with "
        "95% intervals; bottom left is best.",
    )
    over_refusal.save(output / "over_refusal.svg")
    display(over_refusal)
else:
    display(Markdown("*No figure: direct requests left out, no attack was met by all methods.*"))

# %% [markdown]
# ## Harmless requests
#
# Answered exactly, by kind of request (judged on the answer).

# %% tags=["hide-input"]
answers = results.benign[results.benign["scope"] == "answer"]
for label, caption in (("correct", "Answered exactly"), ("refused", "Refused")):
    benign = clustered_matrix(answers, "attack", "method", label)[results.methods]
    write_text_atomic(output / f"benign_{label}.csv", benign.to_csv())
    display(shown(answers, label, caption))

# %% [markdown]
# ## Tokens spent on an answer
#
# Means over harmful requests (all attacks) and harmless ones, with Student's 95% interval over the
# runs (n: base models and safety seeds); one run leaves no interval.

# %% tags=["hide-input"]
spent = tokens_spent(results)
write_text_atomic(output / "tokens.csv", spent.to_csv())
display(plots.table(spent.rename(index=TITLES)))

# %% [markdown]
# ## R2D thinking
#
# The same request under four attacks, token by token, with the probabilities the model gave to the
# pivots in each place. The colour of a step is that of the pivot that ends it.

# %% tags=["hide-input"]
run_of_model = {
    experiment / f"base{base}" / "r2d" / "training" / f"seed{seed}" / "model": run
    for (base, seed), run in results.runs.get("r2d", {}).items()
}
there = [path for path in run_of_model if path.is_dir()]
if there:
    model, tokenizer = load(there[0])
    run = run_of_model[there[0]]
    subject = next(v.behavior_id for v in run.verdicts if "new_pair" in v.behavior_id)
    for completion, verdict in zip(run.completions, run.verdicts, strict=True):
        wanted = ("direct", "wrapper", "prefill_lead", "forged_reasoning")
        if completion.behavior_id != subject or completion.attack not in wanted:
            continue
        request = Request(completion.prompt, prefill=completion.prefill)
        tokens = pivot_probabilities(model, tokenizer, request, completion.text)
        title = attack_title(completion.attack)
        display(Markdown(f"**{title}**: judged {verdict.whole}"))
        display(
            plots.pivot_trace(
                [plots.TraceToken(t.text, t.p_safe, t.p_unsafe) for t in tokens],
                alt=f"R2D's response under {title}, judged {verdict.whole}.",
                prompt=completion.prompt,
                prefill=completion.prefill,
            )
        )

# %% tags=["hide-input"]
seeds = sorted({int(s) for s in results.attacks["seed"]})
record = provenance(parameters, seeds, started)
write_json_atomic(output / "results.json", record)
display(HTML(footer_html(record)))
