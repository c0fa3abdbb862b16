"""The run folder: what is asked for, and clips with their records. Its files are the truth about a batch.

    run.json               what all rows share, see `headless/batch/graph_batching.py`
    env.json               what the clips are made with, and what a small render gave on each kind of device
    plan.jsonl             one line for each row of the manifest, see `plan.PlannedRow`
    out/ab/cd/<id>.mp4     clips, by the id of their task; never changed, never written over
    out/ab/cd/<id>.json    the record of each, put there last: a clip without one is not done
    failed/<id>.json       why a task failed or was quarantined
    tmp/                   what is being made
    ledger.sqlite          the driver's account (or elsewhere, see --ledger)

All of it may lie on a network disk that workers on many machines share; only the ledger wants a local one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.media.hashing import file_sha256
from ...svd_core.utils.output_files import flush_to_disk, put_under_new_name, replacing
from ...svd_core.utils.redaction import redacted_text
from ...svd_core.utils.safe_open import open_regular_file

ID_LENGTH = 64
_LARGEST = 64 * 1024 * 1024
"""Bytes of a JSON file of a run: a graph has 32 MB at most."""
_ABANDONED_AFTER = 24 * 3600
"""Seconds after which what another machine left in tmp/ has surely no writer any more."""


@dataclass
class RunDirScan:
    """What a walk through the run folder met: ids of tasks.

    done       clip and record are there
    orphans    a clip without its record: the writer died between the two
    strays     a record without its clip: somebody took the clip away
    failed     id -> what failed/ says of it
    """

    done: set[str] = field(default_factory=set)
    orphans: set[str] = field(default_factory=set)
    strays: set[str] = field(default_factory=set)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFolder:
    """A run folder; it need not exist yet."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """What all rows share."""
        return self.path / "run.json"

    @property
    def plan_file(self) -> Path:
        """The rows."""
        return self.path / "plan.jsonl"

    @property
    def failed_folder(self) -> Path:
        """Why tasks failed."""
        return self.path / "failed"

    def record_file(self, task_id: str) -> Path:
        """Where a task's record is when it is done."""
        return self._folder_of(task_id) / f"{task_id}.json"

    def failure_file(self, task_id: str) -> Path:
        """Where it is said why a task failed."""
        return self.failed_folder / f"{task_id}.json"

    def clips(self, record: Mapping[str, Any]) -> list[Path]:
        """The files that a record names."""
        return [self._folder_of(record["task"]) / each["name"] for each in record["files"]]

    def read_record(self, task_id: str) -> dict[str, Any] | None:
        """The record of a task that is done; None when there is none that can be read, or it is another's."""
        record = _read_json(self.record_file(task_id))
        return record if record is not None and _is_record(record, task_id) else None

    def read_settings(self) -> dict[str, Any] | None:
        """run.json; None when nothing was planned here."""
        return _read_json(self.settings_file)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Put run.json in place."""
        _write_json(self.settings_file, settings)

    def is_done(self, task_id: str) -> bool:
        """Whether a task's clip and record are there."""
        record = self.read_record(task_id)
        return record is not None and all(path.is_file() for path in self.clips(record))

    @property
    def environment_file(self) -> Path:
        """What the clips are made with, and what a small render gave on each kind of device."""
        return self.path / "env.json"

    def read_environment(self) -> dict[str, Any]:
        """env.json; empty when there is none that can be read."""
        return _read_json(self.environment_file) or {}

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Put env.json in place."""
        _write_json(self.environment_file, environment)

    @contextlib.contextmanager
    def scratch(self, task_id: str) -> Iterator[Path]:
        """A folder on the disk of the clips, gone afterwards."""
        name = f"{task_id[:16]}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}"
        folder = self.path / "tmp" / name
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, task_id: str, made: Sequence[tuple[Path, Mapping[str, Any]]], record: Mapping[str, Any]) -> bool:
        """Put a task's files in place, then its record. False when another had done so before; nothing is changed then.

        made    finished files inside a `scratch`, each with what the record is to say of it. Several files are named
                <id>.ext, <id>_2.ext, ...
        record  gets `task` and `files` (name, bytes, sha256 and what is said of each)

        Raises OSError. A process that is killed on the way leaves what the next one completes or replaces.
        """
        folder = self._folder_of(task_id)
        folder.mkdir(parents=True, exist_ok=True)
        files, others = [], []
        for number, (path, facts) in enumerate(made, 1):
            name = f"{task_id}{'' if number == 1 else f'_{number}'}{path.suffix.lower()}"
            flush_to_disk(path)
            files.append({"name": name, "bytes": path.stat().st_size, "sha256": file_sha256(path), **facts})
            if not put_under_new_name(path, folder / name):
                if self.is_done(task_id):
                    return False
                others.append((path, files[-1]))
        temporary = made[0][0].parent / "record"
        temporary.write_text(json.dumps({"task": task_id, "files": files, **record}, indent=1), encoding="utf-8")
        flush_to_disk(temporary)
        if not put_under_new_name(temporary, folder / f"{task_id}.json"):
            if self.is_done(task_id):
                return False
            os.replace(temporary, folder / f"{task_id}.json")  # it cannot be read
        for path, told in others:  # of a writer that died before its record, or was overtaken: the record decides
            if file_sha256(folder / told["name"]) != told["sha256"]:
                os.replace(path, folder / told["name"])
        _flush_folder(folder)
        return True

    def write_failure(self, task_id: str, failure: Mapping[str, Any]) -> None:
        """Say why a task failed, without secrets and absolute paths."""
        _write_json(self.failure_file(task_id), {"task": task_id, **redacted_text(failure)})

    def read_failure(self, task_id: str) -> dict[str, Any] | None:
        """Why a task failed; None when it has not."""
        return _read_json(self.failure_file(task_id))

    def forget_failure(self, task_id: str) -> None:
        """The task is to be tried again."""
        self.failure_file(task_id).unlink(missing_ok=True)

    def walk(self) -> RunDirScan:
        """Look at all names in out/, and read what is in failed/. No record is read: that would take minutes."""
        found = RunDirScan()
        for folder in _folders(self.path / "out", depth=2):
            records, clips = set(), set()
            for entry in _entries(folder):
                name = entry.name
                if not name.endswith(".json"):
                    clips.add(name[:ID_LENGTH])
                elif entry.stat().st_size:  # where names cannot be linked, one is claimed by an empty file
                    records.add(name[:ID_LENGTH])
            found.done |= records & clips
            found.orphans |= clips - records
            found.strays |= records - clips
        for name in _names(self.failed_folder):
            if name.endswith(".json") and len(name) == ID_LENGTH + 5:
                failure = _read_json(self.failed_folder / name)
                if failure is not None:
                    found.failed[name[:ID_LENGTH]] = failure
        return found

    def forget_unfinished(self, task_id: str) -> None:
        """Remove a record without its clip, or a clip without its record."""
        for name in list(_names(self._folder_of(task_id))):
            if name.startswith(task_id):
                with contextlib.suppress(OSError):
                    (self._folder_of(task_id) / name).unlink()

    def sweep(self) -> None:
        """Remove what killed writers left in tmp/: those of this machine that run no more, and very old ones."""
        if (self.path / "tmp").is_symlink():  # to what is not ours
            return
        for name in list(_names(self.path / "tmp")):
            path = self.path / "tmp" / name
            with contextlib.suppress(OSError, ValueError, IndexError):
                _, host, pid, _ = name.rsplit(".", 3)
                gone = host == _host() and not _runs(int(pid))
                if gone or time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                    shutil.rmtree(path, ignore_errors=True)

    def _folder_of(self, task_id: str) -> Path:
        return self.path / "out" / task_id[:2] / task_id[2:4]


def _folders(root: Path, depth: int) -> Iterator[Path]:
    if depth == 0:
        yield root
        return
    for name in sorted(_names(root)):
        yield from _folders(root / name, depth - 1)


def _names(folder: Path) -> Iterator[str]:
    return (entry.name for entry in _entries(folder))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _host() -> str:
    return socket.gethostname().replace(".", "-") or "host"


def _runs(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        with open_regular_file(path) as stream:
            content = stream.read(_LARGEST + 1)
        found = json.loads(content.decode("utf-8")) if len(content) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_record(found: Mapping[str, Any], task_id: str) -> bool:
    """Whether this is what `commit` writes. A name in it is a plain one: no path leads out of the folder."""
    files = found.get("files")
    return found.get("task") == task_id and isinstance(files, list) and all(map(_is_told, files))


def _is_told(file: Any) -> bool:
    if not isinstance(file, dict):
        return False
    name, size, sha256 = (file.get(key) for key in ("name", "bytes", "sha256"))
    is_plain = isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", "..")
    return is_plain and type(size) is int and isinstance(sha256, str)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk. Windows cannot, and needs not."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
