"""For all tests: Triton's kernels run in its interpreter, on a machine with a GPU too.

With R2D_TEST_DEVICE=cuda (`make test-gpu`) they are compiled, and what a test makes without naming
a device is on the GPU. Both have to be settled before Triton and the tests' modules are imported.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import round_to_nearest

DEVICE = os.environ.get("R2D_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is not None:
        round_to_nearest.in_the_interpreter()
else:
    import torch

    if not torch.cuda.is_available():
        raise pytest.UsageError(f"R2D_TEST_DEVICE={DEVICE}: torch sees no GPU here")
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_default_device(DEVICE)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import warm_kernels  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest module first: begun last, it leaves all workers but one with nothing to do."""
    items.sort(key=lambda item: item.path.name != "test_smoke_pipeline.py")


@pytest.fixture(scope="session")
def warm() -> Iterator[dict[str, str]]:
    """What `run_notebook.py` finds in its environment in a grid: kernels that start at once."""
    with ExitStack() as stack:
        variables: dict[str, str] = {}
        if warm_kernels.possible():
            variables, _ = stack.enter_context(warm_kernels.started())
        yield variables
