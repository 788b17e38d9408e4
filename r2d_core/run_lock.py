"""Two runs at once into one folder would interleave what they write: the second is refused."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from r2d_core.errors import InputError

LOCK = ".run.lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of a file system that has none: there nobody is kept out."""

_kept: dict[Path, IO[str]] = {}


@contextmanager
def only_run_in(output: str | Path) -> Iterator[None]:
    """Raise InputError where another run writes into the folder, or where it can be none.

    The lock ends with the block and with the process, however that ends.
    """
    with _locked(Path(output)):
        yield


def keep_others_out_of(output: str | Path) -> None:
    """`only_run_in` until this process ends: for a notebook, whose cells are run one by one.

    Called again in the same process it has nothing to do.
    """
    place = Path(output).resolve()
    if place not in _kept:
        _kept[place] = _locked(Path(output))


def _locked(output: Path) -> IO[str]:
    import fcntl  # of Unix only

    try:
        output.mkdir(parents=True, exist_ok=True)
        handle = (output / LOCK).open("w")
    except OSError as error:
        raise InputError(
            f"{output}: no folder that can be written into ({error.strerror}); give another "
            "output_dir"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise InputError(
            f"{output}: another run is writing into this folder; wait for it, end it, or give "
            "another output_dir"
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            handle.close()
            raise
    return handle
