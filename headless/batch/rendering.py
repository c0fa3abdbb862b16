"""What a batch asks of the program that renders, and how it is found: by an import path.

    "svd_stages.headless.batch.graph_rendering:GraphRenderer", called with a dict that JSON can hold

in the worker's process, once. The batch itself knows no graph, no node and no torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .tasks import Task

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Rendered:
    """What a render gave, and encoding needs: arrays, and what JSON can hold.

    notes  for the record: what was made otherwise than was asked

    It outlives the process that made it (`spool`), so a clip whose writer is killed is not rendered again.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[Mapping[str, Any]] = ()


class Renderer(Protocol):
    """Makes clips. One for each worker; models are loaded once. Errors that are a row's own are SVDStagesError."""

    def describe(self) -> Mapping[str, str]:
        """What must be equal on all workers: version of the code, models by sha256, ..."""
        ...

    def probe(self) -> Mapping[str, Any]:
        """What decides how clips come out beyond `describe`, known only here:

        device  its kind
        makes   what must be equal in a run, for JSON: versions of libraries, precision
        probe   a small render as bytes in hex: devices of one kind must render alike
        """
        ...

    def prepare(self, task: Task) -> Any:
        """Read and decode the image. Runs on another thread, beside the render before."""
        ...

    def render(self, task: Task, prepared: Any) -> Rendered:
        """The device's work."""
        ...

    def encode(self, task: Task, rendered: Rendered, folder: Path) -> list[tuple[Path, Mapping[str, Any]]]:
        """Write the task's files into `folder`, complete and checked, each with what its record is to say of it.

        Runs on another thread, beside the next render.
        """
        ...

    def is_lost(self, error: BaseException) -> bool:
        """Whether the device is gone for this process, as after an illegal address."""
        ...


def make_renderer(runner: str, config: Mapping[str, Any]) -> Renderer:
    """The renderer at an import path, `module:name`. The path is the driver's own, and in no file that it reads."""
    return pkgutil.resolve_name(runner)(config)
