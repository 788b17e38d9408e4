"""The authors' training of a model, as their published code does it: for comparison with ours.

Read in the code beside the paper (github.com/chuhac/Reasoning-to-Defend, commit 4ca859e). What of
it is a defect and not a choice, and what each does, the book's chapter on the authors' recipe shows
on the toy world, switch by switch (`toy.defects`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from r2d_core.errors import InputError
from r2d_core.pivots import THINK_OPEN, PivotIds
from r2d_core.tokenization import (
    IGNORED,
    encode_example,
    encode_prompt,
    encode_responses,
    end_of_turn,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THEIR_LEARNING_RATE = 2e-4
THEIR_LORA: dict[str, Any] = {
    "rank": 64,
    "alpha": 64.0,
    "dropout": 0.05,
    "targets": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
    "new_rows": "modules_to_save",  # embed_tokens and lm_head
}
"""Their settings of the adapters, all of `adapters.LoraSettings`."""
THEIR_TRAINING: dict[str, Any] = {
    "epochs": 1.0,
    "max_steps": None,
    "batch_size": 1,
    "packing": False,
    "group_by_length": False,  # their Trainer draws the order at random
    "learning_rate": THEIR_LEARNING_RATE,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.02,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": True,
    "bf16": True,
    "normalize": "micro_batch",
    "pivot_weight": 1.0,
    "contrast": "paper",
    "pivot_ce_weight": 1.0,
    "kl_weight": 0.0,
    "eval_steps": 0,
}
"""Their settings of `training.TrainConfig`: all that bears on what is learnt but the seed."""
THEIR_PROCESSES = 4
"""Each takes 8 examples a step, one by one. With "micro_batch" the gradient is not divided by how
many those are: on another number of processes it is another multiple of the mean's."""
THEIR_DATA: dict[str, Any] = {"global_batch": 32, "held_out": 0}
"""Of `parameter_sets.ParameterSet`. Nor do they leave out long examples."""


def authors_row(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    response: str,
    *,
    prefill: str = "",
    bos: bool = True,
    bare: bool = True,
) -> dict[str, list[int]]:
    """One training example as their code tokenises it: ``input_ids`` and ``labels``.

    Args:
        bos: instruction, (empty) input and output each begin with a BOS, and the output's is a
            target. A tokenizer that has none, Qwen's, puts none.
        bare: no chat template round the prompt.

    With neither it is `encode_example`'s row.
    """
    row = encode_example(tokenizer, prompt, response, prefill=prefill)
    if not (bos or bare):
        return row
    beginning = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    learned = [label for label in row["labels"] if label != IGNORED]
    templated = encode_prompt(tokenizer, prompt)
    before = templated
    if bare:
        before = beginning + tokenizer.encode(prompt, add_special_tokens=False)
        opens: Any = tokenizer.convert_tokens_to_ids(THINK_OPEN)
        if response.startswith(THINK_OPEN) and not prefill and learned[0] != opens:
            # R1-Distill's and QwQ's template had opened it; theirs is not there.
            learned = encode_responses(tokenizer, [response], [""])[0] + end_of_turn(tokenizer)
    said = encode_prompt(tokenizer, prompt, prefill=prefill)[len(templated) :]
    # One for the empty input; one at the head of the output, where all but a prefill is a target.
    before = before + (beginning if bos else [])
    target = beginning if bos else []
    return {
        "input_ids": before + target + said + learned,
        "labels": [IGNORED] * len(before) + target + [IGNORED] * len(said) + learned,
    }


def pivots_by_position(vocabulary: int) -> PivotIds:
    """The rows that the authors' code takes for the new tokens: the last eight of ``vocabulary``
    rows of logits, in the order in which they were added."""
    if vocabulary < 8:
        raise InputError(f"vocabulary: expected at least 8 rows, got {vocabulary}")
    return PivotIds(*range(vocabulary - 8, vocabulary - 3))
