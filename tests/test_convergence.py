"""Fifty training steps with each implementation of the loss, beside the same steps in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_model, tiny_tokenizer

from r2d_core.kernels import KERNELS, fused
from r2d_core.losses import r2d_loss
from r2d_core.pivots import expand_vocabulary

DEVICE = torch.get_default_device()
STEPS = 50
# Fifty steps in Triton's interpreter are a minute.
IMPLS = [
    pytest.param(impl, marks=[pytest.mark.slow] if impl == "triton" else [])
    for impl in KERNELS
    if impl != "reference"
]

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning:triton")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Run:
    """A tiny model and one step's examples, the same at every step; SGD with momentum."""

    def __init__(self, dtype, impl, *, tied=False, contrast="paper"):
        # Triton's interpreter takes milliseconds for a row.
        examples, length = (4, 7) if impl == "triton" else (8, 12)
        tokenizer = tiny_tokenizer("word")
        with torch.device("cpu"):  # the same draws everywhere
            self.model = tiny_model("llama", tokenizer, tied=tied)
            self.pivots = expand_vocabulary(self.model, tokenizer)
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(len(tokenizer), (examples, length), generator=generator)
        self.model.to(DEVICE, dtype)
        self.contrast = contrast
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.ids = ids.to(DEVICE)
        three = torch.tensor([self.pivots.safe, self.pivots.unsafe, self.pivots.rethink])
        self.ids[:, 4:7] = three
        self.targets = F.pad(self.ids[:, 1:], (0, 1), value=-100)
        self.targets[:, :2] = -100
        self.window = {
            "n_items": (self.targets != -100).sum(),
            "class_counts": (self.targets[..., None] == three).sum((0, 1)),
        }

    def gradients(self, impl, split=None):
        """The loss and the gradients of one step, cut into micro-batches, in float64."""
        self.optimizer.zero_grad()
        split = split or len(self.ids)
        total = torch.zeros((), dtype=torch.float64)
        for ids, targets in zip(self.ids.split(split), self.targets.split(split), strict=True):
            hidden = self.model.model(input_ids=ids).last_hidden_state.flatten(0, 1)
            weight, targets = self.model.lm_head.weight, targets.flatten()
            options = {"contrast": self.contrast, "impl": impl, **self.window}
            loss = r2d_loss(hidden, weight, targets, self.pivots, **options).total
            loss.backward()
            total += loss.detach().double()
        return total, flat(parameter.grad for parameter in self.model.parameters())

    def state(self):
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def step_from(self, state, impl, split=None):
        """Loss, gradients and the parameters after the step, in float64, of a step begun there."""
        model, optimizer = copy.deepcopy(state)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        loss, gradient = self.gradients(impl, split)
        self.step()
        return loss, gradient, flat(self.model.parameters())

    def step(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


@pytest.mark.parametrize(
    ("dtype", "split", "chunk_bytes"),
    [
        (torch.float32, None, None),
        (torch.bfloat16, None, None),
        (torch.float32, None, 8000),
        (torch.bfloat16, None, 8000),
        (torch.float32, 2, None),
        (torch.float32, 3, None),
    ],
)
@pytest.mark.parametrize("contrast", ["paper", "all"])
@pytest.mark.parametrize("impl", IMPLS)
def test_through_fifty_steps_no_further_from_float64_than_the_plain_loss(
    monkeypatch, impl, contrast, dtype, split, chunk_bytes
):
    """Along one path: errors that a path of one's own multiplies would say nothing of the loss.

    The plain loss takes each step whole, whatever ``split`` cuts it into.
    """
    if chunk_bytes is not None:
        for name in ("CPU_CHUNK_BYTES", "GPU_CHUNK_BYTES"):
            monkeypatch.setattr(fused, name, chunk_bytes)
    run, exact = Run(dtype, impl, contrast=contrast), Run(torch.float64, impl, contrast=contrast)
    errors = {name: torch.zeros(STEPS, 3) for name in (impl, "reference")}
    losses = []
    for step in range(STEPS):
        begin = run.state()
        true_loss, true_gradient, true_parameters = exact.step_from(begin, "reference")
        for name, error in errors.items():  # the plain loss's step comes last, and is gone on from
            cut = split if name == impl else None
            loss, gradient, parameters = run.step_from(begin, name, cut)
            error[step, 0] = (loss - true_loss).abs()
            error[step, 1] = (gradient - true_gradient).norm()
            error[step, 2] = (parameters - true_parameters).norm()
        losses.append(float(true_loss))
    assert losses[-1] < 0.5 * losses[0]
    ours, plain = errors[impl], errors["reference"]
    assert (ours.sum(0) <= 1.5 * plain.sum(0)).all(), (ours.sum(0), plain.sum(0))
    # Step by step for the parameters. A step's gradient is of 15 or 72 targets, and in some steps
    # one of the two is lucky (each by a factor of 2): any five in a row. The loss is one number,
    # where luck is all, and is bounded by the sum over the fifty.
    assert (ours[:, 2] <= 1.5 * plain[:, 2]).all(), (ours / plain)[:, 2].amax()
    fives, of_plain = (errors[:, 1].unfold(0, 5, 1).mean(1) for errors in (ours, plain))
    assert (fives <= 1.5 * of_plain).all(), (fives / of_plain).amax()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
def test_fifty_steps_of_its_own_end_where_the_plain_loss_ends(impl, tied):
    runs = {name: Run(torch.float64, impl, tied=tied) for name in (impl, "reference")}
    for _ in range(STEPS):
        (loss, gradient), (plain, plain_gradient) = (
            run.gradients(name) for name, run in runs.items()
        )
        torch.testing.assert_close(loss, plain, rtol=1e-9, atol=0)
        torch.testing.assert_close(gradient, plain_gradient, rtol=1e-7, atol=1e-9)
        for run in runs.values():
            run.step()
    ours, plain = (flat(run.model.parameters()) for run in runs.values())
    torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("split", [2, 1, 3])
@pytest.mark.parametrize("impl", [*IMPLS, "reference"])
def test_however_a_step_is_cut_it_is_the_same_step(impl, split):
    whole, cut = Run(torch.float64, impl), Run(torch.float64, impl)
    for _ in range(STEPS):
        (loss, gradient), (parts, gradients) = (
            whole.gradients(impl),
            cut.gradients(impl, split),
        )
        torch.testing.assert_close(parts, loss, rtol=1e-9, atol=0)
        torch.testing.assert_close(gradients, gradient, rtol=1e-7, atol=1e-9)
        for run in (whole, cut):
            run.step()
