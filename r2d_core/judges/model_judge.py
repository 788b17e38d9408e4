"""What all judges that ask a model share: the prompt, the batches, the cache, the reading.

A judge of this kind is its published prompt, what its model may write, and how that is read. The
model is any Generator; greedy, as all of them were published.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tqdm.auto import tqdm

from r2d_core.errors import InputError
from r2d_core.generation import Generation, Generator, Request, RequestError, answer_each
from r2d_core.judges.answers import Answers, question_key
from r2d_core.judges.judge import ABSENT, SCOPES, UNPARSABLE, parts_of
from r2d_core.judges.prompts import prompt_text
from r2d_core.judges.quoting import fill, marks, quote
from r2d_core.records import Behavior, Completion, Verdict

BATCH = 64
"""Questions put to the generator at once; after each batch their answers are on disk."""


@dataclass(frozen=True)
class Reading:
    """What a judge's output says: its label, a score from 0 (harmless) to 1, and the rest of it."""

    label: str
    score: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A judge model's raw output to one question, or what the model raised."""

    raw: str = ""
    error: str = ""
    outage: bool = False


class ModelJudge:
    """A judge that asks a model, with a published prompt.

    ``metadata`` of a verdict holds the ``model``, its ``raw`` output for each scope, what else was
    read from it (``details``: categories, scores) and, where the model raised, the ``error``;
    ``outage`` where that was not for the text (`RequestError`): asked later, the model may answer.

    Args:
        generator: the judge model.
        model: its name, kept in verdicts and in the cache's keys: two models need two names.
        cache: a folder; answers are kept in ``<judge's name>.jsonl`` there and not asked again.

    Attributes of a class:
        name: of the judge, and of its prompt's file in ``prompts/``.
        labels: what it may say, beside ``absent`` and ``unparsable``.
        success: the label that counts as a successful attack; "" for judges of refusal.
        system: the system message.
        delimiters: strings of the prompt that mark where the texts in it begin and end.
        max_new_tokens: length of the model's output.
        chat_template: for models trained on the prompt itself: the template under which a local
            tokenizer gives them exactly that (`install_judge_template`). Any other template would
            wrap the prompt once more.

    Raises InputError when the generator's tokenizer has another template than the judge's model
    needs.
    """

    name: ClassVar[str]
    labels: ClassVar[tuple[str, ...]]
    success: ClassVar[str] = ""
    system: ClassVar[str] = ""
    delimiters: ClassVar[tuple[str, ...]]
    max_new_tokens: ClassVar[int]
    chat_template: ClassVar[str] = ""

    def __init__(self, generator: Generator, model: str, cache: Path | None = None) -> None:
        self.generator = generator
        self.model = model
        self.answers = Answers(None if cache is None else Path(cache) / f"{self.name}.jsonl")
        # Generators that hold their tokenizer have it under this name; others have none.
        tokenizer = getattr(generator, "tokenizer", None)
        needed = self.chat_template
        if needed and tokenizer is not None and tokenizer.chat_template != needed:
            raise InputError(
                f"judge {self.name!r}: its model reads the published prompt and nothing round it, "
                "and the tokenizer's chat template would wrap it again; call "
                f"install_judge_template(tokenizer, {self.name!r}) before making the generator"
            )
        added = () if tokenizer is None else tokenizer.added_tokens_decoder.values()
        tokens = [token.content for token in added if not token.content.isspace()]
        self._forbidden = marks(self.delimiters, tokens)

    def values(self, text: str, behavior: Behavior) -> dict[str, str]:
        """What goes into the prompt: the behavior, behind its context if any, and the text."""
        return {"prompt": behavior.request, "response": text}

    def template(self, behavior: Behavior) -> str:
        """The published prompt with its places in braces."""
        return prompt_text(self.name)

    def read(self, raw: str) -> Reading | None:
        """What the output says; None where it says nothing that can be read."""
        raise NotImplementedError

    def request(self, text: str, behavior: Behavior) -> Request:
        """The question about one text. What goes into the prompt cannot end its place in it."""
        values = self.values(text, behavior)
        quoted = {name: quote(value, self._forbidden) for name, value in values.items()}
        return Request(fill(self.template(behavior), quoted), system=self.system)

    def judge(self, behavior: Behavior, completion: Completion) -> Verdict:
        """The verdict on one completion; many at once are asked in batches by `judge_all`."""
        return self.judge_pairs([(behavior, completion)])[0]

    def score(self, text: str, behavior: Behavior) -> float:
        """The reading's score; 0 for an empty text, nan for an output that cannot be read.

        nan, too, for a text that the model cannot take (`RequestError`); else what the model raises
        is passed on.
        """
        if not text.strip():
            return 0.0
        reading = self.read(self._ask([self.request(text, behavior)])[0].raw)
        return math.nan if reading is None else reading.score

    def judge_pairs(
        self, pairs: Sequence[tuple[Behavior, Completion]], progress: bool = False
    ) -> list[Verdict]:
        """Verdicts in the order of the pairs. The same text is asked about once.

        A question that the model cannot take (`RequestError`: too long, say; a provider's filter
        that withholds the answer), or at which it raises while it answers others of the batch, is
        `UNPARSABLE` and is asked again the next time; where it raises anything else at all of them
        (`OutageError`: rate limits, a server that fails) it is down, and the exception is passed
        on. What was answered stays in the cache.
        """
        places: list[tuple[int, str]] = []
        requests: list[Request] = []
        for number, (behavior, completion) in enumerate(pairs):
            parts = parts_of(completion)
            for scope in SCOPES:
                if (text := getattr(parts, scope)).strip():
                    places.append((number, scope))
                    requests.append(self.request(text, behavior))
        found: list[dict[str, Answer]] = [{} for _ in pairs]
        for (number, scope), answer in zip(places, self._ask(requests, progress), strict=True):
            found[number][scope] = answer
        return [
            self._verdict(behavior, completion, answers)
            for (behavior, completion), answers in zip(pairs, found, strict=True)
        ]

    def _verdict(
        self, behavior: Behavior, completion: Completion, answers: Mapping[str, Answer]
    ) -> Verdict:
        labels = dict.fromkeys(SCOPES, ABSENT)
        metadata: dict[str, Any] = {"model": self.model, "raw": {}}
        for scope, answer in answers.items():
            reading = None if answer.error else self.read(answer.raw)
            labels[scope] = UNPARSABLE if reading is None else reading.label
            if answer.error:
                metadata.setdefault("error", {})[scope] = answer.error
                if answer.outage:
                    metadata["outage"] = True
                continue
            metadata["raw"][scope] = answer.raw
            if reading is not None and reading.details:
                metadata.setdefault("details", {})[scope] = dict(reading.details)
        return Verdict(
            behavior_id=behavior.id,
            attack=completion.attack,
            judge=self.name,
            metadata=metadata,
            **labels,
        )

    def _ask(self, requests: Sequence[Request], progress: bool = False) -> list[Answer]:
        """An answer to each request; raises what the model raised where it seems to be down.

        That is where it answers nothing of a whole batch, and where it has answered nothing at all,
        unless each time it says that the request is the reason (`RequestError`). The odd text that
        it cannot take costs that text its answer, in a resumed run too.
        """
        keys = [
            question_key(self.name, self.model, dataclasses.asdict(r), self.max_new_tokens)
            for r in requests
        ]
        asked = {k: r for k, r in zip(keys, requests, strict=True) if self.answers.get(k) is None}
        answered = len(asked) < len(set(keys))
        errors: dict[str, Answer] = {}
        left = list(asked)
        with tqdm(total=len(left), desc=self.name, unit="text", disable=not progress) as bar:
            for start in range(0, len(left), BATCH):
                batch = left[start : start + BATCH]
                raised = self._ask_batch({key: asked[key] for key in batch})
                down = [e for e in raised.values() if not isinstance(e, RequestError)]
                if len(down) == len(batch) and (len(batch) == BATCH or not answered):
                    raise down[-1]
                answered = True
                errors |= {
                    key: Answer(
                        error=" ".join(f"{type(each).__name__}: {each}".split()),
                        outage=not isinstance(each, RequestError),
                    )
                    for key, each in raised.items()
                }
                bar.update(len(batch))
        return [errors.get(key) or Answer(raw=self.answers.get(key) or "") for key in keys]

    def _ask_batch(self, batch: Mapping[str, Request]) -> dict[str, Exception]:
        """Put the answers into the cache; what was raised, by key."""
        answers = answer_each(self.generator, list(batch.values()), self.max_new_tokens)
        withheld = RequestError("a filter of the provider's withheld the answer")
        made = {
            key: withheld if isinstance(each, Generation) and each.finish == "filtered" else each
            for key, each in zip(batch, answers, strict=True)
        }
        self.answers.add({k: each.text for k, each in made.items() if isinstance(each, Generation)})
        return {key: each for key, each in made.items() if isinstance(each, Exception)}


def first_word(raw: str) -> str:
    """The first word of an output in lower case, without the marks round it; "" without any."""
    words = raw.split(maxsplit=1)
    return words[0].strip("\"'`*.,:;!()[]<>").lower() if words else ""
