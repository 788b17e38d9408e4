"""GCG: greedy coordinate gradient on a suffix of the user's prompt (Zou et al. 2023).

Two aims share the loop. ``gcg_answer`` raises the affirmative answer, as published. ``gcg_pivot``
is adaptive to R2D: with the honest beginning of the model's trace held fixed it raises ``[SAFE]``
(and so lowers ``[UNSAFE]`` and ``[RETHINK]``) where the model is to say what the request is.

One step: the gradient of the loss with respect to the one-hot suffix; for each position the
``top_k`` tokens that lower the linearised loss most; ``candidates`` single-token changes drawn at
random from them; the one with the lowest true loss is kept if it is not worse. Candidates are
checked by retokenising the *whole* prompt, so a suffix that would tokenise otherwise in its place
is never tried (nanoGCG looks at the suffix alone).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from r2d_core.attacks.attack import Material, Target, known_of
from r2d_core.errors import InputError
from r2d_core.pivots import SAFE
from r2d_core.records import Behavior, TestCase
from r2d_core.tokenization import encode_prompt

DRAWS = 100
"""Tokens drawn, at most, for each position of the first suffix."""


@dataclass(frozen=True)
class GCG:
    """Settings and loop; a subclass says what the loss aims at.

    Attributes:
        steps: coordinate steps.
        suffix_tokens: length of the suffix.
        candidates: single-token changes whose true loss is computed in a step.
        top_k: tokens considered at a position.
    """

    name: ClassVar[str] = "gcg"
    steps: int = 20
    suffix_tokens: int = 6
    candidates: int = 32
    top_k: int = 32

    def __post_init__(self) -> None:
        for field in ("steps", "suffix_tokens", "candidates", "top_k"):
            if getattr(self, field) < 1:
                raise InputError(
                    f"attack {self.name!r}: {field} is {getattr(self, field)}, expected at least 1"
                )

    def aim(self, behavior: Behavior, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[bool]]:
        """The response text that is forced, and which of its tokens the loss is taken at."""
        raise NotImplementedError(f"{type(self).__name__} must say what it aims at: define aim()")

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        if target.model is None or target.tokenizer is None:
            raise InputError(
                f"attack {self.name!r} needs gradients: give Target a model and a tokenizer"
            )
        return [self._attack(behavior, target, f"{seed}-{behavior.id}") for behavior in behaviors]

    def _attack(self, behavior: Behavior, target: Target, stream: str) -> TestCase:
        model, tokenizer = target.model, target.tokenizer
        generator = torch.Generator().manual_seed(_seed_of(f"{self.name}-{stream}"))
        allowed = _text_tokens(tokenizer, model.device)
        response, aimed = self.aim(behavior, tokenizer)

        def ids_of(suffix_ids: list[int]) -> list[int]:
            prompt = f"{behavior.prompt} {tokenizer.decode(suffix_ids)}"
            return encode_prompt(tokenizer, prompt, prefill=response)

        bare = encode_prompt(tokenizer, behavior.prompt, prefill=response)
        first, full, start = self._first_suffix(bare, ids_of, allowed, generator)
        suffix = torch.tensor(first, device=model.device)
        before, after = full[:start], full[start + self.suffix_tokens :]
        response_tokens = len(aimed)
        mask = torch.tensor(aimed, device=model.device)

        def losses(ids_BT: Tensor) -> Tensor:
            logits_BRV = model(ids_BT, logits_to_keep=response_tokens + 1).logits[:, :-1]
            target_BR = ids_BT[:, -response_tokens:]
            nll_BR = F.cross_entropy(logits_BRV.transpose(1, 2), target_BR, reduction="none")
            return nll_BR[:, mask].mean(dim=1)

        ids_T = torch.tensor(full, device=model.device)
        with torch.no_grad():
            best = losses(ids_T[None]).item()
        losses_seen = [best]
        queries = 1
        for _ in range(self.steps):
            gradient_SV = self._gradient(model, ids_T, start, response_tokens, mask)
            tried = self._candidates(gradient_SV, suffix, allowed, generator)
            in_place = [[*before, *candidate, *after] for candidate in tried]
            rows = [row for row, ids in zip(in_place, tried, strict=True) if ids_of(ids) == row]
            queries += len(rows)
            if rows:
                batch = torch.tensor(rows, device=model.device)
                with torch.no_grad():
                    found = losses(batch)
                lowest = int(found.argmin())
                if found[lowest].item() <= best:
                    best = found[lowest].item()
                    ids_T = batch[lowest]
                    suffix = ids_T[start : start + self.suffix_tokens]
            losses_seen.append(best)
        return TestCase(
            behavior.id,
            self.name,
            f"{behavior.prompt} {tokenizer.decode(suffix)}",
            queries=queries,
            metadata={"losses": losses_seen},
        )

    def _first_suffix(
        self,
        bare: list[int],
        ids_of: Callable[[list[int]], list[int]],
        allowed: Tensor,
        generator: torch.Generator,
    ) -> tuple[list[int], list[int], int]:
        """A random suffix that tokenises to its own ids, all ids with it, and where it stands.

        It grows token by token: one that the tokenizer would merge with what stands before it is
        drawn anew.
        """
        suffix: list[int] = []
        for _ in range(DRAWS * self.suffix_tokens):
            drawn = int(allowed[torch.randint(len(allowed), (1,), generator=generator)])
            full = ids_of([*suffix, drawn])
            start = _place(full, [*suffix, drawn], bare)
            if start is not None:
                suffix.append(drawn)
                if len(suffix) == self.suffix_tokens:
                    return suffix, full, start
        raise InputError(
            f"attack {self.name!r}: found no suffix of {self.suffix_tokens} tokens that tokenises "
            "to its own ids behind the prompt; the tokenizer merges or drops it there: end the "
            "prompt in another way or lower suffix_tokens"
        )

    def _gradient(
        self, model: Any, ids_T: Tensor, start: int, response_tokens: int, mask: Tensor
    ) -> Tensor:
        """d loss / d one-hot of the suffix, [suffix_tokens, V]."""
        embedding_VH = model.get_input_embeddings().weight
        stop = start + self.suffix_tokens
        one_hot_SV = F.one_hot(ids_T[start:stop], embedding_VH.shape[0]).to(embedding_VH.dtype)
        one_hot_SV.requires_grad_(True)
        embedded_TH = embedding_VH.detach()[ids_T]
        inputs_TH = torch.cat(
            [embedded_TH[:start], one_hot_SV @ embedding_VH.detach(), embedded_TH[stop:]]
        )
        logits_RV = model(inputs_embeds=inputs_TH[None], logits_to_keep=response_tokens + 1).logits[
            0, :-1
        ]
        nll_R = F.cross_entropy(logits_RV, ids_T[-response_tokens:], reduction="none")
        return torch.autograd.grad(nll_R[mask].mean(), one_hot_SV)[0]

    def _candidates(
        self, gradient_SV: Tensor, suffix: Tensor, allowed: Tensor, generator: torch.Generator
    ) -> list[list[int]]:
        """Distinct suffixes that differ from ``suffix`` at one position."""
        k = min(self.top_k, len(allowed))
        best_SK = allowed[gradient_SV[:, allowed].topk(k, dim=1, largest=False).indices]
        positions = torch.randint(self.suffix_tokens, (self.candidates,), generator=generator)
        choices = torch.randint(k, (self.candidates,), generator=generator)
        changed: dict[tuple[int, ...], list[int]] = {}
        for position, choice in zip(positions.tolist(), choices.tolist(), strict=True):
            new = suffix.tolist()
            new[position] = int(best_SK[position, choice])
            changed.setdefault(tuple(new), new)
        return list(changed.values())


@dataclass(frozen=True)
class GCGAnswer(GCG):
    """GCG against the answer: the loss is the cross-entropy of the behavior's ``target``."""

    name: ClassVar[str] = "gcg_answer"

    def aim(self, behavior: Behavior, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[bool]]:
        text = known_of(behavior, "target", self.name)
        return text, [True] * len(_response_ids(tokenizer, behavior, text))


@dataclass(frozen=True)
class GCGPivot(GCG):
    """GCG against the pivots: the loss is −log P([SAFE]) where the ``pivot_target`` has [SAFE]."""

    name: ClassVar[str] = "gcg_pivot"

    def aim(self, behavior: Behavior, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[bool]]:
        text = known_of(behavior, "pivot_target", self.name)
        ids = _response_ids(tokenizer, behavior, text)
        safe = tokenizer.convert_tokens_to_ids(SAFE)
        if safe not in ids:
            raise InputError(
                f"attack {self.name!r}: pivot_target of behavior {behavior.id!r} holds no {SAFE} "
                "token; the attack is for models that use pivots"
            )
        return text, [i == safe for i in ids]


def _response_ids(tokenizer: PreTrainedTokenizerBase, behavior: Behavior, text: str) -> list[int]:
    bare = len(encode_prompt(tokenizer, behavior.prompt))
    return encode_prompt(tokenizer, behavior.prompt, prefill=text)[bare:]


def _text_tokens(tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Tensor:
    """Ids that are plain text of their own: no special token, same id after decode and encode."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    plain = [
        i
        for i in range(len(tokenizer))
        if i not in special
        and tokenizer.encode(tokenizer.decode([i]), add_special_tokens=False) == [i]
    ]
    return torch.tensor(plain, device=device)


def _place(ids: list[int], part: list[int], bare: list[int]) -> int | None:
    """Where ``part`` stands in ``ids``, behind all in which they agree with ``bare``; else None."""
    differ = (i for i, (one, other) in enumerate(zip(ids, bare, strict=False)) if one != other)
    for start in range(next(differ, len(bare)), len(ids) - len(part) + 1):
        if ids[start : start + len(part)] == part:
            return start
    return None


def _seed_of(text: str) -> int:
    """A 63-bit seed that depends on every character of ``text``."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
