"""Tiny random models and tokenizers, shaped like the real families, made on the spot.

    tokenizer = tiny_tokenizer("llama")
    model = tiny_model("llama", tokenizer, tied=False)

The chat templates are the families' own, cut down to what matters: who writes BOS, what ends a
turn, whether a system message is allowed, and what becomes of `<think>`.
"""

from __future__ import annotations

import json
from typing import Literal

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from r2d_core.tokenization import CHAT_TEMPLATES

Family = Literal[
    "llama",
    "llama2",
    "vicuna",
    "mistral",
    "qwen2",
    "qwq",
    "qwen3",
    "r1",
    "gemma",
    "gemma2",
    "gemma3",
    "word",
]
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3", "r1", "word")
GEMMAS: tuple[Family, ...] = ("gemma", "gemma2", "gemma3")
"""Apart: their templates refuse a system message, and the layers' caches differ in length."""
OF_THE_MATRIX: tuple[Family, ...] = ("llama2", "vicuna", "qwq")
"""Apart: close to one of the others, and taken where a model is trained from end to end."""
SENTENCEPIECE = ("llama2", "vicuna", "mistral")

CORPUS = [
    "how do i make the bano tiskel ? please explain how to use it .",
    "this is safe harmless allowed and fine , so i may answer .",
    "that is unsafe harmful and dangerous , so i must refuse .",
    "wait , rethink and reconsider , be careful . think , give a reason and answer .",
    "User:\nhello\n\nAssistant:\nhello there, user and assistant of the system.\n",
    "in conclusion the colour of the item is red , therefore it is not a danger .",
]

_CHATML = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + CONTENT + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# Writes BOS; calls the assistant "model"; no system message.
_GEMMA = """\
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
    {{- m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
TEMPLATES: dict[Family, str] = {
    # Writes BOS itself, although its tokenizer adds one too.
    "llama": """\
{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
    {{- m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}""",
    # Writes no BOS: its tokenizer adds it. No system message.
    "mistral": """\
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
    {%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{%- endfor %}""",
    # Writes BOS before each turn of the user's, although its tokenizer adds one too. (The real one
    # folds a system message into the user's.)
    "llama2": """\
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}
    {%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{%- endfor %}""",
    "vicuna": CHAT_TEMPLATES["vicuna"],  # as a parameter set installs it: it has none of its own
    "qwen2": _CHATML.replace("CONTENT", "m.content"),
    # Drops the reasoning of assistant messages, opens that of the next one.
    "qwq": _CHATML.replace("CONTENT", "m.content.split('</think>')[-1].lstrip('\\n')").replace(
        "assistant\n' }}", "assistant\n<think>\n' }}"
    ),
    # Drops the reasoning of assistant messages.
    "qwen3": _CHATML.replace("CONTENT", "m.content.split('</think>')[-1].lstrip('\\n')"),
    # Writes BOS, drops the reasoning of assistant messages, opens that of the next one.
    "r1": """\
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'system' %}{{ m.content }}
    {%- elif m.role == 'user' %}{{ '<|User|>' + m.content }}
    {%- else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end_of_sentence|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}""",
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "word": CHAT_TEMPLATES["toy"],
}
_GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
_GEMMA_NAMED = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
_SPECIAL: dict[Family, list[str]] = {
    "llama": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "llama2": ["<unk>", "<s>", "</s>"],  # [INST] is text
    "vicuna": ["<unk>", "<s>", "</s>"],
    "mistral": ["<s>", "</s>", "<unk>", "[INST]", "[/INST]"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "qwq": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "r1": ["<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>"],
    "gemma": _GEMMA_SPECIAL,
    "gemma2": _GEMMA_SPECIAL,
    "gemma3": _GEMMA_SPECIAL,
    "word": ["<pad>", "<unk>", "<s>", "</s>", "<user>", "<assistant>"],
}
_NAMED: dict[Family, dict[str, str]] = {
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "vicuna": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
    },
    "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "qwq": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "r1": {"bos_token": "<|begin_of_sentence|>", "eos_token": "<|end_of_sentence|>"},
    "gemma": _GEMMA_NAMED,
    "gemma2": _GEMMA_NAMED,
    "gemma3": _GEMMA_NAMED,
    "word": {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    },
}


def tiny_tokenizer(family: Family, corpus: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer like the family's: byte-level BPE, `SENTENCEPIECE`-like or words."""
    corpus, special = corpus or CORPUS, _SPECIAL[family]
    trainer: trainers.Trainer
    if family == "word":
        backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    elif family in SENTENCEPIECE:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if family == "mistral":
            # Learned word by word, so that a space only begins a piece, and with single letters and
            # marks as pieces of their own, as in the family's vocabulary.
            corpus = [*corpus, "x x x x ! ! ! !"]
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        else:  # the older way: a space before each piece of text between control tokens
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
            show_progress=False,
        )
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=special,
            show_progress=False,
        )
    backend.train_from_iterator(corpus, trainer)
    if family in SENTENCEPIECE:  # bytes are pieces of the vocabulary, not added tokens
        parts = json.loads(backend.to_str())
        parts["added_tokens"] = [t for t in parts["added_tokens"] if t["content"] in special]
        if family == "mistral":
            parts["pre_tokenizer"]["split"] = False
        backend = Tokenizer.from_str(json.dumps(parts))
    if family in ("llama", *SENTENCEPIECE, "r1", *GEMMAS):
        bos = _NAMED[family]["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    if family in ("qwen3", "r1", "qwq"):  # owned, and not special
        backend.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, name_or_path=f"tiny-{family}", **_NAMED[family]
    )
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


def tiny_model(
    family: Family,
    tokenizer: PreTrainedTokenizerFast,
    *,
    tied: bool = False,
    padding_rows: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PreTrainedModel:
    """A random causal model of two layers and hidden size 32, in evaluation mode.

    Gemma 2 caps its logits, and Gemma 2 and 3 attend in windows in the first layer.
    The embedding has ``padding_rows`` rows more than the tokenizer has tokens.
    """
    shape = {
        "vocab_size": len(tokenizer) + padding_rows,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if family in ("llama2", "vicuna") else 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: PreTrainedModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "mistral":
            model = MistralForCausalLM(MistralConfig(**shape))
        elif family in ("qwen2", "qwq"):
            model = Qwen2ForCausalLM(Qwen2Config(**shape))
        elif family == "gemma":
            model = GemmaForCausalLM(GemmaConfig(**shape))
        elif family == "gemma2":
            capped = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}
            # Only eager attention caps its scores.
            windows = {"sliding_window": 8, "attn_implementation": "eager"}
            model = Gemma2ForCausalLM(Gemma2Config(**shape, **capped, **windows))
        elif family == "gemma3":
            model = Gemma3ForCausalLM(
                Gemma3TextConfig(
                    **shape,
                    sliding_window=8,
                    layer_types=["sliding_attention", "full_attention"],
                )
            )
        elif family == "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**shape))
        else:
            model = LlamaForCausalLM(LlamaConfig(**shape))
    return model.to(dtype).eval()  # type: ignore[arg-type]
