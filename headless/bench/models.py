"""Random models of the published architecture in sizes to measure: their speed does not depend on their weights."""

# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


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
    "small": Size((64, 128, 256, 256), (2, 4, 8, 8), 128, (32, 64, 64, 64), 8, 36, 64),
    "full": Size((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, (128, 256, 512, 512), 25, 72, 128),
}
"""small is for a CPU; full is SVD-XT at 1024x576."""


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


def empty_model(build: Callable[[Size], Any], size: Size) -> Any:
    """Create a float16 model on the meta device: shapes without values."""
    meta = torch.device("meta")
    with meta:
        return build(size).to(meta).half().eval().requires_grad_(False)


def randomize(module: nn.Module, seed: int) -> Any:
    """Draw all parameters in place, also those initialized to 0 or 1, such that activations keep their scale."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            value = noise / weight[0].numel() ** 0.5
        else:
            value = (1.0 if name.endswith("weight") else 0.0) + 0.1 * noise
        weight.data.copy_(value)
    return module.eval().requires_grad_(False)
