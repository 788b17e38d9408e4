"""The paper's tables as the book shows them: each rate with the interval that its n leaves.

The paper prints percentages of n = 100 prompts without intervals. Here they get Wilson's, tests of
their differences with the number of prompts that each gap would need, what its models say together,
and beside them the rates of the six languages on the attacks that are the nearest analogue. The
input is ``book/paper_results.csv``.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest, fisher_exact, ttest_1samp

from r2d_core.attack_titles import attack_title
from r2d_core.errors import InputError
from r2d_core.metrics import Rate, holm
from r2d_core.plots import paper_intervals
from r2d_core.sample_size import behaviors_needed, pairs_needed
from r2d_core.sampling_error import mean_over_seeds, student_margin
from r2d_core.toy.arms import TITLES

N = 100  # prompts behind each of the paper's attack success rates
ANALOGUES = {"PAIR": "refinement", "GCG": "gcg_answer", "JBC": "wrapper"}
ARMS = {
    "Vanilla": "vanilla",
    "SafetyTunedLlamas": "refusal",
    "R2D": "r2d",
    "w/o CPO": "r2d_no_cpo",
    "w/o pivot": "r2d_no_pivots",
}


def read_paper(path: Path) -> pd.DataFrame:
    """The rows of ``paper_results.csv``: table, model, task, method, metric, value."""
    try:
        paper = pd.read_csv(path, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the page on the paper is made from it") from None
    missing = {"table", "model", "task", "method", "metric", "value"} - set(paper.columns)
    if missing:
        raise InputError(f"{path}: the columns {', '.join(sorted(missing))} are missing")
    return paper


def pages(paper: pd.DataFrame, ours: pd.DataFrame) -> dict[str, str]:
    """The generated parts of the page on the paper, by file name, as MyST Markdown.

    ``ours`` holds the outcomes under attack of an experiment of several languages
    (`outcomes.by_scope`).
    """
    asr = paper[paper["metric"] == "ASR"]
    main, reasoning = asr[asr["table"] == 1], asr[asr["table"] == 2]
    ablation, prompting = asr[asr["table"] == 4], asr[asr["table"] == 5]
    # Table 5 has no rows of R2D: its models are those of table 1.
    of_prompting = main["model"].isin(prompting["model"]) & (main["method"] == "R2D")
    beside_r2d = pd.concat([main[of_prompting], prompting])
    comparisons = compared(main, reasoning, ablation, beside_r2d)
    chosen = main[main["method"].isin(["Vanilla", "SafetyTunedLlamas", "R2D"])]
    return {
        "paper_figure_1.md": _figure(
            chosen,
            "The paper's attack success rates without defence, with SafetyTunedLlamas and with "
            "R2D, for six models and three attacks, with 95% intervals. Most intervals of the two "
            "trained defences overlap.",
        ),
        "paper_figure_2.md": _figure(
            reasoning,
            "The paper's attack success rates of three reasoning models as they are, after R2D, "
            "with R2D as a prompt and with R2D's thinking left out, under three attacks, with 95% "
            "intervals. Those of R2D with and without its thinking overlap everywhere.",
        ),
        "paper_figure_4.md": _figure(
            ablation,
            "The paper's ablation: attack success rates of R2D, R2D without CPO and R2D without "
            "pivots, for seven models and three attacks, with 95% intervals.",
        ),
        "paper_figure_5.md": _figure(
            beside_r2d,
            "The paper's attack success rates of three defences by prompt, RPO, Self-Reminder and "
            "IA, and of R2D, for four models and three attacks, with 95% intervals. Most overlap "
            "with R2D's.",
        ),
        "paper_table_1.md": _asr_tables(main),
        "paper_table_2.md": _asr_tables(reasoning),
        "paper_words.md": _words_table(paper[paper["metric"] == "words"]),
        "paper_table_3.md": _accuracy_table(paper[paper["table"] == 3]),
        "paper_table_4.md": _asr_tables(ablation),
        "paper_table_5.md": _asr_tables(prompting),
        "paper_noise.md": _counted(comparisons),
        "paper_models.md": _models(over_models(comparisons)),
        "paper_defences.md": _defences([each for each in comparisons if each.table == "1"]),
        "paper_gaps.md": _gap_tables(comparisons),
        "paper_beside_ours.md": _beside(pd.concat([main, ablation]), ours),
    }


def _figure(rows: pd.DataFrame, alt: str) -> str:
    figure = paper_intervals(rows, n=N, alt=alt)
    return _raw(f'<div class="r2d-figure">{figure.markup}</div>')


def _asr_tables(rows: pd.DataFrame) -> str:
    parts = []
    methods = list(dict.fromkeys(rows["method"]))
    for task, of_task in rows.groupby("task", sort=False):
        cells = {(row.model, row.method): float(str(row.value)) for row in of_task.itertuples()}
        body = [
            [_th(model), *(_rate_cell(cells.get((model, method))) for method in methods)]
            for model in dict.fromkeys(of_task["model"])
        ]
        parts.append(_table(f"{task}: attack success rate, %", ["model", *methods], body))
    return "\n\n".join(parts)


def _rate_cell(value: float | None) -> str:
    if value is None:
        return "<td>–</td>"
    rate = Rate(round(value * N / 100), N)
    return f"<td>{value:.0f} <small>{_interval(rate)}, n={rate.n}</small></td>"


def _words_table(rows: pd.DataFrame) -> str:
    cells = {(row.model, row.method): float(str(row.value)) for row in rows.itertuples()}
    methods = list(dict.fromkeys(rows["method"]))
    body = [
        [_th(model), *(f"<td>{cells[model, method]:.0f}</td>" for method in methods)]
        for model in dict.fromkeys(rows["model"])
    ]
    return _table("Length in words, as the paper gives it", ["model", *methods], body)


def _accuracy_table(rows: pd.DataFrame) -> str:
    cells = {(row.model, row.task, row.method): float(str(row.value)) for row in rows.itertuples()}
    tasks = list(dict.fromkeys(rows["task"]))
    body = []
    for model in dict.fromkeys(rows["model"]):
        line = [_th(model)]
        for task in tasks:
            before, after = cells[model, task, "Vanilla"], cells[model, task, "R2D"]
            line.append(f"<td>{before:.1f} → {after:.1f} <small>{after - before:+.1f}</small></td>")
        body.append(line)
    return _table("Accuracy, %: before → after R2D training, difference", ["model", *tasks], body)


@dataclass(frozen=True)
class Gap:
    """One cell of the paper in which two methods are compared: percentages of N prompts each.

    ``p`` is Fisher's exact test of the two counts as if their prompts were different ones (the
    single verdicts are not published), ``corrected`` Holm's over the cells of the same comparison;
    ``needed`` the prompts per method at which four of five such tests would find a gap of this
    size (`sample_size.behaviors_needed`), ``paired`` those that McNemar's test on common prompts
    would need at least, were one method never the only one to fail (`sample_size.pairs_needed`);
    both None where there is no gap.
    """

    model: str
    attack: str
    method: str
    other: str
    percent: float
    other_percent: float
    p: float
    corrected: float
    needed: int | None
    paired: int | None


# Of each pair of rates once: the sum over all outcomes takes a moment, and pairs come again.
_needed, _paired = cache(behaviors_needed), cache(pairs_needed)


def gaps(rows: pd.DataFrame, method: str, other: str) -> list[Gap]:
    """The cells (model and attack) of rows that hold both methods, in the order of the rows.

    Raises InputError where no cell holds both: a method misspelt would otherwise look like one
    that was never compared.
    """
    cells = {(row.model, row.task, row.method): float(str(row.value)) for row in rows.itertuples()}
    both = [
        (model, task, value, cells[model, task, other])
        for (model, task, name), value in cells.items()
        if name == method and (model, task, other) in cells
    ]
    if not both:
        raise InputError(f"paper_results.csv: no model and attack has both {method} and {other}")
    raw = []
    for *_, a, b in both:
        hits, others = round(a * N / 100), round(b * N / 100)
        raw.append(float(fisher_exact([[hits, N - hits], [others, N - others]]).pvalue))
    return [
        Gap(
            str(model), str(task), method, other, a, b, p, corrected,
            needed=None if a == b else _needed(min(a, b) / 100, max(a, b) / 100),
            paired=None if a == b else _paired(abs(a - b) / 100, 0.0),
        )
        for (model, task, a, b), p, corrected in zip(both, raw, holm(raw), strict=True)
    ]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """R2D and another method in all cells of the paper's ``table`` that have both."""

    table: str
    gaps: list[Gap]

    @property
    def title(self) -> str:
        return f"{self.gaps[0].method} against {self.gaps[0].other}"

    @property
    def clear(self) -> list[Gap]:
        """The cells where the two differ by more than chance, each taken alone."""
        return [gap for gap in self.gaps if gap.p < 0.05]

    @property
    def holding(self) -> list[Gap]:
        """Those that are left after Holm's correction over the cells of the comparison."""
        return [gap for gap in self.gaps if gap.corrected < 0.05]


def compared(
    main: pd.DataFrame, reasoning: pd.DataFrame, ablation: pd.DataFrame, beside_r2d: pd.DataFrame
) -> list[Comparison]:
    """R2D against every other method of tables 1, 2, 4 and 5, whose attack success rates these are.

    ``beside_r2d``: table 5 with the rows of R2D from table 1.
    """
    return [
        Comparison(table, gaps(rows, "R2D", other))
        for table, rows in (
            ("1", main), ("2", reasoning), ("4", ablation), ("5, R2D of 1", beside_r2d)
        )
        for other in dict.fromkeys(rows["method"])
        if other != "R2D"
    ]  # fmt: skip


def over_models(comparisons: list[Comparison]) -> pd.DataFrame:
    """Each comparison with a model for one draw: its mean difference over its attacks, in points.

    Columns: title, table, models, difference (R2D - the other), low and high (95%, Student's over
    the models), lower and higher (in how many models R2D's mean is), p_student and p_sign, and
    p_holm, Student's corrected over the comparisons of the paper's table, p_holm_all over all.
    """
    rows = []
    for each in comparisons:
        gaps = pd.DataFrame([(g.model, g.percent - g.other_percent) for g in each.gaps])
        by_model = gaps.groupby(0, sort=False)[1].mean().to_numpy()
        mean, margin = float(np.mean(by_model)), student_margin(by_model)
        lower, higher = int((by_model < 0).sum()), int((by_model > 0).sum())
        rows.append(
            {"title": each.title, "table": each.table, "models": len(by_model)}
            | {"difference": mean, "low": mean - margin, "high": mean + margin}
            | {"lower": lower, "higher": higher}
            | {"p_student": float(ttest_1samp(by_model, 0).pvalue)}
            | {"p_sign": float(binomtest(lower, lower + higher).pvalue)}
        )
    found = pd.DataFrame(rows)
    p_values = found.groupby("table", sort=False)["p_student"]
    return found.assign(
        p_holm=p_values.transform(lambda p: holm(p.tolist())),
        p_holm_all=holm(found["p_student"].tolist()),
    )


def _models(found: pd.DataFrame) -> str:
    heads = ["comparison", "table", "models", "mean difference, points", "R2D lower in", "p, sign",
             "p, Student", "corrected (over all rows)"]  # fmt: skip
    body = [
        [
            _th(row["title"]),
            f"<td>{html.escape(row['table'])}</td>",
            f"<td>{row['models']}</td>",
            f"<td>{row['difference']:+.1f} <small>[{row['low']:+.1f}, {row['high']:+.1f}]</small>"
            "</td>",
            f"<td>{row['lower']} of {row['models']}</td>",
            f"<td>{row['p_sign']:.2g}</td>",
            f"<td>{row['p_student']:.2g}</td>",
            f"<td>{row['p_holm']:.2g} <small>({row['p_holm_all']:.2g})</small></td>",
        ]
        for row in found.to_dict("records")
    ]
    return _table(
        "Attack success rates compared, the mean over the attacks of each model being one draw "
        "[95% interval, Student's over the models]",
        heads,
        body,
    )


def _counted(comparisons: list[Comparison]) -> str:
    """For each comparison: in how many cells the two differ by more than chance."""
    heads = ["comparison", "table", "cells", "first is lower", "first is higher",
             "by more than chance (p < 0.05)", "also after Holm's correction"]  # fmt: skip
    body = []
    for each in comparisons:
        cells = [
            html.escape(each.table),
            str(len(each.gaps)),
            str(sum(gap.percent < gap.other_percent for gap in each.gaps)),
            str(sum(gap.percent > gap.other_percent for gap in each.gaps)),
            _lower_higher(each.clear),
            _lower_higher(each.holding),
        ]
        body.append([_th(each.title), *(f"<td>{cell}</td>" for cell in cells)])
    return _table("Attack success rates compared, two-sided Fisher tests", heads, body)


def _defences(comparisons: list[Comparison]) -> str:
    """For each defence and attack: its rate over the models, and where its gap to R2D holds."""
    tasks = list(dict.fromkeys(gap.attack for gap in comparisons[0].gaps))

    def rate(percents: list[float]) -> str:
        return _pooled(Rate(round(sum(percents) * N / 100), N * len(percents)))

    own = [
        rate([gap.percent for gap in comparisons[0].gaps if gap.attack == task]) for task in tasks
    ]
    body = [[_th("R2D"), *(f"<td>{cell}</td>" for cell in own), "<td>–</td>"]]
    for each in comparisons:
        line = [_th(each.gaps[0].other)]
        for task in tasks:
            of_task = [gap for gap in each.gaps if gap.attack == task]
            holds = [gap for gap in each.holding if gap.attack == task]
            line.append(
                f"<td>{rate([gap.other_percent for gap in of_task])} "
                f"{_holding(holds, len(of_task))}</td>"
            )
        line.append(f"<td>{_holding(each.holding, len(each.gaps))}</td>")
        body.append(line)
    return _table(
        "Attack success rate, %, over the models [95% interval], and in how many models the gap "
        "to R2D holds after Holm's correction",
        ["defence", *tasks, "all three"],
        body,
    )


def _holding(some: list[Gap], of: int) -> str:
    lower = sum(gap.percent < gap.other_percent for gap in some)
    higher = f", higher in {len(some) - lower}" if len(some) > lower else ""
    return f"R2D lower in {lower} of {of}{higher}"


def _lower_higher(some: list[Gap]) -> str:
    lower = sum(gap.percent < gap.other_percent for gap in some)
    return f"{lower} lower, {len(some) - lower} higher" if some else "0"


def _gap_tables(comparisons: list[Comparison]) -> str:
    heads = ["model", "attack", "%", "other, %", "p", "p, corrected", "prompts needed",
             "if paired, at least"]  # fmt: skip
    parts = []
    for each in comparisons:
        body = [
            [
                _th(gap.model),
                f"<td>{html.escape(gap.attack)}</td>",
                _rate_cell(gap.percent),
                _rate_cell(gap.other_percent),
                f"<td>{gap.p:.2g}</td>",
                f"<td>{'<b>' * (gap.corrected < 0.05)}{gap.corrected:.2g}"
                f"{'</b>' * (gap.corrected < 0.05)}</td>",
                f"<td>{'no gap' if gap.needed is None else gap.needed}</td>",
                f"<td>{'no gap' if gap.paired is None else gap.paired}</td>",
            ]
            for gap in each.gaps
        ]
        parts.append(_table(f"{each.title} (table {each.table})", heads, body))
    return "\n\n".join(parts)


def _beside(asr: pd.DataFrame, ours: pd.DataFrame) -> str:
    # What the ablations repeat from the main table is counted once.
    cells = asr.drop_duplicates(["model", "task", "method"]).astype({"value": float})
    cells = cells[cells["method"].isin(ARMS)]
    of_all = cells.groupby("model")["method"].nunique()
    cells = cells[cells["model"].isin(of_all.index[of_all == len(ARMS)])]
    whole = ours[ours["scope"] == "whole"]
    body = []
    for task, attack in ANALOGUES.items():
        for label, method in ARMS.items():
            values = cells[(cells["task"] == task) & (cells["method"] == label)]["value"]
            here = whole[(whole["attack"] == attack) & (whole["method"] == method)]
            languages = here.groupby("base_seed")["harmful"].agg(["sum", "count"]).to_numpy()
            body.append(
                [
                    _th(f"{task} / {attack_title(attack)}"),
                    f"<td>{html.escape(label)} / {html.escape(TITLES[method])}</td>",
                    _of_draws([Rate(round(value * N / 100), N) for value in values]),
                    _of_draws([Rate(int(hits), int(n)) for hits, n in languages]),
                ]
            )
    heads = ["attack: paper / here", "method: paper / here", "paper: mean over models",
             "here: mean over languages"]  # fmt: skip
    return _table(
        "Attack success rate, %: the paper's models and our languages [95% interval over them] "
        "(their range)",
        heads,
        body,
    )


def _of_draws(rates: list[Rate]) -> str:
    """A cell: the mean over models or languages, whose rates these are."""
    if len(rates) < 2:
        return "<td>not run</td>"
    mean, each = mean_over_seeds(rates), [100 * rate.rate for rate in rates]
    bounds = f"[{100 * mean.low:.1f}, {100 * mean.high:.1f}], n={mean.n}"
    return (
        f"<td>{100 * mean.estimate:.1f} <small>{bounds}</small> "
        f"<small>({min(each):.0f} to {max(each):.0f})</small></td>"
    )


def _pooled(rate: Rate) -> str:
    return f"{100 * rate.rate:.1f} <small>{_interval(rate)}, n={rate.n}</small>"


def _interval(rate: Rate) -> str:
    return f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _th(text: object) -> str:
    return f'<th scope="row">{html.escape(str(text))}</th>'


def _table(caption: str, heads: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(each)}</th>' for each in heads)
    rows = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    return _raw(
        '<div class="r2d-scroll"><table class="dataframe r2d-numbers">'
        f"<caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _raw(markup: str) -> str:
    return f"`````{{raw}} html\n{markup}\n`````"
