"""Give the videos of a run names for people: hard links or copies, with a table."""

from __future__ import annotations

import csv
import filecmp
import itertools
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...svd_core.errors import BatchError, OutputError, quoted
from ...svd_core.utils.output_files import copy_to_new_name, free_names, replacing
from .folder import RunFolder
from .plan import PlannedRow, read_plan
from .tasks import Task

FIELDS = ("name", "seed", "row", "task")
TABLE = "clips.csv"
LONGEST_NAME = 150
"""Bytes of the name of a folder or file. A number and a suffix may follow."""
DEEPEST = 16
"""Levels of a path. Further ones are removed at the front."""
_ALLOWED = set(string.ascii_letters + string.digits + "-_.,+=@()[] ")


@dataclass(frozen=True)
class Exported:
    """Number of new names, and of names that existed before."""

    made: int
    kept: int


def export(
    folder: RunFolder,
    target: Path,
    template: str | None = None,
    copies: bool = False,
) -> Exported:
    """Give each finished video a name below `target`, and list them in `clips.csv`. Existing files are kept.

    Args:
        folder: The run.
        target: The folder. No name leads out of it.
        template: With {name}, {seed}, {row} and {task}. None: {name}, or {name}_{seed} if several rows have the name.
        copies: Copy instead of hard links, so that changing one file does not change the other. Hard links must be on
            the disk of the run.

    Raises:
        BatchError: The template has other fields.
        OutputError: A file cannot be written.
    """
    _check_template(template)
    rows = [
        (row, row.task, record)
        for row in read_plan(folder.plan_file)
        if row.task is not None and (record := folder.read_record(row.task.id)) is not None
    ]
    frequency = Counter(row.name for row, _, _ in rows)
    made = kept = 0
    with replacing(target / TABLE) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["row", "name", "image", "seed", "task", "file"])
        for row, task, record in rows:
            row_template = template or ("{name}_{seed}" if frequency[row.name] > 1 else "{name}")
            stem = _stem(row_template, row, task)
            for number, media in enumerate(folder.media_files(record), 1):
                name = stem if number == 1 else f"{stem}_{number:05}"
                placed, is_new = _place(media, target / f"{name}{media.suffix}", target, copies)
                made, kept = made + is_new, kept + (not is_new)
                file = placed.relative_to(target).as_posix()
                table.writerow([row.number, row.name, task.image, task.seed, task.id, file])
    return Exported(made, kept)


def _check_template(template: str | None) -> None:
    try:
        parts = list(string.Formatter().parse(template or "{name}"))
        fields = [name for _, name, _, _ in parts if name is not None]
        is_plain = all(not spec and not conversion for _, _, spec, conversion in parts)
    except ValueError:
        fields, is_plain = [], False
    if not fields or not is_plain or not set(fields) <= set(FIELDS):
        expected = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise BatchError(f'names must be made of {expected}, got "{(template or "")[:60]}".', code="batch.names")


def _stem(template: str, row: PlannedRow, task: Task) -> str:
    """Return the name of a row's files below the target, without suffix."""
    seed = "" if task.seed is None else task.seed
    name = template.format(name=row.name, seed=seed, row=row.number, task=task.id[:12])
    return _safe_name(name) or task.id[:12]


def _safe_name(name: str) -> str:
    """Return a relative path without characters that some disk does not allow, and without a way out."""
    parts = []
    for part in name.replace("\\", "/").split("/"):
        allowed = (
            letter if letter in _ALLOWED or (ord(letter) > 127 and letter.isprintable()) else "_" for letter in part
        )
        shortened = "".join(allowed).strip(" .").encode()[:LONGEST_NAME]
        parts.append(shortened.decode(errors="ignore").rstrip(" ."))
    return "/".join([part for part in parts if part][-DEEPEST:])


def _place(media: Path, path: Path, target: Path, copies: bool) -> tuple[Path, bool]:
    """Put a file under the first name that is free or has the same content. Return the name and if it is new."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):  # another video has the name of this one's folder
        path = target / media.name
    except OSError as error:
        message = f"{quoted(path.parent)} could not be created: {error.strerror}. Try another folder."
        raise OutputError(message, code="output.no_folder") from error
    numbered = (path.with_stem(f"{path.stem}_{number:05}") for number in range(2, 1_000_000))
    for candidate in (path, *itertools.takewhile(Path.exists, numbered)):
        if candidate.is_file() and (candidate.samefile(media) or filecmp.cmp(candidate, media, shallow=False)):
            return candidate, False
    name = path if not path.exists() else next(free_names(path, 2))
    return copy_to_new_name(media, name, link=not copies), True
