"""Unfold subgraphs: list the nodes of all instances, with the values that each instance sets.

An instance of a subgraph shows widgets of nodes inside it (promoted widgets). Their values belong to the instance, so
two instances of one subgraph may differ. Graphs of 2025 list them in `properties.proxyWidgets`. In other graphs they
are the instance's inputs that lead to a widget, in order.

Source of the rules: ComfyUI_frontend 1.58, SubgraphNode.ts and proxyWidgetMigration.ts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import GraphError
from .node_schema import Declarations
from .ui_graph import INPUT_NODE, OUTPUT_NODE, UIGraph, UIInput, UILink, UINode, Workflow, item_at, wrong_shape
from .widgets import widget_values

MAX_NODES_UNFOLDED = 50_000
"""Nodes of an unfolded workflow, including instances. Nested subgraphs multiply."""
MAX_DEPTH = 64

PREFIX = re.compile(r"\s*(\d+)\s*:\s*(.+)", re.DOTALL)
"""Form of a widget's name in early 2025: the id of a node inside the named node comes first."""


@dataclass(frozen=True, eq=False)
class Scope:
    """The main graph, or one instance of a subgraph.

    Attributes:
        graph: Its nodes and links.
        path: Prefix of its nodes' ids: "", "5:" or "5:3:".
        instance: The node that is the instance. None for the main graph.
        outer: The scope of that node. None for the main graph.
        enclosing: The subgraphs that it is inside of, including its own.
        inner: The instances inside, by node id.
        port_values: Values of the instance's promoted inputs, by port.
        overrides: Widget values set by outer scopes, by (node id, widget).
    """

    graph: UIGraph
    path: str = ""
    instance: UINode | None = None
    outer: Scope | None = None
    enclosing: frozenset[str] = frozenset()
    inner: dict[str, Scope] = field(default_factory=dict)
    port_values: dict[int, Any] = field(default_factory=dict)
    overrides: dict[tuple[str, str], Any] = field(default_factory=dict)

    def source_of_output(self, output: int) -> UILink | None:
        """Return the link inside this instance that leads to an output, or None."""
        links, port = self.graph.links, item_at(self.graph.outputs, output)
        listed = (links[link_id] for link_id in (port.links if port else ()) if link_id in links)
        ending = (link for link in links.values() if (link.target, link.target_slot) == (OUTPUT_NODE, output))
        return next(listed, None) or next(ending, None)

    def outer_input(self, port: int) -> UIInput | None:
        """Return the slot of the instance for an input port. Names decide, because older files may have fewer slots."""
        if self.instance is None or not 0 <= port < len(self.graph.inputs):
            return None
        name, slots = self.graph.inputs[port].name, self.instance.inputs
        same_index = item_at(slots, port)
        if same_index is not None and same_index.name == name:
            return same_index
        return next((slot for slot in slots if slot.name == name), None)


def unfold(workflow: Workflow, declarations: Declarations) -> list[tuple[Scope, UINode]]:
    """List every node that is not an instance of a subgraph, with its scope.

    Nodes of the main graph are in the page's order. Nodes of an instance take its position. Instances that are muted or
    bypassed are not unfolded, because their nodes do not run.

    Raises:
        GraphError: A subgraph contains itself (`graph.shape`), or the graph is too large (`graph.too_large`).
    """
    root = Scope(workflow.root)
    promotion = _Promotion(workflow, declarations)
    pending = [(root, node) for node in sorted(workflow.root.nodes.values(), key=_page_order, reverse=True)]
    unfolded, instances = [], 0
    while pending:
        scope, node = pending.pop()
        if node.type not in workflow.subgraphs:
            unfolded.append((scope, node))
        elif node.is_active:
            instances += 1
            inner = _open_instance(promotion, scope, node)
            pending.extend((inner, inner_node) for inner_node in reversed(inner.graph.nodes.values()))
        if len(unfolded) + len(pending) + instances > MAX_NODES_UNFOLDED:
            raise GraphError(
                f"a graph may have {MAX_NODES_UNFOLDED} nodes with its subgraphs unfolded.", code="graph.too_large"
            )
    return unfolded


def _page_order(node: UINode) -> tuple[int, int, str]:
    number = int(node.id) if node.id.isdecimal() and len(node.id) < 19 else 2**63
    return node.order, number, node.id


def _open_instance(promotion: _Promotion, outer: Scope, node: UINode) -> Scope:
    """Create the scope of one instance."""
    if node.type in outer.enclosing:
        raise wrong_shape(f"the subgraph of node {outer.path}{node.id} contains itself")
    if len(outer.enclosing) > MAX_DEPTH:
        raise GraphError(f"subgraphs may be nested {MAX_DEPTH} levels deep.", code="graph.too_large")
    graph = promotion.workflow.subgraphs[node.type]
    port_values = dict(promotion.port_values(node))
    enclosing = outer.enclosing | {node.type}
    scope = Scope(graph, f"{outer.path}{node.id}:", node, outer, enclosing, port_values=port_values)
    for (node_id, widget), value in promotion.proxy_values(node, graph):
        promotion.set_widget(scope, node_id, widget, value)
    for (node_id, widget), value in outer.overrides.items():
        if node_id == node.id:
            promotion.set_port(scope, widget, value)
    outer.inner[node.id] = scope
    return scope


PromotedWidget = tuple[str, str, Any]
"""(node id, widget, value) that a promoted input leads to."""


@dataclass(frozen=True)
class _Promotion:
    """Finds the widgets that an instance shows, and their values. Results are cached by the id() of node or graph."""

    workflow: Workflow
    declarations: Declarations
    _values: dict[int, dict[int, Any]] = field(default_factory=dict)
    _widgets: dict[int, list[PromotedWidget | None]] = field(default_factory=dict)

    def port_values(self, node: UINode, depth: int = 0) -> dict[int, Any]:
        """Return the value of each promoted input by port: the instance's own, else that of its widget."""
        if id(node) not in self._values:
            graph, saved = self.workflow.subgraphs[node.type], node.values
            values: dict[int, Any] = {}
            for port, widget in enumerate(self.promoted_widgets(graph, depth)):
                if widget is None:
                    continue
                index = len(values)
                values[port] = widget[2]
                if isinstance(saved, dict):
                    values[port] = saved.get(graph.inputs[port].name, widget[2])
                elif index < len(saved):
                    values[port] = saved[index]
            self._values[id(node)] = values
        return self._values[id(node)]

    def promoted_widgets(self, graph: UIGraph, depth: int = 0) -> list[PromotedWidget | None]:
        """Return the first widget that each port of a subgraph leads to."""
        if depth > MAX_DEPTH:
            raise wrong_shape("a subgraph contains itself")
        if id(graph) not in self._widgets:
            self._widgets[id(graph)] = [
                next(filter(None, (self._widget_at(graph, link, depth) for link in links)), None)
                for links in _links_by_port(graph)
            ]
        return self._widgets[id(graph)]

    def proxy_values(self, node: UINode, graph: UIGraph) -> Iterator[tuple[tuple[str, str], Any]]:
        """Yield ((node id inside, widget), value) for each entry of `proxyWidgets` that has a value and is a widget."""
        entries, saved = node.properties.get("proxyWidgets"), node.values
        if not isinstance(entries, list) or not isinstance(saved, list):
            return
        for entry, value in zip(entries, saved, strict=False):
            if isinstance(entry, list) and len(entry) >= 2 and value is not None:
                node_id, widget = str(entry[0]), str(entry[1])
                while (prefix := PREFIX.fullmatch(widget)) and not self._has_widget(graph, node_id, widget):
                    widget = prefix[2]
                if self._has_widget(graph, node_id, widget):
                    yield (node_id, widget), value

    def set_widget(self, scope: Scope, node_id: str, widget: str, value: Any) -> None:
        """Set a widget inside `scope`: on the input that leads to it if there is one, else on the node itself."""
        if node_id == "-1":
            self.set_port(scope, widget, value)
            return
        promoted = [target[:2] if target else None for target in self.promoted_widgets(scope.graph)]
        if (node_id, widget) in promoted:
            scope.port_values[promoted.index((node_id, widget))] = value
        else:
            scope.overrides[node_id, widget] = value

    def set_port(self, scope: Scope, name: str, value: Any) -> None:
        """Set the promoted input called `name`, or the one that leads to a widget of that name."""
        port = self._find_port(scope.graph, name)
        if port is not None:
            scope.port_values[port] = value

    def _find_port(self, graph: UIGraph, name: str) -> int | None:
        named = (index for index, port in enumerate(graph.inputs) if port.name == name)
        leading = (index for index, target in enumerate(self.promoted_widgets(graph)) if target and target[1] == name)
        return next(named, next(leading, None))

    def _has_widget(self, graph: UIGraph, node_id: str, widget: str) -> bool:
        """Return True if an entry of `proxyWidgets` is a widget with a value. It may be a preview or the page's own."""
        if node_id == "-1":
            return self._find_port(graph, widget) is not None
        node = graph.nodes.get(node_id)
        if node is None:
            return False
        if node.type in self.workflow.subgraphs:
            return self._find_port(self.workflow.subgraphs[node.type], widget) is not None
        if node.type == "PrimitiveNode":
            return widget == "value"
        return widget in self._widget_values(node)

    def _widget_at(self, graph: UIGraph, link: UILink, depth: int) -> PromotedWidget | None:
        """Return the widget at the end of a link from a port, or None."""
        node = graph.nodes.get(link.target)
        slot = None if node is None else item_at(node.inputs, link.target_slot)
        if node is None or slot is None:
            return None
        if node.type in self.workflow.subgraphs:
            ports = self.workflow.subgraphs[node.type].inputs
            values = self.port_values(node, depth + 1)
            port = next((index for index, port in enumerate(ports) if port.name == slot.name), -1)
            return (node.id, slot.name, values[port]) if port in values else None
        widgets = self._widget_values(node)
        name = slot.widget or slot.name
        return (node.id, name, widgets[name]) if name in widgets else None

    def _widget_values(self, node: UINode) -> Mapping[str, Any]:
        if node.type not in self.declarations.nodes:
            return {}
        return widget_values(self.declarations[node.type].inputs.values(), node.values)


def _links_by_port(graph: UIGraph) -> list[list[UILink]]:
    """Return the links that begin at each port, in the order that it lists them. If it lists none: all of them."""
    starting: dict[int, list[UILink]] = {}
    for link in graph.links.values():
        if link.source == INPUT_NODE:
            starting.setdefault(link.source_slot, []).append(link)
    listed = [[graph.links[link_id] for link_id in port.links if link_id in graph.links] for port in graph.inputs]
    return [links or starting.get(index, []) for index, links in enumerate(listed)]
