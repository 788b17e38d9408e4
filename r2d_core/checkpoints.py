"""What a training run leaves on disk while it runs: which run it is, how far it came.

A run's fingerprint stands for everything that decides what comes out. Its checkpoints lie in a
folder of that name, so a changed parameter never goes on from another run's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from r2d_core.batching import Row
from r2d_core.errors import InputError
from r2d_core.provenance import source_sha256
from r2d_core.records import read_json, write_json_atomic

WHOLE = "whole"
"""The file written last into a checkpoint: one without it was cut off."""


def fingerprint(settings: Any, row_lists: Iterable[Sequence[Row]], model: nn.Module) -> str:
    """16 hex digits of settings (as JSON), every row and every weight, bit for bit."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps(settings).encode())
    for row in itertools.chain.from_iterable(row_lists):
        digest.update(array("q", [len(row["input_ids"]), *row["input_ids"], *row["labels"]]))
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        header = [name, str(tensor.dtype), list(tensor.shape), tensor.requires_grad]
        digest.update(json.dumps(header).encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def last_whole_checkpoint(checkpoints: Path, *, remove_broken: bool) -> str | None:
    """The latest whole checkpoint, where there is one; the broken ones can be removed."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in found if (path / WHOLE).exists()]
    for path in found:
        if remove_broken and path not in whole:
            shutil.rmtree(path, ignore_errors=True)
    return str(whole[-1]) if whole else None


def sources_of(checkpoints: Path, *, resumed: bool, note: bool) -> list[str]:
    """The code of all sessions of a run, each a `source_sha256`, this one's among them.

    ``note`` writes it down for a session that goes on from here. Checkpoints that say nothing of it
    count as "unknown".
    """
    file = checkpoints / "sources.json"
    before = []
    if resumed:
        before = list(read_json(file)["source_sha256"]) if file.is_file() else ["unknown"]
    sources = list(dict.fromkeys([*before, source_sha256()]))
    if note:
        write_json_atomic(file, {"source_sha256": sources})
    return sources


def finished_record(output: Path, run: str) -> dict[str, Any] | None:
    """What ``output``/training.json says of the run named ``run``; None where it is not finished.

    Raises InputError for a file that is no such record.
    """
    path = output / "training.json"
    if not path.exists() or not (output / "model").is_dir():
        return None
    record = read_json(path)
    try:
        if record["run"] != run:
            return None
        known = {name: record[name] for name in ("run", "steps", "seconds", "metrics")}
        return known | {"sources": record.get("source_sha256", ["unknown"])}
    except KeyError:
        raise InputError(
            f"{path}: not the record of a training run; remove it to train again"
        ) from None
