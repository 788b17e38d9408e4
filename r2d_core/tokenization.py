"""From messages to token ids: one way, for training and evaluation alike.

    <prompt: the model's own chat template> <response> <end of turn>
    └──────────── label −100 ─────────────┘ └────── labelled ──────┘

The prompt is rendered by the chat template with its generation prompt, just as a server would, and
tokenised. The response is tokenised apart and appended, so that the prompt of a training example is
to the id the prompt of evaluation. It never goes through the template itself: some (R1-Distill,
Qwen3) drop or move the `<think>` part of an assistant message.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.pivots import NEW_TOKENS, THINK_OPEN

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a position that is not learnt."""

CHAT_TEMPLATES = {
    # For base models. The generation prompt ends in a line end, not in a space: a space before
    # the response would be a token of its own, which the response's first word normally carries.
    "plain": """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ message.content + '\n\n' }}
    {%- elif message.role == 'user' %}{{ 'User:\n' + message.content + '\n\n' }}
    {%- else %}{{ 'Assistant:\n' + message.content }}{{ eos_token }}{{ '\n\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}""",
    # The toy world's word-level language: words and special tokens joined by single spaces, as its
    # tokenizer's decode writes them.
    "toy": """\
{{- '<s>' }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ ' ' + message.content }}
    {%- elif message.role == 'user' %}{{ ' <user> ' + message.content }}
    {%- else %}{{ ' <assistant> ' + message.content + ' </s>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}""",
    # Vicuna v1.1 and later (FastChat's conversation "vicuna_v1.1"): its tokenizer ships without.
    # Behind an answer's </s> the next turn follows without a space.
    "vicuna": """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}
{%- else %}{{ "A chat between a curious user and an artificial intelligence assistant. " +
    "The assistant gives helpful, detailed, and polite answers to the user's questions." }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if not loop.previtem or loop.previtem.role != 'assistant' %}{{ ' ' }}{% endif %}
        {{- 'USER: ' + message.content }}
    {%- elif message.role == 'assistant' %}{{ ' ASSISTANT: ' + message.content }}{{ eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}""",
}
"""Chat templates (Jinja) for tokenizers that come without one; see `install_chat_template`."""


def install_chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give the tokenizer one of `CHAT_TEMPLATES`; it is saved with the tokenizer.

    Raises InputError for an unknown name.
    """
    if name not in CHAT_TEMPLATES:
        raise InputError(unknown("chat template", name, CHAT_TEMPLATES))
    tokenizer.chat_template = CHAT_TEMPLATES[name]


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError when the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template; give it one with "
            f"install_chat_template(tokenizer, name), or as chat_template of a parameter set, one "
            f"of {', '.join(CHAT_TEMPLATES)}"
        )


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    system: str = "",
    prefill: str = "",
    history: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """The ids after which the model writes: system and user message, generation prompt, prefill.

    The prefill is the beginning of the response and is encoded as a response is. ``history`` holds
    the turns before the user message, each (user, assistant). Its assistant texts are messages like
    the user's, pivots and think tokens in them are text: whoever hands over the conversation may
    have written them.

    Beginning of sequence: the template or, where it writes none, the tokenizer's own habit puts
    one; there are never two, and none where neither does (Qwen).

    A message is text. A prompt that holds `[SAFE]`, `<think>`, `</s>` or `<|im_end|>` must not
    forge reasoning or end its own turn, but a rendered chat no longer shows who wrote what. So each
    control token in a message is cut after its first character *before* rendering, with a mark that
    occurs in none of the texts; the rendered chat is split at the marks and the parts are tokenised
    apart. No part holds a whole control token of the user's, every one of the template's is whole,
    and a prompt without control tokens is tokenised exactly as ``apply_chat_template`` does it.
    (Tokenising such a word with ``split_special_tokens=True`` is not enough: `<think>` of Qwen3 and
    R1-Distill is an added but no special token, and a word-level vocabulary knows `<user>` as a
    word.) At a cut the tokens may be other than the tokenizer would choose for the same text; as
    training and evaluation both come through here, they agree.

    Control tokens are the tokenizer's special tokens, the added tokens that its chat template names
    and `NEW_TOKENS`.

    Raises InputError when there is no chat template or it refuses the messages.
    """
    return encode_prompts(tokenizer, [prompt], system=system, prefill=prefill, history=history)[0]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    system: str = "",
    prefill: str = "",
    history: Sequence[tuple[str, str]] = (),
) -> list[list[int]]:
    """`encode_prompt` of each prompt, with one system message, prefill and history for all.

    The ids are the same to the last; many prompts at once are several times faster.
    """
    before, opened = _encode_messages(tokenizer, prompts, system, history)
    begun = encode_responses(tokenizer, [prefill] * len(opened), opened)
    return [ids + said for ids, said in zip(before, begun, strict=True)]


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    response: str,
    *,
    system: str = "",
    prefill: str = "",
    history: Sequence[tuple[str, str]] = (),
    max_length: int | None = None,
) -> dict[str, list[int]]:
    """One training example: ``input_ids`` and ``labels``, of one length, labels not shifted.

    ``input_ids`` begin with what `encode_prompt` makes of the same arguments.
    The response and the end of turn are labelled, the prompt is −100, and so is the prefill: the
    begun answer from which a recovery example turns back is read, not learnt. In a response,
    `NEW_TOKENS` are tokens; any other control token (a `</s>` in an answer about HTML, say) is
    text. Where the template opens the reasoning itself (R1-Distill, QwQ), a `<think>` with which
    the model's turn would begin is left out, and so are line ends behind it where the template
    writes one (``<think>\\n``).

    Raises InputError when the example is longer than ``max_length`` tokens, and as `encode_prompt`.
    """
    return encode_examples(
        tokenizer,
        [(prompt, response, prefill)],
        system=system,
        history=history,
        max_length=max_length,
    )[0]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[str, str, str]],
    *,
    system: str = "",
    history: Sequence[tuple[str, str]] = (),
    max_length: int | None = None,
) -> list[dict[str, list[int]]]:
    """`encode_example` of each (prompt, response, prefill), with one system message and history.

    The ids are the same to the last; many examples at once are several times faster.
    """
    before, opened = _encode_messages(tokenizer, [e[0] for e in examples], system, history)
    goes_on = ["" if e[2] else opening for opening, e in zip(opened, examples, strict=True)]
    begun = encode_responses(tokenizer, [e[2] for e in examples], opened)
    after = encode_responses(tokenizer, [e[1] for e in examples], goes_on)
    end = end_of_turn(tokenizer)
    rows = []
    for (prompt, _, _), *parts in zip(examples, before, begun, after, strict=True):
        told, learnt = parts[0] + parts[1], parts[2] + end
        length = len(told) + len(learnt)
        if max_length is not None and length > max_length:
            raise InputError(
                f"the example has {length} tokens ({len(told)} of prompt, {len(learnt)} of "
                f"response), more than max_length={max_length}: leave it out or raise max_length; "
                f"its prompt begins {prompt[:40]!r}"
            )
        rows.append({"input_ids": told + learnt, "labels": [IGNORED] * len(told) + learnt})
    return rows


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool = False) -> list[int]:
    """The ids of a text by itself, in which control tokens are text, as they are in a message.

    (`split_special_tokens` parses those that the tokenizer does not call special: Qwen3's
    `<think>`.) With ``bos`` the tokenizer's BOS comes first, where it is its habit to put one.
    """
    control, mark = _control_tokens(tokenizer), _mark_not_in(text)
    ids = _encode_parts(tokenizer, [_cut(text, control, mark).split(mark)])
    return (_with_one_bos(tokenizer, ids) if bos else ids)[0]


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template has a place for a system message: some refuse or drop it."""
    chat = [{"role": "system", "content": "sentinel"}, {"role": "user", "content": "hello"}]
    require_chat_template(tokenizer)
    try:
        return "sentinel" in str(tokenizer.apply_chat_template(chat, tokenize=False))
    except TemplateError:
        return False


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The id that the chat template writes after an assistant message, as a list of one.

    It is the first control token after the message (`<|eot_id|>` of Llama-3, `<|im_end|>` of Qwen),
    or the tokenizer's EOS where the template writes none. A generator stops at it.

    Raises InputError when there is neither.
    """
    sentinel = "sentinel"
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": sentinel}]
    _, found, tail = _render(tokenizer, chat, add_generation_prompt=False).rpartition(sentinel)
    if found and (first := _pattern(_control_tokens(tokenizer)).search(tail)):
        ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        return [ids[first[0]]]
    if not isinstance(tokenizer.eos_token_id, int):
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r} has no EOS token and its chat template writes "
            "none after an assistant message; set tokenizer.eos_token"
        )
    return [tokenizer.eos_token_id]


@dataclass(frozen=True)
class Collator:
    """Examples to one batch, padded on the right.

    Call it with examples as `encode_example` makes them; it returns LongTensors [B, T], T the
    longest example: ``input_ids`` (padded with ``pad_id``), ``attention_mask`` (1 and 0) and
    ``labels`` (padded with −100).
    """

    pad_id: int

    def __post_init__(self) -> None:
        if isinstance(self.pad_id, bool) or not isinstance(self.pad_id, int) or self.pad_id < 0:
            raise InputError(
                f"Collator pad_id: expected a token id, got {self.pad_id!r}; "
                "set tokenizer.pad_token (the EOS token will do: padding is masked)"
            )

    def __call__(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        import torch  # here alone: the rest of this file works without it

        def pad(rows: list[list[int]], value: int) -> Tensor:
            length = max(map(len, rows))
            return torch.tensor([row + [value] * (length - len(row)) for row in rows])

        ids = [list(example["input_ids"]) for example in examples]
        return {
            "input_ids": pad(ids, self.pad_id),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
            "labels": pad([list(example["labels"]) for example in examples], IGNORED),
        }


def _encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    system: str,
    history: Sequence[tuple[str, str]],
) -> tuple[list[list[int]], list[str]]:
    """For each prompt the ids up to the response, and how the template opens the reasoning."""
    control = _control_tokens(tokenizer)
    rendered = [_render_messages(tokenizer, each, system, history, control) for each in prompts]
    ids = _encode_parts(tokenizer, [parts for parts, _ in rendered])
    return _with_one_bos(tokenizer, ids), [opening for _, opening in rendered]


def _render_messages(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    system: str,
    history: Sequence[tuple[str, str]],
    control: tuple[str, ...],
) -> tuple[list[str], str]:
    """The rendered chat, split where a control token of a message's own is cut; and its opening of
    the reasoning, `<think>` and what space follows, or ""."""
    messages = [("system", system)] if system else []
    for user, assistant in history:
        messages += [("user", user), ("assistant", assistant)]
    messages.append(("user", prompt))
    mark = _mark_not_in("".join(text for _, text in messages))
    chat = [{"role": role, "content": _cut(text, control, mark)} for role, text in messages]
    text = _render(tokenizer, chat, add_generation_prompt=True)
    opens = text.rstrip().endswith(THINK_OPEN)
    return text.split(mark), text[text.rindex(THINK_OPEN) :] if opens else ""


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[str], opened: Sequence[str]
) -> list[list[int]]:
    """The ids of each response, without an end of turn.

    ``opened`` is with what the template has opened its reasoning, "" where it has not: what a
    response repeats of it is left out.
    """
    control = tuple(token for token in _control_tokens(tokenizer) if token not in NEW_TOKENS)
    texts = []
    for response, opening in zip(responses, opened, strict=True):
        if opening and response.lstrip().startswith(THINK_OPEN):
            response = response.lstrip().removeprefix(THINK_OPEN)
            if opening.endswith("\n"):
                response = response.lstrip("\n")
        mark = _mark_not_in(response)
        texts.append(_cut(response, control, mark).split(mark))
    return _encode_parts(tokenizer, texts)


def _render(
    tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    require_chat_template(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            chat,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            # Llama-3.2 writes today's date into the system message; a fixed one (the default of
            # Llama-3.1) keeps training and every later evaluation on the same prompt.
            date_string="26 Jul 2024",
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in chat)
        raise InputError(
            f"the chat template of tokenizer {tokenizer.name_or_path!r} refuses the roles {roles} "
            f"({error}); write a system text into the prompt, or install another template"
        ) from None
    assert isinstance(text, str)
    return text


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    return tuple(
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if len(token.content) > 1 and not token.content.isspace()
        if token.special or token.content in NEW_TOKENS or token.content in template
    )


@functools.lru_cache(maxsize=64)
def _pattern(control: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(control, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


@functools.lru_cache(maxsize=64)
def _start_pattern(control: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"(?={_pattern(control).pattern}).", re.DOTALL)


def _cut(text: str, control: tuple[str, ...], mark: str) -> str:
    """A mark after the first character of every control token, overlapping ones too."""
    return _start_pattern(control).sub(lambda start: start[0] + mark, text)


def _mark_not_in(text: str) -> str:
    """A private-use character that the text does not hold: no text has all 65,534 of them."""
    present = set(text)
    return next(mark for mark in map(chr, range(0xF0000, 0xFFFFE)) if mark not in present)


def _encode_parts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[str]]
) -> list[list[int]]:
    """Tokenise each text part by part, control tokens included, and join its ids."""
    ids = _encode_texts(tokenizer, [parts[0] for parts in texts])
    if any(len(parts) > 1 for parts in texts):
        # SentencePiece tokenizers put a space before the text they are given. Behind a line end
        # they do not; so the later parts are tokenised behind one, which is then taken off.
        (line_end,) = _encode_texts(tokenizer, ["\n"])
        for of_text, (_, *later) in zip(ids, texts, strict=True):
            for part in later:
                part_ids, bare = _encode_texts(tokenizer, ["\n" + part, part])
                if part_ids[: len(line_end)] == line_end:
                    of_text += part_ids[len(line_end) :]
                else:
                    of_text += bare
    return ids


def _encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = []
    if texts:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _with_one_bos(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[list[int]]:
    bos = tokenizer.bos_token_id
    if not isinstance(bos, int):
        return rows
    # Having a BOS token is not using it (Phi-3, Granite): ask what the tokenizer does with a text.
    puts_one = tokenizer("a")["input_ids"][:1] == [bos]
    of_each = []
    for ids in rows:
        while ids[:2] == [bos, bos]:
            ids = ids[1:]
        # The second: Llama Guard 3's template writes a space before its BOS. A message has none.
        of_each.append([bos, *ids] if puts_one and bos not in ids[:2] else ids)
    return of_each
