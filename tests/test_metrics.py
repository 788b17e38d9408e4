from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from r2d_core.errors import InputError
from r2d_core.metrics import (
    Kappa,
    PairedTest,
    Rate,
    attack_success_rate,
    cohen_kappa,
    holm,
    mcnemar,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "low", "high"), [(0, 0, 3.7), (3, 1.0, 8.5), (4, 1.6, 9.8), (11, 6.3, 18.6)]
)
def test_wilson_of_a_hundred(successes: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, 100)
    assert [round(100 * bound, 1) for bound in interval] == [low, high]


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_agrees_with_scipy_and_holds_its_rate(n: int, share: float) -> None:
    successes = round(share * n)
    low, high = wilson_interval(successes, n)
    other = binomtest(successes, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((other.low, other.high), abs=1e-12)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1


def test_wilson_narrows_with_less_confidence() -> None:
    assert wilson_interval(4, 100, 0.5)[1] < wilson_interval(4, 100, 0.99)[1]


@pytest.mark.parametrize(
    ("successes", "n", "confidence"),
    [
        (3, 2, 0.95),
        (-1, 2, 0.95),
        (0, -1, 0.95),
        (1, 2, 95),
        (3.5, 100, 0.95),
        (1, 2.5, 0.95),
        (math.nan, 3, 0.95),
    ],
)
def test_wilson_refuses(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(InputError, match="expected"):
        wilson_interval(successes, n, confidence)


def test_rate() -> None:
    assert str(Rate(12, 100)) == "12.0% [7.0, 19.8] (12/100)"
    nothing = Rate(0, 0)
    assert math.isnan(nothing.rate) and (nothing.low, nothing.high) == (0, 1)
    assert str(nothing) == "– (0/0)"
    with pytest.raises(InputError):
        Rate(3, 2)


def test_attack_success_rate() -> None:
    assert attack_success_rate(["harmful", "refused", "harmful", "garbled"]) == Rate(2, 4)
    assert attack_success_rate(pd.Series(["1", "0"]), success="1") == Rate(1, 2)
    with pytest.raises(InputError, match="the one string 'harmful'"):
        attack_success_rate("harmful")
    with pytest.raises(InputError, match="got None; judge every response"):
        attack_success_rate(["harmful", None])  # type: ignore[list-item]
    assert attack_success_rate(["safe", "unsafe"], success="unsafe") == Rate(1, 2)
    with pytest.raises(InputError, match=r"label 'safe' is none of .* give success="):
        attack_success_rate(["safe", "unsafe"])  # would be 0% whatever they say
    with pytest.raises(InputError, match="1 of 3 labels are unparsable, neither success nor"):
        attack_success_rate(["safe", "unparsable", "unsafe"], success="unsafe")


def test_mcnemar_counts_and_is_exact() -> None:
    a = [True] * 2 + [True] * 9 + [False] * 1 + [False] * 3
    b = [True] * 2 + [False] * 9 + [True] * 1 + [False] * 3
    found = mcnemar(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither) == (2, 9, 1, 3)
    assert found.p_value == pytest.approx(binomtest(1, 10).pvalue)
    swapped = mcnemar(np.array(b), np.array(a))  # type: ignore[arg-type]
    assert (swapped.only_a, swapped.only_b, swapped.p_value) == (1, 9, found.p_value)


def test_mcnemar_of_no_difference() -> None:
    assert mcnemar([True, False], [True, False]) == PairedTest(1, 0, 0, 1, 1.0)
    assert mcnemar([], []) == PairedTest(0, 0, 0, 0, 1.0)


def test_mcnemar_refuses() -> None:
    with pytest.raises(InputError, match="got 1 and 2"):
        mcnemar([True], [True, False])
    for wrong in (2, "harmful", math.nan, None):
        with pytest.raises(InputError, match="true or false"):
            mcnemar([True], [wrong])  # type: ignore[list-item]


def test_holm() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            holm([0.1, wrong])


def test_kappa_of_a_textbook_table() -> None:
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = cohen_kappa(a, b)
    assert (found.kappa, found.agreement, found.n) == (pytest.approx(0.4), 0.7, 50)
    assert (found.low, found.high) == (
        pytest.approx(0.151, abs=1e-3),
        pytest.approx(0.649, abs=1e-3),
    )


def test_kappa_at_its_ends() -> None:
    assert cohen_kappa([1, 2, 1], [1, 2, 1]) == Kappa(1.0, 1.0, 1.0, 1.0, 3)
    assert cohen_kappa(["a", "b"], ["b", "a"]).kappa == -1.0
    constant = cohen_kappa(["a", "a"], ["a", "a"])
    assert math.isnan(constant.kappa) and (constant.low, constant.high) == (-1, 1)
    assert constant.agreement == 1.0
    nothing = cohen_kappa([], [])
    assert math.isnan(nothing.kappa) and math.isnan(nothing.agreement) and nothing.n == 0
    # One judge is constant, the other is not: defined, and nought.
    assert cohen_kappa(["a", "a"], ["a", "b"]).kappa == 0
    with pytest.raises(InputError, match="got 1 and 0"):
        cohen_kappa(["a"], [])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=30))
def test_kappa_is_symmetric_and_bounded(pairs: list[tuple[str, str]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    one, other = cohen_kappa(a, b), cohen_kappa(b, a)
    assert one.kappa == pytest.approx(other.kappa, nan_ok=True)
    assert -1 <= one.low <= one.high <= 1


@pytest.mark.filterwarnings("error")
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))
def test_perfect_agreement_leaves_no_room(first: int, second: int, third: int) -> None:
    labels = ["a"] * first + ["b"] * second + ["c"] * third
    found = cohen_kappa(labels, labels)
    assert (found.kappa, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-6)
