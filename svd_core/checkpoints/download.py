"""Fetching a known checkpoint from the hub into a models folder, checked, and put in place when it is complete.

What is fetched gathers in a hidden folder beside the place where the checkpoint belongs, and stays there when the
download is broken off: the next one goes on from where it was. huggingface_hub's own `hf_hub_download` begins again
(from 1.0 on, it removes what it has), so only its requests are used.
"""

from __future__ import annotations

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

from ..errors import CheckpointError, MissingExtraError, OutputError
from ..media.hashing import file_sha256
from ..utils.optional_deps import has_extra
from .catalog import CatalogEntry, CatalogFile, entry
from .download_errors import explaining
from .progress import Advance, Progress, no_progress
from .safetensors_header import read_header
from .safetensors_writer import refuse_existing
from .sidecar import provenance_path, read_provenance, write_provenance

logger = logging.getLogger(__name__)

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Served:
    """What the hub says of a file: where it is, its size in bytes, its etag (for large files, the sha256)."""

    url: str
    size: int | None
    etag: str | None

    @property
    def sha256(self) -> str | None:
        """The sha256 that the hub has for the file, if it is one of those it keeps by sha256."""
        return self.etag if self.etag is not None and SHA256.fullmatch(self.etag) else None


def download(name: str, models_root: str | Path, progress: Progress = no_progress, endpoint: str | None = None) -> Path:
    """Fetch the catalog's checkpoint `name` into `models_root`, to checkpoints/<file> or diffusers/<name>.

    Sizes and sha256 are compared with the catalog where it knows them, else with what the hub itself says, and a
    warning tells so. A download that was broken off goes on from where it was. What is there already and right is left
    as it is. Beside a one-file checkpoint a small table says what it is, for the published files do not. `endpoint` is
    another hub than huggingface.co.

    Raises CheckpointError for an unknown name, a file that is not what it should be (it is removed), a gated checkpoint
    without leave, and a hub that cannot be reached; OutputError when the disk does not take it; MissingExtraError
    without huggingface_hub.
    """
    return fetch(entry(name), Path(models_root), progress, endpoint)


def fetch(wanted: CatalogEntry, models_root: Path, progress: Progress, endpoint: str | None) -> Path:
    """`download` of an entry that need not be in the catalog."""
    _require_hub()
    place = models_root / "diffusers" / wanted.name
    if not wanted.is_folder:
        place = models_root / "checkpoints" / Path(wanted.files[0].path).name
    if place.exists():
        _check_present(wanted, place, progress)
        logger.info('"%s" is there already and right; nothing is downloaded', place)
        return place
    logger.warning("%s is published under: %s. Read it at %s", wanted.name, wanted.licence, wanted.page)
    with _work_folder(wanted, place) as work:
        whole = work / "whole"
        for file in wanted.files:
            with explaining(wanted, file, place):
                _fetch_file(wanted, file, work, progress, endpoint)
        refuse_existing(place)
        if not wanted.is_folder:
            whole = whole / wanted.files[0].path
            os.replace(provenance_path(whole), provenance_path(place))
        os.rename(whole, place)
    shutil.rmtree(work, ignore_errors=True)
    return place


def _require_hub() -> None:
    if not has_extra("huggingface_hub"):
        raise MissingExtraError(
            'downloading needs the package huggingface_hub, which is not installed. Run pip install "svd-stages[hub]", '
            "or download the file in a browser and put it into a models folder's checkpoints/."
        )


def _check_present(wanted: CatalogEntry, place: Path, progress: Progress) -> None:
    """Raise CheckpointError unless what is at `place` is `wanted`, as far as the catalog knows it."""
    for file in wanted.files:
        path = place / file.path if wanted.is_folder else place
        if not path.is_file():
            raise _another(path.name, wanted, "it is missing from the folder")
        _verify(path, file.bytes, file.sha256, wanted, progress)
        if file.sha256 is None and path.suffix == ".safetensors":
            logger.warning('the sha256 of "%s" is not known, so only its form was checked', path.name)
        elif not wanted.is_folder and read_provenance(path, path.stat().st_size) is None:
            with explaining(wanted, file, place):
                write_provenance(path, wanted.name, file.sha256, wanted.defaults)


@contextmanager
def _work_folder(wanted: CatalogEntry, place: Path) -> Iterator[Path]:
    """The hidden folder beside `place`, for this process alone; after a failure it stays, with what is in it.

    `whole/` in it holds the files that are complete, `partial/` the beginnings of others.
    """
    from filelock import FileLock, Timeout

    work = place.parent / f".{place.name}.download"
    with explaining(wanted, wanted.files[0], place):
        work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            yield work
    except Timeout as error:
        raise OutputError(
            f'"{place}" is being downloaded by another program at this moment. Wait for it, or stop it.',
            code="output.busy",
        ) from error
    except BaseException:
        _say_what_is_kept(work)
        raise


def _say_what_is_kept(work: Path) -> None:
    kept = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    if kept:
        logger.warning('%s bytes are kept in "%s"; the same command goes on from there', f"{kept:,}", work)
    else:
        shutil.rmtree(work, ignore_errors=True)


def _fetch_file(wanted: CatalogEntry, file: CatalogFile, work: Path, progress: Progress, endpoint: str | None) -> None:
    """Bring `file` to its path below `work/whole`, whole and right; one that is whole and wrong is removed."""
    served = _ask_hub(wanted, file, endpoint)
    whole = work / "whole" / file.path
    if not whole.is_file():
        partial = work / "partial" / f"{file.path}.{(served.etag or 'unknown')[:16]}"
        partial.parent.mkdir(parents=True, exist_ok=True)
        whole.parent.mkdir(parents=True, exist_ok=True)
        _transfer(served, file, partial, progress)
        os.replace(partial, whole)
    try:
        _verify(whole, file.bytes or served.size, file.sha256 or served.sha256, wanted, progress)
    except CheckpointError:
        whole.unlink()
        raise
    _say_what_was_compared(file, served)
    if not wanted.is_folder:
        write_provenance(whole, wanted.name, file.sha256 or served.sha256, wanted.defaults)


def _ask_hub(wanted: CatalogEntry, file: CatalogFile, endpoint: str | None) -> Served:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(wanted.hub_id, file.path, endpoint=endpoint)
    told = get_hf_file_metadata(url)
    if told.commit_hash is not None:  # so that what is compared is what is fetched, when somebody changes it in between
        url = hf_hub_url(wanted.hub_id, file.path, revision=told.commit_hash, endpoint=endpoint)
    return Served(url, told.size, told.etag)


def _transfer(served: Served, file: CatalogFile, partial: Path, progress: Progress) -> None:
    """Bring `partial` to its full length, from where it ends."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    have = partial.stat().st_size if partial.exists() else 0
    if served.size is not None and have > served.size:
        partial.unlink()
        have = 0
    total = served.size or file.about
    with partial.open("ab") as target, progress(f"downloading {file.path}", total, "byte") as advance:
        if have and have == served.size:
            return
        options: dict[str, Any] = {}
        if "tqdm_class" in inspect.signature(http_get).parameters:  # not in huggingface_hub before 1.0
            options["tqdm_class"] = _bar(lambda done: advance(min(done, total)))
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        http_get(served.url, target, resume_size=have, headers=headers, expected_size=served.size, **options)


def _bar(advance: Advance) -> type:
    """A progress bar class for the hub's client that draws nothing and tells `advance` the bytes so far."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, total: float | None = None, initial: int = 0, **kwargs: Any):
            super().__init__(total=total, disable=True)
            self.done = initial

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            advance(self.done)

    return Bar


def _verify(path: Path, size: int | None, sha256: str | None, wanted: CatalogEntry, progress: Progress) -> None:
    """Raise CheckpointError unless `path` has this size and sha256, where they are known, and the form of its name."""
    length = path.stat().st_size
    if size is not None and length != size:
        raise _another(path.name, wanted, f"it has {length:,} bytes and must have {size:,}")
    if path.suffix == ".safetensors":
        read_header(path)
    if sha256 is None:
        return
    with progress(f"checking {path.name}", length, "byte") as advance:
        digest = file_sha256(path, advance)
    if digest != sha256:
        raise _another(path.name, wanted, f"its sha256 is {digest} and must be {sha256}")


def _say_what_was_compared(file: CatalogFile, served: Served) -> None:
    if file.sha256 is not None:
        logger.info('"%s" has the sha256 that this version of svd-stages knows', file.path)
    elif served.sha256 is not None:
        logger.warning(
            'the sha256 of "%s" is not known to svd-stages itself; the file was compared with the size and the sha256 '
            "that the hub says, so it came whole",
            file.path,
        )
    elif file.path.endswith(".safetensors"):
        logger.warning('the sha256 of "%s" is not known, so only its size and form were checked', file.path)


def _another(name: str, wanted: CatalogEntry, reason: str) -> CheckpointError:
    return CheckpointError(
        f'"{name}" is not the published {wanted.name}: {reason}. Remove it if it is still there, download it again, '
        f"and compare with {wanted.page}.",
        code="checkpoint.hash",
    )
