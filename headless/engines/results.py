"""Store an engine's result files: safe names inside the result folders, atomic, never overwriting a file."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.errors import OutputError
from ...svd_core.runtime.runtime import LocalRuntime
from ...svd_core.utils.output_files import save_as
from ...svd_core.utils.safe_paths import resolve_inside
from ..graph.prompt import one_line

Fill = Callable[[str, str, str, Path], None]
"""Writes a result's content. Called with the file's kind (output or temp), subfolder and name, and the new file."""

MAX_NAME = 255
"""Longest file name in bytes on common file systems."""
_SEPARATORS = "/\\:" if os.name == "nt" else "/\\"


@dataclass
class Results:
    """The result files of one run under their final names. A file whose name is taken gets the next free name.

    Attributes:
        folders: The folder of each kind of file: {"output": ..., "temp": ...}. Files of other kinds are not results.
        fill: Writes the content of a file.
    """

    folders: Mapping[str, Path]
    fill: Fill
    _stored: dict[tuple[str, str, str], Path] = field(default_factory=dict)

    @classmethod
    def of_run(cls, runtime: LocalRuntime, fill: Fill) -> Results:
        """Store results in the output and temp folders of a runtime."""
        return cls({"output": runtime.output_folder, "temp": runtime.folder("temp")}, fill)

    @property
    def files(self) -> list[Path]:
        """Return the final paths in the order in which the files were stored."""
        return list(self._stored.values())

    def store(self, ui: Any) -> list[Path]:
        """Store the files that an output node's `ui` result names, each once, and return their final paths.

        Raises:
            OutputError: A name leads out of its folder (`output.outside`), or a file cannot be written. Errors of
                `fill` are passed on. No incomplete file has a final name.
        """
        return [self.store_file(*names) for names in named_files(ui) if names[0] in self.folders]

    def store_file(self, kind: str, subfolder: str, name: str) -> Path:
        """Store one file, unless it is stored, and return its final path. Raises as `store`."""
        key = _key(kind, subfolder, name)
        if key not in self._stored:
            path = place_inside(self.folders[kind], subfolder, name)
            self._stored[key] = save_as(path, lambda temporary: self.fill(kind, subfolder, name, temporary))
        return self._stored[key]

    def renamed(self, ui: Any) -> Any:
        """Return a copy of a `ui` result with the final names of the stored files."""
        if not isinstance(ui, Mapping):
            return ui
        return {
            key: [self._renamed_entry(entry) for entry in entries] if isinstance(entries, (list, tuple)) else entries
            for key, entries in ui.items()
        }

    def _renamed_entry(self, entry: Any) -> Any:
        path = self._stored.get(_key(*_names(entry))) if _is_file(entry) else None
        return entry if path is None else {**entry, "filename": path.name}

    def with_files(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Store the files of an `executed` event. Return its data with their final paths and names."""
        ui = data.get("output")
        return {**data, "files": self.store(ui), "output": self.renamed(ui)}


def named_files(ui: Any) -> Iterator[tuple[Any, str, str]]:
    """Yield (kind, subfolder, name) of each file in a `ui` result: {key: [{filename, subfolder, type}]}."""
    lists = ui.values() if isinstance(ui, Mapping) else ()
    for entries in lists:
        yield from map(_names, filter(_is_file, entries if isinstance(entries, (list, tuple)) else ()))


def _is_file(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("filename"), str)


def _names(entry: Mapping[str, Any]) -> tuple[Any, str, str]:
    return str(entry.get("type", "output")), str(entry.get("subfolder") or ""), entry["filename"]


def _key(kind: str, subfolder: str, name: str) -> tuple[str, str, str]:
    """Return one key for all spellings of a subfolder: "" and ".", "a" and "a/"."""
    return kind, "/".join(_steps(subfolder)), name


def _steps(subfolder: str) -> list[str]:
    return [part for part in subfolder.replace("\\", "/").split("/") if part not in ("", ".")]


def file_inside(folder: Path, name: str) -> Path | None:
    """Return the path of an existing file inside `folder`, else None. `name` may begin with subfolders."""
    subfolder, slash, last = name.replace("\\", "/").rpartition("/")
    with contextlib.suppress(OutputError):
        path = place_inside(folder, subfolder + slash, last)
        return path if path.is_file() else None
    return None


def place_inside(folder: Path, subfolder: str, name: str) -> Path:
    """Return `folder / subfolder / name`. Raise OutputError if that is not inside `folder`, links resolved."""
    parts = _steps(subfolder)
    absolute = subfolder.startswith(("/", "\\"))
    if absolute or not all(map(_is_plain, [*parts, name])) or resolve_inside(folder, *parts, name) is None:
        given_name = one_line(f"{subfolder}/{name}" if subfolder else name, 100)
        raise OutputError(
            f'a result must have a plain name inside the output folder, got "{given_name}". Nothing was written. '
            "Change the node's filename_prefix.",
            code="output.outside",
        )
    return Path(folder, *parts, name)


def _is_plain(part: str) -> bool:
    """Return True if a step of a path has no separator, drive or control character, and is not too long."""
    with contextlib.suppress(UnicodeEncodeError):
        bad = any(each in _SEPARATORS or not each.isprintable() for each in part)
        return not bad and part.strip(". ") != "" and len(part.encode()) <= MAX_NAME
    return False


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name by a hard link, or copy it. A program that writes to a link changes both."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
