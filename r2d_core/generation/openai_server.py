"""Generation by a server that speaks OpenAI's API: vLLM's, transformers', a provider's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import anyio
from anyio.from_thread import start_blocking_portal
from tqdm.auto import tqdm

from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.generation.encoding import decode_answer, encode_request, stop_ids_of
from r2d_core.generation.generator import (
    FailedRequests,
    Generation,
    OutageError,
    Request,
    RequestError,
    sampling_seed,
)
from r2d_core.pivots import THINK_CLOSE, THINK_OPEN
from r2d_core.records import write_text_atomic

if TYPE_CHECKING:  # the library takes a second to import, which who asks no server need not wait
    import openai

Dialect = Literal["openai", "vllm"]
KEEP_SPECIAL = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
# vLLM's server obeys the model's own generation configuration unless told otherwise: Qwen2.5's has
# a repetition penalty, which is paid by every pivot after the first.
WHOLE_SOFTMAX = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


FINISHES: dict[Any, Literal["length", "filtered"]] = {
    "length": "length",
    "content_filter": "filtered",
}


class _NoServer(OutageError):
    """Nothing was there that speaks the API: the address's fault where nothing ever was."""


class _NoCompletion(_NoServer):
    """An answer that is no completion: a gateway's page, a body cut off."""


class OpenAIServerGenerator:
    """Generation through an OpenAI-compatible server, ``concurrency`` requests at a time.

    What the server is told decides what is measured:

    - ``dialect="openai"``: standard fields only. The server applies its own chat template and what
      the model's generation configuration says beside temperature and top_p, and usually drops
      special tokens, so an R2D model's pivots and think tokens are not in the text. A prefill is
      refused, because nothing standard continues a message.
    - ``dialect="vllm"``: special tokens are kept and a prefill is continued
      (``continue_final_message``). The server's tokenizer still reads a `[SAFE]` or `</think>` in a
      user's text as the token.
    - ``dialect="vllm"`` with a ``tokenizer``: token ids are sent and come back (`/v1/completions`),
      to the last those of a local generator; a user's text forges nothing.

    A reasoning that the server hands over apart from the answer is put back before it, between
    `<think>` and `</think>`. Token counts are the server's, 0 where it gives none; ``finish`` is
    "filtered" where its content filter withheld the answer or cut it off.

    Args:
        model: name under which the server knows the model.
        base_url: where the server is, usually ending in ``/v1``.
        dialect, tokenizer: as above.
        cache: a folder with an answer a file, named by the hash of server, model and all that was
            asked. What is there is not asked again, so a killed batch goes on where it was. It
            does not notice another model under the same name: give each its own folder.
        api_key_variable: name of the environment variable with the key, where one is needed.
        concurrency: requests under way at one time.
        retries: how often one request is asked again after 408, 409, 429, 5xx, a timeout, a lost
            connection or an answer that is no completion; waits double from half a second to eight,
            or are what the server says.
        timeout_s: seconds to wait for one answer.

    Raises InputError for an unknown dialect, a base_url without http(s), a tokenizer without the
    vllm dialect, and numbers out of range.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        dialect: Dialect = "openai",
        tokenizer: Any = None,
        cache: Path | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        retries: int = 6,
        timeout_s: float = 600.0,
    ) -> None:
        if dialect not in get_args(Dialect):
            raise InputError(unknown("dialect", dialect, get_args(Dialect)))
        if not base_url.startswith(("http://", "https://")):
            raise InputError(
                f"base_url: expected http://… or https://…, got {base_url!r}; a local server's is "
                "like http://127.0.0.1:8000/v1"
            )
        if tokenizer is not None and dialect != "vllm":
            raise InputError(
                f"tokenizer: dialect {dialect!r} takes no token ids; use dialect='vllm' or leave "
                "the tokenizer out"
            )
        for name, value, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if value < least:
                raise InputError(f"{name}: expected at least {least}, got {value}")
        if not timeout_s > 0:
            raise InputError(f"timeout_s: expected seconds above 0, got {timeout_s}")
        self.model = model
        self.base_url = base_url
        self.dialect = dialect
        self.tokenizer = tokenizer
        self.cache = cache
        self.api_key_variable = api_key_variable
        self.concurrency = concurrency
        self.retries = retries
        self.timeout_s = timeout_s
        self.stop_ids = [] if tokenizer is None else stop_ids_of(tokenizer, None)
        self._unread: dict[str, Generation] = {}  # of batches in which others have failed
        self._answered = False  # ever: the address is right, then
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)

    def generate(
        self, requests: Sequence[Request], max_new_tokens: int, progress: bool = False
    ) -> list[Generation]:
        """Answers in the order of the requests; ``progress`` shows a bar.

        The same request in one batch is asked once.

        Raises InputError, naming the parameter, when there is no server, no such model or the key
        is refused, and for a prefill that the dialect cannot express: that ends the batch, and what
        was answered until then is in the cache. Raises, after all are asked, `OutageError` where
        the server fails at some after all retries, and `RequestError` where it but refuses some;
        what it answered beside them is kept: asked again without them, it costs nothing more.
        """
        bodies = [self._body(request, max_new_tokens) for request in requests]
        questions = dict(zip(map(self._name, bodies), bodies, strict=True))
        answers = {name: made for name in questions if (made := self._known(name)) is not None}
        errors: dict[str, FailedRequests] = {}
        missing = {name: body for name, body in questions.items() if name not in answers}
        with tqdm(total=len(questions), initial=len(answers), disable=not progress) as bar:
            bar.set_description("generate")
            if missing:
                # A loop in a thread of its own: in Jupyter one is running in this thread already.
                # An exception here, Ctrl-C too, cancels what is under way.
                with start_blocking_portal() as portal:
                    portal.start_task_soon(self._ask_all, missing, answers, errors, bar).result()
        if errors:
            self._unread |= answers
            named = zip(requests, map(self._name, bodies), strict=True)
            failed = {request: errors[name] for request, name in named if name in errors}
            outages = [each for each in failed.values() if isinstance(each, OutageError)]
            kind = OutageError if outages else RequestError
            raise kind(str([*outages, *failed.values()][0]), failed)
        return [answers[self._name(body)] for body in bodies]

    def _body(self, request: Request, max_new_tokens: int) -> dict[str, Any]:
        """What is asked, as JSON: fields of the chat endpoint, or of completions for token ids."""
        body: dict[str, Any] = {"model": self.model, "temperature": request.temperature}
        if request.temperature:
            body |= {"seed": sampling_seed(request) >> 32, "top_p": 1.0}
        if self.dialect == "vllm":
            body |= WHOLE_SOFTMAX
        if self.tokenizer is not None:
            return {
                **body,
                "prompt": encode_request(self.tokenizer, request),
                "max_tokens": max_new_tokens,
                "stop_token_ids": self.stop_ids,
                "return_token_ids": True,
            }
        messages = [{"role": "system", "content": request.system}] if request.system else []
        for user, assistant in request.history:
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": assistant})
        messages.append({"role": "user", "content": request.prompt})
        body |= {"messages": messages, "max_completion_tokens": max_new_tokens}
        if self.dialect == "vllm":
            body |= KEEP_SPECIAL
        if request.prefill:
            if self.dialect != "vllm":
                raise InputError(
                    f"prefill: dialect {self.dialect!r} has no field that continues a message; use "
                    "a server that has (vllm serve, with dialect='vllm') or leave out attacks and "
                    "defences that prefill"
                )
            messages.append({"role": "assistant", "content": request.prefill})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    async def _ask_all(
        self,
        questions: dict[str, dict[str, Any]],
        answers: dict[str, Generation],
        errors: dict[str, FailedRequests],
        bar: Any,
    ) -> None:
        """Fill ``answers`` and, for single requests that fail, ``errors``; raise what ends all."""
        import openai

        fatal: list[Exception] = []
        limit = anyio.CapacityLimiter(self.concurrency)
        key = os.environ.get(self.api_key_variable)
        async with (
            openai.AsyncOpenAI(
                base_url=self.base_url,
                api_key=key or "none",
                max_retries=self.retries,
                timeout=self.timeout_s,
            ) as client,
            anyio.create_task_group() as tasks,
        ):

            async def ask(name: str, body: dict[str, Any]) -> None:
                async with limit:
                    try:
                        made = await self._ask(client, body)
                    except _NoServer as error:
                        if self._answered or answers:
                            errors[name] = OutageError(str(error))
                        else:
                            mend = "start it, or correct the address, which usually ends in /v1"
                            fatal.append(InputError(f"base_url: {error}; {mend}"))
                            tasks.cancel_scope.cancel()
                        return
                    except (OutageError, RequestError) as error:
                        errors[name] = error
                        return
                    except Exception as error:  # kept, or the group wraps it in one of its own
                        fatal.append(error)
                        tasks.cancel_scope.cancel()
                        return
                self._answered = True
                self._keep(name, body, made)
                answers[name] = made
                bar.update()

            for name, body in questions.items():
                tasks.start_soon(ask, name, body)
        if fatal:
            raise fatal[0]

    async def _ask(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> Generation:
        for attempt in range(self.retries + 1):
            try:
                return await self._ask_once(client, body)
            except _NoCompletion:  # at which the client does not ask again by itself
                if attempt == self.retries:
                    raise
            await anyio.sleep(min(8.0, 0.5 * 2**attempt))
        raise AssertionError("the last attempt returns or raises")

    async def _ask_once(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> Generation:
        import openai
        from openai.types import Completion
        from openai.types.chat import ChatCompletion

        path = "/completions" if "prompt" in body else "/chat/completions"
        kind: Any = Completion if "prompt" in body else ChatCompletion
        try:
            answer = await client.post(path, cast_to=kind, body=body)
        except openai.AuthenticationError:
            held = "is not set" if not os.environ.get(self.api_key_variable) else "holds a key"
            raise InputError(
                f"api_key_variable: environment variable {self.api_key_variable!r} {held}, and "
                f"{self.base_url} refuses the request; put a valid key into it"
            ) from None
        except openai.APITimeoutError:
            raise OutageError(
                f"{self.base_url} did not answer within timeout_s={self.timeout_s}, asked "
                f"{self.retries + 1} times; raise timeout_s or lower concurrency"
            ) from None
        except openai.APIConnectionError as error:
            said = error.__cause__ or error
            raise _NoServer(f"no server answers at {self.base_url} ({said})") from None
        except openai.APIStatusError as error:
            raise await self._refusal(client, error) from None
        except (openai.APIError, json.JSONDecodeError) as error:
            raise self._no_completion(str(error)) from None
        return self._generation(answer)

    async def _refusal(
        self, client: openai.AsyncOpenAI, error: openai.APIStatusError
    ) -> InputError | OutageError | RequestError:
        """Why there is no answer: is it the model's name, the address, this request, an outage?"""
        import openai

        said = _says(error)
        if _passes(error.status_code):
            return OutageError(
                f"{self.base_url} has no answer, asked {self.retries + 1} times: {said}"
            )
        if error.status_code == 404 or self.model in said:
            try:
                listing = client.with_options(max_retries=0, timeout=10.0).models.list()
                names = [each.id async for each in listing]
            except (openai.APIError, TypeError, AttributeError):
                names = []
            if not names and error.status_code == 404:
                return InputError(
                    f"base_url: {self.base_url} is no OpenAI-compatible server ({said}); it "
                    "usually ends in /v1"
                )
            # 403 may be a provider's moderation, which flags this text: that needs proof.
            if self.model not in names and (names or error.status_code != 403):
                return InputError(
                    f"{self.base_url}: {unknown('model', self.model, names)} ({said})"
                )
        return RequestError(f"{self.base_url} refuses the request: {said}")

    def _generation(self, answer: Any) -> Generation:
        from openai.types import Completion
        from openai.types.chat import ChatCompletion, ChatCompletionMessage

        choices = getattr(answer, "choices", None)
        if said := getattr(answer, "error", None):
            if isinstance(said, dict) and _passes(said.get("code")):
                raise self._no_completion(_one_line(said))
            raise RequestError(f"{self.base_url} refuses the request: {_one_line(said)}")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        reason = getattr(choice, "finish_reason", None)
        if isinstance(answer, ChatCompletion) and isinstance(message, ChatCompletionMessage):
            text = _text_of(message.content or message.refusal)
            if text is None:
                raise RequestError(
                    f"{self.base_url} answers with content that is no text: {message.content!r:.80}"
                )
            # vLLM's name for it, and that of other servers.
            for name in ("reasoning", "reasoning_content"):
                if reasoning := getattr(message, name, None):
                    text = f"{THINK_OPEN}{reasoning}{THINK_CLOSE}{text}"
                    break
        elif isinstance(answer, Completion) and choice is not None and hasattr(choice, "token_ids"):
            prompt_tokens = 0 if answer.usage is None else answer.usage.prompt_tokens
            return decode_answer(self.tokenizer, self.stop_ids, prompt_tokens, choice.token_ids)
        elif isinstance(answer, Completion) and choice is not None:
            raise InputError(
                f"dialect 'vllm': {self.base_url} answers completions without token_ids, which "
                "vLLM gives; take another dialect"
            )
        elif choice is not None and message is None and reason is not None:
            raise RequestError(
                f"{self.base_url} answers without a message (finish_reason {reason!r})"
            )
        else:
            raise self._no_completion("no choices" if choices == [] else f"{answer!r:.80}")
        usage = answer.usage
        return Generation(
            text,
            getattr(usage, "prompt_tokens", None) or 0,
            getattr(usage, "completion_tokens", None) or 0,
            FINISHES.get(reason, "stop"),
        )

    def _no_completion(self, answered: str) -> _NoCompletion:
        return _NoCompletion(
            f"{self.base_url} answers with something that is no completion ({answered}), asked "
            f"{self.retries + 1} times"
        )

    def _name(self, body: dict[str, Any]) -> str:
        asked = json.dumps([self.base_url, body], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def _known(self, name: str) -> Generation | None:
        if name in self._unread or self.cache is None:
            return self._unread.pop(name, None)
        path = self.cache / f"{name}.json"
        try:
            return Generation(**json.loads(path.read_text(encoding="utf-8"))["answer"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: expected a cached answer of a server ({error}); delete the file"
            ) from None

    def _keep(self, name: str, body: dict[str, Any], made: Generation) -> None:
        if self.cache is not None:
            kept = {"question": body, "answer": dataclasses.asdict(made)}
            write_text_atomic(self.cache / f"{name}.json", json.dumps(kept))


def _passes(status: Any) -> bool:
    """Whether a status says that the same request may be answered later."""
    return isinstance(status, int) and (status in (408, 409, 429) or 500 <= status < 600)


def _text_of(content: Any) -> str | None:
    """The text of a message's content, a string or a list of parts; None where it has others."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    return None if None in texts else "".join(map(str, texts))


def _says(error: openai.APIError) -> str:
    """The server's own words on one line, cut short."""
    body = error.body
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else None
    return _one_line(said or error.message)


def _one_line(said: Any) -> str:
    if isinstance(said, dict):
        said = said.get("message") or said
    return " ".join(str(said).split())[:300]
