"""Show a run: progress and results for people, or JSON lines."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from .progress import Display, terminal_width


class Console:
    """The output of the command line.

    A progress report raises KeyboardInterrupt if the user asked to stop. That of the signal itself can be lost: Python
    drops exceptions that are raised in finalizers. A quiet console prints only results and errors.
    """

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False, quiet: bool = False) -> None:
        self._is_stopped = is_stopped
        self._quiet = quiet

    @property
    def is_quiet(self) -> bool:
        """Return True if only results and errors are to be printed: no times."""
        return self._quiet

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Show progress; a `runtime.Reporter`. `node` is the id of the node that is running, if it is known."""
        if self._is_stopped():
            raise KeyboardInterrupt

    def event(self, name: str, /, **values: Any) -> None:
        """Print an engine's event: queued, cached, executing, executed. See headless/engines/events.py."""

    def announce(self, name: str, text: str, /, **values: Any) -> None:
        """Print an event that people see, too: `missing` (a file or node of a graph), `batch` (who works)."""

    def failure(self, text: str, /, **values: Any) -> None:
        """Print the error of a part of the work, after which the rest goes on: the event `failed`."""

    def expect(self, stages: Sequence[str]) -> None:
        """Announce the stages of the command, one name for each time that a stage will run."""

    def name(self, subject: str, **values: Any) -> None:
        """Name the video of the stages that follow: a text for people, values for programs."""

    def notice(self, text: str) -> None:
        """Print a text for people on stderr."""
        sys.stderr.write(text + "\n")

    def part(self, name: str, text: str, /, **values: Any) -> None:
        """Print a part of the result as soon as it is known, as `result` does: `wrote`, `machine`, ..."""

    def result(self, text: str, **values: Any) -> None:
        """Print the result: a sentence for people, values for programs."""

    def close(self) -> None:
        """End the display of progress."""


class TerminalConsole(Console):
    """Progress on stderr, results on stdout. People see no other events than those of `announce`."""

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False, quiet: bool = False) -> None:
        super().__init__(is_stopped, quiet)
        self._display = Display()

    def expect(self, stages: Sequence[str]) -> None:
        """Show these stages as one."""
        self._display.expect(stages)

    def name(self, subject: str, **values: Any) -> None:
        """Show the text in the bar and in the lines of a log."""
        self._display.name(subject)

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Show the progress, of all expected stages in one."""
        super().report(stage, done, total, unit, node)
        if not self._quiet:
            self._display.report(stage, done, total, unit)

    def announce(self, name: str, text: str, /, **values: Any) -> None:
        """Print the text on stderr."""
        if not self._quiet:
            self.notice(text)

    def failure(self, text: str, /, **values: Any) -> None:
        """Print the text on stderr."""
        self.notice(text)

    def notice(self, text: str) -> None:
        """Print a text on stderr, above the bar."""
        self._display.above(text)

    def part(self, name: str, text: str, /, **values: Any) -> None:
        """Print the text on stdout, above the bar."""
        self._display.above(text, sys.stdout)

    def result(self, text: str, **values: Any) -> None:
        """Print the text on stdout."""
        self._display.close(is_complete=True)
        if text:
            sys.stdout.write(text + "\n")

    def close(self) -> None:
        """End the bar where it is."""
        self._display.close()


class ConsoleLog(logging.Handler):
    """A log handler that prints each notice once in a process, wrapped to a terminal, above the progress.

    `spell` rewrites messages for the shell.
    """

    def __init__(self, console: Console, spell: Callable[[str], str]) -> None:
        super().__init__()
        self._console = console
        self._spell = spell
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, unless its text was printed before."""
        text = self._spell(self.format(record))
        if text in self._printed:
            return
        self._printed.add(text)
        if sys.stderr.isatty():
            text = textwrap.fill(text, terminal_width() - 1, break_long_words=False, break_on_hyphens=False)
        self._console.notice(text)


class JsonConsole(Console):
    """One JSON object a line on stdout: {"event": "progress", ...}, those of `event`, and {"event": "result", ...}.

    If the reader of stdout has gone, events are dropped and the run continues; the result raises BrokenPipeError.
    """

    def __init__(self, is_stopped: Callable[[], bool] = lambda: False, quiet: bool = False) -> None:
        super().__init__(is_stopped, quiet)
        self._stdout = sys.stdout  # a node that prints gets another stdout
        self._node: str | None = None
        self._video: dict[str, Any] = {}

    def name(self, subject: str, **values: Any) -> None:
        """Add these values to the progress that follows."""
        self._video = values

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Print {"event": "progress", "stage", "done", "total", "unit"}, and "node" or the video if it is known."""
        super().report(stage, done, total, unit, node)
        node = node or self._node
        where = self._video if node is None else {**self._video, "node": node}
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

    def failure(self, text: str, /, **values: Any) -> None:
        """Print {"event": "failed", ...values}."""
        with contextlib.suppress(BrokenPipeError):
            self._line("failed", values)

    def part(self, name: str, text: str, /, **values: Any) -> None:
        """Print {"event": name, ...values}."""
        self._line(name, values)

    def result(self, text: str, **values: Any) -> None:
        """Print {"event": "result", ...values}."""
        self._line("result", values)

    def _line(self, event: str, values: dict[str, Any]) -> None:
        line = {"event": event, **values, **{"event": event}}  # first, and what it says whatever the values are
        self._stdout.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
        self._stdout.flush()
