"""A graph that was read, what a run of it made, and what every engine that runs graphs offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ...nodes.compat import COMPAT_CLASS_MAPPINGS, COMPAT_DISPLAY_NAME_MAPPINGS
from ...svd_core.errors import ImageError
from ...svd_core.runtime.runtime import RunWarning
from ..graph import NodeTable, OnEvent, Prompt, Validation, apply_settings, is_ui_format, to_api, unwrap
from .graph_loading import Source, read_source
from .run_config import as_list

NODES: dict[str, type] = {**NODE_CLASS_MAPPINGS, **COMPAT_CLASS_MAPPINGS}
DISPLAY_NAMES: dict[str, str] = {**NODE_DISPLAY_NAME_MAPPINGS, **COMPAT_DISPLAY_NAME_MAPPINGS}
EMBEDDED_NODES = NodeTable(NODES, DISPLAY_NAMES)
"""What is known with no ComfyUI: our nodes, and compat nodes for core's."""


@dataclass(frozen=True)
class Graph:
    """A graph that was read: the prompt (API format), and the workflow (UI format) it came from, if any."""

    prompt: Prompt
    workflow: dict[str, Any] | None = None


@dataclass(frozen=True)
class Report:
    """What a run made.

    files        in the order they were written
    ui           each output node's answer in ComfyUI's shape
    faults       as a sentence, why some outputs of the graph could not run; empty when all did
    node_errors  the same in ComfyUI's shape
    notes        what was ignored, filled in or converted, and what was made otherwise than was asked
    """

    files: list[Path]
    ui: dict[str, dict[str, Any]]
    faults: str = ""
    node_errors: dict[str, Any] = field(default_factory=dict)
    notes: list[RunWarning] = field(default_factory=list)


class GraphEngine(Protocol):
    """Something that runs graphs: the embedded executor, ComfyUI's own in this process, or a server."""

    @property
    def name(self) -> str:
        """embedded, comfyui or server."""
        ...

    @property
    def table(self) -> NodeTable:
        """The nodes it knows."""
        ...

    def versions(self) -> dict[str, str]:
        """What it runs on beside this package: {"comfyui": "0.3.64", ...}. Names are those of distributions."""
        ...

    def model_file(self, folder: str, name: str) -> Path | None:
        """The file (or diffusers folder) that a graph's `name` means in a folder of models, as "checkpoints"; None
        when it is not there, or elsewhere."""
        ...

    @property
    def models_folder(self) -> str:
        """Where a model that is missing belongs: a path, or words. Starts nothing and asks nobody."""
        ...

    @property
    def input_folder(self) -> str:
        """Where an input file that is missing belongs: a path, or words."""
        ...

    def check(self, graph: Graph) -> Validation:
        """Raises GraphError when any output of the graph could not run (exit status 3 when only files are missing)."""
        ...

    def run(self, graph: Graph, on_event: OnEvent | None = None) -> Report:
        """Run what can run, and say in the report what could not.

        emit  called with ComfyUI's events and their data: executing, execution_cached, executed, ... First comes ours,
              queued. executed has the files that the node wrote as `files`, by their final paths

        Raises GraphError when nothing can run, NodeError when a node fails, Interrupted.
        """
        ...


def ignore_events(event: str, data: Mapping[str, Any]) -> None:
    """An `OnEvent` that tells nobody."""


def open_graph(source: Source, settings: Sequence[str] = (), table: NodeTable = EMBEDDED_NODES) -> Graph:
    """Read a graph file (JSON, or a video or picture with its graph inside), or take a dict, and set values in it.

    settings  "NODE.INPUT=VALUE" with a node's id, its class if it is the only one of it, or its title. A workflow
              with changed values is not handed on as metadata, because it would no longer be what ran
    table     the nodes that conversion and settings go by

    Both formats are understood. Raises GraphError; ImageError for a damaged video or picture.
    """
    settings = as_list(settings)
    inner, workflow = unwrap(read_source(source))
    if is_ui_format(inner):
        inner, workflow = to_api(inner, table.classes, table.display_names), inner
    if settings:
        return Graph(apply_settings(inner, settings, table.classes))
    return Graph(inner, workflow)


def check_place(path: Path) -> None:
    """Raise SettingError now when no file can be written there, rather than after a video has been computed."""
    from ...svd_core.utils.output_files import scratch_folder_beside

    with scratch_folder_beside(path):
        pass


def write_text(path: Path, text: str) -> None:
    """Write a text file; the name is put in place when it is complete. Raises OutputError when it cannot be written."""
    from ...svd_core.utils.output_files import replacing

    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def describe_file(path: Path) -> str:
    """What a finished file is, for people: ": 14 frames, 128x128, 7 fps" for a video, nothing for others."""
    if path.suffix.lower() != ".mp4":
        return ""
    from ...svd_core.media.video_io import describe_mp4

    try:
        return f": {describe_mp4(path)}"
    except ImageError:  # from a server: what it is called is not always what it is
        return ""
