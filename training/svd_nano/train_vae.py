"""Trains svd-nano's VAE on pictures and short clips, and gives its latents unit variance at scaling_factor 0.18215.

The decoder is trained once more, alone, when the UNet is done.
"""

# The model classes declare their parts as bare modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .architecture import FACTS
from .clips import Mover, Plates, draw_plates, make_scene, place, positions
from .training import Plan, steps_done, train

if TYPE_CHECKING:
    from diffusers import AutoencoderKLTemporalDecoder

CROP = 48
STILL_SHARE = 0.72  # of the time: then the decoder's temporal blocks join
WHOLE_SHARE = 0.12  # of the steps see whole pictures, the others crops
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
BLUR = 0.05  # deviation of noise on scaled latents while the decoder is trained alone: sampled latents are not exact
MEASURED = 64  # pictures that tell how large latents are


@dataclass(frozen=True, eq=False)
class Pool:
    """Backdrops and movers that were drawn once; any mover goes with any backdrop."""

    plates: Sequence[Plates]
    movers: Sequence[Mover]


def draw_pool(seeds: range, device: torch.device, size: int = 128) -> Pool:
    """The square scenes of these seeds, on `device`."""
    scenes = [make_scene(seed, size, size) for seed in seeds]
    plates = [draw_plates(scene) for scene in scenes]
    return Pool(
        [Plates(each.backdrop.to(device), each.sticker.to(device)) for each in plates],
        [scene.mover for scene in scenes],
    )


def train_vae(vae: AutoencoderKLTemporalDecoder, plan: Plan, out: Path, pool: Pool, batch: int = 1) -> None:
    """Train the VAE in place, on the pool's device, then scale its latents. `batch` multiplies what a step sees."""

    def loss_of(spent: float, generator: torch.Generator) -> torch.Tensor:
        frames = 1 if spent < STILL_SHARE else int(torch.randint(2, 5, (), generator=generator))
        whole = torch.rand((), generator=generator).item() < WHOLE_SHARE
        clips = batch * (1 if whole else max(1, 4 // frames))
        pixels = torch.cat([draw_crop(pool, frames, whole, generator) for _ in range(clips)])
        with only_space(vae) if frames == 1 else contextlib.nullcontext():
            return vae_loss(vae, pixels, frames, generator)

    train(vae, plan, loss_of, out)
    if steps_done(plan.name, out):  # else it is what it was, its latents too
        scale_latents(vae, pool)


def train_decoder(vae: AutoencoderKLTemporalDecoder, plan: Plan, out: Path, pool: Pool, batch: int = 1) -> None:
    """Train the decoder further, in place: the latents stay what they are, and so what the UNet learned of them."""

    def loss_of(_spent: float, generator: torch.Generator) -> torch.Tensor:
        frames = int(torch.randint(2, 5, (), generator=generator))
        whole = torch.rand((), generator=generator).item() < WHOLE_SHARE
        clips = batch * (1 if whole else max(1, 6 // frames))
        pixels = torch.cat([draw_crop(pool, frames, whole, generator) for _ in range(clips)])
        with torch.autocast(pixels.device.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.mean
            noise = torch.randn(latents.shape, generator=generator).to(pixels.device)
            decoded = vae.decode(latents + BLUR / FACTS.scaling_factor * noise, num_frames=frames).sample
        return picture_loss(decoded.float(), pixels)

    train(vae.decoder, plan, loss_of, out)


def picture_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Error of decoded pixels (N, 3, H, W) and of their slopes."""
    across = (decoded.diff(dim=-1) - pixels.diff(dim=-1)).abs().mean()
    down = (decoded.diff(dim=-2) - pixels.diff(dim=-2)).abs().mean()
    return (decoded - pixels).abs().mean() + EDGE_WEIGHT * (across + down)


def draw_crop(pool: Pool, frames: int, whole: bool, generator: torch.Generator) -> torch.Tensor:
    """A clip of the pool, with a speed at random, whole or cropped: pixels (frames, 3, H, W) in [-1, 1]."""
    first, second, fps = (int(torch.randint(0, 1 << 30, (), generator=generator)) for _ in range(3))
    backdrop, index = pool.plates[first % len(pool.plates)].backdrop, second % len(pool.plates)
    mover = pool.movers[index]
    shift = 0.3 * (2 * torch.rand(2, generator=generator) - 1)
    places = positions(mover, frames, 255, 4 + fps % 27) + shift
    images = place(Plates(backdrop, pool.plates[index].sticker), mover, places)
    if not whole:
        top, left = (int(torch.randint(0, images.shape[-1] - CROP + 1, (), generator=generator)) for _ in range(2))
        images = images[..., top : top + CROP, left : left + CROP]
    return images * 2 - 1


def vae_loss(
    vae: AutoencoderKLTemporalDecoder, pixels: torch.Tensor, frames: int, generator: torch.Generator
) -> torch.Tensor:
    """`picture_loss` of pixels (N frames, 3, H, W) in [-1, 1], and a little of the KL term."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise, num_frames=frames).sample
    divergence = posterior.kl().float().sum() / posterior.mean.numel()
    return picture_loss(decoded.float(), pixels) + KL_WEIGHT * divergence


class _Same(torch.nn.Module):
    """Passes on what it is given."""

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        return hidden_states


@contextlib.contextmanager
def only_space(vae: AutoencoderKLTemporalDecoder) -> Iterator[None]:
    """Leave the decoder's temporal blocks out: on single frames that never learned, they pass on what they are given.

    Saves a third of a step.
    """
    blocks = [block for block in vae.decoder.modules() if hasattr(block, "temporal_res_block")]
    temporal = [block.temporal_res_block for block in blocks]
    try:
        for block in blocks:
            block.temporal_res_block = _Same()
        yield
    finally:
        for block, own in zip(blocks, temporal, strict=True):
            block.temporal_res_block = own


@torch.no_grad()
def scale_latents(vae: AutoencoderKLTemporalDecoder, pool: Pool) -> None:
    """Make the deviation of each latent channel 1 / 0.18215, without changing what is decoded.

    quant_conv's means are multiplied, and the decoder's first convolution divided, by the same numbers.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    pixels = torch.cat([draw_crop(pool, 1, True, generator) for _ in range(MEASURED)])
    latents = torch.cat([vae.encode(each[None]).latent_dist.mean for each in pixels])
    factor = 1 / (FACTS.scaling_factor * latents.std(dim=(0, 2, 3)).clamp_min(1e-4))
    vae.quant_conv.weight[:4] *= factor[:, None, None, None]
    vae.quant_conv.bias[:4] *= factor
    vae.quant_conv.bias[4:] += 2 * factor.log()  # the variance's logarithm goes along
    vae.decoder.conv_in.weight /= factor[None, :, None, None]
