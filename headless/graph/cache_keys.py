"""Cache keys of nodes: equal for an equal class, equal constants and links to equal nodes.

Nodes with equal keys run once and share their outputs, as in ComfyUI. The node's id is part of the key only for classes
with NOT_IDEMPOTENT or a hidden UNIQUE_ID. Unlike in ComfyUI, 1, 1.0 and true are different constants.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from ...svd_core.errors import Interrupted
from .async_utils import resolve
from .call import call_mapped, constant_lists, is_blocker
from .node_schema import Declaration, Declarations
from .output_cache import Key
from .prompt import looks_like_link
from .v3 import class_function

logger = logging.getLogger(__name__)

NUMBERS = itertools.count()


class CacheKeys(dict[str, Key]):
    """Cache keys of one run's nodes by node id.

    A link enters a key as the number of its source, so that keys stay small in deep graphs.

    Args:
        declarations: Declarations of the node classes.
        numbers: The number of each distinct node, shared by all runs of an engine. New ones are added.
    """

    def __init__(self, declarations: Declarations, numbers: dict[Hashable, Key]):
        super().__init__()
        self._declarations, self._numbers = declarations, numbers

    def assign_unique(self, node_id: str) -> None:
        """Assign a key that equals no other, for a node in a cycle or one whose outputs the caller provides."""
        self[node_id] = self._number(object())

    async def add(self, ids: Sequence[str], prompt: Mapping[str, Any], parent: str | None = None) -> None:
        """Assign keys to nodes. Calls IS_CHANGED of the classes that have it.

        Args:
            ids: Node ids, sources first.
            prompt: The nodes by id.
            parent: The node that added them to the graph. Equal nodes of different parents have different keys.
        """
        for node_id in ids:
            if node_id not in self:
                self[node_id] = await self._key(node_id, prompt[node_id], parent)

    async def _key(self, node_id: str, node: Mapping[str, Any], parent: str | None) -> Key:
        declaration = self._declarations[node["class_type"]]
        by_id = getattr(declaration.node_class, "NOT_IDEMPOTENT", False) or "UNIQUE_ID" in declaration.hidden.values()
        inputs = tuple(
            (name, "link", self.get(value[0]), value[1]) if looks_like_link(value) else (name, freeze(value))
            for name, value in sorted(node["inputs"].items())
        )
        change = await _fingerprint(node_id, node, declaration)
        return self._number((declaration.class_type, change, node_id if by_id else None, parent, inputs))

    def _number(self, description: Hashable) -> Key:
        if description not in self._numbers:
            self._numbers[description] = next(NUMBERS)
        return self._numbers[description]


async def _fingerprint(node_id: str, node: Mapping[str, Any], declaration: Declaration) -> Hashable:
    """Call IS_CHANGED with the constants, and None for every link. An exception counts as NaN."""
    node_class: Any = declaration.node_class
    is_changed = class_function(node_class, "IS_CHANGED", "fingerprint_inputs")
    if is_changed is None:
        return None
    if "is_changed" in node:
        return freeze(node["is_changed"])
    try:
        lists = constant_lists(node, declaration, node_id)
        results = call_mapped(is_changed, lists, getattr(node_class, "INPUT_IS_LIST", False))
        results = [await resolve(result) for result in results]
        return freeze([None if is_blocker(result) else result for result in results])
    except Interrupted:
        raise
    except Exception as error:
        logger.warning("node %s (%s): IS_CHANGED failed: %s", node_id, declaration.class_type, error)
        return object()


def freeze(value: Any) -> Hashable:
    """Return a hashable that equals another one only for an equal value of the same type. NaN equals nothing."""
    if isinstance(value, (list, tuple)):
        return ("list", tuple(map(freeze, value)))
    if isinstance(value, dict):
        return ("dict", frozenset((freeze(key), freeze(item)) for key, item in value.items()))
    if isinstance(value, (str, bytes, bool, int, float, type(None))) and value == value:  # False for NaN
        return (type(value).__name__, value)
    return object()
