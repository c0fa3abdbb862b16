"""What a download knew about a one-file checkpoint, kept in a small table beside it: `<file>.svd-stages.json`.

The published files do not say for how many frames they were trained, and their shapes are the same; who fetched one by
its name does know. Needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, printable
from .model_metadata import MAX_VALUES, ModelMetadata, VideoDefaults, facts_from_metadata, facts_from_table
from .safe_json import parse_table
from .safetensors_header import Header
from .stable_file import open_model_file

SUFFIX = ".svd-stages.json"
MAX_BYTES = 100_000
TOLD = ("num_frames", "min_guidance", "max_guidance")
"""The facts that the table tells."""


@dataclass(frozen=True)
class Provenance:
    """`name` is the catalog's, `facts` what it says of the checkpoint of that name."""

    name: str
    facts: ModelMetadata


def provenance_path(path: Path) -> Path:
    """Where the table of the file at `path` is."""
    return path.with_name(path.name + SUFFIX)


def write_provenance(path: Path, name: str, sha256: str | None, defaults: VideoDefaults) -> None:
    """Write beside the file at `path` that it is the catalog's checkpoint `name`. Raises OSError.

    Only the size is compared later; the sha256, where it is known, is there for the user.
    """
    table = {
        "name": name,
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "facts": {key: getattr(defaults, key) for key in TOLD},
    }
    provenance_path(path).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def read_provenance(path: Path, size: int) -> Provenance | None:
    """What the table beside the file at `path`, which has `size` bytes, says of it.

    None when there is no table, or one of a file of another size: the file is not the one that was downloaded. Raises
    CheckpointError when the table is damaged.
    """
    beside = provenance_path(path)
    if not beside.is_file():
        return None
    table = _read_table(beside)
    name, facts = table.get("name"), table.get("facts")
    if table.get("bytes") != size or not isinstance(name, str):
        return None
    given = {key: value for key, value in facts.items() if key in TOLD} if isinstance(facts, dict) else facts
    return Provenance(name, facts_from_table(printable(beside.name), given))


def _read_table(beside: Path) -> dict[str, Any]:
    try:
        with open_model_file(beside) as file:
            return parse_table(file.read(MAX_BYTES), MAX_VALUES)
    except ValueError as error:
        raise CheckpointError(
            f'"{printable(beside)}" must say what file it lies beside, and cannot be read: {error}. Remove it; '
            "svd-stages download writes it again.",
            code="checkpoint.facts",
        ) from error


def file_facts(path: Path, header: Header) -> ModelMetadata:
    """The facts of the one-file checkpoint at `path`: its metadata's, and where they do not say for how many frames it
    was trained, those of the table beside it.

    Raises CheckpointError when either is damaged or out of range.
    """
    facts = facts_from_metadata(printable(path.name), header.metadata)
    known = read_provenance(path, header.file_size) if facts.num_frames is None else None
    if known is None:
        return facts
    missing = {key: getattr(known.facts, key) for key in TOLD if getattr(facts, key) is None}
    return replace(facts, **missing)
