"""How far a batch is, and whether what it made is whole: for people and for programs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.media.hashing import file_sha256
from .folder import RunFolder
from .ledger import Ledger, State
from .plan import PlannedRow, Totals, read_plan

_SAMPLED = 200
"""Records that are read to know what a clip takes."""


@dataclass(frozen=True)
class Reason:
    """Why tasks or rows came to nothing: a code, how many there are, and one of them in words."""

    state: str
    code: str
    count: int
    example: str


@dataclass(frozen=True)
class Status:
    """A batch as it stands.

    rows     of the manifest; `duplicates` of them give the clip of an earlier row, `bad` ones have no task
    counts   tasks by state
    reasons  of what failed, of tasks and of bad rows, the most frequent first
    seconds  the median of what a clip takes; None before any was made
    """

    rows: int
    duplicates: int
    counts: dict[State, int]
    bad: int
    reasons: list[Reason] = field(default_factory=list)
    seconds: float | None = None

    @property
    def tasks(self) -> int:
        """Clips that are wanted."""
        return sum(self.counts.values())

    @property
    def left(self) -> int:
        """Tasks that are neither done nor given up."""
        return self.counts["todo"] + self.counts["running"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": self.rows,
            "duplicates": self.duplicates,
            "bad_rows": self.bad,
            "tasks": self.tasks,
            **self.counts,
            "seconds_per_clip": self.seconds,
            "reasons": [vars(reason) for reason in self.reasons],
        }

    def describe(self, workers: int = 1) -> str:
        """A few lines for people. `workers`: the time that is left is told for so many."""
        lines = [f"{counted(self.rows, 'row')}: {counted(self.tasks, 'clip')}"]
        if self.duplicates:
            lines[0] += f"; {counted(self.duplicates, 'row')} the same as an earlier one"
        lines.append(", ".join(f"{count} {state}" for state, count in self.counts.items() if count) or "nothing to do")
        if self.bad:
            lines.append(f"{counted(self.bad, 'row')} cannot be taken as they are")
        for reason in self.reasons:
            lines.append(f"  {reason.count:>6} {reason.state:<11} {reason.code}: {reason.example}")
        if self.seconds is not None:
            lines.append(f"a clip takes {self.seconds:.3g} s (median)")
            if self.left:
                hours = self.seconds * self.left / workers / 3600
                lines[-1] += f"; {self.left} more on {counted(workers, 'worker')}: {_time(hours)}"
        elif self.left:
            lines.append("how long a clip takes is not known yet; `batch plan --measure` makes one and tells")
        return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"about {hours * 3600:.0f} s"
    return f"about {hours * 60:.0f} min" if hours < 1 else f"about {hours:.1f} h"


def status_of(folder: RunFolder, ledger: Ledger, totals: Totals) -> Status:
    """How a planned batch stands, by its ledger."""
    reasons = [Reason("row", code, count, example) for code, (count, example) in totals.bad.items()]
    for state, code, count, task_id in ledger.codes():
        failure = folder.read_failure(task_id) or {}
        reasons.append(
            Reason(state, code, count, _one_line(f"{failure.get('image', '')}: {failure.get('message', '')}"))
        )
    reasons.sort(key=lambda reason: -reason.count)
    seconds = _usual_seconds(folder, itertools.islice(ledger.done(), _SAMPLED))
    bad = sum(count for count, _ in totals.bad.values())
    return Status(totals.rows, totals.duplicates, ledger.counts(), bad, reasons, seconds)


def _usual_seconds(folder: RunFolder, task_ids: Iterable[str]) -> float | None:
    """The median of what these clips took."""
    records = [folder.read_record(task_id) for task_id in task_ids]
    found = sorted(sum(record["seconds"].values()) for record in records if record and record.get("seconds"))
    return found[len(found) // 2] if found else None


def damaged(folder: RunFolder, on_clip: Callable[[int], None] = lambda count: None) -> Iterator[tuple[str, str]]:
    """Read every clip that has a record, and compare it with that: (task id, what is wrong) for each that differs.

    Clips without a record are none yet: their writer works, or was killed and they are made again.
    """
    found = folder.walk()
    for number, task_id in enumerate(sorted(found.done | found.strays), 1):
        record = folder.read_record(task_id)
        on_clip(number)
        if record is None:
            yield task_id, "it has no record that can be read"
            continue
        for path, told in zip(folder.clips(record), record["files"], strict=True):
            fault = _fault(path, told)
            if fault:
                yield task_id, fault


def _fault(path: Path, told: dict[str, Any]) -> str:
    try:
        if path.stat().st_size != told["bytes"] or file_sha256(path) != told["sha256"]:
            return f"{path.name} is not what was written"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return ""


def planned_clips(folder: RunFolder) -> Iterator[tuple[PlannedRow, dict[str, Any]]]:
    """Each row of the plan whose clip is done, with its record."""
    for row in read_plan(folder.plan_file):
        record = None if row.task is None else folder.read_record(row.task.id)
        if record is not None:
            yield row, record


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:160] + "..."
