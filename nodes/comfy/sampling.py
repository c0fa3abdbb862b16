"""Sampling of a MODEL: this package's Euler loop inside ComfyUI's guider, hooks, patches and model loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.model_sampling
import comfy.samplers
import torch

from ...svd_core.diffusion.denoiser import Denoiser
from ...svd_core.diffusion.noise_augmentation import seed_for_index
from ...svd_core.diffusion.sampling import SOLVERS, OnStep, SamplerStep, Solve, Solver, starting_noise
from ...svd_core.diffusion.schedules import SIGMA_MAX, SIGMA_MIN, check_sigmas, make_sigmas
from ...svd_core.diffusion.step_noise import StepNoise, brownian_noise, independent_noise
from ...svd_core.errors import NonFiniteError, SettingError
from ...svd_core.runtime.runtime import Advance, get_runtime
from ...svd_core.utils.nan_checks import is_finite
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
    sampler = make_sampler("euler") if request.sampler is None else request.sampler
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
                    sampler,
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


def make_sampler(name: str) -> Any:
    """Return this package's solver as core's SAMPLER, with the noise of this ComfyUI's own sampler of that name."""
    return comfy.samplers.KSAMPLER(
        partial(_solve, _with_core_noise(SOLVERS[name])),
        inpaint_options={"random": True} if name == "ddim" else {},  # core's only difference between ddim and euler
    )


def _solve(
    solver: Solver,
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Any = None,
    callback: Any = None,
    disable: Any = None,
) -> torch.Tensor:
    """Run a solver with core's sampler arguments: x (F, 4, h, w), already at noise level sigmas[0]."""
    options = extra_args or {}

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return model(x, sigma.expand(x.shape[0]), **options)

    def on_step(step: SamplerStep) -> None:
        if callback is not None:
            callback({"i": step.done - 1, "sigma": step.sigma, "denoised": step.denoised, "x": step.x})

    return solver(denoise, x, sigmas, on_step, options.get("seed") or 0)


def _core_independent_noise(x: torch.Tensor, sigmas: torch.Tensor, seed: int) -> StepNoise:
    return k_diffusion.default_noise_sampler(x, seed=seed)


def _core_brownian_noise(x: torch.Tensor, sigmas: torch.Tensor, seed: int) -> StepNoise:
    low, high = sigmas[sigmas > 0].min(), sigmas.max()
    path = k_diffusion.BrownianTreeNoiseSampler(x, low, high, seed=seed, cpu=True)
    return lambda sigma, sigma_next: path(sigma, sigma_next) if sigma_next > 0 else torch.zeros_like(x)


def _with_core_noise(solver: Solver) -> Solver:
    """Return the solver with core's noise: its seed and device are those of the running version."""
    noises = {None: None, independent_noise: _core_independent_noise, brownian_noise: _core_brownian_noise}
    return replace(solver, make_noise=noises[solver.make_noise])


def read_sampler(value: Any) -> Solve:
    """Return the solver of a SAMPLER for an SVD_MODEL. Latents that `on_step` returns are not used.

    Raises SettingError if it is no SAMPLER, or one that changes the guidance.
    """
    if not isinstance(value, comfy.samplers.KSAMPLER):
        raise SettingError(
            f"the sampler input takes an output of SVDSamplerSelect or KSamplerSelect, got {type(value).__name__}"
        )

    def solve(denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep, seed: int) -> torch.Tensor:
        model = _CoreDenoiser(denoise)
        levels = sigmas.to(x.device, copy=True)  # where core's samplers expect them; uni_pc writes into them
        total = len(sigmas) - 1

        def callback(state: dict[str, Any]) -> None:
            step = min(state["i"], total - 1)  # dpm_adaptive takes as many as it needs
            on_step(SamplerStep(step + 1, total, sigmas[step].item(), state["x"][None], state["denoised"][None]))

        options = {"model_options": {}, "seed": seed, "denoise_mask": None}
        end = value.sampler_function(
            model, x[0], levels, extra_args=options, callback=callback, disable=True, **value.extra_options
        )[None]
        if not is_finite(end):
            raise NonFiniteError(
                "the sampler brought NaN or infinity into the latent. Use precision bf16 or fp32, less guidance or "
                "more steps.",
                code="numbers.latent",
            )
        return end

    return solve


class _CoreDenoiser:
    """A denoiser as core's samplers call a model: with latents (F, 4, h, w) and the noise level of each frame."""

    def __init__(self, denoise: Denoiser) -> None:
        self._denoise = denoise
        self.model_sampling = _ModelSampling()
        self.model_sampling.set_parameters(SIGMA_MIN, SIGMA_MAX, 1.0)
        self.inner_model = self.model_patcher = self  # samplers look for model_sampling behind these names

    def get_model_object(self, name: str) -> Any:
        """Return the object that a sampler asks the model for."""
        return getattr(self, name)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, model_options: Any = None, **_: Any) -> torch.Tensor:
        """Return the denoised latents. Raises SettingError for a sampler that changes the guidance."""
        if model_options:
            raise SettingError(
                "this sampler changes the guidance (cfg_pp), which an SVD_MODEL does not offer. Use it with a MODEL, "
                "or choose a sampler without cfg_pp."
            )
        return self._denoise(x[None], sigma[0].cpu())[0]


class _ModelSampling(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.V_PREDICTION):
    """SVD's noise levels and scaling, for core's samplers."""
