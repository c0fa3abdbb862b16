"""The outputs of nodes that have run, by cache key, and how long they are kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

Key = int
"""Cache key of a node. Equal nodes (same class, constants and sources) have equal keys."""


@dataclass(eq=False)
class Entry:
    """The outputs of one node.

    Attributes:
        slots: Lists of values by output slot, without the slots that were released.
        count: Number of output slots.
        ui: What the page shows, lists by key.
        owner: The node of the original graph that added this node. None for a node of the original graph.
    """

    slots: dict[int, list[Any]]
    count: int
    ui: dict[str, list[Any]] = field(default_factory=dict)
    owner: str | None = None


class OutputCache(dict[Key, Entry]):
    """Outputs by cache key.

    Args:
        mode: "once": a value is released when its last reader has run, and nothing is kept between runs.
            "classic": outputs are kept while the next graph has an equal node.
    """

    def __init__(self, mode: str):
        super().__init__()
        self.mode = mode
        self._readers: defaultdict[Key, Counter[int]] = defaultdict(Counter)
        self._pinned: set[Key] = set()
        self._releases = True

    def begin(self, keys: Collection[Key], ids: Collection[str], releases: bool = True) -> None:
        """Begin a run.

        Args:
            keys: Cache keys of the nodes of the graph.
            ids: Ids of the nodes of the graph.
            releases: False if a node may read any other node's outputs, so that no value may be released.
        """
        self._readers.clear()
        self._pinned.clear()
        self._releases = releases and self.mode == "once"
        for key, entry in list(self.items()):
            if self.mode == "once" or (key not in keys and entry.owner not in ids):
                del self[key]

    def pin(self, key: Key) -> None:
        """Keep all outputs of a node until the run ends."""
        self._pinned.add(key)

    def put(self, key: Key, slots: list[list[Any]], ui: dict[str, list[Any]], owner: str | None = None) -> None:
        """Store the outputs of a node, without the slots that can be released at once."""
        kept = {slot: values for slot, values in enumerate(slots) if not self._can_release(key, slot)}
        self[key] = Entry(kept, len(slots), ui, owner)

    def has(self, key: Key, slot: int) -> bool:
        """Return True if the values of a slot are available."""
        return key in self and slot in self[key].slots

    def is_complete(self, key: Key) -> bool:
        """Return True if a node has run and every slot that has readers left is available."""
        entry = self.get(key)
        return entry is not None and all(slot in entry.slots or slot >= entry.count for slot in +self._readers[key])

    def slots_needed(self, key: Key) -> int:
        """Return how many output slots a node must have for its readers."""
        return max((slot + 1 for slot in +self._readers[key]), default=0)

    def add_reader(self, slots: Iterable[tuple[Key, int]]) -> None:
        """Count one more node that will read these slots."""
        for key, slot in slots:
            self._readers[key][slot] += 1

    def remove_reader(self, slots: Iterable[tuple[Key, int]]) -> None:
        """Count one node less that will read these slots, and release those that have no reader left."""
        for key, slot in slots:
            self._readers[key][slot] -= 1
            if key in self and self._can_release(key, slot):
                self[key].slots.pop(slot, None)

    def _can_release(self, key: Key, slot: int) -> bool:
        return self._releases and key not in self._pinned and self._readers[key][slot] <= 0
