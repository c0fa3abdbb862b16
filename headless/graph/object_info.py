"""The node list as ComfyUI's server gives it at /object_info: what pages, converters and clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .node_schema import is_output, return_types


def object_info(
    nodes: Mapping[str, type], display_names: Mapping[str, str], module: str = "custom_nodes.ComfyUI-SVD-Stages"
) -> dict[str, dict[str, Any]]:
    """Class type -> description, in the order of `nodes`, as plain JSON values. `module` is named as their source."""
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
    return _plain(info)


def _plain(value: Any) -> Any:
    """Tuples as lists, as they look after a trip through JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
