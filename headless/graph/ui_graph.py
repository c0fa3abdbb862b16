"""A UI-format graph (what ComfyUI's page saves) read into nodes and links, whichever schema it has.

Two schemas are in use: links as arrays `[id, source, source slot, target, target slot, type]` (0.4), and as objects
`{id, origin_id, origin_slot, target_id, target_slot, type}` (1.0, and in every subgraph). A subgraph is defined once
and stands on the page as often as there are boxes with its id as their type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import GraphError
from .prompt import MAX_NODES

MUTED = 2
BYPASSED = 4
INPUT_NODE, OUTPUT_NODE = "-10", "-20"
"""The two ends of a subgraph, as links inside of it name them."""


@dataclass(frozen=True)
class UIInput:
    """One input slot: its type, the id of the link into it, and the widget that it is the socket of, if it is one."""

    name: str
    type: str
    link: str | None
    widget: str | None


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
    properties: Mapping[str, Any]

    @property
    def is_active(self) -> bool:
        """Whether it takes part: neither muted nor bypassed."""
        return self.mode not in (MUTED, BYPASSED)


@dataclass(frozen=True)
class UILink:
    """From an output slot of one node to an input slot of another."""

    source: str
    source_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True)
class Port:
    """An input or output of a subgraph, and the ids of the links inside that start or end there."""

    name: str
    links: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class UIGraph:
    """Nodes and links by id; for a subgraph also its ports. Links that lead to nothing are kept: the page does."""

    nodes: dict[str, UINode]
    links: dict[str, UILink]
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()


@dataclass(frozen=True, eq=False)
class Workflow:
    """What a file holds: the graph itself, the subgraphs by id, and the names of group nodes (the older kind)."""

    root: UIGraph
    subgraphs: dict[str, UIGraph] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()


def read_ui_graph(workflow: Mapping[str, Any]) -> Workflow:
    """Read a UI-format graph. Raises GraphError: `graph.shape` that says what is not as ComfyUI saves it, and
    `graph.too_large`."""
    definitions = workflow.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    extra = workflow.get("extra")
    groups = extra.get("groupNodes") if isinstance(extra, Mapping) else None
    defined = [_read_subgraph(each) for each in _list(subgraphs, "subgraphs")]
    by_id = dict(defined)
    if len(by_id) < len(defined):
        raise wrong_shape("two of its subgraphs have one id")
    root = _read_graph(workflow)
    boxes = len(root.nodes) + sum(len(each.nodes) for each in by_id.values())
    if boxes > MAX_NODES:
        raise GraphError(f"it has {boxes} nodes; a graph may have {MAX_NODES}.", code="graph.too_large")
    return Workflow(root, by_id, frozenset(groups if isinstance(groups, Mapping) else ()))


def _read_graph(holder: Mapping[str, Any]) -> UIGraph:
    if "nodes" not in holder:
        raise wrong_shape("it has no list of nodes")
    nodes = [_read_node(each, place) for place, each in enumerate(_list(holder["nodes"], "nodes"))]
    by_id = {node.id: node for node in nodes}
    if len(by_id) < len(nodes):
        twice = Counter(node.id for node in nodes).most_common(1)[0][0]
        raise wrong_shape(f"two nodes have the id {twice}")
    return UIGraph(by_id, _read_links(_list(holder.get("links"), "links")))


def _read_links(listed: list[Any]) -> dict[str, UILink]:
    links: dict[str, UILink] = {}
    for link_id, link in (_read_link(each) for each in listed if each is not None):
        if links.setdefault(link_id, link) != link:
            raise wrong_shape(f"two links have the id {link_id}")
    return links


def _read_subgraph(definition: Any) -> tuple[str, UIGraph]:
    if not isinstance(definition, Mapping) or not _is_id(definition.get("id")):
        raise wrong_shape("one of its subgraphs has no id")
    inside = _read_graph(definition)
    ports = (_read_ports(definition.get(side), side) for side in ("inputs", "outputs"))
    return str(definition["id"]), UIGraph(inside.nodes, inside.links, *ports)


def _read_ports(ports: Any, side: str) -> tuple[Port, ...]:
    read = []
    for port in _list(ports, f"{side} of a subgraph"):
        if not isinstance(port, Mapping):
            raise wrong_shape(f"one of the {side} of a subgraph is no object")
        links = _list(port.get("linkIds"), "links of a subgraph's port")
        read.append(Port(str(port.get("name")), tuple(str(each) for each in links if _is_id(each))))
    return tuple(read)


def _read_node(node: Any, place: int) -> UINode:
    if not isinstance(node, Mapping) or not _is_id(node.get("id")) or not isinstance(node.get("type"), str):
        raise wrong_shape(f"entry {place} of its nodes has no id or no type")
    node_id = str(node["id"])
    mode, order, title = node.get("mode", 0), node.get("order", 0), node.get("title")
    values, properties = node.get("widgets_values"), node.get("properties")
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
        properties=properties if isinstance(properties, Mapping) else {},
    )


def _read_input(slot: Any, node_id: str) -> UIInput:
    if not isinstance(slot, Mapping) or not isinstance(slot.get("name"), str):
        raise wrong_shape(f"an input of node {node_id} has no name")
    link, widget = slot.get("link"), slot.get("widget")
    named = widget.get("name") if isinstance(widget, Mapping) else None
    return UIInput(
        slot["name"],
        _type(slot.get("type")),
        str(link) if _is_id(link) else None,
        named if isinstance(named, str) else None,
    )


def _read_link(link: Any) -> tuple[str, UILink]:
    """(link id, link) from either schema."""
    if isinstance(link, Mapping):
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        link_id, source, slot, target, target_slot = (link.get(name) for name in names)
    elif isinstance(link, list) and len(link) >= 5:
        link_id, source, slot, target, target_slot = link[:5]
    else:
        raise wrong_shape("one of its links is neither an array of at least five values nor an object")
    place, target_place = _slot(slot), _slot(target_slot)
    if not (_is_id(link_id) and _is_id(source)) or place is None:
        raise wrong_shape(f"link {link_id} has no source node or no source slot")
    return str(link_id), UILink(str(source), place, str(target), -1 if target_place is None else target_place)


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_shape(f"its {what} are {type(value).__name__}, not a list")
    return value


def _type(kind: Any) -> str:
    """A slot's type; a combo is saved as "COMBO" or as its options, and 0 or nothing means any."""
    if isinstance(kind, list):
        return "COMBO"
    return kind if isinstance(kind, str) and kind else "*"


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _slot(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def wrong_shape(reason: str) -> GraphError:
    """The error for what ComfyUI does not save."""
    return GraphError(f"this is no UI-format graph as ComfyUI saves it: {reason}. Save it again.", code="graph.shape")
