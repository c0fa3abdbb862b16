"""Which nodes of a graph would give the same: equal keys for equal class, constants and links to equal nodes.

ComfyUI runs such nodes once and shares their objects; the node's id is in the key only when the class asks for it
(NOT_IDEMPOTENT, or a hidden UNIQUE_ID). Here, unlike there, 1, 1.0 and true are different constants.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from .call import call_mapped, constant_lists
from .declared import Declaration, Declarations
from .prompt import Prompt, is_link

logger = logging.getLogger(__name__)


def find_twins(prompt: Prompt, order: Sequence[str], declarations: Declarations) -> dict[str, str]:
    """For each id of `order` (sources first) the first id with the same key: itself, or the node whose twin it is."""
    twin_of: dict[str, str] = {}
    first_with: dict[Hashable, str] = {}
    for node_id in order:
        declaration = declarations[prompt[node_id]["class_type"]]
        key = _key(node_id, prompt[node_id], declaration, twin_of)
        twin_of[node_id] = first_with.setdefault(key, node_id)
    return twin_of


def _key(node_id: str, node: Mapping[str, Any], declaration: Declaration, twin_of: Mapping[str, str]) -> Hashable:
    """Links count as the twin they lead to, so that the key stays small however deep the graph is."""
    by_id = getattr(declaration.node_class, "NOT_IDEMPOTENT", False) or "UNIQUE_ID" in declaration.hidden.values()
    inputs = tuple(
        (name, "link", twin_of.get(value[0], value[0]), value[1]) if is_link(value) else (name, freeze(value))
        for name, value in sorted(node["inputs"].items())
    )
    return (declaration.class_type, _change(node_id, node, declaration), node_id if by_id else None, inputs)


def _change(node_id: str, node: Mapping[str, Any], declaration: Declaration) -> Hashable:
    """What IS_CHANGED answers, asked with the constants and None for every link. An exception counts as NaN."""
    node_class: Any = declaration.node_class
    if not hasattr(node_class, "IS_CHANGED"):
        return None
    if "is_changed" in node:
        return freeze(node["is_changed"])
    try:
        lists = constant_lists(node, declaration, node_id)
        return freeze(call_mapped(node_class.IS_CHANGED, lists, getattr(node_class, "INPUT_IS_LIST", False)))
    except Exception as error:
        logger.warning("node %s (%s): IS_CHANGED failed: %s", node_id, declaration.class_type, error)
        return object()


def freeze(value: Any) -> Hashable:
    """A hashable that equals another one only for the same value of the same type; NaN and objects equal nothing."""
    if isinstance(value, (list, tuple)):
        return ("list", tuple(freeze(each) for each in value))
    if isinstance(value, dict):
        return ("dict", frozenset((freeze(key), freeze(each)) for key, each in value.items()))
    if isinstance(value, float) and math.isnan(value):
        return object()
    if isinstance(value, (str, bytes, bool, int, float, type(None))):
        return (type(value).__name__, value)
    return object()
