"""Training data: R2D-R1, or anything of its shape, read row by row and checked before it is used.

    rows = read_trajectories("chuhac/R2D-R1", tokenizer=tokenizer, max_length=4096)
    trajectories = list(rows)             # or one at a time: nothing is held
    rows.report.save("report.json")       # what was left out, row by row, and why
    table = describe(trajectories, tokens=rows.lengths)
    train(config, model, tokenizer, training_rows(trajectories, tokenizer))

A row is ``instruction``, ``input`` (may be missing or empty) and ``output``, as in Alpaca; the
output is a response that `trajectories.parse` reads. A row that cannot be learnt from is left out,
and said: its place, what kind of defect, and the defect in words. The rest goes on.

**What R2D-R1 looks like.** Its teacher was told to end every sentence in a pivot, "including inside
of your thinking process" (the paper's appendix A.1), so its *answers* hold pivots too: "I'm sorry,
but I can't assist with that request. [SAFE]". So the paper shows it and so the authors trained on
it; such rows are counted and kept (`TOLERATED`), though `trajectories.problems` names them.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

from r2d_core.checking import unknown
from r2d_core.dataset_rows import rows_of
from r2d_core.errors import InputError
from r2d_core.pivots import RETHINK, SAFE, UNSAFE
from r2d_core.records import read_json, write_json_atomic
from r2d_core.tokenization import encode_example, encode_examples
from r2d_core.trajectories import Trajectory, from_record, problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R2D_R1 = "chuhac/R2D-R1"
"""The authors' training data on the Hugging Face hub."""

FIELDS = ("instruction", "input", "output")
DEFECTS: dict[str, str] = {
    "not_an_object": "the line or element is no JSON object",
    "missing_column": "a column is not there",
    "wrong_type": "a column holds something other than text",
    "empty_instruction": "nothing is asked",
    "empty_answer": "nothing is answered after the reasoning",
    "unfinished": "<think> is never closed",
    "no_pivot": "no pivot in the reasoning",
    "last_step_without_pivot": "the reasoning goes on after its last pivot",
    "unknown_pivot": "something in brackets that looks like a pivot and is none",
    "pivot_in_answer": "a pivot in the answer, after the reasoning",
    "repeated_think": "<think> or </think> more than once",
    "end_of_turn": "an end of turn is written out, with or without text after it",
    "start_of_turn": "another turn is opened: a token or heading of the user's or the model's",
    "too_long": "more tokens than max_length",
}
"""The kinds of defect, in the words of a table."""

ENCODED_AT_ONCE = 1024
"""Examples tokenised in one call."""

TOLERATED = frozenset({"pivot_in_answer"})
"""Defects that are counted but do not exclude a row: see the top of this file."""

# What `trajectories.problems` says, by the kind of defect.
_KINDS = {
    "empty_answer": re.compile(r"the answer is empty"),
    "unfinished": re.compile(r"unfinished"),
    "no_pivot": re.compile(r"no pivot"),
    "last_step_without_pivot": re.compile(r"the last step ends in no pivot"),
    "unknown_pivot": re.compile(r"step \d+: .* is not one of"),
    "pivot_in_answer": re.compile(r".* in the answer, after the reasoning"),
    "repeated_think": re.compile(r"\d+ times "),
    "end_of_turn": re.compile(r"(text after the|a written) end of turn"),
    "start_of_turn": re.compile(r"a new turn is opened"),
}


@dataclass(frozen=True)
class Finding:
    """One defect of one row. ``place`` is "file:row", rows (in JSON lines: lines) from 1."""

    place: str
    defect: str
    message: str


@dataclass
class ValidationReport:
    """What was read, what was kept, and every defect found; filled while the rows pass by.

    ``defects`` counts rows, a row once for each kind of its defects; ``tolerated`` says which kinds
    did not exclude a row.
    """

    source: str
    tolerated: tuple[str, ...]
    rows: int = 0
    kept: int = 0
    defects: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """One row for each kind of defect that was found, the most frequent first."""
        first: dict[str, Finding] = {}
        for finding in self.findings:
            first.setdefault(finding.defect, finding)
        return pd.DataFrame(
            [
                {
                    "defect": kind,
                    "meaning": DEFECTS[kind],
                    "rows": count,
                    "kept": "yes" if kind in self.tolerated else "no",
                    "first at": first[kind].place,
                }
                for kind, count in _most_frequent(self.defects)
            ],
            columns=["defect", "meaning", "rows", "kept", "first at"],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as one JSON document, atomically; `read_report` reads it back."""
        write_json_atomic(path, dataclasses.asdict(self))


def read_report(path: str | os.PathLike[str]) -> ValidationReport:
    """The report that `ValidationReport.save` wrote.

    Raises InputError when the file is not there or is no report.
    """
    values = read_json(path)
    try:
        return ValidationReport(
            **{
                **values,
                "tolerated": tuple(values["tolerated"]),
                "findings": [Finding(**each) for each in values["findings"]],
            }
        )
    except (TypeError, KeyError):
        raise InputError(
            f"{path}: not a validation report; expected what ValidationReport.save wrote"
        ) from None


class Trajectories:
    """The valid rows of a source, read anew each time it is iterated; see `read_trajectories`.

    Attributes:
        report: of the last iteration; complete once that has ended.
        lengths: tokens of the rows kept in the last iteration, when a tokenizer was given.
    """

    def __init__(
        self,
        source: str,
        rows: Callable[[], Iterator[tuple[str, object]]],
        *,
        columns: Mapping[str, str],
        tokenizer: PreTrainedTokenizerBase | None,
        max_length: int | None,
        tolerated: Collection[str],
    ) -> None:
        self._source = source
        self._rows = rows
        self._columns = columns
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._tolerated = frozenset(tolerated)
        self._start()

    def _start(self) -> None:
        self.report = ValidationReport(self._source, tuple(sorted(self._tolerated)))
        self.lengths = array("l")

    def __iter__(self) -> Iterator[Trajectory]:
        self._start()
        report = self.report
        bar = tqdm(self._rows(), desc="read", unit="row", delay=2, leave=False)
        for place, row in bar:
            report.rows += 1
            trajectory, found, length = self._check(row)
            report.findings += [Finding(place, kind, message) for kind, message in found]
            for kind in dict.fromkeys(kind for kind, _ in found):
                report.defects[kind] = report.defects.get(kind, 0) + 1
            if trajectory is None or any(kind not in self._tolerated for kind, _ in found):
                continue
            report.kept += 1
            if self._tokenizer is not None:
                self.lengths.append(length)
            yield trajectory
        if not report.kept:
            raise InputError(self._nothing_kept())

    def _check(self, row: object) -> tuple[Trajectory | None, list[tuple[str, str]], int]:
        """The row as a trajectory if it is one, its defects, and its tokens (0: not counted)."""
        if not isinstance(row, Mapping):
            return None, [("not_an_object", str(row))], 0
        record = {name: row[column] for name, column in self._columns.items() if column in row}
        missing = [self._columns[name] for name in ("instruction", "output") if name not in record]
        if missing:
            there = ", ".join(map(str, row)) or "none"
            return None, [("missing_column", f"no column {missing[0]!r}; the row has {there}")], 0
        try:
            trajectory = from_record(record)
        except InputError as error:
            return None, [("wrong_type", str(error))], 0
        found = [(_kind(message), message) for message in problems(trajectory)]
        if not trajectory.instruction:
            found.insert(0, ("empty_instruction", "the instruction is empty"))
        length = 0
        if self._tokenizer is not None:
            length = len(
                encode_example(self._tokenizer, trajectory.instruction, str(trajectory))[
                    "input_ids"
                ]
            )
            if self._max_length is not None and length > self._max_length:
                found.append(("too_long", f"{length} tokens, more than {self._max_length}"))
        return trajectory, found, length

    def _nothing_kept(self) -> str:
        if not self.report.rows:
            return f"{self._source}: no rows; expected {', '.join(FIELDS)} in each"
        kind, count = next(
            pair for pair in _most_frequent(self.report.defects) if pair[0] not in self._tolerated
        )
        example = next(each for each in self.report.findings if each.defect == kind)
        mend = {
            "missing_column": "; name the columns with columns={'instruction': …, 'output': …} "
            "(columns of a parameter set)",
            "too_long": "; raise max_length",
        }.get(kind, "; correct the data, or let read_trajectories take it as tolerated")
        return (
            f"{self._source}: none of its {self.report.rows} rows can be learnt from. The most "
            f"frequent defect is {kind} ({count} rows), for example {example.place}: "
            f"{example.message}{mend}"
        )


def read_trajectories(
    source: str | os.PathLike[str] = R2D_R1,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    revision: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    tolerated: Collection[str] = TOLERATED,
) -> Trajectories:
    """The rows of a data set as trajectories: iterate over the result; what is wrong is reported.

    Args:
        source: a file (``.jsonl``, ``.json``, ``.parquet``), a folder of such files, or the name of
            a data set on the hub. JSON lines, Parquet and the hub are streamed; a JSON *array* is
            one document and is read whole. In a folder the files of ``split`` are read, as
            `datasets` tells them by name (``train-00000-of-00002.parquet``, ``test/0.jsonl``), and
            of those all of the first of `dataset_rows.FORMATS` that occurs, in order.
        columns: what the source calls its ``instruction``, ``input`` and ``output``, where it is
            not that; extra columns are passed over.
        split: of a data set on the hub or in a folder.
        revision: commit or tag of a data set on the hub; None takes what is newest.
        tokenizer: count tokens as `encode_example` would make them, prompt included.
        max_length: tokens above which a row is left out; needs ``tokenizer``. Nothing is ever cut:
            a trajectory without its end teaches the wrong thing.
        tolerated: kinds of `DEFECTS` that are counted but do not exclude a row.

    Raises InputError, before anything is read, for a source that is not there and for arguments
    that do not fit; while reading, when the hub cannot be reached or a Parquet file is damaged; and
    at the end when no row was kept.
    """
    named = dict(columns or {})
    for name in named:
        if name not in FIELDS:
            raise InputError(unknown("field to map a column to", name, FIELDS))
    for kind in tolerated:
        if kind not in DEFECTS:
            raise InputError(unknown("defect to tolerate", kind, DEFECTS))
        if kind in ("not_an_object", "missing_column", "wrong_type"):
            raise InputError(f"tolerated: a row with {kind!r} is no trajectory; leave it out")
    if max_length is not None and tokenizer is None:
        raise InputError("max_length counts tokens; give a tokenizer too")
    place = os.fspath(source)
    return Trajectories(
        place,
        rows_of(place, split, revision),
        columns={**{name: name for name in FIELDS}, **named},
        tokenizer=tokenizer,
        max_length=max_length,
        tolerated=tolerated,
    )


def training_rows(
    trajectories: Iterable[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[..., dict[str, list[int]]] | None = None,
) -> list[dict[str, Sequence[int]]]:
    """What `training.train` takes, one row a trajectory, made by `encode_examples`, or by
    ``encode`` of tokenizer, instruction and response (`authors_recipe.authors_row`).

    Held as 32-bit integers, 8 bytes a token: a fifth of what lists of Python's take.
    """
    rows: list[dict[str, Sequence[int]]] = []
    with tqdm(trajectories, desc="encode", unit="example", delay=2, leave=False) as bar:
        texts = ((each.instruction, str(each), "") for each in bar)
        while some := list(islice(texts, ENCODED_AT_ONCE)):
            if encode is None:
                examples = encode_examples(tokenizer, some)
            else:
                examples = [encode(tokenizer, prompt, response) for prompt, response, _ in some]
            rows += [{name: array("i", ids) for name, ids in e.items()} for e in examples]
    return rows


def describe(
    trajectories: Iterable[Trajectory],
    *,
    tokens: Sequence[int] | None = None,
    labels: Mapping[str, Callable[[Trajectory], bool]] | None = None,
) -> pd.DataFrame:
    """One row a trajectory, for statistics and figures.

    Columns: ``tokens`` (when given: `Trajectories.lengths`), ``words`` of the response, ``steps``,
    ``safe``, ``unsafe`` and ``rethink`` (pivots of the reasoning), ``answer_pivots``,
    ``final_pivot``, and one of booleans for each of ``labels``. Whether a request is harmful or an
    answer refuses is not written in the data: say it with a label, from a list of harmful requests,
    or a judge.

    Raises InputError when ``tokens`` are not as many as the trajectories.
    """
    rows = []
    for trajectory in trajectories:
        pivots = collections.Counter(trajectory.pivots)
        rows.append(
            {
                "words": len(str(trajectory).split()),
                "steps": len(trajectory.steps),
                "safe": pivots[SAFE],
                "unsafe": pivots[UNSAFE],
                "rethink": pivots[RETHINK],
                "answer_pivots": sum(map(trajectory.answer.count, (SAFE, UNSAFE, RETHINK))),
                "final_pivot": trajectory.final_pivot or "",
                **{name: bool(holds(trajectory)) for name, holds in (labels or {}).items()},
            }
        )
    table = pd.DataFrame(rows)
    if tokens is not None:
        if len(tokens) != len(table):
            raise InputError(
                f"describe: {len(tokens)} token counts for {len(table)} trajectories; "
                "iterate over the source once, then give its lengths"
            )
        table.insert(0, "tokens", list(tokens))
    return table


@dataclass(frozen=True)
class Statistics:
    """A data set in numbers.

    Attributes:
        trajectories: how many.
        lengths: of tokens (when they were counted), words and steps: mean, and the quantiles
            "min", "50%", "95%", "99%", "max".
        pivots: how many of each in the reasoning.
        final_pivots: how many trajectories end their reasoning in each.
        shares: of the trajectories, by label, and of those with an ``unsafe step``; 0 to 1.
    """

    trajectories: int
    lengths: dict[str, dict[str, float]]
    pivots: dict[str, int]
    final_pivots: dict[str, int]
    shares: dict[str, float]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as one JSON document, atomically."""
        write_json_atomic(path, dataclasses.asdict(self))


_QUANTILES = {"min": 0.0, "50%": 0.5, "95%": 0.95, "99%": 0.99, "max": 1.0}
_COUNTED = ("tokens", "words", "steps", "safe", "unsafe", "rethink", "answer_pivots", "final_pivot")


def summarize(table: pd.DataFrame) -> Statistics:
    """The statistics of a table that `describe` made. Raises InputError for an empty one."""
    if table.empty:
        raise InputError("summarize: the table has no rows")
    lengths = {}
    for name in ("tokens", "words", "steps"):
        if name in table:
            values = table[name]
            found = {key: float(values.quantile(q)) for key, q in _QUANTILES.items()}
            lengths[name] = {"mean": float(values.mean()), **found}
    final = table["final_pivot"].value_counts()
    return Statistics(
        trajectories=len(table),
        lengths=lengths,
        pivots={
            SAFE: int(table["safe"].sum()),
            UNSAFE: int(table["unsafe"].sum()),
            RETHINK: int(table["rethink"].sum()),
        },
        final_pivots={pivot: int(final.get(pivot, 0)) for pivot in (SAFE, UNSAFE, RETHINK)},
        shares={
            "unsafe step": float((table["unsafe"] > 0).mean()),
            **{str(name): float(table[name].mean()) for name in table if name not in _COUNTED},
        },
    )


def _most_frequent(defects: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(defects.items(), key=lambda pair: (-pair[1], pair[0]))


def _kind(message: str) -> str:
    return next(kind for kind, pattern in _KINDS.items() if pattern.match(message))
