"""The rows of a data set, one at a time: of JSON, JSON lines and Parquet files, and of the hub.

A row comes with its place, "file:line" or "name[split]:number"; what is no object comes as a text
that says so.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from r2d_core.errors import InputError

FORMATS = (".parquet", ".jsonl", ".json")
"""Files that are read; in a folder, the first of them that is there, but for JSON lines beside
Parquet, of which one has to be named."""
JOURNAL = "journal.jsonl"
"""What a synthesis notes of every instruction, rejected trajectories too; it is no data."""
Rows = Callable[[], Iterator[tuple[str, object]]]
"""Reads a source from its beginning: (place, row) by (place, row)."""


def rows_of(place: str, split: str, revision: str | None) -> Rows:
    """The rows of a file, of a folder of files, or of a data set on the hub.

    Of a folder those files that `datasets.load_dataset` would take for ``split``, by their names or
    their folders'; where none is named after a split, all are "train". Raises InputError for a
    source that is not there, and for a folder that leaves open which files are meant; reading them
    raises it when the hub cannot be reached or a file is damaged as a whole.
    """
    if Path(place).exists():
        files = _files(Path(place), split)
        return lambda: (row for file in files for row in _rows_of_file(file))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place) and Path(place).suffix not in FORMATS:
        return lambda: _rows_of_hub(place, split, revision)
    raise InputError(
        f"{place}: no such file or folder, and no name of a data set on the hub "
        f"('owner/name'); correct the path"
    )


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        if path.suffix not in FORMATS:
            raise InputError(f"{path}: expected a file that ends in {', '.join(FORMATS)}")
        if path.name == JOURNAL:
            raise InputError(
                f"{path}: the journal of a synthesis, which holds what was rejected, too; give "
                "trajectories.jsonl beside it"
            )
        return [path]
    splits = _splits(path)
    if not splits:
        raise InputError(f"{path}: no file in this folder ends in {', '.join(FORMATS)}")
    if split not in splits:
        names = ", ".join(f"{name} ({files[0].name}, …)" for name, files in splits.items())
        raise InputError(
            f"{path}: no file in this folder is of the split {split!r}; there are {names}: name "
            "the file, or another split"
        )
    chosen = splits[split]
    by_format = {s: [each for each in chosen if each.suffix == s] for s in FORMATS}
    if by_format[".parquet"] and by_format[".jsonl"]:
        both = ", ".join(by_format[s][0].name for s in (".parquet", ".jsonl"))
        raise InputError(f"{path}: expected files of one format, there are {both}; name the file")
    return next(files for files in by_format.values() if files)


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The folder's files by split, as `datasets` tells them from names of files and folders."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    place = str(folder.resolve())
    pattern = glob.escape(place)  # a folder may be called data[1]
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(pattern), base_path=pattern)
    except EmptyDatasetError:
        return {}
    splits = {
        str(split): [
            folder / Path(file).relative_to(place)
            for file in files
            if Path(file).suffix in FORMATS and Path(file).name != JOURNAL
        ]
        for split, files in found.items()
    }
    return {split: files for split, files in splits.items() if files}


def _rows_of_file(file: Path) -> Iterator[tuple[str, object]]:
    if file.suffix == ".parquet":
        return _rows_of_parquet(file)
    if file.suffix == ".json" and _begins_with_bracket(file):
        return _rows_of_array(file)
    return _rows_of_lines(file)


def _begins_with_bracket(file: Path) -> bool:
    """Many a .json file is JSON lines; an array tells by its first character."""
    with file.open("rb") as content:
        return content.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _rows_of_lines(file: Path) -> Iterator[tuple[str, object]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{file}:{number}", _object(line.removeprefix(b"\xef\xbb\xbf"))


def _object(line: bytes) -> object:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return f"broken JSON: {error}"
    return row if isinstance(row, dict) else f"expected an object, got {type(row).__name__}"


def _rows_of_array(file: Path) -> Iterator[tuple[str, object]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: expected a JSON array of objects, found broken JSON ({error}); mend it, or "
            "write JSON lines, where one broken line does not spoil the rest"
        ) from None
    for number, row in enumerate(rows, start=1):
        said = f"expected an object, got {type(row).__name__}"
        yield f"{file}:{number}", row if isinstance(row, dict) else said


def _rows_of_parquet(file: Path) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{file}: cannot be read as Parquet after row {number} "
            f"({_first_line(error)}); get the file again"
        ) from None


def _rows_of_hub(name: str, split: str, revision: str | None) -> Iterator[tuple[str, object]]:
    import datasets  # a second to import, and needed for the hub only

    try:
        rows = datasets.load_dataset(name, split=split, revision=revision, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{name}[{split}]:{number}", row
    # What the libraries between here and the hub raise has no common base but these.
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name}: cannot be read from the hub ({type(error).__name__}: {_first_line(error)}); "
            "check the name, the split and the network, or give the path of a local copy"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
