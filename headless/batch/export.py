"""Names for people: clips of a run under the names of their rows, as hard links or copies, with a table beside."""

from __future__ import annotations

import csv
import filecmp
import string
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...svd_core.errors import BatchError, OutputError
from ...svd_core.utils.output_files import copy_to_new_name, free_names, replacing
from .folder import RunFolder
from .plan import PlannedRow
from .report import planned_clips

FIELDS = ("name", "seed", "row", "task")
TABLE = "clips.csv"
LONGEST_NAME = 150
"""Bytes of a folder's or file's name; a number and a suffix may come behind."""
DEEPEST = 16
"""Folders and file of a name; more in front are left out."""
_KEPT = set(string.ascii_letters + string.digits + "-_.,+=@()[] ")


@dataclass(frozen=True)
class Exported:
    """How many clips have a name now, and how many had one before."""

    made: int
    kept: int


def export(
    folder: RunFolder,
    target: Path,
    template: str | None = None,
    copies: bool = False,
    on_row: Callable[[int], None] = lambda count: None,
) -> Exported:
    """Give every clip that is done a name below `target`; what is there already stays.

    template  with {name}, {seed}, {row} and {task}; None: {name}, and {name}_{seed} where a name is several rows'
    copies    copy, so that changing one does not change the other. Links need the disk of the run

    `clips.csv` in `target` says for each row which file is its clip. A name never leads out of `target`. Raises
    BatchError for a template with other fields, OutputError.
    """
    _check_template(template)
    rows = list(planned_clips(folder))
    often = Counter(row.name for row, _ in rows)
    made = kept = 0
    with replacing(target / TABLE) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["row", "name", "image", "seed", "task", "file"])
        for number, (row, record) in enumerate(rows, 1):
            on_row(number)
            chosen = template or ("{name}_{seed}" if often[row.name] > 1 else "{name}")
            for path, clip in _names(target, chosen, row, folder.clips(record)):
                placed, is_new = _place(clip, path, target, copies)
                made, kept = made + is_new, kept + (not is_new)
                assert row.task is not None
                file = placed.relative_to(target).as_posix()
                table.writerow([row.number, row.name, row.task.image, row.task.seed, row.task.id, file])
    return Exported(made, kept)


def _check_template(template: str | None) -> None:
    try:
        parts = list(string.Formatter().parse(template or "{name}"))
        fields = [name for _, name, _, _ in parts if name is not None]
        plain = all(not spec and not how for _, _, spec, how in parts)
    except ValueError:
        fields, plain = [], False
    if not fields or not plain or not set(fields) <= set(FIELDS):
        told = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise BatchError(f'names are made of {told}, and not as in "{(template or "")[:60]}".', code="batch.names")


def _names(target: Path, template: str, row: PlannedRow, clips: list[Path]) -> Iterator[tuple[Path, Path]]:
    assert row.task is not None
    seed = "" if row.task.seed is None else row.task.seed
    values: dict[str, Any] = {"name": row.name, "seed": seed, "row": row.number, "task": row.task.id[:12]}
    stem = _safe(template.format(**values)) or row.task.id[:12]
    for number, clip in enumerate(clips, 1):
        last = stem if number == 1 else f"{stem}_{number:05}"
        yield target / f"{last}{clip.suffix}", clip


def _safe(name: str) -> str:
    """A name with its folders, without what leads elsewhere or what some disk cannot have."""
    parts = [
        "".join(letter if letter in _KEPT or (ord(letter) > 127 and letter.isprintable()) else "_" for letter in part)
        for part in name.replace("\\", "/").split("/")
    ]
    kept = [_shortened(part.strip(" .")) for part in parts]
    return "/".join([part for part in kept if part][-DEEPEST:])


def _shortened(part: str) -> str:
    return part.encode()[:LONGEST_NAME].decode(errors="ignore").rstrip(" .")


def _place(clip: Path, path: Path, target: Path, copies: bool) -> tuple[Path, bool]:
    """Put a clip under the first name that is free or is its own already; where, and whether it is new."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):  # another clip's name is that of a folder of this one's
        path = target / clip.name
    except OSError as error:
        told = f"{path.parent} could not be made: {error.strerror}. Try another folder."
        raise OutputError(told, code="output.no_folder") from error
    for candidate in (path, *_taken(path)):
        if candidate.is_file() and (candidate.samefile(clip) or filecmp.cmp(candidate, clip, shallow=False)):
            return candidate, False
    name = path if not path.exists() else next(free_names(path, 2))
    return copy_to_new_name(clip, name, link=not copies), True


def _taken(path: Path) -> Iterator[Path]:
    """The numbered names after `path` that are taken."""
    for number in range(2, 1_000_000):
        name = path.with_stem(f"{path.stem}_{number:05}")
        if not name.exists():
            return
        yield name
