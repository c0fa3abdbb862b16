"""Why a download failed, in words: the hub's refusals, the connection, the disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, OutputError, SVDStagesError
from .catalog import CatalogEntry, CatalogFile

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
"""What a disk answers when it is full, may not be written to, or has something else in the way."""


@contextmanager
def explaining(wanted: CatalogEntry, file: CatalogFile, place: Path) -> Iterator[None]:
    """What goes wrong inside the `with` while `file` is fetched for `place`, as an error of ours.

    OutputError when it is the disk, CheckpointError else. Errors of ours and KeyboardInterrupt pass as they are.
    """
    try:
        yield
    except SVDStagesError:
        raise
    except Exception as error:  # each version of the hub's client has another set of them
        raise _of_the_disk(wanted, place, error) or _explained(wanted, file, error) from error


def _of_the_disk(wanted: CatalogEntry, place: Path, error: Exception) -> OutputError | None:
    found = next((each for each in _chain(error) if isinstance(each, OSError) and each.errno in DISK), None)
    if found is None:
        return None
    needed = sum(file.about for file in wanted.files)
    return OutputError(
        f'"{place}" cannot be written: {found.strerror or found}. {wanted.name} needs {needed / 1e9:.1f} GB. Make '
        "room, or name another models folder with --models DIR.",
        code="output.unwritable",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, ..."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explained(wanted: CatalogEntry, file: CatalogFile, error: Exception) -> CheckpointError:
    status = _http_status(error)
    if status in (401, 403):
        return CheckpointError(
            f'the hub refuses "{file.path}" of {wanted.hub_id} (HTTP {status}): it is for accounts that have accepted '
            f"its licence. Accept it at {wanted.page}, make an access token in your account's settings, and set the "
            "environment variable HF_TOKEN to it.",
            code="checkpoint.gated",
        )
    if status == 404:
        return CheckpointError(
            f'there is no "{file.path}" in {wanted.hub_id} any more (HTTP 404). Look at {wanted.page} for where it '
            "went.",
            code="checkpoint.not_found",
        )
    reason = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
    return CheckpointError(
        f'"{file.path}" of {wanted.hub_id} could not be downloaded: {reason}. Check the connection and the proxy '
        "(HF_ENDPOINT names another hub), and that HF_HUB_OFFLINE is not set; then try again.",
        code="checkpoint.offline",
    )


def _http_status(error: BaseException) -> int | None:
    """The HTTP status behind `error`, in it or in what caused it."""
    statuses = (getattr(getattr(each, "response", None), "status_code", None) for each in _chain(error))
    return next((status for status in statuses if isinstance(status, int)), None)
