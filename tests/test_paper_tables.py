"""The comparisons on the page of the paper's numbers."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import fisher_exact

from r2d_core.errors import InputError
from r2d_core.metrics import Rate
from r2d_core.sampling_error import fisher_power

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "book" / "paper_results.csv"
sys.path.insert(0, str(ROOT / "experiments"))
import paper_tables  # noqa: E402


def rows(*cells: tuple[str, str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(cells, columns=["model", "task", "method", "value"])


def test_a_gap_is_tested_corrected_and_costed():
    made = rows(
        ("A", "PAIR", "R2D", 4),
        ("A", "PAIR", "other", 27),
        ("B", "PAIR", "R2D", 5),
        ("B", "PAIR", "other", 5),
        ("B", "GCG", "R2D", 9),  # has no counterpart
    )
    first, second = paper_tables.gaps(made, "R2D", "other")
    p = fisher_exact([[4, 96], [27, 73]]).pvalue
    assert (first.model, first.percent, first.other_percent) == ("A", 4, 27)
    assert first.p == pytest.approx(p)
    assert first.corrected == pytest.approx(2 * p)  # the smaller of two
    assert 20 < first.needed < 60  # power of this gap at n=100 is above 99%
    # Were R2D never the only one to fail: fewer, since only six pairs must differ.
    assert 20 < first.paired < first.needed
    assert (second.p, second.corrected, second.needed, second.paired) == (1, 1, None, None)


def test_a_method_that_no_cell_holds_is_refused():
    with pytest.raises(InputError, match="both R2D and R2D-q"):
        paper_tables.gaps(rows(("A", "PAIR", "R2D", 4)), "R2D", "R2D-q")


def test_the_counts_are_the_papers():
    asr = paper_tables.read_paper(PAPER).query("metric == 'ASR'")
    page = paper_tables.pages(
        paper_tables.read_paper(PAPER),
        pd.DataFrame(columns=["scope", "attack", "method", "harmful", "n"]),
    )
    some = paper_tables.gaps(asr[asr["table"] == 1], "R2D", "SafetyTunedLlamas")
    assert len(some) == 18
    assert sum(gap.percent < gap.other_percent for gap in some) == 11
    # Qwen2.5-14B under PAIR: 0 against 41.
    assert min(gap.corrected for gap in some) < 1e-9
    assert (
        "R2D against SafetyTunedLlamas</th><td>18</td><td>11</td><td>2</td>"
        in (page["paper_noise.md"])
    )
    assert page["paper_gaps.md"].count("<table") == 9


def test_prompts_needed_have_the_power_that_the_page_claims():
    """Four of five Fisher tests, at the small rates above all, where the paper lives."""
    made = rows(
        *((f"{low}-{high}", "PAIR", name, value)
          for low, high in ((0, 4), (0, 11), (0, 41), (1, 6), (2, 11))
          for name, value in (("R2D", low), ("other", high)))
    )  # fmt: skip
    for gap in paper_tables.gaps(made, "R2D", "other"):
        rates = gap.percent / 100, gap.other_percent / 100
        assert fisher_power(gap.needed - 1, *rates) < 0.8 <= fisher_power(gap.needed, *rates)


def test_every_rate_beside_ours_has_its_interval_and_n():
    paper = paper_tables.read_paper(PAPER).query("metric == 'ASR' and table in (1, 4)")
    ours = pd.DataFrame(
        [("whole", "refinement", "r2d", 1, 60), ("whole", "refinement", "r2d", 2, 60)],
        columns=["scope", "attack", "method", "harmful", "n"],
    )
    page = paper_tables._beside(paper, ours)
    here = Rate(3, 120)
    assert f"2.5 <small>[{100 * here.low:.1f}, {100 * here.high:.1f}], n=120</small>" in page
    # R2D under PAIR: the four models that tables 1 and 4 share are counted once.
    models = paper.query("task == 'PAIR' and method == 'R2D'").drop_duplicates("model")
    assert len(models) == 9
    assert f"n=900</small> <small>(9 models: 0 to {models['value'].astype(int).max()})" in page
    assert page.count("<td>not run</td>") == 14
    assert page.count(", n=") == 15 + 1
