"""Random models of the published architecture in sizes that can be measured: time does not depend on the numbers."""

# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...svd_core.errors import SettingError


@dataclass(frozen=True)
class Size:
    """Widths of the models, and the video's frames and its height and width in latent pixels."""

    unet_widths: tuple[int, ...]
    heads: tuple[int, ...]
    context_width: int
    vae_widths: tuple[int, ...]
    frames: int
    height: int
    width: int


SIZES = {
    "small": Size((64, 128, 256, 256), (2, 4, 8, 8), 128, (32, 64, 64, 64), 8, 36, 64),
    "full": Size((320, 640, 1280, 1280), (5, 10, 20, 20), 1024, (128, 256, 512, 512), 25, 72, 128),
}
"""small is for a CPU; full is SVD-XT at 1024x576."""


def size_of(name: str) -> Size:
    """The size of that name. Raises SettingError for an unknown one."""
    if name not in SIZES:
        raise SettingError(f'the size must be one of {", ".join(SIZES)}, got "{name}"')
    return SIZES[name]


def build_unet(size: Size) -> Any:
    """UNetSpatioTemporalConditionModel."""
    from diffusers import UNetSpatioTemporalConditionModel

    return UNetSpatioTemporalConditionModel(
        block_out_channels=size.unet_widths,
        num_attention_heads=size.heads,
        cross_attention_dim=size.context_width,
        num_frames=size.frames,
    )


def build_vae(size: Size) -> Any:
    """AutoencoderKLTemporalDecoder."""
    from diffusers import AutoencoderKLTemporalDecoder

    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=size.vae_widths, layers_per_block=2
    )


def empty_model(build: Callable[[Size], Any], size: Size) -> Any:
    """The model on the meta device: shapes without numbers, in fp16."""
    meta = torch.device("meta")
    with meta:
        return build(size).to(meta).half().eval().requires_grad_(False)


def drawn(module: nn.Module, seed: int) -> Any:
    """The module with every parameter drawn, those that begin as 0 or 1 too, so that activations keep their size."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            value = noise / weight[0].numel() ** 0.5
        else:
            value = (1.0 if name.endswith("weight") else 0.0) + 0.1 * noise
        weight.data.copy_(value)
    return module.eval().requires_grad_(False)
