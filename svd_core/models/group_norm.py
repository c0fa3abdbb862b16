"""Group norm with SiLU over a tensor that is processed in parts: first all statistics, then the normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from . import layers, triton_group_norm


def group_moments(x: torch.Tensor, groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute mean and variance (G,) of the channel groups of x (1, C, A, B), in float32 or float64."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and layers.is_channels_last(x):
        # the fastest way on a CPU, although its normalized output is dropped
        _, channels, height, width = x.shape
        _normed, mean, rstd = torch.native_group_norm(x, None, None, 1, channels, height * width, groups, eps)
        return mean[0], (rstd[0] ** -2 - eps).clamp_min(0)
    if x.device.type == "cuda":
        return _moments_of_groups(*torch.batch_norm_stats(x, eps), groups, eps)
    grouped = x[0].unflatten(0, (groups, -1))
    wide = grouped if x.dtype == torch.float64 else grouped.float()
    variance, mean = torch.var_mean(wide, dim=(1, 2, 3), correction=0)
    return mean, variance


def _moments_of_groups(
    mean: torch.Tensor, rstd: torch.Tensor, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine mean and 1 / sqrt(variance + eps) of channels (C,), all of one size, to mean and variance (G,)."""
    means, variances = (each.unflatten(0, (groups, -1)) for each in (mean, (rstd**-2 - eps).clamp_min(0)))
    spread, center = torch.var_mean(means, dim=1, correction=0)
    return center, variances.mean(dim=1) + spread


class GroupNormStatistics:
    """Mean and variance of a group norm, accumulated over parts of its input in float32 or float64."""

    def __init__(self, norm: Any) -> None:
        self._norm = norm
        self._count = 0
        self._mean: torch.Tensor | float = 0.0
        self._squares: torch.Tensor | float = 0.0
        self._moments: torch.Tensor | None = None  # of Triton's kernels

    def update(self, x: torch.Tensor) -> None:
        """Add a part (1, C, A, B). Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance.

        The first part decides whether Triton's kernels compute, which combine the statistics by the same formula.
        """
        if self._moments is not None or (not self._count and triton_group_norm.serves(x)):
            self._moments = triton_group_norm.moments(x, self._norm.num_groups, self._moments)
            return
        mean, variance = group_moments(x, self._norm.num_groups, self._norm.eps)
        count = x.numel() // self._norm.num_groups
        total = self._count + count
        difference = mean - self._mean
        self._mean = self._mean + difference * (count / total)
        within = variance * count
        self._squares = self._squares + within + difference**2 * (self._count * count / total)
        self._count = total

    def normalize_silu(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the group norm with the statistics of all parts to x (1, C, A, B), then SiLU."""
        if self._moments is not None:
            return triton_group_norm.normalize(x, self._moments, self._norm, silu=True)
        norm, channels_per_group = self._norm, x.shape[1] // self._norm.num_groups
        assert isinstance(self._mean, torch.Tensor) and isinstance(self._squares, torch.Tensor)
        mean = self._mean.repeat_interleave(channels_per_group)
        variance = (self._squares / self._count).repeat_interleave(channels_per_group)
        weight, bias = norm.weight.to(mean), norm.bias.to(mean)
        if x.device.type == "mps" and x.dtype != mean.dtype:  # MPS takes one dtype
            normed = normalize_wide(x, mean, variance, weight, bias, norm.eps)
        else:
            normed = F.batch_norm(x, mean, variance, weight, bias, training=False, momentum=0.0, eps=norm.eps)
        return F.silu(normed, inplace=True)


def normalize_wide(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Normalize x (1, C, A, B) by moments, weight and bias (C,), in their dtype, rounded once to that of x."""
    mean, factor, bias = (each[:, None, None] for each in (mean, weight * (variance + eps).rsqrt(), bias))
    return torch.addcmul(bias, x.to(mean.dtype) - mean, factor).to(x.dtype)
