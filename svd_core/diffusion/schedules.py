"""Noise schedules: falling noise levels sigma, (steps + 1,) float32 on the CPU, ending in 0.

`make_sigmas` makes the schedules of this package, computed in float64 and rounded once. `core_sigmas` makes the nine
schedules of ComfyUI's samplers in float32 over ComfyUI's table of 1000 levels (comfy/samplers.py, calculate_sigmas;
comfy/model_sampling.py, ModelSamplingContinuousEDM), so that a graph saved there gives the same video.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..errors import SettingError
from ..utils.tensor_checks import as_float32

SCHEDULES = ("karras", "align_your_steps", "exponential", "animate_lcm")
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 700.0, 7.0  # SVD's scheduler/scheduler_config.json; rho from Karras et al.

ALIGN_YOUR_STEPS = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
"""The knots for SVD of "Align Your Steps" (Sabour et al. 2024, arXiv:2404.14507, appendix B)."""

ANIMATE_LCM_LEVELS = 40
"""Levels of the Karras schedule on which AnimateLCM-SVD was distilled (num_train_timesteps of its scheduler)."""

LEVELS = 1000
FULL_DENOISE = 0.9999
"""KSampler uses the whole schedule if its denoise is larger than this."""
THRESHOLD = 0.025  # linear_quadratic: end of the linear half; Mochi's inference script
BETA = 0.6  # both parameters of the beta distribution; "Beta Sampling is All You Need", arXiv:2407.12173


def make_sigmas(
    schedule: str, steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> torch.Tensor:
    """Return `steps` falling noise levels from sigma_max, then 0: (steps + 1,) float32.

    Args:
        schedule: karras, align_your_steps, exponential or animate_lcm.
        rho: Curvature of karras and animate_lcm. Ignored by the others.

    Raises:
        SettingError: Unknown schedule, steps below 1, more steps than animate_lcm has, or levels that do not fall.
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
        sigmas = karras_sigmas(steps, sigma_min, sigma_max, rho)
    elif schedule == "exponential":
        sigmas = exponential_sigmas(steps, sigma_min, sigma_max)
    elif schedule == "animate_lcm":
        sigmas = animate_lcm_sigmas(steps, sigma_min, sigma_max, rho)
    else:
        sigmas = align_your_steps_sigmas(steps, sigma_min, sigma_max)
    return check_sigmas(sigmas)


def karras_sigmas(
    steps: int, sigma_min: float, sigma_max: float, rho: float = RHO, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Return levels with even steps in sigma^(1/rho). Karras et al. 2022 (arXiv:2206.00364), equation 5.

    Raises:
        SettingError: rho is so small that `dtype` does not hold these powers.
    """
    least = math.log(max(sigma_min, sigma_max, 1.0)) / math.log(torch.finfo(dtype).max)
    if rho <= least:
        raise SettingError(f"rho must be above {least:.2g}, got {rho}; 7 is the usual value")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _append_zero((high + torch.linspace(0, 1, steps, dtype=dtype) * (low - high)) ** rho)


def exponential_sigmas(
    steps: int, sigma_min: float, sigma_max: float, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Return levels with even steps in log sigma.

    Raises:
        SettingError: A level is 0 or below.
    """
    if min(sigma_min, sigma_max) <= 0:
        raise SettingError(
            f"sigma_min and sigma_max must be above 0, got {sigma_min} and {sigma_max}; SVD's are 0.002 and 700"
        )
    return _append_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=dtype).exp())


def align_your_steps_sigmas(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> torch.Tensor:
    """Interpolate the published knots log-linearly. The last of `steps` + 1 levels is replaced by 0, as published.

    Another sigma_min or sigma_max stretches the schedule evenly in log sigma.
    """
    knots = torch.tensor(ALIGN_YOUR_STEPS, dtype=torch.float64).log()
    position = torch.linspace(0, len(ALIGN_YOUR_STEPS) - 1, steps + 1, dtype=torch.float64)
    index = position.floor().long().clamp(max=len(ALIGN_YOUR_STEPS) - 2)
    levels = knots[index] + (position - index) * (knots[index + 1] - knots[index])
    from_zero_to_one = (levels - knots[-1]) / (knots[0] - knots[-1])
    levels = math.log(sigma_min) + from_zero_to_one * (math.log(sigma_max) - math.log(sigma_min))
    return _append_zero(levels.exp()[:-1])


def animate_lcm_sigmas(
    steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> torch.Tensor:
    """Return every (40 // steps)th of 40 karras levels, from the top, and 0.

    The levels of AnimateLCM-SVD (Wang et al. 2024, arXiv:2402.00769; animatelcm_scheduler.py, set_timesteps). Its step
    is that of `sampling.sample_lcm`.

    Raises:
        SettingError: More than 40 steps, or a rho that is too small.
    """
    if steps > ANIMATE_LCM_LEVELS:
        raise SettingError(
            f"`steps` must be 1 to {ANIMATE_LCM_LEVELS} with the schedule animate_lcm, got {steps}; 4 is usual"
        )
    levels = karras_sigmas(ANIMATE_LCM_LEVELS, sigma_min, sigma_max, rho)[:-1]
    return _append_zero(levels[:: ANIMATE_LCM_LEVELS // steps][:steps])


def check_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """Return sigmas as float32 on the CPU. They need not end in 0: the first half of a split schedule does not.

    Raises:
        SettingError: They do not fall at every step, are not finite, or are fewer than two.
    """
    levels = as_float32(sigmas, "a row of sigmas")
    if levels.ndim != 1 or levels.numel() < 2:
        raise SettingError(f"`sigmas` must be a row of at least two noise levels, got shape {tuple(sigmas.shape)}")
    if not torch.isfinite(levels).all() or levels[-1] < 0 or not (levels[:-1] > levels[1:]).all():
        shown = ", ".join(f"{level:g}" for level in levels.tolist()[:8])
        raise SettingError(f"`sigmas` must be finite, fall at every step and end at 0 or above, got {shown}")
    return levels


def read_sigmas(sigmas: Sequence[float] | str) -> torch.Tensor:
    """Return falling noise levels, (steps + 1,) float32, from numbers or a text such as "700, 4.2, 0".

    Raises:
        SettingError: They are no numbers, or do not fall, see `check_sigmas`.
    """
    try:
        numbers = [float(each) for each in (sigmas.split(",") if isinstance(sigmas, str) else sigmas)]
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"`sigmas` must be numbers such as 700,15.9,4.2,1,0.2,0, got {str(sigmas)[:60]!r}"
        ) from error
    return check_sigmas(torch.tensor(numbers))


def validate_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """Return sigmas as float32 on the CPU. They fall, as in `check_sigmas`, or rise from above 0 (inversion).

    Raises:
        SettingError: They do neither.
    """
    levels = as_float32(sigmas, "a row of sigmas")
    rises = levels.ndim == 1 and levels.numel() > 1 and bool((levels[:-1] < levels[1:]).all())
    if rises and levels[0] > 0 and torch.isfinite(levels).all():
        return levels
    return check_sigmas(levels)


def level_table(sigma_min: float, sigma_max: float) -> torch.Tensor:
    """Return ComfyUI's table: 1000 rising levels, even in log sigma, float32."""
    return torch.linspace(math.log(sigma_min), math.log(sigma_max), LEVELS).exp()


def core_sigmas(scheduler: str, steps: int, table: torch.Tensor, drop_smallest: bool = False) -> torch.Tensor:
    """Return `steps` falling levels of `table` (1000,), then 0: float32 on the CPU.

    ddim_uniform may return more steps, and beta fewer, as in ComfyUI. With `drop_smallest` they are those of one step
    more without the smallest, as KSampler chooses them for uni_pc.

    Raises:
        SettingError: Unknown scheduler, or steps below 1.
    """
    if scheduler not in SCHEDULERS:
        raise SettingError(f'the scheduler must be one of {", ".join(SCHEDULERS)}, got "{scheduler}"')
    if steps < 1:
        raise SettingError(f"steps must be 1 or more, got {steps}; 20 is usual")
    if drop_smallest:
        sigmas = _CORE_SCHEDULES[scheduler](table, steps + 1)
        return torch.cat([sigmas[:-2], sigmas[-1:]])
    return _CORE_SCHEDULES[scheduler](table, steps)


def truncate_sigmas(
    scheduler: str, steps: int, table: torch.Tensor, denoise: float, drop_smallest: bool = False
) -> torch.Tensor:
    """Return the last `steps` steps of a schedule of steps / denoise steps; empty for a denoise of 0."""
    if denoise <= 0.0:
        return torch.empty(0)
    return core_sigmas(scheduler, int(steps / denoise), table, drop_smallest)[-(steps + 1) :]


def sampler_steps(
    scheduler: str, steps: int, table: torch.Tensor, denoise: float, drop_smallest: bool = False
) -> torch.Tensor:
    """Return `truncate_sigmas`, but the whole schedule for a denoise of 1, as KSampler does."""
    if denoise > FULL_DENOISE:
        return core_sigmas(scheduler, steps, table, drop_smallest)
    return truncate_sigmas(scheduler, steps, table, denoise, drop_smallest)


def slice_sigmas(sigmas: torch.Tensor, start: int, end: int, keep_noise: bool) -> torch.Tensor:
    """Return steps start to end of a schedule, as KSamplerAdvanced does; empty if there are none.

    Args:
        keep_noise: Keep the last level if the schedule is cut before its end. Otherwise it becomes 0.
    """
    levels = sigmas[: end + 1].clone()
    if len(levels) < len(sigmas) and not keep_noise:
        levels[-1] = 0.0
    return levels[start:] if start < len(levels) - 1 else levels[:0]


def flip_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """Return the schedule reversed. A first level of 0 becomes 0.0001, because a step cannot start at 0."""
    levels = sigmas.flip(0)
    levels[:1] = torch.where(levels[:1] == 0, 0.0001, levels[:1])
    return levels


def align_your_steps_part(steps: int, denoise: float) -> torch.Tensor:
    """Return the last round(steps * denoise) steps of the published schedule; empty for a denoise of 0."""
    if denoise <= 0.0:
        return torch.empty(0)
    return align_your_steps_sigmas(steps)[-(round(steps * denoise) + 1) :]


def _kl_optimal(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Even steps in atan sigma. "Align Your Steps", arXiv:2404.14507, theorem 3.1; one step starts at the top."""
    low, high = table[0].item(), table[-1].item()
    share = torch.arange(steps).float() / max(1, steps - 1)
    return _append_zero((share * math.atan(low) + (1 - share) * math.atan(high)).tan())


def _simple(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Every (1000 / steps)th level, from the top."""
    stride = LEVELS / steps
    return _append_zero(table[[LEVELS - 1 - int(step * stride) for step in range(steps)]])


def _ddim_uniform(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Every (1000 // steps)th level, counted up from the second. It may not reach the top."""
    return _append_zero(table[1 :: max(LEVELS // steps, 1)].flip(0))


def _normal(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Even steps in the network's time, ln(sigma) / 4, both ends included."""
    start, end = _times(table)
    return _append_zero((torch.linspace(start, end, steps) / 0.25).exp())


def _sgm_uniform(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Even steps in the network's time, without the lower end."""
    start, end = _times(table)
    return _append_zero((torch.linspace(start, end, steps + 1)[:-1] / 0.25).exp())


def _times(table: torch.Tensor) -> tuple[float, float]:
    return (0.25 * table[-1].log()).item(), (0.25 * table[0].log()).item()


def _linear_quadratic(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Linear for half the steps, to 1 - 0.025 of the largest level; then a parabola that joins it, down to 0."""
    if steps == 1:
        fractions = [0.0]
    else:
        half = steps // 2
        rest = steps - half
        bend = (half - THRESHOLD * steps) / (half * rest**2)
        slope = THRESHOLD / half - 2 * half * bend
        linear = [step * THRESHOLD / half for step in range(half)]
        fractions = linear + [bend * step**2 + slope * step + bend * half**2 for step in range(half, steps)]
    return torch.tensor([*(1.0 - each for each in fractions), 0.0]) * table[-1]


def _beta(table: torch.Tensor, steps: int) -> torch.Tensor:
    """Levels at even quantiles of a beta distribution, each once: many steps at both ends, few in the middle."""
    quantiles = 1 - torch.arange(steps, dtype=torch.float64) / steps
    indices = torch.searchsorted(_beta_borders(), quantiles, right=True)
    return _append_zero(table[indices.unique_consecutive()])


def _beta_borders() -> torch.Tensor:
    """Return the quantiles at which the nearest level changes, (999,) rising.

    The distribution is symmetric, which gives the upper half, and exactly 1/2 in the middle, where ComfyUI takes the
    upper level.
    """
    lower = torch.arange((LEVELS - 1) // 2, dtype=torch.float64)
    below = _beta_cdf((lower + 0.5) / (LEVELS - 1))
    return torch.cat([below, below.new_tensor([0.5]), 1 - below.flip(0)])


def _beta_cdf(x: torch.Tensor) -> torch.Tensor:
    """I_x(0.6, 0.6) of x in (0, 1/2), the regularised incomplete beta function. DLMF 8.17.22, a continued fraction."""
    tail = torch.ones_like(x)
    for term in range(60, 0, -1):
        index, odd = divmod(term, 2)
        if odd:
            part = -(BETA + index) * (2 * BETA + index) * x / ((BETA + 2 * index) * (BETA + 2 * index + 1))
        else:
            part = index * (BETA - index) * x / ((BETA + 2 * index - 1) * (BETA + 2 * index))
        tail = 1.0 + part / tail
    complete_beta = math.exp(2 * math.lgamma(BETA) - math.lgamma(2 * BETA))
    return (x * (1 - x)) ** BETA / (BETA * complete_beta * tail)


def _append_zero(sigmas: torch.Tensor) -> torch.Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


_CORE_SCHEDULES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "simple": _simple,
    "sgm_uniform": _sgm_uniform,
    "karras": lambda table, steps: karras_sigmas(steps, table[0].item(), table[-1].item(), dtype=torch.float32),
    "exponential": lambda table, steps: exponential_sigmas(
        steps, table[0].item(), table[-1].item(), dtype=torch.float32
    ),
    "ddim_uniform": _ddim_uniform,
    "beta": _beta,
    "normal": _normal,
    "linear_quadratic": _linear_quadratic,
    "kl_optimal": _kl_optimal,
}
SCHEDULERS = tuple(_CORE_SCHEDULES)
"""The schedulers of ComfyUI, in its order."""
