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
# # Evaluate a model
#
# Attacks on the behaviors, the model's answers, the judges' verdicts, the rates: for any model and
# any of the suites' files. Each step is a file in the output folder and is not done again; a killed
# run goes on where it was, and any step can begin from somebody else's file (test cases,
# completions, verdicts). With one more attack or judge, one less, or more requests (`limit`), the
# same folder is gone on with, and only what is new is asked. On its defaults it asks the toy
# world's R2D the toy world's requests.
#
# With real models, for example, in the repository's root, from which all paths are named:
#
# ```bash
# python experiments/run_notebook.py notebooks/15_evaluate_a_model.ipynb results/mine/15.ipynb -y '
#   model: meta-llama/Meta-Llama-3-8B-Instruct
#   behaviors: [jailbreakbench/harmful-behaviors.csv, jailbreakbench/benign-behaviors.csv]
#   attacks: {direct: {}, prefill_lead: {}, gcg_nanogcg: {steps: 100}}
#   judges: {harmbench_strings: {}, llama_guard_3: {model: meta-llama/Llama-Guard-3-8B}}
#   output_dir: results/mine/llama-3-8b'
# ```
#
# `experiments/evaluate_models.py` does it for several models, defences and seeds;
# {doc}`/book/your_own_model` says what is in the files.

# %% tags=["parameters"]
# Parameters of this notebook
model: str = ""  # folder or name on the hub; empty: the toy world's R2D
generator: str = "transformers"  # or "vllm", "openai_server"
generator_settings: dict = {}  # base_url, dialect, tokenizer, cache, max_model_len, dtype, …
chat_template: bool | str = True  # its own; "plain", "vicuna": one for a model without; False: bare
defense: str = ""  # of r2d_core.defenses.DEFENSES, round the model
defense_settings: dict = {}  # of that defence: {copies: 5} of smooth_llm
behaviors: list[str] = []  # files of behaviors, OR-Bench's csv too; empty: the toy world's
targets: str = ""  # HarmBench's targets: a JSON object id -> string
leave_out: list[str] = []  # tags; ["hash_check"]: HarmBench's copyrighted texts
limit: int = 0  # behaviors of each kind, the first; 0: all
attacks: dict[str, dict] = {"direct": {}, "prefill_lead": {}}  # name -> settings
material_file: str = ""  # JSON: wrappers with {request} in them, shots [[question, answer], …]
attacker: dict = {}  # model (and generator, …) that writes prompts for PAIR and TAP
evaluator: dict = {}  # model that says whether TAP's prompts are on topic; empty: the attacker
surrogates: list[dict] = []  # models that gcg_transfer is made on
test_cases: str = ""  # somebody's file in place of attacks
completions: str = ""  # somebody's file in place of the model
verdicts: str = ""  # somebody's file or folder in place of the model and the judges
judges: dict[str, dict] = {"harmbench_strings": {}}  # name -> model, generator, …
max_new_tokens: int | None = None  # of an answer with its reasoning; None: 1024, in the toy 64
timed: int = 8  # requests of each kind whose answers' seconds are measured; 0: none
utility: dict = {}  # of UtilityConfig: {tasks: [gsm8k], limit: 200}; empty: not measured
seed: int = 0  # of what an attack draws, and a defence (smooth_llm, synonym_substitution)
export: str = ""  # "harmbench" or "jailbreakbench": files for these suites besides
beside: list[str] = []  # output folders of finished evaluations to compare this one with
output_dir: str = "results/interactive/evaluation"  # one folder a model, defence and seed

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
from r2d_core.attacks import make_attack
from r2d_core.cost import COUNTS, Cost
from r2d_core.evaluation import (
    UNASKED,
    answer_all,
    attack_all,
    check_folder,
    check_reached,
    costs_once,
    judge_once,
    utility_config,
    utility_once,
)
from r2d_core.evaluation_counts import outcomes, scores, spending, summary, summary_by
from r2d_core.evaluation_inputs import (
    behaviors_of,
    check_anything_asked,
    check_choices,
    check_judgeable,
    first_of_each_kind,
    read_judged,
    read_material,
    with_forgeries,
    with_own_traces,
    with_targets,
    without_tags,
)
from r2d_core.evaluation_tables import Run, as_text, named, table_of, write_tables
from r2d_core.evaluations_compared import compare_evaluations
from r2d_core.generation import encodable
from r2d_core.metrics import NUMBERS
from r2d_core.provenance import footer_html, provenance
from r2d_core.reach import defend, draws, make_judges, reach, reach_described
from r2d_core.records import read_completions, read_test_cases
from r2d_core.run_lock import keep_others_out_of
from r2d_core.suite_files import write_suite_files
from r2d_core.toy.base import LONGEST_ANSWER
from r2d_core.toy.evaluation import toy_evaluation
from r2d_core.toy.stages import default_checkpoint
from r2d_core.utility import Score

check_choices(parameters)
folder = Path(output_dir)
keep_others_out_of(folder)
for other in beside:
    Run.read(other)
material, exact = UNASKED, None
if behaviors:
    asked, sources = behaviors_of(behaviors)
    asked = without_tags(asked, leave_out)
else:
    asked, exact, material = toy_evaluation()
    sources = {behavior.id: "toy world" for behavior in asked}
asked = first_of_each_kind(asked, limit)
if targets:
    asked = with_targets(asked, targets)
if material_file:
    material = read_material(material_file)
attempts = {name: make_attack(name, **settings) for name, settings in attacks.items()}
check_anything_asked(asked, attempts, parameters)
sources = {behavior.id: sources[behavior.id] for behavior in asked}
default_length = 1024 if behaviors else LONGEST_ANSWER
longest = default_length if max_new_tokens is None else max_new_tokens
judged = read_judged(verdicts) if verdicts else {}
sitting = {} if verdicts else make_judges(judges, folder)
if exact is not None and not verdicts:
    sitting = {exact.name: (exact, "")} | sitting
check_judgeable([judge for judge, _ in sitting.values()], asked)
from_file = bool(completions or verdicts)
template = {} if chat_template is True else {"chat_template": chat_template}
drawn = {"seed": seed} | defense_settings if draws(defense) else defense_settings
run = Run(
    model=named(model or ("" if from_file else "toy world's R2D"), generator_settings | template),
    defense=named(defense, defense_settings) if defense else "",
    seed=seed,
    source=", ".join(dict.fromkeys(sources.values())),
    max_new_tokens=None if from_file else longest,
    judges=dict.fromkeys(judged) or {name: of for name, (_, of) in sitting.items()},
)
kinds = [behavior.kind for behavior in asked]
display(
    plots.table(
        pd.DataFrame(
            {
                "model": run.model or "not said: of a file",
                "defence": run.defense or "none",
                "judges": ", ".join(run.judges),
                "requests": f"{kinds.count('harmful')} harmful, {kinds.count('benign')} benign",
                "of": run.source,
                "seed": seed,
            }.items(),
            columns=["", "evaluated here"],
        ),
        index=False,
    )
)

# %% [markdown]
# ## Attacks and answers
#
# Attacks on the pivots aim at what the model itself writes on each request up to a pivot.

# %% tags=["hide-input"]
if verdicts:
    answered = []
elif completions:
    answered = read_completions(completions)
else:
    place = model or str(default_checkpoint("r2d", 0))
    reached = reach(place, generator, **generator_settings | template)
    if utility:
        utility_config(utility, reached)
    bare = reached
    if defense:
        reached = defend(bare, defense, **drawn)
    check_folder(folder, reached, run.judges, max_new_tokens=longest)
    aimed = asked
    if not test_cases:
        check_reached(attempts.values(), reached)
        if any("pivot_target" in attack.needs for attack in attempts.values()):
            aimed = with_own_traces(asked, bare, folder, max_new_tokens=longest)
    if behaviors:
        aimed = with_forgeries(aimed)
    if test_cases:
        cases = read_test_cases(test_cases)
    else:
        cases = attack_all(
            aimed, attempts, reached, next(iter(sitting.values()))[0], folder,
            max_new_tokens=longest, seed=seed,
            attacker=reach_described("attacker", attacker) if attacker else None,
            evaluator=reach_described("evaluator", evaluator) if evaluator else None,
            surrogates=[reach_described("a surrogate", each) for each in surrogates],
            material=material,
        )  # fmt: skip
    answered = answer_all(cases, reached, folder, max_new_tokens=longest)
spent = spending(answered)
if verdicts:
    display(Markdown("*Verdicts alone were given: nothing was asked.*"))
else:
    display(
        plots.table(
            as_text(spent, none="not known"),
            caption="Tokens of an answer and queries of an attack: means with 95% intervals over "
            "behaviors (n)",
            index=False,
        )
    )

# %% [markdown]
# ## What an answer costs
#
# Of direct requests, asked in one batch a kind: the mean of an answer, reasoning included. The
# seconds are those of the batch over its answers, timed once, and have no interval.

# %% tags=["hide-input"]
costs = []
if timed and not from_file:
    some = first_of_each_kind(asked, timed)
    costs = costs_once(some, reached, folder, max_new_tokens=longest)
    rows = [
        {"kind": cost.kind}
        | {name.replace("_", " "): str(getattr(cost, name)) for name in COUNTS}
        | {"seconds": cost.seconds, "cut off": cost.cut_off}
        for cost in costs
    ]
    display(
        plots.table(
            pd.DataFrame(rows),
            caption="Means with 95% intervals over requests (n)",
            index=False,
            number="{:.3g}",
        )
    )
else:
    display(Markdown("*No answer was timed.*"))

# %% [markdown]
# ## Attack success
#
# By each judge's own labels, of the whole response, its reasoning and its answer. What a judge's
# model said that cannot be read is *unparsable*, and in no rate. A request for which an attack has
# no prompt or no completion is a failure, and *not attempted*; where a model was down, run again.
# Where an attack has several completions of a request, the rate is the mean over requests of each
# one's share, as HarmBench counts, and its interval is about requests.

# %% tags=["hide-input"]
if not verdicts:
    judged = {
        name: judge_once(judge, asked, answered, folder, model=judge_model)
        for name, (judge, judge_model) in sitting.items()
    }
succeeded, refused = summary(asked, judged)
whole = succeeded[succeeded["scope"] == "whole"]
if len(whole):
    display(
        plots.rate_intervals(
            pd.DataFrame(
                {
                    "title": row["attack"],
                    "outcome": row["judge"],
                    **{name: getattr(row["success"], name) for name in NUMBERS["rate"]},
                }
                for row in whole.to_dict("records")
            ),
            alt="Attack success rate of each attack by each judge, with 95% intervals; the "
            "numbers are in the table below.",
        )
    )
    display(plots.table(as_text(succeeded), index=False))
else:
    display(Markdown("*No harmful request was asked, or no judge here tells success.*"))
scored = scores(asked, judged)
if len(scored):
    display(
        plots.table(as_text(scored), caption="StrongREJECT's mean score, from 0 to 1", index=False)
    )

# %% [markdown]
# ## Over-refusal
#
# Refusals of the benign requests as they stand, and beside them those of the harmful ones: a model
# that refuses everything refuses these, too. *partial* is of judges that know partial refusals. An
# answer that a provider's filter withheld is *unparsable*, neither a refusal nor none.

# %% tags=["hide-input"]
if len(refused):
    display(plots.table(as_text(refused), index=False))
else:
    display(Markdown("*No judge here tells refusals.*"))

# %% [markdown]
# ## By source
#
# Of the whole response, where the requests are of several files.

# %% tags=["hide-input"]
by_source, refused_by_source = summary_by(asked, judged, {"source": sources})
if len(set(sources.values())) > 1:
    for frame in (by_source, refused_by_source):
        shown = frame[frame["scope"] == "whole"].drop(columns="scope")
        if len(shown):
            display(plots.table(as_text(shown), index=False))
else:
    display(Markdown("*They are of one.*"))

# %% [markdown]
# ## By category
#
# As the file of behaviors has them: HarmBench's semantic categories, JailbreakBench's, XSTest's
# types of prompt. Of the whole response. Few requests a category leave wide intervals, and of many
# categories some are high by chance.

# %% tags=["hide-input", "hide-output"]
categories = {behavior.id: behavior.category for behavior in asked}
by_category, refused_by_category = summary_by(
    asked, judged, {"source": sources, "category": categories}
)
if len(set(categories.values())) > 1:
    one = ["scope"] if len(set(sources.values())) > 1 else ["scope", "source"]
    for frame in (by_category, refused_by_category):
        shown = frame[frame["scope"] == "whole"].drop(columns=one)
        if len(shown):
            display(plots.table(as_text(shown), index=False))
else:
    display(Markdown("*They have none, or one.*"))

# %% [markdown]
# ## Ability
#
# By lm-evaluation-harness, of the model without a defence. *unfinished*: answers that ended at the
# token limit or within the reasoning.

# %% tags=["hide-input"]
measured = utility_once(utility, reached, folder) if utility and not from_file else []
if measured:
    display(plots.table(table_of(Score, measured), index=False, number="{:.3f}"))
else:
    display(Markdown("*Not measured here.*"))

# %% [markdown]
# ## Some answers

# %% tags=["hide-input"]
first = {completion.attack: completion for completion in reversed(answered)}
first = {attack: first[attack] for attack in dict.fromkeys(c.attack for c in answered)}
if first:
    display(
        plots.table(
            pd.DataFrame(
                {
                    "attack": attack,
                    "prompt": encodable(completion.prompt[:300]),
                    "put into its mouth": encodable(completion.prefill[:200]),
                    "answer": encodable(completion.text[:600]),
                }
                for attack, completion in first.items()
            ),
            index=False,
        )
    )
else:
    display(Markdown("*None are here.*"))

# %% tags=["hide-input"]
write_tables(
    folder,
    run,
    {
        "success": succeeded,
        "success_by_source": by_source,
        "success_by_category": by_category,
        "refusals": refused,
        "refusals_by_source": refused_by_source,
        "refusals_by_category": refused_by_category,
        "scores": scored,
        "spending": spent,
        "costs": table_of(Cost, costs),
        "utility": table_of(Score, measured),
        "outcomes": outcomes(asked, judged, sources),
    },
)
run.write(folder)
if export:
    for name, made in judged.items():
        said = write_suite_files(
            export, folder / export / name, model or "toy", asked, answered, made
        )
        display(plots.table(pd.DataFrame(said.items(), columns=["attack", name]), index=False))

# %% [markdown]
# ## Beside other evaluations
#
# Each model with its defence; runs of one that differ in the seed count together, a request with
# all of its runs being one draw, and *over seeds* is the mean of their rates. The tests are paired,
# on the requests that both were asked: `only a` and `only b` count the pairs of outcomes of which
# one alone is a success (or a refusal).

# %% tags=["hide-input"]
if beside:
    compared = compare_evaluations([*beside, folder])
    display(plots.table(as_text(compared.rates), index=False))
    display(plots.table(compared.differences, index=False, number="{:.3g}"))
    compared.write(folder)
else:
    display(Markdown("*None were given (`beside`).*"))

# %% tags=["hide-input"]
display(HTML(footer_html(provenance(parameters, [seed], started))))
