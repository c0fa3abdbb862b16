"""Write result files atomically, under ComfyUI's numbered names, without overwriting files of other processes.

A file gets its final name when it is complete. If the process is killed, the final name does not exist. A numbered name
is claimed with a hard link, which never overwrites, so that processes can save under the same prefix.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError, SettingError
from .atomic_files import unfinished_file, unfinished_folder
from .safe_paths import is_valid_file_name, is_within, resolve_inside

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.ENOENT, errno.EEXIST}
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


@dataclass(frozen=True)
class OutputPath:
    """The folder and name of numbered files: `folder / name_00001_.ext`.

    Attributes:
        folder: Absolute path.
        subfolder: Path of `folder` relative to the output folder.
        name: Name before the number.
    """

    folder: Path
    subfolder: str
    name: str

    def filename(self, counter: int, extension: str) -> str:
        """Return ComfyUI's name for the file with a number."""
        return f"{self.name}_{counter:05}_.{extension}"


@dataclass(frozen=True)
class Saved:
    """Name and number of a saved file."""

    filename: str
    counter: int


def resolve_prefix(
    output_folder: Path, prefix: str, width: int = 0, height: int = 0, now: time.struct_time | None = None
) -> OutputPath:
    """Resolve a `filename_prefix` as ComfyUI's folder_paths.get_save_image_path does. No folder is created.

    Args:
        output_folder: Base of the result. May be a link.
        prefix: May contain subfolders, and %width%, %height%, %year%, %month%, %day%, %hour%, %minute%, %second%.
        width: Value of %width%.
        height: Value of %height%.
        now: Time of the other values. None is the current time.

    Raises:
        SettingError: The prefix is not a valid file name, or leads outside of the output folder, also through a link.
    """
    expanded = os.path.normpath(_expand(prefix, width, height, now or time.localtime()))
    subfolder, name = os.path.split(expanded)
    root = os.path.abspath(output_folder)
    folder = os.path.abspath(os.path.join(root, subfolder))
    is_valid = is_valid_file_name(expanded)
    if not is_valid or not is_within(folder, root) or resolve_inside(root, subfolder) is None:
        reason = "leads outside" if is_valid else "is not a valid file name"
        raise SettingError(
            f"filename_prefix must name files inside the output folder, got {prefix[:200]!a}, which {reason}. Use a "
            'name such as "ComfyUI" or "video/ComfyUI".',
            code="output.outside",
        )
    return OutputPath(Path(folder), subfolder, name)


def next_counter(path: OutputPath) -> int:
    """Return one more than the highest number in use for the name, with any extension. 1 if there is none."""
    try:
        files = os.listdir(path.folder)
    except FileNotFoundError:
        return 1
    except OSError as error:
        raise _output_error(path.folder, error) from error
    start = os.path.normcase(path.name + "_")
    numbers = [_leading_number(file[len(start) :]) for file in files if os.path.normcase(file).startswith(start)]
    return max(numbers, default=0) + 1


def save_numbered(
    path: OutputPath, extension: str, write: Callable[[Path], object], counter: int | None = None
) -> Saved:
    """Call `write` with a temporary file, then move it to the first free number. Nothing is overwritten.

    Args:
        path: Folder and name.
        extension: Without a dot.
        write: Fills the file. Its errors are passed on.
        counter: First number to try. None is `next_counter`.

    Raises:
        OutputError: The file cannot be written. Nothing is left behind.
    """
    with _temporary_file(path.folder, path.filename(counter or 1, extension)) as temporary:
        write(temporary)
        flush_to_disk(temporary)
        number = next_counter(path) if counter is None else counter
        while not put_under_new_name(temporary, path.folder / path.filename(number, extension)):
            number += 1
    return Saved(path.filename(number, extension), number)


def save_as(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary file, then move it to `path`, or to the next free name. Return the name.

    The name after name_00007_.png has one more than the highest number in its folder. After other names come
    name_00002 and so on. Errors of `write` are passed on.

    Raises:
        OutputError: The file cannot be written. Nothing is left behind.
    """
    with _temporary_file(path.parent, path.name) as temporary:
        write(temporary)
        flush_to_disk(temporary)
        names = itertools.chain([path], _next_names(path))
        return next(name for name in names if put_under_new_name(temporary, name))


def copy_to_new_name(source: Path, path: Path, link: bool = True) -> Path:
    """Give a file a second name: `path`, or the next free one. Return the name. Both names share their content.

    If `link` is False or the disk has no hard links, the file is copied. Raises OutputError.
    """
    if link:
        with contextlib.suppress(OSError):
            os.link(source, path)
            return path
    return save_as(path, lambda temporary: shutil.copyfile(source, temporary))


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Provide a temporary file, and move it to `path` on exit. On an error `path` is not changed.

    The folder is created if needed.

    Raises:
        OutputError: `path` cannot be written or is not a file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a plain file"
        raise OutputError(f"{path} is {kind}. Use the path of a file.", code="output.not_a_file")
    with _temporary_file(path.parent, path.name) as temporary:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def scratch_folder_beside(path: Path) -> Iterator[Path]:
    """Provide a temporary folder on the disk of `path`. It is removed on exit, with empty parents created for it.

    Raises:
        SettingError: `path` is a folder, or its folder cannot be written (code `output.not_writable`).
        OutputError: The disk failed while the folder was in use.
    """
    if path.is_dir():
        raise SettingError(f'"{path}" is a folder. Use the path of a file.', code="output.not_writable")
    new_parents = [parent for parent in path.absolute().parents if not parent.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, new_parents)
        try:
            folder = stack.enter_context(unfinished_folder(path.parent))
        except OSError as error:
            raise SettingError(
                f'"{path.parent}" cannot be written: {error.strerror}. Use another folder.', code="output.not_writable"
            ) from error
        try:
            yield folder
        except OSError as error:
            raise _output_error(path, error) from error


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def free_names(path: Path, first: int) -> Iterator[Path]:
    """Yield path_00002, path_00003 and so on, from number `first`, without those that exist."""
    names = (path.with_stem(f"{path.stem}_{number:05}") for number in itertools.count(first))
    return (name for name in names if not name.exists())


def _next_names(path: Path) -> Iterator[Path]:
    numbered = re.fullmatch(r"(.+)_\d+_", path.stem)
    if numbered is None:
        yield from free_names(path, 2)
        return
    output_path = OutputPath(path.parent, "", numbered[1])
    for number in itertools.count(next_counter(output_path)):
        yield path.parent / output_path.filename(number, path.suffix.removeprefix("."))


@contextlib.contextmanager
def _temporary_file(folder: Path, final_name: str) -> Iterator[Path]:
    """Provide a temporary file in `folder`. Errors of the operating system become an OutputError."""
    try:
        with unfinished_file(folder) as temporary:
            yield temporary
    except OSError as error:
        raise _output_error(folder / final_name, error) from error


def flush_to_disk(file: Path) -> None:
    """Flush a file, so that it cannot be empty after a power failure."""
    with open(file, "r+b") as stream:
        os.fsync(stream.fileno())


def put_under_new_name(temporary: Path, path: Path) -> bool:
    """Link a complete file to `path` on the same disk. Return False if `path` exists already.

    A network disk may repeat the request after a lost reply, and then reports our own link as existing.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        with contextlib.suppress(OSError):
            return os.path.samefile(temporary, path)
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _claim_and_replace(temporary, path)
    return True


def _claim_and_replace(temporary: Path, path: Path) -> bool:
    """Claim `path` by creating it, then replace it: for file systems without hard links (exFAT, some network disks)."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _expand(prefix: str, width: int, height: int, now: time.struct_time) -> str:
    fields = zip(("month", "day", "hour", "minute", "second"), now[1:6], strict=True)
    values = {"width": width, "height": height, "year": now.tm_year} | {name: f"{value:02}" for name, value in fields}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", str(value))
    return prefix


def _leading_number(rest: str) -> int:
    """Return 12 for "00012_.png", 0 if `rest` does not begin with digits and an underscore."""
    digits, underscore, _ = rest.partition("_")
    return int(digits) if underscore and digits.isascii() and digits.isdigit() else 0


def _output_error(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _NO_SPACE:
        code, suggestion = "output.no_space", "Free some space, or use another output folder."
    elif error.errno in _NOT_ALLOWED:
        code, suggestion = "output.not_writable", "Use an output folder that you may write to."
    elif error.errno == errno.ENAMETOOLONG:
        code, suggestion = "output.name_too_long", "Use a shorter name or filename_prefix."
    elif error.errno in _NOT_A_FOLDER:
        code, suggestion = "output.no_folder", "Every part of the path before the file's name must be a folder."
    else:
        code, suggestion = "output.failed", "Use another output folder."
    return OutputError(f"{path} could not be written: {reason}. {suggestion}", code=code)
