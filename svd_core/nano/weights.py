"""Builds svd-nano. It is not trained yet: its weights come from a fixed seed, so its videos are moving noise."""

from __future__ import annotations

import logging
import math

import torch

from ..checkpoint.load import resolve_dtypes
from ..checkpoint.parts import Checkpoint, SVDClipVision, SVDModel, SVDVae
from . import DEFAULTS
from .architecture import CLIP_VISION, UNET, VAE

logger = logging.getLogger(__name__)

SEED = 20231121  # the day Stable Video Diffusion came out

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own, openai/CLIP clip.py
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def build_nano(precision: str, device: torch.device) -> Checkpoint:
    """svd-nano on the CPU in the precision (auto, fp16, bf16, fp32) that `device` is to compute in.

    The same weights each time, whatever the global random state is.
    """
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    logger.warning(
        "svd-nano is a demonstration model and is not trained yet: built from a fixed seed, it makes moving noise. "
        "Name a real SVD checkpoint to animate a picture."
    )
    with torch.random.fork_rng(devices=[]):
        unet = UNetSpatioTemporalConditionModel(**UNET)
        vae = AutoencoderKLTemporalDecoder(**VAE)
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_VISION))
    generator = torch.Generator("cpu").manual_seed(SEED)
    dtypes = resolve_dtypes(precision, device, stored=torch.float32, force_upcast=True)
    for module in (unet, vae, clip):
        _draw(module, generator)
        module.eval().requires_grad_(False)
    parts: list[tuple[torch.nn.Module, torch.dtype]] = [(part, dtypes.compute) for part in (unet, clip, vae.decoder)]
    parts += [(part, dtypes.encoder) for part in (vae.encoder, vae.quant_conv)]
    for part, dtype in parts:
        if dtype is not torch.float32:
            part.to(dtype)
    return Checkpoint(
        model=SVDModel(unet, scaling_factor=0.18215, sigma_min=0.002, sigma_max=700.0, defaults=DEFAULTS),
        clip_vision=SVDClipVision(clip, IMAGE_MEAN, IMAGE_STD),
        vae=SVDVae(vae),
    )


def _draw(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the scale of what passes through; norms at 1, biases and mix factors at 0."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(drawn / math.sqrt(parameter[0].numel()))
        else:
            is_norm = name.endswith("weight")
            parameter.data.fill_(1.0 if is_norm else 0.0)
