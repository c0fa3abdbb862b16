"""What a graph needs and is not there: nodes, models, pictures, each with the folder where it belongs.

All of it at once, before anything is loaded: conversion alone would stop at the first unknown node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..svd_core import host
from ..svd_core.graph import NodeTable, Prompt, is_ui_format, to_api, unwrap, validate
from ..svd_core.graph.prompt import one_line
from .refusals import names_a_file
from .sources import class_types
from .surroundings import Surroundings

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


def find_missing(graph: Mapping[str, Any], table: NodeTable, surroundings: Surroundings) -> list[Missing]:
    """What `graph` (as `read_source` gives it) needs beyond the nodes of `table` and the files of the surroundings.

    Raises GraphError for what is no graph, or cannot be converted for another reason.
    """
    unknown = class_types(graph) - set(table.classes)
    classes = {**table.classes, **dict.fromkeys(unknown, _Unknown)}
    inner, workflow = unwrap(dict(graph))
    prompt = to_api(inner, classes, table.display_names) if is_ui_format(inner) else inner
    wanted = [("node", str(node.get("class_type")), node_id) for node_id, node in _nodes(prompt, unknown)]
    with host.using(surroundings.host()):
        faults = validate(prompt, classes).node_errors
    folder = Path(surroundings.input_folder)
    files = [each for each in _missing_files(prompt, table, faults) if not _is_here(folder, each[2])]
    wanted += [("model" if name in MODEL_FOLDERS else "input", value, node_id) for node_id, name, value in files]
    inputs = {(node_id, value): name for node_id, name, value in files}
    found: dict[tuple[str, str], list[str]] = {}
    for kind, name, node_id in wanted:
        found.setdefault((kind, name), []).append(node_id)
    said = _said_by_workflow(workflow)
    return [
        Missing(kind, name, tuple(ids), *_place(kind, inputs.get((ids[0], name), ""), said.get(name), surroundings))
        for (kind, name), ids in found.items()
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
            value = prompt[node_id]["inputs"].get(name)
            info = {**fault["extra_info"], "received_value": value}
            named = isinstance(value, str) and names_a_file(table, entry["class_type"], info)
            if named and fault["type"] in ("custom_validation_failed", "value_not_in_list"):
                yield node_id, name, value


def _is_here(folder: Path, name: str) -> bool:
    """Whether an input file is there to be sent to a server that has none of that name."""
    return "\0" not in name and len(name) < 500 and (folder / name).is_file()


def _place(kind: str, name: str, said: Mapping[str, Any] | None, here: Surroundings) -> tuple[str | None, str | None]:
    """(folder, url) of a missing file."""
    if kind == "node":
        return None, None
    if kind == "input":
        return str(Path(here.input_folder)), None
    folder, url = (said or {}).get("directory"), (said or {}).get("url")
    folder = folder if isinstance(folder, str) and folder.isidentifier() else MODEL_FOLDERS[name]
    return str(here.models_roots()[0] / folder), url if isinstance(url, str) else None


def _said_by_workflow(workflow: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """File name -> {"name", "url", "directory"}, as templates list their models."""
    nodes = workflow.get("nodes", []) if workflow else []
    properties = [node.get("properties") for node in nodes if isinstance(node, Mapping)]
    listed = [each.get("models") for each in properties if isinstance(each, Mapping)]
    models = [model for each in listed if isinstance(each, list) for model in each if isinstance(model, Mapping)]
    return {str(model.get("name")): model for model in models}
