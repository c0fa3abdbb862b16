"""Subgraphs unfolded: which boxes a workflow really has, where each lies, and which values it is given from outside.

An instance of a subgraph shows widgets of boxes inside of it (promoted widgets). Their values belong to the instance,
so that two instances of one subgraph may differ. Graphs of 2025 pair them with `properties.proxyWidgets`, others with
the instance's inputs that lead to a widget, in order. Source of the rules: ComfyUI_frontend 1.58, SubgraphNode.ts and
proxyWidgetMigration.ts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import GraphError
from .node_schema import Declarations
from .ui_graph import INPUT_NODE, OUTPUT_NODE, UIGraph, UIInput, UILink, UINode, Workflow, wrong_shape
from .widgets import widget_values

MAX_BOXES = 50_000
"""Boxes of an unfolded workflow, instances of subgraphs among them: subgraphs inside subgraphs multiply."""
MAX_DEPTH = 64

PREFIX = re.compile(r"\s*(\d+)\s*:\s*(.+)", re.DOTALL)
"""How graphs of early 2025 name a widget of a box inside the box that they point to."""


@dataclass(frozen=True, eq=False)
class Scope:
    """A graph with a place: the workflow's own, or one instance of a subgraph.

    path       what stands before the ids of its nodes: "" or "5:" or "5:3:"
    box, outer the instance and where it lies; None for the workflow's own graph
    inner      the instances in it, by the id of their box
    given      values of the instance's promoted inputs, by port
    overrides  values set from outside on boxes of this scope, by (box, widget)
    """

    graph: UIGraph
    path: str
    box: UINode | None
    outer: Scope | None
    inner: dict[str, Scope]
    given: dict[int, Any]
    overrides: dict[tuple[str, str], Any]

    def source_of_output(self, place: int) -> UILink | None:
        """The link inside this instance that brings its output `place`; None when nothing does."""
        ports, links = self.graph.outputs, self.graph.links
        named = ports[place].links if 0 <= place < len(ports) else ()
        found = next((links[each] for each in named if each in links), None)
        return found or next(
            (link for link in links.values() if link.target == OUTPUT_NODE and link.target_slot == place), None
        )

    def outer_input(self, place: int) -> UIInput | None:
        """The slot of the instance's box that stands for its input `place`."""
        return None if self.box is None else input_of_port(self.box, self.graph, place)


def unfold(workflow: Workflow, declarations: Declarations) -> list[tuple[Scope, UINode]]:
    """Every box that is no instance of a subgraph, with its scope: the workflow's by the page's order, those inside an
    instance in its place. Instances that are muted or bypassed stay closed, as what they hold is not to run.

    Raises GraphError: `graph.shape` for a subgraph that holds itself, `graph.too_large`.
    """
    root = Scope(workflow.root, "", None, None, {}, {}, {})
    promotion = _Promotion(workflow, declarations)
    waiting = [(root, node) for node in sorted(workflow.root.nodes.values(), key=_page_order, reverse=True)]
    boxes, opened = [], 0
    while waiting:
        scope, node = waiting.pop()
        if node.type not in workflow.subgraphs:
            boxes.append((scope, node))
        elif node.is_active:
            opened += 1
            inside = _open(promotion, scope, node)
            waiting.extend((inside, each) for each in reversed(inside.graph.nodes.values()))
        if len(boxes) + len(waiting) + opened > MAX_BOXES:
            raise GraphError(f"with its subgraphs unfolded it has over {MAX_BOXES} nodes.", code="graph.too_large")
    return boxes


def input_of_port(box: UINode, graph: UIGraph, place: int) -> UIInput | None:
    """The slot of `box` for port `place` of its subgraph. Names decide: a box saved earlier may have fewer slots."""
    if not 0 <= place < len(graph.inputs):
        return None
    name = graph.inputs[place].name
    if place < len(box.inputs) and box.inputs[place].name == name:
        return box.inputs[place]
    return next((slot for slot in box.inputs if slot.name == name), None)


def _page_order(node: UINode) -> tuple[int, int, str]:
    number = int(node.id) if node.id.isdecimal() and len(node.id) < 19 else 2**63
    return node.order, number, node.id


def _open(promotion: _Promotion, outer: Scope, box: UINode) -> Scope:
    """The inside of one instance."""
    above, depth = outer, 1
    while above.box is not None:
        if above.box.type == box.type:
            raise wrong_shape(f"the subgraph of node {outer.path}{box.id} holds itself")
        if depth > MAX_DEPTH:
            raise GraphError(f"its subgraphs are nested deeper than {MAX_DEPTH}.", code="graph.too_large")
        above, depth = above.outer or outer, depth + 1
    graph = promotion.workflow.subgraphs[box.type]
    scope = Scope(graph, f"{outer.path}{box.id}:", box, outer, {}, dict(promotion.values(box)), {})
    for (node_id, widget), value in promotion.legacy(box, graph):
        promotion.put(scope, node_id, widget, value)
    for (node_id, widget), value in outer.overrides.items():
        if node_id == box.id:
            promotion.put_on_port(scope, widget, value)
    outer.inner[box.id] = scope
    return scope


Target = tuple[str, str, Any]
"""(box, widget, value) that a promoted input leads to."""


@dataclass(frozen=True)
class _Promotion:
    """Which widgets an instance shows, and what they hold. What is found is kept, by the identity of box or graph."""

    workflow: Workflow
    declarations: Declarations
    _values: dict[int, dict[int, Any]] = field(default_factory=dict)
    _targets: dict[int, list[Target | None]] = field(default_factory=dict)

    def values(self, box: UINode, depth: int = 0) -> dict[int, Any]:
        """Port -> value of each promoted input: the instance's own, else that of the widget it leads to."""
        if id(box) not in self._values:
            graph, saved = self.workflow.subgraphs[box.type], box.values
            values: dict[int, Any] = {}
            for place, found in enumerate(self.targets(graph, depth)):
                if found is None:
                    continue
                number, name = len(values), graph.inputs[place].name
                values[place] = found[2]
                if isinstance(saved, dict):
                    values[place] = saved.get(name, found[2])
                elif number < len(saved):
                    values[place] = saved[number]
            self._values[id(box)] = values
        return self._values[id(box)]

    def targets(self, graph: UIGraph, depth: int = 0) -> list[Target | None]:
        """For each port of a subgraph, the first widget that it leads to."""
        if depth > MAX_DEPTH:
            raise wrong_shape("a subgraph holds itself")
        if id(graph) not in self._targets:
            starting = _links_by_port(graph)
            self._targets[id(graph)] = [
                next(filter(None, (self._target(graph, link, depth) for link in starting[place])), None)
                for place in range(len(graph.inputs))
            ]
        return self._targets[id(graph)]

    def legacy(self, box: UINode, graph: UIGraph) -> Iterator[tuple[tuple[str, str], Any]]:
        """((box inside, widget), value) for each entry of `proxyWidgets` that has one and means a widget."""
        entries, saved = box.properties.get("proxyWidgets"), box.values
        if not isinstance(entries, list) or not isinstance(saved, list):
            return
        for entry, value in zip(entries, saved, strict=False):
            if isinstance(entry, list) and len(entry) >= 2 and value is not None:
                node_id, widget = str(entry[0]), str(entry[1])
                while (prefix := PREFIX.fullmatch(widget)) and not self._shows(graph, node_id, widget):
                    widget = prefix[2]
                if self._shows(graph, node_id, widget):
                    yield (node_id, widget), value

    def put(self, scope: Scope, node_id: str, widget: str, value: Any) -> None:
        """Set a widget inside `scope`: on the input that leads to it if there is one, else on the box itself."""
        if node_id == "-1":
            self.put_on_port(scope, widget, value)
            return
        leads = {found[:2]: place for place, found in reversed(list(enumerate(self.targets(scope.graph)))) if found}
        if (node_id, widget) in leads:
            scope.given[leads[node_id, widget]] = value
        else:
            scope.overrides[node_id, widget] = value

    def put_on_port(self, scope: Scope, name: str, value: Any) -> None:
        """Set the promoted input called `name`, or the one that leads to a widget of that name."""
        place = self._port(scope.graph, name)
        if place is not None:
            scope.given[place] = value

    def _port(self, graph: UIGraph, name: str) -> int | None:
        named = (place for place, port in enumerate(graph.inputs) if port.name == name)
        leading = (place for place, found in enumerate(self.targets(graph)) if found and found[1] == name)
        return next(named, next(leading, None))

    def _shows(self, graph: UIGraph, node_id: str, widget: str) -> bool:
        """Whether an entry of `proxyWidgets` means a widget with a value, and not a preview or the page's own."""
        if node_id == "-1":
            return self._port(graph, widget) is not None
        box = graph.nodes.get(node_id)
        if box is None:
            return False
        if box.type in self.workflow.subgraphs:
            return self._port(self.workflow.subgraphs[box.type], widget) is not None
        if box.type == "PrimitiveNode":
            return widget == "value"
        return widget in self._widgets(box)

    def _target(self, graph: UIGraph, link: UILink, depth: int) -> Target | None:
        """The widget at the end of a link from a port, if there is one."""
        box = graph.nodes.get(link.target)
        if box is None or not 0 <= link.target_slot < len(box.inputs):
            return None
        slot = box.inputs[link.target_slot]
        if box.type in self.workflow.subgraphs:
            inside = self.workflow.subgraphs[box.type]
            values = self.values(box, depth + 1)
            port = next((at for at, each in enumerate(inside.inputs) if each.name == slot.name), -1)
            return (box.id, slot.name, values[port]) if port in values else None
        held = self._widgets(box)
        name = slot.widget or slot.name
        return (box.id, name, held[name]) if name in held else None

    def _widgets(self, box: UINode) -> Mapping[str, Any]:
        if box.type not in self.declarations.nodes:
            return {}
        return widget_values(self.declarations[box.type].inputs.values(), box.values)


def _links_by_port(graph: UIGraph) -> list[list[UILink]]:
    """For each port the links that start there, in the order that it lists them; all that do, if it lists none."""
    found: dict[int, list[UILink]] = {}
    for link in graph.links.values():
        if link.source == INPUT_NODE:
            found.setdefault(link.source_slot, []).append(link)
    listed = [[graph.links[each] for each in port.links if each in graph.links] for port in graph.inputs]
    return [links or found.get(place, []) for place, links in enumerate(listed)]
