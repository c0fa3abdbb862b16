"""Progress callbacks of long reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
"""Called with the number of units done so far, also if it has not changed.

Raises `Interrupted`, or the program's own error, to stop the work.
"""
Progress = Callable[[str, int, str], AbstractContextManager[Advance]]
"""(stage, total, unit) -> context manager that yields an `Advance`, as `Runtime.progress` does."""


@contextmanager
def no_progress(stage: str, total: int, unit: str) -> Iterator[Advance]:
    """Ignore progress."""
    yield lambda done: None
