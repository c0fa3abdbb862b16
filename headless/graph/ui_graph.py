"""Parse UI-format graphs (saved by ComfyUI's page) of any schema into nodes and links.

Two schemas are in use: links as arrays `[id, source, source slot, target, target slot, type]` (0.4), and as objects
`{id, origin_id, origin_slot, target_id, target_slot, type}` (1.0, and in every subgraph). A subgraph is defined once.
It is used by every node that has its id as type (an instance).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from ...svd_core.errors import GraphError
from .prompt import MAX_NODES

MUTED = 2
BYPASSED = 4
INPUT_NODE, OUTPUT_NODE = "-10", "-20"
"""Node ids that stand for a subgraph's inputs and outputs in its links."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class UIInput:
    """An input slot: its name and type, the id of its link, and the name of its widget if it is a widget's socket."""

    name: str
    type: str
    link: str | None
    widget: str | None


@dataclass(frozen=True, eq=False)
class UINode:
    """A node on the page. `values` are its saved widget values: a list by position or a dict by name."""

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
    def first_value(self) -> Any:
        """The value of a primitive, or the name of a Get or Set node. None if it is not saved."""
        return self.values[0] if isinstance(self.values, list) and self.values else None

    @property
    def is_active(self) -> bool:
        """True if the node is neither muted nor bypassed."""
        return self.mode not in (MUTED, BYPASSED)


@dataclass(frozen=True)
class UILink:
    """A link from an output slot of one node to an input slot of another."""

    source: str
    source_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True)
class Port:
    """An input or output of a subgraph, and the ids of the links inside that begin or end there."""

    name: str
    links: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class UIGraph:
    """Nodes and links by id, and the ports of a subgraph. Dangling links are kept, as the page does."""

    nodes: dict[str, UINode]
    links: dict[str, UILink]
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()

    @cached_property
    def setters(self) -> dict[str, list[UINode]]:
        """The Set nodes by name."""
        by_name: dict[str, list[UINode]] = {}
        for node in self.nodes.values():
            if node.type == "SetNode":
                by_name.setdefault(str(node.first_value), []).append(node)
        return by_name


@dataclass(frozen=True, eq=False)
class Workflow:
    """A parsed file: the main graph, the subgraphs by id, and the names of group nodes (an older format)."""

    root: UIGraph
    subgraphs: dict[str, UIGraph] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()


def read_ui_graph(workflow: Mapping[str, Any]) -> Workflow:
    """Parse a UI-format graph.

    Raises:
        GraphError: The graph differs from what ComfyUI saves (`graph.shape`) or is too large (`graph.too_large`).
    """
    subgraphs = _get(workflow.get("definitions"), "subgraphs", object)
    parsed = [_parse_subgraph(definition) for definition in _list(subgraphs, "subgraphs")]
    by_id = dict(parsed)
    if len(by_id) < len(parsed):
        raise wrong_shape("two subgraphs have the same id")
    root = _parse_graph(workflow)
    count = len(root.nodes) + sum(len(graph.nodes) for graph in by_id.values())
    if count > MAX_NODES:
        raise GraphError(f"a graph may have {MAX_NODES} nodes, got {count}.", code="graph.too_large")
    return Workflow(root, by_id, frozenset(_get(workflow.get("extra"), "groupNodes", Mapping, ())))


def _parse_graph(holder: Mapping[str, Any]) -> UIGraph:
    if "nodes" not in holder:
        raise wrong_shape("it has no list of nodes")
    nodes = [_parse_node(node, index) for index, node in enumerate(_list(holder["nodes"], "nodes"))]
    by_id = {node.id: node for node in nodes}
    if len(by_id) < len(nodes):
        duplicate = Counter(node.id for node in nodes).most_common(1)[0][0]
        raise wrong_shape(f"two nodes have the id {duplicate}")
    links: dict[str, UILink] = {}
    for link_id, link in (_parse_link(link) for link in _list(holder.get("links"), "links") if link is not None):
        if links.setdefault(link_id, link) != link:
            raise wrong_shape(f"two links have the id {link_id}")
    return UIGraph(by_id, links)


def _parse_subgraph(definition: Any) -> tuple[str, UIGraph]:
    if not isinstance(definition, Mapping) or not _is_id(definition.get("id")):
        raise wrong_shape("a subgraph has no id")
    graph = _parse_graph(definition)
    ports = (_parse_ports(definition.get(side), side) for side in ("inputs", "outputs"))
    return str(definition["id"]), UIGraph(graph.nodes, graph.links, *ports)


def _parse_ports(ports: Any, side: str) -> tuple[Port, ...]:
    parsed = []
    for port in _list(ports, f"{side} of a subgraph"):
        if not isinstance(port, Mapping):
            raise wrong_shape(f"the {side} of a subgraph must be objects")
        links = _list(port.get("linkIds"), "links of a subgraph's port")
        parsed.append(Port(str(port.get("name")), tuple(str(link) for link in links if _is_id(link))))
    return tuple(parsed)


def _parse_node(node: Any, index: int) -> UINode:
    if not isinstance(node, Mapping) or not _is_id(node.get("id")) or not isinstance(node.get("type"), str):
        raise wrong_shape(f"entry {index} of its nodes has no id or no type")
    node_id = str(node["id"])
    inputs = tuple(_parse_input(slot, node_id) for slot in _list(node.get("inputs"), f"inputs of node {node_id}"))
    outputs = _list(node.get("outputs"), f"outputs of node {node_id}")
    return UINode(
        id=node_id,
        type=node["type"],
        mode=_get(node, "mode", int, 0),
        order=_get(node, "order", int, 0),
        title=_get(node, "title", str) or None,
        inputs=inputs,
        output_types=tuple(_type_name(_get(slot, "type", object)) for slot in outputs),
        values=_get(node, "widgets_values", (list, dict), []),
        properties=_get(node, "properties", Mapping, {}),
    )


def _parse_input(slot: Any, node_id: str) -> UIInput:
    if not isinstance(slot, Mapping) or not isinstance(slot.get("name"), str):
        raise wrong_shape(f"an input of node {node_id} has no name")
    link = str(slot["link"]) if _is_id(slot.get("link")) else None
    return UIInput(slot["name"], _type_name(slot.get("type")), link, _get(slot.get("widget"), "name", str))


def _parse_link(link: Any) -> tuple[str, UILink]:
    """Return the id and the link, from either schema."""
    if isinstance(link, Mapping):
        link = [link.get(name) for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    if not (isinstance(link, list) and len(link) >= 5):
        raise wrong_shape("a link must be an object or an array of at least five values")
    link_id, source, source_slot, target, target_slot = link[:5]
    if not (_is_id(link_id) and _is_id(source) and _is_integer(source_slot)):
        raise wrong_shape(f"link {link_id} has no source node or no source slot")
    return str(link_id), UILink(str(source), source_slot, str(target), target_slot if _is_integer(target_slot) else -1)


def _get(holder: Any, key: str, kind: Any, default: Any = None) -> Any:
    """Return a value of an object, or `default` if it has another type or `holder` is not an object."""
    value = holder.get(key) if isinstance(holder, Mapping) else None
    return value if isinstance(value, kind) else default


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong_shape(f"its {what} must be a list, got {type(value).__name__}")
    return value


def _type_name(kind: Any) -> str:
    """Return a slot's type. A combo is saved as "COMBO" or as its options. 0 or nothing means any."""
    if isinstance(kind, list):
        return "COMBO"
    return kind if isinstance(kind, str) and kind else "*"


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def item_at(items: Sequence[Item], index: int) -> Item | None:
    """Return an item, or None if the index is out of range. Negative indices are out of range."""
    return items[index] if 0 <= index < len(items) else None


def wrong_shape(reason: str) -> GraphError:
    """Create the error for a graph that differs from what ComfyUI saves."""
    return GraphError(f"not a UI-format graph as ComfyUI saves it: {reason}. Save it again.", code="graph.shape")
