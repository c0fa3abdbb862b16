"""Convert ComfyUI's error objects to this package's errors, so that every engine gives a fault the same exit status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from ...svd_core import errors
from ...svd_core.checkpoints.library import CHECKPOINTS, PICKLES
from ...svd_core.errors import CheckpointError, GraphError, ImageError, NodeError, SVDStagesError
from ..graph import NodeTable, Prompt, Validation, explain, raise_if_invalid, validate
from ..graph.node_schema import DeclaredInput, read_declaration
from ..graph.prompt import name_node, one_line
from .graphs import EMBEDDED_NODES

MODEL_FILES = (*CHECKPOINTS, *PICKLES, ".sft", ".pt2", ".pkl", ".gguf", ".onnx")
MAX_MESSAGE = 2000
"""Characters of a failed node's message that are repeated."""


def check_described(prompt: Prompt, table: NodeTable, decided_by: str) -> Validation:
    """Validate a graph by the node descriptions in `table`. See `GraphEngine.check`.

    Descriptions lack what nodes check by themselves (VALIDATE_INPUTS). A note says that `decided_by` will check that.
    """
    validation = validate(prompt, table.classes)
    raise_if_faulty(validation, table)
    note = f"the nodes' own checks (VALIDATE_INPUTS) are left to {decided_by}, when the graph is run"
    return replace(validation, notes=[*validation.notes, note])


def raise_if_faulty(validation: Validation, table: NodeTable) -> None:
    """Raise GraphError if any output of the graph cannot run."""
    raise_if_nothing_runs(validation, table)
    if validation.node_errors:
        raise graph_error(None, validation.node_errors, validation.prompt, table)


def raise_if_nothing_runs(validation: Validation, table: NodeTable) -> None:
    """Raise GraphError if no output of the graph can run."""
    try:
        raise_if_invalid(validation)
    except GraphError as error:
        raise _with_exit_status(error, table) from None


def graph_error(error: Any, node_errors: Any, prompt: Prompt, table: NodeTable) -> GraphError:
    """Build the error for a graph that ComfyUI's validation refused.

    Args:
        error: ComfyUI's error object. None if some outputs of the graph can run.
        node_errors: ComfyUI's errors by node id. If it is empty, or holds only exceptions that were raised during
            validation (a cycle, a link to a missing node), the graph is validated again by this package.
    """
    faults = normalize_node_errors(node_errors)
    kinds = [fault["type"] for entry in faults.values() for fault in entry["errors"]]
    if all(kind.startswith("exception_during_") for kind in kinds):
        faults = validate(prompt, table.classes).node_errors or faults
    if error is None:
        code = "graph.some_outputs"
    else:
        error = _normalize_fault(error)
        first = next((fault for entry in faults.values() for fault in entry["errors"]), error)
        code = f"graph.{one_line(first['type'], 100)}"
    return _with_exit_status(GraphError(explain(error, faults, prompt), code=code, node_errors=faults), table)


def _with_exit_status(error: GraphError, table: NodeTable) -> GraphError:
    """Set the exit status of a missing file if every fault is a missing file."""
    faults = [(fault, entry["class_type"]) for entry in error.node_errors.values() for fault in entry["errors"]]
    if faults and all(is_missing_file(fault, class_type, table) for fault, class_type in faults):
        error.exit_status = CheckpointError.exit_status
    return error


def node_error(data: Mapping[str, Any], prompt: Prompt) -> NodeError:
    """Build the error for a node that raised, from the data of ComfyUI's `execution_error`.

    An error of this package keeps its exit status: ComfyUI sends the name of its class.
    """
    node_id, class_type = str(data.get("node_id", "")), str(data.get("node_type", ""))
    kind = one_line(str(data.get("exception_type", "")), 200)
    text = one_line(str(data.get("exception_message", "")), MAX_MESSAGE)
    error_class = _error_class(kind)
    if error_class is None:
        cause: Exception = RuntimeError(f"{kind}: {text}\n{''.join(map(str, list_or_empty(data.get('traceback'))))}")
        text = ": ".join(part for part in (kind.rpartition(".")[2], text) if part)
    else:
        cause = error_class(text)
    message = f"{name_node(prompt, node_id)} failed: {text}"
    error = NodeError(message, node_id=node_id, class_type=class_type, cause=cause)
    error.__cause__ = cause
    return error


def _error_class(name: str) -> type[SVDStagesError] | None:
    """Return this package's error class for a qualified name. A custom node's module name begins with its folder.

    Pillow's error for a file that is not an image counts as ImageError, because core's nodes do not check before.
    """
    if name == "PIL.UnidentifiedImageError":
        return ImageError
    module, _, last = name.rpartition(".")
    error_class = getattr(errors, last, None) if module.endswith("svd_core.errors") else None
    if isinstance(error_class, type) and issubclass(error_class, SVDStagesError):
        return None if issubclass(error_class, NodeError) else error_class  # a NodeError takes more than a text
    return None


def normalize_node_errors(node_errors: Any) -> dict[str, dict[str, Any]]:
    """Return ComfyUI's errors by node id with every key present, whatever a server sent."""
    return {
        str(node_id): {
            "errors": [_normalize_fault(fault) for fault in list_or_empty(entry.get("errors"))],
            "dependent_outputs": [str(output) for output in list_or_empty(entry.get("dependent_outputs"))],
            "class_type": entry["class_type"] if isinstance(entry.get("class_type"), str) else "",
        }
        for node_id, entry in mapping_or_empty(node_errors).items()
        if isinstance(entry, Mapping)
    }


def _normalize_fault(fault: Any) -> dict[str, Any]:
    if not isinstance(fault, Mapping):
        fault = {"message": str(fault)}
    texts = {key: one_line(str(fault.get(key) or ""), MAX_MESSAGE) for key in ("type", "message", "details")}
    return {**texts, "extra_info": dict(mapping_or_empty(fault.get("extra_info")))}


def mapping_or_empty(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is an object of JSON, else an empty one: a server may send anything."""
    return value if isinstance(value, Mapping) else {}


def list_or_empty(value: Any) -> list[Any]:
    """Return `value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def is_missing_file(fault: Mapping[str, Any], class_type: Any, table: NodeTable, value: Any = None) -> bool:
    """Return True if a node's fault is an input that names a model, an image or another file that is missing.

    Args:
        fault: ComfyUI's error object.
        value: The input's value. None: the one in the error object.
    """
    name = fault["extra_info"].get("input_name")
    value = fault["extra_info"].get("received_value") if value is None else value
    if fault["type"] not in ("custom_validation_failed", "value_not_in_list"):
        return False
    if isinstance(value, str) and PurePosixPath(value).suffix.lower() in MODEL_FILES:
        return True
    if not isinstance(name, str) or class_type not in table.classes:
        return False
    for classes in (table.classes, EMBEDDED_NODES.classes):
        if name in getattr(classes.get(class_type), "FILE_INPUTS", ()):
            return True
    return takes_uploads(read_declaration(class_type, table.classes[class_type]).inputs.get(name))


def takes_uploads(declared: DeclaredInput | None) -> bool:
    """Return True if ComfyUI's page offers to upload a file for this input."""
    return declared is not None and any(
        str(key).endswith("_upload") and value is True for key, value in declared.options.items()
    )
