"""The Euler loop, and what it starts from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import NonFiniteError, SettingError
from ..utils.nan_checks import DAMAGED, is_finite
from .denoiser import Denoiser
from .noise_augmentation import augmentation_noise, make_generator

NOISES = ("comfyui", "diffusers", "none")


@dataclass(frozen=True, eq=False)
class SamplerStep:
    """What an observer of the loop sees after a step. x and clean are scaled latents (1, F, 4, h, w)."""

    done: int
    total: int
    sigma: float
    x: torch.Tensor
    denoised: torch.Tensor


def sample_euler(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: Callable[[SamplerStep], None] | None = None
) -> torch.Tensor:
    """Follow the probability-flow ODE from sigmas[0] to sigmas[-1] with Euler steps.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without its second-order correction.
    x (1, F, 4, h, w) float32 scaled latents at noise level sigmas[0]; sigmas (N + 1,) float32 on the CPU, falling. What
    `on_step` raises stops the loop. Raises NonFiniteError after the step that brought NaN or infinity.

    Noise levels and x are float32, and the step is written as diffusers and ComfyUI's core write it: a long step down
    from 700 cancels most of x, so with only one or two steps its rounding (up to 1e-4) is seen in the latents.
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
        if on_step is not None:
            on_step(SamplerStep(index + 1, steps, sigma.item(), x, denoised))
    return x


def starting_point(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, sigma_max: float) -> torch.Tensor:
    """Scaled latents at noise level sigma () float32: latents + noise * scale.

    scale is sqrt(1 + sigma^2) when sigma is the model's largest, else sigma.
    At sigma_max the latents under the noise are taken as unit-variance data, as in diffusers' init_noise_sigma,
    Stability's BaseDiffusionSampler and ComfyUI's rule (relative tolerance 1e-5).
    """
    at_largest = sigma.item() >= sigma_max * (1 - 1e-5)
    return latents + noise * ((sigma**2 + 1) ** 0.5 if at_largest else sigma)


def starting_noise(
    kind: str, seed: int, frames: int, height: int, width: int, batch_index: Sequence[int] | None = None
) -> torch.Tensor:
    """Unit Gaussian noise (frames, 4, height, width) for one video; height and width in latent pixels.

    comfyui    the first draw of a CPU generator seeded with `seed`, as core's samplers draw it; with `batch_index`,
               frame i is single draw number batch_index[i], as core does for a latent cut out of a longer one
    diffusers  first draws and drops the (1, 3, 8 height, 8 width) augmentation noise from the same generator, so that
               one seed here and in SVDNoiseAugmentation gives the diffusers pipeline's video; with `batch_index`
               the single draws come after it
    none       zeros, to go on with a latent that still carries noise

    Raises SettingError for an unknown kind, a seed out of range, or a batch_index of another length.
    """
    if kind not in NOISES:
        raise SettingError(f'noise must be one of {", ".join(NOISES)}, got "{kind}"')
    shape = (frames, 4, height, width)
    if kind == "none":
        return torch.zeros(shape)
    generator = make_generator(seed)
    if kind == "diffusers":
        augmentation_noise(generator, 8 * height, 8 * width)
    if batch_index is None:
        return torch.randn(shape, generator=generator)
    if len(batch_index) != frames or min(batch_index) < 0:
        raise SettingError(f"batch_index must name a frame number for each of {frames} frames, got {list(batch_index)}")
    draws = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([draws[index] for index in batch_index])
