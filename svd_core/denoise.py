"""D(x; sigma): the UNet with its preconditioning and with guidance, as something you call with (x, sigma)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .conditioning import Conditioning

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x (1, F, 4, h, w) float32 scaled latents, sigma () float32) -> the clean latents, the same shape and scale."""


def precondition(x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's view of x and sigma: (c_in x, c_noise), with sigma_data = 1.

    c_in = 1 / sqrt(sigma^2 + 1), c_noise = ln(sigma) / 4. Karras et al. 2022 (arXiv:2206.00364), table 1, with the
    v-prediction scaling of Stability's generative-models (VScalingWithEDMcNoise).
    """
    return x / (sigma**2 + 1) ** 0.5, 0.25 * sigma.log()


def clean_from_v(x: torch.Tensor, v: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The clean latents from a v-prediction: c_skip x + c_out v, c_skip = 1/(s^2+1), c_out = -s/sqrt(s^2+1)."""
    return v * (-sigma / (sigma**2 + 1) ** 0.5) + x / (sigma**2 + 1)


def make_denoiser(
    unet: torch.nn.Module,
    positive: Conditioning,
    negative: Conditioning,
    weights: torch.Tensor,
    device: torch.device,
    *,
    together: bool = True,
) -> Denoiser:
    """A denoiser of one video with classifier-free guidance, one weight per frame.

    unet      UNetSpatioTemporalConditionModel on `device`; computes in its own dtype, x stays float32
    weights   (F,) float32; guided v = v_negative + weight (v_positive - v_negative)
    together  both sides in one call of the UNet, else one after the other: half the memory, the same numbers to
              rounding. The negative side is not computed at all when every weight is 1.
    """
    frames = weights.numel()
    guided = bool((weights != 1.0).any())
    sides = (negative, positive) if guided else (positive,)
    batches = [sides] if together else [(side,) for side in sides]
    calls = [_predictor(unet, batch, frames, device) for batch in batches]
    per_frame = weights.to(device).view(1, frames, 1, 1, 1)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scaled, c_noise = precondition(x, sigma)
        v = torch.cat([call(scaled, c_noise) for call in calls])
        if guided:
            v_negative, v_positive = v.chunk(2)
            v = v_negative + per_frame * (v_positive - v_negative)
        return clean_from_v(x, v, sigma)

    return denoise


def _predictor(
    unet: torch.nn.Module, sides: tuple[Conditioning, ...], frames: int, device: torch.device
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """v for each of `sides` in one UNet call: (x (1, F, 4, h, w) scaled by c_in, c_noise) -> (sides, F, 4, h, w)."""
    dtype = next(unet.parameters()).dtype
    embeds = torch.cat([side.embeds for side in sides]).to(device, dtype)
    image_latents = torch.cat([side.per_frame(frames) for side in sides]).to(device, dtype)
    time_ids = torch.cat([side.micro.time_ids() for side in sides]).to(device)

    def predict(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        noisy = x.to(dtype).expand(len(sides), -1, -1, -1, -1)
        v = unet(
            torch.cat([noisy, image_latents], dim=2),
            c_noise.to(device),
            encoder_hidden_states=embeds,
            added_time_ids=time_ids,
            return_dict=False,
        )[0]
        return v.float()

    return predict
