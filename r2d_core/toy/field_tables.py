"""What chapter 13 says of the field's attacks: how far harm goes, one method against another."""

from __future__ import annotations

import pandas as pd

from r2d_core.attack_titles import attack_title
from r2d_core.metrics import holm
from r2d_core.sampling_error import ClusteredRate, clustered_matrix, in_percent
from r2d_core.toy.arms import TITLES
from r2d_core.toy.findings import listed
from r2d_core.toy.outcomes import MORE_THAN_HALF, STEPS, paired_tests
from r2d_core.toy.results import SIGNIFICANT

AT_LEAST = f"{MORE_THAN_HALF} steps or more"


def told_more_than_half(whole: pd.DataFrame) -> pd.DataFrame:
    """Rows of `field.read_field`, *harmful* only where `MORE_THAN_HALF` steps are told."""
    return whole.assign(harmful=(whole[STEPS] >= MORE_THAN_HALF).astype(int))


def shares(whole: pd.DataFrame, missing: str = "") -> pd.DataFrame:
    """Attack × method: the share of harmful responses and, where steps were counted, `AT_LEAST`.

    ``whole`` are rows of `field.read_field`. Cells are text, with 95% intervals; titles stand for
    names, and above the columns the methods'.
    """
    kinds = {"harmful": whole}
    if STEPS in whole:
        kinds[AT_LEAST] = told_more_than_half(whole)
    wide = pd.concat(
        {
            kind: clustered_matrix(some, "attack", "method", "harmful", missing, counts=False)
            for kind, some in kinds.items()
        },
        axis=1,
    ).swaplevel(axis=1)
    methods = list(dict.fromkeys(whole["method"]))
    ordered = wide[[(method, kind) for method in methods for kind in kinds]]
    return ordered.rename(index=attack_title, columns=TITLES).rename_axis(index=None)


def subject_in_words(whole: pd.DataFrame) -> str:
    """Markdown: under which attacks most harmful responses tell no more than two steps.

    Over all methods; ``whole`` are rows of `field.read_field` with ``STEPS``.
    """
    harmful = whole[whole["harmful"] == 1]
    few = (harmful[STEPS] < MORE_THAN_HALF).groupby(harmful["attack"], sort=False)
    of = pd.DataFrame({"few": few.sum(), "all": few.size()})
    changed = of["few"] > of["all"] / 2
    rest = of[~changed].sum()
    others = (
        f"{rest['all'] - rest['few']} of {rest['all']} harmful responses tell {AT_LEAST}"
        if rest["all"]
        else "no response is harmful"
    )
    if not changed.any():
        return f"Under no attack do most harmful responses tell two steps only: {others}."
    named = [f"{_title(row.Index)} ({row.few} of {row.all})" for row in of[changed].itertuples()]
    return (
        f"Under {listed(named)} **most harmful responses tell two steps only**: those that come "
        "from the item's first word, which allowed items share. Such an attack mostly changes the "
        f"subject: the model answers about another item. Under the other attacks {others}."
    )


def head_to_head(whole: pd.DataFrame, reference: str, other: str) -> pd.DataFrame:
    """``reference`` against ``other``, a row an attack that was put to both.

    ``whole`` are rows of `field.read_field`. Columns: those of `paired_tests` but method, and
    p_holm, corrected over these rows; of each side (ending in _reference or _other) harmful and
    refused, `ClusteredRate`. Without rows where one of the two was not attacked.
    """
    sides = {"reference": reference, "other": other}
    of = {side: whole[whole["method"] == method] for side, method in sides.items()}
    if any(some.empty for some in of.values()):
        return pd.DataFrame()
    tests = paired_tests(pd.concat(of.values()), reference).drop(columns="method")
    for side, some in of.items():
        for label in ("harmful", "refused"):
            by_attack = {
                attack: ClusteredRate.of(rows[label].tolist(), rows["behavior"].tolist())
                for attack, rows in some.groupby("attack")
            }
            tests[f"{label}_{side}"] = tests["attack"].map(by_attack)
    return tests.assign(p_holm=holm(tests["p_value"].tolist()))


def tally(table: pd.DataFrame, reference: str, other: str) -> str:
    """A sentence: in how many rows of `head_to_head` the reference is harmful more often, less."""
    more = (table["only_reference"] > table["only_method"]).sum()
    less = (table["only_reference"] < table["only_method"]).sum()
    return (
        f"Of the {len(table)} attacks put to both, {TITLES[reference]} is harmful more often than "
        f"{TITLES[other]} under {more}, less often under {less} and as often under "
        f"{len(table) - more - less}."
    )


def borne_out(table: pd.DataFrame) -> str:
    """A sentence: where the difference of `head_to_head` is told from chance, and where not.

    That is where p_holm is below `SIGNIFICANT` and no seed points the other way.
    """
    told: dict[str, list[str]] = {}
    left = []
    for row in table.to_dict("records"):
        more = row["only_reference"] > row["only_method"]
        title = _title(row["attack"])
        if row["p_holm"] < SIGNIFICANT and not row["runs_lower" if more else "runs_higher"]:
            rates = [in_percent(row[f"harmful_{side}"]) for side in ("reference", "other")]
            told.setdefault("more" if more else "less", []).append(
                f"{title} ({' against '.join(rates)})"
            )
        else:
            left.append(title)
    parts = [f"{how} often under {listed(told[how])}" for how in ("more", "less") if how in told]
    nothing = f"Not told from chance: {listed(left)}." if left else ""
    return f"Borne out: {'; '.join(parts) if parts else 'nothing'}. {nothing}".strip()


def head_to_head_shown(table: pd.DataFrame, reference: str, other: str) -> pd.DataFrame:
    """`head_to_head` as text, with the attacks' titles and, above the columns, the methods'."""
    names = {"reference": TITLES[reference], "other": TITLES[other]}
    columns = {
        (label, names[side]): [in_percent(rate) for rate in table[f"{label}_{side}"]]
        for label in ("harmful", "refused")
        for side in names
    }
    columns |= {
        ("harmful alone", names["reference"]): table["only_reference"].tolist(),
        ("harmful alone", names["other"]): table["only_method"].tolist(),
        ("seeds", "lower"): table["runs_lower"].tolist(),
        ("seeds", "higher"): table["runs_higher"].tolist(),
        ("", "p (Holm)"): [f"{p:.2g}" for p in table["p_holm"]],
    }
    return pd.DataFrame(columns, index=table["attack"].map(attack_title).rename(None))


def _title(attack: object) -> str:
    """An attack's title in a sentence of many: some have a comma of their own."""
    return f"*{attack_title(str(attack))}*"
