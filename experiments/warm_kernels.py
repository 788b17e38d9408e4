"""Kernels that start at once: forks of one process that has imported the libraries already.

A notebook of ours spends 8 seconds of a core on importing torch, transformers, peft and pandas
before its first line does anything, and a grid has dozens of notebooks. So ``run_experiment.py``
starts one process that imports them once, when the first kernel is asked for::

    python warm_kernels.py serve LISTENER LIFELINE

(two file descriptors: of the socket on which it listens, and of a pipe with which it ends), and the
notebooks of that run start their kernels, in place of ``ipykernel_launcher``, with ::

    python warm_kernels.py start SOCKET [arguments of ipykernel_launcher]

which has the first process fork itself, lives as long as the kernel, and passes signals on to it.
The kernel has the environment, the directory and the standard streams of this second process, and
ends, with all that it started, when that is killed. Nothing of ``r2d_core`` is imported beforehand,
so a notebook runs the code that is there when it starts; and where the first process cannot serve,
an ordinary kernel is started.

Unlike an ordinary kernel's, NumPy's own linear algebra runs on one thread; torch's on as many as
``OMP_NUM_THREADS`` says.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NoReturn

# Where the notebooks of a run find the kernel's specification, as Jupyter's directories have it.
JUPYTER_PATH = "R2D_WARM_KERNELS"
SOCKET_NAME = 108  # Linux: bytes of a socket's name, the closing zero among them
LIBRARIES = (
    "matplotlib.figure",
    "pandas",
    "scipy.stats",
    "statsmodels.stats.multitest",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "peft",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
)


def possible() -> bool:
    """Whether processes can be forked after the imports: not where they may have woken a GPU."""
    gpus = map(Path, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))  # NVIDIA, AMD, under Windows
    return sys.platform == "linux" and not any(gpu.exists() for gpu in gpus)


@contextmanager
def started() -> Iterator[tuple[dict[str, str], list[int]]]:
    """Start the first process; it ends when no process holds the lifeline any more.

    Yields what the run that uses it needs: variables of its environment, and the file descriptors
    (the lifeline's) that it has to inherit; none of either where the folder for temporary files has
    too long a name for a socket in it.
    """
    # Here: the process that stands for a kernel, started for each, need not wait for it.
    from ipykernel.kernelspec import get_kernel_dict

    with TemporaryDirectory(prefix="r2d-", ignore_cleanup_errors=True) as folder:
        address = os.path.join(folder, "socket")
        if len(os.fsencode(address)) >= SOCKET_NAME:
            yield {}, []
            return
        kernel = Path(folder, "kernels", "python3")  # the name that our notebooks ask for
        kernel.mkdir(parents=True)
        start = [sys.executable, str(Path(__file__).resolve()), "start", address]
        specification = get_kernel_dict() | {"argv": [*start, "-f", "{connection_file}"]}
        (kernel / "kernel.json").write_text(json.dumps(specification), "utf-8")
        read, lifeline = os.pipe()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(64)  # those that come while it imports wait
            subprocess.Popen(
                # -P: the directory of this file does not come before the libraries'.
                [sys.executable, "-P", __file__, "serve", str(listener.fileno()), str(read)],
                pass_fds=[listener.fileno(), read],
                stdin=subprocess.DEVNULL,
                env={
                    # As ipykernel sets it, before matplotlib is imported.
                    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                    **os.environ,
                    # For the libraries that start threads as they are imported: a fork lacks them.
                    "OMP_NUM_THREADS": "1",
                },
            )
        os.close(read)
        try:
            yield {JUPYTER_PATH: folder}, [lifeline]
        finally:
            os.close(lifeline)


def serve(listener: socket.socket, lifeline: int) -> None:
    """Fork a kernel for each that asks, until the lifeline is cut; for the first, import it all."""
    # Ctrl-C goes to every process of the terminal; the run decides, and cuts the lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A run in which nothing is left to do imports nothing.
    if lifeline in select.select([listener.fileno(), lifeline], [], [])[0]:
        _end(listener)
    for library in LIBRARIES:
        importlib.import_module(library)
        if select.select([lifeline], [], [], 0)[0]:
            _end(listener)
    gc.collect()
    gc.freeze()  # what is never collected is not copied into each kernel
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        ready, _, _ = select.select([listener.fileno(), lifeline], [], [])
        if lifeline in ready:
            _end(listener)
        connection, _ = listener.accept()
        try:
            forked = os.fork()
        except OSError:  # no memory, no more processes: the other end starts an ordinary kernel
            connection.close()
            continue
        if forked == 0:
            listener.close()
            os.close(lifeline)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run_kernel(connection)
            return
        connection.close()


def run_kernel(connection: socket.socket) -> None:
    """Become the kernel that the process at the other end would have been."""
    import numpy
    import torch
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # as Jupyter starts kernels
    os.register_at_fork(after_in_child=connection.close)  # of a fork of ours nobody is the face
    numpy.random.seed()  # which a fork does not by itself, as `random` does
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    connection.sendall(f"{os.getpid()}\n".encode())
    parent = f"--IPKernelApp.parent_handle={os.getppid()}"  # JPY_PARENT_PID names another
    sys.argv = ["ipykernel_launcher", *request["arguments"], parent]
    IPKernelApp.launch_instance()
    connection.sendall(b"ended")


def start(address: str, *arguments: str) -> NoReturn:
    """Have a kernel forked and be its face: live as long, pass on signals.

    Exit status: 0 when the kernel has ended by itself, 1 when it was killed.
    """
    request = {"environment": dict(os.environ), "directory": os.getcwd(), "arguments": arguments}
    with socket.socket(socket.AF_UNIX) as connection:
        answer = connection.makefile()
        try:
            connection.connect(address)
            socket.send_fds(connection, [b"\0"], [0, 1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            kernel = int(answer.readline())
        except (OSError, ValueError):  # the first process is gone, or could not fork
            ordinary = [sys.executable, "-m", "ipykernel_launcher", *arguments]
            os.execv(sys.executable, ordinary)

        def pass_on(number: int, frame: FrameType | None) -> None:
            with suppress(ProcessLookupError):
                os.killpg(kernel, number)  # as Jupyter sends signals: to what it started, too

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, pass_on)
        parent = int(os.environ.get("JPY_PARENT_PID") or os.getppid())
        while not select.select([connection.fileno()], [], [], 1)[0]:
            if os.getppid() != parent:  # a kernel, in a session of its own, has to look for itself
                sys.exit(1)
        sys.exit(0 if answer.read() == "ended" else "the kernel was killed")


def _end(listener: socket.socket) -> NoReturn:
    # The folder of a run that was killed is removed by nobody else.
    shutil.rmtree(os.path.dirname(listener.getsockname()), ignore_errors=True)
    os._exit(0)  # not torn down: triton's bindings then print what they leak


def _end_with(connection: socket.socket) -> NoReturn:
    import psutil  # which ipykernel has imported already

    with suppress(OSError):
        connection.recv(1)  # returns when the other end is closed
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]))
    else:
        start(*sys.argv[2:])
