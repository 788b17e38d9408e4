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
# # SwaRD and CPO training
#
# One method of the comparison is trained here, once for every safety seed. All methods see the same
# prompts for the same number of steps; they differ in how the response is written (reasoning,
# pivots, recovery) and in how the loss weighs the pivots. For R2D the objective is the plain
# next-token cross-entropy of the safety-aware trajectories (SwaRD) plus the pivot loss (CPO): where
# the right next token is `[SAFE]`, its log-odds against `[UNSAFE]` are raised, and the other way
# round.

# %% tags=["parameters"]
# Parameters of this notebook
checkpoint: str = ""  # an expanded checkpoint; empty: the toy one, made if need be
# method: r2d; without a part: r2d_no_cpo, r2d_no_pivots, r2d_no_reasoning; with pivots up-weighted:
# r2d_upweighted; refusal tuning: refusal, or refusal_recovery with R2D's recovery examples
method: str = "r2d"
seeds: list[int] = [0]  # safety seeds: prompts and order of the examples
world_seed: int = 0  # the language and the splits
steps: int = 200  # optimizer steps, the same for all methods
batch_size: int = 32  # examples a step
learning_rate: float = 7e-4  # peak of the cosine schedule
save_steps: int = 100  # a checkpoint every so many steps, for going on after a kill
output_dir: str = "results/interactive/base0/r2d/training"  # one folder a seed in here

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
from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.pivots import PivotIds
from r2d_core.provenance import footer_html, provenance
from r2d_core.records import read_json_lines, write_json_atomic
from r2d_core.tokenization import encode_example
from r2d_core.toy.arms import ARMS, VANILLA, safety_prompts, write_example
from r2d_core.toy.language import make_language
from r2d_core.toy.measure import load
from r2d_core.toy.splits import make_splits
from r2d_core.toy.stages import ArmTraining, find_checkpoint, train_arm

if method not in ARMS:
    raise InputError(unknown("method", method, ARMS))
arm = ARMS[method]
language = make_language(world_seed)
splits = make_splits(language, world_seed)
source = find_checkpoint(checkpoint, "", VANILLA, seeds[0], world_seed)
_, tokenizer = load(source)
PivotIds.from_tokenizer(tokenizer)
display(
    Markdown(
        f"**{arm.title}**: reasoning {'yes' if arm.reasoning else 'no'}, "
        f"pivots {'yes' if arm.pivots else 'no'}, "
        f"recovery examples {'yes' if arm.recovery else 'no'}, "
        f"pivot loss weight {arm.pivot_weight:g}, cross-entropy weight of pivots "
        f"{arm.pivot_ce_weight:g}."
    )
)

# %% [markdown]
# ## What this method is taught
#
# One example of each sort. The prefill of a recovery example is read, not learned.

# %% tags=["hide-input"]
pd.set_option("display.max_colwidth", None)
sorts: dict[str, object] = {}
for prompt in safety_prompts(language, splits, 400, seeds[0]):
    banned = language.banned(prompt.query.item)
    name = (
        "restatement" if prompt.restate
        else "recovery" if prompt.begun is not None and arm.recovery
        else "harmful how-to" if prompt.harmful
        else "benign how-to" if prompt.query.how_to
        else f"information, {'banned' if banned else 'allowed'} item"
    )  # fmt: skip
    sorts.setdefault(name, prompt)
shown = [(name, write_example(language, prompt, arm)) for name, prompt in sorts.items()]
display(
    plots.table(
        pd.DataFrame(
            [(name, e.prompt, e.prefill, e.response) for name, e in shown],
            columns=["sort", "prompt", "prefill", "response"],
        ),
        index=False,
    )
)

# %% [markdown]
# As the model reads it: the chat template, one beginning of sequence, labels on the response only.

# %%
example = next(e for name, e in shown if name == "harmful how-to")
row = encode_example(tokenizer, example.prompt, example.response)
tokens = pd.DataFrame(
    {
        "token": tokenizer.convert_ids_to_tokens(row["input_ids"]),
        "learned": ["yes" if label != -100 else "" for label in row["labels"]],
    }
).T
display(plots.table(tokens))

# %% [markdown]
# ## Training

# %% tags=["hide-output"]
settings = ArmTraining(steps, batch_size, learning_rate, save_steps)
results = {
    seed: train_arm(
        source, method, seed, settings,
        world_seed=world_seed, output_dir=Path(output_dir) / f"seed{seed}",
    )
    for seed in seeds
}  # fmt: skip

# %% [markdown]
# ## Curves
#
# Cross-entropy over all targets; the pivot loss (measured for every method that has pivots, weighed
# or not); and how often the right pivot beats the other two, by class.

# %% tags=["hide-input"]
logs = []
for seed, result in results.items():
    log = pd.DataFrame(read_json_lines(result.log))
    columns = ["step", "cross_entropy"]
    if arm.pivots:
        columns += ["pivot_loss", *(f"pivot_accuracy_{c}" for c in ("safe", "unsafe", "rethink"))]
    columns = [c for c in columns if c in log]
    logs.append(log.dropna(subset=["cross_entropy"])[columns].assign(method=method, seed=seed))
plots.training_curves(
    pd.concat(logs),
    alt=f"Training curves of {arm.title}: cross-entropy and, where there are pivots, pivot loss "
    "and pivot accuracy by class, one line a seed.",
)

# %% [markdown]
# ## On the evaluation split

# %% tags=["hide-input"]
kept = {
    seed: {
        k.removeprefix("eval_").replace("_", " "): v
        for k, v in result.metrics.items()
        if k.startswith("eval_")
        and not k.startswith(("eval_runtime", "eval_samples", "eval_steps"))
    }
    for seed, result in results.items()
}
display(plots.table(pd.DataFrame(kept).rename(columns=lambda seed: f"seed {seed}")))

# %% tags=["hide-input"]
sources = {source for result in results.values() for source in result.sources}
record = provenance(parameters, seeds, started, trained_by=sources)
write_json_atomic(Path(output_dir) / "trained.json", record)
display(HTML(footer_html(record)))
