"""The outputs of nodes that have run, by cache key, and how long they are kept."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
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


class OutputCache:
    """Outputs by cache key.

    Args:
        mode: "once": a value is released when its last reader has run, and nothing is kept between runs.
            "classic": outputs are kept while the next graph has an equal node.
            A number: the outputs of that many most recently used nodes are kept.
    """

    def __init__(self, mode: str | int):
        self.mode = mode
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._readers: defaultdict[Key, Counter[int]] = defaultdict(Counter)
        self._pinned: set[Key] = set()
        self._used: set[Key] = set()
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
        self._used.clear()
        self._releases = releases
        if self.mode == "once":
            self._entries.clear()
        elif self.mode == "classic":
            for key, entry in list(self._entries.items()):
                if key not in keys and entry.owner not in ids:
                    del self._entries[key]

    def end(self) -> None:
        """End a run. If `mode` is a number, drop the least recently used outputs, but none that this run used."""
        if isinstance(self.mode, int):
            for key in [key for key in self._entries if key not in self._used]:
                if len(self._entries) <= self.mode:
                    break
                del self._entries[key]

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def pin(self, key: Key) -> None:
        """Keep all outputs of a node until the run ends."""
        self._pinned.add(key)

    def put(self, key: Key, slots: list[list[Any]], ui: dict[str, list[Any]], owner: str | None = None) -> None:
        """Store the outputs of a node, without the slots that can be released at once."""
        kept = {slot: values for slot, values in enumerate(slots) if not self._can_release(key, slot)}
        self._entries[key] = Entry(kept, len(slots), ui, owner)
        self._used.add(key)

    def __getitem__(self, key: Key) -> Entry:
        """Return the outputs of a node and mark them as used."""
        self._used.add(key)
        self._entries.move_to_end(key)
        return self._entries[key]

    def get(self, key: Key) -> Entry | None:
        """Return the outputs of a node and mark them as used, or return None."""
        return self[key] if key in self._entries else None

    def has(self, key: Key, slot: int) -> bool:
        """Return True if the values of a slot are available."""
        entry = self._entries.get(key)
        return entry is not None and slot in entry.slots

    def is_complete(self, key: Key) -> bool:
        """Return True if a node has run and every slot that has readers left is available."""
        entry = self._entries.get(key)
        return entry is not None and all(
            slot in entry.slots or slot >= entry.count for slot, readers in self._readers[key].items() if readers > 0
        )

    def slots_needed(self, key: Key) -> int:
        """Return how many output slots a node must have for its readers."""
        return max((slot + 1 for slot, readers in self._readers[key].items() if readers > 0), default=0)

    def add_reader(self, slots: Iterable[tuple[Key, int]]) -> None:
        """Count one more node that will read these slots."""
        for key, slot in slots:
            self._readers[key][slot] += 1

    def remove_reader(self, slots: Iterable[tuple[Key, int]]) -> None:
        """Count one node less that will read these slots, and release those that have no reader left."""
        for key, slot in slots:
            self._readers[key][slot] -= 1
            entry = self._entries.get(key)
            if entry is not None and self._can_release(key, slot):
                entry.slots.pop(slot, None)

    def _can_release(self, key: Key, slot: int) -> bool:
        return self.mode == "once" and self._releases and key not in self._pinned and self._readers[key][slot] <= 0
