"""Attacks: one call for all, deterministic, resumable, not ended by a bad model; GCG apart."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from attack_world import (
    BEHAVIORS,
    KNOWN,
    MATERIAL,
    Broken,
    Echo,
    ScoreByLength,
    Writer,
    local_target,
)

from r2d_core.attack_titles import TITLES, attack_title
from r2d_core.attacks import (
    ATTACKS,
    Material,
    Surrogate,
    Target,
    make_attack,
    queries,
    random_search,
)
from r2d_core.attacks.attack import dialogue, no_rewrite
from r2d_core.attacks.autodan import cross, sentences_of, whole
from r2d_core.attacks.best_of_n import augment
from r2d_core.attacks.gradient import Losses
from r2d_core.attacks.identity import identity
from r2d_core.attacks.journal import Journal, RecordedGenerator
from r2d_core.attacks.prompts import out_of_ten, prompt_text, written_prompt
from r2d_core.attacks.tap import topic_verdict
from r2d_core.attacks.template_stripping import without_chat_template
from r2d_core.defenses import SelfReminder
from r2d_core.errors import InputError
from r2d_core.generation import (
    Generation,
    OpenAIServerGenerator,
    OutageError,
    Request,
    RequestError,
    complete,
)
from r2d_core.pivots import NEW_TOKENS
from r2d_core.records import Behavior, TestCase, read_test_cases, write_jsonl
from r2d_core.tokenization import encode_prompt

SMALL_GCG = {"steps": 3, "suffix_tokens": 3, "candidates": 8, "top_k": 6}
SMALL: dict[str, dict[str, Any]] = {
    "gcg_answer": SMALL_GCG,
    "gcg_pivot": SMALL_GCG,
    "gcg_reasoning": SMALL_GCG,
    "gcg_nanogcg": {**SMALL_GCG, "init": ""},
    "gcg_harmbench": {**SMALL_GCG, "init": "", "judge_every": 1, "judge_below": 1e9},
    "gcg_multi": {**SMALL_GCG, "init": ""},
    "gcg_transfer": {**SMALL_GCG, "init": ""},
    "best_of_n": {"n": 4},
    "tap": {"width": 2, "branches": 2, "depth": 2},
    "random_search": {"iterations": 6, "suffix_tokens": 3, "judge_calls": 2},
    "random_search_reasoning": {"iterations": 6, "suffix_tokens": 3, "judge_calls": 2},
    "random_search_pivot": {"iterations": 6, "suffix_tokens": 3, "judge_calls": 2},
    "few_shot_attacker": {"pool": 3, "rounds": 2, "prompts": 3, "shots": 2},
    "autodan": {"generations": 3, "population": 4, "mutation": 1.0, "enough": 1.0},
}
TOGETHER = ("gcg_multi", "gcg_transfer")
"""Attacks on all behaviors at once."""
SEEDED = {
    "few_shot", "few_shot_attacker", "wrapper", "templates", "zero_shot", "refinement",
    "best_of_n", "pair", "tap", "autodan",
    *(n for n in ATTACKS if n.startswith(("gcg_", "random_search"))),
}  # fmt: skip
"""Attacks that draw at random."""
ASKING = ["refinement", "best_of_n", "pair", "tap", "autodan", "gcg_harmbench", "random_search"]
"""Attacks that look at the target's answers."""
BY_ATTACKER = ["zero_shot", "few_shot_attacker", "pair", "tap"]
KEEPING = [
    *(n for n in ATTACKS if n.startswith(("gcg_", "random_search"))),
    "refinement", "best_of_n", "pair", "tap", "autodan", "zero_shot", "few_shot_attacker",
]  # fmt: skip
"""Attacks that write down how far they are."""


@pytest.fixture(scope="module")
def target() -> Target:
    other = local_target(seed=1)
    on = (Surrogate(other.model, other.tokenizer),)
    return local_target(surrogates=on, attacker=Writer())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The files that attacks of the user's material read."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "templates.txt").write_text("so . {request}\n---\nwait : [REPLACE] .\n---\nhello .\n")
    write_jsonl(folder / "cases.jsonl", [TestCase(b.id, "x", f"so {b.prompt}") for b in BEHAVIORS])
    return {
        "templates": {"file": str(folder / "templates.txt")},
        "transfer": {"file": str(folder / "cases.jsonl")},
    }


def test_every_attack_has_a_title_for_readers():
    assert TITLES.keys() == ATTACKS.keys()
    assert attack_title("my_own") == "my own"


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_one_call(name: str, target: Target, files: Any, tmp_path: Path) -> None:
    attack = make_attack(name, **SMALL.get(name, {}), **files.get(name, {}))
    cases = attack.run(BEHAVIORS, target, MATERIAL, seed=0)
    assert [c.behavior_id for c in cases] == ["b0", "b1"]
    assert {c.attack for c in cases} == {name}
    write_jsonl(tmp_path / "cases.jsonl", cases)
    assert read_test_cases(tmp_path / "cases.jsonl") == cases
    assert cases == attack.run(BEHAVIORS, target, MATERIAL, seed=0)
    assert all("errors" not in c.metadata for c in cases)
    # What an attack makes of a behavior does not depend on its neighbours.
    if name not in TOGETHER:
        assert attack.run(BEHAVIORS[1:], target, MATERIAL, seed=0) == cases[1:]
    others = [attack.run(BEHAVIORS, target, MATERIAL, seed=s) for s in (1, 2, 3)]
    assert any(other != cases for other in others) == (name in SEEDED)


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in ("transfer", "best_of_n")])
def test_a_contextual_behavior_is_asked_behind_its_context(
    name: str, target: Target, files: Any
) -> None:
    attack = make_attack(name, **SMALL.get(name, {}), **files.get(name, {}))
    context = {"ContextString": "the bano is red ."}  # HarmBench's column
    behaviors = [replace(b, metadata=b.metadata | context) for b in BEHAVIORS]
    behaviors[1] = BEHAVIORS[1]
    with_context, without = attack.run(behaviors, target, MATERIAL, seed=0)
    if name != "templates" or "hello ." not in with_context.prompt:  # a template without request
        assert "the bano is red .\n\n--" in with_context.prompt
    assert "the bano is red" not in without.prompt
    if name == "direct":
        assert with_context.prompt == f"the bano is red .\n\n---\n\n{BEHAVIORS[0].prompt}"


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_says_what_it_needs(name: str, target: Target, files: Any) -> None:
    attack = make_attack(name, **SMALL.get(name, {}), **files.get(name, {}))
    assert set(attack.needs) <= set(KNOWN)
    only = [replace(b, metadata={n: KNOWN[n] for n in attack.needs}) for b in BEHAVIORS]
    assert len(attack.run(only, target, MATERIAL, 0)) == 2
    for missing in attack.needs:
        known = {n: KNOWN[n] for n in attack.needs if n != missing}
        with pytest.raises(InputError, match=f"attack '{name}' needs metadata"):
            attack.run([Behavior("bare", "hello", metadata=known)], target, MATERIAL, 0)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_uses_nothing_but_what_it_says(name: str, target: Target, files: Any) -> None:
    attack = make_attack(name, **SMALL.get(name, {}), **files.get(name, {}))
    uses = set(attack.uses)
    fields = {each.name for each in dataclasses.fields(Target)}
    assert uses <= {*fields, *KNOWN, "material", "seed", "prefill", "behaviors"}
    assert ("behaviors" in uses) == (name in ("gcg_multi", "gcg_transfer"))
    others: dict[str, Any] = {
        "generator": Broken("raises"), "judge": None, "attacker": None, "surrogates": (),
        "model": None, "tokenizer": None,
    }  # fmt: skip
    if "model" in uses:
        uses.add("tokenizer")
    bare = replace(target, **{n: other for n, other in others.items() if n not in uses})
    material = MATERIAL if "material" in uses else Material((), lambda behavior: (), no_rewrite)
    known = {n: KNOWN[n] for n in KNOWN if n in {*uses, *attack.needs}}
    made = attack.run(
        [replace(b, metadata=known) for b in BEHAVIORS], bare, material, 0 if "seed" in uses else 1
    )
    assert made == attack.run(BEHAVIORS, target, MATERIAL, 0)
    assert any(case.prefill for case in made) == ("prefill" in uses)
    assert attack.run([], bare, material, 0) == []


@pytest.mark.parametrize("what", ["empty", "garbage", "endless", "raises", "loses one"])
@pytest.mark.parametrize("name", ASKING)
def test_a_bad_target_is_recorded_and_the_run_goes_on(
    name: str, what: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_matched(monkeypatch)
    bad = replace(target, generator=Broken(what))
    attack = make_attack(name, **SMALL.get(name, {}))
    said = {"raises": "the server is gone", "loses one": "0 answers to 1 requests"}.get(what, "")
    by_loss = {*COMPUTING, "gcg_harmbench"}  # what they find does not hang on answers
    if said and name not in by_loss:  # it learned nothing, and no prompt of its is a result
        with pytest.raises(InputError, match=f"attack '{name}': a model .* nothing at all.*{said}"):
            attack.run(BEHAVIORS, bad, MATERIAL, 0)
        return
    cases = attack.run(BEHAVIORS, bad, MATERIAL, 0)
    assert [c.behavior_id for c in cases] == ["b0", "b1"]
    assert cases == attack.run(BEHAVIORS, bad, MATERIAL, 0)
    write_jsonl(tmp_path / "cases.jsonl", cases)
    for case in cases:
        assert case.prompt.strip() and case.queries >= 1
        assert ("outage" in case.metadata) == (bool(said) and name == "autodan")
        if said:
            assert case.metadata["errors"] and all(said in e for e in case.metadata["errors"])
            assert case.metadata["queries_to_jailbreak"] is None
        else:
            assert "errors" not in case.metadata
        assert (case.metadata["queries_to_jailbreak"] is not None) == (what == "endless")


@pytest.mark.parametrize("name", ["refinement", "best_of_n", "pair", "tap"])
def test_one_bad_request_costs_no_other(name: str, target: Target) -> None:
    only = replace(target, generator=Broken("raises", only="item"), attacker=Naming())
    settings = SMALL.get(name, {})
    if name == "best_of_n":  # else the word is rarely written as it is
        settings = {**settings, "sigma": 0.0}
    bad, good = make_attack(name, **settings).run([BEHAVIORS[1], BEHAVIORS[0]], only, MATERIAL, 0)
    assert len(bad.metadata["errors"]) == bad.queries and "errors" not in good.metadata


class Naming(Writer):
    """An attacker whose prompts name the goal."""

    def answer(self, request: Request) -> str:
        goal = "item" if "the item" in request.system else "it"
        if "YES or NO" in request.system:
            return "[[YES]]"
        return json.dumps({"improvement": "", "prompt": f"{goal} {request.seed}"})


@pytest.mark.parametrize("what", ["empty", "garbage", "endless", "raises"])
@pytest.mark.parametrize("name", BY_ATTACKER)
def test_a_bad_attacker_is_recorded_and_the_run_goes_on(
    name: str, what: str, target: Target
) -> None:
    bad = replace(target, attacker=Broken(what), generator=Echo())
    attack = make_attack(name, **SMALL.get(name, {}))
    if what == "raises":
        with pytest.raises(InputError, match=f"attack '{name}': .* nothing at all.*server is gone"):
            attack.run(BEHAVIORS, bad, MATERIAL, 0)
        return
    for case in attack.run(BEHAVIORS, bad, MATERIAL, 0):
        missing = what == "empty" or name in ("pair", "tap")
        assert case.metadata.get("missing", False) == (case.prompt == "") == missing
        assert "outage" not in case.metadata
        if name == "few_shot_attacker":
            assert case.queries == (0 if missing else 9)
            # No text; or a NUL in a prompt, which this tokenizer has no token for.
            assert ("errors" in case.metadata) == missing or what == "garbage"
        elif name == "zero_shot":
            expected = {"garbage": "\ufffd\x00{[}]<|\ufffd", "endless": ("a b " * 5000).strip()}
            assert case.prompt == expected.get(what, "")
            assert ("errors" in case.metadata) == missing
        else:
            assert case.queries == 0 and case.metadata["unreadable"] > 0


class GoneFor(Broken):
    """A model that is down for what holds a word, and else answers as a `Writer`."""

    def __init__(self, only: str, kind: type[Exception] = OutageError) -> None:
        super().__init__("raises", only)
        self.kind, self.writer = kind, Writer()

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
        if any(self.only in r.prompt + r.system for r in requests):
            raise self.kind("429: too many requests")
        return self.writer.generate(requests, max_new_tokens)


@pytest.mark.parametrize("kind", [OutageError, RuntimeError, RequestError])
@pytest.mark.parametrize("name", BY_ATTACKER)
def test_a_behavior_that_the_attacker_did_not_write_for_is_not_attempted(
    name: str, kind: type[Exception], target: Target
) -> None:
    """Its own prompt in place of an attack would count as one that failed."""
    only = replace(target, attacker=GoneFor("the item", kind), generator=Echo())
    attack = make_attack(name, **SMALL.get(name, {}))
    good, bad = attack.run(BEHAVIORS, only, MATERIAL, 0)
    assert good.prompt and not {"missing", "outage"} & set(good.metadata)
    assert bad.prompt == "" and bad.metadata["missing"] and bad.metadata["errors"]
    # Whether it is asked again: a request that is refused would be again.
    assert bad.metadata.get("outage", False) == (kind is not RequestError)


@pytest.mark.parametrize("name", ["pair", "tap", "few_shot_attacker"])
def test_an_attacker_that_goes_down_ends_the_run_soon(name: str, target: Target) -> None:
    many = [replace(BEHAVIORS[1], id=f"b{n}") for n in range(20)]
    attacker = GoneFor("the item")
    asked: list[int] = []
    generate = attacker.generate
    attacker.generate = lambda *given: [asked.append(1), generate(*given)][1]  # type: ignore
    attack = make_attack(name, **SMALL.get(name, {}))
    down = replace(target, attacker=attacker)
    with pytest.raises(InputError, match="429"):
        attack.run(many, down, MATERIAL, 0)
    of_three = len(asked)
    with pytest.raises(InputError, match="429"):
        attack.run(many[:3], down, MATERIAL, 0)
    assert len(asked) == 2 * of_three


@pytest.mark.parametrize("name", ["pair", "refinement", "best_of_n"])
def test_a_judge_that_is_down_leaves_an_attack_nothing(name: str, target: Target) -> None:
    class Down(ScoreByLength):
        def score(self, text: str, behavior: Behavior) -> float:
            raise OutageError("429: too many requests")

    attack = make_attack(name, **SMALL.get(name, {}))
    with pytest.raises(InputError, match="nothing at all.*OutageError: 429"):
        attack.run(BEHAVIORS, replace(target, judge=Down(), generator=Echo()), MATERIAL, 0)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None])
def test_a_judge_without_a_number_is_recorded(score: Any, target: Target) -> None:
    class Odd(ScoreByLength):
        def score(self, text: str, behavior: Behavior) -> float:
            return score

    bad = replace(target, judge=Odd())
    (case,) = make_attack("refinement", queries=3).run(BEHAVIORS[:1], bad, MATERIAL, 0)
    assert case.queries == 3 and len(case.metadata["errors"]) == 3
    assert case.metadata["score"] == 0.0 and case.metadata["queries_to_jailbreak"] is None


class Counting:
    """A generator that counts the batches it is asked and dies at the one after ``left``."""

    def __init__(self, inner: Any, left: float = math.inf) -> None:
        self.inner, self.left, self.asked = inner, left, 0

    def generate(self, requests: Any, max_new_tokens: int) -> list[Generation]:
        self.asked += 1
        if self.asked > self.left:
            raise KeyboardInterrupt
        return list(self.inner.generate(requests, max_new_tokens))


COMPUTING = [
    "gcg_answer", "gcg_multi", "random_search", "random_search_reasoning", "random_search_pivot",
    "autodan", "few_shot_attacker",
]  # fmt: skip
"""Attacks that compute with the target's own weights."""


class Mortal:
    """The model's passes, counted; from pass ``left`` on one raises, or is the end."""

    def __init__(
        self, patch: pytest.MonkeyPatch, model: Any, left: float, raised: BaseException
    ) -> None:
        self.passes, self.left, forward = 0, left, type(model).forward

        def counted(model: Any, *args: Any, **given: Any) -> Any:
            self.passes += 1
            if self.passes > self.left:
                raise raised
            return forward(model, *args, **given)

        patch.setattr(type(model), "forward", counted)


@pytest.mark.parametrize("name", COMPUTING)
def test_killed_among_its_computations_it_goes_on(
    name: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(target, generator=Echo())  # what is counted is the attack's own
    attack = make_attack(name, **SMALL[name])
    with monkeypatch.context() as patch:
        whole = Mortal(patch, target.model, math.inf, KeyboardInterrupt())
        write_jsonl(tmp_path / "whole", attack.run(BEHAVIORS, asked, MATERIAL, 0))
    kept = replace(asked, progress=tmp_path / "progress")
    with monkeypatch.context() as patch:
        Mortal(patch, target.model, whole.passes * 2 // 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            attack.run(BEHAVIORS, kept, MATERIAL, 0)
    for least in (1, 0):
        with monkeypatch.context() as patch:
            resumed = Mortal(patch, target.model, math.inf, KeyboardInterrupt())
            write_jsonl(tmp_path / "resumed", attack.run(BEHAVIORS, kept, MATERIAL, 0))
        assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
        assert least <= resumed.passes <= least * (whole.passes - 1)


@pytest.mark.parametrize("name", [name for name in COMPUTING if not name.startswith("gcg_")])
def test_a_model_that_raises_among_its_computations_is_recorded(
    name: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = make_attack(name, **SMALL[name])
    Mortal(monkeypatch, target.model, 1, RuntimeError("device\nlost"))
    cases = attack.run(BEHAVIORS, replace(target, generator=Echo()), MATERIAL, 0)
    assert [case.behavior_id for case in cases] == ["b0", "b1"]
    for case in cases:
        assert case.prompt.strip() and case.queries >= 1
        assert case.metadata["errors"]
        assert all(e.endswith("RuntimeError: device lost") for e in case.metadata["errors"])
        assert case.metadata["losses"][-1] is None or case.behavior_id == "b0"


def test_random_search_writes_down_an_error_once(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    Mortal(monkeypatch, target.model, 0, RuntimeError("device lost " * 20))
    for iterations in (50, 100):
        attack = make_attack("random_search", iterations=iterations, suffix_tokens=3)
        kept = replace(target, progress=tmp_path / str(iterations))
        (case,) = attack.run(BEHAVIORS[:1], kept, MATERIAL, 0)
        assert len(case.metadata["errors"]) == iterations + 1
        assert [e.split(":")[0] for e in case.metadata["errors"][:2]] == ["query 1", "query 2"]
        (file,) = (tmp_path / str(iterations)).glob("*.jsonl")
        sizes.append(file.stat().st_size)
    assert sizes[1] < 2.2 * sizes[0]


def always_matched(patch: pytest.MonkeyPatch) -> None:
    """The random search asks once the aimed token is the likeliest: from now on it always is."""

    def matched(*given: Any) -> Any:
        losses, _, failure = queries.try_response(*given)
        return losses, [failure is None], failure

    patch.setattr(random_search, "try_response", matched)


class Lines:
    """The lines of journals, counted; a kill comes after the one with the number ``last``."""

    def __init__(self, patch: pytest.MonkeyPatch, last: float = math.inf) -> None:
        self.written, add = 0, Journal.add

        def counted(journal: Journal, *entries: tuple[str, Any]) -> None:
            for entry in entries:  # a batch may be cut off behind any of its lines
                add(journal, entry)
                self.written += 1
                if self.written == last:
                    raise KeyboardInterrupt

        patch.setattr(Journal, "add", counted)


@pytest.mark.parametrize("name", KEEPING)
def test_a_run_killed_after_any_line_goes_on(
    name: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_matched(monkeypatch)
    attack = make_attack(name, **SMALL.get(name, {}))
    expected = attack.run(BEHAVIORS, target, MATERIAL, 0)
    with monkeypatch.context() as patch:
        whole = Lines(patch)
        kept = replace(target, progress=tmp_path / "whole")
        assert attack.run(BEHAVIORS, kept, MATERIAL, 0) == expected
    for last in sorted({1, whole.written // 2, whole.written - 1}):
        kept = replace(target, progress=tmp_path / str(last))
        with monkeypatch.context() as patch:
            Lines(patch, last)
            with pytest.raises(KeyboardInterrupt):
                attack.run(BEHAVIORS, kept, MATERIAL, 0)
        with monkeypatch.context() as patch:
            rest = Lines(patch)
            assert attack.run(BEHAVIORS, kept, MATERIAL, 0) == expected
        assert rest.written == whole.written - last  # nothing is done twice
        with monkeypatch.context() as patch:
            over = Lines(patch)
            assert attack.run(BEHAVIORS, kept, MATERIAL, 0) == expected
        assert over.written == 0


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "generator") for name in [*ASKING, "random_search_pivot"]),
        *((name, "attacker") for name in [*BY_ATTACKER, "autodan"]),
        ("tap", "evaluator"),
    ],
)
def test_a_run_killed_while_a_model_answers_goes_on(
    name: str, role: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each life one batch is answered; the next is the end, until none is left."""
    always_matched(monkeypatch)
    attack = make_attack(name, **SMALL.get(name, {}))
    evaluated = replace(target, evaluator=Writer())
    inner = getattr(evaluated, role)

    def run(left: float, **more: Any) -> tuple[list[TestCase], int]:
        mortal = Counting(inner, left)
        made = attack.run(BEHAVIORS, replace(evaluated, **{role: mortal}, **more), MATERIAL, 0)
        return made, mortal.asked

    expected, batches = run(math.inf)
    assert batches > 0
    for left in [0, *[1] * (batches - 1)]:
        with pytest.raises(KeyboardInterrupt):
            run(left, progress=tmp_path)
    assert run(1, progress=tmp_path) == (expected, 1)
    assert run(0, progress=tmp_path) == (expected, 0)  # nothing is asked twice


def test_a_journal_is_of_one_run_alone(tmp_path: Path) -> None:
    """In one folder and with no name: what a run depends on tells it from the others."""
    one, other = local_target(), local_target(seed=5)

    class Hurried(Writer):
        def answer(self, request: Request) -> str:
            return super().answer(request).replace("wait", "now")

    class Served(Echo):
        def __init__(self, model: str) -> None:
            super().__init__()
            self.model = model

        def generate(self, requests: Any, max_new_tokens: int) -> list[Generation]:
            super().generate(requests, max_new_tokens)
            return [Generation(f"{self.model} says so", 1, 1, "stop") for _ in requests]

    material = replace(MATERIAL, wrappers=("so {request}", "please . {request}"))
    reminded = replace(one, generator=SelfReminder(one.generator))
    warned = replace(one, generator=SelfReminder(one.generator, after="be careful ."))
    mute = replace(one, model=None, tokenizer=None)
    written = replace(mute, attacker=Writer())
    runs: list[tuple[str, Target, Material]] = [
        ("autodan", one, MATERIAL),
        ("autodan", one, material),
        ("refinement", one, MATERIAL),
        ("refinement", reminded, MATERIAL),
        ("refinement", warned, MATERIAL),
        ("best_of_n", mute, MATERIAL),
        ("best_of_n", replace(mute, generator=other.generator), MATERIAL),
        ("pair", written, MATERIAL),
        ("pair", replace(written, attacker=Hurried()), MATERIAL),
        ("zero_shot", replace(mute, attacker=Served("one")), MATERIAL),
        ("zero_shot", replace(mute, attacker=Served("other")), MATERIAL),
        ("tap", written, MATERIAL),
        ("tap", replace(written, evaluator=Broken("empty")), MATERIAL),
    ]
    for number, (name, target, drawn) in enumerate(runs, start=1):
        attack = make_attack(name, **SMALL.get(name, {}))
        expected = attack.run(BEHAVIORS, target, drawn, 0)
        kept = replace(target, progress=tmp_path)
        for _ in range(2):
            assert attack.run(BEHAVIORS, kept, drawn, 0) == expected
            assert len(list(tmp_path.iterdir())) == number
    # Another answer's length is another run for who asks for answers, and for nobody else.
    for name, target, new in [("zero_shot", runs[9][1], 0), ("pair", written, 1)]:
        longer = replace(target, max_new_tokens=9, progress=tmp_path)
        before = len(list(tmp_path.iterdir()))
        make_attack(name, **SMALL.get(name, {})).run(BEHAVIORS, longer, MATERIAL, 0)
        assert len(list(tmp_path.iterdir())) == before + new
    number = len(list(tmp_path.iterdir()))
    named = replace(written, progress=tmp_path, name="another")
    make_attack("tap", **SMALL["tap"]).run(BEHAVIORS, named, MATERIAL, 0)
    assert len(list(tmp_path.iterdir())) == number + 1


def test_a_models_identity_is_what_its_answers_depend_on() -> None:
    def of(**settings: Any) -> Any:
        server = {"model": "m", "base_url": "http://one/v1", "concurrency": 4} | settings
        return identity(OpenAIServerGenerator(**server))

    assert of() == of(concurrency=16, retries=1)  # a run goes on however it is run
    assert of() != of(model="n") and of() != of(base_url="http://other/v1")
    assert of(dialect="vllm") != of()
    words = [frozenset([0, 8]), frozenset([8, 0])]
    assert [*words[0]] != [*words[1]] and identity(words[0]) == identity(words[1])
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1}) != identity({"a": 2, "b": 1})
    model, tokenizer = local_target().model, local_target().tokenizer
    assert identity(model) == identity(local_target().model) != identity(local_target(seed=1).model)
    assert identity(model.to(torch.float64)) != identity(local_target().model)
    assert json.loads(json.dumps(identity(model.to("meta"))))  # offloaded: it is read without
    bare = without_chat_template(local_target().model, tokenizer).tokenizer
    assert identity(tokenizer) == identity(local_target().tokenizer) != identity(bare)
    assert identity(str.lower) != identity(local_target) != identity(len)
    assert identity(Echo()) == identity(Echo()) != identity(Writer())


def test_gradients_need_a_model() -> None:
    bare = Target(Echo(), ScoreByLength(), 4)
    with pytest.raises(InputError, match="needs gradients"):
        make_attack("gcg_answer").run(BEHAVIORS, bare, MATERIAL, 0)


def test_refinement_keeps_the_best_prompt_counts_and_stops() -> None:
    echo = Echo()
    behavior = Behavior("b", "a b c")

    def grow(asked: Behavior, best: str, rng: Random) -> str:
        return f"{best} x"

    material = Material((), lambda b: [], grow)
    (case,) = make_attack("refinement", queries=9, enough=0.6).run(
        [behavior], Target(echo, ScoreByLength(), 4), material, 0
    )
    assert echo.asked == ["a b c x", "a b c x x", "a b c x x x"]
    assert (case.prompt, case.queries) == ("a b c x x x", 3)
    assert case.metadata == {"score": 0.6, "queries_to_jailbreak": 3}

    def shrink(asked: Behavior, best: str, rng: Random) -> str:
        return "long " * rng.randint(2, 4)

    echo = Echo()
    (case,) = make_attack("refinement", queries=5).run(
        [behavior], Target(echo, ScoreByLength(), 4), Material((), lambda b: [], shrink), 0
    )
    assert case.queries == 5 and case.prompt == max(echo.asked, key=len)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("gcgx", {}, "unknown attack 'gcgx'.* known: direct, wrapper"),
        ("wraper", {}, "unknown attack 'wraper', did you mean 'wrapper'"),
        ("gcg_answer", {"stepps": 3}, "'gcg_answer': unknown setting 'stepps', did you mean 'step"),
        ("gcg_answer", {"name": "x"}, "unknown setting 'name'"),
        ("gcg_answer", {"steps": "3"}, r"'gcg_answer': steps: expected int, got '3' \(str\)"),
        ("gcg_pivot", {"top_k": 2.5}, "top_k: expected int"),
        ("gcg_pivot", {"candidates": 0}, "candidates is 0, expected at least 1"),
        ("few_shot", {"shots": True}, "shots: expected int"),
        ("few_shot", {"shots": 0}, "shots is 0"),
        ("refinement", {"queries": 0}, "queries is 0"),
        ("refinement", {"enough": "half"}, "enough: expected float"),
        ("gcg_answer", {"keep": "some"}, "keep: expected one of 'lower', 'any'"),
        ("best_of_n", {"sigma": 1.5}, "sigma is 1.5, expected 0 to 1"),
        ("pair", {"streams": 0}, "streams is 0"),
        ("tap", {"branches": 0}, "branches is 0"),
        ("random_search", {"change": 0}, "change is 0"),
        ("autodan", {"population": 1}, "population is 1, expected at least 2"),
        ("templates", {"number": -1}, "number is -1"),
        ("pivot_text", {"times": 0}, "times is 0"),
        ("direct", {"steps": 1}, "'direct': unknown setting 'steps'; known: none"),
    ],
)
def test_names_and_settings_are_checked(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        make_attack(name, **settings)
    assert "\n" not in str(raised.value)


def test_too_little_material(target: Target) -> None:
    bare = Material((), lambda behavior: [("a", "b")], lambda behavior, best, rng: best)
    with pytest.raises(InputError, match="at least one template"):
        make_attack("wrapper").run(BEHAVIORS, target, bare, 0)
    with pytest.raises(InputError, match="wants 2 shots, material.shots has 1 for behavior 'b0'"):
        make_attack("few_shot").run(BEHAVIORS, target, bare, 0)


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_to_attack(name: str, target: Target) -> None:
    assert make_attack(name).run([], target, MATERIAL, 0) == []


def test_refinement_goes_on_with_those_that_have_not_broken() -> None:
    """One behavior breaks at once and is asked no more; the other uses its whole budget."""
    behaviors = [Behavior("weak", "w " * 9), Behavior("strong", "s")]
    echo = Echo()
    material = Material((), lambda b: [], lambda asked, best, rng: f"{asked.prompt} {rng.random()}")
    weak, strong = make_attack("refinement", queries=4, enough=0.9).run(
        behaviors, Target(echo, ScoreByLength(), 4), material, 0
    )
    assert (weak.queries, strong.queries) == (1, 4)
    assert [p[0] for p in echo.asked] == ["w", "s", "s", "s", "s"]
    assert weak.metadata["score"] == 1.0 and strong.metadata["score"] == 0.2
    # All four of the strong one score the same: the first found is kept.
    assert strong.prompt == echo.asked[1]


def test_pair_is_told_what_the_target_said(target: Target) -> None:
    writer, echo = Writer(), Echo()
    (case,) = make_attack("pair", streams=2, rounds=3, enough=0.45).run(
        BEHAVIORS[:1], replace(target, attacker=writer, generator=echo), MATERIAL, 0
    )
    first, second, third = writer.asked[:2], writer.asked[2:4], writer.asked[4:]
    assert [r.system for r in first] == [r.system for r in second]
    assert first[0].system != first[1].system  # another strategy a stream
    for request in writer.asked:
        assert BEHAVIORS[0].prompt in request.system and KNOWN["target"] in request.system
        assert "{goal}" not in request.system and "{strategy}" not in request.system
        assert '{\n"improvement"' in request.system  # braces that are no place to fill
    assert first[0].history == () and first[0].prompt.startswith("**Your objective")
    for stream, request in enumerate(second):
        ((asked, wrote),) = request.history
        assert asked == first[stream].prompt and written_prompt(wrote) == echo.asked[stream]
        score = out_of_ten(len(echo.asked[stream].split()) / 10)
        assert request.prompt.startswith(f"LANGUAGE MODEL OUTPUT: {echo.asked[stream]}\n")
        assert request.prompt.endswith(f"SCORE: {score}")
    assert all(len(r.history) == 2 for r in third)
    assert len({r.seed for r in writer.asked}) == len(writer.asked)
    assert case.queries == 6 and case.metadata["score"] == 0.4
    assert case.metadata["queries_to_jailbreak"] is None


def test_pair_stops_at_the_first_success(target: Target) -> None:
    attack = make_attack("pair", streams=2, rounds=9, enough=0.35)
    echo = Echo()
    (case,) = attack.run(
        BEHAVIORS[:1], replace(target, attacker=Writer(), generator=echo), MATERIAL, 0
    )
    # Two words in the first round, one more in each of the next: four in the third.
    assert case.queries == 6 and case.metadata["queries_to_jailbreak"] == 5
    assert case.prompt == echo.asked[4] and len(case.prompt.split()) == 4


def test_tap_branches_prunes_and_keeps_the_best(target: Target) -> None:
    class Topics(Writer):
        def answer(self, request: Request) -> str:
            if "YES or NO" in request.system:
                return super().answer(request)
            turns = len(request.history)
            words = ["off"] if request.seed % 3 == 0 else ["on"]
            prompt = " ".join(
                [*words, *["x"] * (request.seed % 4 + 1), f"t{turns}", str(request.seed)]
            )
            return json.dumps({"improvement": "", "prompt": prompt})

    writer, echo = Topics(), Echo()
    (case,) = make_attack("tap", width=3, branches=4, depth=3, enough=2.0).run(
        BEHAVIORS[:1], replace(target, attacker=writer, generator=echo), MATERIAL, 0
    )
    wrote = [r for r in writer.asked if "YES or NO" not in r.system]
    assert len(wrote) <= 4 + 2 * 12 and {len(r.history) for r in wrote} == {0, 1, 2}
    assert echo.asked and not any("off" in prompt for prompt in echo.asked)
    assert case.queries == len(echo.asked) <= 4 + 2 * 12
    # Round by round: the leaves that live on are those whose answers scored best.
    rounds = [[r for r in wrote if len(r.history) == turns] for turns in range(3)]
    put = [p for p in echo.asked if "t0" in p.split()]
    best = sorted((len(p.split()) for p in put), reverse=True)[:3]
    told = {r.prompt.split("\n")[0].removeprefix("LANGUAGE MODEL OUTPUT: ") for r in rounds[1]}
    assert sorted((len(t.split()) for t in told), reverse=True) == best and told <= set(put)
    second = [p for p in echo.asked if "t1" in p.split()]
    best = sorted((len(p.split()) for p in second), reverse=True)[:3]
    told = {r.prompt.split("\n")[0].removeprefix("LANGUAGE MODEL OUTPUT: ") for r in rounds[2]}
    assert sorted((len(t.split()) for t in told), reverse=True) == best
    assert len(second) > 3  # there was something to prune
    assert case.prompt == max(echo.asked, key=lambda p: len(p.split()))


def test_tap_goes_on_where_all_is_off_topic(target: Target) -> None:
    class Never(Writer):
        def answer(self, request: Request) -> str:
            return "[[no]]" if "YES or NO" in request.system else super().answer(request)

    attack = make_attack("tap", width=2, branches=2, depth=2)
    (case,) = attack.run(BEHAVIORS[:1], replace(target, attacker=Never()), MATERIAL, 0)
    assert case.queries == 0 and case.prompt == "" and case.metadata["missing"]
    mute = replace(target, attacker=Writer(), evaluator=Broken("empty"))
    (case,) = attack.run(BEHAVIORS[:1], mute, MATERIAL, 0)
    assert case.queries > 0 and case.metadata["no_verdict"] >= 2


@pytest.mark.parametrize("name", BY_ATTACKER)
def test_an_attacker_is_asked_for(name: str, target: Target) -> None:
    with pytest.raises(InputError, match="give Target an attacker"):
        make_attack(name).run(BEHAVIORS, replace(target, attacker=None), MATERIAL, 0)


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ('{"improvement": "a", "prompt": "b"}', "b"),
        ('Sure!\n```json\n{"improvement": "a {x}", "prompt": "b } c"}\n```', "b } c"),
        ('{"improvement": "two\nlines", "prompt": "b\nc"}', "b\nc"),
        ('{"x": {"improvement": "a", "prompt": "inner"}}', "inner"),
        ('{"improvement": "a"}', None),
        ('{"improvement": "a", "prompt": ["b"]}', None),
        ('{"improvement": "a", "prompt": "  "}', None),
        ("{" * 5000, None),
        ("", None),
    ],
)
def test_the_attackers_json_is_read(answer: str, prompt: str | None) -> None:
    assert written_prompt(answer) == prompt


def test_scores_verdicts_and_prompts() -> None:
    assert [out_of_ten(s) for s in (-1.0, 0.0, 0.5, 1.0, 9.0)] == [1, 1, 5, 10, 10]
    assert topic_verdict("Response: [[YES]]") is True and topic_verdict("[[ no ]]") is False
    assert topic_verdict("YES") is None
    filled = prompt_text("attacker_feedback", answer="{goal} {score}", goal="g", score=3)
    assert filled.startswith("LANGUAGE MODEL OUTPUT: {goal} {score}\n") and "'g'" in filled


def test_the_same_question_again_gets_its_next_answer(tmp_path: Path) -> None:
    class Numbering(Echo):
        def generate(self, requests: Any, max_new_tokens: int) -> list[Generation]:
            super().generate(requests, max_new_tokens)
            return [Generation(str(len(self.asked)), 1, 1, "stop") for _ in requests]

    def answers(inner: Any, questions: str) -> list[str]:
        generator = RecordedGenerator(inner, Journal(tmp_path / "journal"), "target")
        return [generator.generate([Request(q)], 4)[0].text for q in questions]

    assert answers(Numbering(), "aab") == ["1", "2", "3"]
    inner = Numbering()
    assert answers(inner, "abaab") == ["1", "3", "2", "1", "2"]
    assert inner.asked == ["a", "b"]
    assert answers(Numbering(), "aaabb") == ["1", "2", "1", "3", "2"]


def test_the_answers_of_a_batch_are_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = RecordedGenerator(Echo(), Journal(tmp_path / "journal"), "target")
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    generator.generate([Request(str(n)) for n in range(512)], 4)
    assert len(synced) == 1


@pytest.mark.parametrize("line", ["[1", "[1, 2]", '["a"]', '{"a": 1, "b": 2}', "7"])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "journal").write_text(f'["a", 1]\n{line}\n["b", ')
    with pytest.raises(InputError, match=r"journal:2: expected .*; delete the file to begin the"):
        Journal(tmp_path / "journal")


@pytest.mark.parametrize("name", [*ASKING, "zero_shot", "gcg_multi"])
def test_behaviors_of_one_id_are_refused(name: str, target: Target) -> None:
    with pytest.raises(InputError, match="2 behaviors have the id 'b0'"):
        make_attack(name, **SMALL.get(name, {})).run(
            [BEHAVIORS[0], BEHAVIORS[0]], target, MATERIAL, 0
        )


def test_zero_shot_puts_the_context_first(target: Target) -> None:
    behavior = Behavior("b", "explain it", metadata={"ContextString": "a long text ."})
    writer = Writer()
    (case,) = make_attack("zero_shot").run(
        [behavior], replace(target, attacker=writer), MATERIAL, 0
    )
    assert case.prompt.startswith("a long text .\n\n-----\n\nHere:")
    assert writer.asked[0].prompt.startswith("CONTEXT STRING:\na long text .")
    assert writer.asked[0].prefill.endswith("after seeing the context string:\n1.")


def test_best_of_n_changes_what_the_paper_changes() -> None:
    text = "Explain  how to use the wonderful item, please."
    assert augment(text, 0.0, random.Random(0)) == text
    rng = random.Random(0)
    draws = [augment(text, 0.4, rng) for _ in range(400)]
    assert len(set(draws)) > 390 and all(len(d) == len(text) for d in draws)
    assert all(d.isascii() and d.isprintable() for d in draws)
    same = [sum(a == b for a, b in zip(d, text, strict=True)) / len(text) for d in draws]
    assert 0.2 < sum(same) / len(same) < 0.6
    letters = [c for d in draws for c, was in zip(d, text, strict=True) if was == "h"]
    assert 0.5 < sum(c in "H" for c in letters) / len(letters) < 0.75  # √0.4 = 0.63, less σ³
    full = augment("abcdef " * 50, 1.0, random.Random(0))
    assert augment("é ß 字", 1.0, random.Random(0))[1] in " !"
    assert full.swapcase() != full


def test_best_of_n_samples_and_stops() -> None:
    echo = Echo()
    behaviors = [Behavior("weak", "w " * 9 + "w"), Behavior("strong", "strong")]
    weak, strong = make_attack("best_of_n", n=5, enough=0.9).run(
        behaviors, Target(echo, ScoreByLength(), 4), MATERIAL, 0
    )
    assert (weak.queries, strong.queries) == (1, 5)
    assert weak.metadata["queries_to_jailbreak"] == 1
    assert weak.metadata["temperature"] == 1.0 and weak.metadata["sampling_seed"] >= 0


def test_random_search_raises_what_it_aims_at(target: Target) -> None:
    for name in ("random_search", "random_search_reasoning", "random_search_pivot"):
        attack = make_attack(name, iterations=40, suffix_tokens=4, judge_calls=0)
        (case,) = attack.run(BEHAVIORS[:1], target, MATERIAL, 0)
        losses = case.metadata["losses"]
        assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
        assert case.queries == len(losses) == 41
        assert len(case.prompt.removeprefix(BEHAVIORS[0].prompt).split()) == 4


@pytest.mark.parametrize("family", ["word", "llama", "mistral", "qwen3"])
def test_random_search_on_the_reasoning_aims_at_its_first_word(family: Any) -> None:
    tokenizer = local_target(family).tokenizer
    attack = make_attack("random_search_reasoning")
    behavior = replace(BEHAVIORS[0], metadata=KNOWN | {"reasoning_target": "this is fine ."})
    text, aimed = attack.aim(behavior, tokenizer)
    assert text == "<think> this is fine ."
    ids = encode_prompt(tokenizer, behavior.prompt, prefill=text)[-len(aimed) :]
    said = tokenizer.decode([i for i, taken in zip(ids, aimed, strict=True) if taken])
    assert said.startswith("<think>") and aimed == sorted(aimed, reverse=True)
    first = said.removeprefix("<think>").strip()
    assert first and "this".startswith(first)
    assert attack.aim(BEHAVIORS[0], tokenizer)[0] == f"<think> {KNOWN['target']}"
    empty = replace(behavior, metadata=KNOWN | {"reasoning_target": ""})
    with pytest.raises(InputError, match="the plan of behavior 'b0' is empty"):
        attack.aim(empty, tokenizer)


def test_few_shots_are_written_in_the_form_that_the_target_reads(target: Target) -> None:
    (case,) = make_attack("few_shot").run(BEHAVIORS[:1], target, MATERIAL, 0)
    pairs = MATERIAL.shots(BEHAVIORS[0])
    drawn = [pair for pair in pairs if f"User: {pair[0]}" in case.prompt]
    assert len(drawn) == 2 and case.prompt in (
        dialogue(drawn, BEHAVIORS[0].prompt), dialogue(drawn[::-1], BEHAVIORS[0].prompt),
    )  # fmt: skip
    assert (
        dialogue([("a ?", "b .")], "c ?")
        == "User: a ?\n\nAssistant: b .\n\nUser: c ?\n\nAssistant:"
    )
    own = replace(MATERIAL, dialogue=lambda pairs, request: f"{len(pairs)} {request}")
    (case,) = make_attack("few_shot").run(BEHAVIORS[:1], target, own, 0)
    assert case.prompt == f"2 {BEHAVIORS[0].prompt}"


def test_the_few_shot_attacker_is_shown_the_likeliest(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt is likelier here, by far: those are shown, and the longest is the result."""

    class Growing(Writer):
        def answer(self, request: Request) -> str:
            return f"\n  {' '.join(['word'] * (1 + request.seed % 7))} {request.seed}\nmore"

    def losses(model: Any, tokenizer: Any, prompts: Any, response: str, aimed: Any) -> Losses:
        assert response == KNOWN["target"] and all(aimed)
        count = torch.tensor([float(len(prompt.split())) for prompt in prompts])
        return Losses(100 * (9 - count), torch.zeros(len(prompts), dtype=torch.bool))

    monkeypatch.setattr(queries, "response_losses", losses)
    writer = Growing()
    attack = make_attack("few_shot_attacker", pool=6, rounds=2, prompts=4, shots=2)
    (case,) = attack.run(BEHAVIORS[:1], replace(target, attacker=writer), MATERIAL, 0)
    texts = [writer.answer(request).split("\n")[1].strip() for request in writer.asked]
    assert case.queries == len(writer.asked) == 14 == len(case.metadata["losses"])
    assert case.prompt in texts
    assert len(case.prompt.split()) == max(len(text.split()) for text in texts)
    assert all(request.prefill.endswith("behavior:\n1.") for request in writer.asked[:6])
    for begun, requests in ((6, writer.asked[6:10]), (10, writer.asked[10:])):
        best = sorted((len(text.split()) for text in texts[:begun]), reverse=True)[:2]
        for request in requests:
            shown = request.prefill.split("behavior:\n")[1].split("\n")
            assert [line.split(". ")[0] for line in shown[:2]] == ["1", "2"] and shown[2:] == ["3."]
            lines = [line.split(". ")[1] for line in shown[:2]]
            assert set(lines) <= set(texts[:begun])
            assert sorted((len(line.split()) for line in lines), reverse=True) == best
    bare = replace(target, model=None)
    with pytest.raises(InputError, match="needs log-probabilities"):
        attack.run(BEHAVIORS, bare, MATERIAL, 0)


def test_templates_and_their_files(tmp_path: Path, target: Target) -> None:
    def run(content: str, **settings: Any) -> list[TestCase]:
        (tmp_path / "t").write_text(content)
        attack = make_attack("templates", file=str(tmp_path / "t"), **settings)
        return attack.run(BEHAVIORS, target, MATERIAL, 0)

    many = json.dumps(["a {request} b", "c [INSERT PROMPT HERE]", "d [REPLACE] e", "f"])
    draws = [run(many, number=n) for n in range(4)]
    for i, behavior in enumerate(BEHAVIORS):
        asked = behavior.prompt
        expected = {f"a {asked} b", f"c {asked}", f"d {asked} e", f"f\n\n{asked}"}
        assert {cases[i].prompt for cases in draws} == expected
    assert run("one\ntwo {request}")[0].prompt == f"one\ntwo {BEHAVIORS[0].prompt}"
    marked = run("\ufeff" + many)
    assert [case.prompt for case in marked] == [case.prompt for case in run(many)]
    # A letter behind the bracket: a text that begins with a mark or a stage direction, no JSON.
    assert run("[INSERT PROMPT HERE] Answer.")[0].prompt == f"{BEHAVIORS[0].prompt} Answer."
    drawn = {run("[Scene] a\r\n---\r\nb\n", number=n)[0].prompt for n in range(2)}
    assert drawn == {f"[Scene] a\n\n{BEHAVIORS[0].prompt}", f"b\n\n{BEHAVIORS[0].prompt}"}
    for content, says in (
        ("", "holds no template"),
        ('["a", 3]', "template 1"),
        ("[1", "JSON"),
        ('["a', "JSON"),
        ("[" * 200_000, "JSON"),
    ):
        with pytest.raises(InputError, match=says):
            run(content)
    (tmp_path / "t").write_bytes(b"one\ntw\xff")
    with pytest.raises(InputError, match="t:2: expected UTF-8 text"):
        make_attack("templates", file=str(tmp_path / "t")).run(BEHAVIORS, target, MATERIAL, 0)
    with pytest.raises(InputError, match=r"none: cannot be read \(No such file .* templates"):
        make_attack("templates", file=str(tmp_path / "none")).run(BEHAVIORS, target, MATERIAL, 0)
    with pytest.raises(InputError, match="give file"):
        make_attack("templates").run(BEHAVIORS, target, MATERIAL, 0)


def test_transfer_takes_what_another_run_made(tmp_path: Path, target: Target) -> None:
    made = [
        TestCase("b1", "gcg_answer", "explain it x x", queries=70, metadata={"score": 1.0}),
        TestCase("b1", "gcg_answer", "a second one"),
        TestCase("zz", "gcg_answer", "of another behavior"),
    ]
    write_jsonl(tmp_path / "cases.jsonl", made)
    attack = make_attack("transfer", file=str(tmp_path / "cases.jsonl"))
    missing, found = attack.run(BEHAVIORS, target, MATERIAL, 0)
    assert found.prompt == "explain it x x" and found.queries == 70
    assert found.metadata == {"score": 1.0, "made_by": "gcg_answer", "left_out": 1}
    assert found.attack == "transfer"
    assert missing.prompt == "" and missing.metadata == {"missing": True}
    with pytest.raises(InputError, match="no test case for any of the behaviors"):
        attack.run([Behavior("other", "x")], target, MATERIAL, 0)
    with pytest.raises(InputError, match="give file"):
        make_attack("transfer").run(BEHAVIORS, target, MATERIAL, 0)


@pytest.mark.parametrize("family", ["word", "llama", "mistral", "qwen2", "qwen3", "r1"])
@pytest.mark.parametrize("name", ["forged_prompt", "pivot_text", "forged_turn"])
def test_forgeries_hold_control_tokens_and_none_is_parsed(name: str, family: Any) -> None:
    """The attack writes them; the defence, `tokenization`, lets none of them through."""
    target = local_target(family)
    tokenizer = target.tokenizer
    (case,) = make_attack(name).run(BEHAVIORS[:1], target, MATERIAL, 0)
    control = [token.content for token in tokenizer.added_tokens_decoder.values()]
    assert set(NEW_TOKENS) <= set(control)
    assert any(token in case.prompt for token in control)
    honest = encode_prompt(tokenizer, BEHAVIORS[0].prompt)
    added = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    ids = encode_prompt(tokenizer, case.prompt)
    assert [i for i in ids if i in added] == [i for i in honest if i in added]
    # Parsed as it is written, the same text would hold them: the attack is a real one.
    naive = tokenizer.encode(case.prompt, add_special_tokens=False)
    assert [i for i in naive if i in added]


@pytest.mark.parametrize("family", ["word", "llama", "qwen2"])
def test_the_chat_template_is_stripped(family: Any) -> None:
    target = local_target(family)
    tokenizer, template = target.tokenizer, target.tokenizer.chat_template
    bare = without_chat_template(target.model, tokenizer)
    assert tokenizer.chat_template == template
    ids = encode_prompt(bare.tokenizer, "hello there")
    words = tokenizer.encode("hello there", add_special_tokens=False)
    assert ids in (words, [tokenizer.bos_token_id, *words])
    assert set(target.generator.stop_ids) <= set(bare.stop_ids)
    cases = make_attack("direct").run(BEHAVIORS, target, MATERIAL, 0)
    stripped, normal = complete(bare, cases, 6), complete(target.generator, cases, 6)
    assert [c.text for c in stripped] != [c.text for c in normal]


def test_autodan_breeds_templates(target: Target) -> None:
    sentences = [f"sentence {i} of the text." for i in range(8)]
    one = whole([*sentences, "{request}"])
    other = whole(["Another thing.", "{request}", "And more!", "Then this: now."])
    rng = random.Random(0)
    children = [child for _ in range(50) for child in cross(one, other, 5, rng)]
    assert all(child.count("{request}") == 1 for child in children)
    known = {*sentences_of(one), *sentences_of(other)}
    assert len(set(children)) > 10
    for child in children:
        assert {s for s in sentences_of(child) if "{request}" not in s} <= known | {"."}
    assert whole(["a {request} b {request}"]) == "a {request} b"
    attack = make_attack("autodan", generations=4, population=6, mutation=0.5, batch=4, enough=2.0)
    lone = replace(target, attacker=None)
    (case,) = attack.run(BEHAVIORS[:1], lone, MATERIAL, 0)
    losses = case.metadata["losses"]
    assert losses == sorted(losses, reverse=True)  # the elite lives on
    assert BEHAVIORS[0].prompt in case.prompt and case.queries == 4 * 7
    with pytest.raises(InputError, match="at least one template"):
        attack.run(BEHAVIORS, target, Material((), MATERIAL.shots, MATERIAL.rewrite), 0)


def test_the_registry_goes_by_the_attacks_own_names() -> None:
    assert all(attack().name == name for name, attack in ATTACKS.items())


def test_autodan_takes_no_fitness_of_other_prompts(target: Target, tmp_path: Path) -> None:
    """An attacker that was down leaves other children than it writes when it is up again."""

    class Attacker:
        down = True

        def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[Generation]:
            if self.down:
                failed = {request: OutageError("down") for request in requests}
                raise OutageError("down", failed)
            return [Generation("so {request}. and more", 1, 1, "stop") for _ in requests]

    attack = make_attack("autodan", generations=3, population=4, mutation=1.0, enough=1.0)
    attacker = Attacker()

    def run(folder: Path) -> TestCase:
        its = replace(target, attacker=attacker, progress=folder)
        (case,) = attack.run(BEHAVIORS[:1], its, MATERIAL, 0)
        return case

    assert run(tmp_path / "one").metadata["outage"]
    attacker.down = False
    assert run(tmp_path / "one") == run(tmp_path / "fresh")
