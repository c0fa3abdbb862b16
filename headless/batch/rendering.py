"""The interface between a batch and the code that renders.

A renderer is found by its import path, such as "svd_stages.headless.batch.graph_rendering:GraphRenderer". It is
constructed once in each worker process with a dict of JSON values. The batch imports no graph, no node and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .tasks import Task

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Rendered:
    """The result of a render and the input of encoding. It is kept on disk (`spool`) in case the process dies.

    Attributes:
        arrays: Name -> array.
        facts: JSON values that encoding needs.
        notes: Warnings for the record: the result differs from the request.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[Mapping[str, Any]] = ()


class Renderer(Protocol):
    """Renders the tasks of one worker. Models are loaded once. A row's own faults are raised as SVDStagesError."""

    def describe(self) -> Mapping[str, str]:
        """Return what must be equal on all workers: version of the code, models by sha256, ..."""
        ...

    def probe(self) -> Mapping[str, Any]:
        """Return what else determines the pixels and is known only in this process.

        - device: kind of the device
        - makes: JSON values that must be equal within a run: versions of libraries, precision
        - probe: a small render as bytes in hex; devices of one kind must render alike
        - probe_model: sha256 of the model that rendered it; only probes of one model are compared
        """
        ...

    def prepare(self, task: Task) -> Any:
        """Read and decode the image. Runs on another thread during the previous render."""
        ...

    def render(self, task: Task, prepared: Any) -> Rendered:
        """Run the device's part of the work."""
        ...

    def encode(self, task: Task, rendered: Rendered, folder: Path) -> list[tuple[Path, Mapping[str, Any]]]:
        """Write the task's files into `folder` and return each path with values for the record.

        Runs on another thread during the next render. The files must be complete and checked.
        """
        ...

    def is_lost(self, error: BaseException) -> bool:
        """Return True if the device is unusable for the rest of this process, as after an illegal address.

        Called with the error and each of its causes.
        """
        ...
