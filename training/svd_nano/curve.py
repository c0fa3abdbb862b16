"""Draws a training's losses as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, MARGIN = 640, 360, 48
INK, PALE, LINE = (40, 40, 48), (222, 222, 228), (32, 96, 200)
POINTS = 200  # of the drawn line, each the mean of the losses of its stretch of time


def draw_curve(losses: Sequence[tuple[int, float, float]], title: str, path: Path) -> None:
    """Write `losses`, rows of (step, seconds, loss), as a PNG: minutes across, loss on a logarithmic scale upwards."""
    from PIL import Image, ImageDraw

    minutes = np.array([seconds / 60 for _, seconds, _ in losses])
    chunks = [each for each in np.array_split(np.arange(len(losses)), min(POINTS, len(losses))) if len(each)]
    x = np.array([minutes[chunk].mean() for chunk in chunks])
    loss = np.array([each for *_, each in losses])
    y = np.log10(np.array([max(float(loss[chunk].mean()), 1e-9) for chunk in chunks]))
    low, high = y.min() - 0.05, y.max() + 0.05
    longest = max(minutes[-1], 1e-3)

    def place(minute: float, level: float) -> tuple[float, float]:
        return (
            MARGIN + (WIDTH - 2 * MARGIN) * minute / longest,
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (level - low) / (high - low),
        )

    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for level in np.linspace(low, high, 5):
        draw.line([place(0, level), place(longest, level)], PALE)
        draw.text((4, place(0, level)[1] - 6), f"{10**level:.3g}", INK)
    for minute in np.linspace(0, longest, 5):
        draw.text((place(minute, low)[0] - 8, HEIGHT - MARGIN + 6), f"{minute:.{0 if longest >= 8 else 1}f}", INK)
    draw.line([place(*each) for each in zip(x, y, strict=True)], LINE, width=2)
    last = math.pow(10, y[-1])
    draw.text((MARGIN, 14), f"{title}: {len(losses)} steps, last loss {last:.4g}; minutes across", INK)
    picture.save(path)
