"""What a person, or a program, sees of a run: a progress bar with the stage's name, or JSON lines."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, Protocol

from tqdm import tqdm


class Console(Protocol):
    """How the command line speaks."""

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Progress; a `host.Reporter`. `node` is the id of the node in whose work it is, where that is known."""
        ...

    def event(self, name: str, /, **values: Any) -> None:
        """What an engine does: queued, cached, executing, executed. See headless/engines/events.py."""
        ...

    def told(self, name: str, text: str, /, **values: Any) -> None:
        """An event that people are told, too: `missing`, what a graph needs and is not there; `batch`, who works."""
        ...

    def result(self, text: str, **values: Any) -> None:
        """What came out: a sentence for people, values for programs."""
        ...

    def close(self) -> None:
        """Leave the terminal tidy."""
        ...


class _Asking:
    """At each report of progress it looks whether the user has asked to stop, and raises KeyboardInterrupt.

    The signal's own one can be lost: Python drops what is raised while it clears away an object.
    """

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        self._is_stopped = is_stopped

    def _go_on(self) -> None:
        if self._is_stopped():
            raise KeyboardInterrupt


class TerminalConsole(_Asking):
    """A bar on stderr, results on stdout."""

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        super().__init__(is_stopped)
        self._bar: tqdm | None = None

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Open the stage's bar at 0 done, move it, leave it standing when complete."""
        self._go_on()
        if done == 0:
            self.close()
            self._bar = tqdm(total=total, desc=f"{stage:<10}", unit=unit, file=sys.stderr, dynamic_ncols=True)
        elif self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done >= total:
                self.close()

    def event(self, name: str, /, **values: Any) -> None:
        """People see the bars."""

    def told(self, name: str, text: str, /, **values: Any) -> None:
        """Say the line on stderr."""
        self.close()
        sys.stderr.write(text + "\n")

    def result(self, text: str, **values: Any) -> None:
        """Say the sentence."""
        self.close()
        sys.stdout.write(text + "\n")

    def close(self) -> None:
        """End the bar that is open."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LogAboveBar(logging.Handler):
    """Log lines on stderr, above a progress bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line and draw the bar again below it."""
        tqdm.write(self.format(record), file=sys.stderr)


class JsonConsole(_Asking):
    """One JSON object a line on stdout: {"event": "progress", ...}, those of `event`, and {"event": "result", ...}.

    When the reader has gone, a run is told to nobody and goes on; the result raises BrokenPipeError.
    """

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        super().__init__(is_stopped)
        self._stdout = sys.stdout  # nodes that print are sent elsewhere
        self._node: str | None = None

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """{"event": "progress", "stage", "done", "total", "unit"}, and "node" where it is known."""
        self._go_on()
        node = node or self._node
        where = {} if node is None else {"node": node}
        self.event("progress", stage=stage, done=done, total=total, unit=unit, **where)

    def event(self, name: str, /, **values: Any) -> None:
        """{"event": name, ...values}."""
        if name == "executing":
            self._node = values["node"]
        elif name == "executed" and values.get("node") == self._node:
            self._node = None  # what follows, such as hashing for a manifest, is not that node's progress
        with contextlib.suppress(BrokenPipeError):
            self._line(name, values)

    def told(self, name: str, text: str, /, **values: Any) -> None:
        """{"event": name, ...values}: of "missing" kind, name, nodes, folder, url."""
        self.event(name, **values)

    def result(self, text: str, **values: Any) -> None:
        """{"event": "result", ...values}."""
        self._line("result", values)

    def close(self) -> None:
        """Nothing is open."""

    def _line(self, event: str, values: dict[str, Any]) -> None:
        line = {"event": event, **values, **{"event": event}}  # first, and what it says whatever the values are
        self._stdout.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
        self._stdout.flush()
