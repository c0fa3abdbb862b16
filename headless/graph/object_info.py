"""ComfyUI's /object_info: describe node classes in its shape, and read node classes from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...svd_core.errors import GraphError
from .node_schema import is_output, return_types
from .prompt import one_line


@dataclass(frozen=True)
class NodeTable:
    """Node classes and their display names by class type. A class without a display name has its type as name."""

    classes: Mapping[str, type]
    display_names: Mapping[str, str]

    def with_others(self, other: NodeTable) -> NodeTable:
        """Return a table with the entries of both. This table's entries take precedence."""
        return NodeTable({**other.classes, **self.classes}, {**other.display_names, **self.display_names})


def object_info(
    nodes: Mapping[str, type], display_names: Mapping[str, str], module: str = "custom_nodes.ComfyUI-SVD-Stages"
) -> dict[str, dict[str, Any]]:
    """Describe node classes as ComfyUI's server does at /object_info.

    Args:
        nodes: Node classes by class type.
        display_names: Display names by class type.
        module: Reported as the source of the classes.

    Returns:
        Descriptions by class type, in the order of `nodes`, as JSON values.
    """
    return {
        class_type: _describe(class_type, node_class, display_names.get(class_type, class_type), module)
        for class_type, node_class in nodes.items()
    }


def _describe(class_type: str, node_class: Any, display_name: str, module: str) -> dict[str, Any]:
    declared = node_class.INPUT_TYPES()
    types = return_types(node_class)
    info = {
        "input": declared,
        "input_order": {group: list(inputs) for group, inputs in declared.items()},
        "output": types,
        "output_is_list": getattr(node_class, "OUTPUT_IS_LIST", [False] * len(types)),
        "output_name": getattr(node_class, "RETURN_NAMES", types),
        "name": class_type,
        "display_name": display_name,
        "description": getattr(node_class, "DESCRIPTION", ""),
        "python_module": module,
        "category": getattr(node_class, "CATEGORY", "sd"),
        "output_node": is_output(node_class),
        "search_aliases": getattr(node_class, "SEARCH_ALIASES", []),
    }
    if hasattr(node_class, "OUTPUT_TOOLTIPS"):
        info["output_tooltips"] = node_class.OUTPUT_TOOLTIPS
    for flag in ("DEPRECATED", "EXPERIMENTAL"):
        if getattr(node_class, flag, False):
            info[flag.lower()] = True
    return _as_json(info)


def _as_json(value: Any) -> Any:
    """Convert tuples to lists, as JSON does."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return value


def described_nodes(info: Mapping[str, Any]) -> NodeTable:
    """Create node classes from descriptions in the shape of /object_info.

    The classes serve for conversion, settings and validation, but they cannot run.

    Raises:
        GraphError: A description has another shape (`graph.object_info`). The message names the first one.
    """
    classes = {class_type: _node_class(class_type, entry) for class_type, entry in info.items()}
    names = {class_type: str(entry.get("display_name") or class_type) for class_type, entry in info.items()}
    return NodeTable(classes, names)


def _node_class(class_type: str, entry: Any) -> type:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("input"), Mapping):
        raise _wrong_description(class_type, "it has no inputs")
    inputs = {group: _input_group(class_type, group, entry) for group in ("required", "optional")}
    hidden = entry["input"].get("hidden")
    declared = {**inputs, "hidden": dict(hidden) if isinstance(hidden, Mapping) else {}}
    outputs = entry.get("output") or []
    for key in ("output", "output_name", "output_is_list"):
        if not isinstance(entry.get(key) or [], list):
            raise _wrong_description(class_type, f"its {key} is not a list")
    return type(
        one_line(class_type, 100),
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: declared),
            "RETURN_TYPES": tuple(outputs),
            "RETURN_NAMES": tuple(entry.get("output_name") or outputs),
            "OUTPUT_IS_LIST": tuple(entry.get("output_is_list") or [False] * len(outputs)),
            "OUTPUT_NODE": entry.get("output_node") is True,
            "CATEGORY": entry.get("category", ""),
            "DESCRIPTION": entry.get("description", ""),
            "__module__": __name__,
        },
    )


def _input_group(class_type: str, group: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of one group in declared order. `input_order` states it, because JSON objects may lose it."""
    inputs = entry["input"].get(group) or {}
    if not isinstance(inputs, Mapping) or not all(map(_is_input, inputs.values())):
        raise _wrong_description(class_type, f"its {group} inputs are not lists of a type and options")
    order = entry.get("input_order")
    names = order.get(group) if isinstance(order, Mapping) else None
    ordered = [name for name in names if name in inputs] if isinstance(names, list) else []
    return {name: inputs[name] for name in dict.fromkeys([*ordered, *inputs])}


def _is_input(spec: Any) -> bool:
    return isinstance(spec, list) and bool(spec) and not isinstance(spec[0], dict)


def _wrong_description(class_type: str, reason: str) -> GraphError:
    return GraphError(
        f'the description of "{one_line(class_type, 100)}" must have the shape of ComfyUI\'s /object_info: {reason}. '
        "Save the answer of /object_info again.",
        code="graph.object_info",
    )
