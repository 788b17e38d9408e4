"""The one exception a user is meant to see."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: one line that names the culprit, what was expected and the mend.

    It may quote what stood in a file: what breaks a line there, or would steer a terminal, is
    written as an escape ("\\x0b").

    Jupyter asks an exception for ``_render_traceback_`` before it draws its own traceback, so a
    notebook (and papermill, which copies the notebook's traceback) shows this line and nothing
    else.
    """

    def __init__(self, message: object) -> None:
        shown = (c if c.isprintable() else ascii(c)[1:-1] for c in str(message))
        super().__init__("".join(shown))

    def _render_traceback_(self) -> list[str]:
        return [f"InputError: {self}"]
