"""A queue of tasks: those of the plan in its order, and those that are retried."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from .ledger import Ledger
from .tasks import Task

FIRST_CHOICE = 3.0
"""Seconds for which a retried task is reserved for the workers that suit it best."""
_REFILL = 1000
"""Tasks that are read from the ledger at once."""


@dataclass(eq=False)
class QueuedTask:
    """A task and the history of its attempts.

    Attributes:
        attempts: How often its worker died.
        alone: The worker must do nothing else meanwhile, because the task was in a process that died.
        last_worker: Number of the worker that had it last.
        elsewhere: Prefer a worker other than `last_worker`. False: prefer `last_worker`.
        begun: Clock time at which its render was requested.
        put_back: Clock time at which it was queued again.
        not_before: Clock time before which it is not retried.
        tries: Retries by reason: `memory` ran out, or a `temporary` error of a disk or network.
        is_finished: It is done, failed or quarantined.
        deaths: One line per attempt.
    """

    task: Task
    attempts: int
    alone: bool = False
    last_worker: int | None = None
    elsewhere: bool = False
    begun: float = 0.0
    put_back: float = 0.0
    not_before: float = 0.0
    tries: Counter[str] = field(default_factory=Counter)
    is_finished: bool = False
    deaths: list[str] = field(default_factory=list)


class TaskQueue:
    """Returns each task of the plan once, and again each task that is put back."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._last_place = -1
        self._planned: deque[QueuedTask] = deque()
        self._retries: list[QueuedTask] = []

    @property
    def has_retries(self) -> bool:
        """True if tasks wait for a retry, due or not."""
        return bool(self._retries)

    def put_back(self, queued: QueuedTask, elsewhere: bool) -> None:
        """Queue a task for a retry, preferably on another worker, or else preferably on the same one."""
        queued.elsewhere, queued.put_back = elsewhere, time.monotonic()
        self._retries.append(queued)

    def take(self, worker: int, has_others: bool) -> QueuedTask | None:
        """Return the next task for a worker: a retry that is due, or else the next of the plan."""
        return self._take_retry(worker, has_others) or (self._planned.popleft() if self._refill() else None)

    def take_ahead(self) -> QueuedTask | None:
        """Return the next task of the plan, to read its image during another render. None if it must be alone."""
        return self._planned.popleft() if self._refill() and not self._planned[0].alone else None

    def is_empty(self) -> bool:
        """Return True if no task is queued."""
        return not self._retries and not self._refill()

    def _take_retry(self, worker: int, has_others: bool) -> QueuedTask | None:
        now = time.monotonic()
        for index, queued in enumerate(self._retries):
            suits = (queued.last_worker != worker) == queued.elsewhere or now - queued.put_back > FIRST_CHOICE
            if queued.not_before <= now and (suits or not has_others):
                return self._retries.pop(index)
        return None

    def _refill(self) -> bool:
        """Read the next tasks of the plan when needed. Return False at its end."""
        if not self._planned:
            for place, task, attempts in self._ledger.todo(self._last_place, _REFILL):
                self._last_place = place
                self._planned.append(QueuedTask(task, attempts, alone=attempts > 0))
        return bool(self._planned)
