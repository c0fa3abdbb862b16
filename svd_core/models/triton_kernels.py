"""Triton kernels of `triton_group_norm`, on images in channels-last memory format: rows of C channels, one per pixel.

Importing this module needs Triton. With TRITON_INTERPRET=1, set before the import, the kernels run on a CPU.
"""

# Triton is not a requirement, and its kernels are not Python: their arguments are pointers and constants.
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportInvalidTypeForm=false, reportIndexIssue=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

MOMENT_PIXELS, NORM_PIXELS = 32, 64
"""Pixels of a block, whose elements the threads of a program hold in registers."""
BLOCK_CHANNELS = 64
"""Channels of a block: 128 bytes of a pixel in 16 bits, one transaction of memory."""
COMBINED_TILES = 16
PROGRAMS = 1024
"""Programs that compute moments: several for each multiprocessor of a large GPU."""


@triton.jit(do_not_specialize=["pixels", "tile_pixels", "tiles"])
def _tile_moments(
    x,
    partials,
    pixels,
    channels,
    tile_pixels,
    tiles,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Compute mean and sum of squared deviations of each channel over a tile of an image's pixels.

    Each lane updates its own by Welford's recurrence (Welford 1962, Note on a method for calculating corrected sums of
    squares and products). Chan, Golub and LeVeque's formula (1983) combines the lanes.
    """
    tile, image = tl.program_id(0), tl.program_id(2)
    columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    lanes = tl.arange(0, PIXELS)
    first = tile * tile_pixels
    last = tl.minimum(first + tile_pixels, pixels)
    x += image.to(tl.int64) * pixels * channels
    mean = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    squares = tl.zeros([PIXELS, CHANNELS], dtype=tl.float32)
    count = tl.zeros([PIXELS, 1], dtype=tl.float32)
    for start in range(first, last, PIXELS):
        rows = (start + lanes)[:, None]
        inside = rows < last
        offsets = rows.to(tl.int64) * channels + columns[None, :]
        values = tl.load(x + offsets, mask=inside & (columns < channels)[None, :], other=0.0).to(tl.float32)
        count += inside.to(tl.float32)
        difference = tl.where(inside, values - mean, 0.0)
        mean += difference * (1.0 / tl.maximum(count, 1.0))
        squares += difference * (values - mean)
    center = tl.sum(mean * (count / tl.sum(count, axis=0)[None, :]), axis=0)
    deviation = mean - center[None, :]
    partials += (image.to(tl.int64) * tiles + tile) * 2 * channels + columns
    tl.store(partials, center, mask=columns < channels)
    tl.store(partials + channels, tl.sum(squares + count * deviation * deviation, axis=0), mask=columns < channels)


@triton.jit(do_not_specialize=["pixels", "tile_pixels", "tiles"])
def _combine_moments(
    partials,
    before,
    moments,
    pixels,
    channels,
    tile_pixels,
    tiles,
    groups,
    HAS_BEFORE: tl.constexpr,
    TILES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Combine the partial moments of a group's channels, and those before, to count, mean and squared deviations."""
    group, image = tl.program_id(0), tl.program_id(1)
    size = channels // groups
    columns = tl.arange(0, CHANNELS)[None, :]
    lanes = tl.arange(0, TILES)
    partials += image.to(tl.int64) * tiles * 2 * channels + group * size
    total = pixels.to(tl.float32) * size
    means = tl.zeros([TILES, CHANNELS], dtype=tl.float32)
    for start in range(0, tiles, TILES):
        rows = (start + lanes)[:, None]
        inside = (rows < tiles) & (columns < size)
        weight = tl.minimum(pixels - rows * tile_pixels, tile_pixels).to(tl.float32) / total
        means += tl.load(partials + rows * 2 * channels + columns, mask=inside, other=0.0) * weight
    mean = tl.sum(tl.sum(means, axis=1), axis=0)
    sums = tl.zeros([TILES, CHANNELS], dtype=tl.float32)
    for start in range(0, tiles, TILES):
        rows = (start + lanes)[:, None]
        inside = (rows < tiles) & (columns < size)
        count = tl.minimum(pixels - rows * tile_pixels, tile_pixels).to(tl.float32)
        place = partials + rows * 2 * channels + columns
        deviation = tl.load(place, mask=inside, other=0.0) - mean
        within = tl.load(place + channels, mask=inside, other=0.0)
        sums += tl.where(inside, within + count * deviation * deviation, 0.0)
    squares = tl.sum(tl.sum(sums, axis=1), axis=0)
    place = image * 3 * groups + group
    if HAS_BEFORE:
        earlier = tl.load(before + place)
        difference = mean - tl.load(before + place + groups)
        together = earlier + total
        squares += tl.load(before + place + 2 * groups) + difference * difference * (earlier * (total / together))
        mean = tl.load(before + place + groups) + difference * (total / together)
        total = together
    tl.store(moments + place, total)
    tl.store(moments + place + groups, mean)
    tl.store(moments + place + 2 * groups, squares)


@triton.jit(do_not_specialize=["pixels"])
def _normalize(
    x,
    moments,
    weight,
    bias,
    out,
    pixels,
    channels,
    groups,
    eps,
    SILU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Normalize a block of an image, apply weight and bias, and SiLU. Only the result is rounded to its dtype."""
    image = tl.program_id(2)
    columns = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = columns < channels
    moments += image * 3 * groups + columns // (channels // groups)
    count = tl.load(moments, mask=exists, other=1.0)
    mean = tl.load(moments + groups, mask=exists, other=0.0)
    squares = tl.load(moments + 2 * groups, mask=exists, other=0.0)
    factor = tl.load(weight + columns, mask=exists, other=0.0).to(tl.float32) * tl.rsqrt(squares / count + eps)
    shift = tl.load(bias + columns, mask=exists, other=0.0).to(tl.float32)
    rows = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[:, None]
    inside = (rows < pixels) & exists[None, :]
    offsets = (image.to(tl.int64) * pixels + rows) * channels + columns[None, :]
    deviation = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
    normed = tl.fma(deviation, factor[None, :], shift[None, :])
    if SILU:
        normed = normed / (1.0 + tl.exp(-normed))
    tl.store(out + offsets, normed.to(out.dtype.element_ty), mask=inside)


def compute_moments(x: torch.Tensor, groups: int, before: torch.Tensor | None) -> torch.Tensor:
    """Compute the moments of the channel groups of x (N, C, H, W), in channels-last format, as (N, 3, G) float32.

    The moments are the number of elements, their mean, and the sum of their squared deviations from it. Those of
    `before` are included.
    """
    images, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    width = min(BLOCK_CHANNELS, triton.next_power_of_2(channels))
    blocks = triton.cdiv(channels, width)
    wanted = triton.cdiv(PROGRAMS, images * blocks)
    tile_pixels = MOMENT_PIXELS * triton.cdiv(pixels, MOMENT_PIXELS * wanted)
    tiles = triton.cdiv(pixels, tile_pixels)
    partials = x.new_empty((images, tiles, 2, channels), dtype=torch.float32)
    moments = x.new_empty((images, 3, groups), dtype=torch.float32)
    sizes = (pixels, channels, tile_pixels, tiles)
    with torch.cuda.device_of(x):
        _tile_moments[(tiles, blocks, images)](x, partials, *sizes, MOMENT_PIXELS, width)
        group_width = triton.next_power_of_2(channels // groups)
        earlier = moments if before is None else before
        flags = (before is not None, COMBINED_TILES, group_width)
        _combine_moments[(groups, images)](partials, earlier, moments, *sizes, groups, *flags)
    return moments


def normalize(
    x: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, silu: bool
) -> torch.Tensor:
    """Normalize x (N, C, H, W), in channels-last format, by moments (N, 3, G), apply weight and bias (C,) and SiLU."""
    images, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    width = min(BLOCK_CHANNELS, triton.next_power_of_2(channels))
    out = torch.empty_like(x)
    grid = (triton.cdiv(pixels, NORM_PIXELS), triton.cdiv(channels, width), images)
    sizes = (pixels, channels, moments.shape[2], eps)
    with torch.cuda.device_of(x):
        _normalize[grid](x, moments, weight, bias, out, *sizes, silu, NORM_PIXELS, width)
    return out
