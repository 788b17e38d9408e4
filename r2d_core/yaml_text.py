"""YAML as people write it by hand: plain values, each key once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from r2d_core.errors import InputError


class _Loader(yaml.SafeLoader):
    """Plain YAML, but a key given twice is refused where PyYAML would keep the last silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice; keep one", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML text, of plain values only.

    Raises InputError "line 3: not valid YAML: …" for one that is none, with a key that stands
    twice, with bytes that are no text or a date that is none.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        said = getattr(error, "problem", None) or str(error)
        raise InputError(f"{place}not valid YAML: {' '.join(said.split())}") from None
