"""Fetching a known checkpoint from the hub into a models folder, checked, and put in place when it is complete."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import logging
import shutil
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingExtraError, SVDStagesError
from .catalog import CatalogEntry, CatalogFile, entry
from .header import read_header
from .progress import Advance, Progress, no_progress
from .writing import in_place

logger = logging.getLogger(__name__)

READ_AT_ONCE = 8 * 2**20


def download(name: str, models_root: str | Path, progress: Progress = no_progress, endpoint: str | None = None) -> Path:
    """Fetch the catalog's checkpoint `name` into `models_root`, to checkpoints/<file> or diffusers/<name>.

    Sizes and sha256 are compared with the catalog where it knows them; where it does not, a warning says so. What is
    there already and right is left as it is. `endpoint` is another hub than huggingface.co. Raises CheckpointError for
    an unknown name, a file that is not what it should be (it is removed), a gated checkpoint without leave, and a hub
    that cannot be reached, and MissingExtraError without huggingface_hub.
    """
    return fetch(entry(name), Path(models_root), progress, endpoint)


def fetch(wanted: CatalogEntry, models_root: Path, progress: Progress, endpoint: str | None) -> Path:
    """`download` of an entry that need not be in the catalog."""
    _require_hub()
    place = models_root / "diffusers" / wanted.name
    if not wanted.is_folder:
        place = models_root / "checkpoints" / Path(wanted.files[0].path).name
    if place.exists():
        for file in wanted.files:
            _verify(place / file.path if wanted.is_folder else place, file, wanted, progress)
        logger.info('"%s" is there already and right; nothing is downloaded', place)
        return place
    logger.warning("%s is published under: %s. Read it at %s", wanted.name, wanted.licence, wanted.page)
    with in_place(place, folder=wanted.is_folder) as work:
        folder = work if wanted.is_folder else work.parent
        for file in wanted.files:
            _fetch_file(wanted, file, folder, progress, endpoint)
            _verify(folder / file.path, file, wanted, progress)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
    return place


def _require_hub() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingExtraError(
            'downloading needs the package huggingface_hub, which is not installed. Run pip install "svd-stages[hub]", '
            "or download the file in a browser and put it into a models folder's checkpoints/."
        )


def _fetch_file(
    wanted: CatalogEntry, file: CatalogFile, folder: Path, progress: Progress, endpoint: str | None
) -> None:
    from huggingface_hub import hf_hub_download

    with progress(f"downloading {file.path}", file.about, "byte") as advance:
        options: dict[str, Any] = {}
        if "tqdm_class" in inspect.signature(hf_hub_download).parameters:  # not in huggingface_hub before 1.0
            options["tqdm_class"] = _bar(lambda done: advance(min(done, file.about)))
        try:
            hf_hub_download(wanted.hub_id, file.path, local_dir=folder, endpoint=endpoint, **options)
        except SVDStagesError:
            raise
        except Exception as error:  # each version of the hub's client has another set of them
            raise _explained(wanted, file, error) from error


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


def _http_status(error: BaseException | None) -> int | None:
    """The HTTP status behind `error`, in it or in what caused it."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__ or error.__context__
    return None


def _verify(path: Path, file: CatalogFile, wanted: CatalogEntry, progress: Progress) -> None:
    """Raise CheckpointError unless `path` is `file`, as far as the catalog knows it."""
    if not path.is_file():
        raise _another(path, wanted, "it is missing from the folder")
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        raise _another(path, wanted, f"it has {size:,} bytes and must have {file.bytes:,}")
    if path.suffix == ".safetensors":
        read_header(path)
    if file.sha256 is None:
        if path.suffix == ".safetensors":
            logger.warning('the sha256 of "%s" is not known, so only its form was checked', path.name)
        return
    with progress(f"checking {path.name}", size, "byte") as advance:
        digest = sha256_of(path, advance)
    if digest != file.sha256:
        raise _another(path, wanted, f"its sha256 is {digest} and must be {file.sha256}")


def sha256_of(path: Path, advance: Advance) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(READ_AT_ONCE):
            digest.update(block)
            done += len(block)
            advance(done)
    return digest.hexdigest()


def _another(path: Path, wanted: CatalogEntry, reason: str) -> CheckpointError:
    return CheckpointError(
        f'"{path.name}" is not the published {wanted.name}: {reason}. Remove it if it is still there, download it '
        f"again, and compare with {wanted.page}.",
        code="checkpoint.hash",
    )
