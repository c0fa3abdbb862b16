"""Our sampling through ComfyUI's machinery: its guider, its hooks and patches, its loading, around our Euler loop."""

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


def sampler_of(value: Any) -> Sampler | None:
    """How a MODEL samples; None when `value` is none. Raises SettingError for one that is not SVD."""
    if not hasattr(value, "get_model_object"):
        return None
    check_model(value)
    return partial(sample, value)


def sample(model: Any, positive: Any, negative: Any, latent: dict[str, Any], request: Request) -> dict[str, Any]:
    """Sample a LATENT of N videos one after the other through core's guider.

    Conditioning may be whatever core's samplers take, for one video; for N it is ours, cut into the videos'.
    """
    clips = wire_formats.read_latent(latent)
    count, frames, _, height, width = clips.clips.shape
    if count > 1 and (clips.batch_index is not None or latent.get("noise_mask") is not None):
        raise SettingError("a latent with batch_index or noise_mask must hold one video; sample the videos one by one")
    sigmas = check_sigmas(_model_sigmas(model, request.steps) if request.sigmas is None else request.sigmas)
    per_video = len(sigmas) - 1
    sides = zip(
        wire_formats.split_conditioning(positive, count, "positive"),
        wire_formats.split_conditioning(negative, count, "negative"),
        strict=True,
    )
    videos = []
    with get_runtime().progress("sampling", per_video * count, "step") as advance:
        for index, (with_image, without) in enumerate(sides):
            seed = seed_for_index(request.seed, index)
            noise = starting_noise(request.noise, seed, frames, height, width, clips.batch_index)
            videos.append(
                FrameGuider(model, with_image, without, request.curve).sample(
                    noise,
                    clips.clips[index],
                    euler_sampler(),
                    sigmas,
                    denoise_mask=latent.get("noise_mask"),
                    callback=_watcher(advance, index * per_video),
                    disable_pbar=True,
                    seed=seed,
                )
            )
    return wire_formats.write_latent(torch.stack([video.cpu() for video in videos]), like=latent)


def _watcher(advance: Advance, before: int) -> Callable[..., None]:
    """Core's callback after each step; `before` steps were done for other videos."""

    def watch(step: int, denoised: torch.Tensor, _x: torch.Tensor, _total: int) -> None:
        advance(before + step + 1)
        get_runtime().show(denoised)

    return watch


def _model_sigmas(model: Any, steps: int) -> torch.Tensor:
    """The Karras schedule over the model's own range."""
    levels = model.get_model_object("model_sampling")
    return make_sigmas("karras", steps, float(levels.sigma_min), float(levels.sigma_max))


def euler_sampler() -> Any:
    """Our Euler loop as core's SAMPLER."""
    return comfy.samplers.KSAMPLER(_euler)


def _euler(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> torch.Tensor:
    """`sample_euler` as core calls its sampler functions: x (F, 4, h, w), already at noise level sigmas[0]."""
    arguments = extra_args or {}

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return model(x, sigma.expand(x.shape[0]), **arguments)

    def on_step(step: SamplerStep) -> None:
        if callback is not None:
            callback({"i": step.done - 1, "sigma": step.sigma, "denoised": step.denoised, "x": step.x})

    return sample_euler(denoise, x, sigmas, on_step)
