"""For all tests: Triton's kernels run in its interpreter, on a machine with a GPU too.

But where `make test-gpu` says R2D_TEST_DEVICE=cuda: then every tensor that a test makes without
naming a device is there, and the kernels are compiled. Triton reads its variable, and tests make
tensors, when they are imported, which must not be before this.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

DEVICE = os.environ.get("R2D_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
else:
    import torch

    torch.set_default_device(DEVICE)

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
