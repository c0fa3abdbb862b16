"""Train svd-nano's CLIP vision model to predict the position, direction and kind of the object in an image.

The published model learned from captions; this one learns from the values that a caption would describe. It is frozen
afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...svd_core.media.image_ops import clip_input_reference
from .architecture import CLIP_VISION, METADATA
from .clips import TRAINED, Plates, place
from .train_vae import Pool
from .training import Plan, mixed_precision, train

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

BATCH = 24
NAMES = sorted(set(TRAINED))
KIND_WEIGHT = 0.1
TARGETS = 6  # direction x, y; position x, y; length; squash
WEIGHTS = (1.0, 1.0, 8.0, 8.0, 4.0, 2.0)  # of their squared errors: positions and lengths vary less than directions


def train_clip(clip: CLIPVisionModelWithProjection, plan: Plan, out: Path, pool: Pool, batch: int = 1) -> None:
    """Train the model in place, on the pool's device. `batch` multiplies the batch size.

    A linear head, which is not kept, predicts TARGETS values and the logits of the kinds from an embedding.
    """
    device = pool.plates[0].backdrop.device
    head = torch.nn.Linear(CLIP_VISION["projection_dim"], TARGETS + len(NAMES), device=device)
    head.weight.data.zero_()
    head.bias.data.zero_()

    def loss_of(_progress: float, generator: torch.Generator) -> torch.Tensor:
        images, targets, kinds = draw_labelled(pool, batch * BATCH, generator)
        with mixed_precision(device):
            embedding = embed(clip, images)
        output = head(embedding.float())
        error = (output[:, :TARGETS] - targets.to(device)).square().mean(dim=0) @ torch.tensor(WEIGHTS, device=device)
        return error + KIND_WEIGHT * torch.nn.functional.cross_entropy(output[:, TARGETS:], kinds.to(device))

    train(torch.nn.ModuleDict({"clip": clip, "head": head}), plan, loss_of, out)


def embed(clip: CLIPVisionModelWithProjection, images: torch.Tensor) -> torch.Tensor:
    """Embed images (B, H, W, 3) in [0, 1] to (B, D), preprocessed as in the encoder stage."""
    pixels = clip_input_reference(images, CLIP_VISION["image_size"], METADATA.image_mean, METADATA.image_std)
    return clip(pixel_values=pixels.to(next(clip.parameters()).device)).image_embeds


def draw_labelled(
    pool: Pool, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw `count` images of the pool's movers, half of them mirrored.

    Returns:
        Images (B, H, W, 3), targets (B, TARGETS) and indices of kinds (B,).
    """
    images, targets, kinds = [], [], []
    size = len(pool.plates)
    for backdrop, index, mirrored in torch.randint(0, 2 * size, (count, 3), generator=generator).tolist():
        mover = pool.movers[index % size]
        shift = 0.15 * (2 * torch.rand(2, generator=generator) - 1)
        position = torch.tensor([mover.x, mover.y]) + shift
        plates = Plates(pool.plates[backdrop % size].backdrop, pool.plates[index % size].sticker)
        image = place(plates, mover, position[None])[0].movedim(0, -1)
        target = torch.tensor([*mover.direction, *position.tolist(), mover.length, mover.squash])
        if mirrored % 2:
            image, target = image.flip(1), target * torch.tensor([-1, 1, -1, 1, 1, 1])
        images.append(image)
        targets.append(target)
        kinds.append(NAMES.index(mover.kind))
    return torch.stack(images), torch.stack(targets), torch.tensor(kinds)
