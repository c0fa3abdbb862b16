"""Node classes of ComfyUI's V3 API (io.ComfyNode), by what they answer: ComfyUI is not imported here.

Such a class answers INPUT_TYPES, RETURN_TYPES and FUNCTION as a V1 class does. What differs: it is called on a copy of
the class that holds the hidden inputs, it gives a NodeOutput, and its checks have other names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def is_v3(node_class: Any) -> bool:
    """Whether a class is of the V3 API."""
    return hasattr(node_class, "GET_BASE_CLASS")


def asked(node_class: Any, name: str, v3_name: str) -> Callable[..., Any] | None:
    """The class's function of that name, or None when it has none: V3's own, which does nothing, does not count."""
    if not is_v3(node_class):
        return getattr(node_class, name, None)
    base = node_class.GET_BASE_CLASS()
    for each in node_class.__mro__:
        if each is base:
            return None
        if v3_name in vars(each):
            return getattr(node_class, v3_name)
    return None


def function_of(instance: Any, hidden: Mapping[str, Any], name: str | None = None) -> Callable[..., Any]:
    """What is called with the inputs of a node: its FUNCTION, or that of a name. hidden: values by kind."""
    node_class: Any = type(instance)
    if not is_v3(node_class):
        return getattr(instance, name or node_class.FUNCTION)
    node_class.VALIDATE_CLASS()
    return getattr(node_class.PREPARE_CLASS_CLONE(_ByValue(hidden)), name or node_class.FUNCTION)


def as_v1(result: Any, blocker: Callable[[str], Any]) -> Any:
    """A NodeOutput as a dict with ui, result and expand; anything else as it is."""
    if not any(each.__name__ == "_NodeOutputInternal" for each in type(result).__mro__):
        return result
    made: dict[str, Any] = {}
    if result.ui is not None:
        made["ui"] = result.ui if isinstance(result.ui, dict) else result.ui.as_dict()
    if result.expand is not None:
        made["expand"] = result.expand
    if result.block_execution is not None:
        made["result"] = blocker(result.block_execution)
    elif result.result is not None:
        made["result"] = result.result
    return made


class _ByValue(dict):
    """Hidden inputs by their kind, asked for by members of an enumeration whose values are the kinds."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(getattr(key, "value", key), default)
