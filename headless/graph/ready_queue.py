"""The nodes that are still to run, and the order in which they become ready."""

from __future__ import annotations

from heapq import heappop, heappush


class ReadyQueue:
    """Nodes that are still to run. Of those that wait for nothing, the first one by position is taken first.

    Attributes:
        suspended: Nodes that wait for their coroutines. After removing a node from it, call `offer`.
    """

    def __init__(self) -> None:
        self._position: dict[str, int] = {}
        self._sources: dict[str, set[str]] = {}
        self._dependents: dict[str, set[str]] = {}
        self.suspended: set[str] = set()
        self._ready: list[tuple[int, str]] = []

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._sources

    def __len__(self) -> int:
        return len(self._sources)

    def set_position(self, node_id: str) -> None:
        """Put a node after all others in the order. Does not add it, and does nothing if it has a position."""
        self._position.setdefault(node_id, len(self._position))

    def add(self, node_id: str) -> None:
        """Add a node, which must not have been added before."""
        self.set_position(node_id)
        self._sources[node_id] = set()
        self._dependents[node_id] = set()
        self.offer(node_id)

    def link(self, source: str, dependent: str) -> None:
        """Let `dependent` wait for `source`. Both must have been added."""
        self._sources[dependent].add(source)
        self._dependents[source].add(dependent)

    def take(self) -> str | None:
        """Return the next ready node, without removing it. None if all wait."""
        while self._ready:
            _, node_id = heappop(self._ready)
            if self._is_ready(node_id):
                return node_id
        return None

    def offer(self, node_id: str) -> None:
        """Let `take` return a node (again) if it waits for nothing."""
        if self._is_ready(node_id):
            heappush(self._ready, (self._position[node_id], node_id))

    def done(self, node_id: str) -> None:
        """Remove a node that has run. Nodes that waited for it may become ready."""
        del self._sources[node_id]
        for dependent in self._dependents.pop(node_id):
            self._sources[dependent].discard(node_id)
            self.offer(dependent)

    def sources(self) -> dict[str, list[str]]:
        """Return the nodes that each node waits for, by node id."""
        return {node_id: sorted(sources) for node_id, sources in self._sources.items()}

    def _is_ready(self, node_id: str) -> bool:
        return node_id in self._sources and not self._sources[node_id] and node_id not in self.suspended
