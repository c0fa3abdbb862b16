"""Tasks of a batch: the inputs of one video, and the id and the seed derived from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_SEED = 2**53
"""Derived seeds are below this, because JavaScript keeps integers only up to here."""
_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TASK_TYPES = {"id": (str,), "image": (str,), "image_sha256": (str,), "values": (dict,), "seed": (int, type(None))}
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class Task:
    """One video to render.

    Attributes:
        id: 64 hex digits, equal for equal inputs. See `task_id`.
        image: Path below the folder of images, with forward slashes.
        image_sha256: sha256 of the image file's bytes, in hex.
        values: "NODE.INPUT" with the node's id -> value. Holds the seed, too, if the graph takes one.
        seed: None if the graph takes no seed.
    """

    id: str
    image: str
    image_sha256: str
    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON. `Task(**fields)` is the inverse."""
        return dict(vars(self))


def read_task(fields: Any) -> Task:
    """Validate the fields of an untrusted file and return the task.

    Raises:
        ValueError: The fields are not a task's. The id is checked because it becomes part of file names.
    """
    if not has_types(fields, _TASK_TYPES) or fields.keys() != _TASK_TYPES.keys() or not _ID.fullmatch(fields["id"]):
        raise ValueError(f"a task must have {', '.join(_TASK_TYPES)}, and an id of 64 hex digits")
    return Task(**fields)


def has_types(value: Any, types: Mapping[str, tuple[type, ...]]) -> bool:
    """Return True if an untrusted JSON value is an object with fields of these types. A boolean is not an integer."""
    return isinstance(value, dict) and all(type(value.get(name)) in kinds for name, kinds in types.items())


def canonical(value: Any) -> str:
    """Return the canonical JSON text of a value. Raises ValueError for NaN and infinities."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """Return the sha256 of the canonical JSON text, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def task_id(shared: str, image_sha256: str, values: Mapping[str, Any]) -> str:
    """Return the id of a task.

    Args:
        shared: Digest of what all rows have in common: graph, models, settings, version of the code.
        image_sha256: sha256 of the image file's bytes, in hex.
        values: "NODE.INPUT" -> value. A model counts by the sha256 of its content.
    """
    return digest([shared, image_sha256, values])


def derived_seed(image_sha256: str, values: Mapping[str, Any]) -> int:
    """Return the seed of a row without one, 0 <= seed < 2**53.

    It depends on the image and on the values without models. The row's position and the model do not change it, so two
    models can be compared on the same noise.
    """
    return int(digest(["seed", image_sha256, values])[:16], 16) % MAX_SEED
