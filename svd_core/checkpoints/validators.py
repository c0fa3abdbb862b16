"""What a value in a stranger's table may be: rules that answer whether it is, and what is needed. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Rule = Callable[[Any], tuple[bool, str]]
"""A value -> whether it is right, and what it must be, for the end of "... must be"."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_row(value: Any, most: int) -> bool:
    return isinstance(value, (list, tuple)) and 1 <= len(value) <= most


def whole(low: int, high: int, step: int = 1) -> Rule:
    """A whole number in a range, ends included."""
    need = f"must be a whole number from {low} to {high}" + (f" and a multiple of {step}" if step > 1 else "")

    def rule(value: Any) -> tuple[bool, str]:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and low <= value <= high and value % step == 0, need

    return rule


def number(low: float, high: float) -> Rule:
    """A number in a range, ends included."""

    def rule(value: Any) -> tuple[bool, str]:
        return _is_number(value) and low <= value <= high, f"must be a number from {low} to {high}"

    return rule


def flag(value: Any) -> tuple[bool, str]:
    """True or false."""
    return isinstance(value, bool), "must be true or false"


def flags(most: int) -> Rule:
    """A row of true and false."""

    def rule(value: Any) -> tuple[bool, str]:
        inside = _is_row(value, most) and all(isinstance(each, bool) for each in value)
        return inside, f"must be a row of true or false, 1 to {most} of them"

    return rule


def three(low: float, high: float) -> Rule:
    """Three numbers, each in a range."""

    def rule(value: Any) -> tuple[bool, str]:
        row = isinstance(value, (list, tuple)) and len(value) == 3
        inside = row and all(_is_number(number) and low <= number <= high for number in value)
        return inside, f"must be three numbers from {low} to {high}"

    return rule


def one_of(*words: str) -> Rule:
    """One of these texts."""

    def rule(value: Any) -> tuple[bool, str]:
        return isinstance(value, str) and value in words, f"must be {' or '.join(words)}"

    return rule


def row(most: int, each: Rule) -> Rule:
    """A row of values that `each` finds right."""

    def rule(value: Any) -> tuple[bool, str]:
        inside = _is_row(value, most) and all(each(one)[0] for one in value)
        return inside, f"must be a row of 1 to {most}, each of which {each(None)[1]}"

    return rule


def either(first: Rule, second: Rule) -> Rule:
    """A value that one of the two finds right."""

    def rule(value: Any) -> tuple[bool, str]:
        return first(value)[0] or second(value)[0], f"{first(None)[1]}, or {second(None)[1]}"

    return rule
