"""Tables of the rows of `svd-stages bench --card`, and the file that they are in."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from ...svd_core.errors import SettingError, quoted
from ...svd_core.runtime.memory import format_bytes
from .card import GROUPS
from .report import header, table_row

RUN = "run"
"""Group of the line that begins a run: device, versions, size, command."""
IDENTITY = ("device", "dtype", "size")
"""Values of a run that must agree with those of the last one: others are of another card."""

Row = dict[str, Any]


def _number(row: Row, field: str, form: str) -> str:
    value = row.get(field)
    return "" if value is None else format(value, form)


def _faster(row: Row) -> str:
    if row.get("faster") is None:
        return ""
    return f"{row['faster']:.2f} ({row['faster_least']:.2f} to {row['faster_most']:.2f})"


def _size(row: Row, field: str) -> str:
    value = row.get(field)
    return "" if value is None else format_bytes(value)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "seconds": lambda row: _number(row, "seconds", ".4g"),
    "times faster, in each turn": _faster,
    "spread": lambda row: _number(row, "spread", ".0%"),
    "first call": lambda row: _number(row, "first", ".4g"),
    "difference": lambda row: _number(row, "difference", ".2g"),
    "TFLOP/s": lambda row: _number(row, "tflop_per_s", ".4g"),
    "GB/s": lambda row: _number(row, "gb_per_s", ".4g"),
    "peak": lambda row: _size(row, "peak"),
    "allocated": lambda row: _size(row, "allocated"),
    "reserved": lambda row: _size(row, "reserved"),
    "driver": lambda row: _size(row, "driver"),
    "note": lambda row: _note(row),
}
"""Heading -> the cell of a row. A value that a row lacks is an empty cell."""
TIMES = ("seconds", "spread")
OF_GROUP = {
    "machine": ("note",),
    "checks": ("difference", "note"),
    "step": (*TIMES, "times faster, in each turn", "first call", "difference", "TFLOP/s", "peak", "note"),
    "decode": (*TIMES, "times faster, in each turn", "first call", "difference", "TFLOP/s", "peak", "note"),
    "activations": (*TIMES, "TFLOP/s", "peak", "note"),
    "compute": (*TIMES, "TFLOP/s", "GB/s", "note"),
    "attention": (*TIMES, "TFLOP/s", "peak", "note"),
    "rewrites": (*TIMES, "times faster, in each turn", "difference", "peak", "note"),
    "weights": (*TIMES, "GB/s", "peak", "note"),
    "transfers": (*TIMES, "GB/s", "note"),
    "memory": ("seconds", "allocated", "reserved", "driver", "note"),
    "cudnn": (*TIMES, "first call", "note"),
    "profile": ("seconds", "note"),
    "compiled": (*TIMES, "times faster, in each turn", "first call", "difference", "TFLOP/s", "peak", "note"),
}
"""Group -> headings of its columns."""


def _note(row: Row) -> str:
    """Return what a row says in words: its failure, its values, the plan."""
    texts = [row["status"]] if row.get("status", "ok") != "ok" else []
    texts += [str(row[field]) for field in ("reason", "note", "plan") if row.get(field)]
    values = row.get("values") or {}
    texts += [f"{name} {value}" for name, value in values.items() if value is not None]
    return ", ".join(texts).replace("|", "/").replace("\n", " ")


def table_header(group: str) -> str:
    """Return the first lines of a group's table."""
    return header((group, *OF_GROUP[group]))


def table_line(row: Row) -> str:
    """Return a row as a line of its group's table."""
    return table_row(row["row"], *(COLUMNS[heading](row) for heading in OF_GROUP[row["group"]]))


def read_rows(path: Path) -> tuple[Row, dict[tuple[str, str], Row]]:
    """Read a file of rows: the last run, and (group, row) -> the last row that was measured on its device.

    A line that was not completed is passed over. A row that was measured replaces one of before, whatever its run.

    Raises:
        SettingError: The file cannot be read, or is none of `bench --card`.
    """
    lines = list(_lines(path))
    runs = [line for line in lines if line.get("group") == RUN]
    if not runs:
        raise SettingError(f'{quoted(path)} must be a file of "svd-stages bench --card"')
    last, counts = runs[-1], False
    rows: dict[tuple[str, str], Row] = {}
    for line in lines:
        key = (str(line.get("group")), str(line.get("row")))
        if key[0] == RUN:
            counts = all(line.get(name) == last.get(name) for name in IDENTITY)
        elif counts and (line.get("status") == "ok" or rows.get(key, line).get("status") != "ok"):
            rows[key] = line
    return last, rows


def _lines(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SettingError(f"{quoted(path)} cannot be read: {error.strerror}") from error
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def format_file(path: Path, groups: Collection[str]) -> str:
    """Return the tables of a file as Markdown. Rows without a figure have empty cells.

    Raises:
        SettingError: See `read_rows`.
    """
    last, rows = read_rows(path)
    parts = ["; ".join(f"{name} {value}" for name, value in last.items() if name not in ("group", "row", "status"))]
    for group in [each for each in GROUPS if each in groups]:
        parts.append(table_header(group))
        parts += [table_line(rows.get((group, row.name), {"group": group, "row": row.name})) for row in GROUPS[group]]
    return "\n".join(parts)
