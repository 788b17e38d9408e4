"""For all tests: Triton's kernels run in its interpreter, on a machine with a GPU too.

Triton reads the variable when it is imported, which must not be before this. The kernels on a GPU
are the benchmarks' to check (tests/test_benchmarks.py).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import warm_kernels  # noqa: E402


@pytest.fixture(scope="session")
def warm() -> Iterator[dict[str, str]]:
    """What `run_notebook.py` finds in its environment in a grid: kernels that start at once."""
    with ExitStack() as stack:
        variables: dict[str, str] = {}
        if warm_kernels.possible():
            variables, _ = stack.enter_context(warm_kernels.started())
        yield variables
