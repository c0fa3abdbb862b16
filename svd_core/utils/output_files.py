"""Where results go: ComfyUI's numbered names, files that are complete or absent, and none written over another's.

A file is written under a temporary name in its own folder and put in place when it is complete, so that a process
that is killed leaves the final name absent. Numbered names are claimed by a hard link, which never overwrites: two
processes that save under one prefix keep all their files.
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
    """Where numbered files go: `folder / name_00001_.ext`; `subfolder` is the folder's path below the output folder."""

    folder: Path
    subfolder: str
    name: str

    def filename(self, counter: int, extension: str) -> str:
        """ComfyUI's name for the file with this number."""
        return f"{self.name}_{counter:05}_.{extension}"


@dataclass(frozen=True)
class Saved:
    """A numbered file that was put in place."""

    filename: str
    counter: int


def resolve_prefix(
    output_folder: Path, prefix: str, width: int = 0, height: int = 0, now: time.struct_time | None = None
) -> OutputPath:
    """The place that a `filename_prefix` means, as ComfyUI's folder_paths.get_save_image_path has it.

    A prefix may begin with subfolders; %width%, %height%, %year%, %month%, %day%, %hour%, %minute% and %second% are
    filled in. Makes no folder. Raises SettingError when the prefix leads out of the output folder, also by a link in
    it, and when no file can be called so. The output folder itself may be a link.
    """
    expanded = os.path.normpath(_expand(prefix, width, height, now or time.localtime()))
    subfolder, name = os.path.split(expanded)
    root = os.path.abspath(output_folder)
    folder = os.path.abspath(os.path.join(root, subfolder))
    if not is_valid_file_name(expanded):
        raise SettingError(
            f"filename_prefix must name a place inside the output folder, got {prefix[:200]!a}, which no file can be "
            'called; use a plain name such as "ComfyUI".',
            code="output.outside",
        )
    if not is_within(folder, root) or resolve_inside(root, subfolder) is None:
        raise SettingError(
            f"filename_prefix must name a place inside the output folder, got {prefix[:200]!a}, which leads outside; "
            f'use a plain name such as "ComfyUI" or a subfolder such as "video/ComfyUI".',
            code="output.outside",
        )
    return OutputPath(Path(folder), subfolder, name)


def next_counter(place: OutputPath) -> int:
    """One more than the highest number that the place's folder holds for its name, whatever the extension; else 1."""
    try:
        files = os.listdir(place.folder)
    except FileNotFoundError:
        return 1
    except OSError as error:
        raise _output_error(place.folder, error) from error
    start = os.path.normcase(place.name + "_")
    numbers = [_leading_number(file[len(start) :]) for file in files if os.path.normcase(file).startswith(start)]
    return max(numbers, default=0) + 1


def save_numbered(
    place: OutputPath, extension: str, write: Callable[[Path], None], counter: int | None = None
) -> Saved:
    """Have `write` fill a temporary file, then put it in place under the first free number from `counter` on.

    Without a counter, counting starts at `next_counter`. Nothing is ever written over, by any number of processes.
    Raises OutputError when the file cannot be written; whatever `write` raises goes through. Neither leaves a file.
    """
    with _temporary_file(place.folder, place.filename(counter or 1, extension)) as temporary:
        write(temporary)
        flush_to_disk(temporary)
        number = next_counter(place) if counter is None else counter
        while not put_under_new_name(temporary, place.folder / place.filename(number, extension)):
            number += 1
    return Saved(place.filename(number, extension), number)


def save_as(path: Path, write: Callable[[Path], None]) -> Path:
    """Have `write` fill a temporary file, then put it in place at `path`, or when that is taken at the next free name.

    The next of name_00007_.png is one more than the highest number of its folder; of any other name, name_00002 and so
    on. Raises OutputError when the file cannot be written; whatever `write` raises goes through. Neither leaves a file.
    """
    with _temporary_file(path.parent, path.name) as temporary:
        write(temporary)
        flush_to_disk(temporary)
        names = itertools.chain([path], _next_names(path))
        return next(name for name in names if put_under_new_name(temporary, name))


def copy_to_new_name(source: Path, path: Path, link: bool = True) -> Path:
    """A file under a second name: `path`, or when that is taken the next free one. Who writes to one writes to both.

    A copy where `link` is False or the disk cannot link. Raises OutputError.
    """
    if link:
        with contextlib.suppress(OSError):
            os.link(source, path)
            return path
    return save_as(path, lambda temporary: _copy_content(source, temporary))


def _copy_content(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary file to write; on leaving without an error it becomes `path`, replacing what was there.

    Makes the folder when there is none. Raises OutputError when `path` is something else than a file or cannot be
    written. On any error the temporary file is gone and what was at `path` before is untouched.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a plain file"
        raise OutputError(f"{path} is {kind}; name a file that may be written.", code="output.not_a_file")
    with _temporary_file(path.parent, path.name) as temporary:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def scratch_folder_beside(path: Path) -> Iterator[Path]:
    """A folder on the disk of `path`, gone afterwards; so are the parents of `path` that had to be made for nothing.

    Raises SettingError (`output.not_writable`) when nothing can be written there, or `path` is a folder.
    """
    if path.is_dir():
        raise SettingError(f'"{path}" is a folder; name the file to write.', code="output.not_writable")
    made = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        with _folder_in(path.parent) as folder:
            try:
                yield folder
            except OSError as error:
                raise _output_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


@contextlib.contextmanager
def _folder_in(parent: Path) -> Iterator[Path]:
    """`unfinished_folder`, with a SettingError when it cannot be made."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(unfinished_folder(parent))
        except OSError as error:
            raise SettingError(
                f'nothing can be written into "{parent}" ({error.strerror}); choose another place.',
                code="output.not_writable",
            ) from error
        yield folder


def free_names(path: Path, first: int) -> Iterator[Path]:
    """Of path_00002, path_00003 and so on, from number `first`, those that no file has yet."""
    names = (path.with_stem(f"{path.stem}_{number:05}") for number in itertools.count(first))
    return (name for name in names if not name.exists())


def _next_names(path: Path) -> Iterator[Path]:
    numbered = re.fullmatch(r"(.+)_\d+_", path.stem)
    if numbered is None:
        yield from free_names(path, 2)
        return
    place = OutputPath(path.parent, "", numbered[1])
    for number in itertools.count(next_counter(place)):
        yield path.parent / place.filename(number, path.suffix.removeprefix("."))


@contextlib.contextmanager
def _temporary_file(folder: Path, final_name: str) -> Iterator[Path]:
    """A new name in `folder`, gone afterwards. Trouble of the operating system becomes an OutputError."""
    try:
        with unfinished_file(folder) as temporary:
            yield temporary
    except OSError as error:
        raise _output_error(folder / final_name, error) from error


def flush_to_disk(file: Path) -> None:
    """Without this a power cut could leave the final name with an empty file under it."""
    with open(file, "r+b") as stream:
        os.fsync(stream.fileno())


def put_under_new_name(temporary: Path, path: Path) -> bool:
    """Give the complete file a name that is free, on the same disk. False when somebody has the name.

    On network disks the answer to a link that was made can be lost, and the second try be told that it is there.
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
    """The same on file systems without hard links (exFAT, some network folders): claim the name, then move onto it."""
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
    values = {
        "%width%": str(width),
        "%height%": str(height),
        "%year%": str(now.tm_year),
        "%month%": f"{now.tm_mon:02}",
        "%day%": f"{now.tm_mday:02}",
        "%hour%": f"{now.tm_hour:02}",
        "%minute%": f"{now.tm_min:02}",
        "%second%": f"{now.tm_sec:02}",
    }
    for word, value in values.items():
        prefix = prefix.replace(word, value)
    return prefix


def _leading_number(rest: str) -> int:
    """The number that `rest` begins with when an underscore follows it, as in "00012_.png"; else 0."""
    digits, underscore, _ = rest.partition("_")
    return int(digits) if underscore and digits.isascii() and digits.isdigit() else 0


def _output_error(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _NO_SPACE:
        code, suggestion = "output.no_space", "Free some space, or choose another output folder."
    elif error.errno in _NOT_ALLOWED:
        code, suggestion = "output.not_writable", "Choose an output folder that you may write to."
    elif error.errno == errno.ENAMETOOLONG:
        code, suggestion = "output.name_too_long", "Use a shorter name or filename_prefix."
    elif error.errno in _NOT_A_FOLDER:
        code, suggestion = "output.no_folder", "Every part of the path before the file's name must be a folder."
    else:
        code, suggestion = "output.failed", "Try another output folder."
    return OutputError(f"{path} could not be written: {reason}. {suggestion}", code=code)
