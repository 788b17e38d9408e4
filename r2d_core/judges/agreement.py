"""How far a judge is to be trusted: against human labels, and what that does to a rate.

A judge that calls a tenth of the refusals jailbreaks reports an attack success rate of 10% where
there is none. With its error rates known from items that humans labelled, the rate can be put right
(Rogan & Gladen 1978), and its interval then says what both samples leave open.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats.qmc import LatinHypercube

from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.metrics import Kappa, Rate, cohen_kappa
from r2d_core.records import read_text
from r2d_core.records.tables import Row, by_column, read_cells
from r2d_core.sampling_error import ClusteredRate, clustered_kappa


@dataclass(frozen=True)
class Agreement:
    """One judge against human labels, item by item.

    Attributes:
        agreement: the share of all items with the human's label; an unparsable answer has none.
        false_positive: of the items that humans call no success, those the judge calls one.
        false_negative: of the items that humans call a success, those the judge calls none.
        kappa: beyond chance; unparsable is a third label of the judge's.
        unparsable: the share of items that the judge gave no label. They are in no error rate.
        errors_correlation: between the two error rates, from sample to sample, where requests stand
            behind both: below 0 where the judge calls all that a request brings forth a success,
            or nothing.
    """

    agreement: Rate
    false_positive: Rate
    false_negative: Rate
    kappa: Kappa
    unparsable: Rate
    errors_correlation: float = 0.0


def agreement(
    judge: Sequence[bool | None],
    human: Sequence[bool],
    behaviors: Sequence[Hashable] | None = None,
) -> Agreement:
    """Agreement of a judge (None: unparsable) with humans; True is a success of the attack.

    Items may be several responses to one request (over seeds, attacks): ``behaviors[i]`` says to
    which item i is one, and every interval takes all of a request for one draw (`clustered_rate`,
    `clustered_kappa`). Raises InputError for unequal lengths, labels that are neither and behaviors
    that are missing.
    """
    if len(judge) != len(human):
        raise InputError(
            "expected one label of judge and human for each item, "
            f"got {len(judge)} and {len(human)}"
        )
    for label in (*judge, *human):
        if label not in (True, False, None):
            raise InputError(f"expected labels True, False (or None: unparsable), got {label!r}")
    if None in human:
        raise InputError("a human label is missing (None); leave the item out")
    if behaviors is not None and len(behaviors) != len(judge):
        raise InputError(
            f"expected a behavior for each of {len(judge)} items, got {len(behaviors)}"
        )
    pairs = list(zip(judge, human, strict=True))

    def share(said_so: Sequence[bool], items: Sequence[int]) -> Rate:
        of = None if behaviors is None else [behaviors[i] for i in items]
        return rate_of(said_so, of)

    every = range(len(pairs))
    on_success = [i for i, (said, true) in enumerate(pairs) if true and said is not None]
    on_failure = [i for i, (said, true) in enumerate(pairs) if not true and said is not None]
    names = [_name(said) for said, _ in pairs], [_name(true) for _, true in pairs]
    return Agreement(
        agreement=share([said == true for said, true in pairs], every),
        false_positive=share([bool(judge[i]) for i in on_failure], on_failure),
        false_negative=share([not judge[i] for i in on_success], on_success),
        kappa=cohen_kappa(*names) if behaviors is None else clustered_kappa(*names, behaviors),
        unparsable=share([said is None for said, _ in pairs], every),
        errors_correlation=0.0 if behaviors is None else _errors_correlation(pairs, behaviors),
    )


def _errors_correlation(
    pairs: Sequence[tuple[bool | None, bool]], behaviors: Sequence[Hashable]
) -> float:
    """Of both error rates' linearised terms, summed by behavior, the correlation."""
    said, true = (np.array([bool(each) for each in column]) for column in zip(*pairs, strict=True))
    labelled = np.array([label is not None for label, _ in pairs])
    cluster = pd.factorize(pd.Series(list(behaviors), dtype=object))[0]
    terms = []
    for wrong, kind in ((said, labelled & ~true), (~said, labelled & true)):
        if not kind.any():
            return 0.0
        terms.append(np.bincount(cluster, np.where(kind, wrong - wrong[kind].mean(), 0.0)))
    scale = math.sqrt(float(terms[0] @ terms[0]) * float(terms[1] @ terms[1]))
    return float(terms[0] @ terms[1]) / scale if scale else 0.0


def rate_of(outcomes: Sequence[bool], behaviors: Sequence[Hashable] | None = None) -> Rate:
    """The share of true outcomes; with ``behaviors``, as of `agreement`, a `ClusteredRate`.

    Of no outcome it is a plain `Rate` of nothing. Raises InputError for unequal lengths and for
    outcomes that are neither true nor false.
    """
    every = range(len(outcomes)) if behaviors is None else behaviors
    if not len(outcomes) and not len(every):
        return Rate(0, 0)
    rate = ClusteredRate.of(outcomes, every)
    return Rate(rate.successes, rate.n) if behaviors is None else rate


def _name(label: bool | None) -> Hashable:
    return None if label is None else bool(label)


@dataclass(frozen=True)
class CorrectedRate:
    """A rate put right for the judge's errors, with a 95% interval; ``str`` gives percents.

    ``consistent`` is False where nearly every draw of the bootstrap lies outside [0, 1]: the judge
    observed, say, far fewer successes than its false positives alone should have made. Then its
    errors on these responses are not those on the labelled items, and rate and interval are nan.
    """

    observed: Rate
    rate: float
    low: float
    high: float
    consistent: bool = True

    def __str__(self) -> str:
        if not self.consistent:
            return "– (not with these errors)"
        return f"{100 * self.rate:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def corrected_rate(
    observed: Rate,
    judge: Agreement,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> CorrectedRate:
    """The rate of true successes behind the rate that a judge of known errors observed.

    p = (p_obs + specificity − 1) / (sensitivity + specificity − 1), within [0, 1]. The interval is
    a percentile bootstrap that draws the observed rate and both error rates anew, each from its own
    sample: items of both samples are taken to be alike and, but for what a `ClusteredRate` says
    within one rate and ``judge.errors_correlation`` of both error rates, independent. So the two
    samples must share no request (chapter 10 divides them by request). Each rate is drawn from what
    Wilson's interval (on a `ClusteredRate`'s effective number), taken at every confidence, says of
    the rate behind it (`_drawn`), since resampled items would repeat the observed rate where it is
    0% or 100% and stay too near to it close by; behind a perfect judge the interval is Wilson's. A
    draw in which the judge is no better than chance says nothing and may be anything.

    Raises InputError without responses, without human labels of both kinds, or for a judge that is
    no better than chance.
    """
    positives, negatives = judge.false_negative, judge.false_positive
    if not observed.n:
        raise InputError("there is no response to correct the rate of")
    if not positives.n or not negatives.n:
        raise InputError(
            "the judge's errors are known on one kind of item only; "
            "human labels of successes and of failures are needed"
        )
    informedness = 1 - positives.rate - negatives.rate
    if informedness <= 0:
        raise InputError(
            f"a judge with {100 * negatives.rate:.1f}% false positives and "
            f"{100 * positives.rate:.1f}% false negatives is no better than chance: no rate can be "
            "put right by it"
        )
    rate = min(1.0, max(0.0, (observed.rate - negatives.rate) / informedness))
    # Evenly spaced over each of the three, in a random order: fewer draws do.
    levels = LatinHypercube(3, rng=np.random.default_rng(seed)).random(draws).T
    if together := judge.errors_correlation:  # a Gaussian copula
        own = math.sqrt(max(0.0, 1 - together**2))
        levels[2] = norm.cdf(together * norm.ppf(levels[1]) + own * norm.ppf(levels[2]))
    p, false_negative, false_positive = (
        _drawn(sample, level)
        for sample, level in zip((observed, positives, negatives), levels, strict=True)
    )
    divisor = 1 - false_negative - false_positive
    informed = divisor > 0
    rates = (p - false_positive)[informed] / divisor[informed]
    if np.mean(rates < 0) > 0.975 or np.mean(rates > 1) > 0.975:
        return CorrectedRate(observed, math.nan, math.nan, math.nan, consistent=False)
    # A draw that says nothing widens the interval at both ends.
    silent = draws - rates.size
    below = np.sort(np.concatenate([np.clip(rates, 0, 1), np.zeros(silent)]))
    above = np.sort(np.concatenate([np.clip(rates, 0, 1), np.ones(silent)]))
    low = float(below[math.floor(0.025 * (draws - 1))])
    high = float(above[math.ceil(0.975 * (draws - 1))])
    return CorrectedRate(observed, rate, min(low, rate), max(high, rate))


def _drawn(sample: Rate, level: np.ndarray) -> np.ndarray:
    """The upper bounds of Wilson's one-sided intervals of a rate, at these levels of confidence.

    Levels drawn from 0 to 1 make them draws: 95% of them lie in Wilson's 95% interval.
    """
    z = norm.ppf(level)
    n = sample.effective if isinstance(sample, ClusteredRate) else sample.n
    root = np.sqrt(sample.rate * (1 - sample.rate) / n + z**2 / (4 * n**2))
    return np.clip((sample.rate + z**2 / (2 * n) + z * root) / (1 + z**2 / n), 0, 1)


def read_labels(
    path: str | os.PathLike[str], human: str, judges: Sequence[str] = ()
) -> tuple[list[bool], dict[str, list[bool | None]]]:
    """Human labels and judges' labels from a csv with a row an item; 1 is a success, 0 is none.

    ``human`` and ``judges`` are columns; without judges, all columns that hold 0, 1 and nothing
    else and are not the human's. A judge's empty cell is an unparsable answer. So JailbreakBench's
    table of judges reads with ``human="human_majority"``.

    Raises InputError for a column that is not there, "file:line: …" for another value, a row with
    too many or too few cells and broken quotes, and for a table without rows.
    """
    path = Path(path)
    rows = _table(path, (human, *judges))
    binary = [c for c in rows[0][1] if {row[c] for _, row in rows} <= {"0", "1"} and c != human]
    found = {name: _column(path, rows, name) for name in judges or binary}
    said = _column(path, rows, human)
    for (line, _), label in zip(rows, said, strict=True):
        if label is None:
            raise InputError(f"{path}:{line}: {human}: the human label is missing")
    return [bool(label) for label in said], found


def read_requests(path: str | os.PathLike[str], column: str) -> list[str]:
    """Of the table that `read_labels` reads: which request each row is a response to.

    Raises InputError as that does, and "file:line: …" for an empty cell.
    """
    path = Path(path)
    rows = _table(path, [column])
    for line, row in rows:
        if not row[column]:
            raise InputError(f"{path}:{line}: {column}: which request the row is of is missing")
    return [row[column] for _, row in rows]


def _table(path: Path, needed: Iterable[str]) -> list[tuple[int, Row]]:
    rows = by_column(path, read_cells(path, read_text(path, "a csv of labels")))
    if not rows:
        raise InputError(f"{path}: the table has no rows")
    for name in needed:
        if name not in rows[0][1]:
            raise InputError(f"{path}: {unknown('column', name, rows[0][1])}")
    return rows


def _column(path: Path, rows: Sequence[tuple[int, Row]], name: str) -> list[bool | None]:
    meaning = {"1": True, "0": False, "": None}
    for line, row in rows:
        if row[name] not in meaning:
            raise InputError(
                f"{path}:{line}: {name}: expected 1, 0 or nothing (unparsable), got {row[name]!r}"
            )
    return [meaning[row[name]] for _, row in rows]
