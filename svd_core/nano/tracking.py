"""Measures a clip: where the moving thing is in each frame, how alike two pictures are, how sharp one is."""

from __future__ import annotations

import math

import torch

from .clips import Mover, MovingScene, positions

NOTHING, ALL = 0.12, 0.30
"""How far a colour must be from the backdrop's to count as the thing: not at all below, in full above."""


def track(images: torch.Tensor, backdrop: torch.Tensor) -> torch.Tensor:
    """The middle of what differs from the backdrop, (F, 2) of x, y in picture heights from the picture's middle.

    images (F, H, W, 3) and backdrop (3, H, W), in [0, 1]. Not a number where nothing differs.
    """
    difference = (images - backdrop.movedim(0, -1)).square().sum(dim=-1).sqrt()
    amount = ((difference - NOTHING) / (ALL - NOTHING)).clamp(0, 1)
    height, width = amount.shape[1:]
    down = (torch.arange(height) + 0.5) / height - 0.5
    across = (torch.arange(width) + 0.5 - width / 2) / height
    total = amount.sum(dim=(1, 2))
    x = (amount * across).sum(dim=(1, 2)) / total
    y = (amount * down[:, None]).sum(dim=(1, 2)) / total
    return torch.stack([x, y], dim=1)


def stays_inside(scene: MovingScene, frames: int, motion_bucket_id: float, fps: float) -> bool:
    """Whether the whole thing, fire and all, is in the picture from the first frame to the last."""
    ends = positions(scene.mover, frames, motion_bucket_id, fps)[[0, -1]]
    corners = (ends[:, None] + _outline(scene.mover)).flatten(0, 1)
    room = torch.tensor([scene.width / scene.height / 2, 0.5])
    return bool((corners.abs() <= room).all())


def _outline(mover: Mover) -> torch.Tensor:
    """(4, 2): corners of a box around the thing, from its middle, in picture heights."""
    ahead, behind, aside = {"rocket": (0.5, -0.96, 0.27), "ball": (0.26, -0.26, 0.26)}.get(
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
