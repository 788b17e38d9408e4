"""A suffix in its place: which tokens it may hold, what loss it has, and that loss's gradient.

    before            suffix          after
    <s><user> prompt  x x x x x  </s><assistant> so i may answer
                      └ open ┘               └── response ──┘

What every attack on tokens shares, be it on one prompt, on many or on a surrogate model. Ids stand
for text: a suffix counts only when the tokenizer, given the whole prompt with the suffix written
out in it, comes back to its very ids (nanoGCG looks at the suffix alone, where tokens that merge
with their neighbours are missed, and others thrown out that stand well in their place).

The prompt before the suffix is computed once, and of the suffix only what stands behind the changed
token: the keys and values of the rest are the same numbers. (Computed in another order they may
differ in the last bits, so each prompt is tried with and without once, and a model whose cache is
no plain one, or changes its losses by more than its rounding does, is run without.)

Losses are computed in single precision at least, whatever the model's own: in bfloat16, with three
digits, most of a step's candidates would have the same loss.

Axes in names: B candidates, S suffix, R response, V vocabulary, H hidden.
"""

from __future__ import annotations

import functools
import hashlib
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from r2d_core.errors import InputError
from r2d_core.tokenization import encode_prompt, encode_prompts

KeysValues = list[tuple[Tensor, Tensor]]
"""One pair a layer, each [1, heads, tokens, head size]."""

GROUPS, SMALLEST_GROUP = 8, 32
"""Candidates, sorted by the place of their change, are computed in so many parts, or in fewer."""
DRAWS = 100
"""Tokens drawn, at most, for each position of a random first suffix."""
ROWS = {"cpu": 64, "cuda": 512}
"""Candidates computed at once where memory does not say fewer; on a CPU, what its caches hold."""
SAME_LOSS = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 2 * torch.finfo(torch.float16).eps,  # 0.2%
    torch.bfloat16: 2 * torch.finfo(torch.bfloat16).eps,  # 1.6%
}
"""Relative difference by which a cache may change a loss, by the precision of the model. Measured
on the toy model and on random ones up to 30M weights, a sound cache changes it by at most 1e-6 in
float32, 4e-4 in float16 and 2e-4 in bfloat16; a wrong position or a sliding window by 4e-4 and up,
which half precision does not tell from its rounding. (`Place` asks for plain layers besides.)"""
LAYOUTS = 4
"""Beside that, so many times what computing the loss in another batch changes it by."""


@dataclass
class Losses:
    """Of each candidate: the loss [B], and whether it matches [B].

    It matches where each aimed token is the likeliest after the response before it. Where all up to
    the last aimed token are aimed at, greedy decoding gives them then.
    """

    loss: Tensor
    matched: Tensor
    flops: float = 0.0


@dataclass
class Place:
    """One model's prompt with room for a suffix, and the response whose tokens the loss is of.

    Attributes:
        prompt: the user's words before the suffix.
        response: what the model is made to say.
        aimed: [R] whether the loss, a mean negative log-likelihood, takes the response's token.
        before, after: the ids round the suffix, set by `settle`.
        use_cache: whether the cache is used; False once it was seen to change the loss.
        rows: candidates computed at once; None: what memory has room for when the first are. Losses
            computed in other batches may differ in the last bits, so it stays what it is.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    prompt: str
    response: str
    aimed: list[bool]
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    use_cache: bool = True
    rows: int | None = None
    _settled: list[int] = field(default_factory=list)
    _known: KeysValues = field(default_factory=list)

    def __post_init__(self) -> None:
        self._body_weights = _body_weights(self.model)

    def text(self, suffix: Sequence[int]) -> str:
        """The user's whole message with this suffix."""
        return self.texts([suffix])[0]

    def suffix_text(self, suffix: Sequence[int]) -> str:
        """What the suffix adds to the prompt, the space between them included."""
        return self.text(suffix).removeprefix(self.prompt)

    def texts(self, suffixes: Sequence[Sequence[int]]) -> list[str]:
        """The user's whole message with each suffix."""
        rows = [list(suffix) for suffix in suffixes]
        written = self.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        return [joined(self.prompt, each) for each in written]

    def encode(self, suffixes: Sequence[Sequence[int]]) -> list[list[int]]:
        """For each suffix, all ids up to the end of the response, from the text they make."""
        return encode_prompts(self.tokenizer, self.texts(suffixes), prefill=self.response)

    def settle(self, suffix: Sequence[int]) -> bool:
        """Set what stands round the suffix; False where it does not tokenise to itself."""
        (full,) = self.encode([suffix])
        bare, shortest = self._surroundings
        first = _agreeing(full, bare)
        for start in range(first, len(full) - len(suffix) - shortest + 1):
            if full[start : start + len(suffix)] == list(suffix):
                self.before, self.after = full[:start], full[start + len(suffix) :]
                self._settled, self._known = list(suffix), []
                return True
        return False

    def stand(self, suffixes: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each suffix tokenises to itself in its place and leaves its surroundings."""
        if not suffixes:
            return []
        return [
            full == [*self.before, *suffix, *self.after]
            for full, suffix in zip(self.encode(suffixes), suffixes, strict=True)
        ]

    @functools.cached_property
    def _surroundings(self) -> tuple[list[int], int]:
        """All ids without a suffix, and how many behind one are not the user's whatever it is."""
        prompts = [self.prompt, f"{self.prompt} a", f"{self.prompt} !"]
        bare, one, other = encode_prompts(self.tokenizer, prompts, prefill=self.response)
        return bare, _agreeing(one[::-1], other[::-1])

    def gradient(self, suffix: Sequence[int]) -> tuple[Tensor, float]:
        """d loss / d one-hot of the suffix, [S, V], and its floating-point operations.

        Remembers the keys and values of this suffix for the `losses` of its neighbours.
        """
        if self.use_cache and not self._known:
            self._check_cache()
        table_VH = self.model.get_input_embeddings()
        start = self._known_tokens(len(self.before))
        ids = torch.tensor([*self.before, *suffix, *self.after[:-1]], device=self.model.device)
        inputs_TH = table_VH(ids[start:]).detach()
        where = slice(len(self.before) - start, len(self.before) - start + len(suffix))
        suffix_SH = inputs_TH[where].clone().requires_grad_(True)
        inputs_TH = torch.cat([inputs_TH[: where.start], suffix_SH, inputs_TH[where.stop :]])
        with torch.enable_grad():
            output = self.model(
                inputs_embeds=inputs_TH[None],
                past_key_values=_cache(self._known, start, 1) if self.use_cache else None,
                use_cache=self.use_cache,
                logits_to_keep=len(self.aimed),
            )
            loss = self._of(output.logits).loss.sum()
            (gradient_SH,) = torch.autograd.grad(loss, suffix_SH)
        if self.use_cache:
            stop = len(self.before) + len(suffix)
            self._known = [
                (layer.keys[:, :, :stop].detach(), layer.values[:, :, :stop].detach())
                for layer in output.past_key_values.layers
            ]
        scale = getattr(table_VH, "embed_scale", 1.0)  # Gemma 3's embedding multiplies its rows
        gradient_SV = gradient_SH @ table_VH.weight.detach().T * scale
        # Of the backward pass only the half that goes through activations is done.
        flops = 2 * self._flops(len(ids) - start, len(ids))
        return gradient_SV, flops + 2 * gradient_SV.numel() * table_VH.weight.shape[1]

    @torch.no_grad()
    def losses(self, suffixes: Sequence[Sequence[int]], shared: int = 0) -> Losses:
        """Losses of suffixes [B, S], each as if it were computed alone.

        All of them begin with the first ``shared`` tokens of the last suffix that `gradient` saw.
        """
        start = self._known_tokens(len(self.before) + shared)
        head, tail = self.before[start:], self.after[:-1]
        skipped = max(0, start - len(self.before))
        ids_BT = torch.tensor(
            [[*head, *suffix[skipped:], *tail] for suffix in suffixes], device=self.model.device
        )
        length = start + ids_BT.shape[1]
        if self.rows is None:
            self.rows = min(self._rows(length, 0), self._rows(length, len(self.before)))
        while True:
            try:
                parts = [self._losses(part, start) for part in ids_BT.split(self.rows)]
                break
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
            self.rows = min(self.rows, len(suffixes)) // 2 or 1
            torch.cuda.empty_cache()
        return Losses(
            torch.cat([part.loss for part in parts]),
            torch.cat([part.matched for part in parts]),
            len(suffixes) * self._flops(ids_BT.shape[1], length),
        )

    def _losses(self, ids_BT: Tensor, start: int) -> Losses:
        past = _cache(self._known, start, len(ids_BT)) if start else None
        logits_BRV = self.model(
            ids_BT, past_key_values=past, use_cache=start > 0, logits_to_keep=len(self.aimed)
        ).logits
        return self._of(logits_BRV)

    def _of(self, logits_BRV: Tensor) -> Losses:
        """The loss of the response's aimed tokens under the logits that predict its tokens."""
        target_R = torch.tensor(self.after[-len(self.aimed) :], device=logits_BRV.device)
        return _losses_of(logits_BRV, target_R, self.aimed)

    def _known_tokens(self, wanted: int) -> int:
        """How many of the first ``wanted`` tokens are in the cache."""
        return min(wanted, self._known[0][0].shape[2]) if self._known else 0

    @torch.no_grad()
    def _check_cache(self) -> None:
        """Compute what stands before the suffix; do without where that changes the loss.

        It is tried on the suffix that the place was settled on, so that a run that goes on decides
        as it did before. What is allowed: `SAME_LOSS`, and `LAYOUTS` times what this very loss
        changes by from one row at once to four.
        """
        without = self.losses([self._settled]).loss
        noise = (self.losses([self._settled] * 4).loss - without).abs().max()
        self.use_cache = False
        ids = torch.tensor([self.before], device=self.model.device)
        found = self.model(ids, use_cache=True, logits_to_keep=1).past_key_values
        layers = getattr(found, "layers", [])
        if layers and all(isinstance(layer, DynamicLayer) for layer in layers):
            # A sliding window is a layer of its own kind, equal to a plain one while all fits in.
            known = [(layer.keys, layer.values) for layer in layers]
            if all(keys is not None and keys.shape[2] == len(self.before) for keys, _ in known):
                self._known = known
                with_cache = self.losses([self._settled]).loss
                precision = SAME_LOSS[self.model.dtype] * without.abs().clamp(min=1)
                allowed = precision + LAYOUTS * noise
                if ((with_cache - without).abs() <= allowed).all():
                    self.use_cache = True
                    return
        self._known = []

    def _rows(self, tokens: int, start: int) -> int:
        """Candidates computed at once: a power of two that fits into half of the free memory."""
        model, config = self.model, self.model.config.get_text_config()
        item = model.dtype.itemsize
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cached = 4 * config.num_hidden_layers * heads * size * tokens * item if start else 0
        logits = 3 * len(self.aimed) * config.vocab_size * max(item, 4)
        running = 16 * (tokens - start) * config.hidden_size * item
        if model.device.type == "cuda":
            free = torch.cuda.mem_get_info(model.device)[0]
        else:
            free = psutil.virtual_memory().available
        fits = max(1, int(free / 2 / (cached + logits + running)))
        return min(ROWS.get(model.device.type, 64), 1 << (fits.bit_length() - 1))

    def _flops(self, tokens: int, length: int) -> float:
        """Operations of a forward pass of one row: 2 a weight and token, and attention's own."""
        config = self.model.config.get_text_config()
        layers, hidden = config.num_hidden_layers, config.hidden_size
        head = config.vocab_size * hidden
        attention = 4 * layers * hidden * length
        return tokens * (2 * self._body_weights + attention) + 2 * len(self.aimed) * head


def _losses_of(logits_BRV: Tensor, target_R: Tensor, aimed: Sequence[bool]) -> Losses:
    if not all(aimed):
        aimed_R = torch.tensor(aimed, device=logits_BRV.device)
        logits_BRV, target_R = logits_BRV[:, aimed_R], target_R[aimed_R]
    if logits_BRV.dtype.itemsize < 4:
        logits_BRV = logits_BRV.float()
    target_BR = target_R.expand(len(logits_BRV), -1)
    nll_BR = F.cross_entropy(logits_BRV.transpose(1, 2), target_BR, reduction="none")
    return Losses(nll_BR.mean(dim=1), (logits_BRV.argmax(dim=-1) == target_BR).all(dim=1))


def joined(prompt: str, suffix: str) -> str:
    """The prompt and the suffix, one space between them where the suffix brings none."""
    return f"{prompt}{suffix}" if suffix[:1].isspace() else f"{prompt} {suffix}"


def first_suffix(places: Sequence[Place], tokens: int, allowed: Tensor, seed: int) -> list[int]:
    """A random suffix of so many tokens that stands in all places, and every place settled on it.

    It grows token by token: one that a tokenizer would merge with what stands before it is drawn
    anew. Raises InputError where none is found.
    """
    generator = torch.Generator().manual_seed(seed)
    suffix: list[int] = []
    for _ in range(DRAWS * tokens):
        index = torch.randint(len(allowed), (1,), generator=generator, device="cpu")
        drawn = int(allowed[index])
        if all(place.settle([*suffix, drawn]) for place in places):
            suffix.append(drawn)
            if len(suffix) == tokens:
                return suffix
    raise InputError(
        f"found no suffix of {tokens} tokens that tokenises to its own ids behind the prompt "
        f"{places[0].prompt[-40:]!r}; the tokenizer merges or drops it there: end the prompt in "
        "another way or lower suffix_tokens"
    )


def written_suffix(places: Sequence[Place], text: str) -> list[int]:
    """The ids of a given first suffix in its place, and every place settled on it.

    Raises InputError where it does not tokenise to ids of its own.
    """
    for written in (f" {text}", text):
        ids: list[int] = places[0].tokenizer.encode(written, add_special_tokens=False)
        if all(place.settle(ids) for place in places):
            return ids
    raise InputError(
        f"init {text!r} does not tokenise to ids of its own behind the prompt "
        f"{places[0].prompt[-40:]!r}; give another, or init='' for a random first suffix"
    )


def together(found: Sequence[Losses]) -> Losses:
    """The mean loss over prompts of the same candidates, and whether all of them match."""
    device = found[0].loss.device
    return Losses(
        torch.stack([each.loss.to(device) for each in found]).mean(dim=0),
        torch.stack([each.matched.to(device) for each in found]).all(dim=0),
        sum(each.flops for each in found),
    )


def summed_gradient(places: Sequence[Place], suffix: Sequence[int]) -> tuple[Tensor, float]:
    """The gradients of the prompts, each of length 1 at every position, summed; and operations.

    Of one prompt alone its gradient: the length of a position's gradient changes no order.
    """
    found = [place.gradient(suffix) for place in places]
    flops = sum(each for _, each in found)
    gradients = [gradient for gradient, _ in found]
    if len(gradients) == 1:
        return gradients[0], flops
    device = gradients[0].device
    units = [F.normalize(each.float(), dim=1).to(device) for each in gradients]
    return torch.stack(units).sum(dim=0), flops


def neighbour_losses(
    places: Sequence[Place], neighbours: Sequence[tuple[int, list[int]]]
) -> Losses:
    """Mean losses of suffixes that differ from the gradient's at one position, sorted by it.

    A loss that is no number counts as infinite.
    """
    size = max(SMALLEST_GROUP, -(-len(neighbours) // GROUPS))
    parts = [neighbours[i : i + size] for i in range(0, len(neighbours), size)]
    found = [
        together([place.losses([ids for _, ids in part], shared=part[0][0]) for place in places])
        for part in parts
    ]
    return Losses(
        torch.nan_to_num(torch.cat([each.loss for each in found]), nan=math.inf),
        torch.cat([each.matched for each in found]),
        sum(each.flops for each in found),
    )


def response_losses(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    response: str,
    aimed: Sequence[bool],
) -> Losses:
    """The losses of a response after whole prompts [B]; for attacks that change text freely."""
    rows = encode_prompts(tokenizer, prompts, prefill=response)
    width = max(map(len, rows)) - 1
    device = model.device
    pad = [width + 1 - len(row) for row in rows]
    ids_BT = torch.tensor([[0] * n + row for n, row in zip(pad, rows, strict=True)], device=device)
    mask_BT = torch.tensor([[0] * n + [1] * (width - n) for n in pad], device=device)
    with torch.no_grad():
        logits_BRV = model(
            ids_BT[:, :-1],
            attention_mask=mask_BT,
            position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=len(aimed),
        ).logits
    return _losses_of(logits_BRV, ids_BT[0, -len(aimed) :], aimed)


def response_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> list[int]:
    """The ids of a response after a prompt."""
    bare = len(encode_prompt(tokenizer, prompt))
    return encode_prompt(tokenizer, prompt, prefill=response)[bare:]


_TEXT_TOKENS: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, Tensor]] = (
    weakref.WeakKeyDictionary()
)


def text_tokens(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids a suffix may hold: whole printable text, no special or added token; read once.

    The chat template's tokens and the pivots are added tokens, so none is ever proposed; padding
    rows of an embedding have no text. As in llm-attacks and nanoGCG, printable ASCII only.
    """
    known = _TEXT_TOKENS.setdefault(tokenizer, {})
    key = len(tokenizer)  # a tokenizer that grew is another
    if key not in known:
        refused = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        named = [token for token in tokenizer.get_added_vocab() if token.strip()]
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        plain = [
            i
            for i, text in enumerate(texts)
            if i not in refused
            and text.strip()
            and text.isascii()
            and text.isprintable()
            and not any(token in text for token in named)
        ]
        if not plain:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} has no token of plain text to build a "
                "suffix from"
            )
        known[key] = torch.tensor(plain)
    return known[key]


def seed_of(text: str) -> int:
    """A 63-bit seed that depends on every character of ``text``."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first ids are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _cache(known: KeysValues, tokens: int, rows: int) -> DynamicCache | None:
    """A cache of the first ``tokens`` known tokens for ``rows`` rows; the memory is shared."""
    if not tokens:
        return None
    cache = DynamicCache()
    for keys, values in known:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys = keys[:, :, :tokens].expand(rows, -1, -1, -1)
        layer.values = values[:, :, :tokens].expand(rows, -1, -1, -1)
        cache.layers.append(layer)
    return cache


def _body_weights(model: Any) -> int:
    """Weights of the model but for its embedding and its output layer."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    sizes = {id(t.weight): t.weight.numel() for t in tables if t is not None}
    return sum(p.numel() for p in model.parameters()) - sum(sizes.values())
