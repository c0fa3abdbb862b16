"""JSON from a stranger's model: tables whose reading costs no more than their size says. Needs no torch."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

LONGEST_NUMBER = 100
"""Letters; a place in a file has at most 20. Older Pythons take minutes for a million digits."""
STRING = re.compile(rb'"[^"]*"?')  # of a text without escapes; one that does not end goes to the end


def parse_table(text: bytes, values: int) -> dict[str, Any]:
    """The JSON table `text`, which has no more than `values` texts, numbers, lists and tables in it.

    Raises ValueError when it is anything else: other JSON, a name twice in a table, a number that is none (NaN,
    Infinity) or has more digits than any file needs, and more values than that, which are counted before it is parsed:
    an empty list of two letters takes sixty bytes.
    """
    _check_count(text, values)
    try:
        table = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_no_number,
        )
    except RecursionError as error:
        raise ValueError("its lists and tables are nested too deeply") from error
    if not isinstance(table, dict):
        raise ValueError("it is not a JSON table")
    return table


def _check_count(text: bytes, most: int) -> None:
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > 2 * most:
        raise ValueError(f"it has more than {most} texts")
    bare = STRING.sub(b"", unescaped)
    if sum(map(bare.count, (b"[", b"{", b","))) > most:
        raise ValueError(f"it has more than {most} values")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"it has a number of {len(digits)} digits")
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is larger than any number")
    return number


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
