"""Launch links of the pages under runs/: to the notebook in the repository that made the run.

The theme links a page's own path, and the executed copies under runs/ are in no repository.
"""

from __future__ import annotations

from typing import Any


def link_to_source(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Rewrite the launch URLs of ``runs/…/NN_name`` to ``notebooks/NN_name``."""
    if not pagename.startswith("runs/"):
        return
    source = f"notebooks/{pagename.rsplit('/', 1)[-1]}"
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                if "url" in button:
                    button["url"] = button["url"].replace(pagename, source)


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", link_to_source, priority=900)  # after the theme's own
    return {"parallel_read_safe": True, "parallel_write_safe": True}
