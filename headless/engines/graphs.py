"""A graph to run, the report of its run, and the interface of the engines that run graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ...nodes.compat import COMPAT_CLASS_MAPPINGS, COMPAT_DISPLAY_NAME_MAPPINGS
from ...svd_core.errors import ImageError
from ...svd_core.runtime.runtime import RunWarning
from ...svd_core.utils.output_files import replacing, scratch_folder_beside
from ..graph import NodeTable, OnEvent, Prompt, Validation, apply_settings, is_ui_format, to_api, unwrap
from .graph_loading import Source, check_allowed_nodes, read_source
from .run_config import as_list

NODES: dict[str, type] = {**NODE_CLASS_MAPPINGS, **COMPAT_CLASS_MAPPINGS}
DISPLAY_NAMES: dict[str, str] = {**NODE_DISPLAY_NAME_MAPPINGS, **COMPAT_DISPLAY_NAME_MAPPINGS}
EMBEDDED_NODES = NodeTable(NODES, DISPLAY_NAMES)
"""The nodes that run without ComfyUI: this package's, and compat nodes for core's."""


@dataclass(frozen=True)
class Graph:
    """A graph in API format, and the workflow (UI format) that it was converted from, if any."""

    prompt: Prompt
    workflow: dict[str, Any] | None = None

    @property
    def extra_data(self) -> dict[str, Any]:
        """Return ComfyUI's additional data of a run, from which savers embed the workflow."""
        return {"extra_pnginfo": {"workflow": self.workflow}} if self.workflow else {}


@dataclass(frozen=True)
class Report:
    """The results of one run.

    Attributes:
        files: The result files, in the order in which they were written.
        ui: The `ui` result of each output node, by node id, in ComfyUI's shape.
        faults: A sentence that says why some outputs could not run. Empty if all ran.
        node_errors: The same faults in ComfyUI's shape, by node id.
        notes: Warnings about inputs that were ignored, filled in or converted, and about results that differ from
            the request.
    """

    files: list[Path]
    ui: dict[str, dict[str, Any]]
    faults: str = ""
    node_errors: dict[str, Any] = field(default_factory=dict)
    notes: list[RunWarning] = field(default_factory=list)


def ignore_events(event: str, data: Mapping[str, Any]) -> None:
    """Ignore an event."""


class GraphEngine(Protocol):
    """Runs graphs: on this package's executor, on ComfyUI's executor in this process, or on a server."""

    @property
    def name(self) -> str:
        """Return embedded, comfyui or server."""
        ...

    @property
    def table(self) -> NodeTable:
        """Return the nodes that the engine can run."""
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of the programs that the engine uses besides this package: {"comfyui": "0.3.64"}."""
        ...

    def model_file(self, folder: str, name: str) -> Path | None:
        """Return the file or diffusers folder of a model, None if it is missing or on another machine.

        Args:
            folder: A subfolder of the models folder, such as "checkpoints".
            name: The model's name in the graph.
        """
        ...

    @property
    def models_folder(self) -> str:
        """Return the folder for missing models, as a path or in words. Starts nothing and sends no request."""
        ...

    def check(self, graph: Graph) -> Validation:
        """Validate a graph. Raise GraphError if any output cannot run (exit status 3 if only files are missing)."""
        ...

    def run(self, graph: Graph, on_event: OnEvent = ignore_events) -> Report:
        """Run the outputs that can run. The report holds the faults of the others.

        Args:
            on_event: Called with the names and data of ComfyUI's events: executing, execution_cached, executed, ...
                The first event is `queued`. The data of `executed` has the final paths of the node's `files`.

        Raises:
            GraphError: No output can run.
            NodeError: A node failed.
            Interrupted: The run was stopped.
        """
        ...


def open_graph(
    source: Source,
    settings: Sequence[str] = (),
    table: NodeTable = EMBEDDED_NODES,
    allowed: Sequence[str] = (),
) -> Graph:
    """Read a graph in API or UI format and set values in it.

    Args:
        source: A JSON file, a video or image with a graph inside, or a dict.
        settings: "NODE.INPUT=VALUE" each. NODE is an id, a title, or a class that only one node has. The workflow is
            dropped if values are set, because it no longer describes the run.
        table: The nodes for conversion and settings.
        allowed: Class types or patterns, see `check_allowed_nodes`. Empty: all classes.

    Raises:
        GraphError: The graph cannot be read or converted, has a class that is not allowed, or a setting fits no input.
        ImageError: The video or image is damaged.
    """
    settings = as_list(settings)
    inner, workflow = unwrap(read_source(source, allowed))
    if is_ui_format(inner):
        inner, workflow = to_api(inner, table.classes, table.display_names), inner
    if allowed:
        check_allowed_nodes(inner, allowed)
    if settings:
        return Graph(apply_settings(inner, settings, table.classes))
    return Graph(inner, workflow)


def check_place(path: Path) -> None:
    """Raise SettingError if no file can be written at `path`, before a video is computed."""
    with scratch_folder_beside(path):
        pass


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raise OutputError if it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def describe_file(path: Path) -> str:
    """Describe a video or image file for people (": 14 frames, 128x128, 7 fps"). Return "" for other files."""
    from ...svd_core.media.video_io import describe_video

    try:
        return f": {describe_video(path)}"
    except ImageError:  # another format, or a server gave another file the name of an mp4
        return ""
