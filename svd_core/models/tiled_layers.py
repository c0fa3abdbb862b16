"""What looks at one picture, in slabs of rows: the same numbers, with no more than a slab of it on the device.

A convolution sees one row more on each side of its slab; the statistics of a group norm are gathered from all slabs
before any is normalised. Pictures are (1, C, H, W) and may lie on another device than the one that computes; the
results lie where the picture does. The slabs are chosen by shape alone, so memory has no say in the numbers.
"""

# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from . import layers
from .group_norm import GroupNormStatistics

TILING_THRESHOLD = 2**29
"""Bytes of a picture above which it is cut: 1344x768 where the decoder comes up to its last level in 16 bits, or in the
encoder's first level in float32."""
TILE_NUMEL = 2**26
"""Numbers in a slab."""


def needs_tiling(numbers: int, dtype: torch.dtype) -> bool:
    """Whether a picture of so many numbers is computed in slabs."""
    return numbers * dtype.itemsize > TILING_THRESHOLD


def row_tiles(picture: torch.Tensor, scale: int = 1) -> list[slice]:
    """The rows of a picture in slabs of at most SLAB numbers, of an even number of rows; times `scale`."""
    height = picture.shape[2]
    rows = max(2, TILE_NUMEL * height // picture.numel() // 2 * 2)
    return [slice(scale * first, scale * min(first + rows, height)) for first in range(0, height, rows)]


def residual(
    picture: torch.Tensor, block: Any, device: torch.device, statistics: GroupNormStatistics | None = None
) -> torch.Tensor:
    """ResnetBlock2D without an embedding; in place where it has as many channels out as in.

    statistics  are told of the result
    """
    hidden = norm_silu_conv(picture, block.norm1, block.conv1, device, second := GroupNormStatistics(block.norm2))
    shortcut = block.conv_shortcut
    out = picture if shortcut is None else _empty_like(picture, block.conv2.out_channels)
    for rows in row_tiles(hidden):
        added = _conv(*_seen(hidden, rows, device), block.conv2, second)
        before = picture[:, :, rows].to(device)
        added.add_(before if shortcut is None else shortcut(before))
        if statistics is not None:
            statistics.add(layers.to_video(added))
        out[:, :, rows] = added
    return out


def norm_silu_conv(
    picture: torch.Tensor, norm: Any, module: Any, device: torch.device, statistics: GroupNormStatistics | None = None
) -> torch.Tensor:
    """A 3x3 convolution of the SiLU of the group norm. statistics: are told of the result."""
    first = GroupNormStatistics(norm)
    for rows in row_tiles(picture):
        first.add(layers.to_video(picture[:, :, rows].to(device)))
    return conv(picture, module, device, first, statistics)


def conv(
    picture: torch.Tensor,
    module: Any,
    device: torch.device,
    norm: GroupNormStatistics | None = None,
    statistics: GroupNormStatistics | None = None,
) -> torch.Tensor:
    """A 3x3 convolution with padding 1, of the SiLU of the group norm whose statistics `norm` has."""
    out = _empty_like(picture, module.out_channels)
    for rows in row_tiles(picture):
        made = _conv(*_seen(picture, rows, device), module, norm)
        if statistics is not None:
            statistics.add(layers.to_video(made))
        out[:, :, rows] = made
    return out


def upsampled(picture: torch.Tensor, module: Any, device: torch.device) -> torch.Tensor:
    """Each pixel four times, then a 3x3 convolution with padding 1: Upsample2D."""
    height, width = picture.shape[-2:]
    out = _empty_like(picture, module.out_channels, (2 * height, 2 * width))
    for rows in row_tiles(out):
        above, below = rows.start // 2, (rows.stop + 1) // 2
        part, missing_above, missing_below = _seen(picture, slice(above, below), device)
        part = F.interpolate(part, scale_factor=2.0, mode="nearest")
        first, last = 1 - missing_above, 1 - missing_below  # of the two rows that each row seen has become, one is seen
        part = part[:, :, first : part.shape[2] - last]
        out[:, :, rows] = _conv(part, missing_above, missing_below, module)
    return out


def downsampled(picture: torch.Tensor, module: Any, device: torch.device) -> torch.Tensor:
    """A 3x3 convolution with stride 2, a row and a column of zeros after the picture: Downsample2D with padding 0."""
    height, width = picture.shape[-2:]
    out = _empty_like(picture, module.out_channels, (height // 2, width // 2))
    for rows in row_tiles(out):
        part = picture[:, :, 2 * rows.start : 2 * rows.stop + 1].to(device)
        missing = 2 * (rows.stop - rows.start) + 1 - part.shape[2]
        out[:, :, rows] = F.conv2d(F.pad(part, (0, 1, 0, missing)), module.weight, module.bias, stride=2)
    return out


def _seen(picture: torch.Tensor, rows: slice, device: torch.device) -> tuple[torch.Tensor, int, int]:
    """The rows and one more on each side, and how many of these two the picture lacks above and below."""
    first, last = max(0, rows.start - 1), min(picture.shape[2], rows.stop + 1)
    return picture[:, :, first:last].to(device), first - rows.start + 1, rows.stop + 1 - last


def _conv(
    part: torch.Tensor, above: int, below: int, module: Any, norm: GroupNormStatistics | None = None
) -> torch.Tensor:
    if norm is not None:
        part = norm.normalize_silu(part)
    return F.conv2d(F.pad(part, (0, 0, above, below)), module.weight, module.bias, padding=(0, 1))


def _empty_like(picture: torch.Tensor, channels: int, size: tuple[int, int] | None = None) -> torch.Tensor:
    layout = torch.channels_last if layers.is_channels_last(picture) else torch.contiguous_format
    shape = (1, channels, *(size or picture.shape[-2:]))
    return torch.empty(shape, dtype=picture.dtype, device=picture.device, memory_format=layout)
