"""Random inputs of the models, and the denoisers of a step with guidance: diffusers' and this package's."""

from __future__ import annotations

from typing import Any

import torch

from ...svd_core.diffusion.conditioning import Conditioning, MicroConditioning
from ...svd_core.diffusion.denoiser import Denoiser, denoised_from_v, make_denoiser, precondition
from ...svd_core.models.options import DEFAULT, ModelOptions
from ...svd_core.models.step_cache import StepCache
from .models import Size

SCALING = 0.18215  # SVD vae/config.json
SIGMA = torch.tensor(2.0)
"""The noise level of the measured step, on the CPU."""


class Inputs:
    """Random inputs of a video, drawn on the CPU from one seed.

    Attributes:
        x: (1, F, 4, h, w) float32 scaled latents of a step, on the device.
        latents: (F, 4, h, w) float32 unscaled latents to decode, on the device.
        image: (8h, 8w, 3) uint8, on the CPU.
        sides: Positive and negative conditioning.
        guidance: (F,) float32 weights.
    """

    def __init__(self, size: Size, device: torch.device) -> None:
        self._size, self._device = size, device
        generator = torch.Generator("cpu").manual_seed(2)
        shapes = ((1, size.frames, 4, size.height, size.width), (1, 4, size.height, size.width))
        x, image_latents, embeds = (
            torch.randn(shape, generator=generator) for shape in (*shapes, (1, 1, size.embedding_width))
        )
        self.image = torch.randint(256, (8 * size.height, 8 * size.width, 3), generator=generator).byte()
        positive = Conditioning(embeds, image_latents, MicroConditioning())
        negative = Conditioning(torch.zeros_like(embeds), torch.zeros_like(image_latents), positive.micro)
        self.sides = (positive, negative)
        self.guidance = torch.linspace(1.0, 3.0, size.frames)
        self.x, self.latents = x.to(device), (x[0] / SCALING).to(device)

    def stock_denoiser(self, unet: Any) -> Denoiser:
        """Create a denoiser with both sides of guidance in one batch, as in diffusers' pipeline."""
        weight = next(unet.parameters())
        positive, negative = self.sides
        batch = (negative, positive)
        embeds = torch.cat([side.embeds for side in batch]).to(weight)
        image_latents = torch.cat([side.per_frame(self._size.frames) for side in batch]).to(weight)
        time_ids = torch.cat([side.micro.time_ids() for side in batch]).to(weight.device)
        guidance = self.guidance.to(weight.device).view(1, -1, 1, 1, 1)
        conditioning = {"encoder_hidden_states": embeds, "added_time_ids": time_ids, "return_dict": False}

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            scaled, c_noise = precondition(x, sigma)
            sample = torch.cat([scaled.to(weight).expand(2, -1, -1, -1, -1), image_latents], dim=2)
            v_negative, v_positive = unet(sample, c_noise.to(weight.device), **conditioning)[0].to(x.dtype).chunk(2)
            return denoised_from_v(x, v_negative + guidance * (v_positive - v_negative), sigma)

        return denoise

    def our_denoiser(
        self, unet: Any, options: ModelOptions = DEFAULT, stream: bool = False, step_cache: StepCache | None = None
    ) -> Denoiser:
        """Create this package's denoiser of one noise level."""
        how: Any = {"stream": stream, "options": options, "step_cache": step_cache}
        return make_denoiser(unet, *self.sides, self.guidance, self._device, SIGMA[None], **how)


def stock_decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode all frames in one call of diffusers' decoder."""
    weight = next(vae.decoder.parameters())
    indicator = torch.zeros((1, len(latents)), device=weight.device, dtype=weight.dtype)
    return vae.decoder(latents.to(weight), num_frames=len(latents), image_only_indicator=indicator)
