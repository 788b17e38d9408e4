from __future__ import annotations

import html.parser
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2d_core import provenance as room
from r2d_core.provenance import footer_html, provenance

GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own whose package holds one committed file."""
    package = tmp_path / "r2d_core"
    package.mkdir()
    (package / "provenance.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "begin"]):
        subprocess.run([*GIT, str(tmp_path), *command], check=True)
    monkeypatch.setattr(room, "PACKAGE", package)
    monkeypatch.delenv("R2D_COMMIT", raising=False)
    return package


def record(**parameters: Any) -> dict[str, Any]:
    return provenance(parameters, [0, 1], datetime.now(UTC) - timedelta(seconds=5))


def test_it_is_json_and_tells_the_run() -> None:
    made = record(seed=3, name="中")
    assert json.loads(json.dumps(made)) == made
    assert made["parameters"] == {"seed": 3, "name": "中"}
    assert made["seeds"] == [0, 1]
    assert made["seconds"] >= 5
    assert datetime.fromisoformat(made["started"]) < datetime.fromisoformat(made["ended"])
    assert made["versions"]["python"] == sys.version.split()[0]
    assert made["hardware"]["cpu"] and made["hardware"]["memory_gib"] > 0


def test_a_start_without_a_zone_is_local_time() -> None:
    made = provenance({}, [], datetime.now() - timedelta(seconds=5))
    assert 5 <= made["seconds"] < 600


def test_commit_and_changes_come_from_git(checkout: Path) -> None:
    head = subprocess.run(
        [*GIT, str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    made = record()
    assert (made["commit"], made["dirty"]) == (head, False)
    assert "uncommitted" not in footer_html(made)
    (checkout / "new.py").write_text("y = 1\n")
    made = record()
    assert (made["commit"], made["dirty"]) == (head, True)
    assert "with uncommitted changes" in footer_html(made)


def test_an_installed_copy_inside_another_repository_is_not_that_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout.parent / "site-packages" / "r2d_core"
    shutil.copytree(checkout, installed)
    monkeypatch.setattr(room, "PACKAGE", installed)
    assert (record()["commit"], record()["dirty"]) == ("unknown", None)
    monkeypatch.setenv("R2D_COMMIT", "abc123")
    assert (record()["commit"], record()["dirty"]) == ("abc123", None)


def test_the_source_hash_follows_content_and_names(checkout: Path) -> None:
    def of_a_new_process() -> str:
        room._hash_of.cache_clear()
        return str(record()["source_sha256"])

    first = of_a_new_process()
    assert of_a_new_process() == first
    (checkout / "provenance.py").write_text("x = 2\n")
    assert record()["source_sha256"] == first  # an edit while it runs is not what runs
    second = of_a_new_process()
    (checkout / "provenance.py").rename(checkout / "other.py")
    third = of_a_new_process()
    (checkout / "prompts").mkdir()
    (checkout / "prompts" / "judge.txt").write_text("Is it harmful?")  # decides results as well
    fourth = of_a_new_process()
    assert len({first, second, third, fourth}) == 4
    (checkout / "__pycache__").mkdir()
    (checkout / "__pycache__" / "provenance.cpython-311.pyc").write_bytes(b"0")
    (checkout / ".prompts.swp").write_text("")
    assert of_a_new_process() == fourth


def test_models_that_other_code_trained_are_told(checkout: Path) -> None:
    now = room.source_sha256()
    start = datetime.now(UTC)
    assert "trained_by_source_sha256" not in provenance({}, [], start)
    same = provenance({}, [], start, trained_by=[now, now])
    assert same["trained_by_source_sha256"] == [now] and "other code" not in footer_html(same)
    other = provenance({}, [], start, trained_by=[now, "before"])
    assert "models trained earlier, by other code" in footer_html(other)


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from datetime import datetime; from r2d_core.provenance import provenance;"
        "provenance({}, [], datetime.now()); sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


MADE = record()


@given(key=st.text(), value=st.text() | st.lists(st.text()))
def test_the_footer_is_escaped(key: str, value: Any) -> None:
    tags = _Tags()
    tags.feed(footer_html(MADE | {"parameters": {key + "</td><script>": value, "b": "<b>&amp;"}}))
    assert tags.seen == {"details", "summary", "table", "tbody", "tr", "th", "td"}
    assert "<b>&amp;" in tags.text and "</td><script>" in tags.text
