"""Pictures that the project draws itself: a rocket in a night sky, described by numbers and rendered from them.

A scene says what is where; `render` makes it pixels of any size. What moves in a clip is a number of the scene.

Places are (x, y) from the middle of the picture, y downwards; lengths and places are in picture heights. Colours are
(red, green, blue) in [0, 1]. Textures are functions of the place and a seed, without a random generator: the same on
every machine, and of any extent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...svd_core.errors import SettingError

if TYPE_CHECKING:
    from PIL import Image

Colour = tuple[float, float, float]
SUPERSAMPLING = 2  # samples per pixel, each way
STARS = ((7.0, 0.66, 0.0036), (13.0, 0.55, 0.0020), (24.0, 0.62, 0.0013))
"""Layers of stars: cells per picture height, how many of them stay empty, and the radius of the largest star."""

TAIL = -0.455
"""Where the fire leaves the nozzle, in hull lengths along the axis; the nose is at 0.5."""


@dataclass(frozen=True)
class Sky:
    """A night sky: a gradient from `low` to `high`, clouds of stars coloured `nebula`, and stars; all from `seed`."""

    seed: int = 7
    low: Colour = (0.20, 0.12, 0.33)
    high: Colour = (0.03, 0.05, 0.15)
    nebula: Colour = (0.36, 0.24, 0.62)


@dataclass(frozen=True)
class Planet:
    """A banded planet lit from the upper left."""

    x: float = -0.70
    y: float = 0.52
    radius: float = 0.46
    light: Colour = (0.98, 0.66, 0.42)
    dark: Colour = (0.72, 0.30, 0.38)
    seed: int = 3


@dataclass(frozen=True)
class Rocket:
    """A rocket that flies where it points: `angle` in degrees clockwise from straight up.

    x, y, length are of the hull; flame is the fire's length in hull lengths; seed is of the fire's shape.
    """

    x: float = 0.20
    y: float = -0.06
    angle: float = 52.0
    length: float = 0.62
    flame: float = 0.50
    hull: Colour = (0.95, 0.95, 0.97)
    accent: Colour = (0.90, 0.22, 0.24)
    glass: Colour = (0.30, 0.68, 0.92)
    seed: int = 11


@dataclass(frozen=True)
class Scene:
    """All of one picture."""

    sky: Sky = field(default_factory=Sky)
    planet: Planet = field(default_factory=Planet)
    rocket: Rocket = field(default_factory=Rocket)


def draw_rocket(width: int, height: int) -> Image.Image:
    """The shipped picture, example_workflows/rocket.png, at any size."""
    from PIL import Image

    return Image.fromarray(render(Scene(), width, height))


def render(scene: Scene, width: int, height: int) -> np.ndarray:
    """The scene as (height, width, 3) uint8. Raises SettingError for an empty picture."""
    if min(width, height) < 1:
        raise SettingError(f"a picture needs at least one pixel each way, got {width}x{height}")
    fine = SUPERSAMPLING
    canvas = Canvas.empty(width * fine, height * fine)
    paint_sky(canvas, scene.sky)
    paint_planet(canvas, scene.planet)
    paint_rocket(canvas, scene.rocket)
    colours = canvas.colours.reshape(height, fine, width, fine, 3).mean(axis=(1, 3))
    return (np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture being painted: colours (H, W, 3) float32, and x, y (H, W) of each sample. Painted on in place."""

    colours: np.ndarray
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def empty(cls, width: int, height: int) -> Canvas:
        """A black canvas of width x height samples."""
        across = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / height
        down = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / height
        x, y = np.meshgrid(across, down)
        return cls(np.zeros((height, width, 3), np.float32), x, y)

    @property
    def sample(self) -> float:
        """The side of a sample."""
        return 1.0 / self.colours.shape[0]

    def inside(self, distance: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """How much of each sample lies where `distance`, in units of `scale`, is negative: (H, W) in [0, 1]."""
        return np.clip(0.5 - distance * (scale / self.sample), 0, 1)

    def cover(self, colour: Colour | np.ndarray, amount: np.ndarray) -> None:
        """Paint over what is there, where `amount` (H, W) is 1; blend where it is less."""
        self.colours[:] += amount[..., None] * (np.asarray(colour, np.float32) - self.colours)

    def shine(self, colour: Colour | np.ndarray, amount: np.ndarray) -> None:
        """Add light, as fire and stars do: the brighter what is there, the less is added."""
        self.colours[:] += amount[..., None] * np.asarray(colour, np.float32) * (1 - self.colours)


def paint_sky(canvas: Canvas, sky: Sky) -> None:
    """Gradient, clouds and stars over the whole canvas."""
    paint_clouds(canvas, sky)
    for layer, (cells, empty, radius) in enumerate(STARS):
        paint_stars(canvas, cells, empty, radius, sky.seed + 2 + layer)


def paint_clouds(canvas: Canvas, sky: Sky) -> None:
    """Gradient and clouds of a sky, over the whole canvas."""
    down = np.clip(canvas.y + 0.5 + 0.25 * canvas.x, 0, 1)
    canvas.cover(blend(sky.high, sky.low, down), np.ones_like(down))
    band = np.exp(-(((canvas.y - 0.5 * canvas.x + 0.08) / 0.36) ** 2))
    wisps = cloud(canvas.x * 2.2, canvas.y * 2.2, sky.seed)
    dust = cloud(canvas.x * 5.0, canvas.y * 5.0, sky.seed + 1)
    canvas.shine(sky.nebula, 1.3 * band * smooth(0.35, 0.85, wisps) * (0.4 + 0.6 * dust))
    canvas.shine(sky.nebula, 0.10 * dust)


def paint_stars(canvas: Canvas, cells: float, empty: float, radius: float, seed: int) -> None:
    """At most one star in each cell of a grid, far enough from its sides for the light to stay inside."""
    column, row = np.floor(canvas.x * cells), np.floor(canvas.y * cells)
    chance, left, top, tint = (lattice(column, row, seed * 8 + each) for each in range(4))
    across, down = canvas.x * cells - column - 0.15 - 0.7 * left, canvas.y * cells - row - 0.15 - 0.7 * top
    brightness = np.clip((chance - empty) / (1 - empty), 0, 1)
    spread = (np.hypot(across, down) / (radius * cells * (0.6 + 0.4 * brightness))) ** 2
    light = np.exp(-spread) + 0.18 * brightness * np.exp(-spread / 16)
    colour = blend((0.70, 0.82, 1.0), (1.0, 0.88, 0.74), tint)
    canvas.shine(colour, np.clip((chance > empty) * (0.35 + 0.65 * brightness) * light, 0, 1))


def paint_planet(canvas: Canvas, planet: Planet) -> None:
    """A ball with wavy bands, its night side to the lower right, and a thin bright air around it."""
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
    """Fire, fins, hull and window, back to front."""
    turn = math.radians(rocket.angle)
    x, y = (canvas.x - rocket.x) / rocket.length, (canvas.y - rocket.y) / rocket.length
    along = x * math.sin(turn) - y * math.cos(turn)
    across = x * math.cos(turn) + y * math.sin(turn)
    paint_fire(canvas, rocket, along, across)
    paint_fins(canvas, rocket, along, across)
    paint_hull(canvas, rocket, along, across)
    paint_window(canvas, rocket, along, across)


def paint_fire(canvas: Canvas, rocket: Rocket, along: np.ndarray, across: np.ndarray) -> None:
    """Fire from red to white behind the tail, and its glow; along and across are in hull lengths."""
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
    for colour, width, reach in tongues:
        t = np.clip(behind / reach, 0, 1)
        half_width = width * np.sqrt(1 - t) * (0.62 + 1.1 * t - 0.9 * t**2) * (1 + 0.5 * t * flicker)
        sideways = across - 0.09 * t**2 * flicker
        inside = np.clip((half_width - np.abs(sideways)) / (0.006 + 0.02 * t), 0, 1) * smooth(1.0, 0.55, t)
        canvas.cover(colour, inside * (behind > -0.1))


def paint_fins(canvas: Canvas, rocket: Rocket, along: np.ndarray, across: np.ndarray) -> None:
    """A fin on each side, swept back, and the nozzle between them."""
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
    """The round body with a coloured nose and belt, lit from its left."""
    half_width = hull_half_width(along)
    body = np.maximum(np.abs(across) - half_width, np.abs(along - 0.045) - 0.455)
    round_ = np.clip(across / np.maximum(half_width, 1e-3), -1, 1)
    bend = 0.045 * np.sqrt(1 - round_**2)  # rings on the body look bent, as it is round
    line = along + bend
    belt = np.abs(line + 0.245) - 0.022
    paint = np.maximum(canvas.inside(0.27 - line, rocket.length), canvas.inside(belt, rocket.length))
    colour = blend(rocket.hull, rocket.accent, paint)
    seams = np.minimum(np.abs(line - 0.225), np.abs(line + 0.19))
    colour = colour * (1 - 0.30 * canvas.inside(seams - 0.004, rocket.length))[..., None]
    canvas.cover(metal(colour, round_), canvas.inside(body, rocket.length))
    rim = smooth(0.55, 1.0, round_) * smooth(0.2, -0.4, along)
    canvas.shine((1.0, 0.5, 0.2), 0.45 * rim * canvas.inside(body, rocket.length))
    ridge = 0.024 * smooth(-0.13, -0.36, along)
    middle = np.maximum(np.abs(across) - ridge, np.abs(along + 0.30) - 0.17)
    canvas.cover(metal(rocket.accent, np.clip(across / 0.024, -1, 1)), canvas.inside(middle, rocket.length))


def paint_window(canvas: Canvas, rocket: Rocket, along: np.ndarray, across: np.ndarray) -> None:
    """A round window in a frame, with the sky's light in its upper left."""
    up = along - 0.085
    distance = np.hypot(across, up)
    frame = blend((0.86, 0.88, 0.93), (0.34, 0.37, 0.46), np.clip(0.5 + 4.2 * across - 3.0 * up, 0, 1))
    canvas.cover(frame, canvas.inside(distance - 0.092, rocket.length))
    glass = blend(rocket.glass, np.asarray(rocket.glass) * 0.28, np.clip(0.42 + 4.5 * across - 5.0 * up, 0, 1))
    canvas.cover(glass, canvas.inside(distance - 0.068, rocket.length))
    crescent = np.maximum(distance - 0.054, 0.058 - np.hypot(across - 0.018, up + 0.018))
    canvas.cover((0.92, 0.98, 1.0), 0.80 * canvas.inside(crescent, rocket.length))


def hull_half_width(along: np.ndarray) -> np.ndarray:
    """Half the hull's width at each place along its axis, in hull lengths: a drop, pointed in front."""
    t = np.clip((along + 0.41) / 0.91, 0, 1)
    return 0.152 * (1 - t) ** 0.62 * (0.64 + 1.9 * t - 0.1 * t**2)


def metal(colour: Colour | np.ndarray, round_: np.ndarray) -> np.ndarray:
    """`colour` on something round: `round_` is -1 at its lit left edge, 1 at its right one."""
    light = 0.42 + 0.58 * np.clip(0.80 - 0.62 * round_ - 0.30 * round_**2, 0, 1)
    streak = 0.35 * np.exp(-(((round_ + 0.42) / 0.16) ** 2))
    lit = np.asarray(colour, np.float32) * light[..., None]
    return lit + streak[..., None] * (1 - lit)


def blend(start: Colour | np.ndarray, end: Colour | np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) from `start` where amount (H, W) is 0 to `end` where it is 1."""
    start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
    return start + amount[..., None] * (end - start)


def smooth(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 at `low` and before, 1 at `high` and after, smooth between; falls when low > high."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def cloud(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Fractal value noise in [0, 1]: four octaves of a smoothed lattice of random values."""
    total = np.zeros_like(x)
    for octave in range(4):
        total += value_noise(x * 2**octave, y * 2**octave, seed * 8 + octave) * 0.5**octave
    return total / 1.875


def value_noise(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """The lattice's random values in [0, 1], joined smoothly between its whole numbers."""
    column, row = np.floor(x), np.floor(y)
    right, below = smooth(0, 1, x - column), smooth(0, 1, y - row)
    top = lattice(column, row, seed) * (1 - right) + lattice(column + 1, row, seed) * right
    bottom = lattice(column, row + 1, seed) * (1 - right) + lattice(column + 1, row + 1, seed) * right
    return top * (1 - below) + bottom * below


def lattice(column: np.ndarray, row: np.ndarray, seed: int) -> np.ndarray:
    """A random value in [0, 1) for each whole place and seed, by mixing their bits (float32, of the shape given)."""
    mixed = column.astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1)
    mixed ^= row.astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA77)
    mixed ^= np.uint32(seed * 0xC2B2AE3D & 0xFFFFFFFF)
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    mixed ^= mixed >> np.uint32(15)
    return (mixed >> np.uint32(8)).astype(np.float32) / 2**24
