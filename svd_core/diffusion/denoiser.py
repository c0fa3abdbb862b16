"""The denoiser D(x; sigma): the UNet with preconditioning and classifier-free guidance."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch

from ..errors import SettingError
from ..models.optimizations import unsupported_reason
from ..models.options import DEFAULT, ModelOptions
from ..models.step_cache import StepCache
from ..models.unet import PreparedUNet
from ..utils.cpu_threads import RunAll, run_in_order
from .conditioning import Conditioning
from .guidance import UNREFINED, GuidanceRefinement, RefinedGuidance

logger = logging.getLogger(__name__)

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x (1, F, 4, h, w) float32 scaled latents, sigma () float32) -> denoised latents of the same shape and scale."""


def precondition(x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the network's inputs (c_in x, c_noise), with sigma_data = 1.

    c_in = 1 / sqrt(sigma^2 + 1), c_noise = ln(sigma) / 4. Karras et al. 2022 (arXiv:2206.00364), table 1, with the
    v-prediction scaling of Stability's generative-models (VScalingWithEDMcNoise).
    """
    return x / (sigma**2 + 1) ** 0.5, c_noise_of(sigma)


def c_noise_of(sigma: torch.Tensor) -> torch.Tensor:
    """Return the network's time input for sigma (): ln(sigma) / 4."""
    return 0.25 * sigma.log()


def denoised_from_v(x: torch.Tensor, v: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the denoised latents: c_skip x + c_out v, with c_skip = 1/(s^2+1) and c_out = -s/sqrt(s^2+1)."""
    return v * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)


def v_from_denoised(x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the v from which `denoised_from_v` makes these denoised latents."""
    return (x / (sigma**2 + 1) - denoised) * ((sigma**2 + 1) ** 0.5 / sigma)


def make_denoiser(
    unet: torch.nn.Module,
    positive: Conditioning,
    negative: Conditioning,
    weights: torch.Tensor,
    device: torch.device,
    sigmas: torch.Tensor | None = None,
    stream: bool = False,
    options: ModelOptions = DEFAULT,
    run_all: RunAll = run_in_order,
    refinement: GuidanceRefinement = UNREFINED,
    step_cache: StepCache | None = None,
) -> Denoiser:
    """Make the denoiser of one video with classifier-free guidance, one weight per frame.

    The two sides are not one batch: the frames of a video keep any device busy, and half of the rows need half of the
    memory. The negative side is skipped if every weight is 1, and at noise levels outside of the refinement's interval.
    The denoiser belongs to one video: with momentum it keeps the differences of earlier calls.

    Args:
        unet: UNetSpatioTemporalConditionModel. It computes in its own dtype; x stays float32.
        weights: (F,) float32; guided v = v_negative + weight (v_positive - v_negative).
        device: Device on which to compute.
        sigmas: The noise levels of the run, if they are known: what depends on them alone is computed once.
        stream: Stream the weights of `unet` to the device block by block. Less memory, the same bits.
        options: How to compute. `memory` is not used: `stream` decides.
        run_all: Calls the two sides, one after the other or at once.
        refinement: Interval of guidance, and changes that are not linear in v.
        step_cache: Reuse features of earlier calls, each side its own.

    Raises:
        SettingError: `step_cache` with a UNet that has no optimized forward pass.
    """
    frames = weights.numel()
    guided = bool((weights != 1.0).any())
    c_noises = torch.stack([c_noise_of(sigma) for sigma in sigmas]) if sigmas is not None else torch.empty(0)
    sides = (negative, positive) if guided else (positive,)
    predictor = functools.partial(_predictor, unet, frames, device, c_noises, stream, options, step_cache)
    calls = list(map(predictor, sides))
    per_frame = weights.to(device).view(frames, 1, 1, 1)
    refined = RefinedGuidance(refinement)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scaled, c_noise = precondition(x, sigma)
        acts = guided and refinement.acts_at(sigma)
        *negative_v, v = run_all([functools.partial(call, scaled, c_noise) for call in (calls if acts else calls[-1:])])
        if acts and not refinement.is_linear:
            denoised, negative_denoised = (denoised_from_v(x, each, sigma) for each in (v, negative_v[0]))
            return refined(x, sigma, denoised, negative_denoised, per_frame)
        if acts:
            v = negative_v[0] + per_frame * (v - negative_v[0])
        return denoised_from_v(x, v, sigma)

    return denoise


def _predictor(
    unet: torch.nn.Module,
    frames: int,
    device: torch.device,
    c_noises: torch.Tensor,
    stream: bool,
    options: ModelOptions,
    step_cache: StepCache | None,
    side: Conditioning,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function (x (1, F, 4, h, w) scaled by c_in, c_noise ()) -> v (1, F, 4, h, w) float32 of one side."""
    dtype = next(unet.parameters()).dtype
    embeds = side.embeds.to(device, dtype)
    image_latents = side.per_frame(frames).to(device, dtype)
    time_ids = side.micro.time_ids().to(device)
    obstacle = unsupported_reason(unet)
    if obstacle is None:
        prepared = PreparedUNet(unet, embeds, image_latents[0], time_ids, c_noises, stream, options, step_cache)
        return lambda x, c_noise: prepared(x[0].to(dtype), c_noise)[None].float()
    if step_cache is not None:
        raise SettingError(
            f"features cannot be reused between steps: {obstacle}. Remove SVDStepCache, or give --step-cache 1."
        )
    logger.info("the UNet runs without the optimized forward pass: %s", obstacle)

    def predict(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        sample = torch.cat([x.to(dtype), image_latents], dim=2)
        inputs = {"encoder_hidden_states": embeds, "added_time_ids": time_ids, "return_dict": False}
        return unet(sample, c_noise.to(device), **inputs)[0].float()

    return predict
