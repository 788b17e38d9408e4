"""experiments/warm_kernels.py: its kernels are what an ordinary kernel is, but there at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import warm_kernels
from processes import ended, until

pytestmark = pytest.mark.skipif(
    not warm_kernels.possible(), reason="kernels are forked on Linux, where there is no GPU"
)


class Kernel:
    """A kernel, as nbclient starts it, and what it answers."""

    def __init__(self, variables: dict[str, str], cwd: Path, **environment: str) -> None:
        # A manager of kernel specifications looks where JUPYTER_PATH says when it is made.
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = variables[warm_kernels.JUPYTER_PATH]
        try:
            self.manager = KernelManager(kernel_name="python3")
            self.manager.start_kernel(cwd=str(cwd), env={**os.environ, **environment})
        finally:
            os.environ.pop("JUPYTER_PATH")
            if before is not None:
                os.environ["JUPYTER_PATH"] = before
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    @property
    def face(self) -> int:
        """The process that Jupyter started and watches."""
        return self.manager.provisioner.process.pid

    def says(self, code: str) -> str:
        said: list[str] = []

        def hear(message: dict) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                said.append(content["text"])
            elif message["msg_type"] == "error":
                said.append(content["ename"])

        self.client.execute_interactive(code, timeout=120, output_hook=hear)
        return "".join(said).strip()


def first_processes() -> set[psutil.Process]:
    children = psutil.Process().children()
    return {c for c in children if not ended(c.pid) and "serve" in c.cmdline()}


def test_a_kernel_is_a_fork_with_the_environment_of_who_asked(warm, tmp_path):
    with Kernel(warm, tmp_path, SOMETHING="of mine", OMP_NUM_THREADS="2") as kernel:
        # Before any import: the libraries are there, and nothing of the package, which may change.
        assert kernel.says(
            "import sys\n"
            "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
            "print([name for name in sys.modules if name.startswith('r2d_core')])"
        ) == "True True\n[]"  # fmt: skip
        assert (
            kernel.says(
                "import os, torch\n"
                "print(os.getcwd(), os.environ['SOMETHING'], torch.get_num_threads())\n"
                "print(os.getpgrp() == os.getpid(), sys.executable)"
            )
            == f"{tmp_path} of mine 2\nTrue {sys.executable}"
        )
        assert kernel.says("import matplotlib; print(matplotlib.get_backend())").endswith("inline")
        # Shared by no other kernel: neither what it imports nor what it draws.
        assert (
            kernel.says("import wave; drawn = os.urandom(4), __import__('random').random()") == ""
        )
        draw = "import random, numpy; print(random.random(), numpy.random.random())"
        mine = kernel.says(draw)
        with Kernel(warm, tmp_path) as other:
            assert other.says("import sys; print('wave' in sys.modules)") == "False"
            assert not set(other.says(draw).split()) & set(mine.split())
        # It computes, forwards and backwards, on the threads that it was given.
        assert kernel.says(
            "a = torch.ones(512, 512, requires_grad=True)\n(a @ a).sum().backward()\n"
            "print(a.grad.unique().tolist())"
        ) == "[1024.0]"  # fmt: skip
        assert kernel.says("!echo a process of its own") == "a process of its own"


def test_it_is_interrupted_and_ended_as_any_kernel(warm, tmp_path):
    with Kernel(warm, tmp_path) as kernel:
        pid = int(kernel.says("import os; print(os.getpid())"))
        assert pid != kernel.face
        waiting = kernel.client.execute("import time\nopen('here', 'w')\ntime.sleep(1000)")
        until((tmp_path / "here").exists)
        kernel.manager.interrupt_kernel()
        reply = kernel.client.get_shell_msg(timeout=60)
        assert reply["parent_header"]["msg_id"] == waiting
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        kernel.client.shutdown()
        until(lambda: not kernel.manager.is_alive())
        assert kernel.manager.provisioner.process.poll() == 0
        until(lambda: ended(pid))


def test_who_is_killed_takes_the_other_along(warm, tmp_path):
    with Kernel(warm, tmp_path) as kernel:
        pid = int(kernel.says("import os; print(os.getpid())"))
        os.kill(kernel.face, signal.SIGKILL)
        until(lambda: ended(pid))
    with Kernel(warm, tmp_path) as kernel:
        pid = int(kernel.says("import os; print(os.getpid())"))
        os.kill(pid, signal.SIGKILL)
        until(lambda: not kernel.manager.is_alive())
        assert kernel.manager.provisioner.process.poll() == 1


def test_what_a_kernel_started_ends_with_it(warm, tmp_path):
    with Kernel(warm, tmp_path) as kernel:
        # A session of its own, as a launcher of several processes has.
        started = kernel.says(
            "import os, subprocess\n"
            "sleeper = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
            "print(os.getpid(), sleeper.pid)"
        )
        os.kill(kernel.face, signal.SIGKILL)
        until(lambda: all(ended(int(pid)) for pid in started.split()))
    with Kernel(warm, tmp_path) as kernel:
        # A fork of the kernel, which has its descriptors, does not make it look alive.
        pids = kernel.says(
            "import os, time\nif not (fork := os.fork()):\n    time.sleep(1000)\n"
            "print(os.getpid(), fork)"
        )
        pid, fork = map(int, pids.split())
        os.kill(pid, signal.SIGKILL)
        until(lambda: not kernel.manager.is_alive())
        os.kill(fork, signal.SIGKILL)


def test_a_kernel_ends_with_the_process_that_started_it(warm, tmp_path):
    starter = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\nfrom test_warm_kernels import Kernel, warm_kernels\n"
        "kernel = Kernel({warm_kernels.JUPYTER_PATH: sys.argv[2]}, Path(sys.argv[3]))\n"
        "print(kernel.face, kernel.says('import os; print(os.getpid())'), flush=True)\n"
        "time.sleep(1000)"
    )
    folders = [str(Path(__file__).parent), warm[warm_kernels.JUPYTER_PATH], str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", starter, *folders], stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout
        pids = [int(pid) for pid in started.stdout.readline().split()]
        assert len(pids) == 2 and not any(map(ended, pids))
        started.kill()
        until(lambda: all(map(ended, pids)))


def test_nothing_is_left_when_the_lifeline_is_cut():
    before = first_processes()
    with warm_kernels.started() as (variables, _):
        (first,) = first_processes() - before
        folder = Path(variables[warm_kernels.JUPYTER_PATH])
        assert folder.exists()
    until(lambda: ended(first.pid))
    assert not folder.exists()


def test_no_kernels_are_kept_warm_where_a_socket_has_no_place(tmp_path, monkeypatch):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with warm_kernels.started() as (variables, lifeline):
        assert not variables and not lifeline
    assert not list(long.iterdir())


@pytest.mark.parametrize("when", ["gone", "importing"])
def test_an_ordinary_kernel_where_the_first_process_cannot_serve(tmp_path, monkeypatch, when):
    before = first_processes()
    if when == "importing":  # and fails, while a kernel is waiting for it
        (tmp_path / "pandas.py").write_text("import time\ntime.sleep(5)\nraise ImportError")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with warm_kernels.started() as (variables, _):
        (first,) = first_processes() - before
        if when == "gone":
            first.kill()
            first.wait()
        monkeypatch.delenv("PYTHONPATH", raising=False)
        with Kernel(variables, tmp_path) as kernel:
            assert int(kernel.says("import os; print(os.getpid())")) == kernel.face
            assert kernel.says("import sys; print('torch' in sys.modules)") == "False"
    until(lambda: ended(first.pid))


def test_no_folder_is_left_of_a_run_that_was_killed(tmp_path):
    run = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\nimport warm_kernels\n"
        "with warm_kernels.started() as (variables, _):\n"
        "    print(variables[warm_kernels.JUPYTER_PATH], flush=True)\n    time.sleep(1000)"
    )
    experiments = str(Path(warm_kernels.__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", run, experiments], stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout
        folder = Path(started.stdout.readline().strip())
        assert folder.is_dir()
        started.kill()
        until(lambda: not folder.exists())


def test_the_imports_start_no_thread_that_a_fork_would_lack():
    count = (
        "import importlib, pathlib, warm_kernels\n"
        "for library in warm_kernels.LIBRARIES:\n    importlib.import_module(library)\n"
        "for task in pathlib.Path('/proc/self/task').iterdir():\n"
        "    if int(task.name) != __import__('os').getpid():\n"
        "        print((task / 'comm').read_text().strip())"
    )
    experiments = str(Path(warm_kernels.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", count],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": experiments},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # pyarrow's allocator, which sets itself up anew in a fork.
    assert set(done.stdout.split()) <= {"jemalloc_bg_thd"}
