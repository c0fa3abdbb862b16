"""Rows out of a manifest (CSV, JSON Lines, Parquet) or a folder of pictures.

Columns: `image` (needed), `seed`, `name`, and any `NODE.INPUT` of the graph. Empty cells and absent keys leave the
graph's own value. What is wrong with one row is said in that row, and the others go on.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from ...svd_core.errors import BatchError, GraphError, nearest
from ...svd_core.utils.optional_deps import require_extra
from ...svd_core.utils.safe_open import open_regular_file
from ..graph.read import parse_graph

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".gif")
"""Suffixes that make a file of a folder a row; what is in the file decides when it is opened."""
LONGEST_ROW = 1024 * 1024
"""Characters of one line."""
LARGEST_COLUMN = 2**30
"""Bytes of one column of a row group of Parquet, unpacked."""
_UNSUSPICIOUS = 16 * 2**20
_MOST_GROWTH = 100
"""Above `_UNSUSPICIOUS`, how many times larger than it is packed. Names of files grow five times or so."""
_ROWS_AT_ONCE = 64
HIGHEST_SEED = 2**64 - 1
_OWN = ("image", "seed", "name")
_PLAIN = (str, int, float, list, dict)
"""What a value may be. Parquet has dates, decimals and bytes, too."""


@dataclass(frozen=True)
class Row:
    """One line of a manifest, or one picture of a folder.

    number  of its line, from 1; in a folder its place
    values  "NODE.INPUT" as the column is called -> text of a cell, or the JSON value
    fault   (code, message) when the row cannot be read
    """

    number: int
    image: str
    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    name: str | None = None
    fault: tuple[str, str] | None = None


def read_rows(source: Path, seeds: Sequence[int] = ()) -> Iterator[Row]:
    """The rows of a manifest, or of all pictures below a folder, sorted.

    seeds  each row that names none is taken once with each of these

    Raises BatchError for a source that cannot be read as a whole, or has an unknown column; MissingExtraError when
    Parquet is not installed.
    """
    rows = _read_folder(source) if source.is_dir() else _read_file(source)
    for row in rows:
        if seeds and row.seed is None and row.fault is None:
            yield from (replace(row, seed=seed) for seed in seeds)
        else:
            yield row


def parse_seeds(text: str) -> list[int]:
    """Seeds as a person writes them: "7", "0,5,9", "0-3", "1-3,10". Raises BatchError."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,20})\s*(?:-\s*(\d{1,20})\s*)?", part, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not (first <= last <= HIGHEST_SEED and last - first < 1_000_000):
            raise BatchError(
                f'seeds are whole numbers, as in "7", "0,5,9" or "0-3", and not "{text[:60]}".', code="manifest.seed"
            )
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _read_folder(folder: Path) -> Iterator[Row]:
    """Links to folders are not followed: they may lead out, or round. Hidden files and folders are left out."""
    number = 0
    for parent, folders, files in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_run(Path(parent, name)))
        below = "" if parent == str(folder) else Path(parent).relative_to(folder).as_posix() + "/"
        for name in sorted(files):
            if name.lower().endswith(PICTURES) and not name.startswith("."):
                number += 1
                yield Row(number, below + name)
    if not number:
        raise BatchError(
            f"there is no picture in {folder}; pictures end in {', '.join(PICTURES)}.", code="manifest.empty"
        )


def _raise_unreadable(error: OSError) -> None:
    raise BatchError(
        f"the folder {error.filename} cannot be read: {error.strerror}. Give a manifest of the pictures to take.",
        code="manifest.file",
    ) from error


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a batch: what it shows was made, and would be made again and again."""
    return (folder / "drivers").is_dir() and (folder / "run.json").exists()


def _read_file(path: Path) -> Iterator[Row]:
    readers = {".csv": _read_csv, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BatchError(
            f"{path} is neither a folder nor a manifest; a manifest ends in {', '.join(readers)}.",
            code="manifest.format",
        )
    empty = True
    try:
        open_regular_file(path).close()  # Parquet's reader opens it by its name
        for row in reader(path):
            empty = False
            yield row
    except OSError as error:
        raise BatchError(
            f"the manifest {path} cannot be read: {error.strerror or error}. Check the path.", code="manifest.file"
        ) from error
    except UnicodeDecodeError as error:
        raise BatchError(
            f"the manifest {path} is not UTF-8 text (byte {error.start} of a part of it); save it as UTF-8.",
            code="manifest.encoding",
        ) from error
    if empty:
        raise BatchError(f"the manifest {path} has no rows; write one line for each video.", code="manifest.empty")


def _read_csv(path: Path) -> Iterator[Row]:
    with io.TextIOWrapper(open_regular_file(path), encoding="utf-8-sig", newline="") as stream:
        lines = _Lines(stream, path)
        reader = csv.reader(lines, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_columns(path, header)
            twice = sorted(name for name, count in Counter(header).items() if count > 1)
            if twice:
                raise BatchError(f'{path} has the column "{twice[0]}" twice; remove one.', code="manifest.columns")
            for cells in reader:
                lines.taken = 0
                if not any(cell.strip() for cell in cells):
                    continue
                number = reader.line_num
                if len(cells) != len(header):
                    told = f"line {number} has {len(cells)} cells, the header has {len(header)}; mend the line."
                    yield Row(number, "", fault=("manifest.row", told))
                    continue
                named = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip() != ""}
                yield _row(number, named)
        except csv.Error as error:
            raise BatchError(
                f"{path} is not CSV, line {reader.line_num}: {error}. Save it again as CSV with commas.",
                code="manifest.csv",
            ) from error


def _read_json_lines(path: Path) -> Iterator[Row]:
    known: set[str] = set()
    with io.TextIOWrapper(open_regular_file(path), encoding="utf-8-sig") as stream:
        for number, line in enumerate(lines := _Lines(stream, path), 1):
            lines.taken = 0
            if not line.strip():
                continue
            try:
                found = parse_graph(line, f"line {number}")
            except GraphError as error:
                told = f"line {number} is no JSON object that can be taken: {error}"
                yield Row(number, "", fault=("manifest." + error.code.removeprefix("graph."), told))
                continue
            if not found.keys() <= known:
                _check_columns(path, [*found, "image"])
                known |= found.keys()
            yield _row(number, {key: value for key, value in found.items() if value is not None})


def _read_parquet(path: Path) -> Iterator[Row]:
    require_extra("pyarrow", "parquet")
    import pyarrow

    try:
        with _opened_parquet(path) as file:
            _check_columns(path, file.schema_arrow.names)
            _check_expansion(path, file.metadata)
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                if batch.nbytes > _ROWS_AT_ONCE * LONGEST_ROW:
                    raise _bomb(path, f"{_ROWS_AT_ONCE} of its rows take {batch.nbytes} bytes")
                for found in batch.to_pylist():
                    number += 1
                    yield _row(number, {key: value for key, value in found.items() if value is not None})
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BatchError(f"{path} is not a Parquet file that can be read: {error}.", code="manifest.parquet") from error


def _opened_parquet(path: Path) -> Any:
    """A file whose footer has no more in it than one of a list of pictures."""
    from pyarrow import parquet

    return parquet.ParquetFile(path, thrift_string_size_limit=16 * 2**20, thrift_container_size_limit=100_000)


def _check_expansion(path: Path, footer: Any) -> None:
    """Raise BatchError when what a column grows to, by the footer, is what no list of pictures does."""
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for place in range(group.num_columns):
            column = group.column(place)
            large, small = column.total_uncompressed_size, max(1, column.total_compressed_size)
            if large > LARGEST_COLUMN or (large > _UNSUSPICIOUS and large > _MOST_GROWTH * small):
                raise _bomb(path, f'its column "{column.path_in_schema[:60]}" grows from {small} to {large} bytes')


def _bomb(path: Path, why: str) -> BatchError:
    return BatchError(
        f"{path} is too large when it is unpacked: {why}. Write it again in smaller row groups, or as JSON Lines.",
        code="manifest.too_large",
    )


@dataclass
class _Lines:
    """The lines of a file. Who reads sets `taken`, the characters of a row so far, to 0 when a row is complete."""

    stream: TextIO
    path: Path
    taken: int = 0

    def __iter__(self) -> Iterator[str]:
        while line := self.stream.readline(LONGEST_ROW + 1):
            self.taken += len(line)
            if self.taken > LONGEST_ROW:
                raise BatchError(
                    f"{self.path} has a line of more than {LONGEST_ROW} characters; is it a manifest?",
                    code="manifest.too_large",
                )
            if "\0" in line:
                raise BatchError(f"{self.path} holds zero bytes; is it a manifest?", code="manifest.encoding")
            yield line


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise BatchError unless there is an image, and every other column may be a NODE.INPUT."""
    if "image" not in names:
        raise BatchError(
            f'{path} has no column "image"; the first line names the columns, and "image" is the path of a picture.',
            code="manifest.columns",
        )
    for name in names:
        if name not in _OWN and "." not in name:
            near = nearest(name, _OWN)
            raise BatchError(
                f'{path} has a column "{name[:60]}"; columns are {", ".join(_OWN)} and inputs of the graph as '
                f"NODE.INPUT, such as SVDMicroConditioning.fps. The nearest are {near}.",
                code="manifest.columns",
            )


def _row(number: int, found: Mapping[str, Any]) -> Row:
    image, name, seed = found.get("image"), found.get("name"), found.get("seed")
    values = {key: value for key, value in found.items() if key not in _OWN}
    if not isinstance(image, str) or image == "":
        return Row(number, "", fault=("manifest.image", f"row {number} names no image; give the path of a picture."))
    for key, value in values.items():
        if not isinstance(value, _PLAIN):
            told = f'row {number}: "{key[:60]}" is a {type(value).__name__}; give text, a number, or true or false.'
            return Row(number, image, fault=("manifest.value", told))
    try:
        return Row(number, image, values, _seed(seed), None if name is None else str(name))
    except (ValueError, TypeError, OverflowError):
        told = f"row {number}: a seed is a whole number from 0 to {HIGHEST_SEED}, got {_shown(seed)}."
        return Row(number, image, fault=("manifest.seed", told))


def _shown(value: Any) -> str:
    return repr(value[:60] if isinstance(value, str) else value)[:62]


def _seed(seed: Any) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or (isinstance(seed, str) and not (seed.isascii() and seed.isdigit())):
        raise ValueError(seed)
    number = int(seed)
    if (number != seed and not isinstance(seed, str)) or not 0 <= number <= HIGHEST_SEED:
        raise ValueError(seed)
    return number
