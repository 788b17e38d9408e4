"""The toy base model: a word-level tokenizer and a small Llama, trained from scratch.

It knows every procedure and fact, answers everything whatever the dress, and can restate any
request. Nothing follows before it passes its gate.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from r2d_core.errors import InputError
from r2d_core.generation import Request, TransformersGenerator
from r2d_core.tokenization import encode_examples, install_chat_template
from r2d_core.toy.data import Example, base_examples
from r2d_core.toy.language import ACTIONS, ASPECTS, Item, Language, make_language
from r2d_core.toy.requests import (
    HOW_TO_PHRASINGS,
    INFORMATION_PHRASINGS,
    Query,
    fixed_words,
    phrase,
    true_answer,
)
from r2d_core.toy.splits import Splits, make_splits

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

EVALUATED = 256
"""Rows of the base model's evaluation split."""
LONGEST_ANSWER = 64
"""Tokens after which a toy answer is cut. The longest true response has 43."""


@dataclass(frozen=True)
class BaseConfig:
    """The base model's size. Its weights start wide: at transformers' 0.02 it learns 3 × slower.

    Attributes:
        world_seed: draws the language and the splits.
        seed: draws the weights and the order of the examples.
        interjections: share of the sentences of a restatement that have one behind them, as in
            `base_examples`.
    """

    world_seed: int = 0
    seed: int = 0
    interjections: float = 0.5
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    initializer_range: float = 0.08

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}"
            )
        if not 0 <= self.interjections <= 1:
            raise InputError(
                f"interjections: expected a share from 0 to 1, got {self.interjections}"
            )


def make_tokenizer(language: Language) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the language with the toy chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<pad>", "<unk>", "<s>", "</s>", "<user>", "<assistant>"]
    words = sorted({*language.words(), *fixed_words()})
    tokenizer.train_from_iterator([words], trainers.WordLevelTrainer(special_tokens=special))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    install_chat_template(fast, "toy")
    return fast


def make_base_model(config: BaseConfig, vocabulary: int) -> LlamaForCausalLM:
    """The untrained model, its weights drawn by the configuration's seed."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.hidden_size * 8 // 3 // 16 * 16,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=256,
            initializer_range=config.initializer_range,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
    )


def encode(tokenizer: Any, examples: list[Example]) -> list[dict[str, list[int]]]:
    """Examples as training rows."""
    return encode_examples(tokenizer, [(e.prompt, e.response, e.prefill) for e in examples])


def base_rows(
    config: BaseConfig, tokenizer: Any, n: int
) -> tuple[list[dict[str, list[int]]], list[dict[str, list[int]]]]:
    """``n`` training rows and 256 evaluation rows of the base model's data.

    No evaluation row has the prompt of a training row.
    """
    language = make_language(config.world_seed)
    splits = make_splits(language, config.world_seed)
    train = base_examples(language, splits, n, config.seed, config.interjections)
    learned = {example.prompt for example in train}
    drawn = base_examples(
        language, splits, 8 * EVALUATED, config.seed + 1_000_003, config.interjections
    )
    held = [example for example in drawn if example.prompt not in learned][:EVALUATED]
    return encode(tokenizer, train), encode(tokenizer, held)


@dataclass(frozen=True)
class Gate:
    """Exact answers of the base model on benign requests: right and asked, by task and items."""

    right: dict[str, int]
    asked: dict[str, int]

    @property
    def worst(self) -> tuple[str, float]:
        """The weakest cell and its accuracy."""
        return min(
            ((cell, self.right[cell] / n) for cell, n in self.asked.items()), key=lambda c: c[1]
        )

    def require(self, accuracy: float) -> None:
        """InputError unless every cell reaches ``accuracy``."""
        cell, found = self.worst
        if found < accuracy:
            raise InputError(
                f"the base model fails its gate: {found:.1%} of '{cell}' exact, expected at least "
                f"{accuracy:.0%}; train it longer (parameter steps) before anything is built on it"
            )


def check_gate(model: Any, tokenizer: Any, language: Language, splits: Splits) -> Gate:
    """Ask the base model benign how-to and information requests about seen and held-out pairs.

    200 requests a cell, about allowed items only for how-to, plain phrasings; right means the
    whole answer, word for word.
    """
    rng = random.Random("toy-gate")
    generator = TransformersGenerator(model, tokenizer)
    right, asked = {}, {}
    for items_name, items in (("seen", splits.base_items), ("held-out", splits.base_held_out)):
        for task, topics, forms in (
            ("how-to", list(ACTIONS), HOW_TO_PHRASINGS),
            ("information", list(ASPECTS), INFORMATION_PHRASINGS),
        ):
            pool: list[Item] = [i for i in items if task == "information" or not language.banned(i)]
            queries = [Query(rng.choice(topics), rng.choice(pool)) for _ in range(200)]
            requests = [Request(phrase(q, rng.randrange(len(forms)), rng)) for q in queries]
            answers = generator.generate(requests, LONGEST_ANSWER)
            cell = f"{task}, {items_name} pairs"
            asked[cell] = len(queries)
            right[cell] = sum(
                a.text.strip() == true_answer(language, q)
                for a, q in zip(answers, queries, strict=True)
            )
    return Gate(right, asked)
