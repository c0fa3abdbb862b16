"""Render images of a rocket in a night sky from numbers, at any size.

Positions are (x, y) from the center of the image, y downwards. Positions and lengths are in image heights. Colors are
(red, green, blue) in [0, 1]. Textures are functions of the position and a seed, without a random generator: the same on
every machine, and of any extent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ...svd_core.errors import SettingError

Color = tuple[float, float, float]
SUPERSAMPLING = 2  # samples per pixel and axis
STARS = ((7.0, 0.66, 0.0036), (13.0, 0.55, 0.0020), (24.0, 0.62, 0.0013))
"""Layers of stars: cells per image height, the fraction of empty cells, and the radius of the largest star."""

TAIL = -0.455
"""Position of the nozzle in hull lengths along the axis; the nose is at 0.5."""


@dataclass(frozen=True)
class Sky:
    """A night sky: a gradient from `low` to `high`, clouds of stars colored `nebula`, and stars; all from `seed`."""

    seed: int = 7
    low: Color = (0.20, 0.12, 0.33)
    high: Color = (0.03, 0.05, 0.15)
    nebula: Color = (0.36, 0.24, 0.62)


@dataclass(frozen=True)
class Planet:
    """A banded planet lit from the upper left."""

    x: float = -0.70
    y: float = 0.52
    radius: float = 0.46
    light: Color = (0.98, 0.66, 0.42)
    dark: Color = (0.72, 0.30, 0.38)
    seed: int = 3


@dataclass(frozen=True)
class Rocket:
    """A rocket that flies in the direction of `angle`, degrees clockwise from straight up.

    Attributes:
        x: Center of the hull.
        y: Center of the hull.
        angle: Direction.
        length: Length of the hull.
        flame: Length of the flame in hull lengths.
        hull: Color.
        accent: Color of nose, belt and fins.
        glass: Color of the window.
        seed: Seed of the flame's shape.
    """

    x: float = 0.20
    y: float = -0.06
    angle: float = 52.0
    length: float = 0.62
    flame: float = 0.50
    hull: Color = (0.95, 0.95, 0.97)
    accent: Color = (0.90, 0.22, 0.24)
    glass: Color = (0.30, 0.68, 0.92)
    seed: int = 11


@dataclass(frozen=True)
class Scene:
    """One image."""

    sky: Sky = field(default_factory=Sky)
    planet: Planet = field(default_factory=Planet)
    rocket: Rocket = field(default_factory=Rocket)


def render(scene: Scene, width: int, height: int) -> np.ndarray:
    """Render a scene to (height, width, 3) uint8.

    Raises:
        SettingError: A side is below 1.
    """
    if min(width, height) < 1:
        raise SettingError(f"width and height must be at least 1, got {width}x{height}. Use 768x432.")
    fine = SUPERSAMPLING
    canvas = Canvas.empty(width * fine, height * fine)
    paint_sky(canvas, scene.sky)
    paint_planet(canvas, scene.planet)
    paint_rocket(canvas, scene.rocket)
    colors = canvas.colors.reshape(height, fine, width, fine, 3).mean(axis=(1, 3))
    return (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image that is painted in place: colors (H, W, 3) float32, and x, y (H, W) of each sample."""

    colors: np.ndarray
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def empty(cls, width: int, height: int) -> Canvas:
        """Create a black canvas of width x height samples."""
        across = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / height
        down = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / height
        x, y = np.meshgrid(across, down)
        return cls(np.zeros((height, width, 3), np.float32), x, y)

    @property
    def sample(self) -> float:
        """Side of a sample."""
        return 1.0 / self.colors.shape[0]

    def inside(self, distance: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """Return the fraction (H, W) of each sample where `distance`, in units of `scale`, is negative."""
        return np.clip(0.5 - distance * (scale / self.sample), 0, 1)

    def cover(self, color: Color | np.ndarray, amount: np.ndarray) -> None:
        """Blend `color` over the canvas, with opacity `amount` (H, W) in [0, 1]."""
        self.colors[:] += amount[..., None] * (np.asarray(color, np.float32) - self.colors)

    def shine(self, color: Color | np.ndarray, amount: np.ndarray) -> None:
        """Add light with a screen blend, weighted by `amount` (H, W) in [0, 1]."""
        self.colors[:] += amount[..., None] * np.asarray(color, np.float32) * (1 - self.colors)


def paint_sky(canvas: Canvas, sky: Sky) -> None:
    """Paint gradient, clouds and stars on the whole canvas."""
    paint_clouds(canvas, sky)
    for layer, (cells, empty, radius) in enumerate(STARS):
        paint_stars(canvas, cells, empty, radius, sky.seed + 2 + layer)


def paint_clouds(canvas: Canvas, sky: Sky) -> None:
    """Paint gradient and clouds of a sky on the whole canvas."""
    down = np.clip(canvas.y + 0.5 + 0.25 * canvas.x, 0, 1)
    canvas.cover(blend(sky.high, sky.low, down), np.ones_like(down))
    band = np.exp(-(((canvas.y - 0.5 * canvas.x + 0.08) / 0.36) ** 2))
    wisps = cloud(canvas.x * 2.2, canvas.y * 2.2, sky.seed)
    dust = cloud(canvas.x * 5.0, canvas.y * 5.0, sky.seed + 1)
    canvas.shine(sky.nebula, 1.3 * band * smooth(0.35, 0.85, wisps) * (0.4 + 0.6 * dust))
    canvas.shine(sky.nebula, 0.10 * dust)


def paint_stars(canvas: Canvas, cells: float, empty: float, radius: float, seed: int) -> None:
    """Paint at most one star per cell of a grid, far enough from the border that its light stays inside."""
    column, row = np.floor(canvas.x * cells), np.floor(canvas.y * cells)
    chance, offset_x, offset_y, tint = (lattice(column, row, seed * 8 + each) for each in range(4))
    across, down = canvas.x * cells - column - 0.15 - 0.7 * offset_x, canvas.y * cells - row - 0.15 - 0.7 * offset_y
    brightness = np.clip((chance - empty) / (1 - empty), 0, 1)
    spread = (np.hypot(across, down) / (radius * cells * (0.6 + 0.4 * brightness))) ** 2
    light = np.exp(-spread) + 0.18 * brightness * np.exp(-spread / 16)
    color = blend((0.70, 0.82, 1.0), (1.0, 0.88, 0.74), tint)
    canvas.shine(color, np.clip((chance > empty) * (0.35 + 0.65 * brightness) * light, 0, 1))


def paint_planet(canvas: Canvas, planet: Planet) -> None:
    """Paint a sphere with wavy bands, its night side at the lower right, and a thin bright atmosphere."""
    across, down = (canvas.x - planet.x) / planet.radius, (canvas.y - planet.y) / planet.radius
    distance = np.hypot(across, down)
    height = np.sqrt(np.clip(1 - distance**2, 0, 1))
    waves = cloud(across * 1.6, down * 4.0, planet.seed)
    bands = 0.5 + 0.5 * np.sin(17 * (down + 0.35 * across) + 6 * waves)
    speckle = cloud(across * 9.0, down * 16.0, planet.seed + 1)
    day = np.clip(-0.35 * across - 0.72 * down + 0.55 * height, 0, 1)
    surface = blend(planet.dark, planet.light, 0.75 * bands + 0.25 * speckle) * (0.10 + 1.0 * day)[..., None]
    air = np.exp(-np.clip(distance - 1, 0, None) / 0.06) * np.clip(0.25 - 0.35 * across - 0.72 * down, 0, 1)
    canvas.shine(planet.light, 0.55 * air)
    canvas.cover(surface, canvas.inside(distance - 1, planet.radius))


def paint_rocket(canvas: Canvas, rocket: Rocket) -> None:
    """Paint flame, fins, hull and window, back to front."""
    turn = math.radians(rocket.angle)
    x, y = (canvas.x - rocket.x) / rocket.length, (canvas.y - rocket.y) / rocket.length
    along = x * math.sin(turn) - y * math.cos(turn)
    across = x * math.cos(turn) + y * math.sin(turn)
    paint_flame(canvas, rocket, along, across)
    paint_fins(canvas, rocket, along, across)
    paint_hull(canvas, rocket, along, across)
    paint_window(canvas, rocket, along, across)


def paint_flame(canvas: Canvas, rocket: Rocket, along: np.ndarray, across: np.ndarray) -> None:
    """Paint a flame from red to white behind the tail, with glow; along and across are in hull lengths."""
    behind = (TAIL - along) / rocket.flame
    flicker = cloud(across * 9.0, along * 5.0, rocket.seed) - 0.5
    glow = np.exp(-((np.hypot(1.5 * across, behind * rocket.flame - 0.12) / 0.26) ** 2))
    canvas.shine((1.0, 0.48, 0.16), 0.55 * glow)
    tongues = (
        ((0.96, 0.30, 0.10), 0.150, 1.00),
        ((1.0, 0.56, 0.12), 0.120, 0.80),
        ((1.0, 0.82, 0.25), 0.090, 0.60),
        ((1.0, 0.97, 0.80), 0.055, 0.38),
    )
    for color, width, reach in tongues:
        t = np.clip(behind / reach, 0, 1)
        half_width = width * np.sqrt(1 - t) * (0.62 + 1.1 * t - 0.9 * t**2) * (1 + 0.5 * t * flicker)
        sideways = across - 0.09 * t**2 * flicker
        inside = np.clip((half_width - np.abs(sideways)) / (0.006 + 0.02 * t), 0, 1) * smooth(1.0, 0.55, t)
        canvas.cover(color, inside * (behind > -0.1))


def paint_fins(canvas: Canvas, rocket: Rocket, along: np.ndarray, across: np.ndarray) -> None:
    """Paint a swept-back fin on each side, and the nozzle between them."""
    nozzle = np.maximum(np.abs(across) - 0.075 - 0.35 * (-0.40 - along), np.abs(along - 0.5 * (TAIL - 0.36)) - 0.055)
    canvas.cover(metal((0.36, 0.38, 0.45), across / 0.10), canvas.inside(nozzle, rocket.length))
    for side in (-1.0, 1.0):
        out = side * across
        down = np.clip((-0.05 - along) / 0.50, 0, 1)
        outer = out - 0.12 - 0.13 * np.sqrt(down * (2 - down))
        lower = -0.36 - 1.1 * np.clip(out - 0.09, 0, 1) - along
        fin = np.maximum(np.maximum(outer, lower), np.maximum(along + 0.05, -out))
        shade = (1.0 if side < 0 else 0.64) - 0.30 * down
        canvas.cover(np.asarray(rocket.accent) * shade[..., None], canvas.inside(fin, rocket.length))


def paint_hull(canvas: Canvas, rocket: Rocket, along: np.ndarray, across: np.ndarray) -> None:
    """Paint the round body with colored nose and belt, lit from its left."""
    half_width = hull_half_width(along)
    body = np.maximum(np.abs(across) - half_width, np.abs(along - 0.045) - 0.455)
    round_ = np.clip(across / np.maximum(half_width, 1e-3), -1, 1)
    bend = 0.045 * np.sqrt(1 - round_**2)  # rings on the body look bent, as it is round
    line = along + bend
    belt = np.abs(line + 0.245) - 0.022
    paint = np.maximum(canvas.inside(0.27 - line, rocket.length), canvas.inside(belt, rocket.length))
    color = blend(rocket.hull, rocket.accent, paint)
    seams = np.minimum(np.abs(line - 0.225), np.abs(line + 0.19))
    color = color * (1 - 0.30 * canvas.inside(seams - 0.004, rocket.length))[..., None]
    canvas.cover(metal(color, round_), canvas.inside(body, rocket.length))
    rim = smooth(0.55, 1.0, round_) * smooth(0.2, -0.4, along)
    canvas.shine((1.0, 0.5, 0.2), 0.45 * rim * canvas.inside(body, rocket.length))
    ridge = 0.024 * smooth(-0.13, -0.36, along)
    middle = np.maximum(np.abs(across) - ridge, np.abs(along + 0.30) - 0.17)
    canvas.cover(metal(rocket.accent, np.clip(across / 0.024, -1, 1)), canvas.inside(middle, rocket.length))


def paint_window(canvas: Canvas, rocket: Rocket, along: np.ndarray, across: np.ndarray) -> None:
    """Paint a round window in a frame, with a reflection at the upper left."""
    up = along - 0.085
    distance = np.hypot(across, up)
    frame = blend((0.86, 0.88, 0.93), (0.34, 0.37, 0.46), np.clip(0.5 + 4.2 * across - 3.0 * up, 0, 1))
    canvas.cover(frame, canvas.inside(distance - 0.092, rocket.length))
    glass = blend(rocket.glass, np.asarray(rocket.glass) * 0.28, np.clip(0.42 + 4.5 * across - 5.0 * up, 0, 1))
    canvas.cover(glass, canvas.inside(distance - 0.068, rocket.length))
    crescent = np.maximum(distance - 0.054, 0.058 - np.hypot(across - 0.018, up + 0.018))
    canvas.cover((0.92, 0.98, 1.0), 0.80 * canvas.inside(crescent, rocket.length))


def hull_half_width(along: np.ndarray) -> np.ndarray:
    """Return half the hull's width along its axis, in hull lengths: a drop with its point in front."""
    t = np.clip((along + 0.41) / 0.91, 0, 1)
    return 0.152 * (1 - t) ** 0.62 * (0.64 + 1.9 * t - 0.1 * t**2)


def metal(color: Color | np.ndarray, round_: np.ndarray) -> np.ndarray:
    """Shade `color` (3,) or (H, W, 3) on a cylinder: `round_` (H, W) is -1 at its lit left edge, 1 at its right."""
    light = 0.42 + 0.58 * np.clip(0.80 - 0.62 * round_ - 0.30 * round_**2, 0, 1)
    streak = 0.35 * np.exp(-(((round_ + 0.42) / 0.16) ** 2))
    lit = np.asarray(color, np.float32) * light[..., None]
    return lit + streak[..., None] * (1 - lit)


def blend(start: Color | np.ndarray, end: Color | np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Interpolate colors (H, W, 3) from `start` where amount (H, W) is 0 to `end` where it is 1."""
    start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
    return start + amount[..., None] * (end - start)


def smooth(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Smoothstep from 0 at `low` to 1 at `high`; falls if low > high."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def cloud(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Compute fractal value noise in [0, 1] of four octaves."""
    octaves = (value_noise(x * 2**i, y * 2**i, seed * 8 + i) * 0.5**i for i in range(4))
    return sum(octaves, np.zeros_like(x)) / 1.875


def value_noise(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Interpolate the lattice's random values in [0, 1] smoothly."""
    column, row = np.floor(x), np.floor(y)
    right, below = smooth(0, 1, x - column), smooth(0, 1, y - row)
    top = lattice(column, row, seed) * (1 - right) + lattice(column + 1, row, seed) * right
    bottom = lattice(column, row + 1, seed) * (1 - right) + lattice(column + 1, row + 1, seed) * right
    return top * (1 - below) + bottom * below


def lattice(column: np.ndarray, row: np.ndarray, seed: int) -> np.ndarray:
    """Hash integer positions and a seed to float32 in [0, 1), in the shape of `column` and `row`."""
    mixed = column.astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1)
    mixed ^= row.astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA77)
    mixed ^= np.uint32(seed * 0xC2B2AE3D & 0xFFFFFFFF)
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    mixed ^= mixed >> np.uint32(15)
    return (mixed >> np.uint32(8)).astype(np.float32) / 2**24
