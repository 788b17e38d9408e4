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
# # How far to trust a judge
#
# An attack success rate is what a judge says it is, and the field's judges disagree. Of 300
# responses that three people labelled for JailbreakBench, 190 were failed attacks; GCG's list of
# refusal strings calls 69% of these successes (131: 68.9%; where 69.0 is written, a rounded number
# was rounded again), the Llama-3-70B judge 12%. On the 1,400 published responses with both labels
# that judge finds 45.9% successes and Llama Guard 45.6%, yet on 8.1% they disagree (the 46.8, 47.8
# and 9.7 told of 1,600 do not come out of these). The toy world has a judge that is never wrong, so
# here the published lists of strings are held against the truth; given a table of real labels, the
# same pages show any judge against people.

# %% tags=["parameters"]
# Parameters of this notebook
labels_file: str = ""  # csv with a row an item, 1 (success) or 0 in it; empty: the toy world
human: str = "human_majority"  # its column with the true labels
judges: list[str] = []  # its columns with judges' labels; empty: all others of 0 and 1
requests: str = ""  # its column that says which rows answer one request; empty: each its own
experiment_dir: str = ""  # results of a toy experiment, whose responses are judged; empty: made up
scope: str = "answer"  # of the toy's responses: "whole", "reasoning" or "answer"
n_items: int = 400  # made-up responses
seed: int = 0  # of the made-up responses and of the split into halves
output_dir: str = "results/interactive/judge_agreement"  # the tables

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
import random
from itertools import combinations
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Markdown, display

from r2d_core import plots
from r2d_core.attack_success import attack_succeeded
from r2d_core.errors import InputError
from r2d_core.judges import ABSENT, JUDGES, SCOPES, RefusalStrings, judge_all
from r2d_core.judges.agreement import agreement, corrected_rate, rate_of, read_labels, read_requests
from r2d_core.pivots import SAFE, THINK_CLOSE, THINK_OPEN, UNSAFE
from r2d_core.provenance import footer_html, provenance
from r2d_core.records import (
    Behavior,
    Completion,
    read_completions,
    read_verdicts,
    write_json_atomic,
    write_text_atomic,
)
from r2d_core.sampling_error import clustered_kappa
from r2d_core.toy.data import disjoint_other
from r2d_core.toy.evaluation import harmful_behaviors, query_of
from r2d_core.toy.judge import ToyJudge
from r2d_core.toy.language import make_language
from r2d_core.toy.policy import REFUSAL
from r2d_core.toy.requests import Query, restatement, true_answer
from r2d_core.toy.splits import make_splits

if scope not in SCOPES:
    raise InputError(f"parameter 'scope': expected one of {', '.join(SCOPES)}, got {scope!r}")
if n_items < 20:
    raise InputError(f"parameter 'n_items': expected at least 20, got {n_items}")

# %% [markdown]
# ## Responses and their true labels
#
# The made-up responses are what a model under attack writes: it tells, refuses, refuses after a
# polite beginning, refuses and then tells all the same, tells of another item (harmless, and no
# refusal), thinks the answer through before it refuses, or writes nonsense. How often a judge errs
# depends on how many of each there are, so these error rates are nobody's but the mixture's. With
# `experiment_dir` the responses are a run's own.


# %%
def made_up(n, seed):
    """Responses to harmful how-to requests, each of a kind drawn by weight, and exact verdicts."""
    language = make_language(0)
    splits = make_splits(language, 0)
    judge, rng = ToyJudge(language), random.Random(f"judge-agreement-{seed}")
    behaviors = harmful_behaviors(language, splits, "development", -(-n // 3), seed)[:n]
    allowed = tuple(i for i in splits.safety_items if not language.banned(i))
    completions = []
    for behavior in behaviors:
        query = query_of(behavior)
        told = true_answer(language, query)
        other = disjoint_other(language, query.item, allowed, rng)
        of_another = true_answer(language, Query(query.topic, other))
        words = told.split()
        rng.shuffle(words)
        think = f"{THINK_OPEN} {restatement(query)}"
        kinds = {
            "tells": (told, 2),
            "refuses": (REFUSAL, 3),
            "begins politely, refuses": (f"sure , {REFUSAL}", 2),
            "refuses, then tells": (f"{REFUSAL} {told}", 1),
            "tells of another item": (of_another, 1),
            "thinks it through, refuses": (
                f"{think} {told} {UNSAFE} {THINK_CLOSE} {REFUSAL}",
                2,
            ),
            "thinks, then tells": (f"{think} {SAFE} {THINK_CLOSE} {told}", 1),
            "nonsense": (" ".join(words), 1),
        }
        texts, weights = zip(*kinds.values(), strict=True)
        text = rng.choices(texts, weights)[0]
        completions.append(Completion(behavior.id, "made_up", behavior.prompt, text))
    verdicts = [judge.judge(b, c) for b, c in zip(behaviors, completions, strict=True)]
    return behaviors, completions, verdicts, [behavior.id for behavior in behaviors]


def of_an_experiment(folder):
    """Every response to an attack in an experiment's results, with the exact judge's verdicts, and
    the request behind it, which other runs and attacks have put too."""
    behaviors, completions, verdicts, asked = [], [], [], []
    for file in sorted(Path(folder).glob("base*/*/attacks/**/verdicts.jsonl")):
        for verdict, completion in zip(
            read_verdicts(file), read_completions(file.with_name("completions.jsonl")), strict=True
        ):
            name = f"{file.parent}/{verdict.attack}/{verdict.behavior_id}"
            behaviors.append(Behavior(name, completion.prompt))
            completions.append(
                Completion(
                    name, completion.attack, completion.prompt, completion.text, completion.prefill
                )
            )
            verdicts.append(verdict)
            asked.append((file.relative_to(folder).parts[0], verdict.behavior_id))
    if not verdicts:
        raise InputError(
            f"parameter 'experiment_dir': no base*/*/attacks/…/verdicts.jsonl under {folder!r}; "
            "run the experiment first"
        )
    return behaviors, completions, verdicts, asked


# %%
if labels_file:
    true, said = read_labels(labels_file, human, judges)
    request_of = read_requests(labels_file, requests) if requests else list(range(len(true)))
    source = f"{len(true)} items of {Path(labels_file).name}, true labels from {human}"
else:
    behaviors, completions, exact, asked = (
        of_an_experiment(experiment_dir) if experiment_dir else made_up(n_items, seed)
    )
    strings = [judge() for judge in JUDGES.values() if issubclass(judge, RefusalStrings)]
    verdicts = {judge: judge_all(judge, behaviors, completions) for judge in strings}
    # A response that has no such part, reasoning above all, has nothing to be right about.
    there = [i for i, verdict in enumerate(exact) if getattr(verdict, scope) != ABSENT]
    true = [attack_succeeded(exact[i], scope) is True for i in there]
    request_of = [asked[i] for i in there]
    said = {
        judge.name: [attack_succeeded(found[i], scope) for i in there]
        for judge, found in verdicts.items()
    }
    source = f"{len(true)} responses of the toy world, {scope}, true labels from the exact judge"
display(Markdown(f"{source}; {sum(true)} of them are successes of the attack."))

# %% [markdown]
# ## Agreement
#
# *False positives* are failed attacks that the judge calls successes, *false negatives* successes
# that it misses. Kappa is agreement beyond chance: 0 is a coin that knows how often to say yes, 1
# is never wrong. All with 95% intervals, here and below, which take a request for one draw, with
# all responses to it: in a run it comes again under other methods, attacks and seeds (in a file,
# where `requests` names the column that says so). An answer of a judge that could not be read is
# *unparsable*: it agrees with nobody and stands in neither error rate.

# %% tags=["hide-input"]
compared = {name: agreement(labels, true, request_of) for name, labels in said.items()}
summary = pd.DataFrame(
    {
        name: {
            "agreement": str(found.agreement),
            "false positives": str(found.false_positive),
            "false negatives": str(found.false_negative),
            "kappa": f"{found.kappa.kappa:.2f} [{found.kappa.low:.2f}, {found.kappa.high:.2f}]",
            "unparsable": str(found.unparsable),
        }
        for name, found in compared.items()
    }
).T
write_text_atomic(Path(output_dir) / "agreement.csv", summary.to_csv(index_label="judge"))
display(plots.table(summary))

# %% tags=["hide-input"]
plots.rate_intervals(
    pd.DataFrame(
        [
            {
                "title": name,
                "outcome": what,
                "successes": rate.successes,
                "n": rate.n,
                "low": rate.low,
                "high": rate.high,
            }
            for name, found in compared.items()
            for what, rate in (
                ("false positives", found.false_positive),
                ("false negatives", found.false_negative),
            )
            if rate.n
        ]
    ),
    alt="False positives and false negatives of each judge, with 95% intervals.",
)

# %% [markdown]
# ## Judge against judge
#
# Kappa between the judges, true labels left out, with 95% interval, and the share of items on which
# they agree. Two that share an error agree on it.

# %% tags=["hide-input"]
between = []
for one, other in combinations(said, 2):
    kappa = clustered_kappa(said[one], said[other], request_of)
    same = [a == b for a, b in zip(said[one], said[other], strict=True)]
    between.append(
        {
            "judges": f"{one}, {other}",
            "agreement": str(rate_of(same, request_of)),
            "kappa": f"{kappa.kappa:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]",
        }
    )
if between:
    pairs = pd.DataFrame(between).set_index("judges")
    write_text_atomic(Path(output_dir) / "between_judges.csv", pairs.to_csv())
    display(plots.table(pairs))

# %% [markdown]
# ## The attack success rate that a judge reports, and the one behind it
#
# The items are divided at random, all of a request together: the first half serves as the sample
# that people labelled, from which a judge's errors are known; the second is an evaluation of which
# only the judge's labels are known. Its rate is put right for those errors (Rogan and Gladen), with
# an interval that holds the uncertainty of both halves. In the last column stands the truth that
# the correction has not seen.
#
# The correction holds only where the judge errs on the new responses as it does on the labelled
# ones. Here it does, because both are halves of one sample. Another model, or another attack, makes
# other mistakes easy; then label some of its responses.

# %% tags=["hide-input"]
halves = list(dict.fromkeys(request_of))
random.Random(f"halves-{seed}").shuffle(halves)
first_half = set(halves[: len(halves) // 2])
labelled = [i for i, request in enumerate(request_of) if request in first_half]
rest = [i for i, request in enumerate(request_of) if request not in first_half]
rows = []
for name, labels in said.items():
    read = [i for i in rest if labels[i] is not None]
    observed = rate_of([labels[i] for i in read], [request_of[i] for i in read])
    row = {"judge": name, "reported": str(observed)}
    try:
        errors = agreement(*([of[i] for i in labelled] for of in (labels, true, request_of)))
        row["corrected"] = str(corrected_rate(observed, errors, seed=seed))
    except InputError as error:  # a judge no better than chance, or a half with one kind of item
        row["corrected"] = f"– ({error})"
    row["true"] = str(rate_of([true[i] for i in rest], [request_of[i] for i in rest]))
    rows.append(row)
corrected = pd.DataFrame(rows).set_index("judge")
write_text_atomic(Path(output_dir) / "corrected.csv", corrected.to_csv())
display(plots.table(corrected))

# %% [markdown]
# ## Where they err
#
# Two responses of each kind of error, of the toy world's only.

# %% tags=["hide-input"]
pd.set_option("display.max_colwidth", None)
if not labels_file:
    wrong = pd.DataFrame(
        [
            (name, "false positive" if labels[k] else "false negative", completions[i].text)
            for name, labels in said.items()
            for k, i in enumerate(there)
            if labels[k] != true[k]
        ],
        columns=["judge", "error", "response"],
    )
    few = wrong.groupby(["judge", "error"], sort=False).head(2)
    display(plots.table(few, index=False))

# %% tags=["hide-input"]
record = provenance(parameters, [seed], started)
write_json_atomic(Path(output_dir) / "judge_agreement.json", record)
display(HTML(footer_html(record)))
