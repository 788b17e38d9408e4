"""The comparisons on the page of the paper's numbers."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import fisher_exact

from r2d_core.errors import InputError
from r2d_core.metrics import Rate
from r2d_core.sample_size import fisher_power
from r2d_core.sampling_error import clustered_rate

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


@pytest.fixture(scope="module")
def page() -> dict[str, str]:
    ours = pd.DataFrame(columns=["scope", "attack", "method", "harmful", "behavior"])
    return paper_tables.pages(paper_tables.read_paper(PAPER), ours)


def text_of(table: str) -> list[str]:
    """The rows of a table, their cells between bars."""
    lines = re.sub(r"</t[dh]>", " | ", table).split("</tr>")
    return [" ".join(re.sub("<[^>]*>", " ", line).split()) for line in lines]


def test_the_counts_are_the_papers(page: dict[str, str]):
    asr = paper_tables.read_paper(PAPER).query("metric == 'ASR'")
    some = paper_tables.gaps(asr[asr["table"] == 1], "R2D", "SafetyTunedLlamas")
    assert len(some) == 18
    assert sum(gap.percent < gap.other_percent for gap in some) == 11
    # Qwen2.5-14B under PAIR: 0 against 41.
    assert min(gap.corrected for gap in some) < 1e-9
    counted = text_of(page["paper_noise.md"])
    assert (
        "R2D against SafetyTunedLlamas | 1 | 18 | 11 | 2 | 6 lower, 0 higher | 5 lower, 0 higher |"
        in counted
    )
    assert page["paper_gaps.md"].count("<table") == 15


def test_every_row_of_the_paper_is_on_the_page(page: dict[str, str]):
    paper = paper_tables.read_paper(PAPER)
    for table in (1, 2, 4, 5):
        rates = paper.query(f"table == {table} and metric == 'ASR'")
        assert page[f"paper_table_{table}.md"].count("n=100</small>") == len(rates)
    assert page["paper_table_3.md"].count("→") - 1 == len(paper.query("table == 3")) / 2
    words = paper.query("metric == 'words'")
    shown = re.findall(r"<td>(\d+)</td>", page["paper_words.md"])
    assert sorted(shown) == sorted(words["value"].map("{:.0f}".format)) and len(words) == 12
    assert "QwQ-32B | 1057 | 358 | 795 | 29 |" in text_of(page["paper_words.md"])
    assert set(paper["metric"]) == {"ASR", "accuracy", "words"}


def test_r2d_is_compared_with_every_defence_of_table_1(page: dict[str, str]):
    rates = paper_tables.read_paper(PAPER).query("table == 1")
    table = text_of(page["paper_defences.md"])
    for name in rates["method"].unique():
        assert sum(f"{name} |" in line for line in table) == 1, name
    # Llama-3-8B 2, Qwen2-7B 3, Qwen2.5-14B 4, Mistral 2, Vicuna-7B 0, Vicuna-13B 4.
    low, high = 100 * Rate(15, 600).low, 100 * Rate(15, 600).high
    (line,) = (line for line in table if "PerplexityFilter" in line)
    assert f"| 2.5 [{low:.1f}, {high:.1f}], n=600 R2D lower in 0 of 6 |" in line
    assert line.endswith("| R2D lower in 12 of 18 |")


def test_a_gap_to_the_methods_disadvantage_is_counted_apart():
    made = rows(
        ("A", "PAIR", "R2D", 4), ("A", "PAIR", "other", 40), ("A", "PAIR", "third", 5),
        ("B", "PAIR", "R2D", 50), ("B", "PAIR", "other", 3), ("B", "PAIR", "third", 45),
    )  # fmt: skip
    comparisons = [
        paper_tables.Comparison("1", paper_tables.gaps(made, "R2D", other))
        for other in ("other", "third")
    ]
    table = text_of(paper_tables._defences(comparisons))
    assert any(line.endswith("| R2D lower in 1 of 2, higher in 1 |") for line in table)
    assert any(line.endswith("| R2D lower in 0 of 2 |") for line in table)


def test_the_prose_counts_as_the_tables_do():
    asr = paper_tables.read_paper(PAPER).query("metric == 'ASR'")
    tables = {number: asr[asr["table"] == number] for number in (1, 2, 4, 5)}
    r2d = tables[1][tables[1]["method"] == "R2D"]
    comparisons = paper_tables.compared(
        tables[1], tables[2], tables[4], pd.concat([r2d, tables[5]])
    )
    held = {
        (each.table[0], each.gaps[0].other): f"{len(each.holding)} of {len(each.gaps)}"
        for each in comparisons
    }
    prose = " ".join((ROOT / "book" / "paper.md").read_text().split())
    assert f"holds in {held['1', 'Vanilla'].replace('of', 'of the')} cells of Table 1" in prose
    assert f"in {held['2', 'Vanilla'].replace('of', 'of the')} cells of Table 2" in prose
    assert f"it holds in {held['1', 'SmoothLLM']} cells (SmoothLLM)" in prose
    assert f"{held['1', 'PerplexityFilter']} (the perplexity filter" in prose
    assert f"{held['1', 'SynonymSubstitution']} (synonym substitution)" in prose
    assert f"{held['1', 'RemoveNonDictionary']} (removal of non-dictionary words)" in prose
    assert f"{held['1', 'EraseAndCheck']} (erase-and-check)" in prose
    assert f"{held['1', 'SafetyTunedLlamas']} (SafetyTunedLlamas)" in prose
    assert f"(R2D-p) it holds in {held['2', 'R2D-p']} cells" in prose
    assert f"(R2D-n) in {held['2', 'R2D-n']}," in prose
    assert f"{held['4', 'w/o CPO']} (w/o CPO) and {held['4', 'w/o pivot']} (w/o pivot)" in prose
    counts = [held["5", name].split(" of ") for name in ("RPO", "Self-Reminder", "IA")]
    assert {of for _, of in counts} == {"12"}
    rpo, reminder, intention = (count for count, _ in counts)
    assert f"intention analysis in {rpo}, {reminder} and {intention} of 12." in prose
    against = [
        gap for each in comparisons for gap in each.holding if gap.percent > gap.other_percent
    ]
    assert not against  # "nowhere does a gap to R2D's disadvantage hold"


def test_every_generated_part_is_included_and_each_figure_has_its_words(page: dict[str, str]):
    prose = (ROOT / "book" / "paper.md").read_text()
    assert set(re.findall(r"generated/(\S+)", prose)) == set(page)
    figures = {name: text for name, text in page.items() if "figure" in name}
    assert set(figures) == {f"paper_figure_{number}.md" for number in (1, 2, 4, 5)}
    for name, markup in figures.items():
        (said,) = re.findall('aria-label="([^"]*)"', markup)
        assert "95% intervals" in said, name
    assert all(name in figures["paper_figure_5.md"] for name in ("RPO", "R2D", "Self-Reminder"))


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
        [
            ("whole", "refinement", "r2d", int(number < 3), f"request {number}")
            for number in range(120)
            for _ in range(3)  # seeds that do the same say no more than one
        ],
        columns=["scope", "attack", "method", "harmful", "behavior"],
    )
    page = paper_tables._beside(paper, ours)
    hits, asked = ours["harmful"].tolist(), ours["behavior"].tolist()
    here = clustered_rate(hits, asked)
    assert here.high > 2 * Rate(9, 360).high - here.estimate
    assert f"2.5 <small>[{100 * here.low:.1f}, {100 * here.high:.1f}], n=120</small>" in page
    # R2D under PAIR: the four models that tables 1 and 4 share are counted once.
    models = paper.query("task == 'PAIR' and method == 'R2D'").drop_duplicates("model")
    assert len(models) == 9
    assert f"n=900</small> <small>(9 models: 0 to {models['value'].astype(int).max()})" in page
    assert page.count("<td>not run</td>") == 14
    assert page.count(", n=") == 15 + 1
