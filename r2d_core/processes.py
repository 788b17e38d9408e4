"""How a process that trained with others ends."""

from __future__ import annotations

import time

from torch import distributed

LETS_GO_S = 0.5


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
