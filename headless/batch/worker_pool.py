"""What a driver asks of the processes that work for it, however they are started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Answer:
    """A worker's answer to what it was asked: `value`, or how its process `died` before it answered.

    Neither: its process had died before, and what was asked was never begun.

    A process that died is started again by the pool, and must be asked for `hello` first.
    """

    worker: int
    value: Any = None
    died: str | None = None


class Pool(Protocol):
    """A number of workers, by number from 0. Each is asked one thing at a time."""

    @property
    def name(self) -> str:
        """What it is, for people: "2 processes", "4 workers on Ray"."""
        ...

    @property
    def workers(self) -> Sequence[int]:
        """Their numbers."""
        ...

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        """Have a worker call one of its methods (see `worker.QueuedTasker`) with what JSON can hold. Does not wait."""
        ...

    def answers(self, timeout: float) -> list[Answer]:
        """What has been answered, at the latest after `timeout` seconds."""
        ...

    def end(self, worker: int) -> None:
        """End the process of a worker that has been asked something. Its answer is that it died, whatever it was about
        to say."""
        ...

    def close(self) -> None:
        """End all processes."""
        ...
