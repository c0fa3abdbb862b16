"""Check that all workers of a run produce the same pixels."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.errors import BatchError, SVDStagesError, quoted
from .folder import read_json, write_json

logger = logging.getLogger(__name__)

PROBE_TOLERANCE = 2
"""Of 255. Kernels may add in another order, which changes the last digits."""


@dataclass
class Environment:
    """The content of env.json. The first worker of a run, and the first device of each kind, are the reference.

    Attributes:
        makes: Values that must be equal on all workers: versions of libraries, precision.
        probes: Kind of device, and sha256 of the probe's model -> a small render, bytes in hex.
        path: The file.
    """

    makes: dict[str, str] = field(default_factory=dict)
    probes: dict[str, str] = field(default_factory=dict)
    path: Path = Path("env.json")

    @classmethod
    def read(cls, path: Path) -> Environment:
        """Read a file, which may be missing or damaged. Values that are not text are dropped."""
        fields = read_json(path) or {}
        return cls(_texts(fields.get("makes")), _texts(fields.get("probes")), path)

    def save(self) -> None:
        """Merge into what other drivers wrote meanwhile. A full disk is only logged: it has stopped the driver."""
        before = Environment.read(self.path)
        merged = {"makes": {**self.makes, **before.makes}, "probes": {**self.probes, **before.probes}}
        try:
            write_json(self.path, merged)
        except SVDStagesError as error:
            logger.warning("env.json was not written: %s", error)

    def check_worker(self, answer: Mapping[str, Any]) -> SVDStagesError | None:
        """Compare a worker's answer to `hello` with the reference. Return the reason to refuse it, or None."""
        if "refused" in answer:
            return BatchError(**answer["refused"])
        own = answer.get("makes", {})
        self.makes = self.makes or dict(own)
        differences = [
            f"{name} {own.get(name)} instead of {expected}"
            for name, expected in self.makes.items()
            if own.get(name) != expected
        ]
        if differences:
            return self._refusal(f"{answer['host']} renders with {', '.join(differences)}, unlike this run before")
        key = " ".join([answer["device"], *filter(None, [answer.get("probe_model")])])
        reference = self.probes.setdefault(key, answer["probe"])
        if not are_alike(reference, answer["probe"]):
            return self._refusal(f"the {answer['device']} of {answer['host']} renders other pixels than one before it")
        return None

    def _refusal(self, reason: str) -> SVDStagesError:
        message = (
            f"{reason}. Make this worker equal, or delete {quoted(self.path)} to continue with the workers of now."
        )
        return BatchError(message, code="batch.worker_differs", exit_status=4)


def are_alike(probe: str, other: str) -> bool:
    """Return True if two renders, bytes in hex, differ nowhere by more than `PROBE_TOLERANCE`."""
    with contextlib.suppress(ValueError):
        pair = bytes.fromhex(probe), bytes.fromhex(other)
        return len(pair[0]) == len(pair[1]) and all(abs(a - b) <= PROBE_TOLERANCE for a, b in zip(*pair, strict=True))
    return False


def _texts(values: Any) -> dict[str, str]:
    pairs = values.items() if isinstance(values, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}
