"""Group norms whose statistics are gathered from parts before any part is normalised."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from . import layers


def group_moments(part: torch.Tensor, groups: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (G,) float32 of the groups of channels of a part (1, C, A, B)."""
    if part.dtype == torch.float32 and layers.is_channels_last(part):
        # the norm's own kernel is the quickest way on a CPU, though what it makes beside is dropped
        _, channels, *sides = part.shape
        _normed, mean, reciprocal = torch.native_group_norm(
            part, None, None, 1, channels, sides[0] * sides[1], groups, eps
        )
        return mean[0], (reciprocal[0] ** -2 - eps).clamp_min(0)
    grouped = part[0].unflatten(0, (groups, -1))
    wide = grouped if part.dtype == torch.float64 else grouped.float()
    variance, mean = torch.var_mean(wide, dim=(1, 2, 3), correction=0)
    return mean, variance


class GroupNormStatistics:
    """Mean and variance of the groups of a group norm, gathered from parts, in float32 or better."""

    def __init__(self, norm: Any) -> None:
        self._norm = norm
        self._count = 0
        self._mean: torch.Tensor | float = 0.0
        self._squares: torch.Tensor | float = 0.0

    def add(self, part: torch.Tensor) -> None:
        """A part (1, C, A, B). Merged as Chan, Golub and LeVeque do (1983, Algorithms for computing the variance)."""
        mean, variance = group_moments(part, self._norm.num_groups, self._norm.eps)
        count = part.numel() // self._norm.num_groups
        total = self._count + count
        difference = mean - self._mean
        self._mean = self._mean + difference * (count / total)
        within = variance * count
        self._squares = self._squares + within + difference**2 * (self._count * count / total)
        self._count = total

    def normalize_silu(self, video: torch.Tensor) -> torch.Tensor:
        """SiLU of the group norm of `video`, (1, C, F, P), by the statistics of all parts."""
        norm, each = self._norm, video.shape[1] // self._norm.num_groups
        assert isinstance(self._mean, torch.Tensor) and isinstance(self._squares, torch.Tensor)
        mean = self._mean.repeat_interleave(each)
        variance = (self._squares / self._count).repeat_interleave(each)
        weight, bias = norm.weight.to(mean), norm.bias.to(mean)
        normed = F.batch_norm(video, mean, variance, weight, bias, training=False, momentum=0.0, eps=norm.eps)
        return F.silu(normed, inplace=True)
