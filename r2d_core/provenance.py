"""What made this number: commit, parameters, seeds, versions, hardware, time.

Everything here changes from run to run. It goes into a file and a footer of its own, never into a
table of results: those are equal byte for byte when a run is repeated.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGE = Path(__file__).parent
# What can move a result, as far as it is installed.
LIBRARIES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "datasets",
    "deepspeed",
    "vllm",
    "numpy",
    "scipy",
    "statsmodels",
    "lm_eval",
)


def provenance(
    parameters: Mapping[str, Any],
    seeds: Sequence[int],
    started: datetime,
    *,
    trained_by: Iterable[str] = (),
) -> dict[str, Any]:
    """The record of a run that ends now, as JSON values.

    ``started`` is ``datetime.now(UTC)`` of the run's beginning (without a zone: local time).
    ``commit`` and ``dirty`` come from git; outside a checkout from the environment variable
    R2D_COMMIT, else "unknown" and null. ``source_sha256`` is `source_sha256`, so two runs of one
    uncommitted state can still be told to be of one state. ``trained_by`` are those of the code
    that trained the run's models, which may lie there from earlier: its commit is not known here.
    """
    ended = datetime.now(UTC)
    commit, dirty = _commit()
    trained = sorted(set(trained_by))
    return {
        "commit": commit,
        "dirty": dirty,
        "source_sha256": source_sha256(),
        **({"trained_by_source_sha256": trained} if trained else {}),
        "parameters": dict(parameters),
        "seeds": list(seeds),
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "ended": ended.isoformat(timespec="seconds"),
        "seconds": round((ended - started.astimezone(UTC)).total_seconds(), 1),
        "versions": {"python": platform.python_version()} | _versions(),
        "hardware": _hardware(),
    }


def footer_html(record: Mapping[str, Any]) -> str:
    """A provenance record as a folded HTML table for the last cell of a notebook, escaped."""
    dirty = ", with uncommitted changes" if record["dirty"] else ""
    summary = (
        f"Made from commit {str(record['commit'])[:12]}{dirty}, "
        f"{record['ended']}, in {record['seconds']} s"
    )
    if set(record.get("trained_by_source_sha256", [])) - {record["source_sha256"]}:
        summary += "; models trained earlier, by other code"
    rows = []
    for key, value in record.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, part in parts:
            shown = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
            label = f"{key}: {name}" if name else key
            rows.append(
                f'<tr><th scope="row">{html.escape(label)}</th><td>{html.escape(shown)}</td></tr>'
            )
    return (
        f'<details class="provenance"><summary>{html.escape(summary)}</summary>'
        f"<table><tbody>{''.join(rows)}</tbody></table></details>"
    )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _commit() -> tuple[str, bool | None]:
    # Only a checkout of ours counts: an installed copy may lie inside somebody else's repository.
    if _git("ls-files", "--error-unmatch", "provenance.py") is not None:
        head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
        if head is not None and changes is not None:
            return head, bool(changes)
    return os.environ.get("R2D_COMMIT") or "unknown", None


def source_sha256() -> str:
    """The hash of the package's files, its Python sources and the prompts beside them, as they were
    when this process began: what is edited later is not what it runs.
    """
    return _hash_of(PACKAGE)


@functools.cache
def _hash_of(package: Path) -> str:
    digest = hashlib.sha256()
    for file in package_files(package):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def package_files(package: Path) -> list[Path]:
    """All files of a package that count, sorted: none that Python or an editor leaves there."""
    return sorted(
        file
        for file in package.rglob("*")
        if file.is_file()
        and file.parent.name != "__pycache__"
        and not file.name.startswith(".")
        and not file.name.endswith("~")
    )


_hash_of(PACKAGE)


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    torch = sys.modules.get("torch")  # a run that never imported it used no GPU through it
    gpus = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
