"""Which nodes of a graph would give the same: equal keys for equal class, constants and links to equal nodes.

ComfyUI runs such nodes once and shares their objects; the node's id is in the key only when the class asks for it
(NOT_IDEMPOTENT, or a hidden UNIQUE_ID). Here, unlike there, 1, 1.0 and true are different constants.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from ...svd_core.errors import Interrupted
from .async_utils import settled
from .call import call_mapped, constant_lists, is_blocker
from .node_schema import Declaration, Declarations
from .output_cache import Key
from .prompt import looks_like_link
from .v3 import asked

logger = logging.getLogger(__name__)


NUMBERS = itertools.count()


class Keys:
    """The keys of the nodes of one run. `known` holds the number of each kind of node that was ever met, across runs:
    links count as the number they lead to, so that a key stays small however deep the graph is."""

    def __init__(self, declarations: Declarations, known: dict[Hashable, Key]):
        self._declarations, self._known = declarations, known
        self._of: dict[str, Key] = {}

    def __getitem__(self, node_id: str) -> Key:
        return self._of[node_id]

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._of

    def values(self) -> set[Key]:
        """All keys of this run."""
        return set(self._of.values())

    def give(self, node_id: str) -> None:
        """A key of its own, for a node whose outputs come from elsewhere or that is in a cycle."""
        self._of[node_id] = self._number(object())

    async def add(self, ids: Sequence[str], prompt: Mapping[str, Any], parent: str | None = None) -> None:
        """Give keys to `ids`, sources first. Asks IS_CHANGED of the classes that have it.

        parent  the node that brought them: what another one brings is not the same
        """
        for node_id in ids:
            if node_id not in self._of:
                self._of[node_id] = await self._key(node_id, prompt[node_id], parent)

    async def _key(self, node_id: str, node: Mapping[str, Any], parent: str | None) -> Key:
        declaration = self._declarations[node["class_type"]]
        by_id = getattr(declaration.node_class, "NOT_IDEMPOTENT", False) or "UNIQUE_ID" in declaration.hidden.values()
        inputs = tuple(
            (name, "link", self._of.get(value[0]), value[1]) if looks_like_link(value) else (name, freeze(value))
            for name, value in sorted(node["inputs"].items())
        )
        change = await _change(node_id, node, declaration)
        return self._number((declaration.class_type, change, node_id if by_id else None, parent, inputs))

    def _number(self, kind: Hashable) -> Key:
        if kind not in self._known:
            self._known[kind] = next(NUMBERS)
        return self._known[kind]


async def _change(node_id: str, node: Mapping[str, Any], declaration: Declaration) -> Hashable:
    """What IS_CHANGED answers, asked with the constants and None for every link. An exception counts as NaN."""
    node_class: Any = declaration.node_class
    is_changed = asked(node_class, "IS_CHANGED", "fingerprint_inputs")
    if is_changed is None:
        return None
    if "is_changed" in node:
        return freeze(node["is_changed"])
    try:
        lists = constant_lists(node, declaration, node_id)
        answers = call_mapped(is_changed, lists, getattr(node_class, "INPUT_IS_LIST", False))
        settled_answers = [await settled(answer) for answer in answers]
        return freeze([None if is_blocker(answer) else answer for answer in settled_answers])
    except Interrupted:
        raise
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
