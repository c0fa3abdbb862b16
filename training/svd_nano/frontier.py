"""Draw samplers as network calls against the error to the converged solution, from the table of a page:

python -m svd_stages.training.svd_nano.frontier docs/development/svd-nano.md docs/images/samplers.svg
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from ...svd_core.errors import SettingError
from ...svd_core.sampler_comparison import REFERENCE, Candidate

WIDTH, HEIGHT = 780, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 230, 40, 54
"""Pixels around the plot. The legend is at the right."""
COLORS = ("#2060c8", "#d05020", "#208a50", "#8a3fa0", "#806020", "#40808a")
TEXT, GRID = "#282830", "#dedee4"
ROW = re.compile(r"\| (\w+), (\w+), (\d+)(?: \([^|]*\))? \| (?:compare \| )?(\d+)(?: \| |; [\d.]+ s; )([\d.]+)[ ,]")
"""The beginning of a row of the page or of the evaluation: sampler, schedule, steps, network calls, latent error. Rows
with an interval of guidance or the step cache do not match: they solve another equation."""


@dataclass(frozen=True)
class Point:
    """A candidate, its network calls and its latent error."""

    candidate: Candidate
    calls: int
    error: float

    @property
    def series(self) -> str:
        """Return the name of the line that the point is on."""
        return f"{self.candidate.sampler}, {self.candidate.schedule}"


def read_points(page: str) -> list[Point]:
    """Return the points of a Markdown table with rows as ROW has them.

    Raises:
        SettingError: The page has no such row.
    """
    matches = [ROW.match(line) for line in page.splitlines()]
    points = [
        Point(Candidate(each[1], each[2], int(each[3])), int(each[4]), float(each[5])) for each in matches if each
    ]
    if not points:
        raise SettingError('the page has no row such as "| euler, karras, 25 | 50 | 0.0275 |".')
    return points


def draw_frontier(points: Sequence[Point], title: str) -> str:
    """Return an SVG: network calls on the x axis, the logarithm of the error on the y axis, a line per series."""
    plot = _Plot(points)
    names = list(dict.fromkeys(point.series for point in points))
    parts = [*plot.grid(), _text(LEFT, TOP - 18, title, "start")]
    for index, name in enumerate(names):
        color = COLORS[index % len(COLORS)]
        line = sorted((point for point in points if point.series == name), key=lambda point: point.calls)
        path = " ".join(f"{plot.x(point.calls):.1f},{plot.y(point.error):.1f}" for point in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts += [_mark(plot, point, color) for point in line]
        height = TOP + 12 + 22 * index
        parts.append(f'<circle cx="{WIDTH - RIGHT + 22}" cy="{height - 4}" r="4" fill="{color}"/>')
        parts.append(_text(WIDTH - RIGHT + 34, height, name, "start"))
    below = TOP + 12 + 22 * len(names)
    parts += [_text(WIDTH - RIGHT + 18, below + 18 * row, text, "start") for row, text in enumerate(plot.notes)]
    style = 'font-family="sans-serif" font-size="12"'
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    body = "\n".join([f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *parts])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{body}\n</svg>\n'


class _Plot:
    """The axes: x linear from 0, y logarithmic."""

    notes = ("number: steps", "ring: a preset", "dashed: the error of", "the preset reference")

    def __init__(self, points: Sequence[Point]) -> None:
        errors = [point.error for point in points]
        self._most_calls = 10 * math.ceil((max(point.calls for point in points) + 1) / 10)
        self._low, self._high = math.log10(min(errors)) - 0.1, math.log10(max(errors)) + 0.1
        self._reference = next((point.error for point in points if point.candidate == REFERENCE), None)

    def x(self, calls: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * calls / self._most_calls

    def y(self, error: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(error) - self._low) / (self._high - self._low)

    def grid(self) -> list[str]:
        """Return the lines and labels of the axes, and the error of the preset reference."""
        ticks = [digit * 10.0**power for power in range(-6, 2) for digit in (1, 2, 5)]
        shown = [tick for tick in ticks if self._low <= math.log10(tick) <= self._high]
        columns = range(0, self._most_calls + 1, 10)
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [_line(LEFT, self.y(tick), right, self.y(tick), GRID) for tick in shown]
        parts += [_line(self.x(calls), TOP, self.x(calls), bottom, GRID) for calls in columns]
        parts += [_text(LEFT - 8, self.y(tick) + 4, f"{tick:g}", "end") for tick in shown]
        parts += [_text(self.x(calls), bottom + 18, str(calls), "middle") for calls in columns]
        parts.append(_text((LEFT + right) / 2, HEIGHT - 12, "network calls", "middle"))
        if self._reference is not None:
            height = self.y(self._reference)
            parts.append(_line(LEFT, height, right, height, TEXT, ' stroke-dasharray="4 4"'))
        return parts


def _mark(plot: _Plot, point: Point, color: str) -> str:
    x, y = plot.x(point.calls), plot.y(point.error)
    ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="{TEXT}"/>' if point.candidate.preset else ""
    label = _text(x + 10, y - 6, str(point.candidate.steps), "start", color)
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>{ring}{label}'


def _line(x: float, y: float, x_end: float, y_end: float, color: str, more: str = "") -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x_end:.1f}" y2="{y_end:.1f}" stroke="{color}"{more}/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = TEXT) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'


TITLE = "svd-nano: latent error to the converged solution"


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="svd_stages.training.svd_nano.frontier", description=__doc__)
    parser.add_argument("page", type=Path, help="a Markdown file with the table of evaluate --rows samplers")
    parser.add_argument("plot", type=Path, help="the SVG file to write")
    arguments = parser.parse_args(argv)
    points = read_points(arguments.page.read_text(encoding="utf-8"))
    arguments.plot.write_text(draw_frontier(points, TITLE), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
