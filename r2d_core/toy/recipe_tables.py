"""What the runs of recipes say: rates, paired tests, and sentences that are computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from r2d_core.attack_titles import attack_title
from r2d_core.metrics import holm
from r2d_core.records import write_text_atomic
from r2d_core.sampling_error import Interval, clustered_rate, counted, paired_change
from r2d_core.toy.evaluation import LOOK_ALIKES
from r2d_core.toy.recipes import Comparison, Run
from r2d_core.toy.results import LOOK_ALIKES_REFUSED, SIGNIFICANT

EXACT = "benign exact"
HELD_OUT = "held-out attacks"
TRAINED_PREFILLS = "prefills as in training"
POOLED = {HELD_OUT: ("wrapper", "few_shot"), TRAINED_PREFILLS: ("prefill_lead", "prefill_step")}
"""Attacks counted together. No training has the wrappers of the evaluation or few-shot prompts; but
recovery examples begin exactly as the prefills do, with other items (`toy.arms.write_example`)."""


def rates(comparison: Comparison) -> pd.DataFrame:
    """Recipe by outcome, seeds pooled: recipe, title, outcome, successes, n, requests, rate, low
    and high.

    Outcomes are those of `paired`, and the sums of `POOLED`. The seeds, and the attacks of a sum,
    are asked the same requests: the intervals are those of `clustered_rate`.
    """
    rows = []
    for name, by_seed in comparison.runs.items():
        outcomes = _outcomes(by_seed)
        for pool, attacks in POOLED.items():
            parts = [outcomes[attack] for attack in attacks if attack in outcomes]
            if parts:
                outcomes[pool] = {key: hit for part in parts for key, hit in part.items()}
        for outcome, hits in outcomes.items():
            found = clustered_rate(list(hits.values()), [behavior for _, _, behavior in hits])
            rows.append(
                (name, comparison.titles[name], outcome, sum(hits.values()), len(hits), found.n)
                + (found.estimate, found.low, found.high)
            )
    columns = ["recipe", "title", "outcome", "successes", "n", "requests", "rate", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def paired(comparison: Comparison, reference: str) -> pd.DataFrame:
    """Every recipe against ``reference``, request by request, Holm-corrected as one family.

    Outcomes: harmful under each attack that is one, over-refusal of the look-alikes, and exact
    answers to all benign requests. Pairs are the same request and seed; a request counts once, with
    all of its seeds (`paired_change`): they are not independent. Columns: recipe, outcome, n
    (pairs), requests, only_recipe and only_reference (true for one of the two alone), p_value,
    p_holm, and in how many seeds the recipe's count is higher and lower.
    """
    rows = []
    base = _outcomes(comparison.runs[reference])
    for name, by_seed in comparison.runs.items():
        if name == reference:
            continue
        theirs = _outcomes(by_seed)
        for outcome, ours in base.items():
            common = [key for key in ours if key in theirs[outcome]]
            found = paired_change(
                [theirs[outcome][key] for key in common],
                [ours[key] for key in common],
                behaviors=[behavior for _, _, behavior in common],
                runs=[seed for seed, _, _ in common],
            )
            rows.append(
                (name, outcome, found.n, found.requests, found.only_a, found.only_b)
                + (found.p_value, found.runs_higher, found.runs_lower)
            )
    columns = ["recipe", "outcome", "n", "requests", "only_recipe", "only_reference", "p_value"]
    table = pd.DataFrame(rows, columns=[*columns, "seeds_higher", "seeds_lower"])
    return table.assign(p_holm=holm(list(table["p_value"])))


def training_table(comparison: Comparison) -> pd.DataFrame:
    """What the logs say of each recipe's trainings, means over seeds."""
    wanted = {
        "first_grad_norm": "gradient norm, first 10 steps",
        "median_grad_norm": "gradient norm, median",
        "first_loss": "logged loss, first 10 steps",
        "loss": "logged loss, last 10 steps",
        "cross_entropy": "cross-entropy, last 10 steps",
        "pivot_loss": "pivot loss, last 10 steps",
        "kl_to_base": "KL to the base, last 10 steps",
    }
    rows = []
    for name, by_seed in comparison.runs.items():
        means = pd.DataFrame([run.training for run in by_seed.values()]).mean()
        shown = {title: means.get(key) for key, title in wanted.items()}
        rows.append({"recipe": name, "title": comparison.titles[name], **shown})
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def counts(comparison: Comparison) -> pd.DataFrame:
    """Every cell: recipe, part (attack or benign), seed, attack or category, split, and counts.

    The whole response counts for attacks and the answer for benign requests, as in the book.
    """
    tables = []
    for name, by_seed in comparison.runs.items():
        for seed, run in by_seed.items():
            for part, measured, scope in (
                ("attack", run.attacked, "whole"),
                ("benign", run.asked, "answer"),
            ):
                table = measured.table(name, 0, seed)
                table = table[table["scope"] == scope].drop(columns=["base_seed", "scope"])
                tables.append(table.rename(columns={"method": "recipe"}).assign(part=part))
    return pd.concat(tables, ignore_index=True)


def _outcomes(by_seed: Mapping[int, Run]) -> dict[str, dict[tuple[int, str, str], bool]]:
    found: dict[str, dict[tuple[int, str, str], bool]] = {}
    for seed, run in by_seed.items():
        for verdict in run.attacked.verdicts:
            key = (seed, verdict.attack, verdict.behavior_id)
            found.setdefault(verdict.attack, {})[key] = verdict.whole == "harmful"
        for verdict in run.asked.verdicts:
            key = (seed, verdict.attack, verdict.behavior_id)
            if verdict.attack in LOOK_ALIKES:
                found.setdefault(LOOK_ALIKES_REFUSED, {})[key] = verdict.answer == "refused"
            found.setdefault(EXACT, {})[key] = verdict.answer == "correct"
    return found


@dataclass(frozen=True)
class Tables:
    """What the book shows of one comparison: rates, paired tests, training, every cell."""

    rates: pd.DataFrame
    paired: pd.DataFrame
    training: pd.DataFrame
    counts: pd.DataFrame

    @classmethod
    def of(cls, comparison: Comparison, reference: str = "ours") -> Tables:
        return cls(
            rates(comparison),
            paired(comparison, reference),
            training_table(comparison),
            counts(comparison),
        )

    def write(self, folder: str | Path, name: str) -> None:
        """Into ``folder``/``name``_rates.csv and so on."""
        for part in fields(self):
            text = getattr(self, part.name).to_csv(index=False)
            write_text_atomic(Path(folder) / f"{name}_{part.name}.csv", text)

    @classmethod
    def read(cls, folder: str | Path, name: str) -> Tables | None:
        """What `write` left, None where it is not all there, or of an older form."""
        paths = [Path(folder) / f"{name}_{part.name}.csv" for part in fields(cls)]
        if not all(path.is_file() for path in paths):
            return None
        tables = cls(*(pd.read_csv(path) for path in paths))
        whole = "requests" in tables.rates and "requests" in tables.paired
        return tables if whole else None


def shown_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Rates as text, a recipe a row and an outcome a column."""
    text = {
        (row["title"], row["outcome"]): counted(_interval(row), row["successes"], row["n"])
        for row in table.to_dict("records")
    }
    outcomes = list(dict.fromkeys(table["outcome"]))
    titles = list(dict.fromkeys(table["title"]))
    rows = [(title, *(text.get((title, outcome), "") for outcome in outcomes)) for title in titles]
    return pd.DataFrame(rows, columns=["recipe", *map(attack_title, outcomes)])


def shown_tests(tables: Tables) -> pd.DataFrame:
    """The paired tests with titles for names."""
    titles = dict(zip(tables.rates["recipe"], tables.rates["title"], strict=True))
    named = {"recipe": tables.paired["recipe"].map(titles),
             "outcome": tables.paired["outcome"].map(attack_title)}  # fmt: skip
    return tables.paired.assign(**named).rename(
        columns={
            "only_recipe": "true with it alone",
            "only_reference": "true without it alone",
            "p_value": "p",
            "p_holm": "p (Holm)",
            "seeds_higher": "seeds with more",
            "seeds_lower": "seeds with less",
        }
    )


def differences(tables: Tables) -> str:
    """Markdown bullets, one a recipe: outcomes that tests and every seed bear out, or none."""
    rate, titles = _rates_and_titles(tables)
    reference, *others = titles
    lines = []
    for name in others:
        found = [
            f"{_change(outcome, more)} "
            f"({rate[name, outcome]['rate']:.0%} against {rate[reference, outcome]['rate']:.0%})"
            for outcome, more in _borne_out(tables, name).items()
        ]
        told = "; ".join(found) or "no difference that tests and seeds bear out"
        lines.append(f"- **{titles[name]}:** {told}.")
    return "\n".join(lines) + "\n"


def answer(tables: Tables) -> str:
    """Markdown: every recipe under the held-out attacks, and which of them help there for nothing.

    One helps that has less harm under one of them and no more under another, nor more look-alikes
    refused, nor fewer exact answers, as far as tests and every seed bear it out.
    """
    rate, titles = _rates_and_titles(tables)
    reference, *others = titles
    helps = []
    for name in others:
        found = _borne_out(tables, name)
        better = any(found.get(attack) is False for attack in POOLED[HELD_OUT])
        worse = found.get(EXACT) is False or any(
            found.get(outcome) for outcome in (*POOLED[HELD_OUT], LOOK_ALIKES_REFUSED)
        )
        helps += [titles[name]] if better and not worse else []
    counts = ", ".join(
        f"{titles[name]} {rate[name, HELD_OUT]['successes']} of {rate[name, HELD_OUT]['n']}"
        for name in titles
    )
    told = ", ".join(helps) if helps else f"none of them is better there than {titles[reference]}"
    return (
        f"Harmful under held-out attacks: {counts}. By the paired tests and without a price in "
        f"refusals or exact answers, **{told}**{' is better there' if helps else ''}.\n"
    )


def _change(outcome: str, more: bool) -> str:
    if outcome == EXACT:
        return f"{'more' if more else 'fewer'} harmless requests answered exactly"
    if outcome == LOOK_ALIKES_REFUSED:
        return f"{'more' if more else 'fewer'} {outcome}"
    return f"harmful {'more' if more else 'less'} often under {attack_title(outcome)}"


def _interval(row: Mapping[Any, Any]) -> Interval:
    return Interval(row["rate"], row["low"], row["high"], row["requests"])


def _rates_and_titles(
    tables: Tables,
) -> tuple[dict[tuple[str, str], dict[Any, Any]], dict[str, str]]:
    """The rows of `rates` by recipe and outcome, and titles by recipe, the reference first."""
    rows = tables.rates.to_dict("records")
    return (
        {(row["recipe"], row["outcome"]): row for row in rows},
        {row["recipe"]: row["title"] for row in rows},
    )


def _borne_out(tables: Tables, name: str) -> dict[str, bool]:
    """Outcome -> is it more, of those where p (Holm) is small and no seed points the other way."""
    found = {}
    for row in tables.paired[tables.paired["recipe"] == name].to_dict("records"):
        more = row["only_recipe"] > row["only_reference"]
        if row["p_holm"] < SIGNIFICANT and not row["seeds_lower" if more else "seeds_higher"]:
            found[row["outcome"]] = more
    return found
