"""The encoder on a large picture: layer by layer, in slabs of rows where a layer is large. The same numbers."""

# The model classes declare their parts as bare modules: a type checker cannot follow.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalSubscript=false

from __future__ import annotations

from typing import Any

import torch

from . import tiled_layers
from .optimizations import find_modification

COMPOSITES = frozenset(
    {"Encoder", "DownEncoderBlock2D", "UNetMidBlock2D", "ResnetBlock2D", "Downsample2D", "Attention", "ModuleList"}
)


def can_stream(encoder: torch.nn.Module) -> bool:
    """Whether an encoder is made of the classes whose forward is written again here, and nothing is hooked on them."""
    return type(encoder).__name__ == "Encoder" and find_modification(encoder, COMPOSITES) is None


def encode(encoder: Any, pixels: torch.Tensor, store: torch.device) -> torch.Tensor:
    """Moments (1, 8, H/8, W/8) of pixels (1, 3, H, W) on the encoder's device.

    store  where a large layer's activations lie: the encoder's device, or the CPU to spare it
    """
    device = pixels.device
    if _is_large(pixels, encoder.conv_in):
        picture = tiled_layers.conv(pixels.to(store), encoder.conv_in, device)
    else:
        picture = encoder.conv_in(pixels)
    for down_block in encoder.down_blocks:
        for block in down_block.resnets:
            if _is_large(picture, block.conv1):
                picture = tiled_layers.residual(picture, block, device)
            else:
                picture = block(picture.to(device), None)
        for module in down_block.downsamplers or ():
            if _is_large(picture, module.conv):
                picture = tiled_layers.downsampled(picture, module.conv, device)
            else:
                picture = module(picture.to(device))
    picture = encoder.mid_block(picture.to(device))
    return encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(picture)))


def _is_large(picture: torch.Tensor, module: Any) -> bool:
    """Whether what a convolution takes or makes is computed in slabs."""
    return tiled_layers.needs_tiling(
        picture[0, 0].numel() * max(module.in_channels, module.out_channels), picture.dtype
    )
