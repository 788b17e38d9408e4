"""The end of a process that trained with others."""

from __future__ import annotations

import subprocess
import sys

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
        for _ in range(int(sys.argv[2])):
            time.sleep(0.001)  # and then needs the interpreter again

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


def run(how, naps):
    command = [sys.executable, "-c", PROGRAM, how, naps]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_thread_of_gloo_that_is_busy_does_not_end_the_process():
    done = run("ended", "5")
    assert done.returncode == 0, done.stderr


def test_without_the_wait_it_does():
    """Almost every time. Should none do, torch has mended it: the wait in end_processes can go."""
    ends = (run("destroyed", "60000") for _ in range(10))
    assert any(done.returncode == -6 and "terminate called" in done.stderr for done in ends)


def test_a_process_that_trains_alone_has_nothing_to_leave():
    assert not distributed.is_initialized()
    end_processes()
