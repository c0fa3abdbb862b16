"""The published SVD checkpoints that `svd-stages download` can fetch, with sizes and sha256 where they are known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..errors import CheckpointError, quoted
from .model_metadata import VideoDefaults


@dataclass(frozen=True)
class CatalogFile:
    """One file of a checkpoint.

    Attributes:
        path: Path in the repository.
        approx_bytes: For progress, where the exact size is unknown.
        bytes, sha256: None if unknown.
    """

    path: str
    approx_bytes: int
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class CatalogEntry:
    """One published checkpoint.

    Attributes:
        files: One .safetensors file, or the files of a diffusers folder.
        defaults: The video settings it was trained for.
        gated: True if its page requires an account that has accepted the licence.
    """

    name: str
    hub_id: str
    files: tuple[CatalogFile, ...]
    defaults: VideoDefaults
    licence: str
    gated: bool

    @property
    def page(self) -> str:
        """URL of the checkpoint's page, with its licence."""
        return f"https://huggingface.co/{self.hub_id}"

    @property
    def is_folder(self) -> bool:
        """True for a diffusers folder."""
        return len(self.files) > 1

    @property
    def file_name(self) -> str:
        """Name of the downloaded file or folder in a models folder."""
        return self.name if self.is_folder else Path(self.files[0].path).name


def _read_catalog() -> tuple[CatalogEntry, ...]:
    """Read catalog.json: the fields of CatalogEntry and CatalogFile."""
    catalog = []
    for entry in json.loads((Path(__file__).parent / "catalog.json").read_text(encoding="utf-8")):
        files = tuple(CatalogFile(**file) for file in entry.pop("files"))
        catalog.append(CatalogEntry(files=files, defaults=VideoDefaults(**entry.pop("defaults")), **entry))
    return tuple(catalog)


CATALOG = _read_catalog()


def published(name: str) -> CatalogEntry | None:
    """Return the published checkpoint that is meant by a name, the name of its file or its id on the hub, if any."""
    return _aliases().get(_plain(name))


def misspelled(name: str, others: Iterable[str]) -> CatalogEntry | None:
    """Return the published checkpoint that a name resembles more than it resembles `others`, if any."""
    known = {**_aliases(), **dict.fromkeys(map(_plain, others))}
    return next((known[near] for near in get_close_matches(_plain(name), known, n=1)), None)


def _plain(name: str) -> str:
    return name.lower().removesuffix(".safetensors").replace("_", "-").replace(".", "-")


def _aliases() -> dict[str, CatalogEntry]:
    """Return the name, the file's name and the ids on the hub of each published checkpoint, in their plain form."""
    return {
        _plain(alias): entry
        for entry in reversed(CATALOG)  # the first of two that have an alias
        for alias in (entry.name, entry.file_name, entry.hub_id, entry.hub_id.rpartition("/")[2])
    }


def find_entry(name: str) -> CatalogEntry:
    """Return the published checkpoint called `name`. Raises CheckpointError with all names if there is none."""
    entry = published(name)
    if entry is None:
        names = ", ".join(each.name for each in CATALOG)
        raise CheckpointError(
            f"there is no published checkpoint {quoted(name)}. Use one of {names}.", code="checkpoint.not_found"
        )
    return entry
