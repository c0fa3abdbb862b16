"""Sampling of LATENTs: this package's loop for an SVD_MODEL, the backend's sampler for a MODEL."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..svd_core.errors import SettingError
from ..svd_core.models.components import SVDModel
from ..svd_core.pipeline import BROWNIAN_SAMPLERS
from ..svd_core.runtime.runtime import get_runtime
from ..svd_core.utils.optional_deps import has_extra
from . import wire_formats
from .backend import Request, Sampler, get_backend

if TYPE_CHECKING:
    import torch

    from ..svd_core.diffusion.sampling import SamplerStep


def validate_solver_name(name: str | None) -> bool | str:
    """Return True if the noise of a solver can be drawn here, else a message. None, a linked name, is checked later."""
    if name in BROWNIAN_SAMPLERS and not has_extra("torchsde"):
        return f'sampler "{name}" needs the package torchsde. Run pip install "svd-stages[sde]", or use dpmpp_2m.'
    return True


def get_sampler(model: Any) -> Sampler:
    """Return the sampling function for the value of a "SVD_MODEL,MODEL" socket.

    Raises:
        SettingError: `model` is neither.
    """
    if isinstance(model, SVDModel):
        return partial(sample, model)
    return wire_formats.require_part(get_backend().get_sampler(model), model, "model")


def sample(model: SVDModel, positive: Any, negative: Any, latent: dict[str, Any], request: Request) -> dict[str, Any]:
    """Sample a LATENT with this package's loop. Raises SettingError if the LATENT has a noise mask."""
    return sample_with_estimate(model, positive, negative, latent, request)[0]


def sample_with_estimate(
    model: SVDModel, positive: Any, negative: Any, latent: dict[str, Any], request: Request
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample a LATENT. Return it and, as a second LATENT, the denoised estimate of the last step.

    Raises:
        SettingError: The LATENT has a noise mask.
    """
    import torch

    from ..svd_core import execution
    from ..svd_core.diffusion.noise_augmentation import seed_for_index
    from ..svd_core.diffusion.sampling import SOLVERS
    from ..svd_core.diffusion.schedules import validate_sigmas

    sigmas = execution.model_sigmas(model, request.steps) if request.sigmas is None else request.sigmas
    start = _noisy_latents(model, latent, request.noise, request.seed, validate_sigmas(sigmas)[0])
    count = len(start)
    conditioning_pairs = zip(
        wire_formats.read_conditioning(positive, count, "positive"),
        wire_formats.read_conditioning(negative, count, "negative"),
        strict=True,
    )
    denoised: dict[int, torch.Tensor] = {}

    def keep_last(video: int, step: SamplerStep) -> None:
        denoised[video] = step.denoised

    solver = SOLVERS["euler"] if request.sampler is None else get_backend().read_sampler(request.sampler)
    seeds = [seed_for_index(request.seed, video) for video in range(count)]
    sampled = execution.sample(
        get_runtime(), model, list(conditioning_pairs), start, request.curve, sigmas, keep_last, solver, seeds
    )
    estimate = torch.cat([denoised[video].cpu() for video in range(count)]) / model.scaling_factor
    return wire_formats.write_latent(sampled, like=latent), wire_formats.write_latent(estimate, like=latent)


def add_noise(model: SVDModel, latent: dict[str, Any], noise: str, seed: int, sigma: torch.Tensor) -> dict[str, Any]:
    """Return the LATENT with starting noise of level `sigma`, a scalar tensor."""
    noisy = _noisy_latents(model, latent, noise, seed, sigma)
    return wire_formats.write_latent(noisy / model.scaling_factor, like=latent)


def _noisy_latents(model: SVDModel, latent: dict[str, Any], noise: str, seed: int, sigma: torch.Tensor) -> torch.Tensor:
    """Return a LATENT at noise level sigma (): (N, F, 4, h, w) scaled. Raises SettingError if it has a noise mask."""
    from ..svd_core import execution
    from ..svd_core.diffusion.sampling import draw_noise

    videos = wire_formats.read_latent(latent)
    if latent.get("noise_mask") is not None:
        raise SettingError(
            "a model of SVD Stages cannot sample a latent with a noise_mask. Remove the mask, or run the graph in "
            "ComfyUI with a MODEL of its ImageOnlyCheckpointLoader."
        )
    starting_noise = draw_noise(noise, seed, videos.clips.shape, videos.batch_index)
    return execution.noisy_latents(model, videos.clips, starting_noise, sigma)
