"""Report the progress of a batch and verify its files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.errors import counted, format_seconds, quoted
from ...svd_core.media.hashing import file_sha256
from .folder import RunFolder
from .ledger import Ledger, State
from .plan import Totals

_SAMPLED = 200
"""Records that are read to estimate the seconds per video."""


@dataclass(frozen=True)
class Reason:
    """Why tasks or rows failed: a state, a code, their number, and an example in words."""

    state: str
    code: str
    count: int
    example: str


@dataclass(frozen=True)
class Status:
    """The progress of a batch.

    Attributes:
        rows: Rows of the manifest.
        duplicates: Rows that have the task of an earlier row.
        counts: Number of tasks by state.
        bad: Rows without a task.
        reasons: Why tasks failed and rows have no task, the most frequent first.
        seconds: Median time of a video. None before one was rendered.
    """

    rows: int
    duplicates: int
    counts: dict[State, int]
    bad: int
    reasons: list[Reason] = field(default_factory=list)
    seconds: float | None = None

    @property
    def tasks(self) -> int:
        """All tasks."""
        return sum(self.counts.values())

    @property
    def left(self) -> int:
        """Tasks that are not finished."""
        return self.counts["todo"] + self.counts["running"]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
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
        """Return some lines for people. The remaining time is that of `workers` workers."""
        lines = [f"{counted(self.rows, 'row')}: {counted(self.tasks, 'video')}"]
        if self.duplicates:
            lines[0] += f"; {counted(self.duplicates, 'row')} equal to an earlier one"
        lines.append(", ".join(f"{count} {state}" for state, count in self.counts.items() if count) or "nothing to do")
        if self.bad:
            lines.append(f"{counted(self.bad, 'row')} with errors")
        for reason in self.reasons:
            lines.append(f"  {reason.count:>6} {reason.state:<11} {reason.code}: {reason.example}")
        if self.seconds is not None:
            lines.append(f"a video takes {self.seconds:.3g} s (median)")
            if self.left:
                seconds = self.seconds * self.left / workers
                lines[-1] += f"; {self.left} more on {counted(workers, 'worker')}: about {format_seconds(seconds)}"
        elif self.left:
            lines.append("the time per video is not known yet; `batch plan --measure` renders one and reports it")
        return "\n".join(lines)


def status_of(folder: RunFolder, ledger: Ledger, totals: Totals) -> Status:
    """Return the status of a planned batch, by its ledger."""
    reasons = [Reason("row", code, count, example) for code, (count, example) in totals.bad.items()]
    for state, code, count, task_id in ledger.codes():
        failure = folder.read_failure(task_id) or {}
        example = " ".join(f"{failure.get('image', '')}: {failure.get('message', '')}".split())
        reasons.append(Reason(state, code, count, example if len(example) <= 160 else example[:160] + "..."))
    reasons.sort(key=lambda reason: -reason.count)
    records = map(folder.read_record, itertools.islice(ledger.done(), _SAMPLED))
    seconds = sorted(sum(record["seconds"].values()) for record in records if record and record.get("seconds"))
    median = seconds[len(seconds) // 2] if seconds else None
    bad = sum(count for count, _ in totals.bad.values())
    return Status(totals.rows, totals.duplicates, ledger.counts(), bad, reasons, median)


def damaged(folder: RunFolder, on_video: Callable[[int], None] = lambda count: None) -> Iterator[tuple[str, str]]:
    """Compare the files of each record with it, and yield (task id, fault) for each difference.

    Videos without a record are skipped: they are being written, or will be rendered again.
    """
    scan = folder.scan()
    for number, task_id in enumerate(sorted(scan.done | scan.strays), 1):
        record = folder.read_record(task_id)
        on_video(number)
        if record is None:
            yield task_id, "its record cannot be read"
            continue
        for path, entry in zip(folder.media_files(record), record["files"], strict=True):
            fault = _find_fault(path, entry)
            if fault:
                yield task_id, fault


def _find_fault(path: Path, entry: Mapping[str, Any]) -> str:
    try:
        if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            return f"{quoted(path.name)} was changed after it was written"
    except OSError as error:
        return f"{quoted(path.name)} cannot be read: {error.strerror}"
    return ""
