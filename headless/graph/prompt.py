"""API-format graphs as data: links, node names for messages, ancestors, run order, cycles.

A graph is `{node id: {"class_type": str, "inputs": {name: constant or [source id, slot]}, "_meta": {"title": str}}}`.
All functions are iterative, because a graph may be a chain of thousands of nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from .ready_queue import ReadyQueue

Prompt = dict[str, dict[str, Any]]
Sources = Mapping[str, Sequence[str]]
"""The ids that each node reads from, by node id."""

MAX_NODES = 20_000
"""Nodes of a graph. Graphs made by people have a thousand at most."""

WRAPPED = "__value__"
"""A list that is a value, and not a link, is written `{"__value__": [...]}`."""


def looks_like_link(value: Any) -> bool:
    """Return True for a list of a string and any number. This is ComfyUI's test at run time."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float))
    )


def is_wrapped(value: Any) -> bool:
    """Return True for `{"__value__": ...}`."""
    return isinstance(value, dict) and WRAPPED in value


def unwrap_value(value: Any) -> Any:
    """Return the value inside `{"__value__": ...}`, or the value itself."""
    return value[WRAPPED] if is_wrapped(value) else value


def wrap_list(value: Any) -> Any:
    """Wrap a list as `{"__value__": [...]}`, so that it is not taken for a link. Return other values unchanged."""
    return {WRAPPED: value} if isinstance(value, list) else value


def links_of(node: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the (source id, slot) of all links of a node."""
    return [(value[0], int(value[1])) for value in node["inputs"].values() if looks_like_link(value)]


def sources_of(node: Mapping[str, Any]) -> list[str]:
    """Return the ids that a node reads from, in the order of its inputs, each once."""
    return list(dict.fromkeys(value[0] for value in node["inputs"].values() if looks_like_link(value)))


def title_of(node: Any) -> str | None:
    """Return the title that the user gave a node, or None."""
    meta = node.get("_meta") if isinstance(node, Mapping) else None
    title = meta.get("title") if isinstance(meta, Mapping) else None
    return title if isinstance(title, str) and title else None


def one_line(text: str, longest: int | None = None) -> str:
    """Clean text from a graph or a node for a message: no line breaks, no terminal control characters.

    Args:
        text: The text.
        longest: Number of characters after which the text is cut. None: not cut.
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if longest is None or len(line) <= longest else line[:longest] + "..."


def name_node(prompt: Mapping[str, Any], node_id: str) -> str:
    """Name a node in an error message: `node 3 (KSampler "My sampler")`."""
    node = prompt.get(node_id)
    class_type = node.get("class_type") if isinstance(node, Mapping) else None
    title = title_of(node)
    words = [one_line(str(class_type), 100)] if class_type else []
    if title and title != class_type:
        words.append(f'"{one_line(title, 100)}"')
    label = one_line(str(node_id), 100)
    return f"node {label} ({' '.join(words)})" if words else f"node {label}"


def with_ancestors(starts: Iterable[str], sources: Sources) -> set[str]:
    """Return `starts` and every node that they need."""
    reached = set(starts)
    pending = list(reached)
    while pending:
        for source in sources.get(pending.pop(), ()):
            if source not in reached:
                reached.add(source)
                pending.append(source)
    return reached


def run_order(ids: Collection[str], sources: Sources) -> tuple[list[str], list[list[str]]]:
    """Sort nodes so that sources come first. Among the ready nodes, the first one of `ids` is next.

    Args:
        ids: Node ids in the order of the file. Sources that are not among them are ignored.
        sources: The ids that each node reads from.

    Returns:
        The order, and the cycles that keep the other nodes from running. A cycle is a path from a node to its sources,
        first id = last id. Every group of nodes that cannot run has at least one cycle in the list.
    """
    queue = ReadyQueue()
    for node_id in ids:
        queue.add(node_id)
    for node_id in ids:
        for source in sources.get(node_id, ()):
            if source in queue:
                queue.link(source, node_id)
    order = []
    while (ready := queue.take()) is not None:
        order.append(ready)
        queue.done(ready)
    return order, find_cycles(queue.sources(), sources)


def find_cycles(stuck: Collection[str], sources: Sources) -> list[list[str]]:
    """Find cycles by following, from each stuck node, the first source that is stuck too."""
    cycles = []
    visited: set[str] = set()
    for start in stuck:
        path: list[str] = []
        node_id = start
        while node_id not in visited:
            visited.add(node_id)
            path.append(node_id)
            node_id = next(source for source in sources[node_id] if source in stuck)
        if node_id in path:
            cycles.append([*path[path.index(node_id) :], node_id])
    return cycles
