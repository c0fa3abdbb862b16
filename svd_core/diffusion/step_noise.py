"""Noise that stochastic samplers add in each step, from a seed, as ComfyUI's core draws it on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..utils.optional_deps import require_extra
from .noise_augmentation import make_generator, seed_for_index

StepNoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(sigma, sigma_next) -> unit Gaussian noise of the latents' shape for the step between both noise levels."""

MakeStepNoise = Callable[[torch.Tensor, torch.Tensor, int], StepNoise]
"""(x, sigmas, seed) -> the noise of a run from x over sigmas."""


def independent_noise(x: torch.Tensor, sigmas: torch.Tensor, seed: int) -> StepNoise:
    """Draw fresh noise in each step, float32, from a generator on the CPU.

    Its seed is seed + 1, as in ComfyUI 0.28, so that the first step's noise is not the starting noise. ComfyUI 0.3.64
    uses the seed itself, and on CUDA both draw on the device: the videos differ there.

    Raises:
        SettingError: The seed is out of range.
    """
    generator = make_generator(seed_for_index(seed, 1))
    return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator).to(x)


def brownian_noise(x: torch.Tensor, sigmas: torch.Tensor, seed: int) -> StepNoise:
    """Draw the increments of one Brownian path over sigma: more steps refine the same path.

    Li et al. 2020 (arXiv:2001.01328), by the package torchsde, as in k-diffusion and ComfyUI.

    Raises:
        MissingExtraError: torchsde is not installed.
    """
    require_extra("torchsde", "sde")
    import torchsde

    path: Any = torchsde.BrownianTree(  # its return type depends on arguments
        _time(sigmas[sigmas > 0].min()), torch.zeros(x.shape), _time(sigmas.max()), entropy=seed
    )

    def noise(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        if sigma_next == 0:
            return torch.zeros_like(x)  # a step to 0 adds none
        # the path runs upwards in sigma, a step downwards
        return -path(_time(sigma_next), _time(sigma)).to(x) / (sigma - sigma_next).sqrt()

    return noise


def _time(sigma: torch.Tensor) -> float:
    """Return a noise level as the path rounds it: it warns of levels that rounding puts outside of its ends."""
    return round(sigma.item(), 6)
