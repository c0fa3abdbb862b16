"""The nine schedules of ComfyUI's samplers, for SVD's continuous noise levels.

In float32 and over ComfyUI's table of 1000 levels (comfy/samplers.py, calculate_sigmas; comfy/model_sampling.py,
ModelSamplingContinuousEDM), so that a graph saved there gives the same video. `schedule.py` has the stages' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..errors import SettingError
from .schedules import align_your_steps_sigmas

LEVELS = 1000
WHOLE = 0.9999
"""A KSampler's denoise above this walks the whole schedule."""
THRESHOLD = 0.025  # linear_quadratic: how far the straight half goes; Mochi's inference script
BETA = 0.6  # both parameters of the beta distribution; "Beta Sampling is All You Need", arXiv:2407.12173


def level_table(sigma_min: float, sigma_max: float) -> torch.Tensor:
    """Rising noise levels, even in log sigma: (1000,) float32."""
    return torch.linspace(math.log(sigma_min), math.log(sigma_max), LEVELS).exp()


def scheduled_sigmas(scheduler: str, steps: int, table: torch.Tensor) -> torch.Tensor:
    """The falling row of `steps` levels of `table` (1000,), and a 0: float32 on the CPU.

    ddim_uniform may have more steps than asked for, and beta fewer, as in ComfyUI. Raises SettingError for an unknown
    scheduler or no steps.
    """
    if scheduler not in SCHEDULERS:
        raise SettingError(f'the scheduler must be one of {", ".join(SCHEDULERS)}, got "{scheduler}"')
    if steps < 1:
        raise SettingError(f"steps must be 1 or more, got {steps}; 20 is usual")
    return _SCHEDULES[scheduler](table, steps)


def truncate_sigmas(scheduler: str, steps: int, table: torch.Tensor, denoise: float) -> torch.Tensor:
    """The last `steps` steps of a row of steps / denoise; for a denoise of 0 an empty row: there is nothing to do."""
    if denoise <= 0.0:
        return torch.empty(0)
    return scheduled_sigmas(scheduler, int(steps / denoise), table)[-(steps + 1) :]


def sampler_steps(scheduler: str, steps: int, table: torch.Tensor, denoise: float) -> torch.Tensor:
    """Return `truncate_sigmas`, but the whole row for a denoise of 1, as KSampler does."""
    if denoise > WHOLE:
        return scheduled_sigmas(scheduler, steps, table)
    return truncate_sigmas(scheduler, steps, table, denoise)


def slice_sigmas(sigmas: torch.Tensor, start: int, end: int, keep_noise: bool) -> torch.Tensor:
    """Steps start to end of a row, as KSamplerAdvanced cuts it; an empty row when none are left.

    keep_noise  leave the last level as it is when the row is cut before its end; else it becomes 0
    """
    row = sigmas[: end + 1].clone()
    if len(row) < len(sigmas) and not keep_noise:
        row[-1] = 0.0
    return row[start:] if start < len(row) - 1 else row[:0]


def flip_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """The row from its end to its beginning; a 0 becomes 0.0001, from where a step can be made."""
    row = sigmas.flip(0)
    row[:1] = torch.where(row[:1] == 0, 0.0001, row[:1])
    return row


def align_your_steps_part(steps: int, denoise: float) -> torch.Tensor:
    """The last round(steps * denoise) steps of the published row for SVD; an empty row for a denoise of 0."""
    if denoise <= 0.0:
        return torch.empty(0)
    return align_your_steps_sigmas(steps)[-(round(steps * denoise) + 1) :]


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> torch.Tensor:
    """Even steps in sigma^(1/rho). Karras et al. 2022 (arXiv:2206.00364), equation 5.

    Raises SettingError for a rho so small that float32 does not hold these powers.
    """
    least = math.log(max(sigma_min, sigma_max, 1.0)) / math.log(torch.finfo(torch.float32).max)
    if rho <= least:
        raise SettingError(f"rho must be above {least:.2g}, got {rho}; 7 is the usual value")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _end_in_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho)


def exponential(steps: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """Even steps in log sigma. Raises SettingError for a level of 0, which has no log."""
    if min(sigma_min, sigma_max) <= 0:
        raise SettingError(
            f"sigma_min and sigma_max must be above 0, got {sigma_min} and {sigma_max}; SVD's are 0.002 and 700"
        )
    return _end_in_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps).exp())


def _kl_optimal(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Even steps in atan sigma. "Align Your Steps", arXiv:2404.14507, theorem 3.1; one step begins at the top."""
    low, high = table[0].item(), table[-1].item()
    share = torch.arange(steps).float() / max(1, steps - 1)
    return _end_in_zero((share * math.atan(low) + (1 - share) * math.atan(high)).tan())


def _simple(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Every so many levels down from the top."""
    stride = LEVELS / steps
    return _end_in_zero(table[[LEVELS - 1 - int(step * stride) for step in range(steps)]])


def _ddim_uniform(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Every so many whole levels up from the second; it does not reach the top."""
    return _end_in_zero(table[1 :: max(LEVELS // steps, 1)].flip(0))


def _normal(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Even steps in the network's own time, ln(sigma) / 4, both ends included."""
    start, end = _times(table)
    return _end_in_zero((torch.linspace(start, end, steps) / 0.25).exp())


def _sgm_uniform(table: torch.Tensor, steps: int) -> torch.Tensor:
    """The same with the lower end left out."""
    start, end = _times(table)
    return _end_in_zero((torch.linspace(start, end, steps + 1)[:-1] / 0.25).exp())


def _times(table: torch.Tensor) -> tuple[float, float]:
    return (0.25 * table[-1].log()).item(), (0.25 * table[0].log()).item()


def _linear_quadratic(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Straight for half the steps, to 1 - 0.025 of the largest level, then a parabola that joins it, down to 0."""
    if steps == 1:
        done = [0.0]
    else:
        half = steps // 2
        rest = steps - half
        bend = (half - THRESHOLD * steps) / (half * rest**2)
        slope = THRESHOLD / half - 2 * half * bend
        straight = [step * THRESHOLD / half for step in range(half)]
        done = straight + [bend * step**2 + slope * step + bend * half**2 for step in range(half, steps)]
    return torch.tensor([*(1.0 - each for each in done), 0.0]) * table[-1]


def _beta(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Levels at even shares of a beta distribution, each once: many steps at both ends, few in between."""
    shares = 1 - torch.arange(steps, dtype=torch.float64) / steps
    places = torch.searchsorted(_beta_borders(), shares, right=True)
    return _end_in_zero(table[places.unique_consecutive()])


def _beta_borders() -> torch.Tensor:
    """The shares at which the nearest level changes, (999,) rising: what lies below the middle between two levels.

    Looked up among these, any number of shares costs next to nothing. The distribution is symmetric, which gives the
    upper half, and exactly 1/2 in the middle, where ComfyUI takes the upper level.
    """
    lower = torch.arange((LEVELS - 1) // 2, dtype=torch.float64)
    below = _beta_share((lower + 0.5) / (LEVELS - 1))
    return torch.cat([below, below.new_tensor([0.5]), 1 - below.flip(0)])


def _beta_share(x: torch.Tensor) -> torch.Tensor:
    """I_x(0.6, 0.6) of x in (0, 1/2), the regularised incomplete beta function. DLMF 8.17.22, a continued fraction."""
    tail = torch.ones_like(x)
    for term in range(60, 0, -1):
        index, odd = divmod(term, 2)
        if odd:
            part = -(BETA + index) * (2 * BETA + index) * x / ((BETA + 2 * index) * (BETA + 2 * index + 1))
        else:
            part = index * (BETA - index) * x / ((BETA + 2 * index - 1) * (BETA + 2 * index))
        tail = 1.0 + part / tail
    whole = math.exp(2 * math.lgamma(BETA) - math.lgamma(2 * BETA))
    return (x * (1 - x)) ** BETA / (BETA * whole * tail)


def _end_in_zero(sigmas: torch.Tensor) -> torch.Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


_SCHEDULES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "simple": _simple,
    "sgm_uniform": _sgm_uniform,
    "karras": lambda table, steps: karras(steps, table[0].item(), table[-1].item()),
    "exponential": lambda table, steps: exponential(steps, table[0].item(), table[-1].item()),
    "ddim_uniform": _ddim_uniform,
    "beta": _beta,
    "normal": _normal,
    "linear_quadratic": _linear_quadratic,
    "kl_optimal": _kl_optimal,
}
SCHEDULERS = tuple(_SCHEDULES)
"""In ComfyUI's order."""
