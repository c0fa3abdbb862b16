"""Sampling of a MODEL: this package's Euler loop inside ComfyUI's guider, hooks, patches and model loading."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.samplers
import torch

from ...svd_core.diffusion.noise_augmentation import seed_for_index
from ...svd_core.diffusion.sampling import SamplerStep, sample_euler, starting_noise
from ...svd_core.diffusion.schedules import check_sigmas, make_sigmas
from ...svd_core.errors import SettingError
from ...svd_core.runtime.runtime import Advance, get_runtime
from .. import wire_formats
from ..backend import Request, Sampler
from .guiding import FrameGuider, check_model


def get_sampler(value: Any) -> Sampler | None:
    """Return the sampling function of a MODEL; None for another type. Raises SettingError if it is not SVD."""
    if not hasattr(value, "get_model_object"):
        return None
    check_model(value)
    return partial(sample, value)


def sample(model: Any, positive: Any, negative: Any, latent: dict[str, Any], request: Request) -> dict[str, Any]:
    """Sample a LATENT of N videos one by one with core's guider.

    For one video the conditioning is any that core's samplers take; for several it is that of SVDImageConditioning.

    Raises:
        SettingError: The conditioning does not match, or several videos have a batch_index or noise_mask.
    """
    videos = wire_formats.read_latent(latent)
    count, frames, _, height, width = videos.clips.shape
    if count > 1 and (videos.batch_index is not None or latent.get("noise_mask") is not None):
        raise SettingError(
            f"a latent with batch_index or noise_mask must hold one video, got {count}. Sample the videos one by one."
        )
    sigmas = check_sigmas(_model_sigmas(model, request.steps) if request.sigmas is None else request.sigmas)
    steps = len(sigmas) - 1
    conditioning_pairs = zip(
        wire_formats.split_conditioning(positive, count, "positive"),
        wire_formats.split_conditioning(negative, count, "negative"),
        strict=True,
    )
    sampled = []
    with get_runtime().progress("sampling", steps * count, "step") as advance:
        for index, pair in enumerate(conditioning_pairs):
            seed = seed_for_index(request.seed, index)
            noise = starting_noise(request.noise, seed, frames, height, width, videos.batch_index)
            sampled.append(
                FrameGuider(model, *pair, request.curve).sample(
                    noise,
                    videos.clips[index],
                    euler_sampler(),
                    sigmas,
                    denoise_mask=latent.get("noise_mask"),
                    callback=_step_callback(advance, index * steps),
                    disable_pbar=True,
                    seed=seed,
                )
            )
    return wire_formats.write_latent(torch.stack([video.cpu() for video in sampled]), like=latent)


def _step_callback(advance: Advance, before: int) -> Callable[..., None]:
    """Return core's callback after each step. `before` is the number of steps of earlier videos."""

    def callback(step: int, denoised: torch.Tensor, _x: torch.Tensor, _total: int) -> None:
        advance(before + step + 1)
        get_runtime().show(denoised)

    return callback


def _model_sigmas(model: Any, steps: int) -> torch.Tensor:
    """Return the Karras schedule over the model's own range: (steps + 1,)."""
    levels = model.get_model_object("model_sampling")
    return make_sigmas("karras", steps, float(levels.sigma_min), float(levels.sigma_max))


def euler_sampler() -> Any:
    """Return this package's Euler loop as core's SAMPLER."""
    return comfy.samplers.KSAMPLER(_euler)


def _euler(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> torch.Tensor:
    """Run `sample_euler` with core's sampler arguments: x (F, 4, h, w), already at noise level sigmas[0]."""

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return model(x, sigma.expand(x.shape[0]), **(extra_args or {}))

    def on_step(step: SamplerStep) -> None:
        if callback is not None:
            callback({"i": step.done - 1, "sigma": step.sigma, "denoised": step.denoised, "x": step.x})

    return sample_euler(denoise, x, sigmas, on_step)
