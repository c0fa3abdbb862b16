"""The outputs of nodes that have run, by what the nodes are and not by their ids; how long they are kept."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

Key = int
"""Of a node by its class, constants and sources: equal nodes have equal keys."""


@dataclass(eq=False)
class Entry:
    """What one node gave: lists of values by slot (a slot that was let go is gone), and what its page shows.

    owner  the node of the file that brought it; None: it is of the file
    """

    slots: dict[int, list[Any]]
    count: int
    ui: dict[str, list[Any]] = field(default_factory=dict)
    owner: str | None = None


class Store:
    """Outputs by key.

    cache  once: until the last reader has run (a single run); classic: while the next graph has such a node;
           or a number: that many nodes that were used last
    """

    def __init__(self, cache: str | int):
        self.cache = cache
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._readers: defaultdict[Key, Counter[int]] = defaultdict(Counter)
        self._wanted: set[Key] = set()
        self._used: set[Key] = set()
        self._drops = True

    def begin(self, keys: Collection[Key], ids: Collection[str], drops: bool = True) -> None:
        """A run begins whose graph has nodes with these keys and ids.

        drops  whether values may be let go when their last reader has run: not where nodes look for others themselves
        """
        self._readers.clear()
        self._wanted.clear()
        self._used.clear()
        self._drops = drops
        if self.cache == "once":
            self._entries.clear()
        elif self.cache == "classic":
            for key, entry in list(self._entries.items()):
                if key not in keys and entry.owner not in ids:
                    del self._entries[key]

    def end(self) -> None:
        """The run is over. What it used is not among what a number leaves out."""
        if isinstance(self.cache, int):
            for key in [key for key in self._entries if key not in self._used]:
                if len(self._entries) <= self.cache:
                    break
                del self._entries[key]

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def want(self, key: Key) -> None:
        """The caller wants all that this node gives."""
        self._wanted.add(key)

    def put(self, key: Key, slots: list[list[Any]], ui: dict[str, list[Any]], owner: str | None = None) -> None:
        """What a node gave. Slots that nobody reads are dropped where values are kept once."""
        held = {slot: values for slot, values in enumerate(slots) if not self._may_drop(key, slot)}
        self._entries[key] = Entry(held, len(slots), ui, owner)
        self._used.add(key)

    def get(self, key: Key) -> Entry | None:
        """What such a node gave; None when none has run, or all of it was let go."""
        entry = self._entries.get(key)
        if entry is not None:
            self._used.add(key)
            self._entries.move_to_end(key)
        return entry

    def has(self, key: Key, slot: int) -> bool:
        """Whether a slot is there to be read."""
        entry = self._entries.get(key)
        return entry is not None and slot in entry.slots

    def is_whole(self, key: Key) -> bool:
        """Whether such a node has run, and all that somebody will read of it is there."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        read = [slot for slot, readers in self._readers[key].items() if readers > 0]
        return all(slot in entry.slots or slot >= entry.count for slot in read)

    def slots_needed(self, key: Key) -> int:
        """How many slots such a node must have for those that will read it."""
        return max((slot + 1 for slot, readers in self._readers[key].items() if readers > 0), default=0)

    def reads(self, slots: Iterable[tuple[Key, int]]) -> None:
        """One more node will read these."""
        for key, slot in slots:
            self._readers[key][slot] += 1

    def has_read(self, slots: Iterable[tuple[Key, int]]) -> None:
        """One node that would read these has run."""
        for key, slot in slots:
            self._readers[key][slot] -= 1
            entry = self._entries.get(key)
            if entry is not None and self._may_drop(key, slot):
                entry.slots.pop(slot, None)

    def _may_drop(self, key: Key, slot: int) -> bool:
        return self.cache == "once" and self._drops and key not in self._wanted and self._readers[key][slot] <= 0
