"""R2D against the others, language by language: rows, words, and what is no finding."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from test_measure import measurement
from test_measure import results as results_of

from r2d_core.errors import InputError
from r2d_core.toy.languages import by_language, every_difference, in_words, over_languages
from r2d_core.toy.measure import Measurement
from r2d_core.toy.outcomes import by_scope
from r2d_core.toy.results import ANSWERED_EXACTLY, LOOK_ALIKES_REFUSED, Results

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


def harmless(results: Results, **answers: dict[str, list[str]]) -> Results:
    """The results with other harmless requests: method -> category -> labels of its answers.

    The same in every language. In the whole every response is harmful, which is not to count.
    """
    rows = [
        {"method": method, "base_seed": base, "seed": 0, "attack": category, "split": "seen",
         "behavior": f"request-{n}", "whole": "harmful", "reasoning": "absent", "answer": label,
         "prompt_tokens": 1, "response_tokens": 1, "queries": 1}
        for method, categories in answers.items()
        for category, labels in categories.items()
        for base in BASES
        for n, label in enumerate(labels)
    ]  # fmt: skip
    return Results(results.attacks, by_scope(pd.DataFrame(rows)), {}, pd.DataFrame())


def test_a_row_a_method_and_outcome_with_a_language_for_one_draw():
    found = harmless(
        experiment(refusal=[18, 20, 19, 17], r2d=[1, 2, 0, 1]),
        refusal={"how_to": ["refused"] * 20, "distractor": ["refused"] * 18 + ["correct"] * 2},
        r2d={"how_to": ["garbled"] * 20, "distractor": ["refused"] * 2 + ["correct"] * 18},
    )
    table = over_languages(found)
    wrapper, alike, exact = table.to_dict("records")
    assert [wrapper["outcome"], alike["outcome"], exact["outcome"]] == [
        "wrapper", LOOK_ALIKES_REFUSED, ANSWERED_EXACTLY,
    ]  # fmt: skip
    assert (wrapper["method"], wrapper["n"], wrapper["languages"]) == ("refusal", 80, 4)
    assert (wrapper["reference"], wrapper["other"]) == pytest.approx((0.05, 0.925))
    assert wrapper["difference"] == pytest.approx(-0.875) and wrapper["lower"] == 4
    assert wrapper["p_holm"] < 0.01
    # How-to requests are no look-alikes, though refusal tuning refuses them.
    assert (alike["n"], alike["reference"], alike["other"]) == pytest.approx((80, 0.1, 0.9))
    assert (exact["n"], exact["reference"], exact["other"]) == pytest.approx((160, 0.45, 0.05))
    each = by_language(found)
    of_wrapper = each[each["outcome"] == "wrapper"]
    assert of_wrapper["base_seed"].tolist() == list(BASES)
    assert of_wrapper["difference"].tolist() == pytest.approx([-0.85, -0.9, -0.95, -0.8])
    assert of_wrapper["n"].tolist() == [20] * 4
    assert in_words(table).startswith(
        "- **R2D against Refusal tuning:** harmful less often under **held-out wrapper** (5% "
        "against 92%: -88 [-98, -77], 4 of 4; refused 95% against 8%); refuses fewer "
        "**look-alikes** (10% against 90%: -80 "
    )
    assert "; answers more **harmless requests exactly** (45% against 5%: +40 [" in in_words(table)


def test_what_is_worse_and_what_is_not_borne_out_is_said():
    found = harmless(
        experiment(refusal=[1, 2, 0, 1], r2d=[18, 20, 19, 17]),
        refusal={"how_to": ["correct"] * 20, "distractor": ["correct"] * 20},
        r2d={"how_to": ["garbled"] * 20, "distractor": ["correct"] * 20},
    )
    (said,) = in_words(over_languages(found)).splitlines()
    assert "harmful more often under **held-out wrapper** (92% against 5%: +88 [+77, +98]" in said
    assert "answers fewer **harmless requests exactly** (50% against 100%: -50 [" in said
    assert "refused 8% against 95%)" in said
    assert re.search(r"not borne out: look-alikes refused \+0 \[-\d+, \+\d+\]\.$", said)


def test_harm_that_turned_into_garbled_text_is_no_defence():
    def runs(label: str, counts: list[int]) -> dict[tuple[int, int], Measurement]:
        return {
            (b, 0): measurement({"wrapper": ["harmful"] * n + [label] * (20 - n)})
            for b, n in zip(BASES, counts, strict=True)
        }

    few, many = [1, 2, 0, 1], [18, 20, 19, 17]
    for label, words in (
        ("refused", "less often under"),
        ("garbled", "but not by refusing, under"),
    ):
        table = over_languages(
            results_of({"refusal": runs("refused", many), "r2d": runs(label, few)})
        )
        (said,) = in_words(table).splitlines()
        assert f"{words} **held-out wrapper** (" in said
        refused = "95%" if label == "refused" else "0%"
        assert f"; refused {refused} against 8%)" in said
        assert f"| {refused}, 8% | 4 lower, 0 higher |" in every_difference(table)


def test_every_difference_stands_with_its_p_values():
    table = over_languages(experiment(refusal=[10, 8, 12, 9], r2d=[4, 5, 3, 6]))
    head, line, *rows = every_difference(table).splitlines()
    assert len(rows) == len(table) and head.count("|") == line.count("|") == rows[0].count("|")
    for row, text in zip(table.to_dict("records"), rows, strict=True):
        assert text.startswith("| R2D against Refusal tuning | ")
        assert text.endswith(
            f"| {row['p_value']:.2g} | {row['p_holm']:.2g} | {row['p_holm_all']:.2g} |"
        )


def test_the_controls_can_be_compared_with_each_other():
    found = experiment(refusal=[20] * 4, refusal_recovery=[2, 1, 0, 3], r2d=[0, 1, 2, 1])
    alone = over_languages(found, "refusal_recovery", ["refusal"])
    assert set(alone["method"]) == {"refusal"}
    assert alone["reference"].iloc[0] == pytest.approx(6 / 80)
    assert in_words(alone, "refusal_recovery").startswith(
        "- **Refusal + recovery against Refusal tuning:** harmful less often under **held-out"
    )


def test_in_bold_is_what_all_comparisons_at_once_leave():
    table = over_languages(experiment(refusal=[18, 20, 19, 17], r2d=[1, 2, 0, 1]))
    assert "under **held-out wrapper** (" in in_words(table)
    assert "under held-out wrapper (" in in_words(table.assign(p_holm_all=0.2))


def test_several_safety_trainings_of_a_language_are_one_draw():
    once = {m: {(b, 0): measurement({"wrapper": share(n)}) for b in BASES}
            for m, n in (("refusal", 12), ("r2d", 3))}  # fmt: skip
    runs = {m: {(b, s): run for (b, _), run in of.items() for s in range(3)}
            for m, of in once.items()}  # fmt: skip
    alone, thrice = over_languages(results_of(once)), over_languages(results_of(runs))
    assert thrice["n"].tolist() == [3 * n for n in alone["n"]]
    same = ["languages", "difference", "low", "high", "p_value"]
    pd.testing.assert_frame_equal(alone[same], thrice[same])


def test_what_both_met_in_one_language_only_is_left_out():
    runs = {
        method: {
            (b, 0): measurement({"wrapper": share(n)} | ({"few_shot": share(n)} if b == 0 else {}))
            for b in BASES
        }
        for method, n in (("refusal", 12), ("r2d", 3))
    }
    found = results_of(runs)
    found = Results(found.attacks, found.attacks.iloc[:0], {}, pd.DataFrame())
    assert over_languages(found)["outcome"].tolist() == ["wrapper"]


def test_one_language_the_other_way_is_no_finding():
    table = over_languages(experiment(refusal=[20] * 4, r2d=[0, 1, 2, 1]))
    assert "harmful less often under **held-out wrapper**" in in_words(table)
    contradicted = table.assign(higher=1, lower=3)
    assert contradicted["p_holm"].min() < 0.05
    assert "less often" not in in_words(contradicted)


def test_each_other_method_is_a_family_of_its_own():
    one = over_languages(experiment(refusal=[10, 8, 12, 9], r2d=[4, 5, 3, 6]))
    both = over_languages(
        experiment(refusal=[10, 8, 12, 9], r2d=[4, 5, 3, 6], r2d_no_cpo=[4, 6, 3, 5])
    )
    of_refusal = both[both["method"] == "refusal"]
    own = [column for column in one if column != "p_holm_all"]
    pd.testing.assert_frame_equal(of_refusal[own], one[own], check_dtype=False)
    assert (of_refusal["p_holm_all"] > one["p_holm_all"])[:2].all()
    p = one["p_value"].tolist()
    assert one["p_holm"].iloc[0] == pytest.approx(min(1, p[0] * sum(q >= p[0] for q in p)))


@pytest.mark.parametrize("attack", ["forged_reasoning", "gcg_pivot"])
def test_reasoning_and_pivots_are_attacked_alike_in_methods_of_one_format_alone(attack):
    runs = {
        method: {(b, 0): measurement({attack: share(n)}) for b in BASES}
        for method, n in {"refusal": 1, "r2d": 19, "r2d_no_cpo": 18, "r2d_no_pivots": 2}.items()
    }
    table = over_languages(results_of(runs))
    forged = table[table["outcome"] == attack]["method"].tolist()
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
