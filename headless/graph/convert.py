"""Convert UI format (saved by ComfyUI's page) to API format (executed), as the page does when it queues a graph.

Source of the rules: ComfyUI_frontend 1.58, executionUtil.ts and ExecutableNodeDTO.ts. Group nodes, a format of 2024,
are refused. The current page converts them to subgraphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import GraphError
from .node_schema import Declaration, Declarations
from .prompt import WRAPPED, Prompt, one_line, wrap_list
from .subgraphs import Scope, unfold
from .suggestions import Hints
from .text_substitution import Replacements, choose_alternatives
from .ui_graph import (
    BYPASSED,
    INPUT_NODE,
    MUTED,
    UIInput,
    UILink,
    UINode,
    Workflow,
    item_at,
    read_ui_graph,
    wrong_shape,
)
from .widgets import widget_values

NOTES = ("Note", "MarkdownNote")
VIRTUAL = (*NOTES, "PrimitiveNode", "Reroute", "GetNode", "SetNode")
"""Node types that exist only on the page, unless a class has the name."""

MAX_LISTED = 20
"""Unknown types, and nodes of one type, that an error lists."""


@dataclass(frozen=True)
class _Constant:
    """The value of a primitive or a promoted widget, which an input gets instead of a link."""

    value: Any


def to_api(
    workflow: Mapping[str, Any], nodes: Mapping[str, type], display_names: Mapping[str, str] | None = None
) -> Prompt:
    """Convert a UI-format graph to API format.

    - Muted nodes and virtual nodes (notes, reroutes, primitives, Get and Set nodes) are left out.
    - A bypassed node passes each output on from the input that the page would choose.
    - A subgraph becomes its nodes, with the values of its promoted widgets. The id 5:3 is node 3 in instance 5.
    - A widget with a linked socket gets the link. If the link has no source, it gets its saved value.
    - Of alternatives in a prompt ("{a|b}") one is chosen, always the same for the same graph.
    - Nodes are in the page's order (`order`), then by id.

    Args:
        workflow: The graph in UI format.
        nodes: Node classes by class type.
        display_names: Titles of nodes without a title of their own, by class type.

    Raises:
        GraphError: The graph differs from what ComfyUI saves (`graph.shape`). Node types are unknown, with the nearest
            known ones (`graph.missing_node_type`). It has group nodes or inputs that change with a choice
            (`graph.unsupported`).
    """
    parsed = read_ui_graph(workflow)
    declarations = Declarations(nodes)
    active = [
        (scope, node) for scope, node in unfold(parsed, declarations) if node.is_active and not _is_virtual(node, nodes)
    ]
    _check_types(parsed, active, nodes)
    names = display_names or {}
    titles = [node.title or names.get(node.type, node.type) for _, node in active]
    widgets = [_widgets_of(scope, node, declarations) for scope, node in active]
    replacements = Replacements(zip((node for _, node in active), titles, widgets, strict=True))
    resolver = _Resolver(parsed, nodes)
    prompt = {}
    for (scope, node), title, saved in zip(active, titles, widgets, strict=True):
        node_id = scope.path + node.id
        values = replacements.fill_prefix(node.type, saved)
        values = choose_alternatives(declarations[node.type].inputs.values(), values, node_id)
        inputs = _wrap_values(values, declarations[node.type]) | _linked_inputs(scope, node, resolver)
        if node_id in prompt:
            raise wrong_shape(f"two nodes have the id {node_id}")
        prompt[node_id] = {"class_type": node.type, "inputs": inputs, "_meta": {"title": title}}
    return _drop_dangling_links(prompt)


def _is_virtual(node: UINode, nodes: Mapping[str, type]) -> bool:
    return node.type in VIRTUAL and node.type not in nodes


def _check_types(parsed: Workflow, active: list[tuple[Scope, UINode]], nodes: Mapping[str, type]) -> None:
    unknown: dict[str, list[str]] = {}
    for scope, node in active:
        node_id = scope.path + node.id
        if node.type.startswith(("workflow>", "workflow/")) or node.type in parsed.groups:
            raise GraphError(
                f'node {_short(node_id)} ("{_short(node.title or node.type)}") is a group node, which cannot be '
                "converted. Convert it to a subgraph in ComfyUI, or export the graph there with Export (API).",
                code="graph.unsupported",
            )
        if node.type not in nodes:
            unknown.setdefault(node.type, []).append(node_id)
    if unknown:
        hints = Hints()
        listed = [_unknown_type(*item, hints.near(item[0], nodes)) for item in list(unknown.items())[:MAX_LISTED]]
        raise GraphError(
            f"unknown node types: {', '.join(listed)}. Remove these nodes, or run the graph in a ComfyUI that has "
            "them.",
            code="graph.missing_node_type",
        )


def _unknown_type(node_type: str, ids: list[str], nearest: str | None) -> str:
    numbered = f"{'node' if len(ids) == 1 else 'nodes'} {', '.join(ids[:MAX_LISTED])}"
    return one_line(f'"{_short(node_type)}" ({numbered}{"; nearest are " + nearest if nearest else ""})')


def _short(text: str) -> str:
    return one_line(text, 100)


def _widgets_of(scope: Scope, node: UINode, declarations: Declarations) -> dict[str, Any]:
    """Return the values of a node's widgets: saved, or set by an instance of its subgraph."""
    declaration = declarations[node.type]
    for declared in declaration.inputs.values():
        if declared.kind == "COMFY_DYNAMICCOMBO_V3":
            raise GraphError(
                f'node {_short(scope.path + node.id)} ({_short(node.type)}) has an input "{_short(declared.name)}" '
                "whose choice changes its other inputs, which cannot be converted. Export the graph in ComfyUI with "
                "Export (API).",
                code="graph.unsupported",
            )
    values = widget_values(declaration.inputs.values(), node.values)
    return values | {widget: value for (box, widget), value in scope.overrides.items() if box == node.id}


def _linked_inputs(scope: Scope, node: UINode, resolver: _Resolver) -> dict[str, Any]:
    """Return the inputs of a node that get a value through links."""
    inputs = {}
    for slot in node.inputs:
        source = resolver.follow(scope, slot)
        if isinstance(source, _Constant):
            inputs[slot.name] = wrap_list(source.value)
        elif source is not None:
            inputs[slot.name] = list(source)
    return inputs


def _wrap_values(values: Mapping[str, Any], declaration: Declaration) -> dict[str, Any]:
    """Wrap lists, so that they are not taken for links. A curve is marked with its type, as the page does."""
    curves = {declared.name for declared in declaration.inputs.values() if declared.kind == "CURVE"}
    return {
        name: {"__type__": "CURVE", WRAPPED: value} if value and name in curves else wrap_list(value)
        for name, value in values.items()
    }


def _drop_dangling_links(prompt: Prompt) -> Prompt:
    """Remove links to nodes that were left out, as the page does. Every list is a link, because values are wrapped."""
    for node in prompt.values():
        node["inputs"] = {
            name: value for name, value in node["inputs"].items() if not isinstance(value, list) or value[0] in prompt
        }
    return prompt


@dataclass(frozen=True)
class _Step:
    """A position while a link is followed back: an input slot, and the type that the final input wants."""

    scope: Scope
    slot: UIInput | None
    wanted: str


@dataclass(frozen=True)
class _Resolver:
    """Follows links back through virtual nodes, out of subgraphs and into them.

    Results are cached: `_known` has the (node id, slot) that a (path, link, wanted type) leads to.
    """

    workflow: Workflow
    nodes: Mapping[str, type]
    _known: dict[tuple[str, str, str], tuple[str, int] | None] = field(default_factory=dict)

    def follow(self, scope: Scope, slot: UIInput) -> tuple[str, int] | _Constant | None:
        """Return the (node id, slot) or constant that an input gets, or None.

        Raises:
            GraphError: Virtual nodes form a cycle (`graph.shape`).
        """
        if self._is_from_primitive(scope, slot):
            link = scope.graph.links[str(slot.link)]
            return _primitive_value(scope, scope.graph.nodes[link.source]) if slot.widget is not None else None
        position: _Step | tuple[str, int] | _Constant | None = _Step(scope, slot, slot.type)
        visited: dict[tuple[str, str, str], None] = {}
        while isinstance(position, _Step):
            if position.slot is None or position.slot.link is None:
                position = None
                break
            key = (position.scope.path, position.slot.link, position.wanted)
            if key in visited:
                raise wrong_shape(f"link {position.slot.link} is part of a cycle of virtual nodes")
            visited[key] = None
            position = self._known[key] if key in self._known else self._step_back(position, position.slot.link)
        if not isinstance(position, _Constant):
            self._known.update(dict.fromkeys(visited, position))
        return position

    def _is_from_primitive(self, scope: Scope, slot: UIInput) -> bool:
        """Return True if a primitive is linked directly. The page writes its value into the widget, muted or not."""
        link = scope.graph.links.get(slot.link or "")
        source = scope.graph.nodes.get(link.source) if link is not None else None
        return source is not None and source.type == "PrimitiveNode" and _is_virtual(source, self.nodes)

    def _step_back(self, position: _Step, link_id: str) -> _Step | tuple[str, int] | _Constant | None:
        """Go back along one link."""
        scope = position.scope
        link = scope.graph.links.get(link_id)
        if link is None:
            return None
        if link.source != INPUT_NODE or scope.outer is None:
            return self._source_of(scope, link, position.wanted)
        outer_slot = scope.outer_input(link.source_slot)
        if outer_slot is not None and outer_slot.link is not None:
            return _Step(scope.outer, outer_slot, outer_slot.type)
        port = link.source_slot
        return _Constant(scope.port_values[port]) if port in scope.port_values else None

    def _source_of(self, scope: Scope, link: UILink, wanted: str) -> _Step | tuple[str, int] | None:
        """Return the node at the source of a link, or the input behind a node that is left out."""
        while True:
            source = scope.graph.nodes.get(link.source)
            if source is None or source.mode == MUTED:
                return None
            if source.mode == BYPASSED:
                slot = _bypass_input(source, link.source_slot, wanted)
                return _Step(scope, slot, slot.type if slot is not None else "*")
            if source.type not in self.workflow.subgraphs:
                break
            scope = scope.inner[source.id]
            inner_link = scope.source_of_output(link.source_slot)
            if inner_link is None:
                return None
            if inner_link.source == INPUT_NODE:  # the subgraph returns its input
                slot = scope.outer_input(inner_link.source_slot)
                return _Step(scope.outer or scope, slot, slot.type if slot is not None else "*")
            link = inner_link
        if not _is_virtual(source, self.nodes):
            return (scope.path + source.id, link.source_slot)
        if source.type == "PrimitiveNode":
            return None  # the page writes only into widgets that are linked directly
        if source.type == "GetNode":
            scope, source = self._find_setter(scope, source)
        return _Step(scope, item_at(source.inputs, link.source_slot), wanted)

    def _find_setter(self, scope: Scope, getter: UINode) -> tuple[Scope, UINode]:
        """Return the only Set node with the name of a Get node: in the same graph, else in an outer one."""
        name = str(getter.first_value)
        matches: list[tuple[Scope, UINode]] = []
        searched: Scope | None = scope
        while searched is not None and not matches:
            matches = [(searched, node) for node in searched.graph.setters.get(name, ())]
            searched = searched.outer
        if len(matches) != 1:
            raise GraphError(
                f"node {_short(scope.path + getter.id)} (GetNode) needs exactly one Set node with the name "
                f'"{_short(name)}", got {len(matches)}.',
                code="graph.shape",
            )
        return matches[0]


def _primitive_value(scope: Scope, node: UINode) -> _Constant | None:
    if (node.id, "value") in scope.overrides:
        return _Constant(scope.overrides[node.id, "value"])
    return _Constant(node.first_value) if isinstance(node.values, list) and node.values else None


def _bypass_input(node: UINode, output: int, wanted: str) -> UIInput | None:
    """Return the input that a bypassed node passes on as an output.

    The input at the same index, if its type fits the output and `wanted`. Else the first of exactly type `wanted`. Else
    the first that fits both. If `wanted` is "*": the one at the same index, else the first.
    """
    inputs, same_index = node.inputs, item_at(node.inputs, output)
    if wanted == "*":
        return same_index or item_at(inputs, 0)
    output_type = item_at(node.output_types, output) or "*"

    def fits(slot: UIInput) -> bool:
        return _connects(slot.type, output_type) and _connects(slot.type, wanted)

    if same_index is not None and fits(same_index):
        return same_index
    exact = (slot for slot in inputs if slot.type == wanted)
    return next(exact, None) or next(filter(fits, inputs), None)


def _connects(first: str, second: str) -> bool:
    """Return True if the page lets two types connect: "*" with all, unions with a common member, any case."""
    if "*" in (first, second):
        return True
    return not {part.strip().lower() for part in first.split(",")}.isdisjoint(
        part.strip().lower() for part in second.split(",")
    )
