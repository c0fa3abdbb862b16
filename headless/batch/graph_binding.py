"""Convert rows of a manifest to values of a graph: image, seeds, inputs named by columns, and models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...svd_core.errors import GraphError, ImageError, SVDStagesError
from ...svd_core.media.image_io import image_size
from ...svd_core.media.video_size import choose_size
from ...svd_core.runtime.runtime import LocalRuntime
from ..engines.graphs import NODES
from ..engines.preflight import MODEL_FOLDERS
from ..engines.video_graph import SETTING_INPUTS
from ..graph import Prompt, Target, explain, find_target, read_value, with_value
from ..graph.check_node import check_value
from ..graph.node_schema import Declarations
from ..graph.prompt import looks_like_link, sources_of, with_ancestors
from ..graph.suggestions import Hints
from .graph_rendering import cut_before_savers
from .model_hashes import model_sha256

CACHED_VALUES = 10_000
"""Values of rows that are kept after they were validated."""


def image_input(graph: Prompt) -> tuple[str, str]:
    """Return (node id, input) of the graph's LoadImage. Raises GraphError unless there is exactly one."""
    loaders = [node_id for node_id, node in graph.items() if node.get("class_type") == "LoadImage"]
    if len(loaders) != 1:
        message = f"the graph of a batch must have one LoadImage, for the image of each row, got {len(loaders)}."
        raise GraphError(message, code="graph.images")
    return loaders[0], "image"


def seed_inputs(graph: Prompt) -> list[str]:
    """Return the inputs that are constant seeds, as "NODE.INPUT"."""
    declarations = Declarations(NODES)
    return [
        f"{node_id}.{name}"
        for node_id, node in graph.items()
        for name, declared in declarations[str(node["class_type"])].inputs.items()
        if name in ("seed", "noise_seed") and declared.options.get("control_after_generate")
        if not looks_like_link(node["inputs"].get(name))
    ]


def canonical_graph(graph: Prompt) -> Prompt:
    """Return class and inputs of the savers and of their ancestors, without titles and other nodes."""
    sources = {key: sources_of(node) for key, node in graph.items()}
    needed = with_ancestors(cut_before_savers(graph).savers, sources)
    return {
        key: {name: node[name] for name in ("class_type", "inputs")} for key, node in graph.items() if key in needed
    }


def without(graph: Prompt, inputs: Iterable[Sequence[str]]) -> Prompt:
    """Return the graph with None in these inputs. Each row sets them, so their values in the graph do not matter."""
    for node_id, name in inputs:
        graph = with_value(graph, node_id, name, None)
    return graph


class ModelHashes(dict[str, str]):
    """Name -> sha256 of the checkpoints that a graph and its rows name. A missing one is hashed."""

    def __init__(self, graph: Prompt, runtime: LocalRuntime):
        super().__init__()
        self._graph, self._runtime = graph, runtime

    def __missing__(self, name: str) -> str:
        """Hash a checkpoint. Raises CheckpointError."""
        self[name] = sha256 = model_sha256(self._runtime.library.find(name))
        return sha256

    def of_graph(self) -> dict[str, str]:
        """Return "NODE.INPUT" -> sha256 of the graph's models. Raises CheckpointError."""
        nodes = self._graph.items()
        return self.of_values(
            {f"{node_id}.{name}": value for node_id, node in nodes for name, value in node["inputs"].items()}
        )

    def of_values(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return "NODE.INPUT" -> sha256 of the values that name a model. Raises CheckpointError."""
        return {name: self[value] for name, value in values.items() if _names_model(name) and type(value) is str}


def _names_model(name: str) -> bool:
    """Return True if an input "NODE.INPUT" takes the name of a checkpoint."""
    return MODEL_FOLDERS.get(name.rpartition(".")[2]) == "checkpoints"


class Values:
    """Converts the columns of a row to values of a graph. Results, and errors, are cached."""

    def __init__(self, graph: Prompt, models: ModelHashes, image: str):
        self._graph, self._models, self._image = graph, models, image
        self._targets: dict[str, Target | SVDStagesError] = {}
        self._read: dict[tuple[str, str], Any] = {}

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return "NODE.INPUT" (by node id) -> value. Raises SVDStagesError."""
        values = {}
        for column, cell in columns.items():
            target = _cached(self._targets, column, lambda column=column: self._target(column))
            text = _text(cell, target)
            if len(self._read) > CACHED_VALUES:
                self._read.clear()
            value = _cached(self._read, (column, text), lambda target=target, text=text: self._value(target, text))
            if target.name in values and values[target.name] != value:
                message = f"{target.where} has two different values for {target.declared.name}. Remove one column."
                raise GraphError(message, code="graph.setting")
            values[target.name] = value
        return values

    def _target(self, column: str) -> Target:
        target = find_target(self._graph, column, NODES)
        if target.name == self._image:
            raise GraphError(f'"{column}" is the image. Use the column "image" for it.', code="graph.setting")
        if looks_like_link(self._graph[target.node_id]["inputs"].get(target.declared.name)):
            message = f'"{column}" is linked in the graph. Name the input at the start of the link.'
            raise GraphError(message, code="graph.setting")
        return target

    def _value(self, target: Target, text: str) -> Any:
        value = read_value(target, text)
        if _names_model(target.name):
            _ = self._models[value]  # raises CheckpointError
            return value
        fault = check_value(target.declared, value, Hints())
        if fault is not None:
            node = self._graph[target.node_id]
            faults = {target.node_id: {"errors": [fault], "class_type": node["class_type"], "dependent_outputs": []}}
            raise GraphError(explain(None, faults, self._graph), code=f"graph.{fault['type']}")
        return value


def size_inputs(graph: Prompt) -> list[str]:
    """Return width and height of the graph's only SVDResizeImage as "NODE.INPUT". Without one, return nothing."""
    class_type, _ = SETTING_INPUTS["width"]
    names = [
        f"{node_id}.{side}"
        for node_id, node in graph.items()
        for side in ("width", "height")
        if node["class_type"] == class_type and type(node["inputs"].get(side)) is int
    ]
    return names if len(names) == 2 else []


@dataclass(frozen=True)
class ImageSizes:
    """Chooses the size of each video from its image, as `animate` does.

    Attributes:
        graph: The graph. Its own size is the one that the model was trained for.
        images: The folder that contains the images.
        follow: Those of `size_inputs` that follow the image. The others have the row's value or the graph's.
    """

    graph: Prompt
    images: Path
    follow: Sequence[str]

    def __call__(self, image: str, values: Mapping[str, Any]) -> dict[str, int]:
        """Return "NODE.INPUT" -> value. An image that cannot be read gets no size: rendering it raises the error."""
        if not self.follow:
            return {}
        names = size_inputs(self.graph)
        own = [self.graph[node_id]["inputs"][side] for node_id, _, side in (name.rpartition(".") for name in names)]
        given = [
            values.get(name, None if name in self.follow else value) for name, value in zip(names, own, strict=True)
        ]
        try:
            size = choose_size((own[0], own[1]), image_size(self.images / image), given[0], given[1])
        except ImageError:
            return {}
        return {name: side for name, side in zip(names, size, strict=True) if name in self.follow}


def _cached(cache: dict[Any, Any], key: Any, find: Callable[[], Any]) -> Any:
    """Return the cached result of `find`, or raise its cached error."""
    if key not in cache:
        try:
            cache[key] = find()
        except SVDStagesError as error:
            cache[key] = error
    if isinstance(cache[key], SVDStagesError):
        raise cache[key].with_traceback(None)
    return cache[key]


def _text(value: Any, target: Target) -> str:
    """Convert a value of JSON or Parquet to the text of a cell.

    7.0 becomes 7 for an integer input, because tables with empty cells store integers as floats.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and target.declared.kind == "INT":
        return str(int(value))
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        message = f'input "{target.declared.name}" of {target.where} must be a JSON value: {error}.'
        raise GraphError(message, code="graph.setting") from error
