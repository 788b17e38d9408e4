"""Is the test in the training data? Instructions against evaluation prompts, by three rules.

    exact    the same words in the same order, whatever the case, spaces and punctuation
    ngram    enough of the evaluation text's words lie in n-grams that the training text holds too
    minhash  the two sets of word shingles are alike enough (Jaccard)

`exact` is the certain case, `ngram` also finds an evaluation prompt inside a longer text, `minhash`
one with words changed. None of them finds a paraphrase that shares no phrase.

MinHash with locality-sensitive hashing (datasketch) only proposes pairs; what is reported is their
exact Jaccard similarity, so a pair may be missed with small probability but is never made up.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import pandas as pd
from datasketch import MinHash, MinHashLSH
from tqdm.auto import tqdm

from r2d_core.checking import check_fields
from r2d_core.errors import InputError
from r2d_core.records import write_json_atomic

Rule = Literal["exact", "ngram", "minhash"]
RULES: tuple[Rule, ...] = ("exact", "ngram", "minhash")
Words = tuple[str, ...]
Shingle = tuple[str, ...]
T = TypeVar("T")

# Chinese, Japanese, Thai, Lao, Burmese and Khmer are written without spaces: there, each character
# counts as a word.
_ALONE = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
# Vowel signs, which are no \w: without them दिन (day) and दान (donation) would be the same letters.
_MARKS = "".join(
    chr(code)
    for code in range(0x300, 0x1F000)
    if unicodedata.category(chr(code)) in ("Mn", "Mc") and not 0xFE00 <= code <= 0xFE0F
)
_WORD = re.compile(rf"(?=[^\W_])[{_ALONE}][{_MARKS}]*|(?:[^\W_{_ALONE}][{_MARKS}]*)+")


@dataclass(frozen=True)
class Thresholds:
    """When two texts are too alike.

    Attributes:
        ngram: words in an n-gram. An evaluation text with fewer words is looked for whole.
        coverage: the share of an evaluation text's words, lying in shared n-grams, from which the
            rule `ngram` holds (0 to 1, above 0).
        shingle: words in a shingle, for `minhash`. A text with fewer is one shingle.
        similarity: the Jaccard similarity from which `minhash` holds (0 to 1, above 0).
        permutations: hash functions; more of them miss fewer pairs.

    Raises InputError for a wrong type and a value out of range.
    """

    ngram: int = 5
    coverage: float = 0.7
    shingle: int = 2
    similarity: float = 0.5
    permutations: int = 256

    def __post_init__(self) -> None:
        check_fields(self, "Thresholds")
        for name in ("coverage", "similarity"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise InputError(f"Thresholds {name}: expected above 0 and at most 1, got {value}")
        for name, least in (("ngram", 1), ("shingle", 1), ("permutations", 16)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"Thresholds {name}: expected at least {least}, got {value}")


@dataclass(frozen=True)
class Match:
    """A pair that is too alike: positions (from 0), why, and how much.

    ``coverage`` and ``similarity`` are the exact values of the pair, whichever rule found it.
    """

    training: int
    evaluation: int
    rules: tuple[Rule, ...]
    coverage: float
    similarity: float
    training_text: str
    evaluation_text: str


@dataclass(frozen=True)
class DecontaminationReport:
    """All matches between ``n_training`` and ``n_evaluation`` texts, by training position."""

    thresholds: Thresholds
    n_training: int
    n_evaluation: int
    matches: tuple[Match, ...]

    @property
    def training(self) -> frozenset[int]:
        """Positions of the training texts that are too like some evaluation text."""
        return frozenset(match.training for match in self.matches)

    @property
    def evaluation(self) -> frozenset[int]:
        """Positions of the evaluation texts that some training text is too like."""
        return frozenset(match.evaluation for match in self.matches)

    def clean(self, rows: Sequence[T]) -> list[T]:
        """``rows``, one for each training text, without those that matched.

        Raises InputError when their number is another one.
        """
        if len(rows) != self.n_training:
            raise InputError(
                f"clean: expected the {self.n_training} rows that were compared, got {len(rows)}"
            )
        matched = self.training
        return [row for number, row in enumerate(rows) if number not in matched]

    def counts(self) -> pd.DataFrame:
        """By rule, and for any of them: pairs, training texts and evaluation texts concerned."""
        rows = []
        for rule in (*RULES, "any"):
            found = [m for m in self.matches if rule == "any" or rule in m.rules]
            rows.append(
                {
                    "rule": rule,
                    "pairs": len(found),
                    "training texts": len({m.training for m in found}),
                    "evaluation texts": len({m.evaluation for m in found}),
                }
            )
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """One row a match, the most alike first."""
        rows = [
            {**dataclasses.asdict(match), "rules": ", ".join(match.rules)}
            for match in sorted(self.matches, key=lambda m: (-m.similarity, -m.coverage))
        ]
        return pd.DataFrame(rows, columns=[f.name for f in dataclasses.fields(Match)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one JSON document, atomically."""
        write_json_atomic(path, dataclasses.asdict(self))


def compare(
    training: Sequence[str], evaluation: Sequence[str], thresholds: Thresholds = Thresholds()
) -> DecontaminationReport:
    """Hold every training text against every evaluation text.

    The evaluation texts are indexed and the training texts pass by, so its time grows with their
    sum. A text without a word (empty, punctuation only) matches nothing. The same texts give the
    same report.
    """
    phrases = _PhraseIndex(evaluation, thresholds.ngram)
    similar = SimilarTexts(thresholds)
    verbatim: dict[Words, list[int]] = collections.defaultdict(list)
    for position, text in enumerate(evaluation):
        similar.add(position, text)
        if found := words(text):
            verbatim[found].append(position)

    matches = []
    bar = tqdm(training, desc="compare", unit="text", delay=2, leave=False)
    for number, text in enumerate(bar):
        mine = words(text)
        rules: dict[int, list[Rule]] = collections.defaultdict(list)
        for position in verbatim.get(mine, []):
            rules[position].append("exact")
        covered = phrases.coverage(mine)
        for position, share in covered.items():
            if share >= thresholds.coverage:
                rules[position].append("ngram")
        for position, _ in similar.find(text):
            rules[position].append("minhash")
        for position in sorted(rules):
            matches.append(
                Match(
                    training=number,
                    evaluation=position,
                    rules=tuple(rules[position]),
                    coverage=covered.get(position, 0.0),
                    similarity=jaccard(text, evaluation[position], thresholds.shingle),
                    training_text=text,
                    evaluation_text=evaluation[position],
                )
            )
    return DecontaminationReport(thresholds, len(training), len(evaluation), tuple(matches))


def words(text: str) -> Words:
    """What all rules compare: the words, in one case and one Unicode form, nothing else."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def jaccard(one: str, other: str, shingle: int) -> float:
    """Shared shingles of ``shingle`` words over all shingles of both; 0 for a text without words.

    Repeated shingles count once.
    """
    mine, theirs = _shingles(words(one), shingle), _shingles(words(other), shingle)
    return len(mine & theirs) / len(mine | theirs) if mine and theirs else 0.0


class SimilarTexts:
    """An index of texts that finds those alike to a given one; see `Thresholds` for how alike."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._lsh = MinHashLSH(
            num_perm=thresholds.permutations,
            params=_bands(thresholds.similarity, thresholds.permutations),
        )
        self._shingles: dict[int, frozenset[Shingle]] = {}

    def add(self, key: int, text: str) -> None:
        """Put a text in under a key of its own."""
        if shingles := _shingles(words(text), self._thresholds.shingle):
            self._shingles[key] = shingles
            self._lsh.insert(key, self._sketch(shingles))

    def find(self, text: str) -> list[tuple[int, float]]:
        """Key and Jaccard similarity of the texts alike enough, the most alike first."""
        shingles = _shingles(words(text), self._thresholds.shingle)
        if not shingles or not self._shingles:
            return []
        found = []
        for key in self._lsh.query(self._sketch(shingles)):
            theirs = self._shingles[key]
            similarity = len(shingles & theirs) / len(shingles | theirs)
            if similarity >= self._thresholds.similarity:
                found.append((key, similarity))
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))

    def _sketch(self, shingles: frozenset[Shingle]) -> MinHash:
        sketch = MinHash(num_perm=self._thresholds.permutations, seed=1)
        sketch.update_batch([" ".join(shingle).encode() for shingle in shingles])
        return sketch


@functools.cache
def _bands(similarity: float, permutations: int) -> tuple[int, int]:
    """How datasketch would band the hashes; a tenth of a second to work out."""
    # Most of the weight on not missing a pair: false proposals are weeded out afterwards. Towards 1
    # datasketch would choose a single band, and refuses it; a lower threshold proposes more.
    threshold = min(similarity, 0.9)
    lsh = MinHashLSH(threshold=threshold, num_perm=permutations, weights=(0.05, 0.95))
    return lsh.b, lsh.r


class _PhraseIndex:
    """Which evaluation texts hold an n-gram, and where in them."""

    def __init__(self, texts: Sequence[str], n: int) -> None:
        self._lengths: dict[int, int] = {}  # position of a text -> its number of words
        self._places: dict[Shingle, list[tuple[int, int]]] = collections.defaultdict(list)
        self._sizes: set[int] = set()
        for position, text in enumerate(texts):
            found = words(text)
            if not found:
                continue
            size = min(n, len(found))
            self._sizes.add(size)
            self._lengths[position] = len(found)
            for start, gram in enumerate(_grams(found, size)):
                self._places[gram].append((position, start))

    def coverage(self, found: Words) -> dict[int, float]:
        """By text, the share of its words that lie in n-grams which ``found`` holds as well."""
        covered: dict[int, set[int]] = collections.defaultdict(set)
        for size in self._sizes:
            for gram in set(_grams(found, size)):
                for position, start in self._places.get(gram, ()):
                    covered[position].update(range(start, start + size))
        return {
            position: len(places) / self._lengths[position] for position, places in covered.items()
        }


def _grams(found: Words, n: int) -> Iterator[Shingle]:
    return (found[start : start + n] for start in range(len(found) - n + 1))


def _shingles(found: Words, n: int) -> frozenset[Shingle]:
    return frozenset(_grams(found, min(n, len(found)))) if found else frozenset()
