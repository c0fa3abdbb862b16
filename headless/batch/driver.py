"""Assign tasks to workers and decide what a failure means.

State transitions:
    todo -> running -> done
    running -> failed       the input is at fault; a retry would fail again
    running -> todo         the worker died, hung or lost its device (counts as an attempt),
                            or a disk was full or unavailable (does not count)
    running -> quarantined  after `Options.attempts` attempts

Blame: a worker renders one task while it encodes the previous one and reads the next image. If it dies, the task being
rendered is blamed. All three tasks are then retried alone, so that a second death is unambiguous.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import BatchError, OutputError, SVDStagesError
from .environment import Environment
from .folder import RunFolder
from .ledger import Ledger, LedgerUpdate, State
from .task_queue import QueuedTask, TaskQueue
from .worker import TEMPORARY
from .worker_pool import Answer, Pool

logger = logging.getLogger(__name__)

SHORTEST_DEADLINE = 600.0
"""Seconds that every render may take."""
LONGEST_START = 3600.0
"""Seconds that a worker may take to load its models."""
STARTS = 3
"""Consecutive deaths before a worker was ready, after which it is not used any more."""
LONGEST_PAUSE = 300.0
"""Seconds."""
TEMPORARY_TRIES = 12
"""Retries after temporary errors of a disk or network: about half an hour in all."""
_FLUSH = 0.2
"""Seconds between writes of the ledger."""
_MANY = 1000
"""Changes that are written at once, before `_FLUSH` seconds are over."""


@dataclass(frozen=True)
class Options:
    """Settings of a driver.

    Attributes:
        attempts: A task that killed its worker this often is quarantined.
        deadline: Seconds for one render. None: five times the 95th percentile, at least ten minutes.
        limit: Stop after this many videos. None: all.
        failures: Stop after this many failed tasks. None: never.
        pause: First pause in seconds when a disk is full. Doubled up to five minutes.
    """

    attempts: int = 3
    deadline: float | None = None
    limit: int | None = None
    failures: int | None = None
    pause: float = 1.0


@dataclass
class Progress:
    """Progress of a driver.

    Attributes:
        total: All tasks.
        before: Tasks that were finished before this driver started.
        counts: Tasks finished by this driver, by state.
        began: Clock time of its start.
    """

    total: int
    before: int
    counts: Counter[State] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)

    @property
    def finished(self) -> int:
        """Tasks finished by this driver."""
        return self.counts.total()

    @property
    def rate(self) -> float:
        """Tasks finished per second."""
        return self.finished / max(1e-6, time.monotonic() - self.began)

    @property
    def seconds_left(self) -> float | None:
        """Remaining time at this rate. None before a task is finished."""
        return (self.total - self.before - self.finished) / self.rate if self.finished else None


Watch = Callable[[Progress, dict[str, Any] | None], None]
"""Called with the progress and a finished task (`task`, `state`, ...), or with None about once a second."""


@dataclass(eq=False)
class _Slot:
    """A worker and its tasks.

    Attributes:
        greeting: Random id of the process's `hello`. A restarted process does not have it.
        request: Name of the call that is not answered yet.
        since: Clock time of that call.
        starts: Consecutive deaths during `hello`.
        tries: Consecutive temporary errors during `hello`.
        not_before: Clock time before which `hello` is not retried.
        refusal: Why the worker is not used any more.
        rendering, encoding, reserved: The task being rendered, the one being encoded, the one whose image is read.
    """

    worker: int
    greeting: str = ""
    request: str | None = None
    since: float = 0.0
    is_ready: bool = False
    is_hung: bool = False
    starts: int = 0
    tries: int = 0
    not_before: float = 0.0
    refusal: SVDStagesError | None = None
    rendering: QueuedTask | None = None
    encoding: QueuedTask | None = None
    reserved: QueuedTask | None = None

    def tasks(self) -> list[QueuedTask]:
        """Return the tasks that the worker has."""
        return [task for task in (self.rendering, self.encoding, self.reserved) if task is not None]


class Driver:
    """Runs one batch until no task is left to do."""

    def __init__(
        self,
        folder: RunFolder,
        ledger: Ledger,
        pool: Pool,
        options: Options,
        watch: Watch,
        environment: Environment | None = None,
    ):
        self._folder, self._ledger, self._pool = folder, ledger, pool
        self._options, self._watch = options, watch
        self._environment = environment or Environment()
        self._slots = [_Slot(worker) for worker in pool.workers]
        self._queue = TaskQueue(ledger)
        self._changes: dict[str, LedgerUpdate] = {}
        self._failures: dict[str, dict[str, Any]] = {}
        self._flushed = self._ticked = 0.0
        self._pause, self._paused_until = options.pause, 0.0
        self._seconds: deque[float] = deque(maxlen=500)
        counts = ledger.counts()
        before = counts["done"] + counts["failed"] + counts["quarantined"]
        self.progress = Progress(sum(counts.values()), before)

    def run(self) -> Progress:
        """Work until all tasks are done, failed or quarantined, or the limit is reached.

        The ledger is written on every exit, also on KeyboardInterrupt.

        Raises:
            BatchError: No worker can be used. The error is that of the first worker.
            sqlite3.Error: The ledger cannot be written.
        """
        try:
            while True:
                self._hand_out()
                if self._is_over():
                    break
                for answer in self._pool.answers(self._poll_seconds()):
                    self._take_answer(self._slots[answer.worker], answer)
                self._end_hung()
                self._flush()
                self._tick()
            self._flush(wait=True)
            self._folder.sweep()
        finally:
            self._leave()
        return self.progress

    # Assigning tasks

    def _hand_out(self) -> None:
        if time.monotonic() < self._paused_until:
            return
        for slot in self._slots:
            if slot.request is None and slot.refusal is None:
                if slot.is_ready:
                    self._give_work(slot)
                elif slot.not_before <= time.monotonic() and self._is_needed():
                    slot.greeting = secrets.token_hex(4)
                    self._ask(slot, "hello")

    def _give_work(self, slot: _Slot) -> None:
        if slot.encoding is not None and slot.encoding.alone:
            self._ask(slot, "drain")
            return
        queued = self._pick(slot)
        if queued is None or (queued.alone and slot.encoding is not None):
            slot.reserved = queued
            if slot.encoding is not None:
                self._ask(slot, "drain")
            return
        slot.rendering, queued.last_worker, queued.begun = queued, slot.worker, time.monotonic()
        if not queued.alone and not self._is_at_limit():
            slot.reserved = self._queue.take_ahead()
        self._update(queued, "running")
        upcoming = None if slot.reserved is None else slot.reserved.task.as_dict()
        self._ask(slot, "work", queued.task.as_dict(), upcoming, queued.attempts + 1)

    def _ask(self, slot: _Slot, call: str, *arguments: Any) -> None:
        slot.request, slot.since = call, time.monotonic()
        self._pool.ask(slot.worker, call, slot.greeting, *arguments)

    def _pick(self, slot: _Slot) -> QueuedTask | None:
        """Return the worker's reserved task, or the next of the queue, or the reserved task of a busy worker."""
        if slot.reserved is not None:
            queued, slot.reserved = slot.reserved, None
            return queued
        if self._is_at_limit():
            return None
        queued = self._queue.take(slot.worker, sum(each.is_ready for each in self._slots) > 1)
        if queued is not None:
            return queued
        for other in self._slots:
            if other.reserved is not None and other.request is not None:
                queued, other.reserved = other.reserved, None
                return queued
        return None

    def _is_at_limit(self) -> bool:
        """Return True if enough videos are done or assigned, or too many tasks have failed."""
        done = self.progress.counts["done"]
        failed = self.progress.finished - done
        if self._options.failures is not None and failed >= self._options.failures:
            return True
        assigned = sum(not queued.is_finished for queued in self._assigned())
        return self._options.limit is not None and done + assigned >= self._options.limit

    def _is_needed(self) -> bool:
        """Return True if there will be a task for a worker that is not ready yet."""
        return any(slot.reserved for slot in self._slots) or not (self._is_at_limit() or self._queue.is_empty())

    def _is_over(self) -> bool:
        """Return True if no task is left to do or to wait for. Raises BatchError if no worker can be used."""
        refusals = [slot.refusal for slot in self._slots if slot.refusal is not None]
        if len(refusals) == len(self._slots):
            raise refusals[0]
        if next(self._assigned(), None) is not None or time.monotonic() < self._paused_until:
            return False
        return self._is_at_limit() or self._queue.is_empty()

    # Answers

    def _take_answer(self, slot: _Slot, answer: Answer) -> None:
        request, slot.request = slot.request, None
        if answer.died is not None:
            self._handle_death(slot, request, "it hung" if slot.is_hung else answer.died)
        elif answer.value is None:  # it had died before, so the task to render was never started
            if slot.rendering is not None:
                self._put_back(slot.rendering)
                slot.rendering = None
            self._handle_death(slot, request, "it died while it was idle")
        elif request == "hello":
            self._welcome(slot, answer.value)
        else:
            for outcome in answer.value:
                self._take_outcome(slot, outcome)
            if request == "work":
                slot.encoding, slot.rendering = slot.rendering, None

    def _welcome(self, slot: _Slot, answer: dict[str, Any]) -> None:
        if "again" in answer:  # a disk is temporarily unavailable, or memory is short
            slot.tries += 1
            if slot.tries <= TEMPORARY_TRIES:
                slot.not_before = time.monotonic() + self._retry_delay(slot.tries)
                logger.warning("worker %d is not ready yet: %s", slot.worker + 1, answer["again"])
                return
            answer = {"refused": {"code": "batch.no_workers", "message": answer["again"], "exit_status": 4}}
        slot.tries = 0
        slot.refusal = self._environment.check_worker(answer)
        if slot.refusal is not None:
            logger.warning("worker %d is not used: %s", slot.worker + 1, slot.refusal)
            return
        slot.is_ready, slot.starts = True, 0

    def _take_outcome(self, slot: _Slot, outcome: dict[str, Any]) -> None:
        if slot.rendering is not None and outcome["task"] == slot.rendering.task.id:
            queued, slot.rendering = slot.rendering, None
        else:
            queued, slot.encoding = slot.encoding, None
        assert queued is not None and queued.task.id == outcome["task"]
        if queued.is_finished:
            return
        if outcome["state"] == "done":
            self._finish(queued, "done", seconds=outcome["seconds"], is_ours=outcome["is_ours"])
        elif outcome["state"] == "failed":
            self._fail(queued, {name: value for name, value in outcome.items() if name not in ("task", "state")})
        elif outcome["why"] == "no_space":
            self._wait_for_space(outcome["message"])
            self._put_back(queued)
        else:
            self._retry_later(queued, outcome)

    def _finish(
        self,
        queued: QueuedTask,
        state: State,
        code: str | None = None,
        seconds: float | None = None,
        is_ours: bool = True,
    ) -> None:
        """Record the final state of a task. `is_ours`: a worker of this driver rendered it."""
        queued.is_finished = True
        self._update(queued, state, code)
        self.progress.counts[state] += 1
        if state == "done":
            self._pause = self._options.pause
        if seconds is not None:
            self._seconds.append(seconds)
        task = queued.task
        event = {"task": task.id, "image": task.image, "state": state, "made": is_ours and state == "done"}
        self._watch(self.progress, event if code is None else {**event, "code": code})

    def _fail(self, queued: QueuedTask, failure: dict[str, Any], state: State = "failed") -> None:
        task = queued.task
        context = {"image": task.image, "values": dict(task.values), "attempts": queued.deaths}
        self._failures[task.id] = {**failure, **context}
        self._finish(queued, state, failure["code"])

    def _retry_later(self, queued: QueuedTask, outcome: dict[str, Any]) -> None:
        """Retry a task after an error that may be over later, unless it persists."""
        is_memory = outcome["why"] == "memory"  # another worker may have more
        queued.tries[outcome["why"]] += 1
        tries = queued.tries[outcome["why"]]
        if tries < (self._options.attempts if is_memory else TEMPORARY_TRIES + 1):
            queued.not_before = time.monotonic() + self._retry_delay(tries)
            self._put_back(queued, elsewhere=is_memory)
        else:
            message = f"{outcome['message']} The error persisted in {tries} tries."
            self._fail(queued, {"code": outcome["code"], "message": message})

    def _retry_delay(self, tries: int) -> float:
        """Return the seconds to wait before the next try."""
        return min(LONGEST_PAUSE, self._options.pause * 2 ** min(10, tries - 1))

    def _put_back(self, queued: QueuedTask, elsewhere: bool = False) -> None:
        """Queue a task again, by default for the same worker: its machine usually still has the render."""
        self._update(queued, "todo")
        self._queue.put_back(queued, elsewhere)

    def _wait_for_space(self, message: str) -> None:
        """Assign no tasks for a while, because a disk is full."""
        now = time.monotonic()
        if now >= self._paused_until:
            logger.warning("paused for %.2g s: %s The batch continues when space is free.", self._pause, message)
            self._paused_until = now + self._pause
            self._pause = min(LONGEST_PAUSE, self._pause * 2)

    # Deaths of workers

    def _handle_death(self, slot: _Slot, request: str | None, how: str) -> None:
        is_hung, slot.is_hung, slot.is_ready = slot.is_hung, False, False
        if request == "hello":
            slot.starts += 1
            if slot.starts >= STARTS:
                problem = f"worker {slot.worker + 1} died {STARTS} times before it was ready ({how})"
                message = f"{problem}. See its output above. If memory is short, use fewer workers."
                slot.refusal = BatchError(message, code="batch.no_workers", exit_status=4)
                logger.warning("%s", slot.refusal)
            return
        blamed = slot.rendering or slot.encoding
        for queued in slot.tasks():
            if not queued.is_finished:
                queued.alone = True
                if self._folder.is_done(queued.task.id):
                    self._finish(queued, "done")
                elif queued is blamed:
                    self._count_attempt(queued, slot, how, is_hung)
                else:
                    self._put_back(queued)
        slot.rendering = slot.encoding = slot.reserved = None

    def _count_attempt(self, queued: QueuedTask, slot: _Slot, how: str, is_hung: bool) -> None:
        queued.attempts += 1
        queued.deaths.append(f"worker {slot.worker + 1}: {how}")
        logger.warning("worker %d: %s, with %s (attempt %d)", slot.worker + 1, how, queued.task.image, queued.attempts)
        if queued.attempts < self._options.attempts:
            self._put_back(queued, elsewhere=True)
            return
        code = "batch.hung" if is_hung else "batch.killed"
        message = f"its worker died {queued.attempts} times during this render ({how}). It is not retried."
        self._fail(queued, {"code": code, "message": message, "quarantined": True}, "quarantined")

    def _end_hung(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            limit = LONGEST_START if slot.request == "hello" else self._deadline()
            if slot.request is not None and not slot.is_hung and now - slot.since > limit:
                logger.warning("worker %d did not answer for %.0f s. It is killed", slot.worker + 1, now - slot.since)
                slot.is_hung = True
                self._pool.end(slot.worker)

    def _deadline(self) -> float:
        if self._options.deadline is not None:
            return self._options.deadline
        if len(self._seconds) < 5:
            return max(SHORTEST_DEADLINE, LONGEST_START)  # the first render may compile
        return max(SHORTEST_DEADLINE, 5 * sorted(self._seconds)[math.ceil(0.95 * len(self._seconds)) - 1])

    # The ledger

    def _update(self, queued: QueuedTask, state: State, code: str | None = None) -> None:
        self._changes[queued.task.id] = LedgerUpdate(queued.task.id, state, queued.attempts, code)

    def _flush(self, wait: bool = False) -> None:
        """Write pending changes, not more often than needed. A full disk pauses; `wait` retries until it is written."""
        while self._changes or self._failures:
            if not wait and time.monotonic() - self._flushed < _FLUSH and len(self._changes) < _MANY:
                return
            self._flushed = time.monotonic()
            try:
                self._write_changes()
                return
            except (sqlite3.OperationalError, OutputError) as error:
                if not _is_temporary(error):
                    raise
                self._wait_for_space(f"the ledger cannot be written ({error}).")
                if not wait:
                    return
                time.sleep(max(0.0, self._paused_until - time.monotonic()))

    def _write_changes(self) -> None:
        for task_id in list(self._failures):
            self._folder.write_failure(task_id, self._failures[task_id])
            del self._failures[task_id]
        self._ledger.record(list(self._changes.values()))
        self._changes.clear()

    def _leave(self) -> None:
        """Set running tasks to todo. If that cannot be written, the next driver finds the states in the run folder."""
        for queued in self._assigned():
            if not queued.is_finished:
                self._update(queued, "todo")
        with contextlib.suppress(sqlite3.Error, SVDStagesError):
            self._write_changes()

    def _assigned(self) -> Iterator[QueuedTask]:
        for slot in self._slots:
            yield from slot.tasks()

    def _poll_seconds(self) -> float:
        """Return how long to wait for answers: until a retry may be due, at most a second."""
        if self._paused_until > time.monotonic():
            return min(1.0, max(0.01, self._paused_until - time.monotonic()))
        return 0.05 if self._queue.has_retries else 0.5

    def _tick(self) -> None:
        if time.monotonic() - self._ticked < 1.0:
            return
        self._ticked = time.monotonic()
        for slot in self._slots:  # a worker reports an encoded video only after the next render
            queued = slot.encoding
            if queued is not None and not queued.is_finished and self._folder.is_done(queued.task.id):
                self._finish(queued, "done", seconds=time.monotonic() - queued.begun)
        self._watch(self.progress, None)


def _is_temporary(error: sqlite3.OperationalError | OutputError) -> bool:
    """Return True if a disk is full, busy or temporarily unavailable."""
    if isinstance(error, OutputError):
        cause = error.__cause__
        return error.code == "output.no_space" or (isinstance(cause, OSError) and cause.errno in TEMPORARY)
    return any(word in str(error) for word in ("full", "locked", "busy", "I/O"))
