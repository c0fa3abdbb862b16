"""The driver: hands tasks to workers, one at a time each, and decides what a failure means.

    todo -> running -> done
                    -> failed       the row's own fault, with its code; nothing changes when it is tried again
                    -> todo         its worker died, hung or lost its device: that is an attempt. Or a disk was full,
                                    or gone for a while: that is none
                    -> quarantined  after `Options.attempts` attempts

Who killed a process? A worker renders one task while it encodes the one before and reads the image of the next. The
rendered one is blamed; all that were there go on alone, with nothing beside them, so that the next death is certain.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import BatchError, OutputError, SVDStagesError
from .environment import Environment
from .folder import RunFolder
from .ledger import Ledger, LedgerUpdate, State
from .task_queue import QueuedTask, Waiting
from .worker import PASSING
from .worker_pool import Answer, Pool

logger = logging.getLogger(__name__)

SHORTEST_DEADLINE = 600.0
"""Seconds that a render has at least, before it is called hung."""
LONGEST_START = 3600.0
"""Seconds that a worker has to load its models."""
STARTS = 3
"""Deaths before a worker was ready, in a row, after which it is given up."""
LONGEST_PAUSE = 300.0
PASSING_TRIES = 12
"""How often trouble of a disk or network is waited for: about half an hour in all."""
_FLUSH = 0.2
_MANY = 1000
"""Changes that are written down at once."""


@dataclass(frozen=True)
class Options:
    """How a driver goes about it.

    attempts  a task that ended its worker so often is quarantined
    deadline  seconds for one render; None: five times what 95 of 100 take, and at least ten minutes
    limit     stop after so many clips; None: all
    failures  stop when so many tasks have failed; None: go on
    pause     seconds that a full disk is waited for at first; doubled up to five minutes
    """

    attempts: int = 3
    deadline: float | None = None
    limit: int | None = None
    failures: int | None = None
    pause: float = 1.0


@dataclass
class Progress:
    """How far a driver is: tasks in all, finished before it began, and since."""

    total: int
    before: int
    done: int = 0
    failed: int = 0
    quarantined: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def finished(self) -> int:
        """Since this driver began."""
        return self.done + self.failed + self.quarantined

    @property
    def rate(self) -> float:
        """Tasks finished in a second."""
        return self.finished / max(1e-6, time.monotonic() - self.began)

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None before anything is finished."""
        left = self.total - self.before - self.finished
        return left / self.rate if self.finished else None


Watch = Callable[[Progress, dict[str, Any] | None], None]
"""Called with the progress and what became of a task (`task`, `state`, ...), or None about once a second."""


@dataclass(eq=False)
class _Slot:
    """A worker, and what it has: the task that is rendered, that is encoded, whose image is read."""

    worker: int
    greeting: str = ""
    asked: str | None = None
    since: float = 0.0
    is_ready: bool = False
    is_hung: bool = False
    starts: int = 0
    tries: int = 0
    not_before: float = 0.0
    gone: SVDStagesError | None = None
    rendering: QueuedTask | None = None
    encoding: QueuedTask | None = None
    reserved: QueuedTask | None = None


class Driver:
    """One batch, from what the ledger says is to do until nothing is left."""

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
        self._waiting = Waiting(ledger)
        self._changes: dict[str, LedgerUpdate] = {}
        self._failures: dict[str, dict[str, Any]] = {}
        self._flushed = self._ticked = 0.0
        self._pause, self._paused_until = options.pause, 0.0
        self._seconds: deque[float] = deque(maxlen=500)
        counts = ledger.counts()
        before = counts["done"] + counts["failed"] + counts["quarantined"]
        self.progress = Progress(sum(counts.values()), before)

    def run(self) -> Progress:
        """Work until all is done, failed or quarantined, or the limit is reached.

        Raises BatchError when no worker can work (with its reason), or the ledger cannot be written; KeyboardInterrupt
        goes through, and the ledger has what was known by then.
        """
        try:
            while True:
                self._hand_out()
                if self._is_over():
                    break
                for answer in self._pool.answers(self._patience()):
                    self._take_answer(self._slots[answer.worker], answer)
                self._end_hung()
                self._flush()
                self._tick()
            self._flush(wait=True)
            self._folder.sweep()
        finally:
            self._leave()
        return self.progress

    # Handing out

    def _hand_out(self) -> None:
        if time.monotonic() < self._paused_until:
            return
        for slot in self._slots:
            if slot.asked is None and slot.gone is None:
                if slot.is_ready:
                    self._give_work(slot)
                elif slot.not_before <= time.monotonic() and self._is_needed():
                    slot.greeting = secrets.token_hex(4)
                    self._ask(slot, "hello")

    def _give_work(self, slot: _Slot) -> None:
        if slot.encoding is not None and slot.encoding.alone:
            self._ask(slot, "drain")
            return
        work = self._pick(slot)
        if work is None or (work.alone and slot.encoding is not None):
            slot.reserved = work
            if slot.encoding is not None:
                self._ask(slot, "drain")
            return
        slot.rendering, work.last_worker, work.begun = work, slot.worker, time.monotonic()
        if not work.alone and not self._is_at_limit():
            slot.reserved = self._waiting.take_ahead()
        self._note(work, "running")
        upcoming = None if slot.reserved is None else slot.reserved.task.as_dict()
        self._ask(slot, "work", work.task.as_dict(), upcoming, work.attempts + 1)

    def _ask(self, slot: _Slot, call: str, *arguments: Any) -> None:
        slot.asked, slot.since = call, time.monotonic()
        self._pool.ask(slot.worker, call, slot.greeting, *arguments)

    def _pick(self, slot: _Slot) -> QueuedTask | None:
        """The next task for a worker: one that it has read already, one that waits, or one that another worker has
        only read."""
        if slot.reserved is not None:
            work, slot.reserved = slot.reserved, None
            return work
        if self._is_at_limit():
            return None
        work = self._waiting.take(slot.worker, sum(each.is_ready for each in self._slots) > 1)
        if work is not None:
            return work
        for other in self._slots:
            if other.reserved is not None and other.asked is not None:
                work, other.reserved = other.reserved, None
                return work
        return None

    def _is_at_limit(self) -> bool:
        """Whether as many clips are done or on their way as are wanted, or too many have failed."""
        if self._options.failures is not None and self.progress.finished - self.progress.done >= self._options.failures:
            return True
        on_the_way = sum(not work.is_finished for work in self._on_the_way())
        return self._options.limit is not None and self.progress.done + on_the_way >= self._options.limit

    def _is_needed(self) -> bool:
        """Whether a worker that is not ready yet will have something to do."""
        if any(slot.reserved for slot in self._slots):
            return True
        return not self._is_at_limit() and not self._waiting.is_empty()

    def _is_over(self) -> bool:
        """Whether nothing is left to do, or to wait for. Raises BatchError when all workers are gone."""
        if all(slot.gone for slot in self._slots):
            first = self._slots[0].gone
            assert first is not None
            raise first
        if next(self._on_the_way(), None) is not None or time.monotonic() < self._paused_until:
            return False
        return self._is_at_limit() or self._waiting.is_empty()

    # Answers

    def _take_answer(self, slot: _Slot, answer: Answer) -> None:
        asked, slot.asked = slot.asked, None
        if answer.died is not None:
            self._bury(slot, asked, "it hung" if slot.is_hung else answer.died)
        elif answer.value is None:
            self._bury_idle(slot, asked)
        elif asked == "hello":
            self._welcome(slot, answer.value)
        else:
            for outcome in answer.value:
                self._take_outcome(slot, outcome)
            if slot.encoding is not None:  # not told of, though nothing is encoded any more
                self._bury(slot, asked, "it forgot a clip")
            elif asked == "work":
                slot.encoding, slot.rendering = slot.rendering, None

    def _welcome(self, slot: _Slot, told: dict[str, Any]) -> None:
        if "again" in told:  # a disk that is away for a while, memory that is short
            slot.tries += 1
            if slot.tries <= PASSING_TRIES:
                slot.not_before = time.monotonic() + self._later(slot.tries)
                logger.warning("worker %d is not ready yet: %s", slot.worker + 1, told["again"])
                return
            told = {"refused": {"code": "batch.no_workers", "message": told["again"], "exit_status": 4}}
        slot.tries = 0
        slot.gone = self._environment.take(told)
        if slot.gone is not None:
            logger.warning("worker %d is not used: %s", slot.worker + 1, slot.gone)
            return
        slot.is_ready, slot.starts = True, 0

    def _take_outcome(self, slot: _Slot, outcome: dict[str, Any]) -> None:
        if slot.rendering is not None and outcome["task"] == slot.rendering.task.id:
            work, slot.rendering = slot.rendering, None
        elif slot.encoding is not None and outcome["task"] == slot.encoding.task.id:
            work, slot.encoding = slot.encoding, None
        else:  # of what this slot no longer has
            return
        if work.is_finished:
            return
        if outcome["state"] == "done":
            self._finish(work, "done", seconds=outcome["seconds"], made=outcome["is_ours"])
        elif outcome["state"] == "failed":
            self._fail(work, {name: value for name, value in outcome.items() if name not in ("task", "state")})
        elif outcome["why"] == "no_space":
            self._wait_for_space(outcome["message"])
            self._put_back(work)
        elif outcome["why"] == "memory":
            self._try_elsewhere(work, outcome)
        else:
            self._try_later(work, outcome["message"])

    def _finish(
        self, work: QueuedTask, state: State, code: str | None = None, seconds: float | None = None, made: bool = True
    ) -> None:
        """A task came to its end. `made`: by one of our workers."""
        work.is_finished = True
        self._note(work, state, code)
        if state == "done":
            self.progress.done += 1
            self._pause = self._options.pause
            if seconds is not None:
                self._seconds.append(seconds)
        elif state == "failed":
            self.progress.failed += 1
        else:
            self.progress.quarantined += 1
        about = {"task": work.task.id, "image": work.task.image, "state": state, "made": made and state == "done"}
        self._watch(self.progress, about if code is None else {**about, "code": code})

    def _fail(self, work: QueuedTask, failure: dict[str, Any]) -> None:
        self._failures[work.task.id] = {**failure, **self._about(work)}
        self._finish(work, "failed", failure["code"])

    def _about(self, work: QueuedTask) -> dict[str, Any]:
        return {"image": work.task.image, "values": dict(work.task.values), "attempts": work.deaths}

    def _try_later(self, work: QueuedTask, message: str) -> None:
        work.tries += 1
        if work.tries > PASSING_TRIES:
            self._fail(work, {"code": "output.failed", "message": f"{message} It did not pass in {work.tries} tries."})
            return
        work.not_before = time.monotonic() + self._later(work.tries)
        self._put_back(work)

    def _try_elsewhere(self, work: QueuedTask, outcome: dict[str, Any]) -> None:
        """Memory was short: another worker may have more, or this one later."""
        work.shortages += 1
        if work.shortages >= self._options.attempts:
            self._fail(work, {"code": outcome["code"], "message": outcome["message"]})
            return
        work.not_before = time.monotonic() + self._later(work.shortages)
        self._put_back(work, elsewhere=True)

    def _later(self, tries: int) -> float:
        """Seconds to wait before the next of so many tries."""
        return min(LONGEST_PAUSE, self._options.pause * 2 ** min(10, tries - 1))

    def _put_back(self, work: QueuedTask, elsewhere: bool = False) -> None:
        """Where it was, what was rendered of it is mostly still there."""
        self._note(work, "todo")
        self._waiting.put_back(work, elsewhere)

    def _wait_for_space(self, message: str) -> None:
        """No space: nobody gets work for a while."""
        now = time.monotonic()
        if now >= self._paused_until:
            logger.warning("paused for %.2g s: %s The batch goes on by itself when that is over.", self._pause, message)
            self._paused_until = now + self._pause
            self._pause = min(LONGEST_PAUSE, self._pause * 2)

    # Deaths

    def _bury(self, slot: _Slot, asked: str | None, how: str) -> None:
        """A worker's process has died."""
        hung, slot.is_hung, slot.is_ready = slot.is_hung, False, False
        if asked == "hello":
            slot.starts += 1
            if slot.starts >= STARTS:
                slot.gone = BatchError(
                    f"worker {slot.worker + 1} died {STARTS} times before it was ready ({how}); what it printed stands "
                    "above. Often memory is short: use fewer workers.",
                    code="batch.no_workers",
                    exit_status=4,
                )
                logger.warning("%s", slot.gone)
            return
        blamed = slot.rendering or slot.encoding
        for work in (slot.rendering, slot.encoding, slot.reserved):
            if work is not None and not work.is_finished:
                work.alone = True
                if work is blamed:
                    self._count_death(work, slot, how, hung)
                elif self._folder.is_done(work.task.id):
                    self._finish(work, "done")
                else:
                    self._put_back(work)
        slot.rendering = slot.encoding = slot.reserved = None

    def _bury_idle(self, slot: _Slot, asked: str | None) -> None:
        """A worker's process had died before it was asked: what it was to render was never begun."""
        rendering, slot.rendering = slot.rendering, None
        if rendering is not None:
            self._put_back(rendering)
        self._bury(slot, asked, "it died while it waited")

    def _count_death(self, work: QueuedTask, slot: _Slot, how: str, hung: bool) -> None:
        if self._folder.is_done(work.task.id):
            self._finish(work, "done")
            return
        work.attempts += 1
        work.deaths.append(f"worker {slot.worker + 1}: {how}")
        logger.warning("worker %d: %s, with %s (attempt %d)", slot.worker + 1, how, work.task.image, work.attempts)
        if work.attempts < self._options.attempts:
            self._put_back(work, elsewhere=True)
            return
        code = "batch.hung" if hung else "batch.killed"
        message = f"its worker ended {work.attempts} times while it was rendered ({how}); it is not tried again."
        self._failures[work.task.id] = {"code": code, "message": message, "quarantined": True, **self._about(work)}
        self._finish(work, "quarantined", code)

    def _end_hung(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            limit = LONGEST_START if slot.asked == "hello" else self._deadline()
            if slot.asked is not None and not slot.is_hung and now - slot.since > limit:
                logger.warning("worker %d has not answered for %.0f s; it is ended", slot.worker + 1, now - slot.since)
                slot.is_hung = True
                self._pool.end(slot.worker)

    def _deadline(self) -> float:
        if self._options.deadline is not None:
            return self._options.deadline
        if len(self._seconds) < 5:
            return max(SHORTEST_DEADLINE, LONGEST_START)  # the first may have to compile
        return max(SHORTEST_DEADLINE, 5 * sorted(self._seconds)[math.ceil(0.95 * len(self._seconds)) - 1])

    # The account

    def _note(self, work: QueuedTask, state: State, code: str | None = None) -> None:
        self._changes[work.task.id] = LedgerUpdate(work.task.id, state, work.attempts, code)

    def _flush(self, wait: bool = False) -> None:
        """Write down what is known, now and then. A full disk pauses; with `wait`, until it is not."""
        while self._changes or self._failures:
            if not wait and time.monotonic() - self._flushed < _FLUSH and len(self._changes) < _MANY:
                return
            self._flushed = time.monotonic()
            try:
                self._write_down()
                return
            except (sqlite3.OperationalError, OutputError) as error:
                if not _may_pass(error):
                    raise
                self._wait_for_space(f"the account cannot be written ({error}).")
                if not wait:
                    return
                time.sleep(max(0.0, self._paused_until - time.monotonic()))

    def _write_down(self) -> None:
        for task_id in list(self._failures):
            self._folder.write_failure(task_id, self._failures[task_id])
            del self._failures[task_id]
        self._ledger.record(list(self._changes.values()))
        self._changes.clear()

    def _leave(self) -> None:
        """Note what was running as to do. What cannot be written is found again in the run folder."""
        for work in self._on_the_way():
            if not work.is_finished:
                self._note(work, "todo")
        with contextlib.suppress(sqlite3.Error, SVDStagesError):
            self._write_down()

    def _on_the_way(self) -> Iterator[QueuedTask]:
        """What the workers have."""
        for slot in self._slots:
            yield from (work for work in (slot.rendering, slot.encoding, slot.reserved) if work is not None)

    def _patience(self) -> float:
        """Seconds to wait for answers: until somebody is due, at most one."""
        if self._paused_until > time.monotonic():
            return min(1.0, max(0.01, self._paused_until - time.monotonic()))
        return 0.05 if self._waiting.has_returned else 0.5

    def _tick(self) -> None:
        if time.monotonic() - self._ticked < 1.0:
            return
        self._ticked = time.monotonic()
        for slot in self._slots:  # a worker tells of the clip that it encoded when the next one is rendered
            work = slot.encoding
            if work is not None and not work.is_finished and self._folder.is_done(work.task.id):
                self._finish(work, "done", seconds=time.monotonic() - work.begun)
        self._watch(self.progress, None)


def _may_pass(error: sqlite3.OperationalError | OutputError) -> bool:
    """Whether a disk that is full, busy or away for a while is the reason."""
    if isinstance(error, OutputError):
        cause = error.__cause__
        return error.code == "output.no_space" or (isinstance(cause, OSError) and cause.errno in PASSING)
    return any(word in str(error) for word in ("full", "locked", "busy", "I/O"))
