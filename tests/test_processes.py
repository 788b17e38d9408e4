"""The end of a process that trains with others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from processes import ended, until
from torch import distributed

from r2d_core.processes import LAUNCHER, end_processes

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


CHILD = """
import os, time
from r2d_core.processes import end_with_launcher
end_with_launcher()
print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}])
time.sleep(600)
"""


@pytest.mark.parametrize("killed", ["the parent", "who had it started"])
def test_a_process_ends_with_what_started_it(killed):
    """By SIGKILL, at which nothing can be done for others any more."""
    first = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {LAUNCHER: str(first.pid)},
    )
    try:
        child = int(parent.stdout.readline())
        assert not ended(child)
        victim = parent if killed == "the parent" else first
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        until(lambda: ended(child))
    finally:
        for each in (first, parent):
            each.kill()
            each.wait()
