"""What a person, or a program, sees of a run: a progress bar with the stage's name, or JSON lines."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from typing import Any, Protocol

from tqdm import tqdm


class Console(Protocol):
    """How the command line speaks."""

    def report(self, stage: str, done: int, total: int, unit: str) -> None:
        """Progress; a `host.Reporter`."""
        ...

    def result(self, text: str, **values: Any) -> None:
        """What came out: a sentence for people, values for programs."""
        ...

    def close(self) -> None:
        """Leave the terminal tidy."""
        ...


class TerminalConsole:
    """A bar on stderr, results on stdout."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def report(self, stage: str, done: int, total: int, unit: str) -> None:
        """Open the stage's bar at 0 done, move it, leave it standing when complete."""
        if done == 0:
            self.close()
            self._bar = tqdm(total=total, desc=f"{stage:<10}", unit=unit, file=sys.stderr, dynamic_ncols=True)
        elif self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done >= total:
                self.close()

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


class JsonConsole:
    """One JSON object a line on stdout: {"event": "progress", ...} and {"event": "result", ...}.

    When the reader has gone, progress is told to nobody and the run goes on; the result raises BrokenPipeError.
    """

    def report(self, stage: str, done: int, total: int, unit: str) -> None:
        """{"event": "progress", "stage", "done", "total", "unit"}."""
        with contextlib.suppress(BrokenPipeError):
            self._line({"event": "progress", "stage": stage, "done": done, "total": total, "unit": unit})

    def result(self, text: str, **values: Any) -> None:
        """{"event": "result", ...values}."""
        self._line({"event": "result", **values})

    def close(self) -> None:
        """Nothing is open."""

    def _line(self, value: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(value, ensure_ascii=True, default=str) + "\n")
        sys.stdout.flush()
