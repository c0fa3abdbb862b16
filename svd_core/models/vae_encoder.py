"""The VAE encoder on a large image: layers run one after the other, large ones in tiles of rows, with equal results."""

# The model classes declare their submodules as plain modules: a type checker cannot follow.
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
    """Return True if `encode` computes what the encoder's own forward does: its classes are diffusers', unmodified."""
    return type(encoder).__name__ == "Encoder" and find_modification(encoder, COMPOSITES) is None


def encode(encoder: Any, pixels: torch.Tensor, offload_activations: bool = False) -> torch.Tensor:
    """Encode pixels (1, 3, H, W) on the encoder's device to moments (1, 8, H/8, W/8).

    Args:
        encoder: diffusers' Encoder.
        pixels: In [-1, 1], in the encoder's dtype.
        offload_activations: Keep the activations of large layers on the CPU.
    """
    device = pixels.device
    if _needs_tiling(pixels, encoder.conv_in):
        x = tiled_layers.conv(pixels.cpu() if offload_activations else pixels, encoder.conv_in, device)
    else:
        x = encoder.conv_in(pixels)
    for down_block in encoder.down_blocks:
        for resnet in down_block.resnets:
            if _needs_tiling(x, resnet.conv1):
                x = tiled_layers.resnet_block(x, resnet, device)
            else:
                x = resnet(x.to(device), None)
        for downsampler in down_block.downsamplers or ():
            if _needs_tiling(x, downsampler.conv):
                x = tiled_layers.downsample(x, downsampler.conv, device)
            else:
                x = downsampler(x.to(device))
    x = encoder.mid_block(x.to(device))
    return encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(x)))


def _needs_tiling(x: torch.Tensor, module: Any) -> bool:
    """Return True if the input or the output of a convolution is large."""
    return tiled_layers.needs_tiling(x[0, 0].numel() * max(module.in_channels, module.out_channels), x.dtype)
