"""What tells one model, tokenizer or defence from another, as far as it can be seen from here.

It goes into the name of a run's journal, where it has to be the same in the next process, and to
stay what it is while a run goes on. So it is made of what answers depend on and nothing else, and
what cannot be seen, such as the weights behind a server's name, is left to `Target.name`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from r2d_core.attacks.journal import digest

TELLING = ("name", "model", "base_url", "dialect", "tokenizer", "generator")
"""Attributes that answers depend on, of a thing that is no frozen dataclass.

How a model is run (batch sizes, retries) is not among them: a run goes on under another."""


def identity(thing: Any) -> Any:
    """Lists, strings and numbers that are alike for things that answer alike, as far as is seen.

    Of a model the shape and first weights of each tensor, of a tokenizer its vocabulary and chat
    template, of a frozen dataclass, as every defence is one, all fields, of a function its name, of
    anything else its class and `TELLING`.
    """
    if thing is None or isinstance(thing, str | bytes | int | float):
        return thing
    if isinstance(thing, os.PathLike):
        return os.fspath(thing)
    if isinstance(thing, torch.nn.Module):
        return [(name, _sample(each)) for name, each in thing.state_dict().items()]
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if isinstance(thing, PreTrainedTokenizerBase):
        words = sorted(thing.get_vocab().items())
        return [kind, digest(repr(words)), thing.chat_template]
    if isinstance(thing, Mapping):
        return sorted((repr(identity(key)), identity(value)) for key, value in thing.items())
    if isinstance(thing, Set):
        return sorted(repr(identity(each)) for each in thing)
    if isinstance(thing, Sequence):
        return [identity(each) for each in thing]
    if dataclasses.is_dataclass(type(thing)) and type(thing).__dataclass_params__.frozen:
        names = [field.name for field in dataclasses.fields(thing)]
        return [kind, [(name, identity(getattr(thing, name))) for name in names]]
    if hasattr(thing, "__qualname__"):
        return f"{getattr(thing, '__module__', '')}.{thing.__qualname__}"
    seen = getattr(thing, "__dict__", {})
    return [kind, [(name, identity(seen[name])) for name in TELLING if name in seen]]


def _sample(weights: Any) -> Any:
    """Of a tensor; of an offloaded one, whose numbers are not here, all but them."""
    if not isinstance(weights, Tensor):
        return None
    numbers = [] if weights.is_meta else weights.flatten()[:8].tolist()
    return str(weights.dtype), list(weights.shape), numbers
