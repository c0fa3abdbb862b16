"""Support for node classes of ComfyUI's V3 API (io.ComfyNode), recognized without importing ComfyUI.

A V3 class has INPUT_TYPES, RETURN_TYPES and FUNCTION as a V1 class has. The differences: it is called on a copy of the
class that holds the hidden inputs, it returns a NodeOutput, and its checks have other names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def is_v3(node_class: Any) -> bool:
    """Return True if a class uses the V3 API."""
    return hasattr(node_class, "GET_BASE_CLASS")


def class_function(node_class: Any, name: str, v3_name: str) -> Callable[..., Any] | None:
    """Return a function that the class defines, or None. The empty default of V3's base class does not count.

    Args:
        node_class: The node class.
        name: Name in a V1 class, such as VALIDATE_INPUTS.
        v3_name: Name in a V3 class, such as validate_inputs.
    """
    if not is_v3(node_class):
        return getattr(node_class, name, None)
    base = node_class.GET_BASE_CLASS()
    for ancestor in node_class.__mro__:
        if ancestor is base:
            return None
        if v3_name in vars(ancestor):
            return getattr(node_class, v3_name)
    return None


def bound_function(instance: Any, hidden: Mapping[str, Any], name: str | None = None) -> Callable[..., Any]:
    """Return the function to call with a node's inputs.

    Args:
        instance: An instance of the node class.
        hidden: Values of hidden inputs by kind.
        name: Name of the function. None: the class's FUNCTION.
    """
    node_class: Any = type(instance)
    if not is_v3(node_class):
        return getattr(instance, name or node_class.FUNCTION)
    node_class.VALIDATE_CLASS()
    return getattr(node_class.PREPARE_CLASS_CLONE(_ByValue(hidden)), name or node_class.FUNCTION)


def as_v1(result: Any, blocker: Callable[[str], Any]) -> Any:
    """Convert a NodeOutput to a dict with ui, result and expand. Return anything else unchanged."""
    if not any(ancestor.__name__ == "_NodeOutputInternal" for ancestor in type(result).__mro__):
        return result
    ui = result.ui if result.ui is None or isinstance(result.ui, dict) else result.ui.as_dict()
    values = result.result if result.block_execution is None else blocker(result.block_execution)
    parts = {"ui": ui, "expand": result.expand, "result": values}
    return {name: part for name, part in parts.items() if part is not None}


class _ByValue(dict):
    """Hidden inputs by kind. Keys may also be enumeration members whose values are the kinds."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(getattr(key, "value", key), default)
