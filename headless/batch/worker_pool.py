"""The interface of worker pools: plain processes (`process_pool`) and Ray actors (`ray_pool`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Answer:
    """A worker's answer to a request.

    Attributes:
        worker: Its number.
        value: The result. None if the process died.
        died: How the process died while it worked on the request. None, with `value` None, means: it had died before
            and did not start the request.

    The pool restarts a process that died. The new process must get a `hello` first.
    """

    worker: int
    value: Any = None
    died: str | None = None


class Pool(Protocol):
    """Workers, numbered from 0. Each gets one request at a time."""

    @property
    def name(self) -> str:
        """A description for people: "2 processes", "4 workers on Ray"."""
        ...

    @property
    def workers(self) -> Sequence[int]:
        """The workers' numbers."""
        ...

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        """Send a method call (see `worker.Worker`) with JSON arguments to a worker. Does not wait."""
        ...

    def answers(self, timeout: float) -> list[Answer]:
        """Return the answers that arrived, after at most `timeout` seconds."""
        ...

    def end(self, worker: int) -> None:
        """Kill the process of a worker that has a request. Its answer is that it died, even if it had just replied."""
        ...

    def close(self) -> None:
        """Kill all processes."""
        ...
