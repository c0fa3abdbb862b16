"""What a graph needs and is not there: nodes, models, pictures, each with the folder where it belongs.

All of it at once, before anything is loaded: conversion alone would stop at the first unknown node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...nodes.compat.folders import annotated_file
from ...svd_core.errors import ImageError
from ...svd_core.runtime.runtime import use_runtime
from ..graph import NodeTable, Prompt, apply_settings, is_ui_format, to_api, unwrap, validate
from ..graph.prompt import one_line
from ..graph.validate import shape_fault
from .graph_loading import class_types
from .graphs import GraphEngine
from .remote.errors import names_a_file
from .run_config import RunConfig

MODEL_FOLDERS = {
    "checkpoint": "checkpoints",
    "ckpt_name": "checkpoints",
    "vae_name": "vae",
    "lora_name": "loras",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "model_name": "upscale_models",
}
"""Input name -> the folder of its files below a models folder, as ComfyUI's core nodes have it."""


@dataclass(frozen=True)
class Missing:
    """Something that is not there.

    kind    node, model or input
    name    a class type, or what the graph calls the file
    nodes   the ids of the nodes that need it
    folder  where it belongs; None for a node
    url     where the workflow says that it comes from. Nothing is ever fetched from there by itself
    """

    kind: str
    name: str
    nodes: tuple[str, ...]
    folder: str | None = None
    url: str | None = None

    def describe(self) -> str:
        """One line for a person."""
        places = f"{'node' if len(self.nodes) == 1 else 'nodes'} {', '.join(self.nodes)}"
        line = f"missing {self.kind}: {one_line(self.name, 200)} ({places})"
        line += f"; it belongs into {self.folder}" if self.folder else ""
        return line + (f"; the workflow says it comes from {one_line(self.url, 300)}" if self.url else "")


def find_missing(
    graph: Mapping[str, Any],
    engine: GraphEngine,
    run_config: RunConfig,
    settings: Sequence[str] = (),
    table: NodeTable | None = None,
) -> list[Missing]:
    """What `graph` (as `read_source` gives it) needs beyond the nodes of the engine and the files that are there.

    settings  "NODE.INPUT=VALUE", set first
    table     other nodes than the engine's, as descriptions have them

    Empty for what is no graph: `GraphEngine.check` says why. Raises GraphError for what cannot be converted, and for
    settings that fit nothing.
    """
    table = table or engine.table
    unknown = class_types(graph) - set(table.classes)
    classes = {**table.classes, **dict.fromkeys(unknown, _Unknown)}
    inner, workflow = unwrap(dict(graph))
    prompt = to_api(inner, classes, table.display_names) if is_ui_format(inner) else inner
    if shape_fault(prompt):
        return []
    prompt = apply_settings(prompt, settings, classes)
    with use_runtime(run_config.runtime()):
        faults = validate(prompt, classes).node_errors
        files = [each for each in _missing_files(prompt, table, faults) if not _is_here(each[2])]
    wanted = [("node", str(node.get("class_type")), "", node_id) for node_id, node in _nodes(prompt, unknown)]
    wanted += [("model" if name in MODEL_FOLDERS else "input", value, name, node_id) for node_id, name, value in files]
    found: dict[tuple[str, str, str], list[str]] = {}
    for *what, node_id in wanted:
        found.setdefault((what[0], what[1], what[2]), []).append(node_id)
    said = _said_by_workflow(workflow)
    return [
        Missing(kind, name, tuple(ids), *_place(kind, input_name, said.get(name), engine))
        for (kind, name, input_name), ids in found.items()
    ]


class _Unknown:
    """Stands for a class that is not known, so that the rest of the graph can be looked at."""

    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {}


def _nodes(prompt: Prompt, class_names: set[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return (
        (node_id, node)
        for node_id, node in prompt.items()
        if isinstance(node, Mapping) and node.get("class_type") in class_names
    )


def _missing_files(prompt: Prompt, table: NodeTable, faults: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(node id, input, value) of each input that names a file which is not there."""
    for node_id, entry in faults.items():
        for fault in entry["errors"]:
            name = fault["extra_info"].get("input_name")
            value = prompt[node_id].get("inputs", {}).get(name)
            info = {**fault["extra_info"], "received_value": value}
            named = isinstance(value, str) and names_a_file(table, entry["class_type"], info)
            if named and fault["type"] in ("custom_validation_failed", "value_not_in_list"):
                yield node_id, name, value


def _is_here(name: str) -> bool:
    """Whether an input file is there to be sent to a server that has none of that name."""
    try:
        annotated_file(name)
    except ImageError:
        return False
    return True


def _place(
    kind: str, input_name: str, said: Mapping[str, Any] | None, engine: GraphEngine
) -> tuple[str | None, str | None]:
    """(folder, url) of what is missing."""
    if kind == "node":
        return None, None
    if kind == "input":
        return engine.input_folder, None
    folder, url = (said or {}).get("directory"), (said or {}).get("url")
    folder = folder if isinstance(folder, str) and folder.isidentifier() else MODEL_FOLDERS[input_name]
    return f"{engine.models_folder}/{folder}", url if isinstance(url, str) else None


def _said_by_workflow(workflow: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """File name -> {"name", "url", "directory"}, as templates list their models."""
    nodes = workflow.get("nodes", []) if workflow else []
    properties = [node.get("properties") for node in nodes if isinstance(node, Mapping)]
    listed = [each.get("models") for each in properties if isinstance(each, Mapping)]
    models = [model for each in listed if isinstance(each, list) for model in each if isinstance(model, Mapping)]
    return {str(model.get("name")): model for model in models}
