"""Create graphs and files with a few random faults. Equal seeds give equal results."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svd_stages.headless.graph.node_schema import Declarations

NAN, INFINITY = math.nan, math.inf
ODD_CONSTANTS: list[Any] = [
    None, True, False, 0, -1, 3.7, -0.0, 1e300, NAN, INFINITY, -INFINITY, 2**63, 2**64, -(10**30), 10**30, 10**400,
    "", "x", "7", " 7 ", "1_0", "3.7", "0x10", "-1", "nan", "inf", "1e999", "True", "٣", "a\0b", "\ud800", "p" * 5000,
    {}, {"a": 1}, {"a": [NAN]}, {"__value__": None}, {"__value__": 7}, {"__value__": "7"}, {"__value__": [1, 2, 3]},
    {"__value__": []}, {"__value__": {"__value__": 1}}, {"__value__": 1, "more": 2}, {"__value__": NAN},
]  # fmt: skip
ODD_SLOTS: list[Any] = [
    -1, -2, -9, 1, 2, 3, 99, 10**30, 0.0, 1.0, 0.5, -0.5, NAN, INFINITY, True, False, "0", "x", "", None, [], [0], {},
]  # fmt: skip
ODD_SOURCES: list[Any] = ["gone", "", " ", "__proto__", "A", 0, 1, 1.5, True, None, [], {}]
ODD_IDS = [
    "", " ", "a b", "é", "日本", "\U0001f680", "__proto__", "constructor", "a.b", "a=b", "0", "-1", "1e3", "a\nb",
    "\x1b[31m", "x" * 3000, "nodes", "prompt", "inputs", "None", "null",
]  # fmt: skip
ODD_CLASSES: list[Any] = [
    None, "", "Numbr", "number", "Show ", "__proto__", 5, True, 1.5, [], ["Number"], {}, "é" * 300,
]  # fmt: skip
ODD_INPUTS: list[Any] = [None, [], {}, "", "inputs", 5, True, [["value", 1]]]
ODD_METAS: list[Any] = [None, "title", [], {}, {"title": None}, {"title": 5}, {"title": "\n\x1b"}, {"title": []}]
ODD_NODES: list[Any] = [None, 5, "node", [], {}, True, 0.4, {"inputs": {}}, {"class_type": "Number"}, [{"id": 1}]]
ODD_PROMPTS: list[Any] = [[], {}, None, "graph", 5, {"nodes": []}, {"nodes": 5}, {"last_node_id": 3}]
ODD_CHANGES: list[Any] = [None, 1, NAN, "x", [NAN], {}, {"a": [1]}]


def _has_inputs(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


def _is_any(value: Any) -> bool:
    return True


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_not_list(value: Any) -> bool:
    return not isinstance(value, list)


def _is_pair(value: Any) -> bool:
    return _is_list(value) and len(value) == 2


@dataclass
class MutationState:
    """A graph that is being changed, and the random generator."""

    rng: random.Random
    prompt: Any
    declarations: Declarations

    def choose(self, values: Sequence[Any]) -> Any:
        """Return a copy of one of the values."""
        return copy.deepcopy(self.rng.choice(values))

    def node(self) -> dict[str, Any]:
        """Return a random node that is an object with inputs. Raises IndexError if there is none."""
        return self.rng.choice([each for each in self.prompt.values() if _has_inputs(each)])

    def place(self, wanted: Callable[[Any], bool] = _is_any) -> tuple[dict[str, Any], str]:
        """Return the inputs of a random node, and the name of a `wanted` one. Raises IndexError if there is none."""
        matches = [
            (node["inputs"], name)
            for node in self.prompt.values()
            if _has_inputs(node)
            for name, value in node["inputs"].items()
            if wanted(value)
        ]
        return self.rng.choice(matches)

    def id(self) -> str:
        """Return the id of a random node."""
        return self.rng.choice(list(self.prompt))


Mutation = Callable[[MutationState], None]


def replacing(wanted: Callable[[Any], bool], replacement: Callable[[MutationState, Any], Any]) -> Mutation:
    """Create a mutation that replaces the value of some input, if it is `wanted`."""

    def mutation(state: MutationState) -> None:
        inputs, name = state.place(wanted)
        inputs[name] = replacement(state, inputs[name])

    return mutation


retarget_link = replacing(_is_list, lambda state, value: [state.id(), state.choose([0, 0, 1, 2])])
dangling_link = replacing(_is_list, lambda state, value: [state.choose(ODD_SOURCES), 0])
odd_slot = replacing(_is_pair, lambda state, value: [value[0], state.choose(ODD_SLOTS)])
link_for_constant = replacing(_is_not_list, lambda state, value: [state.id(), state.choose([0, 0, 1])])
constant_for_link = replacing(_is_list, lambda state, value: state.choose([1, "x", 0.5, None, {"__value__": value}]))
odd_constant = replacing(_is_any, lambda state, value: state.choose(ODD_CONSTANTS))
wrap = replacing(_is_any, lambda state, value: {"__value__": value})


def drop_input(state: MutationState) -> None:
    inputs, name = state.place()
    del inputs[name]


def rename_input(state: MutationState) -> None:
    inputs, name = state.place()
    inputs[state.choose([name + "_", "", "self", "cls", "prompt", "é", "__value__"])] = inputs.pop(name)


def swap_links(state: MutationState) -> None:
    (first, name), (second, other) = state.place(_is_list), state.place(_is_list)
    first[name], second[other] = second[other], first[name]


def odd_length(state: MutationState) -> None:
    inputs, name = state.place(_is_pair)
    source, slot = inputs[name]
    inputs[name] = state.choose([[], [source], [source, slot, slot], [[source, slot]], [slot, source]])


def link_to_itself(state: MutationState) -> None:
    node_id = state.id()
    inputs = state.prompt[node_id]["inputs"]
    inputs[state.choose([*inputs, "value"])] = [node_id, 0]


def link_back(state: MutationState) -> None:
    """Let a source read from the node that reads from it."""
    node_id = state.id()
    links = [value for value in state.prompt[node_id]["inputs"].values() if _is_pair(value)]
    source = state.prompt[state.choose(links)[0]]["inputs"]
    source[state.choose([*source, "value"])] = [node_id, 0]


def near_the_limits(state: MutationState) -> None:
    """Set a number near or at its limits, or a text that a combo lacks."""
    node = state.node()
    declared = state.declarations[node["class_type"]].inputs
    name = state.choose([name for name in node["inputs"] if name in declared])
    options = declared[name].options
    ends = [options[end] for end in ("min", "max") if end in options]
    near = [value for end in ends for value in (end, end - 1, end + 1, str(end), float(end) * 1.000001)]
    node["inputs"][name] = state.choose([*near, *(declared[name].choices or ()), "zz", " p", 0])


def add_input(state: MutationState) -> None:
    name = state.choose(["extra", "value", "a", "b", "prompt", "me", "_", "\ud800"])
    state.node()["inputs"][name] = state.choose([1, "x", None, NAN, [state.id(), 0], ["gone", 0], [1, 2, 3]])


def odd_class(state: MutationState) -> None:
    state.prompt[state.id()]["class_type"] = state.choose(ODD_CLASSES)


def another_class(state: MutationState) -> None:
    state.prompt[state.id()]["class_type"] = state.choose(sorted(state.declarations.nodes))


def drop_class(state: MutationState) -> None:
    state.prompt[state.id()].pop("class_type")


def odd_inputs(state: MutationState) -> None:
    state.prompt[state.id()]["inputs"] = state.choose(ODD_INPUTS)


def drop_inputs(state: MutationState) -> None:
    state.prompt[state.id()].pop("inputs")


def duplicate(state: MutationState) -> None:
    state.prompt[state.choose(["copy", "0", "z"])] = copy.deepcopy(state.node())


def remove(state: MutationState) -> None:
    del state.prompt[state.id()]


def rename(state: MutationState) -> None:
    """Change an id, with or without the links to it. The order stays."""
    old, new = state.id(), state.choose(ODD_IDS)
    follow = state.rng.random() < 0.7
    state.prompt = {new if node_id == old else node_id: node for node_id, node in state.prompt.items()}
    for node in state.prompt.values():
        for name, value in node["inputs"].items() if follow and _has_inputs(node) else ():
            if _is_pair(value) and value[0] == old:
                node["inputs"][name] = [new, value[1]]


def reverse(state: MutationState) -> None:
    state.prompt = dict(reversed(state.prompt.items()))


def odd_keys(state: MutationState) -> None:
    node = state.prompt[state.id()]
    node["_meta"] = state.choose(ODD_METAS)
    node["is_changed"] = state.choose(ODD_CHANGES)
    node[state.choose(["", "id", "type", "\U0001f680"])] = state.choose(ODD_CONSTANTS)


def odd_node(state: MutationState) -> None:
    state.prompt[state.choose([state.id(), "version", "nodes", ""])] = state.choose(ODD_NODES)


def odd_prompt(state: MutationState) -> None:
    wrapped = [{"prompt": state.prompt}, {"output": state.prompt, "workflow": {}}, [state.prompt]]
    state.prompt = state.choose([*ODD_PROMPTS, *wrapped])


MUTATIONS: dict[Mutation, int] = {
    drop_input: 3, rename_input: 2, retarget_link: 4, dangling_link: 2, swap_links: 2, odd_slot: 4, odd_length: 2,
    link_to_itself: 2, link_back: 3, link_for_constant: 3, constant_for_link: 3, odd_constant: 8, wrap: 2,
    near_the_limits: 6, add_input: 3, odd_class: 1, another_class: 3, drop_class: 1, odd_inputs: 1, drop_inputs: 1,
    duplicate: 2, remove: 2, rename: 3, reverse: 1, odd_keys: 2, odd_node: 1, odd_prompt: 1,
}  # fmt: skip
"""The mutations with their weights."""


def mutant(seed: int, bases: Sequence[Mapping[str, Any]], nodes: Mapping[str, type]) -> Any:
    """Return one of `bases`, valid graphs of the classes in `nodes`, after one to four mutations."""
    rng = random.Random(seed)
    state = MutationState(rng, copy.deepcopy(dict(rng.choice(bases))), Declarations(nodes))
    done, wanted = 0, rng.choice([1, 1, 2, 3, 4])
    while done < wanted:
        (mutation,) = rng.choices(list(MUTATIONS), list(MUTATIONS.values()))
        try:
            mutation(state)
        except (LookupError, TypeError, AttributeError):  # nothing to change after an earlier mutation
            if not isinstance(state.prompt, dict) or not state.prompt:
                break
            continue
        done += 1
    return state.prompt


ODD_BYTES = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b'"', b"\\", b"\\u", b"\\ud800", b"NaN",
    b"-Infinity", b"1e999", b"[" * 70, b"{" * 70, b"]", b"}", b",", b":", b"null", b"true", b'{"a":1,"a":2}', b"//",
    b"9" * 5000, b"-", b"'", b'"__value__"', b'"class_type"', b'"nodes":[', b"\x1b[2J", b"\r\n", b"\xe2\x80\xae",
)  # fmt: skip


def damage_bytes(seed: int, files: Sequence[bytes]) -> bytes:
    """Return one of `files` after one to six changes of its bytes: removed, copied, flipped, overwritten, inserted."""
    rng = random.Random(seed)
    content = bytearray(rng.choice(files))
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        start = rng.randrange(len(content) + 1)
        stop = min(len(content), start + rng.choice([1, 1, 2, 7, 60, 2000]))
        piece, at = bytes(content[start:stop]), rng.randrange(len(content) + 1)
        change = rng.randrange(6)
        if change == 0:
            del content[start:stop]
        elif change == 1:
            content[at:at] = piece
        elif change == 2:
            content[start:stop] = bytes(rng.randrange(256) for _ in piece[:8])
        elif change == 3:
            content[start:stop] = rng.choice(ODD_BYTES)
        elif change == 4:
            content[at:at] = rng.choice(ODD_BYTES)
        elif start < len(content):
            content[start] ^= 1 << rng.randrange(8)
    return bytes(content)


ODD_PARTS: list[Any] = [
    *ODD_CONSTANTS, *ODD_SOURCES, *ODD_IDS, -10, -20, "-10", "-20", 2, 4, [[]], [[1, 2, 0, 3, 0, "*"]], [None],
    [{"name": "a", "link": 1}], {"subgraphs": []}, {"subgraphs": [{}]}, {"subgraphs": [{"id": 1, "nodes": []}]},
    {"groupNodes": {"a": {}}}, [["1", "width"], ["-1", "x"], [[], {}]], "Reroute", "PrimitiveNode", "GetNode",
    "SetNode", "workflow>a", "%a.b%", "%date:" + "y" * 99 + "%", "{" * 50 + "a|b" + "}" * 50,
]  # fmt: skip


def damage_tree(seed: int, graphs: Sequence[Mapping[str, Any]]) -> Any:
    """Return one of `graphs`, of any format, after one to five changes of its parts at any depth."""
    rng = random.Random(seed)
    root = {"": copy.deepcopy(dict(rng.choice(graphs)))}
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        places = list(_places(root))
        container, key = rng.choice(places)
        other, name = rng.choice(places)
        change = rng.randrange(6)
        if change == 0 and container is not root:
            del container[key]
        elif change == 1:
            container[key] = copy.deepcopy(other[name])
        elif change == 2 and isinstance(container, list):
            container.insert(key, copy.deepcopy(other[name]))
        elif change == 3 and isinstance(container, dict) and container is not root:
            container[rng.choice([name if isinstance(name, str) else "id", *ODD_IDS])] = container.pop(key)
        elif change == 4 and isinstance(container[key], int) and not isinstance(container[key], bool):
            container[key] = rng.choice(
                [container[key] + 1, container[key] - 1, -container[key], 0, str(container[key])]
            )
        else:
            container[key] = copy.deepcopy(rng.choice(ODD_PARTS))
    return root[""]


def _places(root: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) in a tree of lists and dicts."""
    pending = [root]
    while pending:
        part = pending.pop()
        entries = list(part.items() if isinstance(part, dict) else enumerate(part))
        for key, value in entries:
            yield part, key
            if isinstance(value, (dict, list)):
                pending.append(value)
