"""The published attacks' prompts, and what attacks by an attacker model share.

README.md beside this file says where each prompt is from.
"""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any

from r2d_core.attacks.attack import Target
from r2d_core.errors import InputError
from r2d_core.generation import Generator
from r2d_core.judges.quoting import fill


def prompt_text(name: str, **values: Any) -> str:
    """The prompt of that name with its words in braces filled in.

    Every value is put in as it is: braces within a value are text.
    """
    return fill(_read(name), {key: str(value) for key, value in values.items()})


@functools.cache
def _read(name: str) -> str:
    return (resources.files(__name__) / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")


def attacker_of(target: Target, attack: str) -> Generator:
    """The attacker model; InputError without one."""
    if target.attacker is None:
        raise InputError(
            f"attack {attack!r} has a model write prompts: give Target an attacker (a Generator; "
            "in a notebook, the parameter attacker)"
        )
    return target.attacker


def written_prompt(answer: str) -> str | None:
    """The ``prompt`` of the attacker's JSON answer; None where there is none to be read.

    As PAIR reads it, and better: the JSON may stand among other text and hold braces in strings and
    bare line ends (the published code cuts at the first closing brace).
    """
    decoder = json.JSONDecoder(strict=False)
    for brace in re.finditer(r"\{", answer):
        try:
            found, _ = decoder.raw_decode(answer, brace.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and {"improvement", "prompt"} <= set(found):
            prompt = found["prompt"]
            return prompt if isinstance(prompt, str) and prompt.strip() else None
    return None


def out_of_ten(score: float) -> int:
    """A judge's score from 0 to 1 as the 1 to 10 that PAIR's and TAP's attackers are told."""
    return 1 + round(9 * min(1.0, max(0.0, score)))
