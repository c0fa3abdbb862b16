"""Train svd-nano's UNet with SVD's objective on clips that are encoded once.

Blattmann et al. 2023 (arXiv:2311.15127), appendix D: EDM preconditioning with v-prediction, log-normal sigma, the image
latent with noise augmentation concatenated to every frame, micro-conditioning by its strength, fps and
motion_bucket_id, and random dropping of the image for guidance.
"""

# The model classes declare their submodules as plain modules and their outputs as unions: a type checker cannot follow.
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
from ...svd_core.diffusion.denoiser import denoised_from_v, precondition
from .architecture import METADATA, NanoModules
from .attention import attention_for_cpu
from .clips import REACH, frame_distance, make_scene, render_clip
from .layers import channels_last_weights
from .train_clip import embed
from .training import Plan, mixed_precision, train

if TYPE_CHECKING:
    from diffusers import UNetSpatioTemporalConditionModel

logger = logging.getLogger(__name__)

SIGMA_MEAN, SIGMA_DEVIATION = 1.0, 1.6  # of ln sigma; arXiv:2311.15127, appendix D.3, has 0.7 and 1.6
DROPPED = 0.12  # fraction of samples without image
VARIANTS = 3  # noise augmentations of each clip's image, the first without noise
FPS = (4, 30)
FINISH = 0.3  # fraction of the time after which most clips have full size
EARLY_SHARE = 0.85  # of the small clips until then
MOVING_WEIGHT = 4.0
MIN_CHANGE = 0.25  # of latents, from which a frame differs from the first in `denoising_error`
PLAIN = 0.8  # fraction of the time after which all pixels have equal weight


@dataclass(frozen=True)
class ClipSize:
    """The number of clips of one size, the batch size, and the share of steps after FINISH."""

    width: int
    height: int
    count: int
    batch: int
    share: float = 1.0


SMALL, FULL = ClipSize(64, 64, 1000, 12, 0.15), ClipSize(128, 128, 900, 4, 0.7)
OBLONG = (ClipSize(192, 128, 100, 2, 0.075), ClipSize(128, 192, 100, 2, 0.075))


@dataclass(frozen=True, eq=False)
class Latents:
    """Encoded clips of one size.

    Attributes:
        denoised: (N, F, 4, h, w) scaled latents.
        images: (N, VARIANTS, 4, h, w) unscaled latents of the first frame with noise augmentation.
        strengths: (N, VARIANTS) standard deviations of that noise.
        embeds: (N, 1, D) CLIP embeddings of the first frame.
        motion: (N, 2) fps and motion_bucket_id.
        batch: Clips per step.
        share: Relative number of steps after FINISH.
    """

    denoised: torch.Tensor
    images: torch.Tensor
    strengths: torch.Tensor
    embeds: torch.Tensor
    motion: torch.Tensor
    batch: int
    share: float = 1.0


def train_unet(
    unet: UNetSpatioTemporalConditionModel, plan: Plan, out: Path, sets: Sequence[Latents], start: float = 0.0
) -> None:
    """Train the UNet in place, on its device: first mostly on the first of `sets`, then on all by their shares.

    Moving parts have a larger weight at first, and the same weight as all others from PLAIN on. `start`: the fraction
    of this order that is skipped, FINISH for a UNet that was trained before.
    """

    def loss_of(progress: float, generator: torch.Generator) -> torch.Tensor:
        progress = start + (1 - start) * progress
        extra = MOVING_WEIGHT * max(0.0, 1 - progress / PLAIN)
        return unet_loss(unet, _choose_set(sets, progress, generator), generator, extra)

    with attention_for_cpu(unet):
        train(unet, plan, loss_of, out)


def _choose_set(sets: Sequence[Latents], progress: float, generator: torch.Generator) -> Latents:
    shares = torch.tensor([each.share for each in sets])
    if progress < FINISH:
        shares[0] = EARLY_SHARE / (1 - EARLY_SHARE) * shares[1:].sum() or 1.0
    return sets[int(torch.multinomial(shares, 1, generator=generator))]


def unet_loss(
    unet: UNetSpatioTemporalConditionModel, latents: Latents, generator: torch.Generator, extra: float = 0.0
) -> torch.Tensor:
    """Compute the squared error of v for a batch of `latents`, weighted up to 1 + `extra` where something moves.

    At 0 this is SVD's objective. With `extra` the best v is biased towards motion wherever the motion is uncertain. It
    helps at the beginning, when the few moving pixels have little influence.
    """
    device = unet.device
    chosen = torch.randint(0, len(latents.denoised), (latents.batch,), generator=generator)
    variants = torch.randint(0, latents.images.shape[1], (latents.batch,), generator=generator)
    kept = (torch.rand(latents.batch, generator=generator) >= DROPPED).float()
    denoised = latents.denoised[chosen].to(device)
    noise = torch.randn(denoised.shape, generator=generator).to(device)
    normal = torch.randn(latents.batch, generator=generator)
    sigma = (SIGMA_MEAN + SIGMA_DEVIATION * normal).exp().to(device).view(-1, 1, 1, 1, 1)
    noisy = denoised + sigma * noise
    image = (latents.images[chosen, variants] * kept[:, None, None, None]).to(device)
    embeds = (latents.embeds[chosen] * kept[:, None, None]).to(device)
    ids = time_ids(latents.motion[chosen], latents.strengths[chosen, variants]).to(device)
    v = _predict_v(unet, noisy, sigma, image, embeds, ids)
    error = (v - v_target(denoised, noisy, sigma)).square()
    weight = moving_weight(denoised, extra)
    return (weight * error).mean() / weight.mean()


@torch.no_grad()
def denoising_error(unet: UNetSpatioTemporalConditionModel, latents: Latents, sigma: float) -> float:
    """Return the mean squared error of the denoised latents at a noise level where a frame differs from the first."""
    total, count = 0.0, 0.0
    ids = time_ids(latents.motion, latents.strengths[:, 0])
    for index, denoised in enumerate(latents.denoised.split(1)):
        noise = torch.randn(denoised.shape, generator=torch.Generator().manual_seed(index))
        level = torch.full((1, 1, 1, 1, 1), sigma)
        noisy = denoised + level * noise
        conditions = latents.images[index, :1], latents.embeds[index, None], ids[index, None]
        error = denoised_from_v(noisy, _predict_v(unet, noisy, level, *conditions), level) - denoised
        moving = (moving_weight(denoised, 1.0) > 1 + MIN_CHANGE).expand_as(error)
        total += float(error[moving].square().sum())
        count += int(moving.sum())
    return total / max(count, 1)


def _predict_v(
    unet: UNetSpatioTemporalConditionModel,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    image: torch.Tensor,
    embeds: torch.Tensor,
    ids: torch.Tensor,
) -> torch.Tensor:
    """Predict v (B, F, 4, h, w) of noisy latents, from image latents (B, 4, h, w), embeddings and time ids."""
    scaled, c_noise = precondition(noisy, sigma)
    sample = torch.cat([scaled, image[:, None].expand_as(noisy)], dim=2)
    with mixed_precision(noisy.device):
        v = unet(sample, c_noise.flatten(), encoder_hidden_states=embeds, added_time_ids=ids).sample
    return v.float()


def moving_weight(denoised: torch.Tensor, extra: float) -> torch.Tensor:
    """Compute weights (B, F, 1, h, w): 1 where a frame equals the first, up to 1 + `extra` where it differs."""
    change = (denoised - denoised[:, :1]).abs().mean(dim=2, keepdim=True)
    return 1 + extra * change.clamp_max(1.0)


def v_target(denoised: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Compute the v from which `denoised_from_v` gives `denoised`, whose squared error it has times (s^2 + 1) / s^2."""
    return (noisy / (sigma**2 + 1) - denoised) * (sigma**2 + 1) ** 0.5 / sigma


def time_ids(motion: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """Return time ids (B, 3) of fps and motion_bucket_id (B, 2) and noise_aug_strength (B,)."""
    rows = zip(motion.tolist(), strengths.tolist(), strict=True)
    return torch.cat([MicroConditioning(fps, bucket, strength).time_ids() for (fps, bucket), strength in rows])


def choose_motion(generator: torch.Generator, frames: int) -> tuple[float, float]:
    """Draw fps and motion_bucket_id such that an object moves at most about REACH in a clip of 14 frames."""
    low, high = (math.log(each) for each in FPS)
    while True:
        fps = round(math.exp(low + (high - low) * torch.rand((), generator=generator).item()))
        bucket = int(torch.randint(8, 256, (), generator=generator))
        if frame_distance(bucket, fps) * max(frames - 1, 13) <= REACH * 1.05:
            return float(fps), float(bucket)


@torch.no_grad()
def encode_clips(modules: NanoModules, size: ClipSize, first_seed: int, frames: int) -> Latents:
    """Draw and encode `size.count` clips of `frames` frames, with seeds from `first_seed` on."""
    rows = []
    with channels_last_weights(modules.vae.encoder):
        for seed in range(first_seed, first_seed + size.count):
            rows.append(_encode_clip(modules, size, seed, frames))
            if len(rows) % 100 == 0:
                logger.info("encoded %d of %d clips of %dx%d", len(rows), size.count, size.width, size.height)
    return Latents(*(torch.stack(column) for column in zip(*rows, strict=True)), batch=size.batch, share=size.share)


def _encode_clip(modules: NanoModules, size: ClipSize, seed: int, frames: int) -> tuple[torch.Tensor, ...]:
    """Return the fields of `Latents` for one clip."""
    device = modules.vae.device
    generator = torch.Generator("cpu").manual_seed(seed)
    fps, bucket = choose_motion(generator, frames)
    clip = render_clip(make_scene(seed, size.width, size.height), frames, bucket, fps).to(device)
    pixels = clip.movedim(-1, 1) * 2 - 1
    uniform = torch.rand(VARIANTS, generator=generator)
    strengths = (math.log(0.01) + uniform * -math.log(0.01)).exp()  # log-uniform from 0.01 to 1
    strengths[0] = 0.0
    noise = torch.randn((VARIANTS - 1, *pixels.shape[1:]), generator=generator)
    augmented = pixels[:1] + (strengths[1:, None, None, None] * noise).to(device)
    with mixed_precision(device):
        latents = modules.vae.encode(torch.cat([pixels, augmented])).latent_dist.mean.float().cpu()
    denoised, images = latents[:frames] * METADATA.scaling_factor, torch.cat([latents[:1], latents[frames:]])
    embeds = embed(modules.clip, clip[:1]).float().cpu()
    return denoised, images, strengths, embeds, torch.tensor([fps, bucket])
