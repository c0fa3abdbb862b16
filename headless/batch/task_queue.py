"""Tasks that wait for a worker: those of the plan in its order, and those that came back."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from .ledger import Ledger
from .tasks import Task

FIRST_CHOICE = 3.0
"""Seconds in which a task that came back is left to the workers that suit it best."""
_REFILL = 1000


@dataclass(eq=False)
class QueuedTask:
    """A task on its way.

    alone        nothing may run beside it: it was there when a process died
    last_worker  who had it; `elsewhere`: another one suits it better than that
    not_before   of the clock, when it may be tried again
    tries        how often trouble met it that was not its own; `shortages`: of memory
    """

    task: Task
    attempts: int
    alone: bool = False
    last_worker: int | None = None
    elsewhere: bool = False
    begun: float = 0.0
    put_back: float = 0.0
    not_before: float = 0.0
    tries: int = 0
    shortages: int = 0
    is_finished: bool = False
    deaths: list[str] = field(default_factory=list)


class Waiting:
    """Hands out each task of the plan once, and those that were put back again."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._place = -1
        self._next: deque[QueuedTask] = deque()
        self._back: list[QueuedTask] = []

    @property
    def has_returned(self) -> bool:
        """Whether tasks that came back wait, be it for their time."""
        return bool(self._back)

    def put_back(self, work: QueuedTask, elsewhere: bool) -> None:
        """A task is to be tried again, rather on another worker than where it was, or rather there."""
        work.elsewhere, work.put_back = elsewhere, time.monotonic()
        self._back.append(work)

    def take(self, worker: int, has_others: bool) -> QueuedTask | None:
        """The next task for a worker: one that came back and is due, or the next of the plan."""
        return self._take_back(worker, has_others) or (self._next.popleft() if self._refill() else None)

    def take_ahead(self) -> QueuedTask | None:
        """The next of the plan, to be read while another one is rendered; None when it must be alone."""
        return self._next.popleft() if self._refill() and not self._next[0].alone else None

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._back and not self._refill()

    def _take_back(self, worker: int, has_others: bool) -> QueuedTask | None:
        now = time.monotonic()
        for index, work in enumerate(self._back):
            suits = (work.last_worker != worker) == work.elsewhere or now - work.put_back > FIRST_CHOICE
            if work.not_before <= now and (suits or not has_others):
                return self._back.pop(index)
        return None

    def _refill(self) -> bool:
        """Whether the plan has a next one."""
        if not self._next:
            for place, task, attempts in self._ledger.todo(self._place, _REFILL):
                self._place = place
                self._next.append(QueuedTask(task, attempts, alone=attempts > 0))
        return bool(self._next)
