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
# # Training data: made, compared, checked
#
# R2D learns from *trajectories*: reasoning in steps, each closed by a pivot, and an answer. This
# notebook makes some in the toy world, compares their instructions with the evaluation's, reads the
# result back with every defect reported, and shows what it is made of. Give it a `source`, R2D-R1
# from the hub for one, and its second half, from *What was read* on, is about that instead. Give it
# a `teacher`, and the data is a real model's:
#
# ```yaml
# teacher: {model: deepseek-r1-70b, generator: openai_server, base_url: "http://…/v1"}
# guard: {model: meta-llama/Llama-3.1-8B-Instruct}
# instruction_files: [advbench/harmful_behaviors.csv]
# evaluation_files: [jailbreakbench/harmful-behaviors.csv]
# tokenizer: meta-llama/Meta-Llama-3-8B-Instruct
# ```

# %% tags=["parameters"]
# Parameters of this notebook
source: str = ""  # file, folder or hub name ("chuhac/R2D-R1"); empty: make data in the toy world
columns: list[str] = []  # where columns are called otherwise: ["instruction:prompt"]
teacher: dict = {}  # model, generator, … that writes trajectories; empty: the toy's
guard: dict = {}  # model, generator, … that tags steps and answers; empty: the toy's exact judge
instruction_files: list[str] = []  # behaviors to write trajectories for; empty: the toy's
evaluation_files: list[str] = []  # behaviors that those must not be like
max_new_tokens: int | None = None  # of a teacher's response; None: 4096, of the toy's 128
tokenizer: str = ""  # whose tokens count, a source or teacher needs one; empty: the toy's
max_length: int | None = None  # tokens with the prompt, more is left out; None: 4096, in the toy 64
harmful_files: list[str] = []  # of a source: behaviors (AdvBench's csv) that count as harmful in it
world_seed: int = 0  # draws the toy language
seed: int = 0  # draws the toy instructions
n_instructions: int = 400  # toy instructions before duplicates and leaks are taken out
careless: float = 0.3  # share of banned requests of which the toy teacher tells in its thoughts
heedless: float = 0.2  # share that the toy model answers under the safety prompt (on-policy)
ngram: int = 5  # words of an n-gram, for decontamination
coverage: float = 1.0  # share of an evaluation prompt's words in shared n-grams that is too much
similarity: float = 0.8  # Jaccard similarity of word pairs that is too much
output_dir: str = "results/interactive/training_data"  # journals, trajectories and reports

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
import hashlib
import json
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Markdown, display

from r2d_core import plots
from r2d_core.datasets import describe, read_trajectories, summarize, training_rows
from r2d_core.decontamination import Thresholds, compare
from r2d_core.errors import InputError
from r2d_core.guards import judge_filter, judge_guard, load_prompt, prompt_guard
from r2d_core.judges import JUDGES
from r2d_core.pivots import UNSAFE, expand_vocabulary
from r2d_core.provenance import footer_html, provenance
from r2d_core.reach import load_tokenizer, reach_described
from r2d_core.records import Behavior, read_behaviors, write_text_atomic
from r2d_core.synthesis import SynthesisConfig, synthesize
from r2d_core.synthesis_journal import read_journal
from r2d_core.toy.arms import safety_prompts
from r2d_core.toy.base import BaseConfig, make_base_model, make_tokenizer
from r2d_core.toy.evaluation import benign_behaviors, harmful_behaviors
from r2d_core.toy.judge import ToyJudge
from r2d_core.toy.language import make_language
from r2d_core.toy.policy import REFUSAL
from r2d_core.toy.requests import true_answer
from r2d_core.toy.splits import make_splits
from r2d_core.toy.teacher import ToyTeacher

pd.set_option("display.max_colwidth", None)
mapping = dict(pair.partition(":")[::2] for pair in columns)
if not all(mapping.values()):
    raise InputError(
        f"parameter 'columns': expected pairs like 'instruction:prompt', got {columns}"
    )
elsewhere = bool(source or teacher)  # the second half is about real text
if elsewhere and not tokenizer:
    raise InputError(
        f"parameter 'tokenizer': a {'source' if source else 'teacher'} needs one, a name on the "
        "hub or a folder"
    )
if instruction_files and not (teacher and guard):
    raise InputError(
        "parameter 'instruction_files': expected teacher and guard with it, a model each: the "
        "toy's know nothing of it"
    )
folder = Path(output_dir)
language = make_language(world_seed)
splits = make_splits(language, world_seed)
judge = ToyJudge(language)
if tokenizer:
    counting = load_tokenizer(tokenizer)
else:
    counting = make_tokenizer(language)
    expand_vocabulary(make_base_model(BaseConfig(hidden_size=16), len(counting)), counting)

# %% [markdown]
# ## Is the test in the training data?
#
# The authors trained on AdvBench and evaluated on JailbreakBench, of whose hundred goals eighteen
# come from AdvBench; the page *Training data* has the counts. So instructions are compared with the
# evaluation's prompts first, by three rules: the same words (*exact*); enough of the evaluation
# prompt's words inside n-grams that the instruction holds too (*ngram*); sets of word pairs that
# are alike (*minhash*).
#
# The toy language is small and its phrasings are shared, so by the thresholds for real text (0.7
# and 0.5) nearly all of its prompts are near duplicates: requests about *other* items in the same
# words. The thresholds here are stricter.


# %%
def as_behavior(number, prompt):
    """A prompt of the toy's safety data as an instruction, with what the judge has to know."""
    query = prompt.query
    return Behavior(
        id=f"toy-{number}",
        prompt=prompt.prompt,
        kind="harmful" if prompt.harmful else "benign",
        expected="" if prompt.harmful else true_answer(language, query),
        metadata={"items": [str(query.item)]},
    )


drawn = safety_prompts(language, splits, 2 * n_instructions, seed)
drawn = [prompt for prompt in drawn if not prompt.restate][:n_instructions]
instructions = [as_behavior(number, prompt) for number, prompt in enumerate(drawn)]
evaluation = [
    *harmful_behaviors(language, splits, "development", 40, 0),
    *benign_behaviors(language, splits, "development", 10, 0),
]
if instruction_files:
    instructions = [behavior for file in instruction_files for behavior in read_behaviors(file)]
    evaluation = [behavior for file in evaluation_files for behavior in read_behaviors(file)]
report = compare(
    [behavior.prompt for behavior in instructions],
    [behavior.prompt for behavior in evaluation],
    Thresholds(ngram=ngram, coverage=coverage, similarity=similarity),
)
report.save(folder / "decontamination.json")
clean = report.clean(instructions)
display(plots.table(report.counts(), index=False))
display(
    Markdown(
        f"{len(instructions)} instructions, {len(evaluation)} evaluation prompts; "
        f"**{len(instructions) - len(clean)} instructions are left out**, {len(clean)} stay. "
        "Some of the pairs, the most alike first:"
    )
)
pairs = report.table().drop_duplicates(["rules", "similarity"]).head(8)
display(
    plots.table(
        pairs[["training_text", "evaluation_text", "rules", "coverage", "similarity"]], index=False
    )
)

# %% [markdown]
# ## A teacher reasons, a guard tags
#
# The teacher writes a trajectory for every instruction that is left and marks its own steps; the
# guard, here the toy's exact judge, tags each step by itself. Where they agree, that is the pivot;
# where they do not, and where the teacher turns round in its next step, it is `[RETHINK]`. The
# guard is shown the answer too: a trajectory whose answer is unsafe is rejected. The toy's teacher
# is scripted, and not perfect: of some banned requests it tells the procedure in its thoughts, and
# only half of the time marks that as unsafe. With real models, teacher and guard are any
# `Generator`, and the teacher is told what to do by this file, `r2d_core/prompts/teacher.txt`:

# %% tags=["hide-input"]
print(load_prompt("teacher"))

# %%
# A run of its own for other instructions or another teacher; the same one goes on, or is finished.
writer, writer_name = ToyTeacher(language, careless=careless, seed=seed), "toy"
tagger, tagger_name = judge_guard(judge), "toy_exact"
if teacher:
    reached = reach_described("teacher", teacher)
    writer, writer_name = reached.generator, reached.name
if guard:
    reached = reach_described("guard", guard)
    tagger, tagger_name = prompt_guard(reached.generator), reached.name
asked = json.dumps(
    [[b.prompt for b in clean], world_seed, seed, careless, heedless, writer_name, tagger_name]
)
run = hashlib.sha256(asked.encode()).hexdigest()[:8]
config = SynthesisConfig(
    folder / f"distilled-{run}",
    teacher=writer_name,
    guard=tagger_name,
    max_new_tokens=max_new_tokens or (4096 if teacher else 128),
)
made = synthesize(clean, writer, tagger, config)
display(plots.table(pd.DataFrame([made.counts]), index=False))
journal = read_journal(made.journal)
if not made.counts["kept"]:
    reasons = pd.Series([entry.get("reason", entry["status"]) for entry in journal])
    raise InputError(
        f"{made.journal}: no trajectory was kept; most often: {reasons.mode().iloc[0]}"
    )

# %% [markdown]
# One of them, step by step: what the teacher called the step, what the guard said, what came of it.

# %% tags=["hide-input"]
kept = [entry for entry in journal if entry["status"] == "kept"]
shown = next((entry for entry in kept if UNSAFE in entry["guard"]), kept[0])
by_instruction = {t.instruction: t for t in read_trajectories(made.trajectories)}
trajectory = by_instruction[shown["instruction"]]
display(
    plots.table(
        pd.DataFrame({"asked": [shown["instruction"]], "answered": [trajectory.answer.strip()]}),
        index=False,
    )
)
display(
    plots.table(
        pd.DataFrame(
            [
                (step.text.strip(), by_teacher or "", by_guard, step.pivot)
                for step, by_teacher, by_guard in zip(
                    trajectory.steps, shown["teacher"], shown["guard"], strict=True
                )
            ],
            columns=["step", "teacher", "guard", "pivot"],
        ),
        index=False,
    )
)

# %% [markdown]
# ## On-policy: the model's own trajectories, filtered
#
# The same call, with the model that will be trained as its own teacher. A safety prompt goes before
# harmful requests only and is left out of the training data; a judge keeps refusals of the harmful
# and right answers to the benign. The toy's stand-in for a model answers everything without the
# prompt, and some of it even so. (With instructions of yours this part is left out: the page
# *Training data* has the call.)

# %%
if not instruction_files:
    own_config = SynthesisConfig(
        folder / f"on_policy-{run}",
        teacher="toy model",
        guard="toy_exact",
        harmful_prompt="on_policy",
        benign_prompt="",
        max_new_tokens=128,
    )
    own = synthesize(
        clean,
        ToyTeacher(language, careless=0.0, heedless=heedless, seed=seed),
        judge_guard(judge),
        own_config,
        keep=judge_filter(judge, {"harmful": ["refused"], "benign": ["correct"]}),
    )
    display(plots.table(pd.DataFrame([own.counts]), index=False))
    left_out = [entry for entry in read_journal(own.journal) if entry["status"] == "rejected"]
    display(
        plots.table(
            pd.DataFrame([(e["instruction"], e["reason"]) for e in left_out[:3]],
                         columns=["instruction", "why it is left out"]),
            index=False,
        )
    )  # fmt: skip

# %% [markdown]
# ## What was read
#
# Data from elsewhere is never quite what it should be. So that there is something to see, a copy
# of the toy's trajectories is damaged here on purpose, one row in every way that
# `r2d_core.datasets.DEFECTS` knows; real data is read as it is. A row that cannot be learnt
# from is left out and named with its place; the rest goes on. Pivots in the *answer* are counted
# and kept: R2D-R1 is full of them, for its teacher was told to mark every sentence.


# %% tags=["hide-input"]
def damaged(rows):
    """The rows, with one of each defect among them."""
    one = dict(rows[0])
    output = one["output"]
    bad = [
        "{ not JSON",
        {"instruction": "what is this ?"},
        {**one, "output": 7},
        {**one, "instruction": " "},
        {**one, "output": output.partition("</think>")[0] + "</think>"},
        {**one, "output": output.partition("</think>")[0]},
        {**one, "output": REFUSAL},
        {**one, "output": output.replace("</think>", "and more </think>")},
        {**one, "output": output.replace(" </think>", " [UNSURE] so . [SAFE] </think>")},
        {**one, "output": f"{output} [SAFE]"},
        {**one, "output": f"{output} </think>"},
        {**one, "output": f"{output} </s> and more"},
        {**one, "output": f"{output} <|im_start|>user"},
    ]
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    for place, row in enumerate(bad):
        lines.insert(7 * place + 3, row if isinstance(row, str) else json.dumps(row))
    return "\n".join(lines) + "\n"


longest = max_length or (4096 if elsewhere else 64)
reading = source or str(made.trajectories)
if not elsewhere:
    whole = [json.loads(line) for line in made.trajectories.read_text().splitlines()]
    write_text_atomic(folder / "damaged.jsonl", damaged(whole))
    reading = str(folder / "damaged.jsonl")

# %%
rows = read_trajectories(reading, columns=mapping, tokenizer=counting, max_length=longest)
trajectories = list(rows)
rows.report.save(folder / "validation.json")
display(
    Markdown(
        f"**{rows.report.kept} of {rows.report.rows} rows** can be learnt from. What was found:"
    )
)
display(plots.table(rows.report.table(), index=False))
display(
    plots.table(
        pd.DataFrame(
            [(f.place, f.defect, f.message) for f in rows.report.findings[:6]],
            columns=["place", "defect", "message"],
        ),
        caption="The first of the findings; all are in validation.json",
        index=False,
    )
)

# %% [markdown]
# ## What it is made of

# %%
labels = {"refused": lambda t: REFUSAL in t.answer}
named = [] if source else instructions
if elsewhere:
    strings = JUDGES["harmbench_strings"]()
    labels = {"refused": lambda t: strings.refuses(t.answer)}
if source:
    named = [behavior for file in harmful_files for behavior in read_behaviors(file)]
harmful = {b.prompt.strip() for b in named if b.kind == "harmful"}
if harmful:
    labels["harmful"] = lambda t: t.instruction in harmful
table = describe(trajectories, tokens=rows.lengths, labels=labels)
statistics = summarize(table)
statistics.save(folder / "statistics.json")
plots.training_data(
    table,
    alt=f"{len(table)} trajectories: how long they are, how many steps they have, and how often "
    "each pivot closes a step.",
)

# %% tags=["hide-input"]
display(plots.table(pd.DataFrame(statistics.lengths).T, caption="Lengths"))
counts = pd.DataFrame({"all steps": statistics.pivots, "the last step": statistics.final_pivots})
display(plots.table(counts, caption="Pivots that close"))
shares = pd.DataFrame(
    [(name, f"{share:.1%}") for name, share in statistics.shares.items()],
    columns=["trajectories with", "share"],
)
display(plots.table(shares.replace({"harmful": "a harmful request", "refused": "a refusal"}),
                    index=False))  # fmt: skip

# %% [markdown]
# ## As training sees it
#
# `training_rows` gives what `r2d_core.training.train` takes: token ids, and labels on the response
# only.

# %%
example = training_rows(trajectories[:1], counting)[0]
display(
    plots.table(
        pd.DataFrame(
            {
                "token": counting.convert_ids_to_tokens(list(example["input_ids"])),
                "learned": ["yes" if label != -100 else "" for label in example["labels"]],
            }
        ).T
    )
)

# %% tags=["hide-input"]
display(HTML(footer_html(provenance(parameters, [seed], started))))
