"""Nearest names for error messages, within a budget that a hostile graph cannot exceed."""

from __future__ import annotations

from collections.abc import Iterable

from ...svd_core.errors import nearest

MAX_COMPARED = 50_000
"""Names that one validation compares at most, about a second."""
MAX_LENGTH = 200
"""Characters of the longest name that is compared."""


class Hints:
    """Suggests nearest names until the budget is used up."""

    def __init__(self) -> None:
        self.budget = MAX_COMPARED

    def near(self, name: str, known: Iterable[str]) -> str | None:
        """Return up to three names of `known` that resemble `name`, as text. None without a match or a budget."""
        candidates = [candidate for candidate in known if len(candidate) <= MAX_LENGTH]
        if len(name) > MAX_LENGTH or len(candidates) > self.budget:
            return None
        self.budget -= len(candidates)
        return nearest(name, candidates) or None
