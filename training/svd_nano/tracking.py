"""Measure a clip: the position of the moving object per frame, the similarity of two images, the sharpness of one."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from .clips import Mover, MovingScene, Plates, draw_plates, place, positions

MIN_CONTRAST = 0.25
"""An object with less than this fraction of its contrast is lost."""

MIN_CHANGE = 0.02
"""A pixel that changes by less than this in every color does not move."""


def track(images: torch.Tensor, scene: MovingScene) -> torch.Tensor:
    """Find the scene's object in each frame with a matched filter.

    Let c be the difference of a frame to the scene's backdrop, and t that of the object at a position. The result is
    the position with the largest <c, t> / |t|, interpolated between pixels. <c, t> / <t, t> is the object's contrast.

    Args:
        images: (F, H, W, 3) in [0, 1].
        scene: The scene.

    Returns:
        (F, 2) x and y from the image's center in image heights. NaN below MIN_CONTRAST.
    """
    plates = draw_plates(scene)
    light, hidden = _draw_object(plates, scene.mover)
    backdrop, height = plates.backdrop, scene.height
    ones = torch.ones_like(backdrop)
    energy = _correlate(
        (ones, light.square()), (-2 * backdrop, light * hidden), (backdrop.square(), hidden.square())
    ).clamp_min(1e-6)
    centers = []
    for frame in images.movedim(-1, 1):
        change = frame - backdrop
        correlation = _correlate((change, light), (-change * backdrop, hidden))
        row, column = _find_peak(correlation / energy.sqrt())
        contrast = (correlation / energy)[round(row), round(column)]
        x, y = (column + 0.5 - scene.width / 2) / height, (row + 0.5) / height - 0.5
        centers.append(torch.tensor([x, y]) if contrast >= MIN_CONTRAST else torch.full((2,), math.nan))
    return torch.stack(centers)


def _draw_object(plates: Plates, mover: Mover) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the light that the object adds and the opacity, (3, 2H - 1, 2W - 1) each, centered in the center pixel."""
    height, width = plates.backdrop.shape[-2:]
    canvas = torch.zeros(3, 2 * height - 1, 2 * width - 1)
    ratio = height / canvas.shape[1]  # lengths are in image heights, and this image is higher
    smaller = replace(mover, length=mover.length * ratio)
    black, white = (
        place(Plates(canvas + level, plates.sticker), smaller, torch.zeros(1, 2))[0] for level in (0.0, 1.0)
    )
    return black, 1 - (white - black)


def _correlate(*pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Sum over pairs the correlation of an image (3, H, W) with an object centered at each pixel: (H, W)."""
    height, width = pairs[0][0].shape[-2:]
    shape = (3 * height, 3 * width)
    products = [torch.fft.rfft2(image, shape) * torch.fft.rfft2(kernel.flip(-2, -1), shape) for image, kernel in pairs]
    full = torch.fft.irfft2(torch.stack(products).sum(dim=0), shape).sum(dim=0)
    return full[height - 1 : 2 * height - 1, width - 1 : 2 * width - 1]


def _find_peak(score: torch.Tensor) -> tuple[float, float]:
    """Return (row, column) of the maximum, interpolated by the parabola through its neighbors."""
    row, column = divmod(int(score.argmax()), score.shape[1])
    return _refine(row, score[:, column]), _refine(column, score[row])


def _refine(index: int, line: torch.Tensor) -> float:
    if not 0 < index < len(line) - 1:
        return float(index)
    before, peak, after = line[index - 1 : index + 2].tolist()
    return index + 0.5 * (after - before) / max(2 * peak - before - after, 1e-12)


def stays_inside(scene: MovingScene, frames: int, motion_bucket_id: float, fps: float) -> bool:
    """Return True if the whole object, with its flame, is in the image from the first frame to the last."""
    ends = positions(scene.mover, frames, motion_bucket_id, fps)[[0, -1]]
    corners = (ends[:, None] + _outline(scene.mover)).flatten(0, 1)
    return bool((corners.abs() <= torch.tensor([scene.width / scene.height / 2, 0.5])).all())


def _outline(mover: Mover) -> torch.Tensor:
    """Return the corners (4, 2) of the object's bounding box relative to its center, in image heights."""
    boxes = {"rocket": (0.5, -0.96, 0.27), "ball": (0.52, -0.52, 0.52)}
    front, back, side = boxes.get(mover.kind, (0.52, -0.5, 0.32))
    turn = math.radians(mover.angle)
    forward, right = torch.tensor([[math.sin(turn), -math.cos(turn)], [math.cos(turn), math.sin(turn)]])
    corners = [along * forward + across * right for along in (front, back) for across in (side, -side)]
    return torch.stack(corners) * mover.length * torch.tensor([mover.squash, 1.0])


def displacement(centers: torch.Tensor) -> torch.Tensor:
    """Return the vector (2,) from the first of `centers` (F, 2) to the last."""
    return centers[-1] - centers[0]


def along(vector: torch.Tensor, scene: MovingScene) -> float:
    """Return the component of `vector` (2,) in the scene's direction."""
    return float(vector @ torch.tensor(scene.mover.direction))


def cosine(vector: torch.Tensor, scene: MovingScene) -> float:
    """Return the cosine of the angle between `vector` (2,) and the scene's direction."""
    return along(vector, scene) / max(float(vector.norm()), 1e-9)


def moving_part(clip: torch.Tensor) -> torch.Tensor:
    """Return a mask (H, W) of the pixels of a clip (F, H, W, 3) that its last frame changes by more than MIN_CHANGE."""
    return ((clip[-1] - clip[0]).abs() > MIN_CHANGE).any(dim=-1)


def sharpness(image: torch.Tensor) -> float:
    """Return the gradient energy of an image (H, W, 3): the mean square of its differences."""
    return float(image.diff(dim=0).square().mean() + image.diff(dim=1).square().mean())
