"""UI format (what ComfyUI's page saves) to API format (what runs), as the page does when it queues a graph.

Source of the rules: ComfyUI_frontend 1.58, executionUtil.ts and ExecutableNodeDTO.ts. Group nodes, the kind of 2024,
are refused by name: today's page makes subgraphs of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import GraphError
from .node_schema import Declaration, Declarations
from .prompt import WRAPPED, Prompt, one_line
from .subgraphs import Scope, unfold
from .suggestions import Hints
from .text_substitution import Replacements, choose_alternatives
from .ui_graph import (
    BYPASSED,
    INPUT_NODE,
    MUTED,
    UIGraph,
    UIInput,
    UILink,
    UINode,
    Workflow,
    read_ui_graph,
    wrong_shape,
)
from .widgets import widget_values

NOTES = ("Note", "MarkdownNote")
VIRTUAL = (*NOTES, "PrimitiveNode", "Reroute", "GetNode", "SetNode")
"""Boxes that exist on the page alone; unless a class has the name."""

MAX_LISTED = 20
"""Unknown types, and nodes of one type, that an error lists."""


@dataclass(frozen=True)
class _Constant:
    """What a primitive or a promoted widget brings instead of a link."""

    value: Any


def to_api(
    workflow: Mapping[str, Any], nodes: Mapping[str, type], display_names: Mapping[str, str] | None = None
) -> Prompt:
    """The API-format graph of a UI-format one.

    Muted nodes and what the page alone knows (notes, reroutes, primitives, Get and Set nodes) are left out; a bypassed
    node passes each output on from the input that the page would choose. A subgraph becomes its nodes, with ids as
    ComfyUI gives them (5:3 is node 3 in instance 5) and the values of its promoted widgets. A widget whose socket is
    linked takes the link when it leads somewhere, else its saved value. Of alternatives in a prompt ("{a|b}") one is
    taken, the same for the same graph. Nodes come in the order that the page computed (`order`), ties by id. Titles
    come from the user, else from `display_names`.

    Raises GraphError: `graph.shape` for what ComfyUI does not save, `graph.missing_node_type` naming all unknown types
    with the nearest known ones, `graph.unsupported` for group nodes and inputs that change with a choice.
    """
    read = read_ui_graph(workflow)
    declarations = Declarations(nodes)
    boxes = unfold(read, declarations)
    emitted = [(scope, node) for scope, node in boxes if node.is_active and not _is_virtual(node, nodes)]
    _refuse_unknown(read, emitted, nodes)
    names = display_names or {}
    shown = {(id(scope), node.id): _shown_values(scope, node, declarations) for scope, node in emitted}
    replacements = Replacements(
        (node, node.title or names.get(node.type, node.type), shown[id(scope), node.id]) for scope, node in emitted
    )
    resolver = _Resolver(read, nodes)
    prompt = {}
    for scope, node in emitted:
        values = replacements.applied(node.type, shown[id(scope), node.id])
        values = choose_alternatives(declarations[node.type].inputs.values(), values, scope.path + node.id)
        inputs = _wrapped(values, declarations[node.type]) | _linked(scope, node, resolver)
        title = node.title or names.get(node.type, node.type)
        if scope.path + node.id in prompt:
            raise wrong_shape(f"two nodes have the id {scope.path}{node.id}")
        prompt[scope.path + node.id] = {"class_type": node.type, "inputs": inputs, "_meta": {"title": title}}
    return _without_links_to_nothing(prompt)


def _is_virtual(node: UINode, nodes: Mapping[str, type]) -> bool:
    return node.type in VIRTUAL and node.type not in nodes


def _refuse_unknown(read: Workflow, emitted: list[tuple[Scope, UINode]], nodes: Mapping[str, type]) -> None:
    unknown: dict[str, list[str]] = {}
    for scope, node in emitted:
        node_id = scope.path + node.id
        if node.type.startswith(("workflow>", "workflow/")) or node.type in read.groups:
            raise _group_node(node, node_id)
        if node.type not in nodes:
            unknown.setdefault(node.type, []).append(node_id)
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


def _group_node(node: UINode, node_id: str) -> GraphError:
    return GraphError(
        f'node {_short(node_id)} ("{_short(node.title or node.type)}") is a group node, which cannot be converted. '
        "Open the graph in ComfyUI and turn it into a subgraph, or export it there with Export (API).",
        code="graph.unsupported",
    )


def _short(text: str) -> str:
    return one_line(text, 100)


def _shown_values(scope: Scope, node: UINode, declarations: Declarations) -> dict[str, Any]:
    """What the widgets of a box show: saved, or set from outside its subgraph."""
    declaration = declarations[node.type]
    _refuse_changing_inputs(declaration, scope.path + node.id)
    values = widget_values(declaration.inputs.values(), node.values)
    return values | {widget: value for (box, widget), value in scope.overrides.items() if box == node.id}


def _refuse_changing_inputs(declaration: Declaration, node_id: str) -> None:
    for declared in declaration.inputs.values():
        if declared.kind == "COMFY_DYNAMICCOMBO_V3":
            raise GraphError(
                f'node {_short(node_id)} ({_short(declaration.class_type)}) has an input "{_short(declared.name)}" '
                "whose choice changes its other inputs, which cannot be converted. Export the graph in ComfyUI with "
                "Export (API).",
                code="graph.unsupported",
            )


def _linked(scope: Scope, node: UINode, resolver: _Resolver) -> dict[str, Any]:
    """What comes to a box through links."""
    inputs = {}
    for slot in node.inputs:
        found = resolver.follow(scope, slot)
        if isinstance(found, _Constant):
            inputs[slot.name] = _wrap(found.value)
        elif found is not None:
            inputs[slot.name] = list(found)
    return inputs


def _wrapped(values: Mapping[str, Any], declaration: Declaration) -> dict[str, Any]:
    """A curve is marked as one, so that its points are no list of links."""
    curves = [each.name for each in declaration.inputs.values() if each.kind == "CURVE" and values.get(each.name)]
    return {
        name: {"__type__": "CURVE", WRAPPED: value} if name in curves else _wrap(value)
        for name, value in values.items()
    }


def _wrap(value: Any) -> Any:
    return {WRAPPED: value} if isinstance(value, list) else value


def _without_links_to_nothing(prompt: Prompt) -> Prompt:
    """The page drops links to nodes that it has dropped; a value is wrapped, so that every list is a link."""
    for node in prompt.values():
        gone = [name for name, value in node["inputs"].items() if isinstance(value, list) and value[0] not in prompt]
        for name in gone:
            del node["inputs"][name]
    return prompt


@dataclass(frozen=True)
class _Resolver:
    """Follows links back through what the page alone knows, out of subgraphs and into them."""

    read: Workflow
    nodes: Mapping[str, type]
    _known: dict[tuple[str, str, str], tuple[str, int] | None] = field(default_factory=dict)
    """Where links lead that were followed before: (path, link, wanted type) -> (node id, slot)."""
    _setters: dict[int, dict[str, list[UINode]]] = field(default_factory=dict)

    def follow(self, scope: Scope, slot: UIInput) -> tuple[str, int] | _Constant | None:
        """The (node id, slot) or constant that reaches an input; None when nothing does.

        Raises GraphError (`graph.shape`) when virtual nodes lead round in a circle.
        """
        if self._is_from_primitive(scope, slot):
            link = scope.graph.links[str(slot.link)]
            return _primitive(scope, scope.graph.nodes[link.source]) if slot.widget is not None else None
        at: _Step | tuple[str, int] | _Constant | None = _Step(scope, slot, slot.type)
        seen: dict[tuple[str, str, str], None] = {}
        while isinstance(at, _Step):
            if at.slot is None or at.slot.link is None:
                at = None
                break
            key = (at.scope.path, at.slot.link, at.wanted)
            if key in seen:
                raise wrong_shape(f"link {at.slot.link} leads back to itself through boxes of the page alone")
            seen[key] = None
            at = self._known[key] if key in self._known else self._before(at, at.slot.link)
        if not isinstance(at, _Constant):
            self._known.update(dict.fromkeys(seen, at))
        return at

    def _is_from_primitive(self, scope: Scope, slot: UIInput) -> bool:
        """The page writes a primitive's value into the widgets that it is joined to, muted or not, and no farther."""
        link = scope.graph.links.get(slot.link or "")
        source = scope.graph.nodes.get(link.source) if link is not None else None
        return source is not None and source.type == "PrimitiveNode" and _is_virtual(source, self.nodes)

    def _before(self, at: _Step, link_id: str) -> _Step | tuple[str, int] | _Constant | None:
        """One step back along a link."""
        link = at.scope.graph.links.get(link_id)
        if link is None:
            return None
        if link.source != INPUT_NODE or at.scope.outer is None:
            return self.step(at.scope, link, at.wanted)
        outer = at.scope.outer_input(link.source_slot)
        if outer is not None and outer.link is not None:
            return _Step(at.scope.outer, outer, outer.type)
        given = at.scope.given
        return _Constant(given[link.source_slot]) if link.source_slot in given else None

    def step(self, scope: Scope, link: UILink, wanted: str) -> _Step | tuple[str, int] | _Constant | None:
        """From the source of a link to what stands behind it, through the instances of subgraphs that it lies in."""
        while True:
            source = scope.graph.nodes.get(link.source)
            if source is None or source.mode == MUTED:
                return None
            if source.mode == BYPASSED:
                slot = _bypass_input(source, link.source_slot, wanted)
                return _Step(scope, slot, slot.type if slot is not None else "*")
            if source.type not in self.read.subgraphs:
                break
            scope = scope.inner[source.id]
            inside = scope.source_of_output(link.source_slot)
            if inside is None:
                return None
            if inside.source == INPUT_NODE:  # straight through
                slot = scope.outer_input(inside.source_slot)
                return _Step(scope.outer or scope, slot, slot.type if slot is not None else "*")
            link = inside
        if not _is_virtual(source, self.nodes):
            return (scope.path + source.id, link.source_slot)
        if source.type == "PrimitiveNode":
            return None  # it is farther away than the page writes
        return self.virtual_input(scope, source, link.source_slot, wanted)

    def virtual_input(self, scope: Scope, node: UINode, place: int, wanted: str) -> _Step:
        """The input that stands behind output `place` of a reroute, a Get or a Set node."""
        if node.type == "GetNode":
            scope, node = self.setter_of(scope, node)
        return _Step(scope, node.inputs[place] if 0 <= place < len(node.inputs) else None, wanted)

    def setter_of(self, scope: Scope, getter: UINode) -> tuple[Scope, UINode]:
        """The one Set node with the name that `getter` asks for: in its own graph, else in one around it."""
        name, around = str(_first(getter)), scope
        found: list[tuple[Scope, UINode]] = []
        while around is not None and not found:
            found = [(around, node) for node in self._setters_in(around.graph).get(name, ())]
            around = around.outer
        if len(found) != 1:
            raise GraphError(
                f'node {_short(scope.path + getter.id)} (GetNode) asks for "{_short(name)}", which {len(found)} '
                "Set nodes set; one must.",
                code="graph.shape",
            )
        return found[0]

    def _setters_in(self, graph: UIGraph) -> dict[str, list[UINode]]:
        """The Set nodes of a graph by the name that they set."""
        if id(graph) not in self._setters:
            named: dict[str, list[UINode]] = {}
            for node in graph.nodes.values():
                if node.type == "SetNode":
                    named.setdefault(str(_first(node)), []).append(node)
            self._setters[id(graph)] = named
        return self._setters[id(graph)]


@dataclass(frozen=True)
class _Step:
    """Where to go on: a slot, and the type that whoever takes its value wants."""

    scope: Scope
    slot: UIInput | None
    wanted: str


def _primitive(scope: Scope, node: UINode) -> _Constant | None:
    if (node.id, "value") in scope.overrides:
        return _Constant(scope.overrides[node.id, "value"])
    values = node.values
    return _Constant(values[0]) if isinstance(values, list) and values else None


def _first(node: UINode) -> Any:
    return node.values[0] if isinstance(node.values, list) and node.values else None


def _bypass_input(node: UINode, place: int, wanted: str) -> UIInput | None:
    """The input that a bypassed node passes on as output `place` to an input of type `wanted`.

    The one at the same place when its type fits the output and the input; else the first of exactly the wanted type;
    else the first that fits both. For an input that takes anything, the one at the same place, else the first.
    """
    inputs = node.inputs
    if wanted == "*":
        return inputs[place] if 0 <= place < len(inputs) else (inputs[0] if inputs else None)
    given = node.output_types[place] if 0 <= place < len(node.output_types) else "*"

    def fits(each: UIInput) -> bool:
        return _connects(each.type, given) and _connects(each.type, wanted)

    if 0 <= place < len(inputs) and fits(inputs[place]):
        return inputs[place]
    exact = (each for each in inputs if each.type == wanted)
    return next(exact, None) or next((each for each in inputs if fits(each)), None)


def _connects(one: str, other: str) -> bool:
    """Whether the page lets two types be joined: any with anything, unions that share a member, case ignored."""
    if "*" in (one, other):
        return True
    return bool({part.strip().lower() for part in one.split(",")} & {part.strip().lower() for part in other.split(",")})
