"""Who waits for whom while a graph runs: nodes are added as they are found to be needed, and taken in file order."""

from __future__ import annotations

from heapq import heappop, heappush


class Waiting:
    """The nodes that are still to run. Of those that wait for nothing the one that was met first is taken first."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._sources: dict[str, set[str]] = {}
        self._dependents: dict[str, set[str]] = {}
        self._elsewhere: dict[str, int] = {}
        self._ready: list[tuple[int, str]] = []

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._sources

    def __len__(self) -> int:
        return len(self._sources)

    def place(self, node_id: str) -> None:
        """Give a node its place in the order, before or after it is known to be needed."""
        self._place.setdefault(node_id, len(self._place))

    def add(self, node_id: str) -> bool:
        """Have a node run; False when it is already to."""
        if node_id in self._sources:
            return False
        self.place(node_id)
        self._sources[node_id] = set()
        self._dependents.setdefault(node_id, set())
        self._offer(node_id)
        return True

    def link(self, source: str, dependent: str) -> None:
        """Have `dependent` wait for `source`; both are to run."""
        self._sources[dependent].add(source)
        self._dependents[source].add(dependent)

    def hold(self, node_id: str) -> None:
        """Have a node wait for something outside the graph, until `let_go`."""
        self._elsewhere[node_id] = self._elsewhere.get(node_id, 0) + 1

    def let_go(self, node_id: str) -> None:
        """What a node waited for is there."""
        self._elsewhere[node_id] -= 1
        if not self._elsewhere[node_id]:
            del self._elsewhere[node_id]
        self._offer(node_id)

    def take(self) -> str | None:
        """The node to run now; it stays among those to run. None when all wait."""
        while self._ready:
            _, node_id = heappop(self._ready)
            if self._is_free(node_id):
                return node_id
        return None

    def again(self, node_id: str) -> None:
        """A node that was taken is to be taken again, when what it waits for now has run."""
        self._offer(node_id)

    def done(self, node_id: str) -> None:
        """A node has run: those that waited for it may be free."""
        del self._sources[node_id]
        for dependent in self._dependents.pop(node_id):
            self._sources[dependent].discard(node_id)
            self._offer(dependent)

    @property
    def waits_elsewhere(self) -> bool:
        """Whether any node waits for something outside the graph."""
        return bool(self._elsewhere)

    def sources(self) -> dict[str, list[str]]:
        """Node -> what it waits for, of those still to run."""
        return {node_id: sorted(sources) for node_id, sources in self._sources.items()}

    def _is_free(self, node_id: str) -> bool:
        return node_id in self._sources and not self._sources[node_id] and node_id not in self._elsewhere

    def _offer(self, node_id: str) -> None:
        if self._is_free(node_id):
            heappush(self._ready, (self._place[node_id], node_id))
