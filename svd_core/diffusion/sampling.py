"""The Euler sampling loop, and its starting noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import NonFiniteError, SettingError
from ..utils.nan_checks import DAMAGED, is_finite
from .denoiser import Denoiser
from .noise_augmentation import augmentation_noise, make_generator, seed_for_index

NOISES = ("comfyui", "diffusers", "none")
SCALE = 8
"""Pixels per latent pixel of the published models, where no VAE is at hand that knows it (`Vae.scale`)."""


@dataclass(frozen=True, eq=False)
class SamplerStep:
    """The state of the loop after a step. x and denoised are scaled latents (1, F, 4, h, w)."""

    done: int
    total: int
    sigma: float
    x: torch.Tensor
    denoised: torch.Tensor


def sample_euler(
    denoise: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    on_step: Callable[[SamplerStep], torch.Tensor | None] = lambda step: None,
) -> torch.Tensor:
    """Follow the probability-flow ODE from sigmas[0] to sigmas[-1] with Euler steps.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without its second-order correction.
    The step is written as diffusers and ComfyUI's core write it, in float32: a long step down from 700 cancels most of
    x, so with one or two steps its rounding (up to 1e-4) shows in the latents.

    Args:
        x: (1, F, 4, h, w) float32 scaled latents at noise level sigmas[0].
        sigmas: (steps + 1,) float32 on the CPU, falling, or rising to invert a video.
        on_step: Called after each step. If it returns a tensor, the next step starts from it in place of x. What it
            raises stops the loop.

    Raises:
        NonFiniteError: A step gave NaN or infinity.
    """
    steps = sigmas.numel() - 1
    for index, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas.unbind())):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        x = x + slope * (sigma_next - sigma)
        if not is_finite(x):
            raise NonFiniteError(
                f"step {index + 1} of {steps} (sigma {sigma.item():.4g}) brought NaN or infinity into the latent. fp16 "
                f"cannot hold large numbers: use precision bf16 or fp32, less guidance or more steps. Where fp32 was "
                f"used, {DAMAGED}",
                code="numbers.latent",
            )
        changed = on_step(SamplerStep(index + 1, steps, sigma.item(), x, denoised))
        x = x if changed is None else changed
    return x


def starting_point(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, sigma_max: float) -> torch.Tensor:
    """Return scaled latents at noise level sigma () float32: latents + noise * scale.

    scale is sqrt(1 + sigma^2) if sigma is the model's largest, else sigma: at sigma_max the latents count as
    unit-variance data, as in diffusers' init_noise_sigma, Stability's BaseDiffusionSampler and ComfyUI (relative
    tolerance 1e-5).
    """
    at_largest = sigma.item() >= sigma_max * (1 - 1e-5)
    return latents + noise * ((sigma**2 + 1) ** 0.5 if at_largest else sigma)


def draw_noise(kind: str, seed: int, shape: Sequence[int], batch_index: Sequence[int] | None = None) -> torch.Tensor:
    """Draw the starting noise of N videos, each as in its single run: video i uses the seed `seed + i`.

    Args:
        kind: comfyui, diffusers or none, see `starting_noise`.
        shape: (N, F, 4, h, w), the result's.
        batch_index: ComfyUI's frame numbers of a latent that was cut from a longer one. For a single video only.

    Raises:
        SettingError: batch_index with several videos, or as `starting_noise` does.
    """
    videos, frames, _, height, width = shape
    if batch_index is not None and videos > 1:
        raise SettingError("a latent with batch_index must hold one video; sample the videos of the batch on their own")
    seeds = [seed_for_index(seed, video) for video in range(videos)]
    return torch.stack([starting_noise(kind, each, frames, height, width, batch_index) for each in seeds])


def starting_noise(
    kind: str, seed: int, frames: int, height: int, width: int, batch_index: Sequence[int] | None = None
) -> torch.Tensor:
    """Draw unit Gaussian noise (frames, 4, height, width) for one video; height and width in latent pixels.

    - comfyui: The first draw of a CPU generator seeded with `seed`, as in ComfyUI's samplers. With `batch_index`,
      frame i is single draw number batch_index[i], as in ComfyUI for a latent that was cut from a longer one.
    - diffusers: The generator first draws the (1, 3, 8 height, 8 width) augmentation noise, which is dropped, so that
      one seed for both noises gives the video of diffusers' pipeline. The draws of `batch_index` follow it.
    - none: Zeros, to continue a latent that still contains noise.

    Raises:
        SettingError: Unknown kind, seed out of range, or a batch_index of another length.
    """
    if kind not in NOISES:
        raise SettingError(f'noise must be one of {", ".join(NOISES)}, got "{kind}"')
    shape = (frames, 4, height, width)
    if kind == "none":
        return torch.zeros(shape)
    generator = make_generator(seed)
    if kind == "diffusers":
        augmentation_noise(generator, SCALE * height, SCALE * width)
    if batch_index is None:
        return torch.randn(shape, generator=generator)
    if len(batch_index) != frames or min(batch_index) < 0:
        raise SettingError(f"batch_index must name a frame number for each of {frames} frames, got {list(batch_index)}")
    draws = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([draws[index] for index in batch_index])
