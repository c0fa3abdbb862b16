"""What one clip is made from, and the id and the seed that follow from it alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_SEED = 2**53
"""Derived seeds are below this: a page's JSON keeps such numbers exactly."""
_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class Task:
    """One clip to make.

    id            64 hex digits; equal for equal clips, whoever makes them
    image         its path below the folder of images, with forward slashes
    image_sha256  of the file's bytes
    values        "NODE.INPUT" -> value, by node id; the seed is in it, too, wherever the graph takes it
    seed          None when the graph takes none
    """

    id: str
    image: str
    image_sha256: str
    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `Task(**that)` is the task again."""
        return {
            "id": self.id,
            "image": self.image,
            "image_sha256": self.image_sha256,
            "values": dict(self.values),
            "seed": self.seed,
        }


def read_task(found: Any) -> Task:
    """The task that a file tells of. Raises ValueError when it is none: its id is part of the names of files."""
    task = Task(**found) if isinstance(found, dict) and found.keys() <= Task.__dataclass_fields__.keys() else None
    if task is None or not _is_sound(task):
        raise ValueError("it holds what is no task")
    return task


def _is_sound(task: Task) -> bool:
    texts = (task.id, task.image, task.image_sha256)
    seed = task.seed is None or (isinstance(task.seed, int) and not isinstance(task.seed, bool))
    texts_alone = all(isinstance(each, str) for each in texts) and isinstance(task.values, dict)
    return seed and texts_alone and bool(_ID.fullmatch(task.id))


def canonical(value: Any) -> str:
    """The one JSON text of a value. Raises ValueError for NaN and infinities."""
    return _CANONICAL.encode(value)


def digest(value: Any) -> str:
    """The sha256 of the canonical text, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def task_id(shared: str, image_sha256: str, values: Mapping[str, Any]) -> str:
    """The id of the clip that these give.

    shared  digest of what all rows have in common: graph, models, settings, version of the code
    values  by "NODE.INPUT"; for one that names a model, its sha256
    """
    return digest([shared, image_sha256, values])


def derived_seed(image_sha256: str, values: Mapping[str, Any]) -> int:
    """The seed of a row that names none: from its image and its values but models, 0 <= seed < 2**53.

    Neither its place in the manifest nor the model counts: two models can be compared on the same noise.
    """
    return int(digest(["seed", image_sha256, values])[:16], 16) % MAX_SEED
