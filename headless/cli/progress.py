"""The progress of a command over all of its stages: the share that is done, the time left, and its display."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from ...svd_core.errors import counted

WEIGHTS = {"loading": 6.0, "embedding": 0.1, "encoding": 0.25, "sampling": 1.0, "fitting": 1.0, "decoding": 4.0}
"""Times of the stages of a video, those of sampling and fitting for each step. They only count until a stage was timed.

`animate example_workflows/rocket.png --json` on two CPU cores: loading 6.6 steps, embedding 0.06, encoding 0.25,
decoding 5.4. SVD-XT decodes in the time of 4.4 steps by TensorRT (model card of
stable-video-diffusion-img2vid-xt-1-1-tensorrt), but of 1.2 by FLOPs and 1.5 by bytes moved (`bench --only counted`).
The weight of decoding is a guess near the two that were measured; with torch on a GPU it was not.
"""
STEPPED = ("sampling", "fitting")
"""Stages of sampling steps."""
STEPS = 25
"""Sampling steps, until a stage of sampling has begun."""
OTHER_WEIGHT = 2.0
LIGHT_WEIGHT = 0.5
"""Stages that are lighter together say little of the time of the others."""
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_DRAWS = 0.1
LONGEST_BAR = 30
WIDEST = 120


class Forecast:
    """Estimates how much of a command is done, from typical times of its stages and the time of those that ran.

    Args:
        expected: Names of the stages, one for each time that it will run, in any order. Others may run, too.
    """

    def __init__(self, expected: Iterable[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._pending = list(expected)
        self._clock = clock
        self._began = clock()
        self._finished: list[tuple[str, float, float]] = []  # name, weight, seconds
        self._stage: str | None = None
        self._steps = STEPS
        self._stage_began = self._began
        self._share = 0.0
        self._shown = 0.0

    def begin(self, stage: str, units: int) -> None:
        """Finish the current stage and begin another one of so many units: steps of sampling."""
        self._finish()
        if stage in STEPPED:
            self._steps = units
        if stage in self._pending:
            self._pending.remove(stage)
        self._stage, self._stage_began, self._share = stage, self._clock(), 0.0

    def advance(self, share: float) -> None:
        """Set the share of the current stage that is done, 0 to 1."""
        self._share = share
        if share >= 1:
            self._finish()

    def _finish(self) -> None:
        if self._stage is not None:
            self._finished.append((self._stage, self._weight(self._stage), self._clock() - self._stage_began))
        self._stage = None

    def estimate(self) -> tuple[float, float | None]:
        """Return the share of the command that is done, which never falls, and the seconds left. None: unknown."""
        now = self._clock()
        elapsed = now - self._stage_began
        timed = list(self._finished)
        if self._stage is not None and self._share > 0:
            timed.append((self._stage, self._weight(self._stage), elapsed / self._share))
        others = [each for each in timed if each[0] != "loading"]  # a disk says little of a processor
        timed = others if sum(weight for _, weight, _ in others) > LIGHT_WEIGHT else timed
        if not timed:
            return self._shown, None
        seconds_per_weight = sum(seconds for _, _, seconds in timed) / sum(weight for _, weight, _ in timed)
        left = sum(map(self._weight, self._pending)) * seconds_per_weight
        if self._stage is not None:
            expected = elapsed / self._share if self._share > 0 else self._weight(self._stage) * seconds_per_weight
            left += max(0.0, expected - elapsed)
        spent = now - self._began
        self._shown = max(self._shown, spent / (spent + left) if spent + left > 0 else 0.0)
        return self._shown, left

    def _weight(self, stage: str) -> float:
        return WEIGHTS.get(stage, OTHER_WEIGHT) * (self._steps if stage in STEPPED else 1)


class Display:
    """Shows progress on stderr: a bar in a terminal, elsewhere a line for each stage, or for ten seconds of one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected: Sequence[str] = ()
        self._forecast: Forecast | None = None
        self._line = ""  # the bar that is visible
        self._subject = ""
        self._stage_began = self._last = clock()

    def expect(self, stages: Sequence[str]) -> None:
        """Show one bar for these stages. Without it, each stage has its own."""
        self._expected = stages

    def name(self, subject: str) -> None:
        """Show a text before the names of the stages that follow: which video they are of."""
        self._subject = subject

    def report(self, stage: str, done: int, total: int, unit: str) -> None:
        """Show the progress of a stage. The first report of a stage has 0 done."""
        now = self._clock()
        if done == 0:
            if self._forecast is None or not self._expected:
                self._forecast = Forecast(self._expected, self._clock)
            self._forecast.begin(stage, total)
            self._stage_began = self._last = now
        elif self._forecast is None:
            return
        self._forecast.advance(done / total if total else 1.0)
        is_complete = done >= total
        if sys.stderr.isatty():
            if done == 0 or is_complete or now - self._last >= SECONDS_BETWEEN_DRAWS:
                self._last = now
                text = f"{self._subject}{stage:<10} {unit} {done} of {total}"
                self._draw(_bar_line(text, *self._forecast.estimate()))
        elif is_complete:
            sys.stderr.write(f"{self._subject}{stage}: {counted(total, unit)} in {now - self._stage_began:.1f} s\n")
        elif now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            _, left = self._forecast.estimate()
            sys.stderr.write(f"{self._subject}{stage}: {unit} {done} of {total}{_left(left)}\n")

    def above(self, text: str, stream: TextIO | None = None) -> None:
        """Print a text on stderr or another stream, above the bar if one is visible."""
        line = self._line
        self._draw("")
        print(text, file=stream or sys.stderr, flush=True)
        self._draw(line)

    def close(self, is_complete: bool = False) -> None:
        """End the bar, full if the command is complete."""
        if self._line:
            if is_complete:
                self._draw(_bar_line("done", 1.0, None))
            sys.stderr.write("\n")
        self._line, self._forecast = "", None

    def _draw(self, line: str) -> None:
        if line != self._line:
            sys.stderr.write(f"\r{line}{' ' * (len(self._line) - len(line))}" + ("" if line else "\r"))
            sys.stderr.flush()
            self._line = line


def terminal_width() -> int:
    """Return the columns of the terminal of stderr: 80 if it does not know them, and at most 120."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        columns = 0
    return min(WIDEST, columns) if columns > 0 else 80


def _bar_line(text: str, share: float, left: float | None) -> str:
    """Return text, bar, percentage and time left, shorter than the terminal is wide."""
    end = f"{share:4.0%}{_left(left)}"
    width = terminal_width() - 1
    room = min(LONGEST_BAR, width - len(end) - max(28, len(text)) - 4)
    full = round(share * room)
    bar = f"[{'#' * full}{'-' * (room - full)}] " if room >= 5 else ""
    return f"{text:<28} {bar}{end}"[:width]


def _left(seconds: float | None) -> str:
    if seconds is None or round(seconds) == 0:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f", about {f'{hours}:{minutes:02}' if hours else minutes}:{rest:02} left"
