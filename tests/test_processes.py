"""The end of a process that trained with others."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch import distributed

from r2d_core.processes import end_processes

# A thread of gloo is kept busy with Python beyond the collective, as the dropping of a tensor may.
# What is to follow runs in the main thread where the collective has already ended: then again.
PROGRAM = """
import sys, threading, time
import torch
from torch import distributed
from r2d_core.processes import end_processes

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
held = distributed.group.WORLD  # as DDP and DeepSpeed hold it
main, busy, kept = threading.get_ident(), [], []

def follow(_):
    if threading.get_ident() != main:
        busy.append(True)
        time.sleep(0.1)

while not busy:
    future = distributed.all_reduce(torch.ones(2), async_op=True).get_future()
    kept.append(future.then(follow))
    future.wait()
if sys.argv[1] == "ended":
    end_processes()
    assert not distributed.is_initialized()
else:
    distributed.destroy_process_group()
"""


@pytest.mark.parametrize(("how", "code"), [("ended", 0), ("destroyed", -6)])
def test_threads_of_gloo_outlive_a_group_that_is_held(how, code):
    """Should "destroyed" end with 0, torch has mended it: the wait in end_processes can go."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("terminate called" in done.stderr) == (code != 0)


def test_a_process_that_trains_alone_has_nothing_to_leave():
    assert not distributed.is_initialized()
    end_processes()
