"""What transformers loads by name, with one line where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from r2d_core.errors import InputError


def loaded(model: str, load: Callable[..., Any], **settings: Any) -> Any:
    """What a ``from_pretrained`` makes of a model's folder or its name on the hub.

    Raises InputError where it makes nothing: no such model, files that are none, or a package that
    the settings need (flash attention, bitsandbytes) and that is not installed.
    """
    try:
        return load(model, **settings)
    except (OSError, ImportError, ValueError) as error:
        raise InputError(
            f"model {model!r} cannot be loaded: give a folder that save_pretrained wrote, or a "
            f"name on the hub ({' '.join(str(error).split())[:300]})"
        ) from None
