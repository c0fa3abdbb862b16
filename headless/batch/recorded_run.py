"""Keep what run.json records of a run when it is planned again: its graph, its settings and the ids of its tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...svd_core.checkpoints.inspect import read_defaults
from ...svd_core.errors import BatchError, GraphError, quoted
from ...svd_core.pipeline import VideoSettings
from ...svd_core.runtime.runtime import LocalRuntime
from ..engines.graphs import NODES
from ..engines.video_graph import SETTING_INPUTS, node_of_class, takes_settings
from ..graph import Prompt, with_value
from ..graph.prompt import looks_like_link
from ..graph.validate import shape_fault
from .folder import RunFolder
from .graph_binding import canonical_graph, without
from .tasks import digest, has_types

RUN_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
OF_CHECKPOINT = ("num_frames", "min_guidance", "max_guidance")
"""Settings that have the checkpoint's value unless they are set. Those of the size follow the image as well."""
_OPTIONS = "SVDModelOptions"
"""The node whose inputs change the speed and the memory of a run, and no video, see `svd_core.models.options`."""


def read_fault(settings: Mapping[str, Any]) -> str | None:
    """Return why a run.json has not the form that a plan writes. None: it has. A run folder may be untrusted."""
    graph: Any = settings.get("graph")
    image: Any = settings.get("image")
    texts = dict.fromkeys(("run_id", "plan", "images", "precision"), (str,))
    lists = [settings.get(key) for key in ("image", "seeds", "models")]
    is_valid = has_types(settings, {**texts, "shared": (dict,)}) and all(map(is_texts, lists))
    if not is_valid or shape_fault(graph) is not None:
        return "a field is missing or has another type"
    if not RUN_ID.fullmatch(settings["run_id"]):  # it becomes the name of a folder
        return "its run_id is invalid"
    if not is_graph(graph):
        return "its graph has unknown nodes"
    if len(image) != 2 or image[0] not in graph:
        return "its graph has no node for the image"
    return None


def check_recorded(settings: Mapping[str, Any], folder: RunFolder) -> None:
    """Raise BatchError unless run.json has the form that a plan writes."""
    fault = read_fault(settings)
    if fault is not None:
        message = (
            f"{quoted(folder.settings_file)} cannot be used: {fault}. Give the manifest again to plan anew, "
            "in a new folder."
        )
        raise BatchError(message, code="batch.plan")


def is_graph(value: Any) -> bool:
    """Return True for a graph of known nodes."""
    return shape_fault(value) is None and all(node.get("class_type") in NODES for node in value.values())


def is_texts(value: Any) -> bool:
    """Return True for a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def inputs_of_checkpoint(graph: Prompt) -> list[str]:
    """Return the inputs of the shipped graph that take the settings `OF_CHECKPOINT`, as "NODE.INPUT"."""
    if not takes_settings(graph):
        return []
    places = (SETTING_INPUTS[name] for name in OF_CHECKPOINT)
    return [f"{node_of_class(graph, class_type)}.{input_name}" for class_type, input_name in places]


def with_checkpoint(graph: Prompt, model: str, following: Sequence[str], runtime: LocalRuntime) -> Prompt:
    """Return the shipped graph with another checkpoint, and with its values in the inputs that follow the checkpoint.

    Args:
        graph: One that `takes_settings`.
        model: Name of the checkpoint.
        following: "NODE.INPUT" each.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    values: Any = VideoSettings(model=model).with_defaults(read_defaults(runtime.library.find(model)))
    for name in ("model", "width", "height", *OF_CHECKPOINT):
        class_type, input_name = SETTING_INPUTS[name]
        node_id = node_of_class(graph, class_type)
        if name == "model" or f"{node_id}.{input_name}" in following:
            graph = with_value(graph, node_id, input_name, getattr(values, name))
    return graph


def graph_digest(canonical: Prompt, of_rows: Sequence[Sequence[str]], before: Mapping[str, Any]) -> str:
    """Return what the ids of tasks have of the graph of a run: that of run.json, if it renders the same videos.

    Version 0.1 counted the options of `_OPTIONS`, too. A run that it planned keeps its ids.

    Args:
        canonical: See `canonical_graph`.
        of_rows: (node id, input) that each row sets.
        before: The content of run.json, which may be damaged.
    """
    now = digest(without(without_options(canonical), of_rows))
    if read_fault(before) is not None:
        return now
    recorded_of_rows = [before["image"], *(name.rpartition(".")[::2] for name in before["seeds"])]
    if not {node_id for node_id, _ in recorded_of_rows} <= before["graph"].keys():
        return now
    try:
        recorded = canonical_graph(before["graph"])
        same = digest(without(without_options(recorded), recorded_of_rows)) == now
    except (GraphError, KeyError):  # it saves nothing, or lacks a node
        return now
    if not same:
        return now
    known = before.get("graph_digest")
    if isinstance(known, str) and _DIGEST.fullmatch(known):
        return known
    return digest(without(recorded, recorded_of_rows))


def without_options(graph: Prompt) -> Prompt:
    """Return the graph without the nodes of class `_OPTIONS`: what read them reads their model."""
    for node_id in [key for key, node in graph.items() if node.get("class_type") == _OPTIONS]:
        model = graph[node_id].get("inputs", {}).get("model")
        if looks_like_link(model):
            rest = {key: node for key, node in graph.items() if key != node_id}
            graph = {key: _relinked(node, [node_id, 0], model) for key, node in rest.items()}
    return graph


def _relinked(node: Mapping[str, Any], old: list[Any], new: Any) -> dict[str, Any]:
    """Return a node whose inputs that are linked to `old` are linked to `new`."""
    inputs = {name: new if value == old else value for name, value in node.get("inputs", {}).items()}
    return {**node, "inputs": inputs}
