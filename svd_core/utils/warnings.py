"""Warnings as values. Pure functions return them; their caller passes them to the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunWarning:
    """A warning that the result differs from the request.

    Attributes:
        code: Stable identifier for programs: `<area>.<reason>`.
        text: The message for the user.
        facts: More values for programs, JSON-serializable.
    """

    code: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object with code, message and the facts."""
        return {"code": self.code, "message": self.text, **self.facts}
