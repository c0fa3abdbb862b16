"""List the nodes, models and input files that a graph needs and that are missing, before anything is loaded.

The list is complete, whereas conversion and validation stop at the first unknown node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...nodes.compat.folders import annotated_file
from ...svd_core.errors import GraphError, ImageError, quoted
from ...svd_core.runtime.runtime import use_runtime
from ..graph import NodeTable, Prompt, apply_settings, described_nodes, explain, is_ui_format, to_api, unwrap, validate
from ..graph.prompt import one_line
from ..graph.validate import shape_fault
from .graph_errors import is_missing_file
from .graph_loading import class_types
from .graphs import GraphEngine
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
"""Input name -> the subfolder of the models folder for its files, as in ComfyUI's core nodes."""
UNKNOWN_NODE = {"input": {}, "output": [], "output_node": True}
"""The description that an unknown class gets, so that the rest of the graph can be checked."""


@dataclass(frozen=True)
class Missing:
    """A missing node, model or input file.

    Attributes:
        kind: node, model or input.
        name: A class type, or the file's name in the graph.
        nodes: Ids of the nodes that need it.
        folder: The folder where it belongs. None for a node.
        url: The download address in the workflow. Nothing is ever downloaded from it automatically.
    """

    kind: str
    name: str
    nodes: tuple[str, ...]
    folder: str | None = None
    url: str | None = None

    def describe(self) -> str:
        """Return one line for people."""
        nodes = f"{'node' if len(self.nodes) == 1 else 'nodes'} {', '.join(self.nodes)}"
        line = f"missing {self.kind}: {one_line(self.name, 200)} ({nodes})"
        line += f"; put it into {self.folder}" if self.folder else ""
        return line + (f"; the workflow names this source: {one_line(self.url, 300)}" if self.url else "")


def find_missing(
    graph: Mapping[str, Any],
    engine: GraphEngine,
    run_config: RunConfig,
    settings: Sequence[str] = (),
    table: NodeTable | None = None,
) -> list[Missing]:
    """List what a graph needs beyond the engine's nodes and the existing files. Empty if it is not a graph.

    Args:
        graph: The result of `read_source`.
        settings: "NODE.INPUT=VALUE" each, set before the check.
        table: Node descriptions to use in place of the engine's nodes.

    Raises:
        GraphError: The graph cannot be converted, or a setting fits no input.
    """
    table = table or engine.table
    unknown = class_types(graph) - set(table.classes)
    classes = table.with_others(described_nodes(dict.fromkeys(unknown, UNKNOWN_NODE))).classes
    inner, workflow = unwrap(dict(graph))
    prompt = to_api(inner, classes, table.display_names) if is_ui_format(inner) else inner
    if shape_fault(prompt):
        return []
    prompt = apply_settings(prompt, settings, classes)
    node_ids: dict[tuple[str, str, str], list[str]] = defaultdict(list)  # (kind, name, input) -> node ids
    for node_id, node in prompt.items():
        if node.get("class_type") in unknown:
            node_ids["node", node["class_type"], ""].append(node_id)
    with use_runtime(run_config.runtime()):
        for node_id, input_name, value in _missing_files(prompt, table, validate(prompt, classes).node_errors):
            node_ids["model" if input_name in MODEL_FOLDERS else "input", value, input_name].append(node_id)
    input_folder = "the input folder here or on the server" if engine.name == "server" else str(run_config.input_folder)
    folders, models = {"input": input_folder, "model": engine.models_folder}, _models_of_workflow(workflow)
    return [
        Missing(kind, name, tuple(ids), *_folder_and_url(kind, input_name, models.get(name, {}), folders))
        for (kind, name, input_name), ids in node_ids.items()
    ]


def without_missing(error: GraphError, missing: Sequence[Missing], graph: Path, table: NodeTable) -> GraphError:
    """Return an error that describes only faults that `missing` does not list. Code, status and node errors stay."""
    needing = {node for each in missing for node in each.nodes}

    def is_listed(node: str, entry: Mapping[str, Any], fault: Mapping[str, Any]) -> bool:
        is_missing = fault["type"] == "missing_node_type" or is_missing_file(fault, entry["class_type"], table)
        return is_missing and node in needing

    others = {
        node: {**entry, "errors": [fault for fault in entry["errors"] if not is_listed(node, entry, fault)]}
        for node, entry in error.node_errors.items()
    }
    if not missing or not (error.node_errors or error.code == "graph.missing_node_type"):
        return error
    text = f"{quoted(graph)} needs what is missing: {', '.join(one_line(each.name, 100) for each in missing[:3])}"
    text += ", ..." if len(missing) > 3 else ""
    if any(entry["errors"] for entry in others.values()):
        text += f". {explain({}, others, others)}"
    described = GraphError(text, code=error.code, node_errors=error.node_errors)
    described.exit_status = error.exit_status
    return described


def _missing_files(prompt: Prompt, table: NodeTable, node_errors: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (node id, input, value) of each input that names a missing file."""
    for node_id, entry in node_errors.items():
        for fault in entry["errors"]:
            name = fault["extra_info"].get("input_name")
            value = prompt[node_id].get("inputs", {}).get(name)
            if isinstance(value, str) and is_missing_file(fault, entry["class_type"], table, value):
                try:
                    annotated_file(value)  # a server lacks it, but it will be uploaded
                except ImageError:
                    yield node_id, name, value


def _folder_and_url(
    kind: str, input_name: str, model: Mapping[str, Any], folders: Mapping[str, str]
) -> tuple[str | None, str | None]:
    if kind != "model":
        return folders.get(kind), None
    folder, url = model.get("directory"), model.get("url")
    folder = folder if isinstance(folder, str) and folder.isidentifier() else MODEL_FOLDERS[input_name]
    return f"{folders[kind]}/{folder}", url if isinstance(url, str) else None


def _models_of_workflow(workflow: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Return file name -> {"name", "url", "directory"} from the model lists of a template's nodes."""
    nodes = workflow.get("nodes", []) if workflow else []
    properties = [node.get("properties") for node in nodes if isinstance(node, Mapping)]
    listed = [each.get("models") for each in properties if isinstance(each, Mapping)]
    models = [model for each in listed if isinstance(each, list) for model in each if isinstance(model, Mapping)]
    return {str(model.get("name")): model for model in models}
