"""An API-format graph as data: what a link is, what a node is called, which nodes come before which.

A graph is `{node id: {"class_type": str, "inputs": {name: constant or [source id, slot]}, "_meta": {"title": str}}}`.
Everything here is iterative: a graph may be a chain of thousands of nodes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

Prompt = dict[str, dict[str, Any]]
Sources = Mapping[str, Sequence[str]]
"""Node id -> the ids that it reads from."""

MAX_NODES = 20_000
"""Nodes of a graph. Those that people make have a thousand at most."""

WRAPPED = "__value__"
"""A list that is a value and not a link stands in a graph as `{"__value__": [...]}`."""


def is_link(value: Any) -> bool:
    """Whether `value` is `[source id, slot]`, with a slot that is an integer."""
    return looks_like_link(value) and isinstance(value[1], int) and not isinstance(value[1], bool)


def looks_like_link(value: Any) -> bool:
    """ComfyUI's own, wider test at run time: a list of a string and any number."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float))
    )


def is_wrapped(value: Any) -> bool:
    """Whether `value` is `{"__value__": ...}`."""
    return isinstance(value, dict) and WRAPPED in value


def unwrap_value(value: Any) -> Any:
    """The value inside `{"__value__": ...}`, or the value itself."""
    return value[WRAPPED] if is_wrapped(value) else value


def sources_of(node: Mapping[str, Any]) -> list[str]:
    """The ids that a node reads from, in the order of its inputs, each once."""
    return list(dict.fromkeys(value[0] for value in node["inputs"].values() if looks_like_link(value)))


def title_of(node: Any) -> str | None:
    """The title that the user gave, or None."""
    meta = node.get("_meta") if isinstance(node, Mapping) else None
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title if isinstance(title, str) and title else None


def one_line(text: str, longest: int | None = None) -> str:
    """Text from a graph or a node, fit for a message: no line breaks, nothing that a terminal would obey."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if longest is None or len(line) <= longest else line[:longest] + "..."


def name_node(prompt: Mapping[str, Any], node_id: str) -> str:
    """A node for an error message: `node 3 (KSampler "My sampler")`."""
    node = prompt.get(node_id)
    class_type = node.get("class_type") if isinstance(node, Mapping) else None
    title = title_of(node)
    words = [one_line(str(class_type), 100)] if class_type else []
    if title and title != class_type:
        words.append(f'"{one_line(title, 100)}"')
    label = one_line(str(node_id), 100)
    return f"node {label} ({' '.join(words)})" if words else f"node {label}"


def with_ancestors(starts: Iterable[str], sources: Sources) -> set[str]:
    """`starts` and every node that they need. With `dependents_of(sources)`, every node that needs them."""
    found = set(starts)
    waiting = list(found)
    while waiting:
        for source in sources.get(waiting.pop(), ()):
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def dependents_of(sources: Sources) -> dict[str, list[str]]:
    """The same links the other way: node id -> the ids that read from it."""
    dependents = defaultdict(list)
    for node_id, read in sources.items():
        for source in read:
            dependents[source].append(node_id)
    return dict(dependents)


def run_order(ids: Collection[str], sources: Sources) -> tuple[list[str], list[list[str]]]:
    """The order in which `ids` run, and the cycles that keep the rest from running.

    Of the nodes whose sources have all run, the one that stands first in `ids` is next; so the order depends on the
    graph's file alone. `ids` must be in the file's order and hold every source that matters.

    A cycle is a path of links, first id = last id, in the direction of the links' sources. At least one is named for
    every group of nodes that cannot run.
    """
    position = {node_id: place for place, node_id in enumerate(ids)}
    waiting_for = {node_id: sum(source in position for source in sources.get(node_id, ())) for node_id in ids}
    dependents = dependents_of({node_id: sources.get(node_id, ()) for node_id in ids})
    by_position = list(ids)
    ready = [position[node_id] for node_id, count in waiting_for.items() if count == 0]
    heapify(ready)
    order = []
    while ready:
        node_id = by_position[heappop(ready)]
        order.append(node_id)
        for dependent in dependents.get(node_id, ()):
            waiting_for[dependent] -= 1
            if waiting_for[dependent] == 0:
                heappush(ready, position[dependent])
    stuck = {node_id for node_id, count in waiting_for.items() if count > 0}
    return order, _cycles_among([node_id for node_id in ids if node_id in stuck], stuck, sources)


def _cycles_among(ids: Sequence[str], stuck: Collection[str], sources: Sources) -> list[list[str]]:
    """The cycles met by following, from each of `ids`, the first source that is stuck too."""
    cycles = []
    seen: set[str] = set()
    for start in ids:
        path: dict[str, None] = {}
        node_id = start
        while node_id not in seen:
            seen.add(node_id)
            path[node_id] = None
            node_id = next(source for source in sources[node_id] if source in stuck)
        if node_id in path:
            walked = deque(path)
            while walked[0] != node_id:
                walked.popleft()
            cycles.append([*walked, node_id])
    return cycles
