"""Draw the losses of a training as an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, MARGIN = 640, 360, 48
TEXT, GRID, LINE = (40, 40, 48), (222, 222, 228), (32, 96, 200)
POINTS = 200
"""Most points of the line. Each is the mean of consecutive losses."""


def draw_curve(losses: Sequence[tuple[int, float, float]], title: str, path: Path) -> None:
    """Draw rows of (step, seconds, loss) as a PNG: minutes on the x axis, the logarithm of the loss on the y axis."""
    from PIL import Image, ImageDraw

    _, seconds, loss = np.array(losses).T
    minutes = seconds / 60
    chunks = np.array_split(np.arange(len(losses)), min(POINTS, len(losses)))
    x = [minutes[chunk].mean() for chunk in chunks]
    y = np.log10([max(float(loss[chunk].mean()), 1e-9) for chunk in chunks])
    low, high = y.min() - 0.05, y.max() + 0.05
    longest = max(minutes[-1], 1e-3)

    def point(minute: float, level: float) -> tuple[float, float]:
        return (
            MARGIN + (WIDTH - 2 * MARGIN) * minute / longest,
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (level - low) / (high - low),
        )

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for level in np.linspace(low, high, 5):
        draw.line([point(0, level), point(longest, level)], GRID)
        draw.text((4, point(0, level)[1] - 6), f"{10**level:.3g}", TEXT)
    for minute in np.linspace(0, longest, 5):
        draw.text((point(minute, low)[0] - 8, HEIGHT - MARGIN + 6), f"{minute:.{0 if longest >= 8 else 1}f}", TEXT)
    draw.line([point(*each) for each in zip(x, y, strict=True)], LINE, width=2)
    draw.text((MARGIN, 14), f"{title}: {len(losses)} steps, last loss {10 ** y[-1]:.4g}; minutes across", TEXT)
    image.save(path)
