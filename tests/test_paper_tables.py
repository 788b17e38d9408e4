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
from r2d_core.sampling_error import mean_over_seeds

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
    ours = pd.DataFrame(columns=["scope", "attack", "method", "harmful", "base_seed"])
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


def all_comparisons() -> list[paper_tables.Comparison]:
    asr = paper_tables.read_paper(PAPER).query("metric == 'ASR'")
    tables = {number: asr[asr["table"] == number] for number in (1, 2, 4, 5)}
    r2d = tables[1][tables[1]["method"] == "R2D"]
    return paper_tables.compared(tables[1], tables[2], tables[4], pd.concat([r2d, tables[5]]))


def test_a_model_is_one_draw():
    made = rows(
        ("A", "PAIR", "R2D", 4), ("A", "PAIR", "other", 6), ("A", "GCG", "R2D", 10),
        ("A", "GCG", "other", 20), ("B", "PAIR", "R2D", 5), ("B", "PAIR", "other", 5),
        ("C", "GCG", "R2D", 1), ("C", "GCG", "other", 10),
    )  # fmt: skip
    comparison = paper_tables.Comparison("4", paper_tables.gaps(made, "R2D", "other"))
    (row,) = paper_tables.over_models([comparison]).to_dict("records")
    # -6, 0 and -9: mean -5, standard deviation 4.583, t(2) = 4.303.
    assert row["difference"] == pytest.approx(-5) and row["models"] == 3
    assert row["low"] == pytest.approx(-5 - 4.3027 * 4.5826 / 3**0.5, abs=1e-3)
    assert (row["lower"], row["higher"], row["p_sign"]) == (2, 0, 0.5)
    assert row["p_student"] == row["p_holm"] == pytest.approx(0.1994, abs=1e-3)


def test_the_prose_says_what_the_models_say_together(page: dict[str, str]):
    found = paper_tables.over_models(all_comparisons())
    by_title = found.set_index("title")
    prose = " ".join((ROOT / "book" / "paper.md").read_text().split())
    for other, said in (("w/o CPO", "Without CPO"), ("w/o pivot", "without pivots")):
        row = by_title.loc[f"R2D against {other}"]
        assert f"{said} {'the attacks succeed more often ' * (other == 'w/o CPO')}" \
            f"in {row['lower']} of {row['models']}" in prose  # fmt: skip
        assert f"{-row['difference']:.1f} " in prose
        assert f"[{-row['high']:.1f}, {-row['low']:.1f}]" in prose
        assert row["p_sign"] < 0.05 and row["p_holm"] < 0.05
        assert f"({row['p_holm_all']:.0%} each)" in prose
    assert f"all {len(found)} rows" in prose
    tuned, thoughtless, analysis = (
        by_title.loc[f"R2D against {other}"] for other in ("SafetyTunedLlamas", "R2D-n", "IA")
    )
    assert tuned["low"] < 0 < tuned["high"] and (tuned["lower"], tuned["models"]) == (6, 6)
    assert (thoughtless["lower"], thoughtless["models"]) == (3, 3) and thoughtless["p_sign"] > 0.05
    assert (analysis["lower"], analysis["models"]) == (3, 4)
    # "the six languages of the toy world bear out neither"
    for run in ("languages", "languages_again"):
        toy = (ROOT / "book" / run / "differences.md").read_text()
        assert "R2D without CPO:** not borne out" in toy
        assert "R2D without pivots:** not borne out" in toy
    (line,) = (line for line in text_of(page["paper_models.md"]) if "w/o CPO" in line)
    assert line.endswith("| 7 | -7.5 [-12.6, -2.5] | 7 of 7 | 0.016 | 0.011 | 0.015 (0.074) |")


def test_the_prose_counts_as_the_tables_do():
    comparisons = all_comparisons()
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


def test_beside_ours_stand_the_models_that_all_methods_share():
    paper = paper_tables.read_paper(PAPER).query("metric == 'ASR' and table in (1, 4)")
    hits = {30: 3, 31: 0, 32: 12}
    ours = pd.DataFrame(
        [
            ("whole", "refinement", "r2d", int(number < hits[base]), base)
            for base in hits
            for number in range(120)
        ],
        columns=["scope", "attack", "method", "harmful", "base_seed"],
    )
    page = paper_tables._beside(paper, ours)
    here = mean_over_seeds([Rate(k, 120) for k in hits.values()])
    low, high = 100 * here.low, 100 * here.high
    assert f"4.2 <small>[{low:.1f}, {high:.1f}], n=3</small> <small>(0 to 10)</small>" in page
    models = set.intersection(
        *(set(paper[paper["method"] == label]["model"]) for label in paper_tables.ARMS)
    )
    assert len(models) == 4  # as the page says
    one = paper.query("task == 'PAIR' and method == 'R2D'").drop_duplicates("model")
    values = one[one["model"].isin(models)]["value"].astype(int)
    theirs = mean_over_seeds([Rate(value, 100) for value in values])
    assert f"<td>{values.mean():.1f} <small>[{100 * theirs.low:.1f}, " in page
    assert f"n=4</small> <small>({values.min()} to {values.max()})</small>" in page
    assert page.count("<td>not run</td>") == 14
    assert page.count(", n=") == 15 + 1
    assert "PAIR / refinement search" in page and "w/o CPO / R2D without CPO" in page
