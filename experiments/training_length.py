"""Training four times as long, beside the full experiment: `experiments/longer.yaml`'s answer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from r2d_core.attack_titles import attack_title
from r2d_core.metrics import holm
from r2d_core.sampling_error import clustered_rate
from r2d_core.toy.arms import TITLES
from r2d_core.toy.outcomes import paired_tests
from r2d_core.toy.results import read_published


def parts(book: Path) -> dict[str, str]:
    """The generated part of the full experiment's page, by file name, as MyST Markdown."""
    return {"longer_compared.md": table(compared(book / "full", book / "longer"))}


def compared(full: Path, longer: Path) -> pd.DataFrame:
    """Each method of ``longer`` under each attack, as in ``full`` and trained longer.

    Only the runs that both have count. Columns: method, attack, requests, shorter and longer (rate
    and 95% interval as text), runs_better and runs_worse (how many runs are harmful less and more
    often when trained longer), p_value of `paired_tests` and p_holm over all rows.
    """
    lengths = {name: read_published(folder).attacks
               for name, folder in (("shorter", full), ("longer", longer))}  # fmt: skip
    wholes = {name: table[table["scope"] == "whole"] for name, table in lengths.items()}
    runs = pd.MultiIndex.from_frame(wholes["longer"][["method", "base_seed", "seed", "attack"]])
    there = pd.MultiIndex.from_frame(wholes["shorter"][["method", "base_seed", "seed", "attack"]])
    wholes["shorter"] = wholes["shorter"][there.isin(runs)]
    rows = []
    for method, some in wholes["longer"].groupby("method", sort=False):
        before = wholes["shorter"][wholes["shorter"]["method"] == method]
        both = pd.concat([some.assign(method="longer"), before.assign(method="shorter")])
        for test in paired_tests(both, "longer").to_dict("records"):
            of_attack = both[both["attack"] == test["attack"]]
            told = {name: _rate(each) for name, each in of_attack.groupby("method", sort=False)}
            kept = ("attack", "requests", "p_value", "runs_better", "runs_worse")
            rows.append({"method": method, **{name: test[name] for name in kept}, **told})
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=holm(frame["p_value"].tolist()))


def table(found: pd.DataFrame) -> str:
    """`compared` as a table in Markdown."""
    heads = ["", "attack", "200 steps", "800 steps", "requests", "runs better", "runs worse",
             "p (Holm)"]  # fmt: skip
    rows = [
        [TITLES[row["method"]], attack_title(row["attack"]), row["shorter"], row["longer"]]
        + [str(row[name]) for name in ("requests", "runs_better", "runs_worse")]
        + [f"{row['p_holm']:.2g}"]
        for row in found.to_dict("records")
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heads, ["---"] * len(heads), *rows])


def _rate(outcomes: pd.DataFrame) -> str:
    rate = clustered_rate(outcomes["harmful"].tolist(), outcomes["behavior"].tolist())
    return f"{rate.estimate:.0%} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
