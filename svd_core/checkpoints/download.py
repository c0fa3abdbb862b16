"""Download a published checkpoint from the Hugging Face hub into a models folder, with checks, resumable.

Files are collected in a hidden folder beside the destination, which is renamed when it is complete. After an
interruption the hidden folder stays, and the next download continues from there. huggingface_hub's `hf_hub_download`
starts from zero instead (github.com/huggingface/huggingface_hub/issues/4196), so only its HTTP functions are used.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingExtraError, OutputError, SVDStagesError
from ..media.hashing import file_sha256
from ..utils.optional_deps import has_extra
from ..utils.progress import Advance, Progress, no_progress
from .catalog import CatalogEntry, CatalogFile, find_entry
from .model_metadata import read_sidecar, sidecar_path, write_sidecar
from .safetensors_header import read_header
from .safetensors_writer import refuse_existing

logger = logging.getLogger(__name__)

SHA256 = re.compile(r"[0-9a-f]{64}")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


@dataclass(frozen=True)
class HubFile:
    """The hub's record of a file: URL, size in bytes, ETag (of large files, the sha256)."""

    url: str
    size: int | None
    etag: str | None

    @property
    def sha256(self) -> str | None:
        """The file's sha256. None if the hub has none."""
        return self.etag if self.etag is not None and SHA256.fullmatch(self.etag) else None


def download(name: str, models_root: str | Path, progress: Progress = no_progress, endpoint: str | None = None) -> Path:
    """Download the catalog's checkpoint `name` to `models_root`/checkpoints/<file> or `models_root`/diffusers/<name>.

    Size and sha256 are checked against the catalog, or against the hub, with a warning, where the catalog has none. An
    interrupted download is resumed. Valid files at the destination are kept. A sidecar beside a single file records its
    catalog name.

    Args:
        endpoint: Another hub than huggingface.co.

    Raises:
        CheckpointError: Unknown name, wrong content (which is removed), gated checkpoint, or unreachable hub.
        OutputError: The destination cannot be written.
        MissingExtraError: huggingface_hub is not installed.
    """
    entry, models_root = find_entry(name), Path(models_root)
    if not has_extra("huggingface_hub"):
        raise MissingExtraError(
            'downloading needs the package huggingface_hub, which is not installed. Run pip install "svd-stages[hub]", '
            "or download the file in a browser and put it into a models folder's checkpoints/."
        )
    destination = models_root / "diffusers" / entry.name
    if not entry.is_folder:
        destination = models_root / "checkpoints" / Path(entry.files[0].path).name
    if destination.exists():
        _check_existing(entry, destination, progress)
        logger.info('"%s" exists and is valid; nothing is downloaded', destination)
        return destination
    logger.warning("%s is published under: %s. Read it at %s", entry.name, entry.licence, entry.page)
    with _work_folder(entry, destination) as work:
        for file in entry.files:
            with _translate_errors(entry, file, destination):
                _fetch_file(entry, file, work, progress, endpoint)
        refuse_existing(destination)
        complete = work / "whole"
        if not entry.is_folder:
            complete = complete / entry.files[0].path
            os.replace(sidecar_path(complete), sidecar_path(destination))
        os.rename(complete, destination)
    shutil.rmtree(work, ignore_errors=True)
    return destination


def _check_existing(entry: CatalogEntry, destination: Path, progress: Progress) -> None:
    """Raise CheckpointError unless `destination` is `entry`, as far as the catalog has size and sha256."""
    for file in entry.files:
        path = destination / file.path if entry.is_folder else destination
        if not path.is_file():
            raise _mismatch(path.name, entry, "it is missing from the folder")
        _verify(path, file.bytes, file.sha256, entry, progress)
        if file.sha256 is None and path.suffix == ".safetensors":
            logger.warning('the sha256 of "%s" is not known, so only its format was checked', path.name)
        elif not entry.is_folder and read_sidecar(path, path.stat().st_size) is None:
            with _translate_errors(entry, file, destination):
                write_sidecar(path, entry.name, file.sha256, entry.defaults)


@contextmanager
def _work_folder(entry: CatalogEntry, destination: Path) -> Iterator[Path]:
    """Create and lock the hidden folder beside `destination`. After a failure it stays, unless it has no data.

    Its `whole/` holds complete files, its `partial/` incomplete ones.
    """
    from filelock import FileLock, Timeout

    work = destination.parent / f".{destination.name}.download"
    with _translate_errors(entry, entry.files[0], destination):
        work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            yield work
    except Timeout as error:
        raise OutputError(
            f'"{destination}" is being downloaded by another program at this moment. Wait for it, or stop it.',
            code="output.busy",
        ) from error
    except BaseException:
        size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        if size:
            logger.warning('%s bytes are kept in "%s"; the same command continues from there', f"{size:,}", work)
        else:
            shutil.rmtree(work, ignore_errors=True)
        raise


def _fetch_file(entry: CatalogEntry, file: CatalogFile, work: Path, progress: Progress, endpoint: str | None) -> None:
    """Download and verify one file below `work`/whole. A complete file with the wrong content is removed."""
    hub_file = _query_hub(entry, file, endpoint)
    complete = work / "whole" / file.path
    if not complete.is_file():
        partial = work / "partial" / f"{file.path}.{(hub_file.etag or 'unknown')[:16]}"
        partial.parent.mkdir(parents=True, exist_ok=True)
        complete.parent.mkdir(parents=True, exist_ok=True)
        _transfer(hub_file, file, partial, progress)
        os.replace(partial, complete)
    try:
        _verify(complete, file.bytes or hub_file.size, file.sha256 or hub_file.sha256, entry, progress)
    except CheckpointError:
        complete.unlink()
        raise
    if file.sha256 is not None:
        logger.info('"%s" has the sha256 in the catalog of this version', file.path)
    elif hub_file.sha256 is not None:
        logger.warning('"%s" has the size and sha256 that the hub reports; the catalog has no sha256', file.path)
    elif file.path.endswith(".safetensors"):
        logger.warning('the sha256 of "%s" is not known, so only its size and format were checked', file.path)
    if not entry.is_folder:
        write_sidecar(complete, entry.name, file.sha256 or hub_file.sha256, entry.defaults)


def _query_hub(entry: CatalogEntry, file: CatalogFile, endpoint: str | None) -> HubFile:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(entry.hub_id, file.path, endpoint=endpoint)
    record = get_hf_file_metadata(url)
    if record.commit_hash is not None:  # pin the commit, so that the verified file is the downloaded one
        url = hf_hub_url(entry.hub_id, file.path, revision=record.commit_hash, endpoint=endpoint)
    return HubFile(url, record.size, record.etag)


def _transfer(hub_file: HubFile, file: CatalogFile, partial: Path, progress: Progress) -> None:
    """Append the rest of the file to `partial`."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    present = partial.stat().st_size if partial.exists() else 0
    if hub_file.size is not None and present > hub_file.size:
        partial.unlink()
        present = 0
    total = hub_file.size or file.approx_bytes
    with partial.open("ab") as target, progress(f"downloading {file.path}", total, "byte") as advance:
        if present and present == hub_file.size:
            return
        options: dict[str, Any] = {}
        if "tqdm_class" in inspect.signature(http_get).parameters:  # not in huggingface_hub before 1.0
            options["tqdm_class"] = _silent_tqdm(lambda done: advance(min(done, total)))
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        http_get(hub_file.url, target, resume_size=present, headers=headers, expected_size=hub_file.size, **options)


def _silent_tqdm(advance: Advance) -> type:
    """Make a tqdm class for the hub's client that draws nothing and calls `advance` with the bytes so far."""
    from tqdm import tqdm

    class SilentTqdm(tqdm):
        def __init__(self, *args: Any, total: float | None = None, initial: int = 0, **kwargs: Any):
            super().__init__(total=total, disable=True)
            self.done = initial

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            advance(self.done)

    return SilentTqdm


def _verify(path: Path, size: int | None, sha256: str | None, entry: CatalogEntry, progress: Progress) -> None:
    """Raise CheckpointError unless `path` has this size and sha256, where known, and a valid safetensors header."""
    length = path.stat().st_size
    if size is not None and length != size:
        raise _mismatch(path.name, entry, f"it must have {size:,} bytes, got {length:,}")
    if path.suffix == ".safetensors":
        read_header(path)
    if sha256 is None:
        return
    with progress(f"checking {path.name}", length, "byte") as advance:
        digest = file_sha256(path, advance)
    if digest != sha256:
        raise _mismatch(path.name, entry, f"its sha256 must be {sha256}, got {digest}")


def _mismatch(name: str, entry: CatalogEntry, reason: str) -> CheckpointError:
    return CheckpointError(
        f'"{name}" is not the published {entry.name}: {reason}. Remove it if it still exists, download it again, '
        f"and compare with {entry.page}.",
        code="checkpoint.hash",
    )


@contextmanager
def _translate_errors(entry: CatalogEntry, file: CatalogFile, destination: Path) -> Iterator[None]:
    """Convert errors inside the `with` to OutputError (disk) or CheckpointError (hub, connection)."""
    try:
        yield
    except SVDStagesError:
        raise
    except Exception as error:  # each version of the hub's client raises other types
        raise _disk_error(entry, destination, error) or _hub_error(entry, file, error) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, ..."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk_error(entry: CatalogEntry, destination: Path, error: Exception) -> OutputError | None:
    errors = (each for each in _causes(error) if isinstance(each, OSError))
    cause = next((each for each in errors if each.errno in DISK_FULL + NOT_WRITABLE), None)
    if cause is None:
        return None
    needed = sum(file.approx_bytes for file in entry.files)
    return OutputError(
        f'"{destination}" cannot be written: {cause.strerror or cause}. {entry.name} needs {needed / 1e9:.1f} GB. Free '
        "disk space, or choose another models folder with `models`.",
        code="output.unwritable",
    )


def _hub_error(entry: CatalogEntry, file: CatalogFile, error: Exception) -> CheckpointError:
    statuses = (getattr(getattr(each, "response", None), "status_code", None) for each in _causes(error))
    status = next((status for status in statuses if isinstance(status, int)), None)
    if status in (401, 403):
        return CheckpointError(
            f'the hub refuses "{file.path}" of {entry.hub_id} (HTTP {status}): it is for accounts that have accepted '
            f"its licence. Accept it at {entry.page}, create an access token in your account's settings, and set the "
            "environment variable HF_TOKEN to it.",
            code="checkpoint.gated",
        )
    if status == 404:
        return CheckpointError(
            f'"{file.path}" does not exist in {entry.hub_id} any more (HTTP 404). Look for its new name at '
            f"{entry.page}",
            code="checkpoint.not_found",
        )
    reason = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
    return CheckpointError(
        f'"{file.path}" of {entry.hub_id} could not be downloaded: {reason}. Check the connection and the proxy '
        "(HF_ENDPOINT names another hub), and that HF_HUB_OFFLINE is not set; then try again.",
        code="checkpoint.offline",
    )
