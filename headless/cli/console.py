"""Show a run: a progress bar with the name of the stage, or JSON lines."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


class Console:
    """The output of the command line.

    A progress report raises KeyboardInterrupt if the user asked to stop. That of the signal itself can be lost: Python
    drops exceptions that are raised in finalizers. A quiet console prints only results.
    """

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False, quiet: bool = False) -> None:
        self._is_stopped = is_stopped
        self._quiet = quiet

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Show progress; a `runtime.Reporter`. `node` is the id of the node that is running, if it is known."""
        if self._is_stopped():
            raise KeyboardInterrupt

    def event(self, name: str, /, **values: Any) -> None:
        """Print an engine's event: queued, cached, executing, executed. See headless/engines/events.py."""

    def announce(self, name: str, text: str, /, **values: Any) -> None:
        """Print an event that people see, too: `missing` (a file or node of a graph), `batch` (who works)."""

    def result(self, text: str, **values: Any) -> None:
        """Print the result: a sentence for people, values for programs."""

    def close(self) -> None:
        """Close the progress bar."""


class TerminalConsole(Console):
    """A progress bar on stderr, results on stdout. People see no other events than those of `announce`."""

    _bar: tqdm | None = None

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Open the stage's bar at 0, move it, and close it when it is complete."""
        super().report(stage, done, total, unit, node)
        if self._quiet:
            return
        if done == 0:
            self.close()
            self._bar = tqdm(total=total, desc=f"{stage:<10}", unit=unit, file=sys.stderr, dynamic_ncols=True)
        elif self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done >= total:
                self.close()

    def announce(self, name: str, text: str, /, **values: Any) -> None:
        """Print the text on stderr."""
        self.close()
        if not self._quiet:
            sys.stderr.write(text + "\n")

    def result(self, text: str, **values: Any) -> None:
        """Print the text on stdout."""
        self.close()
        sys.stdout.write(text + "\n")

    def close(self) -> None:
        """Close the open bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LogAboveBar(logging.Handler):
    """A log handler that prints above an open progress bar. `spell` rewrites messages for the shell."""

    def __init__(self, spell: Callable[[str], str]) -> None:
        super().__init__()
        self._spell = spell

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record and redraw the bar below it."""
        tqdm.write(self._spell(self.format(record)), file=sys.stderr)


class JsonConsole(Console):
    """One JSON object a line on stdout: {"event": "progress", ...}, those of `event`, and {"event": "result", ...}.

    If the reader of stdout has gone, events are dropped and the run continues; the result raises BrokenPipeError.
    """

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False, quiet: bool = False) -> None:
        super().__init__(is_stopped, quiet)
        self._stdout = sys.stdout  # a node that prints gets another stdout
        self._node: str | None = None

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Print {"event": "progress", "stage", "done", "total", "unit"}, and "node" if it is known."""
        super().report(stage, done, total, unit, node)
        node = node or self._node
        where = {} if node is None else {"node": node}
        self.event("progress", stage=stage, done=done, total=total, unit=unit, **where)

    def event(self, name: str, /, **values: Any) -> None:
        """Print {"event": name, ...values}."""
        if name == "executing":
            self._node = values["node"]
        elif name == "executed" and values.get("node") == self._node:
            self._node = None  # what follows, such as hashing for a manifest, is not that node's progress
        if not self._quiet:
            with contextlib.suppress(BrokenPipeError):
                self._line(name, values)

    def announce(self, name: str, text: str, /, **values: Any) -> None:
        """Print {"event": name, ...values}; of "missing": kind, name, nodes, folder, url."""
        self.event(name, **values)

    def result(self, text: str, **values: Any) -> None:
        """Print {"event": "result", ...values}."""
        self._line("result", values)

    def _line(self, event: str, values: dict[str, Any]) -> None:
        line = {"event": event, **values, **{"event": event}}  # first, and what it says whatever the values are
        self._stdout.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
        self._stdout.flush()
