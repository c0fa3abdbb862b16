"""A UI-format graph (what ComfyUI's page saves) read into nodes and links, whichever schema it has.

Two schemas are in use: links as arrays `[id, source, source slot, target, target slot, type]` (0.4), and as objects
`{id, origin_id, origin_slot, target_id, target_slot, type}` (1.0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import GraphError

MUTED = 2
BYPASSED = 4


@dataclass(frozen=True)
class UIInput:
    """One input slot: its type, the id of the link into it, and whether it is a widget's socket."""

    name: str
    type: str
    link: str | None
    is_widget: bool


@dataclass(frozen=True, eq=False)
class UINode:
    """One box on the page. `values` is what its widgets show: a list by position or a dict by name."""

    id: str
    type: str
    mode: int
    order: int
    title: str | None
    inputs: tuple[UIInput, ...]
    output_types: tuple[str, ...]
    values: list[Any] | dict[str, Any]

    @property
    def is_active(self) -> bool:
        """Whether it takes part: neither muted nor bypassed."""
        return self.mode not in (MUTED, BYPASSED)


@dataclass(frozen=True)
class UIGraph:
    """Nodes by id, and for each link id the (node id, slot) that it comes from."""

    nodes: dict[str, UINode]
    links: dict[str, tuple[str, int]]
    subgraphs: frozenset[str]
    groups: frozenset[str]


def read_ui_graph(workflow: Mapping[str, Any]) -> UIGraph:
    """Read a UI-format graph. Raises GraphError (`graph.shape`) that says what is not as ComfyUI saves it."""
    if "nodes" not in workflow:
        raise _wrong("it has no list of nodes")
    nodes = [_read_node(each, place) for place, each in enumerate(_list(workflow["nodes"], "nodes"))]
    by_id = {node.id: node for node in nodes}
    if len(by_id) < len(nodes):
        twice = Counter(node.id for node in nodes).most_common(1)[0][0]
        raise _wrong(f"two nodes have the id {twice}")
    links = dict(_read_link(each) for each in _list(workflow.get("links"), "links") if each is not None)
    definitions = workflow.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    extra = workflow.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, Mapping) else None
    return UIGraph(
        by_id,
        links,
        frozenset(str(each.get("id")) for each in _list(subgraphs, "subgraphs") if isinstance(each, Mapping)),
        frozenset(groups if isinstance(groups, Mapping) else ()),
    )


def _read_node(node: Any, place: int) -> UINode:
    if not isinstance(node, Mapping) or not _is_id(node.get("id")) or not isinstance(node.get("type"), str):
        raise _wrong(f"entry {place} of its nodes has no id or no type")
    node_id = str(node["id"])
    mode, order, title = node.get("mode", 0), node.get("order", 0), node.get("title")
    values = node.get("widgets_values")
    inputs = tuple(_read_input(each, node_id) for each in _list(node.get("inputs"), f"inputs of node {node_id}"))
    outputs = _list(node.get("outputs"), f"outputs of node {node_id}")
    return UINode(
        id=node_id,
        type=node["type"],
        mode=mode if isinstance(mode, int) else 0,
        order=order if isinstance(order, int) else 0,
        title=title if isinstance(title, str) and title else None,
        inputs=inputs,
        output_types=tuple(_type(each.get("type") if isinstance(each, Mapping) else None) for each in outputs),
        values=values if isinstance(values, (list, dict)) else [],
    )


def _read_input(slot: Any, node_id: str) -> UIInput:
    if not isinstance(slot, Mapping) or not isinstance(slot.get("name"), str):
        raise _wrong(f"an input of node {node_id} has no name")
    link = slot.get("link")
    return UIInput(
        slot["name"], _type(slot.get("type")), str(link) if _is_id(link) else None, slot.get("widget") is not None
    )


def _read_link(link: Any) -> tuple[str, tuple[str, int]]:
    """(link id, (source id, source slot)) from either schema."""
    if isinstance(link, Mapping):
        link_id, source, slot = link.get("id"), link.get("origin_id"), link.get("origin_slot")
    elif isinstance(link, list) and len(link) >= 5:
        link_id, source, slot = link[:3]
    else:
        raise _wrong("one of its links is neither an array of at least five values nor an object")
    if not (_is_id(link_id) and _is_id(source) and isinstance(slot, int) and not isinstance(slot, bool)):
        raise _wrong(f"link {link_id} has no source node or no source slot")
    return str(link_id), (str(source), slot)


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(f"its {what} are {type(value).__name__}, not a list")
    return value


def _type(kind: Any) -> str:
    """A slot's type; a combo is saved as "COMBO" or as its options, and 0 or nothing means any."""
    if isinstance(kind, list):
        return "COMBO"
    return kind if isinstance(kind, str) and kind else "*"


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _wrong(reason: str) -> GraphError:
    return GraphError(f"this is no UI-format graph as ComfyUI saves it: {reason}. Save it again.", code="graph.shape")
