"""Trains svd-nano's CLIP tower to say where a thing in a picture is, which way it points, and what it is.

The tower is frozen after. Words are what the real one learned from; this one learns from what a caption would say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...svd_core.media.image_ops import clip_input_reference
from .architecture import CLIP_VISION, FACTS
from .clips import KINDS, Plates, place
from .train_vae import Pool
from .training import Plan, train

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

BATCH = 24
NAMES = sorted(set(KINDS))
KIND_WEIGHT = 0.1
TOLD = 6  # numbers that are read off: direction x, y; place x, y; length; squash
WEIGHTS = (1.0, 1.0, 8.0, 8.0, 4.0, 2.0)  # of their squared errors; places and sizes vary less than directions


def train_clip(
    clip: CLIPVisionModelWithProjection, plan: Plan, out: Path, pool: Pool, batch: int = 1
) -> torch.nn.Module:
    """Train the tower in place, on the pool's device; gives the head that reads (TOLD numbers, kinds).

    `batch` multiplies what a step sees.
    """
    device = pool.plates[0].backdrop.device
    head = torch.nn.Linear(CLIP_VISION["projection_dim"], TOLD + len(NAMES), device=device)
    head.weight.data.zero_()
    head.bias.data.zero_()

    def loss_of(_spent: float, generator: torch.Generator) -> torch.Tensor:
        images, told, kinds = draw_labelled(pool, batch * BATCH, generator)
        with torch.autocast(device.type, torch.bfloat16):
            embedding = embed(clip, images)
        said = head(embedding.float())
        off = (said[:, :TOLD] - told.to(device)).square().mean(dim=0) @ torch.tensor(WEIGHTS, device=device)
        return off + KIND_WEIGHT * torch.nn.functional.cross_entropy(said[:, TOLD:], kinds.to(device))

    train(torch.nn.ModuleDict({"clip": clip, "head": head}), plan, loss_of, out)
    return head


def embed(clip: CLIPVisionModelWithProjection, images: torch.Tensor) -> torch.Tensor:
    """(B, D) embeddings of images (B, H, W, 3) in [0, 1], looked at as the encoder stage looks at them."""
    pixels = clip_input_reference(images, CLIP_VISION["image_size"], FACTS.image_mean, FACTS.image_std)
    return clip(pixel_values=pixels.to(next(clip.parameters()).device)).image_embeds


def draw_labelled(
    pool: Pool, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`count` pictures of the pool's movers, some of them mirrored: images (B, H, W, 3), told (B, TOLD), kinds (B,)."""
    images, told, kinds = [], [], []
    size = len(pool.plates)
    for backdrop, index, mirrored in torch.randint(0, 2 * size, (count, 3), generator=generator).tolist():
        mover = pool.movers[index % size]
        shift = 0.15 * (2 * torch.rand(2, generator=generator) - 1)
        at = torch.tensor([mover.x, mover.y]) + shift
        plates = Plates(pool.plates[backdrop % size].backdrop, pool.plates[index % size].sticker)
        image = place(plates, mover, at[None])[0].movedim(0, -1)
        numbers = torch.tensor([*mover.direction, *at.tolist(), mover.length, mover.squash])
        if mirrored % 2:
            image, numbers = image.flip(1), numbers * torch.tensor([-1, 1, -1, 1, 1, 1])
        images.append(image)
        told.append(numbers)
        kinds.append(NAMES.index(mover.kind))
    return torch.stack(images), torch.stack(told), torch.tensor(kinds)
