"""Measures a clip: where the moving thing is in each frame, how alike two pictures are, how sharp one is."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from .clips import Mover, MovingScene, Plates, draw_plates, place, positions

FAINT = 0.25
"""A thing that is there with less than this share of its contrast is lost."""


def track(images: torch.Tensor, scene: MovingScene) -> torch.Tensor:
    """Where the scene's thing is in each frame: (F, 2) of x, y in picture heights from the picture's middle.

    images  (F, H, W, 3) in [0, 1]

    A matched filter: with c what a frame differs from the scene's backdrop, and t what it would differ with the thing
    at a place, the place with the largest <c, t> / |t|, to a fraction of a pixel. <c, t> / <t, t> is then how much of
    the thing's contrast is there; not a number below FAINT.
    """
    plates = draw_plates(scene)
    light, hidden = _thing_in_the_middle(plates, scene.mover)
    backdrop, height = plates.backdrop, scene.height
    ones = torch.ones_like(backdrop)
    energy = _at_each_place(
        (ones, light.square()), (-2 * backdrop, light * hidden), (backdrop.square(), hidden.square())
    ).clamp_min(1e-6)
    places = []
    for frame in images.movedim(-1, 1):
        change = frame - backdrop
        likeness = _at_each_place((change, light), (-change * backdrop, hidden))
        row, column = _highest(likeness / energy.sqrt())
        contrast = (likeness / energy)[round(row), round(column)]
        x, y = (column + 0.5 - scene.width / 2) / height, (row + 0.5) / height - 0.5
        places.append(torch.tensor([x, y]) if contrast >= FAINT else torch.full((2,), math.nan))
    return torch.stack(places)


def _thing_in_the_middle(plates: Plates, mover: Mover) -> tuple[torch.Tensor, torch.Tensor]:
    """The light that the thing adds and how much it hides, (3, 2H - 1, 2W - 1) each, its middle in the middle pixel."""
    height, width = plates.backdrop.shape[-2:]
    grown = torch.zeros(3, 2 * height - 1, 2 * width - 1)
    ratio = height / grown.shape[1]  # lengths are in picture heights, and this picture is higher
    smaller = replace(mover, length=mover.length * ratio)
    black, white = (place(Plates(grown + level, plates.sticker), smaller, torch.zeros(1, 2))[0] for level in (0.0, 1.0))
    return black, 1 - (white - black)


def _at_each_place(*pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(H, W): the sum over pairs of a picture (3, H, W) times a drawing of the thing, its middle at each pixel."""
    height, width = pairs[0][0].shape[-2:]
    shape = (3 * height, 3 * width)
    products = [
        torch.fft.rfft2(picture, shape) * torch.fft.rfft2(thing.flip(-2, -1), shape) for picture, thing in pairs
    ]
    whole = torch.fft.irfft2(torch.stack(products).sum(dim=0), shape).sum(dim=0)
    return whole[height - 1 : 2 * height - 1, width - 1 : 2 * width - 1]


def _highest(score: torch.Tensor) -> tuple[float, float]:
    """(row, column) of the highest place of `score`, between pixels by the parabola through its neighbours."""
    row, column = divmod(int(score.argmax()), score.shape[1])
    found = []
    for index, line in ((row, score[:, column]), (column, score[row])):
        shift = 0.0
        if 0 < index < len(line) - 1:
            before, here, after = line[index - 1 : index + 2].tolist()
            shift = 0.5 * (after - before) / max(2 * here - before - after, 1e-12)
        found.append(index + shift)
    return found[0], found[1]


def stays_inside(scene: MovingScene, frames: int, motion_bucket_id: float, fps: float) -> bool:
    """Whether the whole thing, fire and all, is in the picture from the first frame to the last."""
    ends = positions(scene.mover, frames, motion_bucket_id, fps)[[0, -1]]
    corners = (ends[:, None] + _outline(scene.mover)).flatten(0, 1)
    room = torch.tensor([scene.width / scene.height / 2, 0.5])
    return bool((corners.abs() <= room).all())


def _outline(mover: Mover) -> torch.Tensor:
    """(4, 2): corners of a box around the thing, from its middle, in picture heights."""
    ahead, behind, aside = {"rocket": (0.5, -0.96, 0.27), "ball": (0.52, -0.52, 0.52)}.get(
        mover.kind, (0.52, -0.5, 0.32)
    )
    turn = math.radians(mover.angle)
    axis, side = torch.tensor([[math.sin(turn), -math.cos(turn)], [math.cos(turn), math.sin(turn)]])
    corners = [along * axis + across * side for along in (ahead, behind) for across in (aside, -aside)]
    return torch.stack(corners) * mover.length * torch.tensor([mover.squash, 1.0])


def moved(places: torch.Tensor) -> torch.Tensor:
    """The way from the first of `places` (F, 2) to the last, (2,)."""
    return places[-1] - places[0]


def along(way: torch.Tensor, scene: MovingScene) -> float:
    """How much of `way` (2,) lies in the scene's own direction."""
    return float(way @ torch.tensor(scene.mover.direction))


def cosine(way: torch.Tensor, scene: MovingScene) -> float:
    """The cosine between `way` (2,) and the scene's own direction."""
    return along(way, scene) / max(float(way.norm()), 1e-9)


def psnr(images: torch.Tensor, others: torch.Tensor) -> float:
    """Peak signal to noise ratio of images in [0, 1], in dB."""
    return -10 * float((images - others).square().mean().clamp_min(1e-12).log10())


def sharpness(image: torch.Tensor) -> float:
    """The mean square of the slopes of an image (H, W, 3): its gradient energy."""
    return float(image.diff(dim=0).square().mean() + image.diff(dim=1).square().mean())
