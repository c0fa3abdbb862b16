"""The run folder: plan, videos and records. Its files are the source of truth of a batch.

    run.json               settings that all rows share, see `headless/batch/graph_batching.py`
    env.json               versions of libraries, and a small render of each kind of device
    plan.jsonl             one line for each row of the manifest, see `plan.PlannedRow`
    out/ab/cd/<id>.mp4     videos, by the id of their task; never changed or overwritten
    out/ab/cd/<id>.json    the record of each, written last: without it the task is not done
    failed/<id>.json       why a task failed or was quarantined
    tmp/                   files that are being written
    ledger.sqlite          the driver's index (or elsewhere, see --ledger)

The folder may be on a network disk that workers on many machines share. Only the ledger needs a local disk.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.media.hashing import file_sha256
from ...svd_core.utils.atomic_files import remove_abandoned, unfinished_folder
from ...svd_core.utils.output_files import flush_to_disk, put_under_new_name, replacing
from ...svd_core.utils.redaction import redacted_text
from ...svd_core.utils.safe_open import open_regular_file
from .tasks import has_types

ID_LENGTH = 64
_LARGEST = 64 * 1024 * 1024
"""Bytes of a JSON file of a run. A graph has at most 32 MB."""


@dataclass
class RunDirScan:
    """The ids of the tasks that have files in a run folder.

    Attributes:
        done: Video and record exist.
        orphans: A video without its record: the writer died between the two.
        strays: A record without its video: somebody removed the video.
        failed: id -> content of the file in failed/.
    """

    done: set[str] = field(default_factory=set)
    orphans: set[str] = field(default_factory=set)
    strays: set[str] = field(default_factory=set)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFolder:
    """A run folder. It need not exist yet."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """run.json."""
        return self.path / "run.json"

    @property
    def plan_file(self) -> Path:
        """plan.jsonl."""
        return self.path / "plan.jsonl"

    @property
    def environment_file(self) -> Path:
        """env.json."""
        return self.path / "env.json"

    @property
    def failed_folder(self) -> Path:
        """Contains one file for each task that failed or was quarantined."""
        return self.path / "failed"

    def record_file(self, task_id: str) -> Path:
        """Return the path of a task's record."""
        return self._folder_of(task_id) / f"{task_id}.json"

    def failure_file(self, task_id: str) -> Path:
        """Return the path of the file that explains why a task failed."""
        return self.failed_folder / f"{task_id}.json"

    def media_files(self, record: Mapping[str, Any]) -> list[Path]:
        """Return the paths of the videos or images that a record names."""
        return [self._folder_of(record["task"]) / file["name"] for file in record["files"]]

    def read_record(self, task_id: str) -> dict[str, Any] | None:
        """Return a task's record. None if there is none, it is damaged, or it is another task's."""
        record = read_json(self.record_file(task_id))
        return record if record is not None and _is_record(record, task_id) else None

    def read_settings(self) -> dict[str, Any] | None:
        """Return run.json. None if nothing was planned, or the file is damaged."""
        return read_json(self.settings_file)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write run.json."""
        write_json(self.settings_file, settings)

    def is_done(self, task_id: str) -> bool:
        """Return True if a task's record and all its files exist."""
        record = self.read_record(task_id)
        return record is not None and all(path.is_file() for path in self.media_files(record))

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """Create a folder on the disk of the videos, and delete it afterwards."""
        return unfinished_folder(self.path / "tmp")

    def commit(self, task_id: str, files: Sequence[tuple[Path, Mapping[str, Any]]], record: Mapping[str, Any]) -> bool:
        """Put a task's files in place, then its record.

        A process that is killed meanwhile leaves files that the next writer completes or replaces.

        Args:
            task_id: The task.
            files: Finished files inside a `scratch`, each with values for the record. Several files are named
                <id>.ext, <id>_2.ext, ...
            record: Completed by `task` and `files` (name, bytes, sha256 and the values of each).

        Returns:
            False if another writer had finished this task before. Then nothing is changed.

        Raises:
            OSError: The disk is full or unavailable.
        """
        folder = self._folder_of(task_id)
        folder.mkdir(parents=True, exist_ok=True)
        entries, taken = [], []
        for number, (path, facts) in enumerate(files, 1):
            name = f"{task_id}{'' if number == 1 else f'_{number}'}{path.suffix.lower()}"
            flush_to_disk(path)
            entries.append({"name": name, "bytes": path.stat().st_size, "sha256": file_sha256(path), **facts})
            if not put_under_new_name(path, folder / name):
                if self.is_done(task_id):
                    return False
                taken.append((path, entries[-1]))
        temporary = files[0][0].parent / "record"
        temporary.write_text(json.dumps({"task": task_id, "files": entries, **record}, indent=1), encoding="utf-8")
        flush_to_disk(temporary)
        if not put_under_new_name(temporary, folder / f"{task_id}.json"):
            if self.is_done(task_id):
                return False
            os.replace(temporary, folder / f"{task_id}.json")  # the record there is damaged
        for path, entry in taken:  # by a writer that died before its record, or is slower: our record is valid
            if file_sha256(folder / entry["name"]) != entry["sha256"]:
                os.replace(path, folder / entry["name"])
        _flush_folder(folder)
        return True

    def write_failure(self, task_id: str, failure: Mapping[str, Any]) -> None:
        """Write why a task failed, without secrets and absolute paths."""
        write_json(self.failure_file(task_id), {"task": task_id, **redacted_text(failure)})

    def read_failure(self, task_id: str) -> dict[str, Any] | None:
        """Return why a task failed. None if it did not."""
        return read_json(self.failure_file(task_id))

    def forget_failure(self, task_id: str) -> None:
        """Delete the failure, so that the task is retried."""
        self.failure_file(task_id).unlink(missing_ok=True)

    def scan(self) -> RunDirScan:
        """List all names in out/, and read the files in failed/. Records are not read: that would take minutes."""
        records, media, failed = set(), set(), {}
        for path in (self.path / "out").glob("*/*/*"):
            if path.suffix != ".json":
                media.add(path.name[:ID_LENGTH])
            elif path.stat().st_size:  # on disks without hard links an empty file reserves a name
                records.add(path.name[:ID_LENGTH])
        for path in self.failed_folder.glob("*.json"):
            failure = read_json(path) if len(path.stem) == ID_LENGTH else None
            if failure is not None:
                failed[path.stem] = failure
        return RunDirScan(records & media, media - records, records - media, failed)

    def forget_unfinished(self, task_id: str) -> None:
        """Delete a record without its video, or a video without its record."""
        for path in self._folder_of(task_id).glob(f"{task_id}*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def sweep(self) -> None:
        """Delete leftovers of killed writers in tmp/."""
        remove_abandoned(self.path / "tmp")

    def _folder_of(self, task_id: str) -> Path:
        return self.path / "out" / task_id[:2] / task_id[2:4]


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of an untrusted file. None if there is none."""
    try:
        with open_regular_file(path) as stream:
            content = stream.read(_LARGEST + 1)
        value = json.loads(content.decode("utf-8")) if len(content) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_record(record: Mapping[str, Any], task_id: str) -> bool:
    """Return True if the fields are those that `commit` writes. A file's name cannot lead out of the folder."""
    files = record.get("files")
    return record.get("task") == task_id and isinstance(files, list) and all(map(_is_file_entry, files))


def _is_file_entry(entry: Any) -> bool:
    if not has_types(entry, {"name": (str,), "bytes": (int,), "sha256": (str,)}):
        return False
    return entry["name"] == os.path.basename(entry["name"]) and entry["name"] not in ("", ".", "..")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object to a file. Raises OutputError."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _flush_folder(folder: Path) -> None:
    """Write the names in a folder to the disk. Windows cannot do this and does not need it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
