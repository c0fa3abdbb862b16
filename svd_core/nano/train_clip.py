"""Trains svd-nano's CLIP tower to say which way a thing in a picture points, and what it is. It is frozen after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..images import clip_input_reference
from .architecture import CLIP_VISION, FACTS
from .clips import KINDS, Plates, place
from .train_vae import Pool
from .training import Plan, train

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

BATCH = 24
NAMES = sorted(set(KINDS))
KIND_WEIGHT = 0.1


def train_clip(
    clip: CLIPVisionModelWithProjection, plan: Plan, out: Path, pool: Pool, batch: int = 1
) -> torch.nn.Module:
    """Train the tower in place, on the pool's device; gives the head that reads (direction x, y, kinds).

    `batch` multiplies what a step sees.
    """
    device = pool.plates[0].backdrop.device
    head = torch.nn.Linear(CLIP_VISION["projection_dim"], 2 + len(NAMES), device=device)
    head.weight.data.zero_()
    head.bias.data.zero_()

    def loss_of(_spent: float, generator: torch.Generator) -> torch.Tensor:
        images, ways, kinds = draw_labelled(pool, batch * BATCH, generator)
        said = head(embed(clip, images))
        off = (said[:, :2] - ways.to(device)).square().sum(dim=1).mean()
        return off + KIND_WEIGHT * torch.nn.functional.cross_entropy(said[:, 2:], kinds.to(device))

    train(torch.nn.ModuleDict({"clip": clip, "head": head}), plan, loss_of, out)
    return head


def embed(clip: CLIPVisionModelWithProjection, images: torch.Tensor) -> torch.Tensor:
    """(B, D) embeddings of images (B, H, W, 3) in [0, 1], looked at as the encoder stage looks at them."""
    pixels = clip_input_reference(images, CLIP_VISION["image_size"], FACTS.image_mean, FACTS.image_std)
    return clip(pixel_values=pixels.to(next(clip.parameters()).device)).image_embeds


def draw_labelled(
    pool: Pool, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`count` pictures of the pool's movers: images (B, H, W, 3), their ways (B, 2), their kinds (B,)."""
    images, ways, kinds = [], [], []
    size = len(pool.plates)
    for backdrop, index in torch.randint(0, size, (count, 2), generator=generator).tolist():
        mover = pool.movers[index]
        shift = 0.15 * (2 * torch.rand(1, 2, generator=generator) - 1)
        plates = Plates(pool.plates[backdrop].backdrop, pool.plates[index].sticker)
        images.append(place(plates, mover, torch.tensor([[mover.x, mover.y]]) + shift)[0].movedim(0, -1))
        ways.append(torch.tensor(mover.direction))
        kinds.append(NAMES.index(mover.kind))
    return torch.stack(images), torch.stack(ways), torch.tensor(kinds)
