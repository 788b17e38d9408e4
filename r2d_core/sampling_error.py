"""What a sample of behaviors leaves open: clustered intervals, paired tests, budgets.

Beside `metrics`, whose rates and tests take every response for a draw of its own. Several responses
to one behavior (seeds, attacks, attempts) are not: then the behaviors are what was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import norm, t
from statsmodels.stats.proportion import proportion_confint

from r2d_core.errors import InputError
from r2d_core.metrics import Kappa, Rate, cohen_kappa, wilson_interval


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval; ``n`` is the number of independent draws behind it."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.1%} [{100 * self.low:.1f}, {100 * self.high:.1f}] (n = {self.n})"


@dataclass(frozen=True)
class Mean:
    """A mean of a number (tokens, queries) and its 95% interval; ``n`` as in `Interval`.

    Of one draw there is no interval: its bounds are nan.
    """

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.estimate:.1f} (n = {self.n})"
        return f"{self.estimate:.1f} [{self.low:.1f}, {self.high:.1f}] (n = {self.n})"


def clustered_rate(outcomes: Sequence[bool], behaviors: Sequence[Hashable]) -> Interval:
    """The share of outcomes that are true, the behaviors being what was drawn.

    ``behaviors[i]`` says to which behavior outcome i belongs. The interval is Wilson's on the
    effective number of outcomes, which is that of the behaviors where all outcomes of a behavior
    are the same (of behaviors of unequal sizes s, (Σs)² / Σs²: a large one counts for more), and of
    the outcomes where they have nothing to do with each other (Kish 1965; Korn & Graubard 1998):
    the variance of the rate, linearised and taken between behaviors, tells which. It is taken with
    two behaviors of successes and two of failures added (as in Agresti & Coull 1998): a rate near
    0% or 100% shows too few successes, or failures, to say how they cluster, and then the behaviors
    count.

    Nothing is drawn here. A bootstrap over behaviors, which is `clustered_mean`'s, sees no more
    than what came out: of an attack that never succeeded each draw says 0%, and its interval has no
    width, nearly so of one that rarely did. Those are the rates that a defence is reported with.

    Raises InputError for unequal lengths, no outcomes and missing behaviors.
    """
    rate = ClusteredRate.of(outcomes, behaviors)
    return Interval(rate.rate, rate.low, rate.high, rate.behaviors)


@dataclass(frozen=True)
class ClusteredRate(Rate):
    """`clustered_rate` with its counts: a `Rate` whose outcomes come several to a behavior.

    ``effective`` is the number of independent outcomes that its interval is Wilson's of. ``str``
    gives percents as `Rate` does, and the number of requests where they are fewer than outcomes.
    """

    behaviors: int = field(kw_only=True)
    effective: float = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n:
            self._bound()

    def _bound(self) -> None:
        low, high = _wilson_bounds(self.rate, self.effective, self.confidence)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @classmethod
    def of(cls, outcomes: Sequence[bool], behaviors: Sequence[Hashable]) -> ClusteredRate:
        """Of outcomes as `clustered_rate` takes them. Raises InputError as it does."""
        table = _by_behavior(outcomes, behaviors)
        hits, sizes = table["hits"].to_numpy(float), table["sizes"].to_numpy(float)
        n, effective = len(outcomes), _effective(hits, sizes, len(outcomes))
        return cls(int(hits.sum()), n, behaviors=len(hits), effective=effective)

    def __str__(self) -> str:
        if not self.n:
            return super().__str__()
        return counted(
            Interval(self.rate, self.low, self.high, self.behaviors), self.successes, self.n
        )


@dataclass(frozen=True)
class BehaviorRate(ClusteredRate):
    """The mean over behaviors of each one's share of true outcomes: HarmBench's attack success.

    Where some behaviors have more outcomes than others, `clustered_rate` is nearer to those; here
    all count alike. ``rate`` is that mean, and not successes / n, which are the outcomes'; the
    interval is made as there. ``str`` gives percents and says of what: "57.0% [26.3, 83.1] (mean of
    5 requests; 57/81)".
    """

    mean: float = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n:
            object.__setattr__(self, "rate", self.mean)
            self._bound()

    @classmethod
    def of(cls, outcomes: Sequence[bool], behaviors: Sequence[Hashable]) -> BehaviorRate:
        """Of outcomes as `clustered_rate` takes them. Raises InputError as it does."""
        table = _by_behavior(outcomes, behaviors)
        shares, n = (table["hits"] / table["sizes"]).to_numpy(float), len(outcomes)
        mean, effective = float(shares.mean()), _effective(shares, np.ones_like(shares), n)
        return cls(int(table["hits"].sum()), n, behaviors=len(shares), mean=mean,
                   effective=effective)  # fmt: skip

    def __str__(self) -> str:
        if not self.n:
            return super().__str__()
        return (
            f"{100 * self.rate:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}] "
            f"(mean of {self.behaviors} requests; {self.successes}/{self.n})"
        )


def rate_over_behaviors(outcomes: Sequence[bool], behaviors: Sequence[Hashable]) -> Rate:
    """A `Rate` of one outcome a behavior; a `BehaviorRate` where one of them has several.

    Raises InputError for unequal lengths and missing behaviors.
    """
    _same_number("outcomes", outcomes, behaviors)
    if len(set(behaviors)) < len(behaviors):
        return BehaviorRate.of(outcomes, behaviors)
    return Rate(sum(bool(each) for each in outcomes), len(outcomes))


def clustered_kappa(
    a: Sequence[Hashable], b: Sequence[Hashable], behaviors: Sequence[Hashable]
) -> Kappa:
    """`metrics.cohen_kappa` of items that are several responses to a behavior.

    Item i is of behaviors[i]. kappa = (seen - chance) / (1 - chance), and its interval is the wider
    of two, at each end: Student's t on the variance of kappa linearised, taken between behaviors
    (which of single items is the asymptotic one); and what the interval of `clustered_rate` of the
    agreement seen leaves, chance being what it is, for where the judges (nearly) always agree the
    variance shows nothing. Of one behavior it is [-1, 1]. Raises InputError for unequal lengths and
    missing behaviors.
    """
    plain = cohen_kappa(a, b)
    _same_number("items", a, behaviors)
    cluster = pd.factorize(_present(behaviors))[0]
    k = len(set(cluster))
    if math.isnan(plain.kappa) or k < 2:
        return Kappa(plain.kappa, -1.0, 1.0, plain.agreement, plain.n)
    labels = list(dict.fromkeys([*a, *b]))
    of_a, of_b = (np.array([[label == each for each in labels] for label in c]) for c in (a, b))
    share_a, share_b = of_a.mean(axis=0), of_b.mean(axis=0)
    same, chance = (of_a & of_b).any(axis=1), float(share_a @ share_b)
    moves_chance = of_a @ share_b + of_b @ share_a - 2 * chance
    moves = (same - plain.agreement) * (1 - chance) - (1 - plain.agreement) * moves_chance
    between = float(np.sum(np.bincount(cluster, moves) ** 2)) * k / (k - 1)
    margin = float(t.ppf(0.975, k - 1)) * math.sqrt(between) / plain.n / (1 - chance) ** 2
    seen = clustered_rate(same.tolist(), behaviors)
    return Kappa(
        plain.kappa,
        max(-1.0, min(plain.kappa - margin, (seen.low - chance) / (1 - chance))),
        min(1.0, max(plain.kappa + margin, (seen.high - chance) / (1 - chance))),
        plain.agreement,
        plain.n,
    )


def _effective(hits: np.ndarray, sizes: np.ndarray, outcomes: int) -> float:
    size = float(np.sum(sizes**2) / sizes.sum())  # the mean size, each behavior counted by its own
    alike = float(sizes.sum()) / size
    some_hits, some = np.append(hits, [size, size, 0, 0]), np.append(sizes, [size] * 4)
    mean = some_hits.sum() / some.sum()
    variance = np.sum((some_hits - mean * some) ** 2) / some.sum() ** 2
    return min(float(mean * (1 - mean) / variance) * alike / (alike + 4), float(outcomes))


def _wilson_bounds(rate: float, effective: float, confidence: float = 0.95) -> tuple[float, float]:
    low, high = proportion_confint(
        rate * effective, effective, alpha=1 - confidence, method="wilson"
    )
    # Rounding can put a bound a hair on the wrong side of a rate of 0 or 1.
    return max(0.0, min(float(low), rate)), min(1.0, max(float(high), rate))


def clustered_mean(values: Sequence[float], behaviors: Sequence[Hashable]) -> Mean:
    """The mean of values (tokens of an answer), with a bootstrap that draws behaviors.

    All values of a behavior are drawn together (Efron & Tibshirani 1993, section 8.6), 10,000
    times, less often where there are more than 2,000 behaviors. The percentiles are those that make
    up for few behaviors (the expanded percentile interval of Hesterberg 2015). Raises InputError
    for unequal lengths, no values, values that are no finite numbers, and missing behaviors.
    """
    _same_number("values", values, behaviors)
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        raise InputError("there is no value to take the mean of")
    if not np.isfinite(numbers).all():
        raise InputError(f"every value must be a finite number, got {values!r}")
    frame = pd.DataFrame({"behavior": _present(behaviors), "value": numbers})
    grouped = frame.groupby("behavior", sort=False)["value"]
    sums, sizes = grouped.sum().to_numpy(), grouped.count().to_numpy()
    k, mean = len(sums), float(numbers.mean())
    if k < 2:
        return Mean(mean, math.nan, math.nan, k)
    draws = max(1_000, min(10_000, 20_000_000 // k))  # they are all in memory at once
    drawn = np.random.default_rng(0).integers(0, k, (draws, k))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = float(norm.cdf(-math.sqrt(k / (k - 1)) * t.ppf(0.975, k - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Mean(mean, float(low), float(high), k)


def mean_over_runs(values: Sequence[float]) -> Mean:
    """The mean over training runs of a count (each run's mean tokens), with Student's t interval.

    The interval is about another training; a count is not negative, and so is no bound. Raises
    InputError without runs and for values that are no finite numbers.
    """
    k, numbers = len(values), np.asarray(values, dtype=float)
    if not k or not np.isfinite(numbers).all():
        raise InputError(f"expected a finite number of each run, got {list(values)!r}")
    mean = float(numbers.mean())
    if k < 2:
        return Mean(mean, math.nan, math.nan, k)
    margin = student_margin(numbers)
    return Mean(mean, max(0.0, mean - margin), mean + margin, k)


def tokens_by_run(table: pd.DataFrame, column: str = "response_tokens") -> list[float]:
    """The mean of a column over all completions of each run (base model and safety seed).

    ``table`` holds the rows of one method and scope of `toy.outcomes.by_scope` or `count`.
    """
    weighted = table.assign(total=table[column] * table["n"])
    sums = weighted.groupby(["base_seed", "seed"], sort=False)[["total", "n"]].sum()
    return [float(mean) for mean in sums["total"] / sums["n"]]


def paired_permutation(
    a: Sequence[bool], b: Sequence[bool], behaviors: Sequence[Hashable]
) -> float:
    """Two-sided p-value that a and b have one rate, outcome i of both being of behaviors[i].

    Under the hypothesis the two methods may be exchanged, behavior by behavior, with all of its
    outcomes: a permutation test that flips the sign of each behavior's difference. All flips are
    counted and none is drawn: differences are whole numbers, so the distribution of their sum under
    every flip is the convolution of theirs. No p-value is below 2/2ᵏ of k behaviors that differ; of
    a single one it is 1, and of behaviors asked once it is that of McNemar's exact test. Raises
    InputError for unequal lengths and no behaviors.
    """
    first, second = (_by_behavior(each, behaviors) for each in (a, b))
    differences = (first["hits"] - second["hits"]).to_numpy()
    most = int(np.abs(differences).sum())
    chance = np.zeros(2 * most + 1)  # of each sum from -most to most
    chance[most] = 1.0
    for size in np.abs(differences[differences != 0]):
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2  # the ends are 0 until then
    sums = np.abs(np.arange(-most, most + 1))
    return min(1.0, float(chance[sums >= abs(differences.sum())].sum()))


@dataclass(frozen=True)
class PairedChange:
    """Outcomes a against outcomes b, pair by pair: what `paired_change` counts and tests."""

    n: int
    requests: int
    only_a: int
    only_b: int
    p_value: float
    runs: int
    runs_higher: int
    runs_lower: int


def paired_change(
    a: Sequence[bool], b: Sequence[bool], behaviors: Sequence[Hashable], runs: Sequence[Hashable]
) -> PairedChange:
    """Outcome i of a and of b, both of behaviors[i] in runs[i] (a seed, or base model and seed).

    In how many pairs one of the two alone is true, the p-value of `paired_permutation`, which takes
    a behavior with all of its runs for one draw, and in how many runs a is true more and less often
    than b: nor are the behaviors of a run independent of each other. Raises InputError as there.
    """
    p_value = paired_permutation(a, b, behaviors)
    _same_number("runs", runs, behaviors)
    change = [int(first) - int(second) for first, second in zip(a, b, strict=True)]
    by_run: dict[Hashable, int] = {}
    for run, more in zip(runs, change, strict=True):
        by_run[run] = by_run.get(run, 0) + more
    return PairedChange(
        n=len(change),
        requests=len(set(behaviors)),
        only_a=change.count(1),
        only_b=change.count(-1),
        p_value=p_value,
        runs=len(by_run),
        runs_higher=sum(more > 0 for more in by_run.values()),
        runs_lower=sum(more < 0 for more in by_run.values()),
    )


def mean_over_seeds(rates: Sequence[Rate]) -> Interval:
    """The mean of a rate over training seeds: Student's t interval, but never within Wilson's.

    Seeds are repeats of the training: the interval is about another training, on these behaviors.
    Seeds that happen to agree (0% in all of three) show no spread, but each seed's rate is of a few
    outcomes only: the interval holds Wilson's of all seeds' outcomes, of those that are worth less
    than as many independent ones with what they are worth. Raises InputError for fewer
    than two seeds and for a seed without outcomes.
    """
    k = len(rates)
    if k < 2:
        raise InputError(f"expected the rates of at least two seeds, got {k}")
    for rate in rates:
        if not isinstance(rate, Rate) or not rate.n:
            raise InputError(
                f"expected of each seed a Rate, with the number of outcomes behind it, got {rate}"
            )
    shares = np.array([rate.rate for rate in rates])
    mean, margin = float(shares.mean()), student_margin(shares)
    worth = [r.effective if isinstance(r, ClusteredRate) else r.n for r in rates]
    low, high = _wilson_bounds(float(np.average(shares, weights=worth)), sum(worth), 0.95)
    return Interval(mean, max(0.0, min(low, mean - margin)), min(1.0, max(high, mean + margin)), k)


def student_margin(numbers: np.ndarray) -> float:
    """Half the width of Student's 95% interval of the mean of two or more numbers."""
    k = len(numbers)
    return float(t.ppf(0.975, k - 1)) * float(np.std(numbers, ddof=1)) / math.sqrt(k)


def counted(rate: Interval, hits: int, outcomes: int) -> str:
    """A rate of requests as text: "5.1% [2.0, 12.3] (11/216; 72 requests)"."""
    of = f"; {rate.n} requests" if rate.n < outcomes else ""
    return (
        f"{100 * rate.estimate:.1f}% [{100 * rate.low:.1f}, {100 * rate.high:.1f}] "
        f"({hits}/{outcomes}{of})"
    )


def in_percent(rate: Interval | Rate) -> str:
    """A rate as text, in whole percents and without counts: "5% [2, 12]"."""
    estimate = rate.rate if isinstance(rate, Rate) else rate.estimate
    return f"{estimate:.0%} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def clustered_matrix(
    outcomes: pd.DataFrame,
    rows: str | Sequence[str],
    column: str,
    label: str,
    missing: str = "",
    *,
    counts: bool = True,
) -> pd.DataFrame:
    """Rates of one label as text: ``rows`` × the values of ``column``, as they first occur.

    ``outcomes`` has a row an outcome: ``behavior``, the label (1 or 0), and what else is named.
    Cells are text: rate, interval of `clustered_rate`, counts, and of how many requests they are;
    without ``counts``, which `asked` gives for all cells together, `in_percent`. Raises InputError
    as `clustered_rate` does.
    """
    index = [rows] if isinstance(rows, str) else list(rows)

    def cell(some: pd.DataFrame) -> str:
        rate = ClusteredRate.of(some[label].tolist(), some["behavior"].tolist())
        return str(rate) if counts else in_percent(rate)

    groups = outcomes.groupby([*index, column], sort=False)
    texts = pd.Series({key: cell(some) for key, some in groups}, dtype=object)
    texts.index.names = [*index, column]
    wide = texts.unstack(column, sort=False)[list(dict.fromkeys(outcomes[column]))]
    return wide.fillna(missing).rename_axis(columns=None)


def asked(outcomes: pd.DataFrame, row: str, column: str) -> str:
    """How many requests are behind a cell of `clustered_matrix`, and responses to each, in words.

    "requests: 360 (GCG on the pivots: 27), responses to each: 3 (no safety training: 1)": what most
    rows and most columns have, and in brackets the others, by their names in ``outcomes``. Where a
    row's cells, or a column's, differ, "1 to 3".
    """
    behaviors = outcomes.groupby([row, column], sort=False)["behavior"]
    requests = behaviors.nunique()
    each = behaviors.size() / requests
    return f"requests: {_mostly(requests, row)}, responses to each: {_mostly(each, column)}"


def _mostly(numbers: pd.Series, level: str) -> str:
    low, high = (numbers.groupby(level=level, sort=False).agg(end) for end in ("min", "max"))
    said = [f"{a:.3g}" if a == b else f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True)]
    by_number: dict[str, list[str]] = {}
    for number, name in zip(said, low.index, strict=True):
        by_number.setdefault(number, []).append(str(name))
    usual = max(by_number, key=lambda number: len(by_number[number]))
    others = [f"{', '.join(by_number[n])}: {n}" for n in by_number if n != usual]
    return f"{usual} ({'; '.join(others)})" if others else usual


def seed_matrix(outcomes: pd.DataFrame, row: str, label: str) -> pd.DataFrame:
    """A rate seed by seed, as text, and `mean_over_seeds`: ``row`` × (seeds, mean over seeds).

    ``outcomes`` is as in `clustered_matrix`, and has a ``seed``. Raises InputError as
    `mean_over_seeds` does.
    """
    wide = clustered_matrix(outcomes, row, "seed", label).rename(columns=lambda s: f"seed {s}")
    summed = outcomes.groupby([row, "seed"], sort=False)[label].agg(["sum", "count"])
    means = {
        name: str(mean_over_seeds([Rate(int(k), int(n)) for k, n in some.to_numpy()]))
        for name, some in summed.groupby(level=0, sort=False)
    }
    return wide.assign(**{"mean over seeds": pd.Series(means)})


def budget_curve(
    queries_to_jailbreak: Sequence[int | None],
    budgets: Sequence[int] | None = None,
    *,
    behaviors: Sequence[Hashable] | None = None,
) -> pd.DataFrame:
    """Attack success rate against queries: what the attack would have reached with each budget.

    ``queries_to_jailbreak[i]`` is the query, from 1, at which behavior i first gave way, None where
    it never did; where a behavior is there more than once (seeds), ``behaviors[i]`` says which it
    is. Columns budget, successes, n, rate, low, high (Wilson's; with ``behaviors``
    `clustered_rate`'s). Default budgets: 1 and every number of queries at which something happened.
    Raises InputError without behaviors, and for counts below 1.
    """
    found = [q for q in queries_to_jailbreak if q is not None]
    if not len(queries_to_jailbreak):
        raise InputError("expected the queries of at least one behavior, got none")
    if wrong := [q for q in [*found, *(budgets or [])] if q < 1]:
        raise InputError(f"queries are counted from 1, got {wrong[0]}")
    rows = []
    for budget in sorted({1, *found}) if budgets is None else budgets:
        hits = [q is not None and q <= budget for q in queries_to_jailbreak]
        if behaviors is None:
            low, high = wilson_interval(sum(hits), len(hits))
        else:
            found_rate = clustered_rate(hits, behaviors)
            low, high = found_rate.low, found_rate.high
        rows.append((budget, sum(hits), len(hits), sum(hits) / len(hits), low, high))
    return pd.DataFrame(rows, columns=["budget", "successes", "n", "rate", "low", "high"])


def _by_behavior(outcomes: Sequence[bool], behaviors: Sequence[Hashable]) -> pd.DataFrame:
    """Outcomes summed by behavior: columns hits and sizes, in the order of the behaviors."""
    _same_number("outcomes", outcomes, behaviors)
    for outcome in outcomes:
        if outcome not in (0, 1):
            raise InputError(f"every outcome must be true or false, got {outcome!r}")
    frame = pd.DataFrame({"behavior": _present(behaviors), "hit": [int(o) for o in outcomes]})
    grouped = frame.groupby("behavior", sort=False)["hit"]
    table = pd.DataFrame({"hits": grouped.sum(), "sizes": grouped.count()})
    if not len(table):
        raise InputError("expected at least one behavior, got 0")
    return table


def _same_number(what: str, values: Sequence[object], behaviors: Sequence[Hashable]) -> None:
    if len(values) != len(behaviors):
        raise InputError(
            f"expected one behavior for each of the {what}, got {len(values)} {what} and "
            f"{len(behaviors)} behaviors"
        )


def _present(behaviors: Sequence[Hashable]) -> pd.Series:
    """The behaviors; InputError for one that is None or nan, which pandas would leave out."""
    series = pd.Series(list(behaviors), dtype=object)
    if series.isna().any():
        place = int(np.argmax(series.isna()))
        raise InputError(f"behavior {place} is missing ({series[place]}); name what it belongs to")
    return series
