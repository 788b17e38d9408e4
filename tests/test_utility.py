"""Utility: lm-evaluation-harness on tiny models and a task made on the spot; what answers cost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import GenerationConfig

from r2d_core import cost
from r2d_core.cost import answer_costs
from r2d_core.errors import InputError
from r2d_core.generation import Generation, OutageError, Request, TransformersGenerator
from r2d_core.pivots import expand_vocabulary
from r2d_core.records import Behavior
from r2d_core.tokenization import encode_prompt
from r2d_core.utility import PAPER_TASKS, UtilityConfig, measure_utility

CHOICE = """\
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""
WRITTEN = """\
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], max_gen_toks: 8}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""
QUESTIONS = [
    ("which colour is the bano ?", ["red", "the item", "danger"], 0),
    ("is the tiskel safe ?", ["no", "yes"], 1),
    ("who answers ?", ["the user", "the assistant"], 1),
    ("what is it ?", ["a reason", "an item"], 0),
]


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> str:
    """A folder with a task of choices and one of writing, the data beside them."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    choices = [{"question": q, "choices": c, "label": a} for q, c, a in QUESTIONS]
    sums = [{"question": q, "answer": "x"} for q, _, _ in QUESTIONS]
    for name, text, rows in (("colours", CHOICE, choices), ("sums", WRITTEN, sums)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(text.replace("DATA", json.dumps(str(data))))
    return str(folder)


def loglikelihood(model, tokenizer, prompt: str, continuation: str) -> float:
    """By the model's logits alone, with the prompt as `encode_prompt` has it."""
    before = encode_prompt(tokenizer, prompt)
    # What the library does: the continuation's ids are those of the whole text after the prompt's.
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer(rendered + continuation, add_special_tokens=False)["input_ids"]
    if whole[0] != before[0]:
        whole = [before[0], *whole]
    assert whole[: len(before)] == before
    with torch.no_grad():
        logp = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(logp[i - 1, whole[i]].item() for i in range(len(before), len(whole)))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_choices_are_scored_as_the_model_was_trained_to_be_asked(family, tasks):
    """Accuracy is that of log-probabilities after our own prompt: one template, one BOS."""
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer)
    read: list[list[int]] = []
    hook = model.model.embed_tokens.register_forward_pre_hook(
        lambda _, inputs: read.extend(inputs[0].tolist())
    )
    config = UtilityConfig(tasks=("colours",), task_folder=tasks, own_tasks_only=True)
    (score,) = measure_utility(model, tokenizer, config)
    hook.remove()
    prompts = [encode_prompt(tokenizer, question) for question, _, _ in QUESTIONS]
    assert len(read) >= len(QUESTIONS)
    assert all(any(row[: len(p)] == p for p in prompts) for row in read)
    right = 0
    for question, choices, label in QUESTIONS:
        found = [loglikelihood(model, tokenizer, question, choice) for choice in choices]
        right += found.index(max(found)) == label
    assert score.value == right / len(QUESTIONS)
    assert (score.task, score.metric, score.filter, score.n) == ("colours", "acc", "none", 4)
    assert score.higher_is_better
    assert score.stderr == pytest.approx(math.sqrt(score.value * (1 - score.value) / 3))


@pytest.mark.parametrize("expanded", [True, False])
def test_reasoning_is_cut_and_greedy_is_greedy(expanded, tasks, monkeypatch):
    """Also where `</think>` is several tokens; and a stop string in the reasoning ends nothing."""
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    if expanded:
        expand_vocabulary(model, tokenizer)
    sums = Path(tasks) / "sums.yaml"
    sums.write_text(sums.read_text().replace("until: []", 'until: ["Question:"]'))
    text = "<think> Question: y [SAFE] </think> xQuestion: z"
    written = tokenizer(text, add_special_tokens=False)["input_ids"]
    written.append(tokenizer.eos_token_id)
    own = model.generation_config = GenerationConfig(
        repetition_penalty=1.3, eos_token_id=tokenizer.eos_token_id
    )
    seen = []

    def generate(input_ids, **settings):
        seen.append((model.generation_config, settings, input_ids))
        return torch.cat([input_ids, torch.tensor([written] * len(input_ids))], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    config = UtilityConfig(
        tasks=("sums",), task_folder=tasks, own_tasks_only=True, limit=3, max_new_tokens=100
    )
    (score,) = measure_utility(model, tokenizer, config)
    assert (score.metric, score.value, score.n) == ("exact_match", 1.0, 3)
    during, settings, input_ids = seen[0]
    assert during.repetition_penalty in (None, 1.0)
    assert settings["do_sample"] is False and not settings["stopping_criteria"]
    assert settings["max_length"] == input_ids.shape[1] + config.max_new_tokens
    assert score.unfinished == 0
    assert model.generation_config is own
    prompts = [encode_prompt(tokenizer, question) for question, _, _ in QUESTIONS]
    for row, mask in zip(input_ids.tolist(), settings["attention_mask"].tolist(), strict=True):
        assert [i for i, real in zip(row, mask, strict=True) if real] in prompts
    assert tokenizer.pad_token is None  # the library gives its own copy one


@pytest.mark.parametrize("family", ["llama", "r1"])
@pytest.mark.parametrize("cut_off", [True, False])
def test_a_reasoning_without_end_answers_nothing(family, cut_off, tasks, monkeypatch):
    """Although the right answer is the last thing in it; R1's template opens it itself."""
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer)
    expand_vocabulary(model, tokenizer)
    begin = "" if family == "r1" else "<think>"
    written = tokenizer(f"{begin} y is x", add_special_tokens=False)["input_ids"]
    written += [] if cut_off else [tokenizer.eos_token_id]
    (Path(tasks) / "sums.yaml").write_text(
        (Path(tasks) / "sums.yaml").read_text()
        + "filter_list: [{name: last, filter: [{function: regex, regex_pattern: '(x)'},"
        " {function: take_first}]}]\n"
    )

    def generate(input_ids, **settings):
        return torch.cat([input_ids, torch.tensor([written] * len(input_ids))], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    config = UtilityConfig(
        tasks=("sums",), task_folder=tasks, own_tasks_only=True, max_new_tokens=100
    )
    (score,) = measure_utility(model, tokenizer, config)
    assert (score.value, score.n, score.unfinished) == (0.0, 4, 4)
    end = tokenizer("</think> x", add_special_tokens=False)["input_ids"]
    written[:] = [*written[:-1], *end, tokenizer.eos_token_id]
    (score,) = measure_utility(model, tokenizer, config)
    assert (score.value, score.unfinished) == (1.0, 0)


def test_a_model_that_reasons_for_ever_is_wrong_and_not_an_error(tasks):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    config = UtilityConfig(
        tasks=("colours", "sums"), task_folder=tasks, own_tasks_only=True, max_new_tokens=8
    )
    scores = {score.task: score for score in measure_utility(model, tokenizer, config)}
    assert scores["sums"].value == 0 and scores["sums"].unfinished == 4
    assert scores["colours"].unfinished == 0
    again = {score.task: score for score in measure_utility(model, tokenizer, config)}
    assert scores == again


def test_of_a_single_item_there_is_no_standard_error(tasks):
    tokenizer = tiny_tokenizer("word")
    model = tiny_model("word", tokenizer)
    config = UtilityConfig(
        tasks=("colours",), task_folder=tasks, own_tasks_only=True, limit=1, shots=1, system="be ."
    )
    (score,) = measure_utility(model, tokenizer, config)
    assert score.n == 1 and (math.isnan(score.stderr) or score.stderr == 0)


def test_the_papers_tasks_are_the_librarys():
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    text = "".join(
        file.read_text()
        for name in ("arc", "super_glue/boolq", "mmlu/default", "piqa", "sciq", "gsm8k")
        for file in (folder / name).glob("*.yaml")
    )
    lines = text.splitlines()
    for task in PAPER_TASKS:
        assert f"task: {task}" in lines or f"group: {task}" in lines


def test_what_is_wrong_is_said(tasks):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer)
    with pytest.raises(InputError, match="unknown task 'colors', did you mean 'colours'"):
        measure_utility(
            model, tokenizer, UtilityConfig(("colors",), task_folder=tasks, own_tasks_only=True)
        )
    with pytest.raises(InputError, match="1024 is no less than the model's context of 512 tokens"):
        measure_utility(
            model, tokenizer, UtilityConfig(("sums",), task_folder=tasks, own_tasks_only=True)
        )
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        measure_utility(
            model, tokenizer, UtilityConfig(("colours",), task_folder=tasks, own_tasks_only=True)
        )
    for settings, said in [
        ({"tasks": ()}, "expected names"),
        ({"tasks": ("a", "a")}, "each once"),
        ({"tasks": "gsm8k"}, "tasks: expected tuple of str, got 'gsm8k'"),
        ({"limit": "200"}, "limit: expected int . None, got '200'"),
        ({"system": 3}, "system: expected str, got 3"),
        ({"limit": 0}, "limit: expected at least 1"),
        ({"shots": -1}, "shots: expected at least 0"),
        ({"own_tasks_only": True}, "give a task_folder"),
        ({"task_folder": "/nowhere"}, "no folder at '/nowhere'"),
    ]:
        with pytest.raises(InputError, match=said):
            UtilityConfig(**settings)


# Cost


class Slow:
    """Answers harmful requests with long reasoning."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def generate(self, requests, max_new_tokens):
        self.asked.append([r.prompt for r in requests])
        return [self._answer(r) for r in requests]

    @staticmethod
    def _answer(request: Request) -> Generation:
        if "bad" in request.prompt:
            return Generation("<think> so bad [UNSAFE] </think> No.", 4, 40, "length")
        return Generation("yes it is", 2, 10, "stop")


def test_costs_are_told_apart_by_kind():
    behaviors = [
        Behavior("1", "bad one"),
        Behavior("2", "fine", kind="benign"),
        Behavior("3", "bad two"),
    ]
    generator = Slow()
    harmful, benign = answer_costs(generator, behaviors, 64)
    assert (harmful.kind, harmful.n) == ("harmful", 2)
    assert (harmful.response_tokens.estimate, harmful.answer_words.estimate) == (40, 1)
    assert (benign.kind, benign.n) == ("benign", 1)
    assert (benign.prompt_tokens.estimate, benign.answer_words.estimate) == (2, 3)
    assert (harmful.cut_off, benign.cut_off) == (2, 0)
    assert harmful.seconds >= 0
    assert generator.asked == [["bad one"], ["bad one", "bad two"], ["fine"]]
    about = Behavior("4", "bad four", metadata={"ContextString": "a page"})
    answer_costs(generator, [about], 64)
    assert generator.asked[-1] == [about.request] == ["a page\n\n---\n\nbad four"]
    with pytest.raises(InputError, match="at least one behavior"):
        answer_costs(generator, [], 64)


def test_what_failed_takes_no_time_of_what_is_answered(monkeypatch):
    """Retries of a request that fails are waited for in the same batch."""
    clock = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    class Busy:
        def generate(self, requests, max_new_tokens):
            lost = {r: OutageError("429") for r in requests if "busy" in r.prompt}
            clock[0] += 30.0 if lost else 0.5 * len(requests)
            if lost:
                raise OutageError("429", lost)
            return [Generation("so", 1, 1, "stop") for _ in requests]

    behaviors = [Behavior(text, text) for text in ("one", "busy", "two")]
    (found,) = answer_costs(Busy(), behaviors, 4)
    assert (found.n, found.seconds) == (2, 0.5)
    with pytest.raises(InputError, match="the model answers nothing at all: 429"):
        answer_costs(Busy(), behaviors[1:2], 4)


def test_costs_of_a_real_generator():
    tokenizer = tiny_tokenizer("llama")
    generator = TransformersGenerator(tiny_model("llama", tokenizer), tokenizer)
    behaviors = [Behavior("1", "how ?"), Behavior("2", "what is it ?", kind="benign")]
    costs = answer_costs(generator, behaviors, 4)
    assert [cost.prompt_tokens.estimate for cost in costs] == [
        len(encode_prompt(tokenizer, behavior.prompt)) for behavior in behaviors
    ]
    assert all(0 < cost.response_tokens.estimate <= 4 and cost.seconds > 0 for cost in costs)
