"""Parse and validate untrusted JSON: bounded parsing, and rules for single values. Needs no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_DIGITS = 100
"""Longest number in characters. File offsets have at most 20; Python 3.10 needs minutes for a million digits."""
STRING = re.compile(rb'"[^"]*"?')  # in text without escapes; an unterminated string extends to the end


def parse_table(text: bytes, max_values: int) -> dict[str, Any]:
    """Parse a JSON object that holds at most `max_values` strings, numbers, lists and objects.

    Values are counted before parsing, because an empty list of two characters becomes sixty bytes in memory.

    Raises:
        ValueError: Other JSON, duplicate keys, NaN or Infinity, numbers with too many digits, or too many values.
    """
    _check_count(text, max_values)
    try:
        table = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=lambda digits: int(_bounded(digits)),
            parse_float=_finite,
            parse_constant=_reject_constant,
        )
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deeply") from error
    if not isinstance(table, dict):
        raise ValueError("it is not a JSON object")
    return table


def _check_count(text: bytes, max_values: int) -> None:
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > 2 * max_values:
        raise ValueError(f"it has more than {max_values} strings")
    bare = STRING.sub(b"", unescaped)
    if sum(map(bare.count, (b"[", b"{", b","))) > max_values:
        raise ValueError(f"it has more than {max_values} values")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("it has a duplicate key")
    return table


def _bounded(digits: str) -> str:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return digits


def _finite(digits: str) -> float:
    value = float(_bounded(digits))
    if math.isinf(value):
        raise ValueError(f"{digits} is too large for a float")
    return value


def _reject_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


@dataclass(frozen=True)
class Rule:
    """A check of one JSON value.

    Attributes:
        need: The requirement as a predicate for messages, such as "must be true or false".
        accepts: Return True if a value meets it.
    """

    need: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def integer(low: int, high: int, step: int = 1) -> Rule:
    """Require an integer in [low, high], a multiple of `step`."""
    need = f"must be an integer from {low} to {high}" + (f" and a multiple of {step}" if step > 1 else "")
    return Rule(
        need, lambda value: isinstance(value, int) and _is_number(value) and low <= value <= high and value % step == 0
    )


def number(low: float, high: float) -> Rule:
    """Require a finite number in [low, high]."""
    return Rule(f"must be a number from {low} to {high}", lambda value: _is_number(value) and low <= value <= high)


BOOLEAN = Rule("must be true or false", lambda value: isinstance(value, bool))


def one_of(*words: str) -> Rule:
    """Require one of these strings."""
    return Rule(f"must be {' or '.join(words)}", lambda value: isinstance(value, str) and value in words)


def list_of(rule: Rule, most: int, least: int = 1) -> Rule:
    """Require a list of `least` to `most` values that each meet `rule`."""
    length = str(most) if least == most else f"{least} to {most}"
    return Rule(
        f"must be a list of {length} values, each of which {rule.need}",
        lambda value: (
            isinstance(value, (list, tuple)) and least <= len(value) <= most and all(map(rule.accepts, value))
        ),
    )


def either(first: Rule, second: Rule) -> Rule:
    """Require one of two rules."""
    return Rule(f"{first.need}, or {second.need}", lambda value: first.accepts(value) or second.accepts(value))
