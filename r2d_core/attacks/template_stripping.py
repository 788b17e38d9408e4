"""Chat-template stripping: the prompt reaches the model bare, as text to go on with.

After ChatBug (Jiang et al. 2024): safety training that only ever saw the chat template may not
hold without it. What it changes is not a test case but the way to the model, so it is no attack of
the registry; it is a generator, as a defence is, and any attack's test cases can go through it:

    bare = without_chat_template(model, tokenizer)
    completions = complete(bare, make_attack("direct").run(behaviors, target, material, seed), n)

Differences: ChatBug also tries a template with parts left out and one of another model; for those
give the tokenizer's copy another template with `tokenization.install_chat_template`.
"""

from __future__ import annotations

import copy
from typing import Any

from r2d_core.generation import TransformersGenerator
from r2d_core.tokenization import end_of_turn

BARE = """\
{{- bos_token if bos_token else '' }}
{%- for message in messages %}{{ message.content }}{% if not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor %}"""


def without_chat_template(model: Any, tokenizer: Any) -> TransformersGenerator:
    """The model behind a template of nothing but the messages; it stops where it always stops.

    The tokenizer is left as it is; of one without a chat template, as base models have, prompts go
    bare all the same, and EOS ends an answer. Raises InputError when nothing ends one.
    """
    stop = end_of_turn(tokenizer) if tokenizer.chat_template else []
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = BARE
    generator = TransformersGenerator(model, bare)
    generator.stop_ids = sorted({*generator.stop_ids, *stop})
    return generator
