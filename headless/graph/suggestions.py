"""Nearest names for error messages, within a budget: a hostile graph must not buy hours of comparing."""

from __future__ import annotations

from collections.abc import Iterable

from ...svd_core.errors import nearest

MAX_COMPARED = 50_000
"""Names that one validation compares at most, about a second."""
MAX_LENGTH = 200
"""Characters of a name that is worth comparing."""


class Hints:
    """Hands out nearest names until the budget is spent, then nothing."""

    def __init__(self) -> None:
        self.left = MAX_COMPARED

    def near(self, name: str, known: Iterable[str]) -> str | None:
        """Three names of `known` that look like `name`, as text; None when there are none or no budget."""
        candidates = [each for each in known if len(each) <= MAX_LENGTH]
        if len(name) > MAX_LENGTH or len(candidates) > self.left:
            return None
        self.left -= len(candidates)
        return nearest(name, candidates) or None
