"""Sample with a scheduler of diffusers in place of this package's solvers."""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

import torch

from ..diffusion.denoiser import Denoiser, denoised_from_v, precondition, v_from_denoised
from ..diffusion.sampling import OnStep, ignore_step, iterate_steps
from ..errors import SettingError

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
COMPATIBLE = "EulerDiscreteScheduler and EDMDPMSolverMultistepScheduler"
"""Schedulers that a message names. Others may fit, too."""


class SchedulerSolver:
    """A solver (see `diffusion.sampling.Solve`) whose steps a scheduler of diffusers makes.

    Attributes:
        sigmas: (steps + 1,) float32, the scheduler's noise levels.
        adds_noise: The scheduler adds noise, which has the seed of the call.

    Args:
        scheduler: It is copied, also for each video, and keeps its own state.
        steps: Number of steps.

    Raises:
        SettingError: The scheduler does not fit SVD. The code is pipeline.scheduler.
    """

    def __init__(self, scheduler: Any, steps: int) -> None:
        self._scheduler = with_sigma_data(scheduler)
        check_fits(self._scheduler)
        self._scheduler.set_timesteps(steps)
        self.sigmas = torch.as_tensor(self._scheduler.sigmas).float().cpu()
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        x = torch.ones(1, 1, 4, 8, 8)
        self.adds_noise = self._takes_generator and not torch.equal(self._first_step(x, 0), self._first_step(x, 1))

    def _first_step(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        return self(lambda x, sigma: x / 2, x, self.sigmas[:2], ignore_step, seed)

    def __call__(
        self, denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep, seed: int
    ) -> torch.Tensor:
        """Sample x over the first of the scheduler's noise levels. Noise that it adds has the seed."""
        scheduler = copy.deepcopy(self._scheduler)
        options = {"generator": torch.Generator().manual_seed(seed)} if self._takes_generator else {}
        for (sigma, _, finish), timestep in zip(iterate_steps(sigmas, on_step), scheduler.timesteps, strict=False):
            denoised = denoise(x, sigma)
            scheduler.scale_model_input(x, timestep)  # some schedulers find their place by this call
            v = v_from_denoised(x, denoised, sigma)
            x = finish(scheduler.step(v, timestep, x, **options).prev_sample, denoised)
        return x


def with_sigma_data(scheduler: Any) -> Any:
    """Return a copy of the scheduler with SVD's sigma_data, 1, where it has its class's default as none was given.

    `EDMDPMSolverMultistepScheduler.from_config(EulerDiscreteScheduler's)` gets 0.5, which decodes to noise.
    """
    scheduler = copy.deepcopy(scheduler)
    config = scheduler.config
    if config.get("sigma_data", 1.0) == 1.0 or "sigma_data" not in config.get("_use_default_values", ()):
        return scheduler
    logger.warning(
        "%s has sigma_data %g by default; sampling with SVD's, 1. Set sigma_data=1.0.",
        type(scheduler).__name__,
        config["sigma_data"],
    )
    scheduler.register_to_config(sigma_data=1.0)
    return scheduler


def check_fits(scheduler: Any) -> None:
    """Raise SettingError unless a scheduler has SVD's c_in, c_noise, c_skip and c_out, found by calling it.

    Karras et al. 2022 (arXiv:2206.00364), table 1, with sigma_data = 1 and v-prediction.
    """
    try:
        fault = _find_fault(copy.deepcopy(scheduler))
    except Exception as error:  # schedulers of other models fail in their own ways
        fault = f"{type(error).__name__} in a trial step"
    if fault is not None:
        raise SettingError(
            f"the scheduler {type(scheduler).__name__} does not fit SVD: {fault}. Use {COMPATIBLE}.",
            code="pipeline.scheduler",
        )


def _find_fault(scheduler: Any) -> str | None:
    """Return in which of its numbers a scheduler differs from SVD's at four noise levels, or None."""
    scheduler.set_timesteps(4)
    sigmas = torch.as_tensor(scheduler.sigmas).float().cpu()
    if len(sigmas) != len(scheduler.timesteps) + 1 or not (sigmas[:-1] > sigmas[1:]).all():
        return "its noise levels do not fall at every step"
    faults = (_fault_at(copy.deepcopy(scheduler), *each) for each in zip(sigmas, scheduler.timesteps, strict=False))
    return next(filter(None, faults), None)


def _fault_at(scheduler: Any, sigma: torch.Tensor, timestep: torch.Tensor) -> str | None:
    source = torch.Generator().manual_seed(0)
    x, v = (torch.randn(1, 1, 4, 8, 8, generator=source) for _ in range(2))
    x = x * (sigma**2 + 1).sqrt()
    scaled, c_noise = precondition(x, sigma)
    if _differs(scheduler.scale_model_input(x, timestep), scaled):
        return "it scales the network's input otherwise"
    if _differs(torch.as_tensor(timestep).float(), c_noise):
        return "its timesteps are not ln(sigma) / 4"
    if hasattr(scheduler, "convert_model_output"):
        denoised = scheduler.convert_model_output(v, sample=x)
    else:
        denoised = scheduler.step(v, timestep, x).pred_original_sample
    wanted = denoised_from_v(x, v, sigma)
    return "it reads the network's output otherwise" if _differs(denoised, wanted) else None


def _differs(value: torch.Tensor, wanted: torch.Tensor) -> bool:
    return not bool((value.cpu() - wanted).abs().max() <= TOLERANCE * wanted.abs().max())
