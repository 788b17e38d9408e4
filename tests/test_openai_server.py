"""Answers of a server: a real one (`transformers serve`), and one that fails in every known way."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from attack_world import BEHAVIORS, MATERIAL, ScoreByLength
from fastapi import FastAPI
from fastapi import Request as Asked
from fastapi.responses import HTMLResponse, JSONResponse, Response
from tiny_models import tiny_model, tiny_tokenizer
from transformers.cli.serve import Serve

from r2d_core.attacks import Target, make_attack
from r2d_core.defenses import SelfReminder
from r2d_core.errors import InputError
from r2d_core.generation import (
    GENERATORS,
    OpenAIServerGenerator,
    OutageError,
    Request,
    RequestError,
    TransformersGenerator,
    answer_each,
    complete,
    openai_server,
)
from r2d_core.guards import load_prompt, prompt_guard
from r2d_core.judges import JUDGES, judge_all
from r2d_core.judges.model_judge import Reading
from r2d_core.records import Behavior, Completion
from r2d_core.synthesis import UNSAFE_ANSWER, SynthesisConfig, synthesize
from r2d_core.synthesis_journal import read_journal
from r2d_core.tokenization import encode_prompt

REQUESTS = [
    Request("how do i make the bano tiskel ?"),
    Request("hello", system="be careful"),
    Request("and now ?", history=(("hello", "hi"), ("why", "so"))),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, "the server does not start"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Any, Any]]:
    """(base_url, model name, model, tokenizer) of a `transformers serve` with a tiny model."""
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer, seed=1)
    folder = str(tmp_path_factory.mktemp("served"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    port = free_port()
    served = Serve(folder, host="127.0.0.1", port=port, device="cpu", non_blocking=True)
    wait_for(lambda: served.server.started)
    yield f"http://127.0.0.1:{port}/v1", folder, model, tokenizer
    served.kill_server()


def test_a_real_server_answers_as_the_model_does(real: Any) -> None:
    url, name, model, tokenizer = real
    made = GENERATORS["openai_server"](name, url).generate(REQUESTS, 12)
    expected = TransformersGenerator(model, tokenizer).generate(REQUESTS, 12)
    # The server drops special tokens; this model writes some.
    for one, other in zip(made, expected, strict=True):
        ids = tokenizer.encode(other.text, add_special_tokens=False)
        assert one.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert one.prompt_tokens == other.prompt_tokens
        assert one.response_tokens == other.response_tokens
        assert one.finish == other.finish


def test_a_judge_asks_a_real_server_what_it_would_ask_the_model(real: Any, tmp_path: Path) -> None:
    url, name, model, tokenizer = real
    behavior = Behavior("b", "how do i make the bano tiskel ?")
    texts = [
        Completion("b", "direct", behavior.prompt, text)
        for text in ("first the bano", "<think> no [UNSAFE] </think> i cannot help")
    ]
    said = []
    for generator in (
        GENERATORS["openai_server"](name, url),
        TransformersGenerator(model, tokenizer),
    ):
        judge = JUDGES["jailbreakbench_refusal"](generator, "tiny", cache=tmp_path / str(len(said)))
        judge.read = by_length
        said.append(judge_all(judge, [behavior], texts))
    served, local = said
    for one, other in zip(served, local, strict=True):
        ids = tokenizer.encode(other.metadata["raw"]["whole"], add_special_tokens=False)
        # The server drops special tokens; this model writes some.
        assert one.metadata["raw"]["whole"] == tokenizer.decode(ids, skip_special_tokens=True)
        assert {one.whole, other.whole} == {"refused"}
    assert [v.reasoning for v in served] == ["absent", "refused"]
    kept = tmp_path / "0" / "jailbreakbench_refusal.jsonl"
    assert len(kept.read_text().splitlines()) == 4  # two wholes, a reasoning and its answer


@pytest.mark.parametrize("name", ["refinement", "best_of_n"])
def test_an_attack_asks_a_real_server(name: str, real: Any) -> None:
    """Greedy, and drawn by the request's seed; a completion is the answer that was found."""
    url, model, *_ = real
    # This server seeds its whole process by each request: one at a time.
    generator = GENERATORS["openai_server"](model, url, concurrency=1)
    judge = RecordedScores()
    target = Target(generator, judge, max_new_tokens=4)
    settings = {"refinement": {"queries": 2}, "best_of_n": {"n": 2}}[name]
    cases = make_attack(name, **settings).run(BEHAVIORS, target, MATERIAL, seed=0)
    assert [(case.behavior_id, case.attack) for case in cases] == [("b0", name), ("b1", name)]
    assert all("errors" not in case.metadata for case in cases)
    assert sum(case.queries for case in cases) == len(judge.texts) == 4
    completions = complete(generator, cases, 4)
    for made in completions:
        assert made.text in judge.texts
        assert made.prompt_tokens > 0 and 1 <= made.response_tokens <= 4


class RecordedScores(ScoreByLength):
    """Remembers the answers that it scored."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def score(self, text: str, behavior: Behavior) -> float:
        self.texts.append(text)
        return super().score(text, behavior)


def by_length(raw: str) -> Reading:
    """A random model says neither yes nor no; any words of it will do."""
    return Reading("refused", 0.0) if raw.strip() else Reading("answered", 1.0)


def test_a_real_server_refuses_what_is_not_standard(real: Any) -> None:
    url, name, *_ = real
    generator = OpenAIServerGenerator(name, url, dialect="vllm")
    with pytest.raises(RequestError, match="refuses the request: .*skip_special_tokens"):
        generator.generate([Request("hello", prefill="so")], 4)


def test_a_real_server_and_a_model_it_does_not_have(real: Any) -> None:
    url, _, *_ = real
    with pytest.raises(InputError, match="unknown model 'other'.*pinned to"):
        OpenAIServerGenerator("other", url).generate(REQUESTS, 4)
    with pytest.raises(InputError, match="base_url: .*/v2 is no OpenAI-compatible server"):
        OpenAIServerGenerator("other", url.replace("/v1", "/v2")).generate(REQUESTS, 4)


class Scripted:
    """A loopback server that answers what ``script`` says; counts who asked what, and how many at
    once. Answers echo the last message."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.under_way = self.most_under_way = 0
        self.script: Callable[[int, dict[str, Any]], Response | None] = lambda nth, body: None
        self.slow: Callable[[int], float] = lambda nth: 0.0
        self.url = ""

    def asked(self) -> Counter[str]:
        return Counter(body["messages"][-1]["content"] for body in self.bodies)

    async def answer(self, asked: Asked) -> Response:
        body = await asked.json()
        self.bodies.append(body)
        self.keys.add(asked.headers.get("authorization"))
        nth = len(self.bodies)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(self.slow(nth))
        self.under_way -= 1
        if (scripted := self.script(nth, body)) is not None:
            return scripted
        if "prompt" in body:  # token ids, as vLLM takes and returns them
            choice = {"index": 0, "finish_reason": "stop", "text": "", "token_ids": body["prompt"]}
            return JSONResponse(
                {**completion(""), "object": "text_completion", "choices": [choice]}
            )
        return JSONResponse(completion(f"echo {body['messages'][-1]['content']}"))


def completion(text: str, **message: Any) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": text, **message}}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", **said}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = server.force_exit = True
    thread.join()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server, app = Scripted(), FastAPI()
    app.post("/v1/chat/completions")(server.answer)
    app.post("/v1/completions")(server.answer)
    app.get("/v1/models")(lambda: {"object": "list", "data": [{"id": "m", "object": "model"}]})
    app.get("/page/{rest:path}")(lambda: HTMLResponse("<h1>hello</h1>"))
    app.post("/page/{rest:path}")(lambda: HTMLResponse("<h1>hello</h1>"))
    with serving(app) as url:
        server.url = f"{url}/v1"
        yield server


SOON = {"retry-after-ms": "1"}


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_asked_again(scripted: Scripted, status: int) -> None:
    scripted.script = lambda nth, body: (
        Response(status_code=status, headers=SOON) if nth <= 3 else None
    )
    generator = OpenAIServerGenerator("m", scripted.url, retries=3, concurrency=1)
    (made,) = generator.generate([Request("hello")], 4)
    assert (made.text, made.prompt_tokens, made.response_tokens) == ("echo hello", 3, 2)
    assert len(scripted.bodies) == 4
    scripted.bodies.clear()
    with pytest.raises(OutageError, match="has no answer, asked 3 times"):
        OpenAIServerGenerator("m", scripted.url, retries=2).generate([Request("hello")], 4)
    assert len(scripted.bodies) == 3


def test_training_data_is_made_by_servers(scripted: Scripted, tmp_path: Path) -> None:
    """Teacher and guard behind one address; one instruction that the server cannot answer."""

    def script(nth: int, body: dict[str, Any]) -> Response:
        asked = body["messages"][-1]["content"]
        if "===== REQUEST =====" in asked:
            following = asked.partition("COMES NEXT =====")[2]
            return JSONResponse(completion("unsafe" if "take a match" in following else "safe"))
        if asked == "brown bear":
            return Response(status_code=400)
        said = "take a match ." if asked == "alder tree" else "no ."
        return JSONResponse(completion(f"<think> so it is . [SAFE] </think> {said}"))

    scripted.script = script
    server = OpenAIServerGenerator("m", scripted.url, retries=0)
    behaviors = [
        Behavior(name, prompt)
        for name, prompt in (("a", "alder tree"), ("b", "brown bear"), ("c", "copper coin"))
    ]
    config = SynthesisConfig(tmp_path, max_new_tokens=50)
    made = synthesize(behaviors, server, prompt_guard(server), config)
    assert made.counts == {"kept": 1, "rejected": 1, "failed": 1, "duplicate": 0}
    reasons = [entry.get("reason") for entry in read_journal(made.journal)]
    assert reasons[0] == UNSAFE_ANSWER and reasons[1].startswith("teacher: RequestError")
    assert reasons[2] is None
    teacher = [body for body in scripted.bodies if len(body["messages"]) == 2]
    assert {body["messages"][0]["content"] for body in teacher} == {load_prompt("teacher")}


def test_an_answer_that_takes_too_long_is_asked_for_again(scripted: Scripted) -> None:
    scripted.slow = lambda nth: 1.0 if nth == 1 else 0.0
    generator = OpenAIServerGenerator("m", scripted.url, retries=1, timeout_s=0.3)
    assert generator.generate([Request("hello")], 4)[0].text == "echo hello"
    scripted.slow = lambda nth: 1.0
    generator = OpenAIServerGenerator("m", scripted.url, retries=0, timeout_s=0.1)
    with pytest.raises(OutageError, match="did not answer within timeout_s=0.1, asked 1 times"):
        generator.generate([Request("hello")], 4)


def test_answers_keep_their_order_and_no_more_than_concurrency_are_under_way(
    scripted: Scripted,
) -> None:
    scripted.slow = lambda nth: 0.02 / (1 + nth % 3)
    asked = [Request(f"number {n}") for n in range(20)]
    made = OpenAIServerGenerator("m", scripted.url, concurrency=4).generate(asked, 4)
    assert [each.text for each in made] == [f"echo number {n}" for n in range(20)]
    assert scripted.most_under_way == 4


def test_a_killed_batch_asks_nothing_twice(scripted: Scripted, tmp_path: Path) -> None:
    asked = [Request(f"number {n}") for n in (0, 1, 2, 1, 3, 4)]
    scripted.script = lambda nth, body: Response(status_code=400) if nth > 3 else None
    cache = tmp_path / "answers"
    generator = OpenAIServerGenerator("m", scripted.url, cache=cache, concurrency=1)
    with pytest.raises(RequestError):
        generator.generate(asked, 4)
    assert scripted.asked().total() == len(scripted.asked()) == 5  # each once, to the last
    refused = [body["messages"][-1]["content"] for body in scripted.bodies[3:]]
    scripted.script = lambda nth, body: None
    again = OpenAIServerGenerator("m", scripted.url, cache=cache, concurrency=1)
    assert [m.text for m in again.generate(asked, 4)] == [f"echo {r.prompt}" for r in asked]
    assert all(n == (2 if text in refused else 1) for text, n in scripted.asked().items())
    n = len(scripted.bodies)
    again.generate(asked, 4)
    assert len(scripted.bodies) == n
    # Whatever makes another question is asked.
    again.generate(asked[:1], 5)
    again.generate([Request("number 0", system="be careful")], 4)
    again.generate([Request("number 0", temperature=1.0, seed=1)], 4)
    again.generate([Request("number 0", temperature=1.0, seed=2)], 4)
    assert len(scripted.bodies) == n + 4


def test_a_cached_answer_that_is_none(scripted: Scripted, tmp_path: Path) -> None:
    generator = OpenAIServerGenerator("m", scripted.url, cache=tmp_path)
    generator.generate([Request("hello")], 4)
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text())["question"]["messages"][-1]["content"] == "hello"
    kept.write_text('{"answer": {}}')
    with pytest.raises(InputError, match=f"{kept.name}: expected a cached answer.*delete the file"):
        generator.generate([Request("hello")], 4)


def test_prefill_is_continued_where_the_server_can_and_refused_where_not(
    scripted: Scripted,
) -> None:
    asked = Request("hello", prefill="<think>", temperature=0.5)
    with pytest.raises(InputError, match="prefill: dialect 'openai' has no field"):
        OpenAIServerGenerator("m", scripted.url).generate([asked], 4)
    assert not scripted.bodies
    OpenAIServerGenerator("m", scripted.url, dialect="vllm").generate([asked], 4)
    (body,) = scripted.bodies
    assert body["messages"][-1] == {"role": "assistant", "content": "<think>"}
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    assert body["skip_special_tokens"] is False and body["temperature"] == 0.5
    assert body["repetition_penalty"] == body["top_p"] == 1.0 and body["top_k"] == 0
    tokenizer = tiny_tokenizer("qwen3")
    generator = OpenAIServerGenerator("m", scripted.url, dialect="vllm", tokenizer=tokenizer)
    (made,) = generator.generate([asked], 4)
    ids = encode_prompt(tokenizer, "hello", prefill="<think>")
    assert scripted.bodies[1]["prompt"] == ids
    # The server echoes the ids, and <|im_end|> stands behind the user's message.
    assert made.finish == "stop" and made.response_tokens == ids.index(generator.stop_ids[0]) + 1
    assert made.text == tokenizer.decode(ids[: made.response_tokens - 1])
    choice = {"index": 0, "finish_reason": "stop", "text": "as other servers answer"}
    scripted.script = lambda nth, body: JSONResponse(
        {**completion(""), "object": "text_completion", "choices": [choice]}
    )
    with pytest.raises(
        InputError, match="dialect 'vllm': .* answers completions without token_ids"
    ):
        generator.generate([asked], 4)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_handed_over_apart_is_put_back(scripted: Scripted, name: str) -> None:
    scripted.script = lambda nth, body: JSONResponse(completion("so", **{name: "why"}))
    (made,) = OpenAIServerGenerator("m", scripted.url).generate([Request("hello")], 4)
    assert made.text == "<think>why</think>so"


def test_no_key_is_shown(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-verysecret"
    caplog.set_level(logging.DEBUG)
    scripted.script = lambda nth, body: JSONResponse(
        {"error": {"message": f"no such key {key}"}}, status_code=401
    )
    generator = OpenAIServerGenerator("m", scripted.url, api_key_variable="MY_KEY")
    with pytest.raises(InputError, match="'MY_KEY' is not set"):
        generator.generate([Request("hello")], 4)
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(InputError, match="'MY_KEY' holds a key.*put a valid key") as refused:
        generator.generate([Request("hello")], 4)
    assert scripted.keys == {"Bearer none", f"Bearer {key}"}
    assert key not in str(refused.value) + repr(vars(generator)) + caplog.text


def test_wrong_model_and_address_in_one_line(scripted: Scripted) -> None:
    scripted.script = lambda nth, body: JSONResponse(
        {"error": {"message": f"The model `{body['model']}` does not exist."}}, status_code=404
    )
    with pytest.raises(InputError, match="unknown model 'n'; known: m.*does not exist"):
        OpenAIServerGenerator("n", scripted.url).generate([Request("hello")], 4)
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(InputError, match=f"base_url: no server answers at {nobody}"):
        OpenAIServerGenerator("m", nobody, retries=0).generate([Request("hello")], 4)
    page = scripted.url.replace("/v1", "/page")
    with pytest.raises(InputError, match="base_url: .*something that is no completion"):
        OpenAIServerGenerator("m", page, retries=0).generate([Request("hello")], 4)


NO_COMPLETIONS: list[Any] = [
    b"{}", b'{"choices": null}', b'{"choices": [1]}', b"null", b"[]", b"{", b"<h1>busy</h1>",
    completion("") | {"choices": []},
    completion("") | {"error": {"message": "overloaded", "code": 503}},
]  # fmt: skip


def no_completion(body: Any) -> Response:
    if isinstance(body, dict):
        return JSONResponse(body)
    return HTMLResponse(body) if b"<" in body else Response(body, media_type="application/json")


@pytest.mark.parametrize("body", NO_COMPLETIONS)
def test_an_answer_that_is_no_completion(scripted: Scripted, body: Any) -> None:
    """Where nothing was ever answered, the address is at fault."""
    scripted.script = lambda nth, _: no_completion(body)
    with pytest.raises(InputError, match="base_url: .*something that is no completion.*in /v1"):
        OpenAIServerGenerator("m", scripted.url, retries=0).generate([Request("hello")], 4)


@pytest.mark.parametrize("body", NO_COMPLETIONS)
def test_an_answer_that_is_no_completion_among_others(
    scripted: Scripted, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again as after an outage, and costs the others nothing."""
    monkeypatch.setattr(openai_server.anyio, "sleep", no_wait)
    busy = 2
    scripted.script = lambda nth, asked: (
        no_completion(body)
        if asked["messages"][-1]["content"] == "bad" and scripted.asked()["bad"] <= busy
        else None
    )
    asked = [Request(text) for text in ("one", "bad", "two")]
    generator = OpenAIServerGenerator("m", scripted.url, retries=2, concurrency=1)
    assert [each.text for each in generator.generate(asked, 4)] == ["echo one", "echo bad",
                                                                    "echo two"]  # fmt: skip
    assert scripted.asked() == {"one": 1, "bad": 3, "two": 1}
    busy = 100
    one, bad, two = answer_each(generator, asked, 4)
    assert (one.text, two.text) == ("echo one", "echo two")
    assert isinstance(bad, OutageError)
    assert "no completion" in str(bad) and "asked 3 times" in str(bad) and "/v1 " in str(bad)
    assert "base_url" not in str(bad) and "usually" not in str(bad)


async def no_wait(seconds: float) -> None:
    """In place of a sleep."""


def test_a_server_that_is_gone_is_an_outage_where_it_has_answered(scripted: Scripted) -> None:
    generator = OpenAIServerGenerator("m", scripted.url, retries=0)
    assert generator.generate([Request("one")], 4)[0].text == "echo one"
    generator.base_url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(OutageError, match="no server answers at") as raised:
        generator.generate([Request("two")], 4)
    assert "base_url" not in str(raised.value)


def test_what_is_refused_and_what_fails_are_told_apart(scripted: Scripted) -> None:
    statuses = {"long": 400, "large": 413, "odd": 422, "down": 500, "busy": 429}
    scripted.script = lambda nth, body: (
        Response(status_code=status, headers=SOON)
        if (status := statuses.get(body["messages"][-1]["content"]))
        else None
    )
    generator = OpenAIServerGenerator("m", scripted.url, retries=1)
    asked = [Request(text) for text in ("fine", *statuses)]
    made = answer_each(generator, asked, 4)
    assert [type(each).__name__ for each in made] == [
        "Generation", "RequestError", "RequestError", "RequestError", "OutageError", "OutageError",
    ]  # fmt: skip
    assert scripted.asked() == {"fine": 1, "long": 1, "large": 1, "odd": 1, "down": 2, "busy": 2}
    with pytest.raises(OutageError) as raised:
        generator.generate(asked, 4)
    assert "\x1b" not in OutageError("a\x1b[2Jb")._render_traceback_()[0]
    assert len(raised.value._render_traceback_()) == 1


def test_content_in_parts_is_their_text(scripted: Scripted) -> None:
    parts: Any = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    scripted.script = lambda nth, body: JSONResponse(completion(parts))
    generator = OpenAIServerGenerator("m", scripted.url, retries=0)
    assert generator.generate([Request("hello")], 4)[0].text == "one two"
    parts.append({"type": "image_url", "image_url": {}})
    with pytest.raises(RequestError, match="content that is no text"):
        generator.generate([Request("hello")], 4)


def test_what_a_filter_withholds_is_said(scripted: Scripted) -> None:
    answer = completion("")
    answer["choices"][0]["finish_reason"] = "content_filter"
    answer["choices"][0]["message"]["content"] = None
    scripted.script = lambda nth, body: JSONResponse(answer)
    (made,) = OpenAIServerGenerator("m", scripted.url).generate([Request("hello")], 4)
    assert (made.text, made.finish) == ("", "filtered")


def test_a_lone_surrogate_enters_and_leaves_as_what_it_is_not(
    scripted: Scripted, tmp_path: Path
) -> None:
    body = json.dumps(completion("a \ud800 b 😀"))
    scripted.script = lambda nth, _: Response(body, media_type="application/json")
    generator = OpenAIServerGenerator("m", scripted.url, retries=0, cache=tmp_path)
    (made,) = generator.generate([Request("why \udfff ?", history=(("\ud800", "b"),))], 4)
    assert made.text == "a \ufffd b 😀"
    (sent,) = scripted.bodies
    assert [m["content"] for m in sent["messages"]] == ["\ufffd", "b", "why \ufffd ?"]


ONE_IS_REFUSED = {
    "flagged": (403, {"error": {"message": "input was flagged"}}),
    "flagged by m": (400, {"error": {"message": "input was flagged by m"}}),
    "blocked": (200, {"error": {"message": "blocked", "code": 403}}),
    "finish_reason 'content_filter'": (
        200,
        completion("") | {"choices": [{"index": 0, "finish_reason": "content_filter",
                                       "message": None}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", ONE_IS_REFUSED)
def test_a_refused_request_costs_the_others_nothing(scripted: Scripted, said: str) -> None:
    """It alone has no answer, and none is asked twice, although there is no cache."""
    status, content = ONE_IS_REFUSED[said]
    scripted.script = lambda nth, body: (
        JSONResponse(content, status_code=status)
        if body["messages"][-1]["content"] == "bad"
        else None
    )
    generator = OpenAIServerGenerator("m", scripted.url, retries=0)
    asked = [Request(text) for text in ("one", "two", "bad", "three", "two")]
    made = answer_each(generator, asked, 4)
    assert [getattr(each, "text", "none") for each in made] == [
        "echo one", "echo two", "none", "echo three", "echo two",
    ]  # fmt: skip
    assert isinstance(made[2], RequestError) and said in str(made[2])
    assert scripted.asked() == {"one": 1, "two": 1, "bad": 1, "three": 1}
    generator.generate(asked[:1], 4)  # asked later once more, it is asked anew
    assert scripted.asked()["one"] == 2


def test_behind_a_defence_the_others_are_not_asked_twice_either(scripted: Scripted) -> None:
    scripted.script = lambda nth, body: (
        Response(status_code=400) if "bad" in body["messages"][-1]["content"] else None
    )
    defended = SelfReminder(OpenAIServerGenerator("m", scripted.url, retries=0))
    made = answer_each(defended, [Request(text) for text in ("one", "bad", "two")], 4)
    assert [isinstance(each, RequestError) for each in made] == [False, True, False]
    assert sorted(scripted.asked().values()) == [1, 1, 2]  # what failed is tried once more


def test_what_is_no_servers_fault_is_raised_as_it_is(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = OpenAIServerGenerator("m", scripted.url)
    monkeypatch.setattr(generator, "_generation", lambda answer: {}["no such key"])
    with pytest.raises(KeyError, match="no such key"):
        generator.generate([Request("hello")], 4)


def test_an_answer_without_text_or_usage(scripted: Scripted) -> None:
    answer = completion("")
    del answer["usage"]
    answer["choices"][0] |= {"finish_reason": "length"}
    answer["choices"][0]["message"]["content"] = None
    scripted.script = lambda nth, body: JSONResponse(answer)
    (made,) = OpenAIServerGenerator("m", scripted.url).generate([Request("hello")], 4)
    assert (made.text, made.prompt_tokens, made.response_tokens) == ("", 0, 0)
    assert made.finish == "length"


def test_an_interrupt_ends_what_is_under_way_and_keeps_what_is_answered(
    scripted: Scripted, tmp_path: Path
) -> None:
    def slow(nth: int) -> float:
        if nth == 3:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return 0.0 if nth <= 2 else 30.0

    scripted.slow = slow
    asked = [Request(f"number {n}") for n in range(5)]
    generator = OpenAIServerGenerator("m", scripted.url, cache=tmp_path, concurrency=1)
    # A shell without job control starts what runs in its background deaf to Ctrl-C.
    heard_before = signal.signal(signal.SIGINT, signal.default_int_handler)
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            generator.generate(asked, 4)
    finally:
        signal.signal(signal.SIGINT, heard_before)
    assert time.monotonic() - begun < 15
    assert len(list(tmp_path.iterdir())) == 2


def test_it_works_where_a_loop_is_running_already(scripted: Scripted) -> None:
    async def notebook_cell() -> str:
        return OpenAIServerGenerator("m", scripted.url).generate([Request("hello")], 4)[0].text

    assert asyncio.run(notebook_cell()) == "echo hello"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dialect": "vlm"}, "unknown dialect 'vlm', did you mean 'vllm'"),
        ({"base_url": "localhost:8000/v1"}, "base_url: expected http://"),
        ({"tokenizer": object()}, "tokenizer: dialect 'openai' takes no token ids"),
        ({"concurrency": 0}, "concurrency: expected at least 1, got 0"),
        ({"retries": -1}, "retries: expected at least 0, got -1"),
        ({"timeout_s": 0.0}, "timeout_s: expected seconds above 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        OpenAIServerGenerator(**{"model": "m", "base_url": "http://127.0.0.1/v1", **settings})
