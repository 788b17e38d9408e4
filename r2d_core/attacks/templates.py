"""Human jailbreak templates (Shen et al. 2023, "Do Anything Now"; HarmBench's HumanJailbreaks).

The templates are the user's own file, as jailbreaks found in the wild are not ours to hand on. The
request takes the place of ``{request}``, ``[INSERT PROMPT HERE]`` (jailbreakchat) or
``[REPLACE]`` (AutoDAN); where a template has none it follows at the end, as in HarmBench. HarmBench
draws a fixed number of templates for a behavior and puts each as a test case of its own; so does
this one over ``number``, but with one test case a behavior: its ``number``-th draw.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from r2d_core.attacks.attack import Material, Target, at_least
from r2d_core.errors import InputError
from r2d_core.records import Behavior, TestCase, read_text

MARKS = ("{request}", "[INSERT PROMPT HERE]", "[REPLACE]")


@dataclass(frozen=True)
class Templates:
    """Each behavior inside one template of ``file``, drawn by seed, behavior id and ``number``.

    The file is a JSON list of strings, or a text file with one template a paragraph, paragraphs
    parted by lines of ``---``.
    """

    name: ClassVar[str] = "templates"
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ("seed",)
    file: str = ""
    number: int = 0

    def __post_init__(self) -> None:
        at_least(0, self, "number")

    def run(
        self, behaviors: Sequence[Behavior], target: Target, material: Material, seed: int
    ) -> list[TestCase]:
        if not behaviors:
            return []
        templates = self.content()
        cases = []
        for behavior in behaviors:
            order = list(range(len(templates)))
            random.Random(f"templates-{seed}-{behavior.id}").shuffle(order)
            chosen = order[self.number % len(templates)]
            prompt = fill(templates[chosen], behavior.request)
            cases.append(TestCase(behavior.id, self.name, prompt, metadata={"template": chosen}))
        return cases

    def content(self) -> list[str]:
        """The templates; InputError where the file has none."""
        return read_templates(self.file)


def read_templates(file: str) -> list[str]:
    """The templates of a file, in order; InputError where there is none."""
    if not file:
        raise InputError(
            "attack 'templates': give file, a JSON list of jailbreak templates or a text file of "
            "them parted by lines of '---'"
        )
    text = read_text(file, "a file of jailbreak templates").replace("\r\n", "\n")
    begins = text.lstrip()
    # A letter behind the bracket is text: "[INSERT PROMPT HERE] …", "[Scene: …".
    if begins.startswith("[") and not begins[1:].lstrip()[:1].isalpha():
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: expected a JSON list of strings: {error}") from None
        for number, each in enumerate(found):
            if not isinstance(each, str) or not each.strip():
                raise InputError(f"{file}: template {number}: expected text, got {each!r:.60}")
    else:
        found = [part.strip("\n") for part in f"\n{text}\n".split("\n---\n") if part.strip()]
    if not found:
        raise InputError(f"{file}: holds no template")
    return list(found)


def fill(template: str, request: str) -> str:
    """The request in its place in the template, or behind it."""
    for mark in MARKS:
        if mark in template:
            return template.replace(mark, request)
    return f"{template}\n\n{request}"
