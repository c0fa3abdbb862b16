"""Compat nodes of SIGMAS: ComfyUI's schedulers, and operations on their noise levels."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ...svd_core.errors import SettingError
from .. import wire_formats
from ..base import Node
from . import inputs
from .values import Model, raise_if_refused, read_model

if TYPE_CHECKING:
    import torch


def sigma_table(model: Model) -> torch.Tensor:
    """Return the model's noise levels as ComfyUI's schedulers take them: (1000,) rising."""
    from ...svd_core.diffusion.schedules import level_table

    return level_table(model.model.sigma_min, model.model.sigma_max)


def read_sigmas(sigmas: Any) -> torch.Tensor:
    """Read noise levels of any number and direction, (N,). Raises SettingError for another type or shape."""
    row = wire_formats.read_tensor(sigmas, "a row of sigmas")
    if row.ndim != 1:
        raise SettingError(f"sigmas must have the shape (levels,), got {tuple(row.shape)}")
    return row


class _Scheduler(Node):
    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("The row of noise levels, for SamplerCustom.",)


class BasicScheduler(_Scheduler):
    """A schedule over the model's range -> SIGMAS."""

    DESCRIPTION = "A schedule over the model's own range of noise levels."
    INPUTS = {
        "model": inputs.MODEL,
        "scheduler": inputs.SCHEDULER,
        "steps": inputs.steps(),
        "denoise": inputs.DENOISE,
    }

    def run(self, model: Any, scheduler: str, steps: int, denoise: float) -> tuple[torch.Tensor]:
        """Return the last `steps` steps of a schedule of steps / denoise; no levels for a denoise of 0."""
        from ...svd_core.diffusion.schedules import truncate_sigmas

        return (truncate_sigmas(scheduler, steps, sigma_table(read_model(model)), denoise)[-(steps + 1) :],)


class KarrasScheduler(_Scheduler):
    """Even steps in sigma^(1/rho) -> SIGMAS (Karras et al. 2022, equation 5)."""

    DESCRIPTION = "The schedule of Karras et al. between two noise levels. SVD's are 700 and 0.002."
    INPUTS = {
        "steps": inputs.steps(),
        "sigma_max": inputs.sigma(14.614642, "Largest"),
        "sigma_min": inputs.sigma(0.0291675, "Smallest"),
        "rho": inputs.number(7.0, 0.0, 100.0, 0.01, "Bend of the row.", round_to=False),
    }

    def run(self, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[torch.Tensor]:
        """Return (steps + 1,) levels, the last 0."""
        import torch

        from ...svd_core.diffusion.schedules import karras_sigmas

        return (karras_sigmas(steps, sigma_min, sigma_max, rho, torch.float32),)


class ExponentialScheduler(_Scheduler):
    """Even steps in log sigma -> SIGMAS."""

    DESCRIPTION = "A schedule even in log between two noise levels. SVD's are 700 and 0.002."
    INPUTS = {
        "steps": inputs.steps(),
        "sigma_max": inputs.sigma(14.614642, "Largest"),
        "sigma_min": inputs.sigma(0.0291675, "Smallest"),
    }

    def run(self, steps: int, sigma_max: float, sigma_min: float) -> tuple[torch.Tensor]:
        """Return (steps + 1,) levels, the last 0."""
        import torch

        from ...svd_core.diffusion.schedules import exponential_sigmas

        return (exponential_sigmas(steps, sigma_min, sigma_max, torch.float32),)


class AlignYourStepsScheduler(_Scheduler):
    """The published schedule for few steps -> SIGMAS."""

    DESCRIPTION = "The schedule that was fitted to SVD for few steps. Those of image models are refused."
    INPUTS = {
        "model_type": (["SD1", "SDXL", "SVD"], {"tooltip": "For whom the row was fitted; here SVD."}),
        "steps": inputs.steps(10),
        "denoise": inputs.DENOISE,
    }

    @classmethod
    def VALIDATE_INPUTS(cls, model_type: str | None = None) -> bool | str:
        """Return True for SVD and for a linked value (None), else a message."""
        if model_type in (None, "SVD"):
            return True
        if model_type not in ("SD1", "SDXL"):
            return f'there is no schedule for "{model_type}". Use SVD.'
        return f'the schedule for "{model_type}" is for image models; only SVD runs without ComfyUI. Use SVD.'

    def run(self, model_type: str, steps: int, denoise: float) -> tuple[torch.Tensor]:
        """Return the levels. Raises SettingError for another model than SVD."""
        from ...svd_core.diffusion.schedules import align_your_steps_part

        raise_if_refused(self.VALIDATE_INPUTS(model_type))
        return (align_your_steps_part(steps, denoise),)


class ManualSigmas(_Scheduler):
    """Text -> SIGMAS (comfy_extras/nodes_custom_sampler.py). ComfyUI 0.3.64 does not have it yet."""

    DESCRIPTION = "The numbers of a text as noise levels."
    CATEGORY = "experimental/custom_sampling"
    INPUTS = {
        "sigmas": (
            "STRING",
            {"default": "1, 0.5", "multiline": False, "tooltip": "Noise levels: 700, 4.2, 0. No 1e-3."},
        )
    }

    def run(self, sigmas: str) -> tuple[torch.Tensor]:
        """Return the numbers in the text, as core finds them. Raises SettingError if there is none."""
        import torch

        try:
            levels = [float(number) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", sigmas)]
        except ValueError:
            levels = []
        if not levels:
            raise SettingError(f"sigmas must be numbers such as 700, 4.2, 0, got {sigmas[:60]!r}")
        return (torch.tensor(levels, dtype=torch.float32),)


class _Split(Node):
    CATEGORY = "sampling/custom_sampling/sigmas"
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    OUTPUT_TOOLTIPS = ("The noisy part, for a first sampler.", "The rest, for a second one.")


class SplitSigmas(_Split):
    """SIGMAS -> its first steps, the others."""

    DESCRIPTION = "Cuts a row of noise levels in two after some steps."
    INPUTS = {
        "sigmas": inputs.SIGMAS,
        "step": inputs.integer(0, 0, 10000, "How many steps the first row has."),
    }

    def run(self, sigmas: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both parts. Both contain the level between them."""
        row = read_sigmas(sigmas)
        return row[: step + 1], row[step:]


class SplitSigmasDenoise(_Split):
    """SIGMAS -> its first steps, the last ones, which are a share of `denoise` of all."""

    DESCRIPTION = "Cuts a row of noise levels in two; the second part has this share of the steps."
    INPUTS = {"sigmas": inputs.SIGMAS, "denoise": inputs.DENOISE}

    def run(self, sigmas: torch.Tensor, denoise: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both parts. Both contain the level between them.

        As in core the first is empty if the last has no step.
        """
        row = read_sigmas(sigmas)
        last = round(max(len(row) - 1, 0) * denoise)
        return row[:-last] if last else row[:0], row[-(last + 1) :]


class FlipSigmas(Node):
    """SIGMAS -> SIGMAS in reverse order."""

    DESCRIPTION = "Turns a row of noise levels round: sampling then finds the noise of a video."
    CATEGORY = "sampling/custom_sampling/sigmas"
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("The row upwards; it begins at 0.0001 where it ended in 0.",)
    INPUTS = {"sigmas": inputs.SIGMAS}

    def run(self, sigmas: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the reversed levels."""
        from ...svd_core.diffusion.schedules import flip_sigmas

        return (flip_sigmas(read_sigmas(sigmas)),)
