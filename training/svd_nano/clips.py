"""Synthetic training clips of a moving object. The first frame, motion_bucket_id and fps determine all other frames.

The object moves in the direction in which it points, a distance per frame that depends on motion_bucket_id and fps. A
seed determines the scene. Positions and lengths are in image heights, positions from the image's center, y downwards.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...svd_core.errors import SettingError
from .scenes import Canvas, Color, Planet, Rocket, Sky, blend, paint_clouds, paint_planet, paint_rocket, value_noise

KINDS = ("rocket", "rocket", "ball", "fish")
"""Kinds of objects that svd-nano is evaluated on, rockets twice as often."""
TRAINED = (*KINDS, "plane", "boat", "car", "bird")
"""Kinds of objects in training."""
HELD_OUT = ("dart", "beetle", "arrow")
"""Kinds of objects for evaluation only."""

SLOWEST, FASTEST = 32, 255
SPEED = 0.054  # image heights per second at bucket 32: bucket 255 crosses half the image in 13 frames at fps 7
GAIN = 5.0  # speed at bucket 255 over that at bucket 32
REACH = 0.52  # distance that never leaves the image: bucket 255 at fps 7, 13 frames
STICKER = 128  # samples per side of a sticker
NIGHT_SHARE, SQUASHED_SHARE = 0.5, 0.35  # of the rockets
FREE_SHARE = 0.25


@dataclass(frozen=True)
class Mover:
    """An object that moves in the direction of `angle`, degrees clockwise from straight up.

    Attributes:
        kind: Key of PAINTERS.
        x: Center in the first frame.
        y: Center in the first frame.
        angle: Direction before squashing.
        length: From nose to tail.
        squash: Horizontal scale of shape and direction, as of a wide image that was resized to a square.
        body: Color.
        accent: Color.
        seed: Seed of the texture.
    """

    kind: str
    x: float
    y: float
    angle: float
    length: float
    squash: float
    body: Color
    accent: Color
    seed: int

    @property
    def direction(self) -> tuple[float, float]:
        """Unit vector (x, y) of the motion in the image."""
        turn = math.radians(self.angle)
        x, y = self.squash * math.sin(turn), -math.cos(turn)
        length = math.hypot(x, y)
        return x / length, y / length


@dataclass(frozen=True)
class Backdrop:
    """The static background: a night sky, or smooth patches on a gradient of two colors.

    Attributes:
        sky: Seed and colors. The patches have the color of the nebula.
        cells: Patches per image height. None: a night sky.
        planet: A planet in the night sky.
    """

    sky: Sky
    cells: float | None = None
    planet: Planet | None = None


@dataclass(frozen=True)
class MovingScene:
    """A mover in front of a backdrop, in an image of width x height pixels."""

    mover: Mover
    backdrop: Backdrop
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Plates:
    """A scene's parts as pixels.

    Attributes:
        backdrop: (3, H, W) float32 in [0, 1].
        sticker: (6, STICKER, STICKER) float32: the light that the mover adds and its opacity, per color. A side is two
            lengths of the mover.
    """

    backdrop: torch.Tensor
    sticker: torch.Tensor


def frame_distance(motion_bucket_id: float, fps: float) -> float:
    """Return the distance between frames in image heights: linear in the bucket, proportional to 1 / fps."""
    gain = 1 + (GAIN - 1) * (motion_bucket_id - SLOWEST) / (FASTEST - SLOWEST)
    return SPEED * max(gain, 0.0) / fps


def make_scene(seed: int, width: int = 128, height: int = 128, kinds: Sequence[str] = TRAINED) -> MovingScene:
    """Draw the scene of a seed, the same on every machine.

    Raises:
        SettingError: A side is not a positive multiple of 64.
    """
    if min(width, height) < 64 or width % 64 or height % 64:
        raise SettingError(f"width and height of a clip must be multiples of 64, got {width}x{height}. Use 128x128.")
    choose = np.random.default_rng(seed)
    mover = _make_mover(choose, str(choose.choice(list(kinds))), width / height)
    return MovingScene(mover, _make_backdrop(choose, mover.kind), width, height)


def _make_mover(choose: np.random.Generator, kind: str, aspect: float) -> Mover:
    squash = float(choose.uniform(0.55, 0.8)) if choose.random() < SQUASHED_SHARE and kind == "rocket" else 1.0
    angle = float(choose.uniform(0, 360))
    if kind == "ball":
        angle = 90.0 if choose.random() < 0.5 else 270.0
    length = float(choose.uniform(*{"rocket": (0.30, 0.62), "ball": (0.22, 0.36)}.get(kind, (0.28, 0.46))))
    accent = _hue(choose.uniform(0, 1), 0.85, choose.uniform(0.75, 1.0))
    body = _hue(choose.uniform(0, 1), choose.uniform(0.0, 0.25), choose.uniform(0.88, 1.0))
    mover = Mover(kind, 0.0, 0.0, angle, length, squash, body, accent, int(choose.integers(1 << 20)))
    x, y = _start(choose, mover, aspect)
    return replace(mover, x=x, y=y)


def _start(choose: np.random.Generator, mover: Mover, aspect: float) -> tuple[float, float]:
    """Choose a start from which the mover stays in the image for REACH; for some movers, any near the center."""
    if choose.random() < FREE_SHARE:
        return float(choose.uniform(-0.25, 0.25) * aspect), float(choose.uniform(-0.25, 0.25))
    margin = min(0.42 * mover.length, 0.23)
    start = []
    for direction, half in zip(mover.direction, (aspect / 2, 0.5), strict=True):
        low, high = -half + margin - min(REACH * direction, 0), half - margin - max(REACH * direction, 0)
        start.append(float(choose.uniform(low, high)) if low < high else (low + high) / 2)
    return start[0], start[1]


def _hue(hue: float, saturation: float, value: float) -> Color:
    """Convert a hue, of which 1 is a full turn, and saturation and value in [0, 1] to a color."""
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)


def _make_backdrop(choose: np.random.Generator, kind: str) -> Backdrop:
    hue, seed = choose.uniform(0, 1), int(choose.integers(1 << 20))
    if kind == "rocket" and choose.random() < NIGHT_SHARE:
        return _make_night(choose, seed)
    value = choose.uniform(0.25, 0.55)
    low, high = _hue(hue, 0.5, value), _hue(hue + choose.uniform(-0.15, 0.15), 0.5, value * choose.uniform(0.55, 0.8))
    patches = _hue(hue + choose.uniform(0.2, 0.8), 0.55, choose.uniform(0.4, 0.75))
    return Backdrop(Sky(seed, low, high, patches), cells=float(choose.uniform(1.6, 4.0)))


def _make_night(choose: np.random.Generator, seed: int) -> Backdrop:
    """Draw a sky like that of rocket.png, usually with a planet."""
    hue = choose.uniform(0.62, 0.82)
    low, high = _hue(hue, 0.62, choose.uniform(0.25, 0.4)), _hue(hue - 0.08, 0.75, choose.uniform(0.1, 0.2))
    planet = None
    if choose.random() < 0.7:
        side = -1 if choose.random() < 0.7 else 1
        x, y = side * choose.uniform(0.25, 0.6), choose.uniform(0.3, 0.6)
        light = _hue(choose.uniform(0.0, 0.15), 0.6, 0.98)
        planet = Planet(float(x), float(y), float(choose.uniform(0.25, 0.5)), light, (0.7, 0.3, 0.38), seed + 9)
    return Backdrop(Sky(seed, low, high, _hue(hue + 0.03, 0.6, 0.62)), planet=planet)


def draw_plates(scene: MovingScene) -> Plates:
    """Draw the scene's backdrop and its mover's sticker."""
    return Plates(draw_backdrop(scene.backdrop, scene.width, scene.height), draw_sticker(scene.mover))


def draw_backdrop(backdrop: Backdrop, width: int, height: int) -> torch.Tensor:
    """Draw a backdrop (3, H, W) float32 in [0, 1]."""
    canvas, sky = Canvas.empty(width, height), backdrop.sky
    if backdrop.cells is None:
        paint_clouds(canvas, sky)
        if backdrop.planet is not None:
            paint_planet(canvas, backdrop.planet)
    else:
        down = np.clip(canvas.y + 0.5 + 0.3 * canvas.x, 0, 1)
        canvas.cover(blend(sky.high, sky.low, down), np.ones_like(down))
        x, y = canvas.x * backdrop.cells, canvas.y * backdrop.cells
        patches = 0.65 * value_noise(x, y, sky.seed) + 0.35 * value_noise(2 * x, 2 * y, sky.seed + 1)
        canvas.cover(sky.nebula, np.clip(1.6 * patches - 0.35, 0, 1))
    return torch.from_numpy(np.ascontiguousarray(np.clip(canvas.colors, 0, 1).transpose(2, 0, 1)))


def draw_sticker(mover: Mover) -> torch.Tensor:
    """Draw a sticker (6, STICKER, STICKER) from the mover on black and on white, which determine light and opacity."""
    black, white = (Canvas.empty(STICKER, STICKER) for _ in range(2))
    white.colors[:] = 1.0
    for canvas in (black, white):
        PAINTERS[mover.kind](canvas, mover)
    light, hidden = black.colors, 1 - (white.colors - black.colors)
    return torch.from_numpy(np.ascontiguousarray(np.concatenate([light, hidden], axis=2).transpose(2, 0, 1)))


def positions(mover: Mover, frames: int, motion_bucket_id: float, fps: float) -> torch.Tensor:
    """Return the mover's center in each frame, (frames, 2) float32."""
    distance = frame_distance(motion_bucket_id, fps) * torch.arange(frames, dtype=torch.float32)
    return torch.tensor([mover.x, mover.y]) + distance[:, None] * torch.tensor(mover.direction)


def place(plates: Plates, mover: Mover, centers: torch.Tensor) -> torch.Tensor:
    """Draw the mover centered at each of `centers` (F, 2) over the backdrop: (F, 3, H, W) float32 in [0, 1]."""
    height, width = plates.backdrop.shape[-2:]
    centers = centers.to(plates.backdrop.device)
    down = (torch.arange(height, device=centers.device) + 0.5) / height - 0.5
    across = (torch.arange(width, device=centers.device) + 0.5 - width / 2) / height
    x = (across[None] - centers[:, :1]) / (mover.length * mover.squash)
    y = (down[None] - centers[:, 1:]) / mover.length
    frames = len(centers)
    shape = (frames, height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    sticker = plates.sticker.expand(frames, -1, -1, -1)
    light, hidden = torch.nn.functional.grid_sample(sticker, grid, align_corners=False).chunk(2, dim=1)
    return (light + (1 - hidden) * plates.backdrop).clamp(0, 1)


def render_clip(scene: MovingScene, frames: int, motion_bucket_id: float, fps: float) -> torch.Tensor:
    """Render a clip to images (frames, H, W, 3) float32 in [0, 1]."""
    centers = positions(scene.mover, frames, motion_bucket_id, fps)
    return place(draw_plates(scene), scene.mover, centers).movedim(1, -1)


def _axes(canvas: Canvas, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates (along, across) of each sample in lengths of the mover; a sticker is two lengths wide."""
    turn = math.radians(angle)
    x, y = 2 * canvas.x, 2 * canvas.y
    return x * math.sin(turn) - y * math.cos(turn), x * math.cos(turn) + y * math.sin(turn)


def _paint_rocket(canvas: Canvas, mover: Mover) -> None:
    flame = 0.35 + 0.15 * (mover.seed % 7) / 6
    rocket = Rocket(0.0, 0.0, mover.angle, 0.5, flame, mover.body, mover.accent, seed=mover.seed)
    paint_rocket(canvas, rocket)


def _paint_ball(canvas: Canvas, mover: Mover) -> None:
    """Paint a lit ball with a stripe that leans in the direction of rolling."""
    x, y = 4 * canvas.x, 4 * canvas.y  # in radii
    distance = np.hypot(x, y)
    lean = 0.75 if mover.angle < 180 else -0.75
    stripe = np.clip(0.5 - (np.abs(x + lean * y) - 0.34) * 9, 0, 1)
    light = 0.45 + 0.55 * np.clip(0.8 - 0.45 * x - 0.6 * y, 0, 1)
    canvas.cover(blend(mover.accent, mover.body, stripe) * light[..., None], canvas.inside(distance - 1, 0.25))


def _paint_fish(canvas: Canvas, mover: Mover) -> None:
    """Paint a body, a tail behind it and an eye in front."""
    along, across = _axes(canvas, mover.angle)
    tail = np.maximum(np.abs(across) - 0.62 * (-0.14 - along), -0.48 - along)
    canvas.cover(np.asarray(mover.body) * 0.85, canvas.inside(tail, 0.5))
    body = np.hypot((along - 0.1) / 0.4, across / 0.22) - 1
    color = blend(mover.accent, mover.body, np.clip(0.5 + 4 * (along - 0.22), 0, 1))
    shade = 0.6 + 0.4 * np.clip(0.8 - 2.2 * canvas.y, 0, 1)
    canvas.cover(color * shade[..., None], canvas.inside(body, 0.15))
    canvas.cover((0.05, 0.05, 0.08), canvas.inside(np.hypot(along - 0.32, across - 0.06) - 0.055, 0.5))


def _paint_plane(canvas: Canvas, mover: Mover) -> None:
    """Paint a hull with a pointed nose, wings that lean back, and a small tail."""
    along, across = _axes(canvas, mover.angle)
    side = np.abs(across)
    wings = np.maximum(np.abs(along + 0.55 * side - 0.08) - 0.10, side - 0.44)
    tail = np.maximum(np.abs(along + 0.5 * side + 0.36) - 0.06, side - 0.18)
    canvas.cover(mover.accent, canvas.inside(np.minimum(wings, tail), 0.5))
    hull = np.hypot(along / 0.5, across / 0.085) - 1
    canvas.cover(mover.body, canvas.inside(hull, 0.08))
    canvas.cover((0.1, 0.14, 0.25), canvas.inside(np.hypot((along - 0.3) / 1.6, across) - 0.045, 0.5))


def _paint_boat(canvas: Canvas, mover: Mover) -> None:
    """Paint a hull with a pointed bow and a flat stern, a deck on it and a cabin behind."""
    along, across = _axes(canvas, mover.angle)
    hull = np.maximum(np.abs(across) - 0.24 * np.clip(1.4 * (0.5 - along), 0, 1) ** 0.6, np.abs(along) - 0.5)
    canvas.cover(mover.accent, canvas.inside(hull, 0.5))
    canvas.cover(mover.body, canvas.inside(hull + 0.06, 0.5))
    cabin = np.maximum(np.abs(across) - 0.1, np.abs(along + 0.22) - 0.14)
    canvas.cover(np.asarray(mover.accent) * 0.6, canvas.inside(cabin, 0.5))


def _paint_car(canvas: Canvas, mover: Mover) -> None:
    """Paint a rounded box with wheels at its sides, a wide front window, a narrow rear one, and lights in front."""
    along, across = _axes(canvas, mover.angle)
    side = np.abs(across)
    wheels = np.maximum(np.abs(np.abs(along) - 0.27) - 0.09, side - 0.26)
    canvas.cover((0.1, 0.1, 0.12), canvas.inside(wheels, 0.5))
    box = np.hypot(np.maximum(np.abs(along) - 0.38, 0), np.maximum(side - 0.12, 0)) - 0.11
    canvas.cover(mover.accent, canvas.inside(box, 0.5))
    front = np.maximum(np.abs(along - 0.12) - 0.08, side - 0.17)
    rear = np.maximum(np.abs(along + 0.32) - 0.035, side - 0.14)
    canvas.cover((0.12, 0.16, 0.26), canvas.inside(np.minimum(front, rear), 0.5))
    canvas.cover((1.0, 0.95, 0.7), canvas.inside(np.hypot(along - 0.45, side - 0.13) - 0.045, 0.5))


def _paint_bird(canvas: Canvas, mover: Mover) -> None:
    """Paint a body with curved wings, a fan as tail, and a head with a beak."""
    along, across = _axes(canvas, mover.angle)
    side = np.abs(across)
    wings = np.maximum(np.abs(along - 0.02 + 1.4 * side**2) - 0.13 * (1 - 1.8 * side), side - 0.48)
    canvas.cover(np.asarray(mover.accent) * 0.75, canvas.inside(wings, 0.4))
    fan = np.maximum(side - 0.45 * (-0.2 - along), -0.46 - along)
    body = np.hypot((along + 0.02) / 0.3, across / 0.11) - 1
    canvas.cover(mover.accent, canvas.inside(np.minimum(fan, 0.1 * body), 0.5))
    beak = np.maximum(side - 0.5 * (0.5 - along), 0.36 - along)
    canvas.cover((0.95, 0.65, 0.15), canvas.inside(beak, 0.5))
    canvas.cover(mover.body, canvas.inside(np.hypot(along - 0.3, across) - 0.1, 0.5))


def _paint_dart(canvas: Canvas, mover: Mover) -> None:
    """Paint a long head with a point in front and a notch behind."""
    along, across = _axes(canvas, mover.angle)
    wing = np.maximum(np.abs(across) - 0.30 * (0.5 - along), -0.40 + 0.9 * np.abs(across) - 0.2 - along)
    color = blend(mover.accent, mover.body, np.clip(0.5 + 12 * across, 0, 1))
    canvas.cover(color, canvas.inside(wing, 0.5))


def _paint_beetle(canvas: Canvas, mover: Mover) -> None:
    """Paint a round back with a seam and dots, and a dark head in front."""
    along, across = _axes(canvas, mover.angle)
    head = np.hypot((along - 0.30) / 0.8, across) - 0.17
    canvas.cover((0.12, 0.11, 0.16), canvas.inside(head, 0.4))
    back = np.hypot((along + 0.08) / 0.38, across / 0.30) - 1
    dots = (
        np.minimum(np.hypot(along - 0.06, np.abs(across) - 0.13), np.hypot(along + 0.2, np.abs(across) - 0.14)) - 0.06
    )
    color = blend(mover.accent, mover.body, canvas.inside(np.minimum(dots, np.abs(across) - 0.02), 0.5))
    shade = 0.6 + 0.4 * np.clip(0.8 - 2.2 * canvas.y, 0, 1)
    canvas.cover(color * shade[..., None], canvas.inside(back, 0.15))


def _paint_arrow(canvas: Canvas, mover: Mover) -> None:
    """Paint a shaft with a broad head in front."""
    along, across = _axes(canvas, mover.angle)
    shaft = np.maximum(np.abs(across) - 0.09, np.abs(along + 0.12) - 0.34)
    canvas.cover(mover.body, canvas.inside(shaft, 0.5))
    head = np.maximum(np.abs(across) - 0.75 * (0.48 - along), 0.1 - along)
    canvas.cover(mover.accent, canvas.inside(head, 0.5))


PAINTERS = {
    "rocket": _paint_rocket,
    "ball": _paint_ball,
    "fish": _paint_fish,
    "plane": _paint_plane,
    "boat": _paint_boat,
    "car": _paint_car,
    "bird": _paint_bird,
    "dart": _paint_dart,
    "beetle": _paint_beetle,
    "arrow": _paint_arrow,
}
