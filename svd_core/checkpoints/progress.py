"""Telling the user how far a long reading or writing is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from ..runtime.runtime import Advance

Progress = Callable[[str, int, str], AbstractContextManager[Advance]]
"""`Runtime.progress`: (stage, total, unit) -> a `with` that gives what to call with the units done."""


@contextmanager
def no_progress(stage: str, total: int, unit: str) -> Iterator[Advance]:
    """Progress that is shown to nobody."""
    yield lambda done: None
