"""Checkpoints by content: the sha256 of a file or folder, read once as long as it does not change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..._version import __version__
from ...svd_core.errors import CheckpointError, OutputError
from ...svd_core.media.hashing import file_sha256
from ...svd_core.utils.output_files import replacing
from ...svd_core.utils.user_tempdir import private_folder


def model_sha256(path: Path) -> str:
    """The sha256 of a checkpoint file; of a diffusers folder, of the names and sums of its weights and settings.

    What was found is kept with the system's temporary files, by path, size and time: gigabytes are read once on each
    machine and not by each worker. Raises CheckpointError.
    """
    try:
        if path.is_file():
            return _remembered(path)
        files = sorted(each for each in path.rglob("*") if each.suffix in (".json", ".safetensors") and each.is_file())
        sums = [f"{file.relative_to(path).as_posix()} {_remembered(file)}" for file in files]
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path} cannot be read: {error.strerror}.", code="checkpoint.unreadable"
        ) from error
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def code_version() -> str:
    """The part of our version that stays while clips stay the same: the major one, before 1.0 also the minor one."""
    major, minor, *_ = __version__.split(".")
    return major if major != "0" else f"{major}.{minor}"


def facts_of(sums: Mapping[str, str]) -> dict[str, str]:
    """What workers of a batch must agree on: the version of the code, and the sha256 of each model by name."""
    return {"code": code_version(), **{f"model {name}": sums[name] for name in sorted(sums)}}


def _remembered(file: Path) -> str:
    status = file.stat()
    about = f"{os.path.realpath(file)} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    try:
        note = private_folder("sums") / hashlib.sha256(about.encode()).hexdigest()
    except OSError:
        return file_sha256(file)
    with contextlib.suppress(OSError, ValueError):
        found = note.read_text(encoding="ascii")
        if re.fullmatch(r"[0-9a-f]{64}", found):
            return found
    found = file_sha256(file)
    with contextlib.suppress(OSError, OutputError), replacing(note) as temporary:
        temporary.write_text(found, encoding="ascii")
    return found
