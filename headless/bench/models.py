"""Random models of the published architecture in sizes to measure: their speed does not depend on their weights.

`stock_pipeline` is diffusers' own, to compare with.
"""

# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...svd_core.checkpoints.diffusers_format import PUBLISHED_CONFIGS, SCHEDULER
from ...svd_core.checkpoints.model_metadata import VideoDefaults
from ...svd_core.models.components import Checkpoint, SVDClipVision, SVDModel, SVDVae

SIGMAS = {"sigma_min": 0.002, "sigma_max": 700.0}


@dataclass(frozen=True)
class Size:
    """The channels of the models, and the frames, height and width of the video in latent pixels."""

    unet_channels: tuple[int, ...]
    heads: tuple[int, ...]
    embedding_width: int
    vae_channels: tuple[int, ...]
    frames: int
    height: int
    width: int


SIZES = {
    "small": Size((64, 128, 256, 256), (2, 4, 8, 8), 128, (32, 64, 64, 64), 8, 32, 64),
    "full": Size((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, (128, 256, 512, 512), 25, 72, 128),
}
"""small, 512x256, is for a CPU; full is SVD-XT at 1024x576."""


def build_unet(size: Size) -> Any:
    """Create a UNetSpatioTemporalConditionModel."""
    from diffusers import UNetSpatioTemporalConditionModel

    return UNetSpatioTemporalConditionModel(
        block_out_channels=size.unet_channels,
        num_attention_heads=size.heads,
        cross_attention_dim=size.embedding_width,
        num_frames=size.frames,
    )


def build_vae(size: Size) -> Any:
    """Create an AutoencoderKLTemporalDecoder."""
    from diffusers import AutoencoderKLTemporalDecoder

    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=size.vae_channels, layers_per_block=2
    )


def build_clip(size: Size) -> Any:
    """Create a CLIPVisionModelWithProjection of two layers: it takes little of the time."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**config, projection_dim=size.embedding_width))


def make_model(unet: Any, scaling_factor: float, size: Size) -> SVDModel:
    """Return a UNet as this package's model."""
    defaults = VideoDefaults(num_frames=size.frames, width=8 * size.width, height=8 * size.height)
    return SVDModel(unet, scaling_factor, **SIGMAS, defaults=defaults)


def make_checkpoint(unet: Any, vae: Any, clip: Any, size: Size) -> Checkpoint:
    """Return the modules as this package's checkpoint."""
    from transformers import CLIPImageProcessor

    processor: Any = CLIPImageProcessor()
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return Checkpoint(make_model(unet, vae.config["scaling_factor"], size), SVDClipVision(clip, mean, std), SVDVae(vae))


def stock_pipeline(unet: Any, vae: Any, clip: Any) -> Any:
    """Return the modules as diffusers' StableVideoDiffusionPipeline."""
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from transformers import CLIPImageProcessor

    scheduler = EulerDiscreteScheduler(**PUBLISHED_CONFIGS[SCHEDULER], **SIGMAS)
    pipeline = StableVideoDiffusionPipeline(vae, clip, unet, scheduler, CLIPImageProcessor())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def empty_model(build: Callable[[Size], Any], size: Size) -> Any:
    """Create a float16 model on the meta device: shapes without values."""
    meta = torch.device("meta")
    with meta:
        return build(size).to(meta).half().eval().requires_grad_(False)


def random_model(build: Callable[[Size], Any], size: Size, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Create a random model on a device, without one on the CPU first."""
    return randomize(empty_model(build, size).to(dtype).to_empty(device=device), seed)


def randomize(module: nn.Module, seed: int) -> Any:
    """Draw all parameters in place, also those initialized to 0 or 1, such that activations keep their scale.

    They are drawn on the module's device: a large model on a GPU takes no time.
    """
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator, device=device)
        if weight.ndim > 1:
            value = noise / weight[0].numel() ** 0.5
        else:
            value = (1.0 if name.endswith("weight") else 0.0) + 0.1 * noise
        weight.data.copy_(value)
    return module.eval().requires_grad_(False)
