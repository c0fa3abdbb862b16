"""What an engine says against a graph or a node, as our errors: one fault, one exit status, whichever engine ran."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ....svd_core import errors
from ....svd_core.checkpoints.library import CHECKPOINTS, PICKLES
from ....svd_core.errors import CheckpointError, GraphError, ImageError, NodeError, SVDStagesError
from ...graph import NodeTable, Prompt, Validation, explain, raise_if_invalid, validate
from ...graph.node_schema import DeclaredInput, read_declaration
from ...graph.prompt import name_node, one_line
from ..graphs import EMBEDDED_NODES

MODEL_FILES = (*CHECKPOINTS, *PICKLES, ".sft", ".pt2", ".pkl", ".gguf", ".onnx")
LONGEST = 2000
"""Characters of a failed node's own words that are repeated."""


def refusal(error: Any, node_errors: Any, prompt: Prompt, table: NodeTable) -> GraphError:
    """The error for what ComfyUI has against a graph.

    error        its error object; None when some outputs of the graph can run
    node_errors  its errors by node. Where it has none, or only what was raised while it looked (a circle, a link to
                 nowhere), ours say it
    """
    faults = normalize_node_errors(node_errors)
    kinds = [fault["type"] for entry in faults.values() for fault in entry["errors"]]
    if all(kind.startswith("exception_during_") for kind in kinds):
        faults = validate(prompt, table.classes).node_errors or faults
    error = None if error is None else _tidy_fault(error)
    if error is None:
        code = "graph.some_outputs"
    else:
        first = next((fault for entry in faults.values() for fault in entry["errors"]), error)
        code = f"graph.{one_line(first['type'], 100)}"
    return marked(GraphError(explain(error, faults, prompt), code=code, node_errors=faults), table)


def raise_if_refused(validation: Validation, table: NodeTable) -> None:
    """Raise GraphError when nothing of a graph can run by our validation."""
    try:
        raise_if_invalid(validation)
    except GraphError as error:
        raise marked(error, table) from None


def raise_if_faulty(validation: Validation, table: NodeTable) -> None:
    """Raise GraphError when any output of a graph could not run by our validation."""
    raise_if_refused(validation, table)
    if validation.node_errors:
        raise refusal(None, validation.node_errors, validation.prompt, table)


def marked(error: GraphError, table: NodeTable) -> GraphError:
    """The same error, with the exit status of a missing file when nothing else is wrong."""
    if _only_files_are_missing(error.node_errors, table):
        error.exit_status = CheckpointError.exit_status
    return error


def node_failure(told: Mapping[str, Any], prompt: Prompt) -> NodeError:
    """The error for a node that raised, from the data of ComfyUI's `execution_error`.

    An error of ours keeps its exit status: ComfyUI tells the name of its class.
    """
    node_id, class_type = str(told.get("node_id", "")), str(told.get("node_type", ""))
    kind = one_line(str(told.get("exception_type", "")), 200)
    text = one_line(str(told.get("exception_message", "")), LONGEST)
    traceback = told.get("traceback")
    lines = "".join(map(str, traceback)) if isinstance(traceback, list) else ""
    ours = _class_of_ours(kind)
    if ours is None:
        cause: Exception = RuntimeError(f"{kind}: {text}\n{lines}")
        text = ": ".join(part for part in (kind.rpartition(".")[2], text) if part)
    else:
        cause = ours(text)
    where = name_node(prompt, node_id)
    failed = NodeError(f"{where} failed: {text}", node_id=node_id, class_type=class_type, cause=cause)
    failed.__cause__ = cause
    return failed


def normalize_node_errors(node_errors: Any) -> dict[str, dict[str, Any]]:
    """ComfyUI's errors by node with every key that its shape has, whatever a server answered."""
    entries = node_errors.items() if isinstance(node_errors, Mapping) else ()
    return {
        str(node_id): {
            "errors": [_tidy_fault(fault) for fault in _list(entry.get("errors"))],
            "dependent_outputs": [str(each) for each in _list(entry.get("dependent_outputs"))],
            "class_type": entry["class_type"] if isinstance(entry.get("class_type"), str) else "",
        }
        for node_id, entry in entries
        if isinstance(entry, Mapping)
    }


def _tidy_fault(fault: Any) -> dict[str, Any]:
    if not isinstance(fault, Mapping):
        fault = {"message": str(fault)}
    extra = fault.get("extra_info")
    texts = {key: one_line(str(fault.get(key) or ""), LONGEST) for key in ("type", "message", "details")}
    return {**texts, "extra_info": dict(extra) if isinstance(extra, Mapping) else {}}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _class_of_ours(name: str) -> type[SVDStagesError] | None:
    """The class of our errors that ComfyUI calls so: a pack's module has the path of its folder in front.

    A file that Pillow knows for no picture is our ImageError: core's nodes do not look first.
    """
    if name == "PIL.UnidentifiedImageError":
        return ImageError
    module, _, last = name.rpartition(".")
    if not module.endswith("svd_core.errors"):
        return None
    found = getattr(errors, last, None)
    takes_text = isinstance(found, type) and issubclass(found, SVDStagesError) and not issubclass(found, NodeError)
    return found if takes_text else None


def _only_files_are_missing(node_errors: Mapping[str, Any], table: NodeTable) -> bool:
    """Whether every fault is about an input that names a model, a picture or another file."""
    faults = [(entry["class_type"], fault) for entry in node_errors.values() for fault in entry["errors"]]
    return bool(faults) and all(
        fault["type"] in ("custom_validation_failed", "value_not_in_list")
        and names_a_file(table, class_type, fault["extra_info"])
        for class_type, fault in faults
    )


def names_a_file(table: NodeTable, class_type: Any, info: Mapping[str, Any]) -> bool:
    """Whether the input that an error object tells of (its `extra_info`) names a model, a picture or another file."""
    name, value = info.get("input_name"), info.get("received_value")
    if isinstance(value, str) and PurePosixPath(value).suffix.lower() in MODEL_FILES:
        return True
    if not isinstance(name, str) or class_type not in table.classes:
        return False
    return _is_file_input(table, class_type, name)


def _is_file_input(table: NodeTable, class_type: str, name: str) -> bool:
    """Whether an input names a file: the class says so (FILE_INPUTS), or the page would upload one into it."""
    for classes in (table.classes, EMBEDDED_NODES.classes):
        if name in getattr(classes.get(class_type), "FILE_INPUTS", ()):
            return True
    return takes_uploads(read_declaration(class_type, table.classes[class_type]).inputs.get(name))


def takes_uploads(declared: DeclaredInput | None) -> bool:
    """Whether ComfyUI's page offers to upload a file for this input."""
    return declared is not None and any(
        str(key).endswith("_upload") and value is True for key, value in declared.options.items()
    )
