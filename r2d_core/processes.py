"""How a process that trains with others ends."""

from __future__ import annotations

import os
import threading
import time
from typing import NoReturn

import psutil
from torch import distributed

LETS_GO_S = 0.5
LAUNCHER = "R2D_LAUNCHER"
"""In the environment: the id of the process that had `accelerate launch` started."""


def end_with_launcher() -> None:
    """Let this process end with the one that started it, however that ends, and with `LAUNCHER`.

    A launcher that is killed (SIGKILL, or for its memory) does not end its processes, and they
    would go on writing into the folder in which the run is started again.
    """
    started_by, launcher = os.getppid(), os.environ.get(LAUNCHER)

    def watch() -> NoReturn:
        while os.getppid() == started_by and (launcher is None or psutil.pid_exists(int(launcher))):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_processes() -> None:
    """Leave the group of processes that `accelerate launch` started; nothing where there is none.

    The last thing that a program of several processes does, after `train`: NCCL warns where it is
    left out, and gloo may end the process with SIGABRT after all is saved.
    """
    if not distributed.is_initialized():
        return
    gloo = "gloo" in distributed.get_backend_config()  # alone, or of the CPU's tensors
    distributed.destroy_process_group()
    if gloo:
        # A collective returns before gloo's thread has dropped its tensors, for which the thread
        # needs the interpreter: where that is ending, "terminate called without an active
        # exception". The group's end would wait for the threads, but DDP and DeepSpeed hold the
        # group. Until torch waits by itself (2.13 does not; a test tells when it does).
        time.sleep(LETS_GO_S)
