"""UI format (what ComfyUI's page saves) to API format (what runs), as the page does when it queues a graph.

Subgraphs and group nodes are refused by name: they come with the features that expand graphs. Dynamic prompts
("{a|b}") are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import GraphError
from .declared import Declarations
from .hints import Hints
from .prompt import WRAPPED, Prompt, one_line
from .ui_graph import BYPASSED, MUTED, UIGraph, UIInput, UINode, read_ui_graph
from .widgets import widget_values

NOTES = ("Note", "MarkdownNote")
VIRTUAL = (*NOTES, "PrimitiveNode", "Reroute", "GetNode", "SetNode")
"""Boxes that exist on the page alone; unless a class has the name."""

MAX_LISTED = 20
"""Unknown types, and nodes of one type, that an error lists."""


@dataclass(frozen=True)
class _Constant:
    """What a primitive brings instead of a link."""

    value: Any


def to_api(
    workflow: Mapping[str, Any], nodes: Mapping[str, type], display_names: Mapping[str, str] | None = None
) -> Prompt:
    """The API-format graph of a UI-format one.

    Muted nodes and what the page alone knows (notes, reroutes, primitives, Get and Set nodes) are left out; a bypassed
    node passes each output on from the input that the page would choose. A widget whose socket is linked takes the
    link when it leads somewhere, else its saved value. Nodes come in the order that the page computed (`order`), ties
    by id. Titles come from the user, else from `display_names`.

    Raises GraphError: `graph.shape` for what ComfyUI does not save, `graph.missing_node_type` naming all unknown types
    with the nearest known ones, `graph.unsupported` for subgraphs and group nodes.
    """
    graph = read_ui_graph(workflow)
    emitted = sorted(
        (node for node in graph.nodes.values() if node.is_active and not _is_virtual(node, nodes)),
        key=lambda node: (node.order, *_id_order(node.id)),
    )
    _refuse_unknown(graph, emitted, nodes)
    declarations = Declarations(nodes)
    resolver = _Resolver(graph, nodes)
    prompt = {}
    for node in emitted:
        title = node.title or (display_names or {}).get(node.type, node.type)
        inputs = _node_inputs(node, declarations, resolver)
        prompt[node.id] = {"class_type": node.type, "inputs": inputs, "_meta": {"title": title}}
    return prompt


def _is_virtual(node: UINode, nodes: Mapping[str, type]) -> bool:
    return node.type in VIRTUAL and node.type not in nodes


def _id_order(node_id: str) -> tuple[int, str]:
    return (int(node_id), "") if node_id.isdecimal() and len(node_id) < 19 else (2**63, node_id)


def _refuse_unknown(graph: UIGraph, emitted: list[UINode], nodes: Mapping[str, type]) -> None:
    unknown: dict[str, list[str]] = {}
    for node in emitted:
        if node.type in graph.subgraphs:
            raise _no_grouping(node, "a subgraph")
        if node.type.startswith(("workflow>", "workflow/")) or node.type in graph.groups:
            raise _no_grouping(node, "a group node")
        if node.type not in nodes:
            unknown.setdefault(node.type, []).append(node.id)
    if unknown:
        hints = Hints()
        listed = [_unknown_type(*each, hints.near(each[0], nodes)) for each in list(unknown.items())[:MAX_LISTED]]
        raise GraphError(
            f"node types that are not known here: {', '.join(listed)}. Take these nodes out, or run the graph in a "
            "ComfyUI that has them.",
            code="graph.missing_node_type",
        )


def _unknown_type(node_type: str, ids: list[str], near: str | None) -> str:
    places = f"{'node' if len(ids) == 1 else 'nodes'} {', '.join(ids[:MAX_LISTED])}"
    return one_line(f'"{_short(node_type)}" ({places}{"; nearest are " + near if near else ""})')


def _no_grouping(node: UINode, what: str) -> GraphError:
    label = f'node {_short(node.id)} ("{_short(node.title or node.type)}")'
    return GraphError(
        f"{label} is {what}, which cannot be converted yet. Unpack it in ComfyUI, or export the graph there with "
        "Export (API).",
        code="graph.unsupported",
    )


def _short(text: str) -> str:
    return one_line(text, 100)


def _node_inputs(node: UINode, declarations: Declarations, resolver: _Resolver) -> dict[str, Any]:
    """Widget values first, then what comes through links, as the page fills them in."""
    declared = declarations[node.type].inputs
    inputs = {name: _wrap(value) for name, value in widget_values(declared.values(), node.values).items()}
    for slot in node.inputs:
        found = resolver.follow(slot, slot.type)
        if isinstance(found, _Constant):
            inputs[slot.name] = _wrap(found.value)
        elif found is not None:
            inputs[slot.name] = list(found)
    return inputs


def _wrap(value: Any) -> Any:
    return {WRAPPED: value} if isinstance(value, list) else value


@dataclass(frozen=True)
class _Resolver:
    """Follows links back through what the page alone knows."""

    graph: UIGraph
    nodes: Mapping[str, type]

    def follow(self, slot: UIInput | None, wanted: str) -> tuple[str, int] | _Constant | None:
        """The (node id, slot) or constant that reaches an input of type `wanted`; None when nothing does.

        Raises GraphError (`graph.shape`) when virtual nodes lead round in a circle.
        """
        seen = set()
        while slot is not None and slot.link is not None:
            if slot.link in seen:
                raise GraphError(f"link {slot.link} leads back to itself through reroutes.", code="graph.shape")
            seen.add(slot.link)
            source_id, place = self.graph.links.get(slot.link, ("", 0))
            source = self.graph.nodes.get(source_id)
            if source is None or source.mode == MUTED:
                return None
            if source.mode == BYPASSED:
                slot = _bypass_input(source, place, wanted)
            elif not _is_virtual(source, self.nodes):
                return (source.id, place)
            elif source.type == "PrimitiveNode":
                values = source.values
                return _Constant(values[0]) if isinstance(values, list) and values else None
            else:
                slot = self.virtual_input(source, place)
        return None

    def virtual_input(self, node: UINode, place: int) -> UIInput | None:
        """The input that stands behind output `place` of a reroute, a Get or a Set node."""
        if node.type == "GetNode":
            node = self.setter_of(node)
        return node.inputs[place] if place < len(node.inputs) else None

    def setter_of(self, getter: UINode) -> UINode:
        """The one Set node with the name that `getter` asks for."""
        name = _first(getter)
        found = [node for node in self.graph.nodes.values() if node.type == "SetNode" and _first(node) == name]
        if len(found) != 1:
            raise GraphError(
                f'node {_short(getter.id)} (GetNode) asks for "{_short(str(name))}", which {len(found)} Set nodes set; '
                "one must.",
                code="graph.shape",
            )
        return found[0]


def _first(node: UINode) -> Any:
    return node.values[0] if isinstance(node.values, list) and node.values else None


def _bypass_input(node: UINode, place: int, wanted: str) -> UIInput | None:
    """The input that a bypassed node passes on as output `place` to an input of type `wanted`.

    The one at the same place when its type fits the output and the input; else the first of exactly the wanted type;
    else the first that fits both. For an input that takes anything, the one at the same place, else the first.
    """
    inputs = node.inputs
    if wanted == "*":
        return inputs[place] if place < len(inputs) else (inputs[0] if inputs else None)
    given = node.output_types[place] if place < len(node.output_types) else "*"

    def fits(each: UIInput) -> bool:
        return _connects(each.type, given) and _connects(each.type, wanted)

    if place < len(inputs) and fits(inputs[place]):
        return inputs[place]
    exact = (each for each in inputs if each.type == wanted)
    return next(exact, None) or next((each for each in inputs if fits(each)), None)


def _connects(one: str, other: str) -> bool:
    """Whether the page lets two types be joined: any with anything, unions that share a member, case ignored."""
    if "*" in (one, other):
        return True
    return bool({part.strip().lower() for part in one.split(",")} & {part.strip().lower() for part in other.split(",")})
