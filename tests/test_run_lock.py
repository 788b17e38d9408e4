"""Two runs at once into one folder: the second is refused, whatever the first is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from r2d_core.errors import InputError
from r2d_core.run_lock import keep_others_out_of, only_run_in

HOLDS = (
    "import sys; from r2d_core.run_lock import keep_others_out_of as keep; "
    "keep(sys.argv[1]); keep(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
)


def test_a_notebook_keeps_others_out_until_its_process_ends(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        says = "out: another run is writing into this folder; wait for it, end it, or give another"
        with pytest.raises(InputError, match=says):
            keep_others_out_of(out)
        with pytest.raises(InputError, match=says), only_run_in(out):
            pass
        other.kill()
    keep_others_out_of(out)
    keep_others_out_of(out)  # a cell that is run again


def test_what_can_be_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(InputError, match=r"no folder that can be written into \(.*\); give an"):
            keep_others_out_of(place)
