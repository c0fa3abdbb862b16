"""Computes group norms by Triton's interpreter on the CPU, and prints their errors. Run by test_triton_group_norm.py.

Results are compared with float64. Each line is JSON: a case, this package's error and PyTorch's own.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import numpy as np
import torch
from svd_stages.svd_core.models import triton_group_norm, triton_kernels
from svd_stages.svd_core.models.group_norm import GroupNormStatistics
from tiny import randn
from torch.nn import functional as F
from triton.runtime import interpreter

SHAPES = [(2, 40, 9, 13, 8), (1, 320, 5, 67, 32), (3, 96, 5, 7, 32), (1, 24, 7, 50, 3), (1, 6, 14, 33, 6)]
"""N, C, H, W and groups."""


def round_to_bfloat16(values, source, target, rounding, original=interpreter._convert_float):
    """Round float32 to bfloat16 to nearest, as GPUs do. The interpreter drops bits."""
    if target != interpreter.tl.bfloat16 or source != interpreter.tl.float32:
        return original(values, source, target, rounding)
    rounded = torch.from_numpy(np.ascontiguousarray(values).view(np.float32)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def group_norm_of(channels: int, groups: int, dtype: torch.dtype) -> torch.nn.GroupNorm:
    norm = torch.nn.GroupNorm(groups, channels, eps=1e-5, dtype=dtype)
    norm.weight.data, norm.bias.data = (1 + 0.5 * randn(channels, seed=8)).to(dtype), randn(channels, seed=9).to(dtype)
    return norm


def exact(x: torch.Tensor, norm: torch.nn.GroupNorm, silu: bool) -> torch.Tensor:
    normed = F.group_norm(x.double(), norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
    return F.silu(normed) if silu else normed


def report(case: list, ours: torch.Tensor, theirs: torch.Tensor, truth: torch.Tensor) -> None:
    errors = [((each.double() - truth).norm() / truth.norm()).item() for each in (ours, theirs)]
    print(json.dumps([case, *errors]), flush=True)


def whole_tensors(dtype: torch.dtype) -> None:
    for index, (images, channels, height, width, groups) in enumerate(SHAPES):
        x = 3 * randn(images, channels, height, width, seed=index) + 2 * randn(images, channels, 1, 1, seed=index + 9)
        x, norm, silu = channels_last(x.to(dtype)), group_norm_of(channels, groups, dtype), index != 1
        ours = triton_group_norm.group_norm(x, norm, silu)
        assert ours.stride() == x.stride() and ours.dtype == dtype
        normed = F.group_norm(x, groups, norm.weight, norm.bias, norm.eps)
        report(["whole", str(dtype), index], ours, F.silu(normed) if silu else normed, exact(x, norm, silu))


def parts(dtype: torch.dtype) -> None:
    """Collect the statistics of a tensor from parts of several sizes. Their means differ."""
    x = (2 * randn(1, 40, 50, 12) + 3 * randn(1, 1, 50, 1, seed=1)).to(dtype)
    norm = group_norm_of(40, 8, dtype)
    truth, theirs = exact(x, norm, True), F.silu(F.group_norm(x, 8, norm.weight, norm.bias, norm.eps))
    statistics = GroupNormStatistics(norm)
    for part in x.split([7, 20, 20, 3], dim=2):
        statistics.update(channels_last(part))
    report(["parts", str(dtype)], statistics.normalize_silu(channels_last(x)), theirs, truth)


def small_variance() -> None:
    """Normalize numbers whose variance is tiny beside their mean: a difference of squares would lose it."""
    x, norm = channels_last(1000 + 0.05 * randn(1, 40, 31, 33)), torch.nn.GroupNorm(8, 40)
    truth, theirs = exact(x, norm, True), F.silu(norm(x.contiguous()))
    report(["small variance"], triton_group_norm.group_norm(x, norm, True), theirs, truth)


if __name__ == "__main__":
    interpreter._convert_float = round_to_bfloat16
    triton_group_norm._available[torch.device("cpu")] = True
    triton_kernels.PROGRAMS = 2  # several blocks of pixels in a tile, several tiles in an image
    with torch.inference_mode():
        for each in triton_group_norm.DTYPES:
            whole_tensors(each)
            parts(each)
        small_variance()
