"""A table of node classes with the names people see, from the classes themselves or from a server's /object_info."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...svd_core.errors import GraphError
from .prompt import one_line


@dataclass(frozen=True)
class NodeTable:
    """Node classes by class type, and what ComfyUI's page calls them. A class without a display name has its type."""

    classes: Mapping[str, type]
    display_names: Mapping[str, str]

    def with_others(self, others: NodeTable) -> NodeTable:
        """This table, and from `others` what it has not."""
        return NodeTable({**others.classes, **self.classes}, {**others.display_names, **self.display_names})


def described_nodes(info: Mapping[str, Any]) -> NodeTable:
    """The nodes of `info`, in the shape of ComfyUI's /object_info, as classes that declare and cannot run.

    They serve conversion, settings and validation as real classes do. Raises GraphError (`graph.object_info`) that
    names the first entry which is not as ComfyUI gives it.
    """
    classes = {class_type: _described(class_type, entry) for class_type, entry in info.items()}
    names = {class_type: str(entry.get("display_name") or class_type) for class_type, entry in info.items()}
    return NodeTable(classes, names)


def _described(class_type: str, entry: Any) -> type:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("input"), Mapping):
        raise _wrong(class_type, "it has no inputs")
    inputs = {group: _group(class_type, group, entry) for group in ("required", "optional")}
    hidden = entry["input"].get("hidden")
    declared = {**inputs, "hidden": dict(hidden) if isinstance(hidden, Mapping) else {}}
    outputs = entry.get("output") or []
    for key in ("output", "output_name", "output_is_list"):
        if not isinstance(entry.get(key) or [], list):
            raise _wrong(class_type, f"its {key} is not a list")
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


def _group(class_type: str, group: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of one group in declared order: `input_order` has it even where JSON objects lost theirs."""
    inputs = entry["input"].get(group) or {}
    if not isinstance(inputs, Mapping) or not all(map(_is_input, inputs.values())):
        raise _wrong(class_type, f"its {group} inputs are not lists of a type and options")
    order = entry.get("input_order")
    names = order.get(group) if isinstance(order, Mapping) else None
    first = [name for name in names if name in inputs] if isinstance(names, list) else []
    return {name: inputs[name] for name in dict.fromkeys([*first, *inputs])}


def _is_input(spec: Any) -> bool:
    return isinstance(spec, list) and bool(spec) and not isinstance(spec[0], dict)


def _wrong(class_type: str, reason: str) -> GraphError:
    return GraphError(
        f'the description of "{one_line(class_type, 100)}" is not as ComfyUI gives it: {reason}. '
        "Save what its address /object_info answers.",
        code="graph.object_info",
    )
