"""Figures: what is drawn, that it can stand among others in a page, that names stay names."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pandas as pd
import pytest

from r2d_core import plots
from r2d_core.errors import InputError
from r2d_core.plots.counts import interval
from r2d_core.sampling_error import budget_curve

HOSTILE = '$\\frac{a}{b}$ <script>alert("x")</script> & \x1b[31m'
SVG = "{http://www.w3.org/2000/svg}"


def table(methods=("refusal", "r2d"), attacks=("direct", "wrapper")) -> pd.DataFrame:
    rows = []
    for base_seed, seed in ((0, 0), (0, 1), (1, 0)):
        for method in methods:
            for at, attack in enumerate(attacks):
                harmful = 4 * at + seed
                rows.append(
                    {
                        "method": method, "base_seed": base_seed, "seed": seed, "attack": attack,
                        "split": "test", "scope": "whole", "n": 40, "harmful": harmful,
                        "refused": 30 - harmful, "correct": 4, "garbled": 6,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def log() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "step": [0, 10, 20] * 2,
            "method": ["r2d"] * 3 + ["r2d_no_cpo"] * 3,
            "seed": [0] * 6,
            "cross_entropy": [3.0, 1.0, 0.5] * 2,
            "pivot_accuracy_safe": [0.1, 0.9, 1.0] * 2,
            "pivot_accuracy_unsafe": [0.2, 0.8, None] * 2,
        }
    )


def paper() -> pd.DataFrame:
    rows = [
        ("Llama", "PAIR", "Vanilla", 52),
        ("Llama", "PAIR", "R2D", 1),
        ("Qwen", "GCG", "R2D", 0),
    ]
    return pd.DataFrame(rows, columns=["model", "task", "method", "value"])


def budgets() -> pd.DataFrame:
    curve = budget_curve([1, 4, None, 30])
    return pd.concat(
        curve.assign(attack=attack, method=method)
        for attack, method in (("pair", "r2d"), ("pair", "refusal"), ("tap", "r2d"))
    )


def scaling() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": ["products", "ours", "naive"] * 2,
            "tokens": [1024] * 3 + [2048] * 3,
            "seconds": [1.0, 1.1, 3.0, 2.0, 2.2, None],
        }
    )


def trajectories() -> pd.DataFrame:
    return pd.DataFrame(
        {"words": [10, 20, 30], "steps": [1, 2, 2], "safe": [1, 2, 0], "unsafe": [0, 0, 2],
         "rethink": [1, 0, 0]}
    )  # fmt: skip


def outcomes() -> pd.DataFrame:
    """Two methods, twelve requests each, all seeds of a request doing the same."""
    return pd.DataFrame(
        {
            "method": method, "base_seed": 0, "seed": seed, "attack": attack, "split": "seen",
            "scope": "whole", "n": 1, "harmful": int(at < 3), "refused": int(at >= 3),
            "correct": 0, "garbled": 0, "behavior": f"request {at}",
        }
        for method in ("r2d", "refusal")
        for attack in ("direct", "wrapper")
        for seed in range(9)
        for at in range(12)
    )  # fmt: skip


def rates() -> pd.DataFrame:
    return pd.DataFrame(
        {"title": ["ours", "theirs"], "outcome": "direct", "successes": [3, 0], "n": [24, 0]}
    )


def differences() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of refusal tuning under two attacks, of R2D without CPO under one, in two languages."""
    single = pd.DataFrame(
        [("refusal", "direct", -0.5), ("refusal", "direct", -0.7), ("refusal", "wrapper", 0.1),
         ("refusal", "wrapper", 0.3), ("r2d_no_cpo", "direct", 0.0), ("r2d_no_cpo", "direct", 0.2)],
        columns=["method", "outcome", "difference"],
    )  # fmt: skip
    mean = single.groupby(["method", "outcome"], sort=False)["difference"].mean().reset_index()
    return mean.assign(low=mean["difference"] - 0.3, high=mean["difference"] + 0.3), single


FIGURES: dict[str, Callable[[str], plots.Figure]] = {
    "heatmap": lambda alt: plots.asr_heatmap(table(), alt=alt),
    "intervals": lambda alt: plots.asr_intervals(table(), alt=alt),
    "ablation": lambda alt: plots.ablation_intervals(table(), alt=alt, methods=("r2d",)),
    "outcomes": lambda alt: plots.outcome_bars(table(), alt=alt),
    "trade-off": lambda alt: plots.over_refusal_vs_asr(table(), table(), alt=alt),
    "training": lambda alt: plots.training_curves(log(), alt=alt),
    "paper": lambda alt: plots.paper_intervals(paper(), alt=alt),
    "budgets": lambda alt: plots.budget_curves(budgets(), alt=alt),
    "scaling": lambda alt: plots.benchmark_lines(
        scaling(), "tokens", "seconds", alt=alt, floor="products"
    ),
    "data": lambda alt: plots.training_data(trajectories(), alt=alt),
    "rates": lambda alt: plots.rate_intervals(rates(), alt=alt),
    "differences": lambda alt: plots.difference_intervals(*differences(), alt=alt),
    "trade-off of rates": lambda alt: plots.trade_off(
        pd.concat([rates()[:1], rates()[:1].assign(outcome="other")]), "direct", "other", alt=alt
    ),
}


def text_of(figure: plots.Figure) -> list[str]:
    root = ElementTree.fromstring(figure.markup)
    return ["".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_can_stand_in_a_page_of_either_theme(name):
    figure = FIGURES[name]("what it shows, <b>said</b>")
    root = ElementTree.fromstring(figure.markup)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "what it shows, <b>said</b>"
    assert root.findtext(f"{SVG}title") == "what it shows, <b>said</b>"
    assert "<b>" not in figure.markup
    assert "currentColor" in figure.markup and plots.INK not in figure.markup
    assert root.find(f".//{SVG}style") is None  # matplotlib's would restyle the whole page
    assert "<?xml" not in figure.markup and "<!DOCTYPE" not in figure.markup
    assert "mathdefault" not in figure.markup  # what a logarithmic axis writes by itself
    ids = re.findall(r'\bid="([^"]+)"', figure.markup)
    referred = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', figure.markup)
    assert len(ids) == len(set(ids))
    assert {a or b for a, b in referred} <= set(ids)
    bundle = figure._repr_mimebundle_()
    assert figure.markup in bundle["text/html"] and figure.alt in bundle["text/plain"]


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


LOOKS = [look for _, *look in plots.METHODS.values()]


@pytest.mark.parametrize("background", ["#ffffff", "#14181e"])  # the book's themes
def test_every_colour_stands_out_from_either_background(background):
    outcomes = [colour for colour, _ in plots.OUTCOMES.values()]
    pivots = [colour for colour, _ in plots.PIVOTS.values()]
    for colour in {*(colour for colour, _ in LOOKS), *outcomes, *pivots}:
        low, high = sorted(luminance(each) for each in (colour, background))
        assert (high + 0.05) / (low + 0.05) >= 3, (colour, background)


def test_no_two_methods_look_alike():
    assert len(LOOKS) == len({colour for colour, _ in LOOKS}) == len({m for _, m in LOOKS})


def test_the_ids_of_two_figures_differ_and_those_of_one_are_stable():
    def ids(figure):
        return set(re.findall(r'\bid="([^"]+)"', figure.markup))

    one, same, other = (plots.asr_intervals(table(), alt=alt) for alt in ("one", "one", "other"))
    assert one.markup == same.markup
    assert ids(one) and not ids(one) & ids(other)


def test_the_heatmap_prints_pooled_rates_and_counts_and_says_what_was_not_run():
    rows = table()
    rows = rows[~((rows["method"] == "refusal") & (rows["attack"] == "wrapper"))]
    shown = text_of(plots.asr_heatmap(rows, alt="a"))
    assert "1%" in shown and "1/120" in shown  # direct: 0 + 1 + 0 of 3 x 40
    assert "11%" in shown and "13/120" in shown
    assert shown.count("not run") == 1


def test_what_has_no_rate_says_why():
    """Nothing that was said could be read, or nothing was asked."""
    other = pd.DataFrame({"title": ["ours"], "outcome": "pair", "successes": [1], "n": [24]})
    shown = text_of(plots.rate_intervals(pd.concat([rates(), other]), alt="a"))
    assert (shown.count("unparsable"), shown.count("not run")) == (1, 1)


def test_differences_have_a_panel_an_outcome_and_a_marker_a_language():
    table, single = differences()
    figure = plots.difference_intervals(table, single, alt="a")
    shown = text_of(figure)
    assert {"direct request", "held-out wrapper", "−100", "+100"} <= set(shown)
    assert shown.count("not compared") == 1
    fewer = plots.difference_intervals(table, single[:1], alt="a")
    assert figure.markup.count("<use ") - fewer.markup.count("<use ") == 5


def test_budget_curves_have_a_panel_an_attack_and_name_each_method_once():
    shown = text_of(plots.budget_curves(budgets(), alt="a"))
    assert {"PAIR", "TAP"} <= set(shown)
    assert shown.count("R2D") == 1 and shown.count("refusal tuning") == 1


def test_a_benchmark_is_drawn_with_its_floor_and_its_contenders():
    shown = text_of(
        plots.benchmark_lines(scaling(), "tokens", "seconds", alt="a", floor="products")
    )
    assert {"products", "ours", "naive", "1,024", "2,048"} <= set(shown)
    assert {"1", "2"} & set(shown)


def test_training_data_is_counted_in_the_unit_it_has():
    counted = text_of(plots.training_data(trajectories(), alt="a"))
    assert "length in words" in counted and {"3", "2", "1"} <= set(counted)
    tokens = trajectories().rename(columns={"words": "tokens"})
    assert "length in tokens" in text_of(plots.training_data(tokens, alt="a"))


def test_the_outcome_bars_show_all_four_labels():
    assert {"harmful", "refused", "correct", "garbled"} <= set(
        text_of(plots.outcome_bars(table(), alt="a"))
    )


def test_hostile_names_are_drawn_as_they_are():
    rows = table(methods=("r2d", HOSTILE), attacks=(HOSTILE,))
    for draw in (plots.asr_intervals, plots.outcome_bars, plots.asr_heatmap):
        figure = draw(rows, alt=HOSTILE)
        assert "<script" not in figure.markup
        assert any("$\\frac" in text for text in text_of(figure))


def test_a_trace_shows_tokens_as_text_and_names_its_pivots():
    tokens = [
        plots.TraceToken("the"),
        plots.TraceToken(" request", 0.2, 0.1),
        plots.TraceToken(" [RETHINK]"),
        plots.TraceToken(" <img src=x onerror=alert(1)>"),
        plots.TraceToken(" [UNSAFE] ", 0.03, 0.96),
        plots.TraceToken("no ."),
    ]
    shown = "".join(ElementTree.fromstring(
        re.sub("<style>.*?</style>", "", plots.pivot_trace(tokens, alt="a").markup)
    ).itertext())  # fmt: skip
    assert shown == (
        "model the request [RETHINK] <img src=x onerror=alert(1)> [UNSAFE]"
        "P(safe) 0.03 · P(unsafe) 0.96 no ."
    )
    markup = plots.pivot_trace(tokens, alt='a "trace"', prompt="<b>hi</b>").markup
    assert "<img" not in markup and "<b>hi" not in markup
    assert "&lt;img src=x onerror=alert(1)&gt;" in markup
    assert markup.index("r2d-step r2d-rethink") < markup.index("r2d-step r2d-unsafe")
    assert "P(safe) 0.03 · P(unsafe) 0.96" in markup
    assert "r2d-step r2d-answer" in markup
    assert 'aria-label="a &quot;trace&quot;"' in markup


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: plots.asr_heatmap(table(), alt=" "), "needs alt"),
        (lambda: plots.outcome_bars(table(), alt="a", scope="answer"), "no rows of the scope"),
        (lambda: plots.asr_heatmap(table().drop(columns="n"), alt="a"), "lacks the columns n"),
        (lambda: plots.ablation_intervals(table(("refusal",)), alt="a"), "no rows of the method"),
        (lambda: plots.training_curves(log().drop(columns="step"), alt="a"), "no column 'step'"),
    ],
)
def test_bad_input_is_one_line(draw, says):
    with pytest.raises(InputError, match=says) as caught:
        draw()
    assert "\n" not in str(caught.value)


def test_a_figure_is_saved_whole(tmp_path):
    figure = plots.asr_intervals(table(), alt="a")
    figure.save(tmp_path / "figure.svg")
    assert ElementTree.parse(tmp_path / "figure.svg").getroot().get("aria-label") == "a"


def test_a_table_is_whole_and_escaped() -> None:
    frame = pd.DataFrame({"response": ["<think> a </think>", "<script>x()</script>"] * 60})
    markup = plots.table(frame, caption="a < b", index=False).markup
    assert "<script>" not in markup and "<think>" not in markup
    assert markup.count("&lt;think&gt; a &lt;/think&gt;") == 60
    assert "<caption>a &lt; b</caption>" in markup


def test_a_table_formats_numbers_and_names_what_is_missing() -> None:
    frame = pd.DataFrame({"rate": [0.123456, None]})
    markup = plots.table(frame, number="{:.2f}", missing="not run").markup
    assert "0.12<" in markup and "not run" in markup


def test_nine_runs_of_a_request_leave_the_interval_of_one():
    """Drawn from single outcomes, seeds do not narrow an interval; drawn from counts, they do."""
    some = outcomes()
    one = interval(some[(some["seed"] == 0) & (some["method"] == "r2d")], "harmful")
    nine = interval(some[some["method"] == "r2d"], "harmful")
    assert nine == pytest.approx(one) and nine[0] == 25.0
    counted = interval(some[some["method"] == "r2d"].drop(columns="behavior"), "harmful")
    assert counted[0] == 25.0 and counted[2] - counted[1] < (nine[2] - nine[1]) / 3
    for draw in (plots.asr_intervals, plots.ablation_intervals):
        wide, narrow = (draw(t, alt="a").markup for t in (some, some.drop(columns="behavior")))
        assert wide != narrow
    wide, narrow = (
        plots.over_refusal_vs_asr(t, t, alt="a").markup
        for t in (some, some.drop(columns="behavior"))
    )
    assert wide != narrow


def test_bounds_that_a_table_brings_are_drawn():
    own, wilson = rates().assign(low=0.01, high=0.99), rates()
    some = plots.rate_intervals(own, alt="a").markup
    assert some != plots.rate_intervals(wilson, alt="a").markup
    mean = plots.rate_intervals(own.assign(rate=0.5), alt="a").markup  # and not successes / n
    assert mean != some
    missing = own.assign(low=float("nan"), high=float("nan"))
    drawn = [plots.rate_intervals(each, alt="a").markup for each in (missing, wilson)]
    assert drawn[0] == drawn[1]
