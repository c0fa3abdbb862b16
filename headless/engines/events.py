"""Translate ComfyUI's events to one set of events for all engines.

Events: queued {prompt_id, on a server}, cached {nodes}, executing {node, class_type, title}, progress {node, stage,
done, total, unit}, executed {node, class_type, files or output}. Node ids are those of the graph file: the events of
a node inside an expanded node are reported for the expanded node.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..graph import NodeTable, Prompt
from ..graph.prompt import name_node, one_line, title_of

logger = logging.getLogger(__name__)

MAX_STEPS = 2**53
"""The largest step count that all JSON readers and progress bars can represent."""


class EventListener(Protocol):
    """Receives the events and the progress of a run."""

    def event(self, name: str, /, **values: Any) -> None:
        """Receive an event."""

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Receive progress. The first report of a stage has 0 done."""


@dataclass
class EventTranslator:
    """An `OnEvent` that translates ComfyUI's events and progress bars for a listener."""

    prompt: Prompt
    table: NodeTable
    listener: EventListener
    _bars: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Node id -> (done, total) of its last report."""
    _parents: dict[str, str] = field(default_factory=dict)
    """Node that an expanded node added -> the expanded node in the graph file."""
    _running: str | None = None

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        """Translate one event by the method `_on_<event>`. Other events are ignored."""
        translate = getattr(self, f"_on_{event}", None)
        if translate is not None:
            translate(data)

    def _on_queued(self, data: Mapping[str, Any]) -> None:
        self.listener.event("queued", **{key: data[key] for key in ("prompt_id",) if key in data})

    def _on_execution_cached(self, data: Mapping[str, Any]) -> None:
        nodes = data.get("nodes")
        self.listener.event("cached", nodes=[str(node) for node in nodes] if isinstance(nodes, list) else [])

    def _on_executing(self, data: Mapping[str, Any]) -> None:
        if data.get("node") is not None:
            node = self._node_of_file(data)
            if node != self._running:
                self._running = node
                self.listener.event("executing", node=node, class_type=self._class_type(node), title=self._title(node))

    def _on_executed(self, data: Mapping[str, Any]) -> None:
        node = self._node_of_file(data)
        result = {"files": list(map(str, data["files"]))} if data.get("files") else {"output": data.get("output")}
        self.listener.event("executed", node=node, class_type=self._class_type(node), **result)

    def _on_progress(self, data: Mapping[str, Any]) -> None:
        if data.get("node") is not None:
            node = str(data["node"])
            self._advance(self._parents.get(node, node), data.get("value"), data.get("max"))

    def _on_progress_state(self, data: Mapping[str, Any]) -> None:
        """Report the progress of newer nodes, which send only this event. A total of 0 or 1 means no progress bar."""
        states = data.get("nodes")
        for node, state in states.items() if isinstance(states, Mapping) else ():
            if isinstance(state, Mapping) and state.get("state") == "running" and state.get("max") not in (0, 1):
                self._advance(str(state.get("display_node_id") or node), state.get("value"), state.get("max"))

    def _advance(self, node: str, value: Any, total: Any) -> None:
        are_counts = all(isinstance(count, (int, float)) and 0 <= count <= MAX_STEPS for count in (value, total))
        if not are_counts or total == 0:
            return
        done, total = int(value), math.ceil(total)
        before = self._bars.get(node)
        if before == (done, total):
            return
        if done and (before is None or before[1] != total or before[0] > done):
            self.listener.report(self._title(node), 0, total, "step", node)
        self.listener.report(self._title(node), done, total, "step", node)
        self._bars[node] = (done, total)

    def _on_execution_error(self, data: Mapping[str, Any]) -> None:
        """Log a blocked node, after which the run continues. Other errors are raised by the engine."""
        if data.get("exception_type") == "ExecutionBlocked":
            node_name = name_node(self.prompt, str(data.get("node_id")))
            logger.warning("%s: %s", node_name, one_line(str(data.get("exception_message", "")), 500))

    def _node_of_file(self, data: Mapping[str, Any]) -> str:
        node = str(data.get("node"))
        if node not in self.prompt:
            self._parents[node] = str(data.get("display_node") or node)
        return self._parents.get(node, node)

    def _class_type(self, node: str) -> str:
        return str(self.prompt.get(node, {}).get("class_type", ""))

    def _title(self, node: str) -> str:
        class_type = self._class_type(node)
        title = title_of(self.prompt.get(node)) or self.table.display_names.get(class_type) or class_type or node
        return one_line(str(title), 60)
