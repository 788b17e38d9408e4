"""R2D against the others, language by language: rows, words, and what is no finding."""

from __future__ import annotations

import pandas as pd
import pytest
from test_measure import measurement
from test_measure import results as results_of

from r2d_core.errors import InputError
from r2d_core.toy.languages import (
    ANSWERED_EXACTLY,
    LOOK_ALIKES_REFUSED,
    by_language,
    in_words,
    over_languages,
)
from r2d_core.toy.results import Results

BASES = (0, 1, 2, 3)


def share(harmful: int, of: int = 20) -> list[str]:
    return ["harmful"] * harmful + ["refused"] * (of - harmful)


def experiment(**harmful: list[int]) -> Results:
    """Under the wrapper each method's harmful responses of 20, language by language."""
    return results_of(
        {
            method: {
                (b, 0): measurement({"wrapper": share(n)})
                for b, n in zip(BASES, counts, strict=True)
            }
            for method, counts in harmful.items()
        }
    )


def test_a_row_a_method_and_outcome_with_a_language_for_one_draw():
    found = experiment(refusal=[18, 20, 19, 17], r2d=[1, 2, 0, 1])
    table = over_languages(found)
    wrapper, alike, exact = table.to_dict("records")
    assert [wrapper["outcome"], alike["outcome"], exact["outcome"]] == [
        "wrapper", LOOK_ALIKES_REFUSED, ANSWERED_EXACTLY,
    ]  # fmt: skip
    assert (wrapper["method"], wrapper["n"], wrapper["languages"]) == ("refusal", 80, 4)
    assert (wrapper["reference"], wrapper["other"]) == pytest.approx((0.05, 0.925))
    assert wrapper["difference"] == pytest.approx(-0.875) and wrapper["lower"] == 4
    assert wrapper["p_holm"] < 0.01
    # The benign rows of `results_of` are the attacks' own: refused where they were not harmful.
    assert alike["difference"] == pytest.approx(0.875) and exact["difference"] == 0
    each = by_language(found)
    of_wrapper = each[each["outcome"] == "wrapper"]
    assert of_wrapper["base_seed"].tolist() == list(BASES)
    assert of_wrapper["difference"].tolist() == pytest.approx([-0.85, -0.9, -0.95, -0.8])
    assert of_wrapper["n"].tolist() == [20] * 4
    said = in_words(table)
    assert said.startswith(
        "- **R2D against Refusal tuning:** harmful less often under held-out wrapper (5% against "
        "92%: -88 [-98, -77]); refuses more look-alikes (95% against 8%: +88 [+77, +98]); not "
        "borne out: harmless answered exactly."
    )


def test_one_language_the_other_way_is_no_finding():
    table = over_languages(experiment(refusal=[20] * 4, r2d=[0, 1, 2, 1]))
    assert "harmful less often under held-out wrapper" in in_words(table)
    contradicted = table.assign(higher=1, lower=3)
    assert contradicted["p_holm"].min() < 0.05
    assert "less often" not in in_words(contradicted)


def test_each_other_method_is_a_family_of_its_own():
    one = over_languages(experiment(refusal=[10, 8, 12, 9], r2d=[4, 5, 3, 6]))
    both = over_languages(
        experiment(refusal=[10, 8, 12, 9], r2d=[4, 5, 3, 6], r2d_no_cpo=[4, 6, 3, 5])
    )
    pd.testing.assert_frame_equal(both[both["method"] == "refusal"], one, check_dtype=False)
    p = one["p_value"].tolist()
    assert one["p_holm"].iloc[0] == pytest.approx(min(1, p[0] * sum(q >= p[0] for q in p)))


def test_forged_reasoning_is_compared_between_methods_of_one_format_alone():
    runs = {
        method: {(b, 0): measurement({"forged_reasoning": share(n)}) for b in BASES}
        for method, n in {"refusal": 1, "r2d": 19, "r2d_no_cpo": 18, "r2d_no_pivots": 2}.items()
    }
    table = over_languages(results_of(runs))
    forged = table[table["outcome"] == "forged_reasoning"]["method"].tolist()
    assert forged == ["r2d_no_cpo"]
    assert set(table["method"]) == {"refusal", "r2d_no_cpo", "r2d_no_pivots"}


def test_the_untrained_model_is_compared_with_nothing():
    with pytest.raises(InputError, match="nothing to compare 'r2d' with"):
        over_languages(experiment(vanilla=[20] * 4, r2d=[0] * 4))
    with pytest.raises(InputError, match="no method 'r2d'; it has"):
        over_languages(experiment(refusal=[20] * 4))
    one = {m: {(0, 0): measurement({"wrapper": share(3)})} for m in ("refusal", "r2d")}
    with pytest.raises(InputError, match="several languages, got 1"):
        over_languages(results_of(one))


def test_a_request_that_stands_twice_is_named():
    found = experiment(refusal=[3] * 4, r2d=[1] * 4)
    twice = Results(pd.concat([found.attacks] * 2), found.benign, {}, pd.DataFrame())
    with pytest.raises(InputError, match="'base0/report-seen-0' stands twice under 'wrapper'"):
        by_language(twice)
