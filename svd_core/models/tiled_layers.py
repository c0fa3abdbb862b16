"""Layers of the VAE on one image, computed in tiles of rows with at most one tile on the device.

The results are those of the whole image: a convolution reads one more row on each side of its tile, and the statistics
of a group norm are collected from all tiles before any is normalized. Images are feature maps (1, C, H, W). They may be
on another device than the one that computes, and the results are on the image's device. Shapes alone decide the tiles,
so free memory has no influence on the numbers.
"""

# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from . import layers
from .group_norm import GroupNormStatistics

TILING_THRESHOLD = 2**29
"""Bytes of a feature map above which it is tiled: 1344x768 in the decoder's last level in 16 bits, or in the encoder's
first level in float32."""
TILE_NUMEL = 2**26
"""Elements of a tile."""


def needs_tiling(numel: int, dtype: torch.dtype) -> bool:
    """Return True if a feature map of `numel` elements is computed in tiles."""
    return numel * dtype.itemsize > TILING_THRESHOLD


def row_tiles(x: torch.Tensor) -> list[slice]:
    """Split the rows of x into tiles of at most TILE_NUMEL elements, each an even number of rows."""
    height = x.shape[2]
    rows = max(2, TILE_NUMEL * height // x.numel() // 2 * 2)
    return [slice(first, min(first + rows, height)) for first in range(0, height, rows)]


def resnet_block(
    x: torch.Tensor, block: Any, device: torch.device, statistics: GroupNormStatistics | None = None
) -> torch.Tensor:
    """Apply a ResnetBlock2D without time embedding, in place if the number of channels stays.

    `statistics` are updated with the result.
    """
    second_norm = GroupNormStatistics(block.norm2)
    hidden = norm_silu_conv(x, block.norm1, block.conv1, device, second_norm)
    shortcut = block.conv_shortcut
    out = x if shortcut is None else _empty_like(x, block.conv2.out_channels)
    for rows in row_tiles(hidden):
        tile = _conv(*_with_border(hidden, rows, device), block.conv2, second_norm)
        residual = x[:, :, rows].to(device)
        tile.add_(residual if shortcut is None else shortcut(residual))
        if statistics is not None:
            statistics.update(layers.to_video(tile))
        out[:, :, rows] = tile
    return out


def norm_silu_conv(
    x: torch.Tensor, norm: Any, module: Any, device: torch.device, statistics: GroupNormStatistics | None = None
) -> torch.Tensor:
    """Apply a group norm, SiLU and a 3x3 convolution. `statistics` are updated with the result."""
    norm_statistics = GroupNormStatistics(norm)
    for rows in row_tiles(x):
        norm_statistics.update(layers.to_video(x[:, :, rows].to(device)))
    return conv(x, module, device, norm_statistics, statistics)


def conv(
    x: torch.Tensor,
    module: Any,
    device: torch.device,
    norm: GroupNormStatistics | None = None,
    statistics: GroupNormStatistics | None = None,
) -> torch.Tensor:
    """Apply a 3x3 convolution with padding 1, after group norm and SiLU if `norm` has the statistics of x.

    `statistics` are updated with the result.
    """
    out = _empty_like(x, module.out_channels)
    for rows in row_tiles(x):
        tile = _conv(*_with_border(x, rows, device), module, norm)
        if statistics is not None:
            statistics.update(layers.to_video(tile))
        out[:, :, rows] = tile
    return out


def upsample(x: torch.Tensor, module: Any, device: torch.device) -> torch.Tensor:
    """Apply an Upsample2D with convolution `module`: nearest-neighbor by 2, then 3x3 with padding 1."""
    height, width = x.shape[-2:]
    out = _empty_like(x, module.out_channels, (2 * height, 2 * width))
    for rows in row_tiles(out):
        tile, above, below = _with_border(x, slice(rows.start // 2, (rows.stop + 1) // 2), device)
        tile = F.interpolate(tile, scale_factor=2.0, mode="nearest")
        # each border row became two, of which the convolution reads one
        tile = tile[:, :, 1 - above : tile.shape[2] - (1 - below)]
        out[:, :, rows] = _conv(tile, above, below, module)
    return out


def downsample(x: torch.Tensor, module: Any, device: torch.device) -> torch.Tensor:
    """Apply a Downsample2D with convolution `module`: 3x3 with stride 2, zeros after the last row and column."""
    height, width = x.shape[-2:]
    out = _empty_like(x, module.out_channels, (height // 2, width // 2))
    for rows in row_tiles(out):
        tile = x[:, :, 2 * rows.start : 2 * rows.stop + 1].to(device)
        below = 2 * (rows.stop - rows.start) + 1 - tile.shape[2]
        out[:, :, rows] = F.conv2d(F.pad(tile, (0, 1, 0, below)), module.weight, module.bias, stride=2)
    return out


def _with_border(x: torch.Tensor, rows: slice, device: torch.device) -> tuple[torch.Tensor, int, int]:
    """Return `rows` of x with one more on each side, and the rows of padding above and below at the image's edges."""
    first, last = max(0, rows.start - 1), min(x.shape[2], rows.stop + 1)
    return x[:, :, first:last].to(device), first - rows.start + 1, rows.stop + 1 - last


def _conv(
    tile: torch.Tensor, above: int, below: int, module: Any, norm: GroupNormStatistics | None = None
) -> torch.Tensor:
    if norm is not None:
        tile = norm.normalize_silu(tile)
    return F.conv2d(F.pad(tile, (0, 0, above, below)), module.weight, module.bias, padding=(0, 1))


def _empty_like(x: torch.Tensor, channels: int, size: tuple[int, int] | None = None) -> torch.Tensor:
    layout = torch.channels_last if layers.is_channels_last(x) else torch.contiguous_format
    shape = (1, channels, *(size or x.shape[-2:]))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
