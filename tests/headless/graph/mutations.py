"""Graphs with a few random faults in them: `mutant(seed, bases, nodes)` gives the same one for the same seed."""

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


@dataclass
class Garden:
    """A graph while it is changed, and what chooses."""

    rng: random.Random
    prompt: Any
    declarations: Declarations

    def choose(self, values: Sequence[Any]) -> Any:
        """A copy of one of them."""
        return copy.deepcopy(self.rng.choice(values))

    def node(self) -> dict[str, Any]:
        """Some node that is an object with inputs. Raises IndexError when there is none."""
        return self.rng.choice([each for each in self.prompt.values() if _has_inputs(each)])

    def place(self, wanted: Callable[[Any], bool] = lambda value: True) -> tuple[dict[str, Any], str]:
        """Some node's inputs, and the name of one whose value is wanted. Raises IndexError when there is none."""
        found = [
            (node["inputs"], name)
            for node in self.prompt.values()
            if _has_inputs(node)
            for name, value in node["inputs"].items()
            if wanted(value)
        ]
        return self.rng.choice(found)

    def id(self) -> str:
        """Some node's id."""
        return self.rng.choice(list(self.prompt))


def _has_inputs(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_whole_link(value: Any) -> bool:
    return _is_list(value) and len(value) == 2


def drop_input(garden: Garden) -> None:
    inputs, name = garden.place()
    del inputs[name]


def rename_input(garden: Garden) -> None:
    inputs, name = garden.place()
    inputs[garden.choose([name + "_", "", "self", "cls", "prompt", "é", "__value__"])] = inputs.pop(name)


def retarget_link(garden: Garden) -> None:
    inputs, name = garden.place(_is_list)
    inputs[name] = [garden.id(), garden.choose([0, 0, 1, 2])]


def link_to_nobody(garden: Garden) -> None:
    inputs, name = garden.place(_is_list)
    inputs[name] = [garden.choose(ODD_SOURCES), 0]


def swap_links(garden: Garden) -> None:
    (first, name), (second, other) = garden.place(_is_list), garden.place(_is_list)
    first[name], second[other] = second[other], first[name]


def odd_slot(garden: Garden) -> None:
    inputs, name = garden.place(_is_whole_link)
    inputs[name] = [inputs[name][0], garden.choose(ODD_SLOTS)]


def odd_length(garden: Garden) -> None:
    inputs, name = garden.place(_is_whole_link)
    source, slot = inputs[name]
    inputs[name] = garden.choose([[], [source], [source, slot, slot], [[source, slot]], [slot, source]])


def link_to_itself(garden: Garden) -> None:
    node_id = garden.id()
    inputs = garden.prompt[node_id]["inputs"]
    inputs[garden.choose([*inputs, "value"])] = [node_id, 0]


def link_back(garden: Garden) -> None:
    """Have a source read from the node that reads from it."""
    node_id = garden.id()
    links = [value for value in garden.prompt[node_id]["inputs"].values() if _is_whole_link(value)]
    source = garden.prompt[garden.choose(links)[0]]["inputs"]
    source[garden.choose([*source, "value"])] = [node_id, 0]


def link_for_constant(garden: Garden) -> None:
    inputs, name = garden.place(lambda value: not _is_list(value))
    inputs[name] = [garden.id(), garden.choose([0, 0, 1])]


def constant_for_link(garden: Garden) -> None:
    inputs, name = garden.place(_is_list)
    inputs[name] = garden.choose([1, "x", 0.5, None, {"__value__": inputs[name]}])


def odd_constant(garden: Garden) -> None:
    inputs, name = garden.place()
    inputs[name] = garden.choose(ODD_CONSTANTS)


def wrap(garden: Garden) -> None:
    inputs, name = garden.place()
    inputs[name] = {"__value__": inputs[name]}


def past_the_limits(garden: Garden) -> None:
    """A number just below its minimum or above its maximum, or at them, or a word that a combo lacks."""
    node = garden.node()
    declared = garden.declarations[node["class_type"]].inputs
    name = garden.choose([name for name in node["inputs"] if name in declared])
    options = declared[name].options
    ends = [options[end] for end in ("min", "max") if end in options]
    near = [value for end in ends for value in (end, end - 1, end + 1, str(end), float(end) * 1.000001)]
    node["inputs"][name] = garden.choose([*near, *(declared[name].choices or ()), "zz", " p", 0])


def add_input(garden: Garden) -> None:
    name = garden.choose(["extra", "value", "a", "b", "prompt", "me", "_", "\ud800"])
    garden.node()["inputs"][name] = garden.choose([1, "x", None, NAN, [garden.id(), 0], ["gone", 0], [1, 2, 3]])


def odd_class(garden: Garden) -> None:
    garden.prompt[garden.id()]["class_type"] = garden.choose(ODD_CLASSES)


def another_class(garden: Garden) -> None:
    garden.prompt[garden.id()]["class_type"] = garden.choose(sorted(garden.declarations.nodes))


def drop_class(garden: Garden) -> None:
    garden.prompt[garden.id()].pop("class_type")


def odd_inputs(garden: Garden) -> None:
    garden.prompt[garden.id()]["inputs"] = garden.choose(ODD_INPUTS)


def drop_inputs(garden: Garden) -> None:
    garden.prompt[garden.id()].pop("inputs")


def duplicate(garden: Garden) -> None:
    garden.prompt[garden.choose(["copy", "0", "z"])] = copy.deepcopy(garden.node())


def remove(garden: Garden) -> None:
    del garden.prompt[garden.id()]


def rename(garden: Garden) -> None:
    """Another id, with or without the links to it; the order stays."""
    old, new = garden.id(), garden.choose(ODD_IDS)
    follow = garden.rng.random() < 0.7
    garden.prompt = {new if node_id == old else node_id: node for node_id, node in garden.prompt.items()}
    for node in garden.prompt.values():
        for name, value in node["inputs"].items() if follow and _has_inputs(node) else ():
            if _is_whole_link(value) and value[0] == old:
                node["inputs"][name] = [new, value[1]]


def turn_around(garden: Garden) -> None:
    garden.prompt = dict(reversed(garden.prompt.items()))


def odd_keys(garden: Garden) -> None:
    node = garden.prompt[garden.id()]
    node["_meta"] = garden.choose(ODD_METAS)
    node["is_changed"] = garden.choose(ODD_CHANGES)
    node[garden.choose(["", "id", "type", "\U0001f680"])] = garden.choose(ODD_CONSTANTS)


def odd_node(garden: Garden) -> None:
    garden.prompt[garden.choose([garden.id(), "version", "nodes", ""])] = garden.choose(ODD_NODES)


def odd_prompt(garden: Garden) -> None:
    wrapped = [{"prompt": garden.prompt}, {"output": garden.prompt, "workflow": {}}, [garden.prompt]]
    garden.prompt = garden.choose([*ODD_PROMPTS, *wrapped])


MUTATIONS: dict[Callable[[Garden], None], int] = {
    drop_input: 3, rename_input: 2, retarget_link: 4, link_to_nobody: 2, swap_links: 2, odd_slot: 4, odd_length: 2,
    link_to_itself: 2, link_back: 3, link_for_constant: 3, constant_for_link: 3, odd_constant: 8, wrap: 2,
    past_the_limits: 6, add_input: 3, odd_class: 1, another_class: 3, drop_class: 1, odd_inputs: 1, drop_inputs: 1,
    duplicate: 2, remove: 2, rename: 3, turn_around: 1, odd_keys: 2, odd_node: 1, odd_prompt: 1,
}  # fmt: skip
"""What may happen to a graph, and how often beside the others."""


def mutant(seed: int, bases: Sequence[Mapping[str, Any]], nodes: Mapping[str, type]) -> Any:
    """One of `bases`, valid graphs of the classes in `nodes`, after one to four mutations."""
    rng = random.Random(seed)
    garden = Garden(rng, copy.deepcopy(dict(rng.choice(bases))), Declarations(nodes))
    done, wanted = 0, rng.choice([1, 1, 2, 3, 4])
    while done < wanted:
        (mutation,) = rng.choices(list(MUTATIONS), list(MUTATIONS.values()))
        try:
            mutation(garden)
        except (LookupError, TypeError, AttributeError):  # an earlier one has left nothing that this one could change
            if not isinstance(garden.prompt, dict) or not garden.prompt:
                break
            continue
        done += 1
    return garden.prompt


ODD_BYTES = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b'"', b"\\", b"\\u", b"\\ud800", b"NaN",
    b"-Infinity", b"1e999", b"[" * 70, b"{" * 70, b"]", b"}", b",", b":", b"null", b"true", b'{"a":1,"a":2}', b"//",
    b"9" * 5000, b"-", b"'", b'"__value__"', b'"class_type"', b'"nodes":[', b"\x1b[2J", b"\r\n", b"\xe2\x80\xae",
)  # fmt: skip


def torn(seed: int, files: Sequence[bytes]) -> bytes:
    """One of `files` after one to six changes of its bytes: cut, doubled, moved, flipped, overwritten, put in."""
    rng = random.Random(seed)
    content = bytearray(rng.choice(files))
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        start = rng.randrange(len(content) + 1)
        stop = min(len(content), start + rng.choice([1, 1, 2, 7, 60, 2000]))
        piece, at = bytes(content[start:stop]), rng.randrange(len(content) + 1)
        what = rng.randrange(6)
        if what == 0:
            del content[start:stop]
        elif what == 1:
            content[at:at] = piece
        elif what == 2:
            content[start:stop] = bytes(rng.randrange(256) for _ in piece[:8])
        elif what == 3:
            content[start:stop] = rng.choice(ODD_BYTES)
        elif what == 4:
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


def bent(seed: int, graphs: Sequence[Mapping[str, Any]]) -> Any:
    """One of `graphs`, of any format, after one to five changes of its parts, wherever they stand in it."""
    rng = random.Random(seed)
    root = {"": copy.deepcopy(dict(rng.choice(graphs)))}
    for _ in range(rng.choice([1, 1, 2, 3, 5])):
        places = list(_places(root))
        holder, key = rng.choice(places)
        other, name = rng.choice(places)
        what = rng.randrange(6)
        if what == 0 and holder is not root:
            del holder[key]
        elif what == 1:
            holder[key] = copy.deepcopy(other[name])
        elif what == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(other[name]))
        elif what == 3 and isinstance(holder, dict) and holder is not root:
            holder[rng.choice([name if isinstance(name, str) else "id", *ODD_IDS])] = holder.pop(key)
        elif what == 4 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] = rng.choice([holder[key] + 1, holder[key] - 1, -holder[key], 0, str(holder[key])])
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_PARTS))
    return root[""]


def _places(root: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in a tree of lists and dicts."""
    waiting = [root]
    while waiting:
        part = waiting.pop()
        entries = list(part.items() if isinstance(part, dict) else enumerate(part))
        for key, value in entries:
            yield part, key
            if isinstance(value, (dict, list)):
                waiting.append(value)
