"""Train svd-nano's VAE on images and short clips, and scale its latents to unit variance at scaling_factor 0.18215.

The decoder is trained once more, alone, after the UNet.
"""

# The model classes declare their submodules as plain modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .architecture import METADATA
from .clips import Mover, Plates, draw_plates, make_scene, place, positions
from .layers import channels_last_weights
from .training import Plan, mixed_precision, steps_done, train

if TYPE_CHECKING:
    from diffusers import AutoencoderKLTemporalDecoder

CROP = 48
STILL_SHARE = 0.72  # fraction of the time on single images, without the decoder's temporal blocks
FULL_SHARE = 0.12  # fraction of steps on full images; the others see crops
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 2.0
NEAR_SHARE, NEAR_CROP = 0.75, 64  # of the decoder's crops, once it is trained alone: around the mover
BLUR = 0.03  # noise on scaled latents while the decoder is trained alone: sampled latents are not exact
MEASURED = 64  # images from which the scale of latents is measured


@dataclass(frozen=True, eq=False)
class Pool:
    """Backdrops and movers that are drawn once. Any mover fits any backdrop."""

    plates: Sequence[Plates]
    movers: Sequence[Mover]


def draw_pool(seeds: range, device: torch.device) -> Pool:
    """Draw the scenes of these seeds."""
    scenes = [make_scene(seed) for seed in seeds]
    plates = [draw_plates(scene) for scene in scenes]
    return Pool(
        [Plates(each.backdrop.to(device), each.sticker.to(device)) for each in plates],
        [scene.mover for scene in scenes],
    )


def train_vae(vae: AutoencoderKLTemporalDecoder, plan: Plan, out: Path, pool: Pool, batch: int = 1) -> None:
    """Train the VAE in place, on the pool's device, then scale its latents. `batch` multiplies the batch size."""

    def loss_of(progress: float, generator: torch.Generator) -> torch.Tensor:
        frames = 1 if progress < STILL_SHARE else int(torch.randint(2, 5, (), generator=generator))
        pixels = _draw_batch(pool, frames, batch, 4, generator)
        with spatial_only(vae) if frames == 1 else contextlib.nullcontext():
            return vae_loss(vae, pixels, frames, generator)

    train(vae, plan, loss_of, out)
    if steps_done(plan.name, out):  # an untrained VAE keeps its latents
        scale_latents(vae, pool)


def train_decoder(vae: AutoencoderKLTemporalDecoder, plan: Plan, out: Path, pool: Pool, batch: int = 1) -> None:
    """Train the decoder further, in place. The latents stay, so that the UNet stays valid."""

    def loss_of(_progress: float, generator: torch.Generator) -> torch.Tensor:
        frames = int(torch.randint(2, 5, (), generator=generator))
        if torch.rand((), generator=generator).item() < NEAR_SHARE:
            clips = [draw_near_crop(pool, frames, generator) for _ in range(batch * max(1, 6 // frames))]
            pixels = torch.cat(clips)
        else:
            pixels = _draw_batch(pool, frames, batch, 6, generator)
        with mixed_precision(pixels.device):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.mean
            noise = torch.randn(latents.shape, generator=generator).to(pixels.device)
            decoded = vae.decode(latents + BLUR / METADATA.scaling_factor * noise, num_frames=frames).sample
        return reconstruction_loss(decoded.float(), pixels)

    with channels_last_weights(vae.encoder):
        train(vae.decoder, plan, loss_of, out)


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Compute the absolute and squared error of decoded pixels (N, 3, H, W), and the absolute of their gradients."""
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + EDGE_WEIGHT * edges + SQUARE_WEIGHT * error.square().mean()


def _draw_batch(pool: Pool, frames: int, batch: int, images: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `batch` full clips, or `batch` times as many crops as make about `images` images."""
    full = torch.rand((), generator=generator).item() < FULL_SHARE
    clips = batch * (1 if full else max(1, images // frames))
    return torch.cat([draw_crop(pool, frames, full, generator) for _ in range(clips)])


def draw_crop(pool: Pool, frames: int, full: bool, generator: torch.Generator) -> torch.Tensor:
    """Draw a clip of the pool with random speed, full or cropped: pixels (frames, 3, H, W) in [-1, 1]."""
    images, _ = _draw_images(pool, frames, generator)
    if not full:
        row, column = (int(torch.randint(0, images.shape[-1] - CROP + 1, (), generator=generator)) for _ in range(2))
        images = images[..., row : row + CROP, column : column + CROP]
    return images * 2 - 1


def draw_near_crop(pool: Pool, frames: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a clip of the pool with random speed, cropped around the mover in one of its frames."""
    images, centers = _draw_images(pool, frames, generator)
    frame = int(torch.randint(0, frames, (), generator=generator))
    height, width = images.shape[-2:]
    jitter = 0.1 * (2 * torch.rand(2, generator=generator) - 1)
    x, y = ((centers[frame] + jitter) * height + torch.tensor([width / 2, height / 2]) - NEAR_CROP / 2).round().tolist()
    column, row = (int(min(max(each, 0), side - NEAR_CROP)) for each, side in ((x, width), (y, height)))
    return images[..., row : row + NEAR_CROP, column : column + NEAR_CROP] * 2 - 1


def _draw_images(pool: Pool, frames: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a clip of the pool with random speed: images (frames, 3, H, W) in [0, 1] and the mover's centers."""
    first, second, fps = (int(torch.randint(0, 1 << 30, (), generator=generator)) for _ in range(3))
    backdrop, index = pool.plates[first % len(pool.plates)].backdrop, second % len(pool.plates)
    mover = pool.movers[index]
    shift = 0.3 * (2 * torch.rand(2, generator=generator) - 1)
    centers = positions(mover, frames, 255, 4 + fps % 27) + shift
    return place(Plates(backdrop, pool.plates[index].sticker), mover, centers), centers


def vae_loss(
    vae: AutoencoderKLTemporalDecoder, pixels: torch.Tensor, frames: int, generator: torch.Generator
) -> torch.Tensor:
    """Compute `reconstruction_loss` of pixels (N frames, 3, H, W) in [-1, 1], plus the weighted KL divergence."""
    with mixed_precision(pixels.device):
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise, num_frames=frames).sample
    divergence = posterior.kl().float().sum() / posterior.mean.numel()
    return reconstruction_loss(decoded.float(), pixels) + KL_WEIGHT * divergence


class _Passthrough(torch.nn.Module):
    """Returns its input."""

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        return hidden_states


@contextlib.contextmanager
def spatial_only(vae: AutoencoderKLTemporalDecoder) -> Iterator[None]:
    """Skip the decoder's temporal blocks inside the `with`, which saves a third of a step.

    Before they are trained on clips they return their input.
    """
    blocks = [block for block in vae.decoder.modules() if hasattr(block, "temporal_res_block")]
    originals = [block.temporal_res_block for block in blocks]
    try:
        for block in blocks:
            block.temporal_res_block = _Passthrough()
        yield
    finally:
        for block, original in zip(blocks, originals, strict=True):
            block.temporal_res_block = original


@torch.no_grad()
def scale_latents(vae: AutoencoderKLTemporalDecoder, pool: Pool) -> None:
    """Scale each latent channel to standard deviation 1 / 0.18215, without changing what is decoded.

    quant_conv's means are multiplied, and the decoder's first convolution divided, by the same factors.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    pixels = torch.cat([draw_crop(pool, 1, True, generator) for _ in range(MEASURED)])
    latents = torch.cat([vae.encode(each[None]).latent_dist.mean for each in pixels])
    factor = 1 / (METADATA.scaling_factor * latents.std(dim=(0, 2, 3)).clamp_min(1e-4))
    vae.quant_conv.weight[:4] *= factor[:, None, None, None]
    vae.quant_conv.bias[:4] *= factor
    vae.quant_conv.bias[4:] += 2 * factor.log()  # the log variance scales too
    vae.decoder.conv_in.weight /= factor[None, :, None, None]
