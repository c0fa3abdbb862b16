"""Schedules: falling rows of noise levels sigma, (N + 1,) float32 on the CPU, ending in 0.

Computed in float64 and rounded once.
"""

from __future__ import annotations

import math

import torch

from ..errors import SettingError
from ..utils.tensor_checks import as_float32

SCHEDULES = ("karras", "align_your_steps", "exponential")
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 700.0, 7.0  # SVD's scheduler/scheduler_config.json; rho from Karras et al.

ALIGN_YOUR_STEPS = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
"""The knots for SVD of "Align Your Steps" (Sabour et al. 2024, arXiv:2404.14507, appendix B)."""


def make_sigmas(
    schedule: str, steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> torch.Tensor:
    """`steps` falling noise levels from sigma_max, then 0: (steps + 1,) float32.

    schedule is karras, align_your_steps or exponential; rho bends karras only.
    Raises SettingError for an unknown schedule, no steps, or levels that do not fall.
    """
    if steps < 1:
        raise SettingError(f"steps must be 1 or more, got {steps}; 25 is the usual number")
    if not (0 < sigma_min < sigma_max and math.isfinite(sigma_max)):
        raise SettingError(f"sigma_min must lie between 0 and sigma_max, got {sigma_min} and {sigma_max}")
    if not (math.isfinite(rho) and rho > 0):
        raise SettingError(f"rho must be above 0, got {rho}; 7 is the usual value")
    if schedule not in SCHEDULES:
        raise SettingError(f'schedule must be one of {", ".join(SCHEDULES)}, got "{schedule}"')
    if schedule == "karras":
        row = karras_sigmas(steps, sigma_min, sigma_max, rho)
    elif schedule == "exponential":
        row = exponential_sigmas(steps, sigma_min, sigma_max)
    else:
        row = align_your_steps_sigmas(steps, sigma_min, sigma_max)
    return check_sigmas(row)


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """Even steps in sigma^(1/rho). Karras et al. 2022 (arXiv:2206.00364), equation 5."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _end_in_zero((high + ramp * (low - high)) ** rho)


def exponential_sigmas(steps: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """Even steps in log sigma."""
    ramp = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64)
    return _end_in_zero(ramp.exp())


def align_your_steps_sigmas(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> torch.Tensor:
    """The published knots, log-linearly in between; the last of `steps` + 1 is replaced by 0, as its authors do.

    Another sigma_min or sigma_max stretches the row evenly in log sigma.
    """
    knots = torch.tensor(ALIGN_YOUR_STEPS, dtype=torch.float64).log()
    place = torch.linspace(0, len(ALIGN_YOUR_STEPS) - 1, steps + 1, dtype=torch.float64)
    left = place.floor().long().clamp(max=len(ALIGN_YOUR_STEPS) - 2)
    row = knots[left] + (place - left) * (knots[left + 1] - knots[left])
    from_zero_to_one = (row - knots[-1]) / (knots[0] - knots[-1])
    row = math.log(sigma_min) + from_zero_to_one * (math.log(sigma_max) - math.log(sigma_min))
    return _end_in_zero(row.exp()[:-1])


def check_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """The row as float32 on the CPU. Raises SettingError unless it falls, is finite and has at least two levels.

    It need not end in 0: a split schedule has a first half that does not.
    """
    row = as_float32(sigmas, "a row of sigmas")
    if row.ndim != 1 or row.numel() < 2:
        raise SettingError(f"sigmas must be a row of at least two noise levels, got shape {tuple(sigmas.shape)}")
    if not torch.isfinite(row).all() or row[-1] < 0 or not (row[:-1] > row[1:]).all():
        raise SettingError(f"sigmas must be finite, fall at every step and end at 0 or above, got {row.tolist()[:12]}")
    return row


def validate_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """The row as float32 on the CPU. Raises SettingError unless a sampler can walk it: down, as `check_sigmas` has it,
    or up from above 0, which finds the noise of a video.
    """
    row = as_float32(sigmas, "a row of sigmas")
    rises = row.ndim == 1 and row.numel() > 1 and bool((row[:-1] < row[1:]).all())
    if rises and row[0] > 0 and torch.isfinite(row).all():
        return row
    return check_sigmas(row)


def _end_in_zero(sigmas: torch.Tensor) -> torch.Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()
