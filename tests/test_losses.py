"""The loss against an independent float64 definition, written out token by token.

On the CPU, with Triton's kernels interpreted; by `make test-gpu` on a GPU, where they are compiled.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from r2d_core import losses
from r2d_core.errors import InputError
from r2d_core.kernels import KERNELS, chunked_loss, fused, read_pivots
from r2d_core.kernels.chunked import torch_counts, torch_scratch, torch_sums
from r2d_core.kernels.fused import Averages, RowTerms, bytes_of_logits, logits_buffer
from r2d_core.losses import r2d_loss
from r2d_core.pivots import PivotIds

# A row of logits ends in padding that nobody initialises: NumPy, the interpreter's, warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning:triton")

DEVICE = torch.get_default_device().type
of_the_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="about what the loss does on a CPU")

PIVOTS = SimpleNamespace(safe=3, unsafe=1, rethink=5)
IDS = (3, 1, 5)
IMPLS = list(KERNELS)
FUSED = [impl for impl in IMPLS if impl != "reference"]
KERNEL_NAMES = ["count_kernel", "contrast_kernel", "row_kernel", "sum_kernel", "scale_kernel"]
KERNEL_NAMES += ["readout_kernel"]


def naive(
    hidden,
    weight,
    targets,
    *,
    pivot_weight=1.0,
    contrast="paper",
    pivot_ce_weight=1.0,
    softcap=None,
):
    """Total, in the dtype given, one term at a time; shares no code with the package."""
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    items = [i for i in range(len(targets)) if targets[i] != -100]
    total = logits.sum() * 0
    for i in items:
        y = int(targets[i])
        factor = pivot_ce_weight if y in IDS else 1.0
        total = total - factor * (logits[i, y] - logits[i].logsumexp(0)) / len(items)
    for c, y in enumerate(IDS):
        places = [i for i in items if targets[i] == y]
        if contrast == "paper" and c == 2:
            continue
        rivals = [IDS[1 - c]] if contrast == "paper" else [each for each in IDS if each != y]
        for i in places:
            odds = sum((logits[i, rival] - logits[i, y]).exp() for rival in rivals)
            total = total + pivot_weight * torch.log1p(odds) / len(places)
    return total


def hits(hidden, weight, targets, softcap=None):
    """Of each class: how often its pivot beats the two others, and how often all tokens."""
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    correct, greedy = [0, 0, 0], [0, 0, 0]
    for z, y in zip(logits, targets.tolist(), strict=True):
        if y not in IDS or not all(z[y] > z[rival] for rival in IDS if rival != y):
            continue
        correct[IDS.index(y)] += 1
        greedy[IDS.index(y)] += int(z[y] == z.max())
    return correct, greedy


def problem(n=13, h=7, v=11, seed=0, dtype=torch.float64, ignored=0.3):
    with torch.device("cpu"):  # the same draws everywhere
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(n, h, generator=generator, dtype=torch.float64).to(dtype)
        weight = torch.randn(v, h, generator=generator, dtype=torch.float64).to(dtype)
        targets = torch.randint(v, (n,), generator=generator)
        targets[torch.rand(n, generator=generator) < ignored] = -100
    hidden, weight, targets = (x.to(DEVICE) for x in (hidden, weight, targets))
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def set_chunk_bytes(monkeypatch, number):
    for name in ("CPU_CHUNK_BYTES", "GPU_CHUNK_BYTES"):
        monkeypatch.setattr(fused, name, number)


def gradients(value, *inputs):
    grads = torch.autograd.grad(value, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


@pytest.mark.parametrize("impl", IMPLS)
@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 17),
    h=st.integers(1, 9),
    v=st.integers(6, 23),
    seed=st.integers(0, 10**6),
    ignored=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
    contrast=st.sampled_from(["paper", "all"]),
    pivot_weight=st.sampled_from([0.0, 1.0, 2.5]),
    pivot_ce_weight=st.sampled_from([0.0, 1.0, 4.0]),
    softcap=st.sampled_from([None, 1.3]),
)
def test_value_and_gradients_follow_the_definition(
    impl, n, h, v, seed, ignored, contrast, pivot_weight, pivot_ce_weight, softcap
):
    hidden, weight, targets = problem(n, h, v, seed, ignored=ignored)
    options = {
        "pivot_weight": pivot_weight,
        "contrast": contrast,
        "pivot_ce_weight": pivot_ce_weight,
        "softcap": softcap,
    }
    expected = naive(hidden, weight, targets, **options)
    actual = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl, **options)
    torch.testing.assert_close(actual.total, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(
        gradients(actual.total, hidden, weight), gradients(expected, hidden, weight), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    plain = naive(hidden, weight, targets, pivot_weight=0.0, softcap=softcap)
    torch.testing.assert_close(actual.cross_entropy, plain.detach(), rtol=1e-12, atol=1e-12)
    contrast_only = naive(hidden, weight, targets, contrast=contrast, softcap=softcap) - plain
    torch.testing.assert_close(actual.pivot, contrast_only.detach(), rtol=1e-12, atol=1e-12)
    assert actual.pivot_by_class.sum() == actual.pivot
    assert (actual.correct.tolist(), actual.greedy.tolist()) == hits(
        hidden, weight, targets, softcap
    )


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("chunk_bytes", [1, 3 * 11 * 8, 10**6])
def test_chunk_size_does_not_matter(monkeypatch, chunk_bytes, impl):
    set_chunk_bytes(monkeypatch, chunk_bytes)
    hidden, weight, targets = problem(n=40)
    weights = {"pivot_weight": 0.7, "pivot_ce_weight": 3.0}
    expected = naive(hidden, weight, targets, **weights)
    actual = r2d_loss(hidden, weight, targets, PIVOTS, **weights, impl=impl)
    torch.testing.assert_close(actual.total, expected, rtol=1e-12, atol=0)
    for got, want in zip(
        gradients(actual.total, hidden, weight), gradients(expected, hidden, weight), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("contrast", ["paper", "all"])
@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl, contrast, softcap):
    hidden, weight, targets = problem(n=7, h=3)  # few numbers: each is moved twice
    targets[:3] = torch.tensor(IDS)
    targets[3] = -100

    def total(hidden, weight):
        return r2d_loss(
            hidden, weight, targets, PIVOTS, contrast=contrast, softcap=softcap, impl=impl
        ).total

    assert torch.autograd.gradcheck(total, (hidden, weight))


@pytest.mark.parametrize("impl", IMPLS)
def test_upstream_gradient_and_repeated_backward(impl):
    hidden, weight, targets = problem()
    once = gradients(naive(hidden, weight, targets), hidden, weight)
    total = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl).total
    for factor in (-2.5, 3.0):
        grads = torch.autograd.grad(total * factor, (hidden, weight), retain_graph=True)
        for got, want in zip(grads, once, strict=True):
            torch.testing.assert_close(got, factor * want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_two_calls_on_one_weight_add_up(impl):
    hidden, weight, targets = problem()
    total = sum(r2d_loss(hidden, weight, targets, PIVOTS, impl=impl).total for _ in range(2))
    for got, want in zip(
        gradients(total, hidden, weight),
        gradients(2 * naive(hidden, weight, targets), hidden, weight),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("contrast", ["paper", "all"])
@pytest.mark.parametrize("impl", IMPLS)
def test_calls_of_one_window_add_up_to_the_whole(impl, contrast):
    hidden, weight, targets = problem(n=60)
    n_items = int((targets != -100).sum())
    class_counts = [int((targets == each).sum()) for each in IDS]
    assert min(class_counts) > 0
    whole = r2d_loss(hidden, weight, targets, PIVOTS, contrast=contrast, impl=impl)
    parts = [
        r2d_loss(
            hidden[part],
            weight,
            targets[part],
            PIVOTS,
            contrast=contrast,
            n_items=torch.tensor(n_items),
            class_counts=class_counts,
            impl=impl,
        )
        for part in (slice(0, 7), slice(7, 8), slice(8, 60))
    ]
    total = sum(part.total for part in parts)
    torch.testing.assert_close(total, whole.total, rtol=1e-12, atol=0)
    for got, want in zip(
        gradients(total, hidden, weight), gradients(whole.total, hidden, weight), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
    for name in ("cross_entropy", "pivot", "n_items", "counts", "correct", "greedy"):
        summed = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(summed, getattr(whole, name), rtol=1e-12, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_to_learn_is_a_connected_zero(impl):
    hidden, weight, targets = problem(ignored=1.0)
    loss = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl)
    assert loss.total == 0 and loss.total.requires_grad and loss.n_items == 0
    assert all(not grad.any() for grad in torch.autograd.grad(loss.total, (hidden, weight)))
    assert loss.pivot_accuracy.isnan().all()


@pytest.mark.parametrize("nought", [0, torch.tensor(0)])
@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_to_learn_in_a_whole_window(impl, nought):
    hidden, weight, targets = problem(ignored=1.0)
    counts = {"n_items": nought, "class_counts": nought + torch.zeros(3, dtype=torch.int64)}
    assert r2d_loss(hidden, weight, targets, PIVOTS, impl=impl, **counts).total == 0


@pytest.mark.parametrize("class_", [0, 1, 2])
@pytest.mark.parametrize("impl", IMPLS)
def test_one_class_alone(impl, class_):
    hidden, weight, targets = problem()
    targets.fill_(IDS[class_])
    loss = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl)
    torch.testing.assert_close(loss.total, naive(hidden, weight, targets), rtol=1e-12, atol=0)
    assert loss.counts.tolist() == [13 if c == class_ else 0 for c in range(3)]
    assert (loss.pivot == 0) == (class_ == 2)


@pytest.mark.parametrize("impl", IMPLS)
def test_what_counts_as_right(impl):
    # One row each: right and highest; right among pivots only; wrong; a tie between pivots; beats
    # the opposite but not [RETHINK]; right, and as high as another token.
    hidden = torch.eye(6, dtype=torch.float64)
    weight = torch.zeros(7, 6, dtype=torch.float64)
    weight[3, :] = torch.tensor([5.0, 5.0, 1.0, 5.0, 5.0, 5.0])
    weight[1, :] = torch.tensor([1.0, 1.0, 5.0, 5.0, 1.0, 1.0])
    weight[5, 4] = 6.0
    weight[0, 1], weight[0, 5] = 9.0, 5.0
    targets = torch.tensor([3, 3, 3, 3, 3, 3])
    loss = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl)
    assert loss.correct.tolist() == [3, 0, 0]
    assert loss.greedy.tolist() == [2, 0, 0]
    assert loss.pivot_accuracy[0] == 0.5 and loss.pivot_accuracy[1:].isnan().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_without_pivots_it_is_cross_entropy(impl):
    hidden, weight, targets = problem()
    loss = r2d_loss(hidden, weight, targets, None, impl=impl)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    assert not loss.counts.any() and loss.pivot == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_frozen_weight_and_trained_rows(impl):
    hidden, weight, targets = problem()
    d_hidden, d_weight = gradients(naive(hidden, weight, targets), hidden, weight)

    frozen = r2d_loss(hidden, weight, targets, PIVOTS, weight_grad="none", impl=impl).total
    got_hidden, got_weight = torch.autograd.grad(frozen, (hidden, weight), allow_unused=True)
    assert got_weight is None
    torch.testing.assert_close(got_hidden, d_hidden, rtol=1e-12, atol=1e-12)

    rows = torch.tensor([5, 1, 8])
    some = r2d_loss(hidden, weight, targets, PIVOTS, weight_grad="rows", rows=rows, impl=impl)
    got_hidden, got_weight = torch.autograd.grad(some.total, (hidden, weight))
    torch.testing.assert_close(got_hidden, d_hidden, rtol=1e-12, atol=1e-12)
    expected = torch.zeros_like(d_weight)
    expected[rows] = d_weight[rows]
    torch.testing.assert_close(got_weight, expected, rtol=1e-12, atol=1e-12)

    constant = r2d_loss(hidden, weight.detach(), targets, PIVOTS, impl=impl).total
    torch.testing.assert_close(gradients(constant, hidden)[0], d_hidden, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [[5, 1, 8], [3, 1, 5], [10], [0, 9]])
@pytest.mark.parametrize("contrast", ["paper", "all"])
@pytest.mark.parametrize("impl", IMPLS)
def test_row_values_stand_for_rows(impl, contrast, rows):
    hidden, weight, targets = problem(n=30)
    rows = torch.tensor(rows)
    values = torch.randn(len(rows), 7, dtype=torch.float64).requires_grad_()
    whole = weight.detach().index_copy(0, rows, values)
    expected = gradients(naive(hidden, whole, targets, contrast=contrast), hidden, values)
    loss = r2d_loss(
        hidden,
        weight,
        targets,
        PIVOTS,
        contrast=contrast,
        weight_grad="rows",
        rows=rows,
        row_values=values,
        impl=impl,
    )
    got = torch.autograd.grad(loss.total, (hidden, values, weight), allow_unused=True)
    for one, other in zip(got[:2], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert got[2] is None
    torch.testing.assert_close(loss.total, naive(hidden, whole, targets, contrast=contrast))


def test_row_values_in_float32_beside_a_bfloat16_weight():
    hidden, weight, targets = problem(dtype=torch.bfloat16)
    values = torch.randn(2, 7).requires_grad_()
    options = {"weight_grad": "rows", "rows": torch.tensor([1, 3]), "row_values": values}
    total = r2d_loss(hidden, weight, targets, PIVOTS, **options).total
    gradient = torch.autograd.grad(total, values)[0]
    assert gradient.dtype == torch.float32 and gradient.any()


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows_at_all_are_trained(impl):
    hidden, weight, targets = problem()
    values = torch.empty(0, 7, dtype=torch.float64, requires_grad=True)
    rows = {"weight_grad": "rows", "rows": torch.empty(0, dtype=torch.int64), "row_values": values}
    total = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl, **rows).total
    torch.testing.assert_close(total, naive(hidden, weight, targets), rtol=1e-12, atol=0)
    assert gradients(total, hidden, values)[1].shape == (0, 7)


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_frozen_is_no_input_of_the_graph(impl):
    hidden, weight, targets = problem()
    values = weight.detach()[:1].clone()
    for options in (
        {"weight_grad": "none"},
        {"weight_grad": "rows", "rows": ROWS, "row_values": values},
    ):
        loss = r2d_loss(hidden.detach(), weight, targets, PIVOTS, impl=impl, **options)
        assert not loss.total.requires_grad


@pytest.mark.parametrize("impl", FUSED)
def test_second_derivatives_are_refused(impl):
    hidden, weight, targets = problem()

    def penalty(impl):
        total = r2d_loss(hidden.square(), weight, targets, PIVOTS, impl=impl).total
        return torch.autograd.grad(total, hidden, create_graph=True)[0].square().sum()

    assert gradients(penalty("reference"), hidden)[0].any()
    with pytest.raises(NotImplementedError, match=r"create_graph.*use impl='reference'"):
        penalty(impl)


def test_the_share_of_the_others_is_no_difference_of_large_numbers():
    """A target that is all but certain: softmax(z) - 1 would have lost half of its digits."""
    weight = torch.zeros(300, 1)
    weight[7] = 12.0
    weight.requires_grad_()
    loss = r2d_loss(torch.ones(1, 1), weight, torch.tensor([7]), None, impl="triton")
    share = 299 * math.exp(-12) / (1 + 299 * math.exp(-12))
    assert gradients(loss.total, weight)[0][7].item() == pytest.approx(-share, rel=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_gradient_wanted(impl):
    hidden, weight, targets = problem()
    with torch.no_grad():
        total = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl).total
    assert not total.requires_grad
    torch.testing.assert_close(total, naive(hidden, weight, targets).detach())


def check_errors(
    dtype, impls, *, upstream=1.0, spread=8.0, shape=(200, 64, 96), mode="full", **options
):
    """Of the gradients, against float64: at most half as much again as the plain loss's own.

    Logits that are ``spread`` wide are rounded as much as that; beside the error which large ones
    bring to every gradient nothing else shows. ``mode`` "rows" trains the rows of two pivots.
    """
    rows = torch.tensor([1, 3])
    errors = {impl: [0.0, 0.0] for impl in ["reference", *impls]}
    for seed in range(3):
        hidden, weight, targets = problem(*shape, seed, dtype)
        weight = (weight.detach() * (spread / 8)).requires_grad_()
        inputs, trained = [hidden, weight], {}
        if mode == "rows":
            values = weight.detach()[rows].clone().requires_grad_()
            inputs = [hidden, values]
            trained = {"weight_grad": "rows", "rows": rows, "row_values": values}
        exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
        exact_weight = exact_inputs[1]
        if mode == "rows":
            exact_weight = weight.detach().double().index_copy(0, rows, exact_weight)
        exact_total = naive(exact_inputs[0], exact_weight, targets, **options)
        exact = gradients(upstream * exact_total, *exact_inputs)
        for impl in errors:
            total = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl, **trained, **options).total
            assert total.dtype == torch.float32
            for k, grad in enumerate(gradients(upstream * total, *inputs)):
                assert grad.dtype == dtype
                errors[impl][k] += float((grad.double() - exact[k]).norm())
    for impl in impls:
        for plain, ours in zip(errors["reference"], errors[impl], strict=True):
            assert ours <= 1.5 * plain, (impl, errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("contrast", ["paper", "all"])
@pytest.mark.parametrize("mode", ["full", "rows"])
def test_error_is_at_most_one_and_a_half_times_the_plain_loss(dtype, contrast, mode):
    check_errors(dtype, FUSED, contrast=contrast, mode=mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_of_a_sum_over_many_chunks(monkeypatch, dtype):
    """The weight's gradient is summed in float32, whatever it is rounded to at the end."""
    set_chunk_bytes(monkeypatch, 2048)
    like, scratch = torch.empty(0, 64, dtype=dtype), torch_scratch(dtype, False)
    assert len(logits_buffer(like, 500, 24, 1, scratch, 2048)) <= 500 / 16
    check_errors(dtype, ["chunked"], spread=1.0, shape=(800, 64, 24))


@given(st.integers(1, 5000), st.integers(1, 1500))
def test_chunks_begin_where_pointers_are_aligned(n, most):
    """But for chunks of less than 16 rows; and no chunk is over its budget, nor one too many."""
    like = torch.empty(0, 8, device="meta")
    budget = most * bytes_of_logits(like, 1, 10, 1, 0)
    rows = len(logits_buffer(like, n, 10, 1, 0, budget))
    assert 1 <= rows <= min(n, most) and (rows == n or rows % 16 == 0 or most < 16)
    assert -(-n // rows) <= -(-n // (most - most % 16 if most >= 16 else most))


@pytest.mark.parametrize("chunk_bytes", [2048, 10**6])
@pytest.mark.parametrize("upstream", [1 / 3, 1.0039, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_upstream_gradient_is_not_rounded(monkeypatch, dtype, upstream, chunk_bytes):
    set_chunk_bytes(monkeypatch, chunk_bytes)
    check_errors(dtype, ["chunked"], upstream=upstream, spread=0.125)


@pytest.mark.parametrize("upstream", [1.0, 1 / 3, -2.0])
@pytest.mark.parametrize("chunk_bytes", [None, 2048])
@pytest.mark.parametrize("impl", FUSED)
def test_gradients_that_one_product_makes_are_of_its_dtype(
    monkeypatch, impl, chunk_bytes, upstream
):
    """As on a GPU: in the memory of the first sum, and rounded once where nothing scales them."""
    monkeypatch.setattr(fused, "ROUNDING_ONCE", ("cpu", "cuda"))
    if chunk_bytes is not None:
        set_chunk_bytes(monkeypatch, chunk_bytes)
    summed, add = [], fused.add_product_

    def noted(total, gradient, hidden, size, *, first=False):
        summed.append((tuple(total.shape), total.dtype))
        add(total, gradient, hidden, size, first=first)

    monkeypatch.setattr(fused, "add_product_", noted)
    check_errors(torch.bfloat16, [impl], upstream=upstream, spread=0.125)
    of_weight = {dtype for shape, dtype in summed if shape == (96, 64)}
    assert of_weight == {torch.bfloat16 if chunk_bytes is None else torch.float32}
    assert {dtype for shape, dtype in summed if shape != (96, 64)} == {torch.bfloat16}


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("mode", ["autocast", "rows"])
def test_gradients_of_several_products_are_summed_in_float32(monkeypatch, impl, mode):
    """The rows' own is added to that of hidden states; a weight is cast a slice at a time."""
    monkeypatch.setattr(fused, "ROUNDING_ONCE", ("cpu", "cuda"))
    hidden, weight, targets = problem(dtype=torch.bfloat16)
    options = {"weight_grad": "none"}
    if mode == "rows":
        values = weight.detach()[:2].clone().requires_grad_()
        options = {"weight_grad": "rows", "rows": torch.tensor([1, 3]), "row_values": values}
    else:
        weight = weight.float()
    made, add = set(), fused.add_product_

    def noted(total, *products, **first):
        made.add((tuple(total.shape), total.dtype))
        add(total, *products, **first)

    monkeypatch.setattr(fused, "add_product_", noted)
    under_autocast(hidden, weight, targets, impl=impl, **options)
    n = int((targets != -100).sum())
    assert made - {((2, 7), torch.float32)} == {((n, 7), torch.float32)}


@pytest.mark.parametrize(("budget", "chunks"), [(110_000, 1), (38_000, 4)])
def test_more_is_held_at_once_only_where_a_sum_is_not_made_for_it(monkeypatch, budget, chunks):
    """200 rows of 96 logits take 115,200 bytes; half of a float32 [96, 64] is 12,288."""
    monkeypatch.setattr(fused, "ROUNDING_ONCE", ("cpu", "cuda"))
    set_chunk_bytes(monkeypatch, budget)
    hidden, weight, targets = problem(200, 64, 96, dtype=torch.bfloat16, ignored=0.0)
    assert bytes_of_logits(hidden, 200, 96, 1, torch_scratch(torch.bfloat16, False)) == 115_200
    lengths, product = [], fused.logits_product
    monkeypatch.setattr(
        fused, "logits_product", lambda h, *rest: lengths.append(len(h)) or product(h, *rest)
    )
    r2d_loss(hidden, weight, targets, PIVOTS, impl="chunked")
    assert len(lengths) == chunks and sum(lengths) == 200


@pytest.mark.parametrize("impl", FUSED)
def test_a_kept_graph_gives_the_same_again(monkeypatch, impl):
    """Gradients are scaled where they lie, unless they may be asked for again."""
    monkeypatch.setattr(fused, "ROUNDING_ONCE", ("cpu", "cuda"))
    hidden, weight, targets = problem(dtype=torch.bfloat16)
    total = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl).total
    first, *others, last = (
        torch.autograd.grad(total * factor, (hidden, weight), retain_graph=factor >= 0)
        for factor in (4.0, 0.0, 2.0, 4.0, -4.0)
    )
    for again in others[2]:
        assert again.any()
    for grads, factor in zip((*others, last), (0.0, 0.5, 1.0, -1.0), strict=True):
        for got, want in zip(grads, first, strict=True):
            assert torch.equal(got, factor * want)


@pytest.mark.parametrize("softcap", [None, 500.0])
@pytest.mark.parametrize("impl", FUSED)
def test_small_margin_survives_bfloat16(impl, softcap):
    """Two nearly equal pivot rows: their difference is far below the logits' rounding."""
    hidden = torch.full((1, 64), 4.0, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(6, 64, dtype=torch.bfloat16)
    weight[3, 0] += 2**-7
    loss = r2d_loss(hidden, weight, torch.tensor([3]), PIVOTS, softcap=softcap, impl=impl)
    margin = 2**-5
    if softcap is not None:
        margin = softcap * (math.tanh((256 + margin) / softcap) - math.tanh(256 / softcap))
    assert loss.pivot.item() == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_computes_in_its_dtype_and_returns_gradients_in_theirs(impl):
    hidden, weight, targets = problem(dtype=torch.float32)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        total = r2d_loss(hidden.bfloat16(), weight, targets, PIVOTS, impl=impl).total
    expected = r2d_loss(hidden.bfloat16(), weight.bfloat16(), targets, PIVOTS, impl=impl).total
    assert total == expected
    assert [grad.dtype for grad in gradients(total, hidden, weight)] == [torch.float32] * 2


def under_autocast(hidden, weight, targets, **options):
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        return r2d_loss(hidden, weight, targets, PIVOTS, **options).total


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_autocast_leaves_float64_alone(impl):
    hidden, weight, targets = problem()
    expected = r2d_loss(hidden, weight, targets, PIVOTS, impl=impl).total
    assert torch.equal(under_autocast(hidden, weight, targets, impl=impl), expected)
    with pytest.raises(InputError, match="weight: expected torch.float64 like hidden"):
        under_autocast(hidden, weight.float(), targets, impl=impl)
    with (
        torch.autocast(DEVICE, dtype=torch.float16),
        pytest.raises(InputError, match=r"got torch\.float16, which autocast made of it"),
    ):
        r2d_loss(hidden.float(), weight.float(), targets, PIVOTS, impl=impl)


@pytest.mark.parametrize("mode", ["none", "rows"])
def test_under_autocast_no_copy_of_a_frozen_weight(monkeypatch, mode):
    set_chunk_bytes(monkeypatch, 2**16)
    hidden, weight, targets = problem(20, 64, 3000, dtype=torch.float32)
    weight = weight.detach()
    options = {"weight_grad": mode}
    if mode == "rows":
        rows = torch.tensor([3, 8, 1])
        options |= {"rows": rows, "row_values": weight[rows].clone().requires_grad_()}
    inputs = [hidden, *([options["row_values"]] if mode == "rows" else [])]
    for _ in range(2):
        with Largest() as largest:
            found = torch.autograd.grad(under_autocast(hidden, weight, targets, **options), inputs)
        # Nor the logits of all rows at once, which are the rest of what is large here.
        assert largest.elements <= 2**16 / 2 < weight.numel() / 4
    wanted = torch.autograd.grad(
        under_autocast(hidden, weight, targets, impl="reference", **options), inputs
    )
    for ours, plain in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - plain).norm() <= 2e-2 * plain.norm()


@pytest.mark.parametrize("mode", ["full", "rows"])
def test_under_autocast_a_float32_gradient_is_not_rounded_to_bfloat16(mode):
    hidden, weight, targets = problem(dtype=torch.float32)
    trained, options = weight, {}
    if mode == "rows":
        trained = weight.detach()[:3].clone().requires_grad_()
        options = {"weight_grad": "rows", "rows": torch.arange(3), "row_values": trained}
    total = under_autocast(hidden, weight, targets, **options) / 3
    gradient = torch.autograd.grad(total, trained)[0]
    assert not torch.equal(gradient, gradient.bfloat16().float())


@pytest.mark.parametrize("ignored", [0.0, 0.5])
@pytest.mark.parametrize("impl", IMPLS)
def test_other_strides_and_input_left_alone(impl, ignored):
    hidden, weight, targets = problem(n=12, ignored=ignored)
    apart = torch.stack([targets, targets], dim=1)[:, 0]
    column_major = hidden.detach().T.contiguous().T.requires_grad_()
    every_other = weight.detach().repeat_interleave(2, dim=0)[::2].requires_grad_()
    assert not any(x.is_contiguous() for x in (apart, column_major, every_other))
    before = column_major.detach().clone(), every_other.detach().clone(), apart.clone()
    total = r2d_loss(column_major, every_other, apart, PIVOTS, impl=impl).total
    for got, want in zip(
        gradients(total, column_major, every_other),
        gradients(naive(hidden, weight, targets), hidden, weight),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for now, then in zip((column_major, every_other, apart), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("n", [0, 1, 7, 4095, 4096, 9000])
@pytest.mark.parametrize("pivots", [IDS, None])
def test_counts_of_more_targets_than_a_block_holds(n, pivots):
    from r2d_core.kernels.triton import triton_counts

    generator = torch.Generator(DEVICE).manual_seed(n)
    targets = torch.randint(-3, 14, (n, 2), generator=generator)  # of 11 ids
    targets = torch.where(targets == -2, -100, targets)[:, 0]
    assert n < 2 or not targets.is_contiguous()
    listed = targets.tolist()
    expected = [sum(each != -100 for each in listed)]
    expected += [listed.count(pivot) for pivot in pivots or (-1, -1, -1)]
    expected += [sum(each != -100 and not 0 <= each < 11 for each in listed)]
    for counts in (torch_counts, triton_counts):
        assert counts(targets, pivots, 11).tolist() == expected
    assert n < 4095 or min(expected) > 0


@pytest.mark.parametrize("n", [0, 1, 7, 1023, 1024, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pivots", [IDS, None])
def test_sums_over_more_rows_than_a_block_holds(n, dtype, pivots):
    """What is said of a row whose target is no pivot is not read: here it is nan."""
    from r2d_core.kernels.triton import triton_sums

    generator = torch.Generator(DEVICE).manual_seed(n)
    nll, scale, term = torch.rand(3, n, generator=generator, dtype=dtype)
    right, top = torch.rand(2, n, generator=generator) < 0.5
    targets = torch.randint(11, (n,), generator=generator)
    averages = Averages(
        torch.tensor(n + 2.0, dtype=dtype), torch.tensor([3.0, 5.0, 7.0], dtype=dtype), 0.7, 1.3
    )
    at = torch.stack([targets == each for each in IDS]).any(0)
    known = RowTerms(scale, term * at, torch.zeros(n, 3), right & at) if pivots else RowTerms(scale)
    expected = torch_sums(
        nll.double(),
        top,
        RowTerms(
            *(each if each is None or each.dtype == torch.bool else each.double() for each in known)
        ),
        targets,
        pivots,
        averages._replace(
            n_items=averages.n_items.double(), class_counts=averages.class_counts.double()
        ),
    )
    unknown = known
    if pivots:
        unknown = known._replace(term=torch.where(at, term, torch.nan), right=right | ~at)
    sums = triton_sums(nll, top, unknown, targets, pivots, averages)
    for got, want in zip(sums, expected, strict=True):
        assert got.dtype == (dtype if want.is_floating_point() else torch.int64)
        # Summed in float64 and rounded once: to the last digit.
        torch.testing.assert_close(
            got, want.to(got.dtype), rtol=2e-7 if dtype == torch.float32 else 1e-14, atol=0
        )


@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 64, 67), (31, 13, 1031), (7, 1030, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_triton_on_odd_shapes(monkeypatch, shape, dtype):
    """One row, primes, more columns than a block holds, more hidden units than one."""
    monkeypatch.setattr("r2d_core.kernels.triton.BLOCK_BYTES", 256 * 2)
    hidden, weight, targets = problem(*shape, dtype=dtype, ignored=0.2)
    # Logits that the soft cap does not flatten: there, what is left of a gradient is luck.
    weight = (weight.detach() / shape[1] ** 0.5).requires_grad_()
    targets[0] = IDS[0]

    def found(impl, *inputs):
        total = r2d_loss(*inputs, targets, PIVOTS, softcap=3.3, impl=impl).total
        return [each.double() for each in (total, *gradients(total, *inputs))]

    exact = found("reference", *(x.detach().double().requires_grad_() for x in (hidden, weight)))
    # Of a single number, where the plain loss has luck; in float32 also a GPU's fast exponential.
    rounding = torch.finfo(dtype).eps * (2 if dtype == torch.float32 else 0.5)
    for ours, plain, true in zip(
        found("triton", hidden, weight), found("reference", hidden, weight), exact, strict=True
    ):
        if dtype == torch.float64:
            torch.testing.assert_close(ours, true, rtol=1e-12, atol=1e-12)
        else:
            own = (plain - true).norm() + rounding * true.norm()
            assert (ours - true).norm() <= 1.5 * own


@pytest.mark.parametrize("impl", FUSED)
def test_compiled_around(impl):
    hidden, weight, targets = problem()

    def total(hidden, weight):
        return 2 * r2d_loss(2 * hidden, weight, targets, PIVOTS, impl=impl).total

    compiled = torch.compile(total, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, weight), total(hidden, weight), rtol=0, atol=0)
    for got, want in zip(
        gradients(compiled(hidden, weight), hidden, weight),
        gradients(total(hidden, weight), hidden, weight),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_compiled_once_for_all_counts(impl):
    """Not for each number of valid targets anew, until the compiler gives up."""
    hidden, weight, targets = problem(n=30, ignored=0.0)
    compiled = torch.compile(
        lambda: r2d_loss(hidden, weight, targets, PIVOTS, impl=impl).total, backend="aot_eager"
    )
    torch.compiler.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=4):
        for ignored in range(12):
            targets[ignored] = -100
            expected = naive(hidden, weight, targets)
            torch.testing.assert_close(compiled(), expected, rtol=1e-12, atol=0)


def test_a_compiler_takes_the_fused_loss_as_it_is():
    assert r2d_loss._torchdynamo_disable


def test_numpy_numbers_are_numbers():
    hidden, weight, targets = problem()
    ids = SimpleNamespace(**{name: np.int64(getattr(PIVOTS, name)) for name in vars(PIVOTS)})
    counts = {"n_items": np.int64(30), "class_counts": np.array([13, 14, 15])}
    total = r2d_loss(hidden, weight, targets, ids, **counts).total
    counts = {"n_items": 30, "class_counts": [13, 14, 15]}
    assert total == r2d_loss(hidden, weight, targets, PIVOTS, **counts).total


@of_the_cpu
def test_triton_needs_a_gpu_and_says_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    hidden, weight, targets = problem()
    with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU.*on cpu; use impl='auto'"):
        r2d_loss(hidden, weight, targets, PIVOTS, impl="triton")
    with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
        read_pivots(hidden, weight, IDS, impl="triton")


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk_bytes", [1, 3 * 300 * 8, None])
def test_pivots_are_read_as_from_the_logits(impl, softcap, chunk_bytes, monkeypatch):
    monkeypatch.setattr("r2d_core.kernels.triton.BLOCK_BYTES", 64 * 8)
    hidden, weight, _ = problem(n=10, v=300)
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_p = logits.log_softmax(1)
    reading = read_pivots(hidden, weight, IDS, softcap=softcap, impl=impl, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(reading.log_probs, log_p[:, IDS], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reading.entropy, -(log_p.exp() * log_p).sum(1), rtol=1e-12, atol=0)
    assert not reading.entropy.requires_grad
    nothing = read_pivots(hidden[:0], weight, IDS, impl=impl)
    assert nothing.log_probs.shape == (0, 3) and nothing.entropy.shape == (0,)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [6, 67, 300])
def test_reading_in_less_than_float64(impl, dtype, vocabulary):
    """Fewer columns than a block has, and lanes that lie beyond them all."""
    hidden, weight, _ = problem(10, 16, vocabulary, dtype=dtype)

    def from_logits(logits):
        log_p = logits.log_softmax(1)
        return log_p[:, IDS].double(), -(log_p.exp() * log_p).sum(1).double()

    exact = from_logits(hidden.double() @ weight.double().T)
    plain = from_logits((hidden @ weight.T).float())
    found = read_pivots(hidden, weight, IDS, impl=impl)
    for ours, theirs, true in zip(found, plain, exact, strict=True):
        assert (ours - true).norm() <= 1.5 * (theirs - true).norm() + 1e-7 * true.norm()


def test_reading_names_bad_input():
    hidden, weight, _ = problem()
    for pivots, shown in (
        ((3, 1, 11), r"\(3, 1, 11\)"),
        ((3, 1, 5.0), r"\(3, 1, 5.0\)"),
        ((3, 1), r"\(3, 1\)"),
        (PivotIds(3, 1, 5, 6, 7), r"PivotIds\(safe=3"),
    ):
        with pytest.raises(InputError, match=f"pivots: expected three ids from 0 to 10 .*{shown}"):
            read_pivots(hidden, weight, pivots)
    for softcap in (0.0, -1.0, math.inf, math.nan, "30"):
        with pytest.raises(InputError, match="softcap: expected None or a finite number above 0"):
            read_pivots(hidden, weight, IDS, softcap=softcap)
    with pytest.raises(InputError, match="chunk_bytes: expected None or 1 or more, got -3"):
        read_pivots(hidden, weight, IDS, chunk_bytes=-3)
    numpy_ids = np.array(IDS)
    expected = read_pivots(hidden, weight, IDS).log_probs
    assert torch.equal(read_pivots(hidden, weight, list(numpy_ids)).log_probs, expected)
    with pytest.raises(InputError, match="weight: expected torch.float64"):
        read_pivots(hidden, weight.float(), IDS)
    with pytest.raises(InputError, match="unknown impl 'tritn'"):
        read_pivots(hidden, weight, IDS, impl="tritn")


def test_the_kernels_compile_for_the_gpus_they_are_for():
    """To machine code, without a GPU: 16 bytes at a time, and (almost) no register spilt."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert {(each["kernel"], each["dtype"], each["target"]) for each in kernels} == {
        (kernel, dtype, target)
        for kernel in KERNEL_NAMES
        for dtype, target in (("bf16", 80), ("bf16", 90), ("fp32", 90), ("fp64", 90))
    }
    for each in kernels:
        capped = each["kernel"] not in ("count_kernel", "scale_kernel", "sum_kernel")
        assert each["softcap"] == ("fp64" if capped else None), each
        if each["dtype"] != "bf16":  # tests on a GPU run them; training does not
            continue
        assert each["spilled_bytes"] <= (16 if each["constants"].get("SOFTCAP") else 0), each
        if each["kernel"] in ("row_kernel", "scale_kernel"):
            writes = each["constants"].get("BACKWARD", True)  # of a chunk of logits
            assert each["wide_loads"] and bool(each["wide_stores"]) == writes, each
            # One by one only what is not in the loops: -inf in the target's place, then its
            # gradient and that of three pivots.
            alone = {"row_kernel": 5 if writes else 1, "scale_kernel": 0}[each["kernel"]]
            assert each["narrow_stores"] == alone, each


def test_triton_launches_where_the_tensors_are(monkeypatch):
    """Not on the current device: each launch is made with that of a tensor of its own current."""
    devices_of, launches = [], []

    @contextmanager
    def device_of(tensor):
        devices_of.append(tensor)
        yield
        devices_of.pop()

    class Watched:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(triton_kernels, name)

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                (current,) = devices_of
                assert current is arguments[0]
                launches.append(self.name)
                self.kernel[grid](*arguments, **options)

            return launch

    from r2d_core.kernels import triton_kernels

    for name in KERNEL_NAMES:
        monkeypatch.setattr(triton_kernels, name, Watched(name))
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    hidden, weight, targets = problem()
    r2d_loss(hidden, weight, targets, PIVOTS, impl="triton").total.backward()
    read_pivots(hidden, weight, IDS, impl="triton")
    assert set(launches) == set(KERNEL_NAMES)


class Waits(TorchFunctionMode):
    """Notes what makes Python wait for a GPU: to read a value, or to learn a result's size."""

    READS = {"tolist", "item", "cpu", "numpy", "nonzero", "argwhere", "masked_select", "unique",
             "__bool__", "__int__", "__float__", "__index__"}  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        by_mask = name in ("__getitem__", "__setitem__") and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool
            for each in (args[1] if isinstance(args[1], tuple) else args[1:2])
        )
        there = args and isinstance(args[0], torch.Tensor) and args[0].device.type == DEVICE
        if there and (name in self.READS or by_mask):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "targets_at", "waits"),
    [("full", DEVICE, 1), ("none", DEVICE, 1), ("rows", DEVICE, 2)]
    + [("full", "cpu", 0)] * (DEVICE != "cpu"),
)
@pytest.mark.parametrize("counted", [True, False])
def test_a_gpu_is_waited_for_as_often_as_the_docstring_says(
    monkeypatch, mode, targets_at, waits, counted
):
    """The kernels are not launched: the interpreter, which stands for a GPU here, reads values."""
    from r2d_core.kernels import triton_kernels

    class NotLaunched:
        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    for name in KERNEL_NAMES:
        monkeypatch.setattr(triton_kernels, name, NotLaunched())
    monkeypatch.setattr(losses, "triton_counts", torch_counts)
    if DEVICE == "cpu":  # from a GPU the counts behind the first product are read as a copy
        waits += 1
    set_chunk_bytes(monkeypatch, 3 * 64 * 8)  # several chunks
    hidden, weight, targets = problem(n=40)
    targets = targets.to(targets_at)
    options = {"weight_grad": mode}
    if mode == "rows":
        options |= {
            "rows": torch.tensor([3, 1]),
            "row_values": weight.detach()[:2].requires_grad_(),
        }
    if counted:
        options |= {"n_items": 200, "class_counts": [50, 50, 50]}
    with Waits() as waited:
        r2d_loss(hidden, weight, targets, PIVOTS, impl="triton", **options).total.backward()
        read_pivots(hidden, weight, IDS, impl="triton")
    assert len(waited.seen) == waits, waited.seen


@of_the_cpu
def test_auto_is_chunked_without_a_gpu_and_runs_without_autocast(monkeypatch):
    def chunked(*tensors, **settings):
        seen.append(torch.is_autocast_enabled("cpu"))
        return chunked_loss(*tensors, **settings)

    seen = []
    monkeypatch.setitem(KERNELS, "chunked", chunked)
    r2d_loss(*problem(), PIVOTS)
    under_autocast(*problem(dtype=torch.float32))
    assert seen == [False, False]


def test_fused_loss_says_where_it_does_not_run():
    hidden, weight = torch.zeros(13, 7, device="meta"), torch.zeros(11, 7, device="meta")
    with pytest.raises(NotImplementedError, match="cpu and cuda.* on meta; use impl='reference'"):
        chunked_loss(
            hidden,
            weight,
            problem()[2],
            None,
            pivot_weight=1.0,
            contrast="paper",
            pivot_ce_weight=1.0,
            softcap=None,
            n_valid=13,
            denominators=lambda: (13, torch.ones(3)),
            weight_grad="full",
            rows=None,
            row_values=None,
        )


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def peak_bytes(call):
    """The most that was allocated at one time during the call."""
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = highest = 0
    for _, change in changes:
        held += change
        highest = max(highest, held)
    return highest


@of_the_cpu
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_at_a_time_are_kept_to(monkeypatch, dtype, softcap):
    budget = 2**21
    set_chunk_bytes(monkeypatch, budget)
    hidden, weight, targets = problem(512, 4, 4000, dtype=dtype)
    weight = weight.detach()

    def step():
        r2d_loss(hidden, weight, targets, PIVOTS, softcap=softcap, impl="chunked").total.backward()

    def read():
        read_pivots(hidden, weight, IDS, softcap=softcap, impl="chunked")

    for call in (step, read):
        call()
        assert 0.8 * budget < peak_bytes(call) < 1.1 * budget, call


def test_chunked_never_holds_the_logits():
    hidden, weight, targets = problem(n=500, h=2, v=100, dtype=torch.float32)
    options = {"pivot_weight": 1.0, "contrast": "paper", "pivot_ce_weight": 1.0, "softcap": None}
    with Largest() as largest:
        chunked_loss(
            hidden.detach(),
            weight.detach(),
            targets,
            IDS,
            n_valid=int((targets != -100).sum()),
            denominators=lambda: (1, torch.ones(3)),
            weight_grad="full",
            rows=None,
            row_values=None,
            chunk_bytes=20 * 100 * 4,
            **options,
        )
    assert largest.elements <= 20 * 100


ROWS = torch.tensor([1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, 3, 4)}, r"hidden: expected shape \[N, H\], got \[2, 3, 4\]"),
        ({"hidden": torch.zeros(13, 7).half()}, "hidden: expected float32, .* got torch.float16"),
        ({"hidden": [1.0]}, "hidden: expected a tensor, got list"),
        ({"hidden": torch.zeros(13, 0)}, r"hidden: expected shape \[N, H\], got \[13, 0\]$"),
        ({"weight": torch.zeros(11, 6)}, r"weight: expected shape \[V, 7\] .* got \[11, 6\]"),
        ({"weight": torch.zeros(11, 7)}, "weight: expected torch.float64 like hidden, got .*32"),
        ({"targets": torch.zeros(12, dtype=torch.int64)}, r"targets: expected shape \[13\], .*12"),
        ({"targets": torch.zeros(13)}, "targets: expected torch.int64, got torch.float32"),
        (
            {"targets": torch.full((13,), 11)},
            "targets: expected ids from 0 to 10 .* got 11 at .* 0",
        ),
        ({"targets": torch.full((13,), -1)}, "targets: expected ids from 0 to 10 .* got -1"),
        ({"pivots": SimpleNamespace(safe=3, unsafe=3, rethink=5)}, "pivots: expected three diff"),
        ({"pivots": SimpleNamespace(safe=3, unsafe=1, rethink=11)}, "pivots: .*rethink=11"),
        ({"pivot_weight": "1"}, r"pivot_weight: expected float, got '1' \(str\)"),
        ({"contrast": "both"}, "contrast: expected one of 'paper', 'all', got 'both'"),
        ({"weight_grad": "some"}, "weight_grad: expected one of"),
        ({"impl": "chunk"}, "unknown impl 'chunk', did you mean 'chunked'"),
        ({"softcap": 0.0}, "softcap: expected None or a finite number above 0, got 0.0"),
        ({"softcap": "30"}, "softcap: expected None or a finite number above 0, got '30'"),
        ({"softcap": math.inf}, "softcap: expected None or a finite number above 0, got inf"),
        ({"pivot_weight": math.nan}, "pivot_weight: expected a finite number, got nan"),
        ({"pivot_ce_weight": math.inf}, "pivot_ce_weight: expected a finite number, got inf"),
        ({"pivots": 3}, "pivots: expected PivotIds or None, got 3; make them with PivotIds.from"),
        ({"pivots": SimpleNamespace(safe=3, unsafe=1.0, rethink=5)}, "pivots: .* unsafe=1.0,"),
        ({"weight": torch.zeros(11, 7, dtype=torch.float64, device="meta")}, "weight: .*is meta"),
        ({"targets": torch.zeros(13, dtype=torch.int64, device="meta")}, "targets: .*is meta"),
        (
            {"n_items": torch.zeros(13, device="meta")},
            f"n_items: expected on {DEVICE}.* or .*is meta",
        ),
        (
            {"weight_grad": "rows", "rows": ROWS.to("meta")},
            f"rows: expected on {DEVICE}.* like weight or on the CPU, is meta",
        ),
        (
            {"weight_grad": "rows", "rows": ROWS, "row_values": torch.zeros(1, 7, device="meta")},
            f"row_values: expected .* on {DEVICE}.* like weight, got .* on meta",
        ),
        (
            {"weight_grad": "rows", "rows": ROWS, "row_values": torch.zeros(1, 7).long()},
            "row_values: expected floating point numbers, got torch.int64",
        ),
        ({"row_values": torch.zeros(1, 7)}, "row_values: expected with weight_grad='rows'"),
        (
            {"weight_grad": "rows", "rows": ROWS, "row_values": torch.zeros(2, 7)},
            r"row_values: expected shape \[1, 7\], .* got \[2, 7\]",
        ),
        (
            {"weight_grad": "rows", "rows": ROWS, "row_values": [1.0]},
            "row_values: expected a tensor, got list",
        ),
        ({"rows": ROWS}, "rows: expected with weight_grad='rows' and only then"),
        ({"weight_grad": "rows"}, "rows: expected with weight_grad='rows' and only then"),
        ({"weight_grad": "rows", "rows": ROWS + 10}, "rows: expected different ids from 0 to 10"),
        ({"weight_grad": "rows", "rows": ROWS.expand(2)}, "rows: expected different ids"),
        ({"weight_grad": "rows", "rows": [1]}, "rows: expected a 1-d int64 tensor"),
        ({"n_items": -1}, "n_items: expected counts of 0 or more, got -1"),
        ({"n_items": math.nan}, "n_items: expected counts of 0 or more, got nan"),
        ({"n_items": math.inf}, "n_items: expected counts of 0 or more, got inf"),
        ({"n_items": True}, "n_items: expected counts of 0 or more, got True"),
        (
            {"n_items": torch.tensor(-5, device="cpu")},
            "n_items: expected counts of 0 or more, got -5",
        ),
        ({"n_items": 0}, r"n_items: expected counts over the whole window, at least .*\d, got 0"),
        ({"n_items": 2}, r"n_items: expected counts over the whole window, at least .*\d, got 2"),
        (
            {"targets": torch.full((13,), 3), "class_counts": [12, 0, 0]},
            r"class_counts: expected counts over .* own \[13, 0, 0\], got \[12, 0, 0\]",
        ),
        ({"class_counts": [1, 2]}, r"class_counts: expected three counts, got shape \[2\]"),
        ({"class_counts": 3}, r"class_counts: expected three counts, got shape \[\]"),
    ],
)
@pytest.mark.parametrize("impl", ["chunked", "triton"])
def test_bad_input_is_named(impl, change, message):
    """By the one before any product, by the other what only counting tells behind the first."""
    hidden, weight, targets = problem()
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, "pivots": PIVOTS}
    arguments["impl"] = impl
    with pytest.raises(InputError, match=message):
        r2d_loss(**(arguments | change))
