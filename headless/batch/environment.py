"""What the clips of a run are made with, so that a worker that would make others gets no work."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import BatchError, SVDStagesError

PROBE_TOLERANCE = 2
"""Of 255: other kernels add in another order, which is not another picture."""


@dataclass
class Environment:
    """env.json.

    makes   what must be equal on all workers: versions of libraries, precision
    probes  kind of device -> a small render of it, bytes in hex
    where   the file, for messages
    """

    makes: dict[str, str] = field(default_factory=dict)
    probes: dict[str, str] = field(default_factory=dict)
    where: str = "env.json"

    @classmethod
    def from_dict(cls, found: Mapping[str, Any], where: str) -> Environment:
        """What a file says; what is no text is left out."""
        return cls(_texts(found.get("makes")), _texts(found.get("probes")), where)

    def as_dict(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """For JSON. What other drivers wrote meanwhile stays."""
        return {
            "makes": {**self.makes, **_texts(before.get("makes"))},
            "probes": {**self.probes, **_texts(before.get("probes"))},
        }

    def take(self, told: Mapping[str, Any]) -> SVDStagesError | None:
        """Why a worker gets no work, by its answer to `hello`; None when it makes what the others make.

        The first worker of a run, and the first device of a kind, say what is right.
        """
        if "refused" in told:
            return BatchError(**told["refused"])
        makes = self.makes = self.makes or dict(told.get("makes", {}))
        others = [
            f"{name} {told['makes'].get(name)} and not {makes[name]}" for name in makes if _differs(told, makes, name)
        ]
        if others:
            return self._refusal(f"{told['host']} renders with {', '.join(others)}, as the clips of this run before it")
        known = self.probes.setdefault(told["device"], told["probe"])
        if not are_alike(known, told["probe"]):
            return self._refusal(f"the {told['device']} of {told['host']} renders otherwise than one before it did")
        return None

    def _refusal(self, what: str) -> SVDStagesError:
        return BatchError(
            f"{what}. It gets no work: make it equal, or delete {self.where} to go on with what is there now.",
            code="batch.worker_differs",
            exit_status=4,
        )


def are_alike(probe: str, other: str) -> bool:
    """Whether two small renders, bytes in hex, differ nowhere by more than `PROBE_TOLERANCE`."""
    with contextlib.suppress(ValueError):
        pair = bytes.fromhex(probe), bytes.fromhex(other)
        return len(pair[0]) == len(pair[1]) and all(abs(a - b) <= PROBE_TOLERANCE for a, b in zip(*pair, strict=True))
    return False


def _differs(told: Mapping[str, Any], makes: Mapping[str, str], name: str) -> bool:
    return told.get("makes", {}).get(name) != makes[name]


def _texts(found: Any) -> dict[str, str]:
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}
