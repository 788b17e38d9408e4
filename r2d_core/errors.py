"""The one exception a user is meant to see."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: one line that names the culprit, what was expected and the mend.

    Jupyter asks an exception for ``_render_traceback_`` before it draws its own traceback, so a
    notebook (and papermill, which copies the notebook's traceback) shows this line and nothing
    else.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"InputError: {self}"]
