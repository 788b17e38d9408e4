"""Which examples make a step, and how they become tensors without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DataCollatorWithFlattening

from r2d_core.packed_attention import LENGTHS
from r2d_core.tokenization import IGNORED

TARGETS = "targets"
Row = Mapping[str, Sequence[int]]
"""An example as `encode_example` makes it: ``input_ids`` and ``labels`` of one length."""


class WindowSampler(torch.utils.data.Sampler[int]):
    """The order of the examples in one epoch, a function of seed and epoch alone.

    A window is the examples of one step on all processes: which examples it holds does not depend
    on how it is cut into batches. With ``group_by_length`` the examples of a window are of like
    length, longest first, and the windows come in random order. (Trainer's own length grouping
    draws from the global generator, so that a resumed epoch has another order, and runs from long
    examples to short ones over and over.)

    The ``fill`` examples that follow the ``lengths`` of the others in the data set come last.
    """

    POOL = 20  # windows that are sorted together: enough to save padding, few enough to mix

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        window: int,
        seed: int,
        group_by_length: bool,
        fill: int = 0,
    ) -> None:
        self.lengths, self.fill = np.asarray(lengths), fill
        self.window, self.seed, self.group_by_length = window, seed, group_by_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.fill

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        if self.group_by_length:
            whole = len(order) // self.window * self.window
            windows = []
            for begin in range(0, whole, self.window * self.POOL):
                pool = order[begin : min(begin + self.window * self.POOL, whole)]
                pool = pool[np.argsort(-self.lengths[pool], kind="stable")]
                windows += np.split(pool, len(pool) // self.window)
            random.shuffle(windows)
            rest = order[whole:]
            rest = rest[np.argsort(-self.lengths[rest], kind="stable")]
            order = np.concatenate([*windows, rest])
        return iter([*order.tolist(), *range(len(order), len(self))])


@dataclass(frozen=True)
class TargetsCollator:
    """Another collator with ``targets`` besides: its labels, shifted, in a NumPy array [B, T].

    The token after each; after a row's last, none. Trainer and accelerate move every tensor of a
    batch to the GPU, and arrays they leave: of what lies there, the loss would have to wait for the
    GPU to learn how many targets there are (`r2d_loss`).
    """

    inner: Callable[[Sequence[Row]], dict[str, Any]]

    def __call__(self, examples: Sequence[Row]) -> dict[str, Any]:
        batch = self.inner(examples)
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        return {**batch, TARGETS: targets.numpy()}


class PackingCollator:
    """Examples to one row without padding, each with positions of its own that begin at 0.

    Call it with examples as `encode_example` makes them; it returns LongTensors [1, T], T the sum
    of their lengths: ``input_ids``, ``labels`` and ``position_ids``; and ``example_lengths``, a
    list. Where positions fall back to 0, transformers ends the reach of attention (its mask, or the
    sequence lengths that flash attention takes), so that no example sees another;
    `packed_attention` does it by the lengths. An example's first token, which nothing predicts, is
    no target of the example before it.
    """

    def __call__(self, examples: Sequence[Row]) -> dict[str, Any]:
        lengths = [len(example["input_ids"]) for example in examples]
        return {**DataCollatorWithFlattening()(examples), LENGTHS: lengths}
