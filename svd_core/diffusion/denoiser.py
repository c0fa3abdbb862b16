"""D(x; sigma): the UNet with its preconditioning and with guidance, as something you call with (x, sigma)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from ..models.optimizations import ALL, Optimizations, unsupported_reason
from ..models.options import DEFAULT, ModelOptions
from ..models.unet import PreparedUNet
from .conditioning import Conditioning

logger = logging.getLogger(__name__)

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x (1, F, 4, h, w) float32 scaled latents, sigma () float32) -> the clean latents, the same shape and scale."""


def precondition(x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's view of x and sigma: (c_in x, c_noise), with sigma_data = 1.

    c_in = 1 / sqrt(sigma^2 + 1), c_noise = ln(sigma) / 4. Karras et al. 2022 (arXiv:2206.00364), table 1, with the
    v-prediction scaling of Stability's generative-models (VScalingWithEDMcNoise).
    """
    return x / (sigma**2 + 1) ** 0.5, c_noise_of(sigma)


def c_noise_of(sigma: torch.Tensor) -> torch.Tensor:
    """How the network is told the noise level sigma (): ln(sigma) / 4."""
    return 0.25 * sigma.log()


def denoised_from_v(x: torch.Tensor, v: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The clean latents from a v-prediction: c_skip x + c_out v, c_skip = 1/(s^2+1), c_out = -s/sqrt(s^2+1)."""
    return v * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)


def make_denoiser(
    unet: torch.nn.Module,
    positive: Conditioning,
    negative: Conditioning,
    weights: torch.Tensor,
    device: torch.device,
    sigmas: torch.Tensor | None = None,
    optimizations: Optimizations = ALL,
    stream: bool = False,
    options: ModelOptions = DEFAULT,
) -> Denoiser:
    """A denoiser of one video with classifier-free guidance, one weight per frame.

    unet      UNetSpatioTemporalConditionModel on `device`; computes in its own dtype, x stays float32
    weights   (F,) float32; guided v = v_negative + weight (v_positive - v_negative)
    sigmas    the noise levels that will be asked for, so that what depends on them alone is computed once; None: none
              are known before
    stream    the weights of `unet` are elsewhere and come to `device` block by block: less memory, the same bits
    options   how to compute; `memory` has been answered by whoever set `stream`

    The two sides are computed one after the other: a video has rows enough to keep any device busy, and half of them
    need half the memory. The negative side is not computed at all when every weight is 1.
    """
    frames = weights.numel()
    guided = bool((weights != 1.0).any())
    c_noises = torch.stack([c_noise_of(sigma) for sigma in sigmas]) if sigmas is not None else torch.empty(0)
    sides = (negative, positive) if guided else (positive,)
    calls = [_predictor(unet, side, frames, device, c_noises, optimizations, stream, options) for side in sides]
    per_frame = weights.to(device).view(1, frames, 1, 1, 1)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scaled, c_noise = precondition(x, sigma)
        v = calls[-1](scaled, c_noise)
        if guided:
            v_negative = calls[0](scaled, c_noise)
            v = v_negative + per_frame * (v - v_negative)
        return denoised_from_v(x, v, sigma)

    return denoise


def _predictor(
    unet: torch.nn.Module,
    side: Conditioning,
    frames: int,
    device: torch.device,
    c_noises: torch.Tensor,
    optimizations: Optimizations,
    stream: bool,
    options: ModelOptions,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """v for one side: (x (1, F, 4, h, w) scaled by c_in, c_noise ()) -> (1, F, 4, h, w) float32."""
    dtype = next(unet.parameters()).dtype
    embeds = side.embeds.to(device, dtype)
    image_latents = side.per_frame(frames).to(device, dtype)
    time_ids = side.micro.time_ids().to(device)
    obstacle = unsupported_reason(unet)
    if obstacle is None:
        prepared = PreparedUNet(
            unet, embeds, image_latents[0], time_ids, c_noises, optimizations, stream=stream, options=options
        )
        return lambda x, c_noise: prepared(x[0].to(dtype), c_noise)[None].float()
    logger.info("the denoising network is called as it is, without the faster rewrites: %s", obstacle)

    def predict(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        sample = torch.cat([x.to(dtype), image_latents], dim=2)
        told = {"encoder_hidden_states": embeds, "added_time_ids": time_ids, "return_dict": False}
        return unet(sample, c_noise.to(device), **told)[0].float()

    return predict
