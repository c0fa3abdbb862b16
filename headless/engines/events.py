"""One set of events for every engine: what ComfyUI's messages mean to who watches a run.

queued {prompt_id of a server}, cached {nodes}, executing {node, class_type, title}, progress {node, stage, done, total,
unit}, executed {node, class_type, files or output}. Nodes are those of the file: what runs inside an expanded node is
told as that node.
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
"""More than anybody counts, and what every reader of JSON and every bar takes."""


class EventListener(Protocol):
    """Who is told of a run."""

    def event(self, name: str, /, **values: Any) -> None:
        """Something happened."""
        ...

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Progress, 0 done first."""
        ...


@dataclass
class EventTranslator:
    """An `OnEvent` that tells a watcher. ComfyUI's progress bars, which it says are some node's, become progress."""

    prompt: Prompt
    table: NodeTable
    watcher: EventListener
    _bars: dict[str, tuple[int, int]] = field(default_factory=dict)
    _brought: dict[str, str] = field(default_factory=dict)
    """Node that an expanded one brought -> the node of the file that it is told as."""
    _running: str | None = None

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell what `event` means, if anything."""
        tell = {
            "queued": self._queued,
            "execution_cached": self._cached,
            "executing": self._executing,
            "progress": self._progress,
            "progress_state": self._progress_state,
            "executed": self._executed,
            "execution_error": self._error,
        }.get(event)
        if tell is not None:
            tell(data)

    def _queued(self, data: Mapping[str, Any]) -> None:
        known = {"prompt_id": data["prompt_id"]} if "prompt_id" in data else {}
        self.watcher.event("queued", **known)

    def _cached(self, data: Mapping[str, Any]) -> None:
        nodes = data.get("nodes")
        self.watcher.event("cached", nodes=[str(node) for node in nodes] if isinstance(nodes, list) else [])

    def _executing(self, data: Mapping[str, Any]) -> None:
        if data.get("node") is not None:
            node = self._node_of_file(data)
            if node != self._running:
                self._running = node
                self.watcher.event("executing", node=node, class_type=self._class_type(node), title=self._title(node))

    def _executed(self, data: Mapping[str, Any]) -> None:
        node = self._node_of_file(data)
        made = {"files": list(map(str, data["files"]))} if data.get("files") else {"output": data.get("output")}
        self.watcher.event("executed", node=node, class_type=self._class_type(node), **made)

    def _progress(self, data: Mapping[str, Any]) -> None:
        if data.get("node") is not None:
            node = str(data["node"])
            self._advance(self._brought.get(node, node), data.get("value"), data.get("max"))

    def _progress_state(self, data: Mapping[str, Any]) -> None:
        """Newer nodes tell their progress here only. A state that counts to 1 is a node that tells none."""
        states = data.get("nodes")
        for node, state in states.items() if isinstance(states, Mapping) else ():
            if isinstance(state, Mapping) and state.get("state") == "running" and state.get("max") not in (0, 1):
                self._advance(str(state.get("display_node_id") or node), state.get("value"), state.get("max"))

    def _advance(self, node: str, value: Any, total: Any) -> None:
        numbers = all(isinstance(each, (int, float)) and 0 <= each <= MAX_STEPS for each in (value, total))
        if not numbers or total == 0:
            return
        done, total = int(value), math.ceil(total)
        before = self._bars.get(node)
        if before == (done, total):
            return
        if done and (before is None or before[1] != total or before[0] > done):
            self.watcher.report(self._title(node), 0, total, "step", node)
        self.watcher.report(self._title(node), done, total, "step", node)
        self._bars[node] = (done, total)

    def _error(self, data: Mapping[str, Any]) -> None:
        """Failures are raised; a blocked node is a warning, for the run goes on."""
        if data.get("exception_type") == "ExecutionBlocked":
            where = name_node(self.prompt, str(data.get("node_id")))
            logger.warning("%s: %s", where, one_line(str(data.get("exception_message", "")), 500))

    def _node_of_file(self, data: Mapping[str, Any]) -> str:
        node = str(data.get("node"))
        if node not in self.prompt:
            self._brought[node] = str(data.get("display_node") or node)
        return self._brought.get(node, node)

    def _class_type(self, node: str) -> str:
        return str(self.prompt.get(node, {}).get("class_type", ""))

    def _title(self, node: str) -> str:
        class_type = self._class_type(node)
        title = title_of(self.prompt.get(node)) or self.table.display_names.get(class_type) or class_type or node
        return one_line(str(title), 60)
