"""Hash checkpoints by content. Hashes are cached on disk while the file does not change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..._version import __version__
from ...svd_core.errors import CheckpointError, OutputError, quoted
from ...svd_core.media.hashing import file_sha256
from ...svd_core.utils.output_files import replacing
from ...svd_core.utils.user_tempdir import private_folder


def model_sha256(path: Path) -> str:
    """Return the sha256 of a checkpoint file; for a diffusers folder, of its files' names and sha256.

    The cache is in the system's temporary folder, keyed by path, size and time. So gigabytes are read once per
    machine, not once per worker. Raises CheckpointError.
    """
    try:
        if path.is_file():
            return _cached_sha256(path)
        files = sorted(each for each in path.rglob("*") if each.suffix in (".json", ".safetensors") and each.is_file())
        lines = [f"{file.relative_to(path).as_posix()} {_cached_sha256(file)}" for file in files]
    except OSError as error:
        raise CheckpointError(
            f"{quoted(error.filename or path)} cannot be read: {error.strerror}.", code="checkpoint.unreadable"
        ) from error
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def code_version() -> str:
    """Return the part of the version that changes when pixels change: the major, before 1.0 also the minor number."""
    major, minor, *_ = __version__.split(".")
    return major if major != "0" else f"{major}.{minor}"


def facts_of(hashes: Mapping[str, str]) -> dict[str, str]:
    """Return what all workers must agree on: the version of the code, and the sha256 of each model by name."""
    return {"code": code_version(), **{f"model {name}": hashes[name] for name in sorted(hashes)}}


def _cached_sha256(file: Path) -> str:
    status = file.stat()
    key = f"{os.path.realpath(file)} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    try:
        cache_file = private_folder("sums") / hashlib.sha256(key.encode()).hexdigest()
    except OSError:
        return file_sha256(file)
    with contextlib.suppress(OSError, ValueError):
        cached = cache_file.read_text(encoding="ascii")
        if re.fullmatch(r"[0-9a-f]{64}", cached):
            return cached
    sha256 = file_sha256(file)
    with contextlib.suppress(OSError, OutputError), replacing(cache_file) as temporary:
        temporary.write_text(sha256, encoding="ascii")
    return sha256
