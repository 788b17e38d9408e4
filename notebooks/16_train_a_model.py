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
# # Train a model
#
# A parameter set names a model, its data and how it is trained; `experiments/models/` has fourteen.
# Here one is planned, its data read and checked, and the model trained: expanded vocabulary, LoRA
# and the new tokens' rows, in this process or in several. A killed run goes on where it was. On its
# defaults the toy world's base model is trained by the same way as Llama-3-8B:
#
# ```bash
# papermill -k python3 --cwd . notebooks/16_train_a_model.ipynb results/mine/16.ipynb -y '
#   parameter_set: experiments/models/llama3-8b.yaml
#   launch: experiments/launch/zero2.yaml
#   processes: 4
#   output_dir: results/mine/llama3-8b'
# ```

# %% tags=["parameters"]
# Parameters of this notebook
parameter_set: str = ""  # a file of experiments/models; empty: the toy world's base model
model: str = ""  # another place of the model than the file says
data: str = ""  # other data than the file says: a file, or a name on the hub
exclude: list[str] = []  # files of behaviors of the evaluation, not to be trained on
recipe: str = ""  # "paper": the authors' own run, its defects included; empty: as the file says
base: str = ""  # the toy world's base model, for an empty parameter_set; empty: trained if need be
toy_steps: int = 100  # of training, for an empty parameter_set
launch: str = ""  # a file of experiments/launch, for several processes
processes: int = 1  # how many
sharing: str = ""  # of the plan: ddp, zero2, zero3, zero3_offload, fsdp2; empty: as launch is named
gpu_gb: float = 80.0  # of the plan: memory of each GPU
gpu_tflops: float = 312.0  # of the plan: an A100's; about 990 of an H100 or H200
only_plan: bool = False  # train nothing
output_dir: str = "results/interactive/train_a_model"

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
import dataclasses
from pathlib import Path
from typing import get_args

import pandas as pd
import yaml
from IPython.display import HTML, Markdown, display
from transformers import AutoTokenizer

from r2d_core import plots
from r2d_core.benchmarks import made_by, plans, read_benchmarks
from r2d_core.checking import unknown
from r2d_core.datasets import read_report
from r2d_core.errors import InputError
from r2d_core.generation import Request
from r2d_core.parameter_sets import launch_training, read_parameter_set, train_parameter_set
from r2d_core.pivots import PivotIds
from r2d_core.planning import Sharing
from r2d_core.provenance import footer_html, provenance
from r2d_core.reach import reach
from r2d_core.records import read_json, read_json_lines, write_text_atomic
from r2d_core.toy.base import LONGEST_ANSWER
from r2d_core.toy.stages import default_base, toy_parameter_set

shared_by = sharing or (Path(launch).stem if launch else "ddp")
if shared_by not in get_args(Sharing):
    of_launch = f", which {launch} is not named after: say how it shares the model out"
    raise InputError(
        unknown("sharing", shared_by, get_args(Sharing)) + ("" if sharing else of_launch)
    )
folder = Path(output_dir)
file = parameter_set or str(toy_parameter_set(folder, base or default_base(), toy_steps))
said = {"model": model, "data": data, "exclude": exclude, "recipe": recipe}
others = {name: value for name, value in said.items() if value}
chosen = read_parameter_set(file, **others)
if others:
    file = str(folder / "parameters.yaml")
    write_text_atomic(Path(file), yaml.safe_dump(dataclasses.asdict(chosen), sort_keys=False))
display(plots.table(pd.DataFrame(dataclasses.asdict(chosen).items(), columns=["key", "value"]),
                    index=False, caption=chosen.title))  # fmt: skip

# %% [markdown]
# ## What it takes
#
# On each GPU, at the longest examples that the set lets in; hours at examples of a thousand tokens.

# %% tags=["hide-input"]
plan = chosen.plan(
    gpus=processes, sharing=shared_by,
    gpu_bytes=int(gpu_gb * 1e9), peak_flops=gpu_tflops * 1e12,
)  # fmt: skip
print(plan)

# %% [markdown]
# ### Every parameter set
#
# Alone on one such GPU, or, where it does not fit, shared out over four by FSDP2; one epoch of the
# authors' data at a thousand tokens an example.

# %% tags=["hide-input"]
rows = []
for other in sorted(Path("experiments/models").glob("*.yaml")):
    each = read_parameter_set(other)
    machine = {"gpu_bytes": int(gpu_gb * 1e9), "peak_flops": gpu_tflops * 1e12}
    gpus, taken = 1, each.plan(gpus=1, **machine)
    if not taken.fits:
        gpus, taken = 4, each.plan(gpus=4, sharing="fsdp2", **machine)
    rows.append(
        {
            "parameter set": other.stem,
            "parameters": f"{taken.parameters / 1e9:.2f} B",
            "trained": f"{taken.trained / 1e6:.0f} M",
            "longest example": each.max_length,
            "GPUs": gpus,
            "GB on each": f"{taken.peak / 1e9:.0f}",
            "fits": "yes" if taken.fits else "no",
            "hours": f"{taken.hours:.1f}",
        }
    )
display(plots.table(pd.DataFrame(rows), index=False))

# %% [markdown]
# ### Plans beside real runs
#
# `benchmarks/planning.py` trains random models of real sizes on a GPU for a few steps: what the
# plan reckons with must be no less than what the driver gives as taken. Activations are *kept*
# or computed again. The last column is the share of the GPU's peak that the steps reached; the
# plan's hours assume 0.35, which is too much for a small model.

# %% tags=["hide-input"]
held = read_benchmarks([], ["planning"])["planning"]
for run in held:
    display(plots.table(plans([run]), index=False, number="{:.3g}",
                        caption="GB of one GPU, planned and taken"))  # fmt: skip
    display(Markdown(f"*{made_by(run)}*"))
if not held:
    display(Markdown("*Not measured:* `python benchmarks/planning.py` does, on a GPU."))

# %% [markdown]
# ## Training

# %% tags=["hide-output"]
if not only_plan and (launch or processes > 1):
    launch_training(file, folder / "run", launch, processes)
elif not only_plan:
    train_parameter_set(chosen, folder / "run")

# %% tags=["hide-input"]
if only_plan:
    display(Markdown("*Only planned.*"))
else:
    report = read_report(folder / "run" / "validation.json")
    display(Markdown(f"**{report.kept} of {report.rows} rows** of the data were learnt from."))
    if report.defects:
        display(plots.table(report.table(), index=False))
    log = pd.DataFrame(read_json_lines(folder / "run" / "log.jsonl"))
    names = ["step", "cross_entropy", "pivot_loss"]
    names += [name for name in log if name.startswith("pivot_accuracy_")]
    display(
        plots.training_curves(
            log.dropna(subset=["cross_entropy"])[names].assign(seed=0),
            alt="Cross-entropy, pivot loss and pivot accuracy against steps; the numbers are in "
            "log.jsonl.",
        )
    )

# %% [markdown]
# ## What is saved
#
# `model/` with the adapters merged, and `adapter/` alone; both load without code of this book.

# %% tags=["hide-input"]
if not only_plan:
    pivots = PivotIds.from_tokenizer(AutoTokenizer.from_pretrained(folder / "run" / "model"))
    display(plots.table(pd.DataFrame([dataclasses.asdict(pivots)]), index=False, caption="Ids"))
    if not parameter_set:
        prompts = pd.read_json(folder / "data.jsonl", lines=True)["instruction"].tolist()[:4]
        made = reach(str(folder / "run" / "model")).generator.generate(
            [Request(prompt) for prompt in prompts], LONGEST_ANSWER
        )
        answers = pd.DataFrame({"prompt": prompts, "answer": [each.text for each in made]})
        display(plots.table(answers, index=False))

# %% tags=["hide-input"]
trained = {} if only_plan else read_json(folder / "run" / "training.json")
sources = trained.get("source_sha256", [])
display(HTML(footer_html(provenance(parameters, [0], started, trained_by=sources))))
