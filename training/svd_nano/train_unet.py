"""Trains svd-nano's UNet with SVD's own objective on clips that are encoded once.

Blattmann et al. 2023 (arXiv:2311.15127), appendix D: EDM preconditioning with v-prediction, sigma log-normal, the image
latent joined to every frame with noise augmentation, its strength, fps and motion_bucket_id told as numbers, and the
image dropped now and then for guidance.
"""

# The model classes declare their parts as bare modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...svd_core.diffusion.conditioning import MicroConditioning
from ...svd_core.diffusion.denoiser import precondition
from .architecture import FACTS, NanoModules
from .attention import attention_for_cpu
from .clips import REACH, frame_distance, make_scene, render_clip
from .train_clip import embed
from .training import Plan, train

if TYPE_CHECKING:
    from diffusers import UNetSpatioTemporalConditionModel

logger = logging.getLogger(__name__)

SIGMA_MEAN, SIGMA_DEVIATION = 1.0, 1.6  # of ln sigma; arXiv:2311.15127, appendix D.3, has 0.7 and 1.6
DROPPED = 0.12
VARIANTS = 3  # noise augmentations of each clip's image, of which one is nothing
FPS = (4, 30)
FINISH = 0.3  # share of the time after which clips are of full size
MOVING_WEIGHT = 4.0
PLAIN = 0.8  # share of the time after which all places count alike


@dataclass(frozen=True)
class ClipSize:
    """Clips of one size: `count` of them, and how many make a batch."""

    width: int
    height: int
    count: int
    batch: int


SMALL, FULL = ClipSize(64, 64, 1000, 12), ClipSize(128, 128, 1050, 4)
OBLONG = (ClipSize(192, 128, 40, 2), ClipSize(128, 192, 40, 2))


@dataclass(frozen=True, eq=False)
class Latents:
    """Encoded clips of one size.

    clean      (N, F, 4, h, w) scaled latents
    images     (N, VARIANTS, 4, h, w) unscaled latents of the first frame under noise augmentation
    strengths  (N, VARIANTS) deviations of that noise
    embeds     (N, 1, D) CLIP embeddings of the first frame
    motion     (N, 2) fps and motion_bucket_id
    """

    denoised: torch.Tensor
    images: torch.Tensor
    strengths: torch.Tensor
    embeds: torch.Tensor
    motion: torch.Tensor
    batch: int


def train_unet(
    unet: UNetSpatioTemporalConditionModel,
    plan: Plan,
    out: Path,
    sets: Sequence[Latents],
    device: torch.device,
) -> None:
    """Train the UNet in place, on `device`, on `sets`: small clips first, then every size, most from the second set.

    Places where something moves count more at first, and all alike from PLAIN on.
    """

    def loss_of(spent: float, generator: torch.Generator) -> torch.Tensor:
        extra = MOVING_WEIGHT * max(0.0, 1 - spent / PLAIN)
        return unet_loss(unet, _choose_set(sets, spent, generator), generator, device, extra)

    with attention_for_cpu(unet):
        train(unet, plan, loss_of, out)


def _choose_set(sets: Sequence[Latents], spent: float, generator: torch.Generator) -> Latents:
    small = sets[0]
    rest = sets[1:] or sets
    at_random = torch.rand((), generator=generator).item()
    if at_random < (0.85 if spent < FINISH else 0.15):
        return small
    if at_random < 0.93:
        return rest[0]
    oblong = rest[1:] or rest
    return oblong[int(torch.randint(0, len(oblong), (), generator=generator))]


def unet_loss(
    unet: UNetSpatioTemporalConditionModel,
    latents: Latents,
    generator: torch.Generator,
    device: torch.device,
    extra: float = 0.0,
) -> torch.Tensor:
    """The squared error of v for a batch of `latents`, counted up to 1 + `extra` times where something moves.

    With `extra` the best v leans towards what moves wherever the model cannot know: it is for the beginning, when the
    thing's few places would be lost among those that only have to stay. At 0 it is SVD's own objective.
    """
    chosen = torch.randint(0, len(latents.denoised), (latents.batch,), generator=generator)
    variants = torch.randint(0, latents.images.shape[1], (latents.batch,), generator=generator)
    kept = (torch.rand(latents.batch, generator=generator) >= DROPPED).float()
    denoised = latents.denoised[chosen].to(device)
    noise = torch.randn(denoised.shape, generator=generator).to(device)
    drawn = torch.randn(latents.batch, generator=generator)
    sigma = (SIGMA_MEAN + SIGMA_DEVIATION * drawn).exp().to(device).view(-1, 1, 1, 1, 1)
    noisy = denoised + sigma * noise
    scaled, c_noise = precondition(noisy, sigma)
    image = (latents.images[chosen, variants] * kept[:, None, None, None]).to(device)
    joined = torch.cat([scaled, image[:, None].expand_as(denoised)], dim=2)
    embeds = (latents.embeds[chosen] * kept[:, None, None]).to(device)
    ids = time_ids(latents.motion[chosen], latents.strengths[chosen, variants]).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        v = unet(joined, c_noise.flatten(), encoder_hidden_states=embeds, added_time_ids=ids).sample
    off = (v.float() - v_target(denoised, noisy, sigma)).square()
    weight = moving_weight(denoised, extra)
    return (weight * off).mean() / weight.mean()


def moving_weight(denoised: torch.Tensor, extra: float) -> torch.Tensor:
    """1 where frames are as the first, up to 1 + `extra` where they differ: (B, F, 1, h, w) of `denoised`."""
    moved = (denoised - denoised[:, :1]).abs().mean(dim=2, keepdim=True)
    return 1 + extra * moved.clamp_max(1.0)


def v_target(denoised: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The v that `denoised_from_v` turns into `denoised`; its squared error is that times (s^2 + 1) / s^2."""
    return (noisy / (sigma**2 + 1) - denoised) * (sigma**2 + 1) ** 0.5 / sigma


def time_ids(motion: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """(B, 3) of fps and motion_bucket_id (B, 2) and noise_aug_strength (B,), as the stages tell them."""
    rows = zip(motion.tolist(), strengths.tolist(), strict=True)
    return torch.cat([MicroConditioning(fps, bucket, strength).time_ids() for (fps, bucket), strength in rows])


def choose_motion(generator: torch.Generator, frames: int) -> tuple[float, float]:
    """fps and motion_bucket_id at random, such that a thing goes no farther than REACH in a clip of 14 frames."""
    while True:
        low, high = (math.log(each) for each in FPS)
        fps = round(math.exp(low + (high - low) * torch.rand((), generator=generator).item()))
        bucket = int(torch.randint(8, 256, (), generator=generator))
        if frame_distance(bucket, fps) * max(frames - 1, 13) <= REACH * 1.05:
            return float(fps), float(bucket)


@torch.no_grad()
def encode_clips(modules: NanoModules, size: ClipSize, first_seed: int, frames: int, device: torch.device) -> Latents:
    """Draw and encode `size.count` clips of `frames` frames, with seeds from `first_seed` on."""
    rows = []
    for seed in range(first_seed, first_seed + size.count):
        rows.append(_encode_clip(modules, size, seed, frames, device))
        if len(rows) % 100 == 0:
            logger.info("encoded %d of %d clips of %dx%d", len(rows), size.count, size.width, size.height)
    denoised, images, strengths, embeds, motion = (torch.stack(column) for column in zip(*rows, strict=True))
    return Latents(denoised, images, strengths, embeds, motion, size.batch)


def _encode_clip(
    modules: NanoModules, size: ClipSize, seed: int, frames: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator("cpu").manual_seed(seed)
    fps, bucket = choose_motion(generator, frames)
    clip = render_clip(make_scene(seed, size.width, size.height), frames, bucket, fps).to(device)
    pixels = clip.movedim(-1, 1) * 2 - 1
    drawn = torch.rand(VARIANTS, generator=generator)
    strengths = (math.log(0.01) + drawn * -math.log(0.01)).exp()  # 0.01 ... 1, evenly in the logarithm
    strengths[0] = 0.0
    noise = torch.randn((VARIANTS - 1, *pixels.shape[1:]), generator=generator)
    noised = pixels[:1] + (strengths[1:, None, None, None] * noise).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        latents = modules.vae.encode(torch.cat([pixels, noised])).latent_dist.mean.float().cpu()
    embeds = embed(modules.clip, clip[:1]).float().cpu()
    return (
        latents[:frames] * FACTS.scaling_factor,
        torch.cat([latents[:1], latents[frames:]]),
        strengths,
        embeds,
        torch.tensor([fps, bucket]),
    )
