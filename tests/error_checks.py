"""Check errors by type, code and facts instead of by sentence, so that messages can be reworded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

TWO_POINTS = re.compile(r"(?<![./])\.\.(?=\s|$)")
"""The end of a path or of a library's text, and that of the sentence which it ends."""


@contextlib.contextmanager
def raises(kind: type[BaseException], code: str | None = None, *facts: object) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error.

    Args:
        kind: Type of the error.
        code: Its `code`. None for errors that have none (ValueError and the like).
        facts: Names, numbers and paths that the message must hold as whole words. Not sentences.
    """
    with pytest.raises(kind) as caught:
        yield caught
    check_error(caught.value, code, *facts)


def check_error(error: BaseException, code: str | None = None, *facts: object) -> None:
    """Assert that an error has `code`, and that its message holds each fact and ends its sentences. See `raises`."""
    if code is not None:
        assert getattr(error, "code", None) == code, f"{type(error).__name__}: {error}"
    check_facts(str(error), *facts)
    assert not TWO_POINTS.search(str(error)), f"two points end a sentence: {error}"


def check_facts(text: str, *facts: object) -> None:
    """Assert that a text holds each fact as a whole word: a name, a number, a path."""
    for fact in map(str, facts):
        start, end = (r"(?<!\w)" if fact[0].isalnum() else ""), (r"(?!\w)" if fact[-1].isalnum() else "")
        assert re.search(start + re.escape(fact) + end, text), f"{fact!r} is not in: {text}"
