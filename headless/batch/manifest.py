"""Read the rows of a manifest (CSV, JSON Lines, Parquet) or of a folder of images.

Columns: `image` (required), `seed`, `name`, and any `NODE.INPUT` of the graph. Empty cells and absent keys keep the
graph's own value. A faulty row carries its error, and the other rows are read.
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

from ...svd_core.errors import BatchError, GraphError, nearest, quoted
from ...svd_core.media.image_io import SUFFIXES
from ...svd_core.utils.optional_deps import require_extra
from ...svd_core.utils.safe_open import open_regular_file
from ..graph.read import parse_graph

LONGEST_ROW = 1024 * 1024
"""Characters of one row."""
LARGEST_COLUMN = 2**30
"""Bytes of one column of a row group of Parquet, decompressed."""
_UNSUSPICIOUS = 16 * 2**20
"""Bytes of a decompressed column below which its growth is not checked."""
_MOST_GROWTH = 100
"""Largest allowed ratio of decompressed to compressed size. Names of files grow about five times."""
_PARQUET_ROWS = 16
"""Rows that are decoded at once. Each may repeat a long text of a dictionary, so this limits the memory."""
HIGHEST_SEED = 2**64 - 1
_OWN_COLUMNS = ("image", "seed", "name")
_JSON_TYPES = (str, int, float, list, dict)
"""Allowed types of a value. Parquet has dates, decimals and bytes, too."""


@dataclass(frozen=True)
class Row:
    """One row of a manifest, or one image of a folder.

    Attributes:
        number: Of its line, from 1. In a folder its position.
        image: Path of the image. Empty if `fault` is set and the row has none.
        values: Column "NODE.INPUT" -> text of a cell, or JSON value.
        seed: None if the row has none.
        name: Name of the video for people. None if the row has none.
        fault: (code, message) if the row cannot be used.
    """

    number: int
    image: str
    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    name: str | None = None
    fault: tuple[str, str] | None = None


def read_rows(source: Path, seeds: Sequence[int] = ()) -> Iterator[Row]:
    """Yield the rows of a manifest, or the images below a folder in sorted order.

    Args:
        source: The manifest or folder.
        seeds: A row without a seed is repeated once for each of these.

    Raises:
        BatchError: The source cannot be read, or has an unknown column.
        MissingExtraError: Parquet's library is not installed.
    """
    rows = _read_folder(source) if source.is_dir() else _read_file(source)
    for row in rows:
        if seeds and row.seed is None and row.fault is None:
            yield from (replace(row, seed=seed) for seed in seeds)
        else:
            yield row


def parse_seeds(text: str) -> list[int]:
    """Parse a list of seeds: "7", "0,5,9", "0-3", "1-3,10". Raises BatchError."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})\s*(?:-\s*(\d{1,20})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not (first <= last <= HIGHEST_SEED and last - first < 1_000_000):
            message = f'`seeds` must be integers as in "7", "0,5,9" or "0-3", got "{text[:60]}".'
            raise BatchError(message, code="manifest.seed")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _read_folder(folder: Path) -> Iterator[Row]:
    """Yield the images below a folder, without hidden ones.

    Symbolic links to folders are not followed, because they may lead outside or be circular.
    """
    number = 0
    for parent, folders, files in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_run(Path(parent, name)))
        below = "" if parent == str(folder) else Path(parent).relative_to(folder).as_posix() + "/"
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                number += 1
                yield Row(number, below + name)
    if not number:
        raise BatchError(f"{quoted(folder)} has no image. Images end in {', '.join(SUFFIXES)}.", code="manifest.empty")


def _raise_unreadable(error: OSError) -> None:
    message = (
        f"the folder {quoted(error.filename)} cannot be read: {error.strerror}. Give a manifest that lists the images."
    )
    raise BatchError(message, code="manifest.file") from error


def _is_run(folder: Path) -> bool:
    """Return True for a run folder. Its images are outputs and must not become inputs."""
    return (folder / "drivers").is_dir() and (folder / "run.json").exists()


def _read_file(path: Path) -> Iterator[Row]:
    readers = {".csv": _read_csv, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        message = f"{quoted(path)} must be a folder or a manifest. A manifest ends in {', '.join(readers)}."
        raise BatchError(message, code="manifest.format")
    is_empty = True
    try:
        open_regular_file(path).close()  # Parquet's reader opens the file by its name
        for row in reader(path):
            is_empty = False
            yield row
    except OSError as error:
        message = f"the manifest {quoted(path)} cannot be read: {error.strerror or error}. Check the path."
        raise BatchError(message, code="manifest.file") from error
    except UnicodeDecodeError as error:
        message = (
            f"the manifest {quoted(path)} must be UTF-8 text, got {error.object[error.start]:#x}. Save it as UTF-8."
        )
        raise BatchError(message, code="manifest.encoding") from error
    if is_empty:
        raise BatchError(
            f"the manifest {quoted(path)} has no rows. Write one row for each video.", code="manifest.empty"
        )


def _read_csv(path: Path) -> Iterator[Row]:
    with io.TextIOWrapper(open_regular_file(path), encoding="utf-8-sig", newline="") as stream:
        lines = _Lines(stream, path)
        reader = csv.reader(lines, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_columns(path, header)
            twice = sorted(name for name, count in Counter(header).items() if count > 1)
            if twice:
                raise BatchError(
                    f'{quoted(path)} has the column "{twice[0]}" twice. Remove one.', code="manifest.columns"
                )
            for cells in reader:
                lines.row_length = 0
                if not any(cell.strip() for cell in cells):
                    continue
                number = reader.line_num
                if len(cells) != len(header):
                    message = f"line {number} must have {len(header)} cells as the header has, got {len(cells)}."
                    yield Row(number, "", fault=("manifest.row", message))
                    continue
                yield _row(number, {name: cell.strip() or None for name, cell in zip(header, cells, strict=True)})
        except csv.Error as error:
            message = f"{quoted(path)} is not CSV, line {reader.line_num}: {error}. Save it again as CSV with commas."
            raise BatchError(message, code="manifest.csv") from error


def _read_json_lines(path: Path) -> Iterator[Row]:
    known: set[str] = set()
    with io.TextIOWrapper(open_regular_file(path), encoding="utf-8-sig") as stream:
        for number, line in enumerate(lines := _Lines(stream, path), 1):
            lines.row_length = 0
            if not line.strip():
                continue
            try:
                columns = parse_graph(line, f"line {number}")
            except GraphError as error:
                message = f"line {number} must be a JSON object: {error}"
                yield Row(number, "", fault=("manifest." + error.code.removeprefix("graph."), message))
                continue
            if not columns.keys() <= known:
                _check_columns(path, [*columns, "image"])
                known |= columns.keys()
            yield _row(number, columns)


def _read_parquet(path: Path) -> Iterator[Row]:
    require_extra("pyarrow", "parquet")
    import pyarrow
    from pyarrow import parquet

    try:
        # the footer of a list of images is small
        with parquet.ParquetFile(
            path, thrift_string_size_limit=16 * 2**20, thrift_container_size_limit=100_000
        ) as file:
            _check_columns(path, file.schema_arrow.names)
            _check_expansion(path, file.metadata)
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS):
                if batch.nbytes > _PARQUET_ROWS * LONGEST_ROW:
                    raise _too_large(path, f"{_PARQUET_ROWS} of its rows have {batch.nbytes} bytes")
                for columns in batch.to_pylist():
                    number += 1
                    yield _row(number, columns)
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BatchError(f"{quoted(path)} is not a readable Parquet file: {error}.", code="manifest.parquet") from error


def _check_expansion(path: Path, footer: Any) -> None:
    """Raise BatchError if, by the footer, a column grows more than a list of images can."""
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for index in range(group.num_columns):
            column = group.column(index)
            large, small = column.total_uncompressed_size, max(1, column.total_compressed_size)
            if large > LARGEST_COLUMN or (large > _UNSUSPICIOUS and large > _MOST_GROWTH * small):
                raise _too_large(path, f'its column "{column.path_in_schema[:60]}" grows from {small} to {large} bytes')


def _too_large(path: Path, reason: str) -> BatchError:
    message = f"{quoted(path)} is too large when decompressed: {reason}. Write smaller row groups, or JSON Lines."
    return BatchError(message, code="manifest.too_large")


@dataclass
class _Lines:
    """The lines of a file, with a limit on the length of a row.

    Attributes:
        row_length: Characters of the current row. The reader resets it to 0 when a row is complete.
    """

    stream: TextIO
    path: Path
    row_length: int = 0

    def __iter__(self) -> Iterator[str]:
        while line := self.stream.readline(LONGEST_ROW + 1):
            self.row_length += len(line)
            if self.row_length > LONGEST_ROW:
                message = (
                    f"{quoted(self.path)} has a line of more than {LONGEST_ROW} characters. Check that it "
                    "is a manifest."
                )
                raise BatchError(message, code="manifest.too_large")
            if "\0" in line:
                raise BatchError(
                    f"{quoted(self.path)} has zero bytes. Check that it is a manifest.", code="manifest.encoding"
                )
            yield line


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise BatchError unless one column is `image` and each other one is known or has the form NODE.INPUT."""
    if "image" not in names:
        message = (
            f'{quoted(path)} must have a column "image" with the paths of the images. The first line names the columns.'
        )
        raise BatchError(message, code="manifest.columns")
    for name in names:
        if name not in _OWN_COLUMNS and "." not in name:
            message = (
                f'{quoted(path)} has an unknown column "{name[:60]}". Columns are '
                f"{', '.join(_OWN_COLUMNS)} and NODE.INPUT, "
                f"such as SVDMicroConditioning.fps. The nearest are {nearest(name, _OWN_COLUMNS)}."
            )
            raise BatchError(message, code="manifest.columns")


def _row(number: int, columns: Mapping[str, Any]) -> Row:
    """Return the row with these columns. A column whose value is None is absent."""
    columns = {key: value for key, value in columns.items() if value is not None}
    image, name, seed = columns.get("image"), columns.get("name"), columns.get("seed")
    if not isinstance(image, str) or image == "":
        return Row(number, "", fault=("manifest.image", f"row {number} names no image. Give the path of an image."))
    values = {key: value for key, value in columns.items() if key not in _OWN_COLUMNS}
    for key, value in values.items():
        if not isinstance(value, _JSON_TYPES):
            kind = type(value).__name__
            message = f'row {number}: "{key[:60]}" must be text, a number, true or false, got {kind}.'
            return Row(number, image, fault=("manifest.value", message))
    try:
        return Row(number, image, values, _read_seed(seed), None if name is None else str(name))
    except (ValueError, TypeError, OverflowError):
        text = repr(seed[:60] if isinstance(seed, str) else seed)[:62]
        message = f"row {number}: a seed must be an integer from 0 to {HIGHEST_SEED}, got {text}."
        return Row(number, image, fault=("manifest.seed", message))


def _read_seed(seed: Any) -> int | None:
    """Convert a cell to a seed. Raises ValueError, TypeError or OverflowError if it is not an integer in range."""
    if seed is None:
        return None
    if isinstance(seed, bool) or (isinstance(seed, str) and not (seed.isascii() and seed.isdigit())):
        raise ValueError(seed)
    number = int(seed)
    if (number != seed and not isinstance(seed, str)) or not 0 <= number <= HIGHEST_SEED:
        raise ValueError(seed)
    return number
