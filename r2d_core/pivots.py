"""The tokens that R2D adds to a model, and how a model learns their names.

A reasoning step ends in a pivot: `[SAFE]`, `[UNSAFE]` or `[RETHINK]`. The reasoning stands between
`<think>` and `</think>`. Ids are looked up by name, never by position: a tokenizer may own
`<think>` already (Qwen3, R1-Distill, QwQ), and an embedding may be longer than its tokenizer
(Qwen2 and 2.5).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from tokenizers import AddedToken

from r2d_core.checking import unknown
from r2d_core.errors import InputError

# torch is imported where weights are made: who asks for a name or an id need not wait for it.
if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAFE, UNSAFE, RETHINK = "[SAFE]", "[UNSAFE]", "[RETHINK]"
PIVOT_TOKENS = (SAFE, UNSAFE, RETHINK)
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
RESERVED_TOKENS = ("[RESERVED_0]", "[RESERVED_1]", "[RESERVED_2]")
NEW_TOKENS = (*PIVOT_TOKENS, THINK_OPEN, THINK_CLOSE, *RESERVED_TOKENS)
"""All that are added, in the order of the authors' code."""

Init = Literal["description", "mean", "noise"]

_DESCRIPTIONS = {
    SAFE: "safe harmless allowed fine",
    UNSAFE: "unsafe harmful dangerous refuse",
    RETHINK: "wait rethink reconsider careful",
    THINK_OPEN: "think reason explain",
    THINK_CLOSE: "answer conclusion therefore",
}
_TINY = 0.01  # of the old rows' spread: enough that no two rows are equal, too little to matter


@dataclass(frozen=True)
class PivotIds:
    """The token ids of the pivots and of the two think tokens."""

    safe: int
    unsafe: int
    rethink: int
    think_open: int
    think_close: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> PivotIds:
        """Look the ids up by name.

        Only added tokens count: a piece of the vocabulary that happens to be spelled like a pivot
        need not be what the tokenizer makes of the text. Raises InputError when one is missing.
        """
        ids = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        names = (*PIVOT_TOKENS, THINK_OPEN, THINK_CLOSE)
        if missing := [name for name in names if name not in ids]:
            raise InputError(
                f"tokenizer {tokenizer.name_or_path!r} has no token {', '.join(missing)}; "
                "add them with expand_vocabulary(model, tokenizer)"
            )
        return cls(*(ids[name] for name in names))


def expand_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    init: Init = "description",
    seed: int = 0,
) -> PivotIds:
    """Add to tokenizer and model the ones of `NEW_TOKENS` that the tokenizer lacks, in place.

    A token that the tokenizer owns keeps its id and its row. New ids take the embedding's padding
    rows where there are any; the embedding grows only as far as it must and never shrinks. The old
    rows stay byte for byte, so old text is tokenised and scored as before.

    The new rows of the input embedding, of the output matrix where it is not the same one, and of
    its bias where it has one, start from

    - "description": the mean of the rows of a few words that say what the token means, plus 1% of
      the noise below, so that no two rows are equal. A token none of whose words the tokenizer
      knows gets the mean of all rows instead, and a warning says so; the reserved tokens always do.
    - "mean": the mean of all old rows;
    - "noise": that mean plus a draw from a normal with the old rows' covariance.

    The same ``seed`` gives the same rows, and the global random state is left alone. Dtype and
    device are kept; ``config.vocab_size`` follows. A second call changes nothing. A tokenizer that
    was expanded with another model is taken at its word: of this model, only rows that do not exist
    yet are made.

    The new tokens are special tokens: decode with ``skip_special_tokens=False`` to see them.

    Raises InputError for an unknown ``init`` and for a model without output embeddings.
    """
    if init not in get_args(Init):
        raise InputError(unknown("init", init, get_args(Init)))
    if model.get_output_embeddings() is None:
        raise InputError(
            f"{type(model).__name__} has no output embeddings; expected a causal language model"
        )
    old_vocabulary = tokenizer.get_vocab()
    owned = {token.content for token in tokenizer.added_tokens_decoder.values()}
    tokenizer.add_tokens(
        [
            AddedToken(name, special=True, normalized=False)
            for name in NEW_TOKENS
            if name not in owned
        ],
        special_tokens=True,
    )
    names = {number: name for name, number in tokenizer.get_vocab().items()}
    old_rows = _input_matrix(model).shape[0]
    rows = max(old_rows, max(names) + 1)
    fresh = {
        number: names.get(number, "")
        for number in range(rows)
        if number >= old_rows or (number in names and names[number] not in old_vocabulary)
    }
    if fresh:
        n_old = 1 + max(number for number in old_vocabulary.values() if number < old_rows)
        _grow(model, rows)
        _initialise(model, tokenizer, fresh, n_old, init, seed)
    return PivotIds.from_tokenizer(tokenizer)


def _input_matrix(model: PreTrainedModel) -> Tensor:
    return model.get_input_embeddings().get_parameter("weight")


def _grow(model: PreTrainedModel, rows: int) -> None:
    weight = _input_matrix(model)
    if rows <= weight.shape[0]:
        return
    import torch

    # The library fills what it adds with random numbers, all of which are written over afterwards.
    with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
        model.resize_token_embeddings(rows, mean_resizing=False)


def _initialise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fresh: dict[int, str],
    n_old: int,
    init: Init,
    seed: int,
) -> None:
    """Fill the rows of ``fresh`` (id -> name, ascending) from the rows below ``n_old``."""
    import torch

    words = {name: _known_words(tokenizer, name, fresh) for name in fresh.values()}
    if init == "description":
        unknown_words = [name for name in _DESCRIPTIONS if name in words and not words[name]]
        if unknown_words:
            warnings.warn(
                f"the tokenizer knows no word that describes {', '.join(unknown_words)}; "
                "their rows start from the mean of all rows",
                stacklevel=3,  # past expand_vocabulary
            )
    output = model.get_output_embeddings()
    matrices: list[Tensor] = [_input_matrix(model)]
    if (output_matrix := output.get_parameter("weight")) is not matrices[0]:
        matrices.append(output_matrix)
    if isinstance(bias := getattr(output, "bias", None), torch.Tensor):
        matrices.append(bias[:, None])  # a view: one column
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in matrices:
            dtype = torch.promote_types(matrix.dtype, torch.float32)
            mean = matrix[:n_old].mean(dim=0, dtype=dtype)
            rows = mean.repeat(len(fresh), 1)
            if init == "description":
                for row, name in zip(rows, fresh.values(), strict=True):
                    if words[name]:
                        row.copy_(matrix[words[name]].mean(dim=0, dtype=dtype))
            if init != "mean":
                scale = 1.0 if init == "noise" else _TINY
                rows += scale * _covariance_noise(matrix[:n_old], mean, len(fresh), generator)
            matrix[list(fresh)] = rows.to(matrix.dtype)


def _known_words(tokenizer: PreTrainedTokenizerBase, name: str, fresh: dict[int, str]) -> list[int]:
    """The ids of the words that describe a token, without unknown, special and new ones."""
    text = _DESCRIPTIONS.get(name, "")
    ids = tokenizer.encode(text, add_special_tokens=False)
    without = {*tokenizer.all_special_ids, tokenizer.unk_token_id, *fresh}
    return [number for number in ids if number not in without]


def _covariance_noise(rows: Tensor, mean: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n draws from a normal with mean 0 and the covariance of ``rows`` [V, H] -> [n, H].

    A sum of the centred rows, each times a standard normal number, divided by √V, has exactly that
    covariance: no H×H matrix, no factorisation. In blocks, for a float32 copy of a large
    vocabulary would be gigabytes.
    """
    import torch

    weights = torch.randn(n, rows.shape[0], generator=generator, device="cpu").to(mean)
    noise = mean.new_zeros(n, rows.shape[1])
    for start in range(0, rows.shape[0], 8192):
        block = rows[start : start + 8192].to(mean.dtype) - mean
        noise += weights[:, start : start + 8192] @ block
    return noise / rows.shape[0] ** 0.5
