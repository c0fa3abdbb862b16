"""Where an engine's result files end: names that nodes gave, kept inside our folders, complete or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.errors import OutputError
from ...svd_core.utils.output_files import save_as
from ...svd_core.utils.safe_paths import resolve_inside
from ..graph.prompt import one_line

Fill = Callable[[str, str, str, Path], None]
"""Called with a file's kind (output or temp), subfolder and name, and the new file that is to get its content."""

MAX_NAME = 255
"""Bytes of a file's name; what common file systems allow."""
_SEPARATORS = "/\\:" if os.name == "nt" else "/\\"


@dataclass
class Results:
    """The files of one run under their final names. A name that is taken is not written over: the next free one is.

    folders  where each kind of file goes: {"output": ..., "temp": ...}. Files of other kinds are no results
    fill     brings the content
    """

    folders: Mapping[str, Path]
    fill: Fill
    _kept: dict[tuple[str, str, str], Path] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """All so far, in the order they came, each once."""
        return list(self._kept.values())

    def keep(self, answer: Any) -> list[Path]:
        """Keep the files that an output node's answer (`ui`) names, unless they are kept; their final paths.

        Raises OutputError (`output.outside`) for a name that leads out of its folder, and when a file cannot be
        written; whatever `fill` raises goes through. Nothing half-written has a final name.
        """
        return [self._keep(*named) for named in named_files(answer) if named[0] in self.folders]

    def named(self, answer: Any) -> Any:
        """The same answer with the final names of the files that were kept."""
        if not isinstance(answer, Mapping):
            return answer
        return {
            key: [self._named(entry) for entry in entries] if isinstance(entries, (list, tuple)) else entries
            for key, entries in answer.items()
        }

    def _named(self, entry: Any) -> Any:
        path = self._kept.get(_key(*_told(entry))) if _is_file(entry) else None
        return entry if path is None else {**entry, "filename": path.name}

    def _keep(self, kind: str, subfolder: str, name: str) -> Path:
        key = _key(kind, subfolder, name)
        if key not in self._kept:
            path = place_inside(self.folders[kind], subfolder, name)
            self._kept[key] = save_as(path, lambda temporary: self.fill(kind, subfolder, name, temporary))
        return self._kept[key]


def named_files(answer: Any) -> Iterator[tuple[str, str, str]]:
    """(kind, subfolder, name) of each file in an output node's answer: {key: [{filename, subfolder, type}]}."""
    lists = answer.values() if isinstance(answer, Mapping) else ()
    for entries in lists:
        for entry in entries if isinstance(entries, (list, tuple)) else ():
            if _is_file(entry):
                yield _told(entry)


def _is_file(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("filename"), str)


def _told(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(entry.get("type", "output")), str(entry.get("subfolder") or ""), entry["filename"]


def _key(kind: str, subfolder: str, name: str) -> tuple[str, str, str]:
    """One for a file, whether its subfolder was said as "" or ".", "a" or "a/"."""
    return kind, "/".join(_steps(subfolder)), name


def _steps(subfolder: str) -> list[str]:
    return [part for part in subfolder.replace("\\", "/").split("/") if part not in ("", ".")]


def file_inside(folder: Path, name: str) -> Path | None:
    """The file called `name`, which may begin with subfolders, when it is there and inside `folder`; else None."""
    subfolder, slash, last = name.replace("\\", "/").rpartition("/")
    try:
        path = place_inside(folder, subfolder + slash, last)
    except OutputError:
        return None
    return path if path.is_file() else None


def place_inside(folder: Path, subfolder: str, name: str) -> Path:
    """`folder / subfolder / name`, when that lies inside `folder`, links followed. Raises OutputError otherwise."""
    parts = _steps(subfolder)
    absolute = subfolder.startswith(("/", "\\"))
    if absolute or not all(map(_is_plain, [*parts, name])) or resolve_inside(folder, *parts, name) is None:
        shown = one_line(f"{subfolder}/{name}" if subfolder else name, 100)
        raise OutputError(
            f'a node names its result "{shown}", which is no plain name inside the folder for results; '
            "nothing was written there. Change the node's filename_prefix.",
            code="output.outside",
        )
    return Path(folder, *parts, name)


def _is_plain(part: str) -> bool:
    """One step of a path: no separator, drive or control character, and not too long."""
    with contextlib.suppress(UnicodeEncodeError):
        bad = any(each in _SEPARATORS or not each.isprintable() for each in part)
        return not bad and part.strip(". ") != "" and len(part.encode()) <= MAX_NAME
    return False


def link_or_copy(source: Path, target: Path) -> None:
    """The same content under a second name, without copying where the disk can. Who writes to one writes to both."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
