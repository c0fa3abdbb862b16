"""Rows of noise levels: ComfyUI's schedulers as nodes, and what is done with their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...svd_core.errors import SettingError
from . import inputs
from .values import Model, model_of

if TYPE_CHECKING:
    import torch

SCHEDULERS = "sampling/custom_sampling/schedulers"
ROWS = "sampling/custom_sampling/sigmas"
ROW = ("The row of noise levels, for SamplerCustom.",)
TWO_ROWS = ("The noisy part, for a first sampler.", "The rest, for a second one.")


def table_of(model: Model) -> torch.Tensor:
    """The model's noise levels as ComfyUI's schedules know them: (1000,) rising."""
    from ...svd_core.diffusion.schedulers import level_table

    return level_table(model.model.sigma_min, model.model.sigma_max)


def read_row(sigmas: Any) -> torch.Tensor:
    """A row of noise levels as it came on a wire, of any length and direction. Raises SettingError for another."""
    from ...svd_core.utils.tensor_checks import as_float32

    row = as_float32(sigmas, "a row of sigmas")
    if row.ndim != 1:
        raise SettingError(f"sigmas must be a row of noise levels, got shape {tuple(row.shape)}")
    return row


class BasicScheduler:
    """A schedule over the model's range -> SIGMAS."""

    DESCRIPTION = "A schedule over the model's own range of noise levels."
    CATEGORY = SCHEDULERS
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ROW
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": inputs.model(),
                "scheduler": inputs.scheduler(),
                "steps": inputs.steps(),
                "denoise": inputs.denoise(),
            }
        }

    def get_sigmas(self, model: Any, scheduler: str, steps: int, denoise: float) -> tuple[torch.Tensor]:
        """The last `steps` steps of steps / denoise; an empty row for a denoise of 0."""
        from ...svd_core.diffusion.schedulers import truncate_sigmas

        return (truncate_sigmas(scheduler, steps, table_of(model_of(model)), denoise)[-(steps + 1) :],)


class KarrasScheduler:
    """Even steps in sigma^(1/rho) -> SIGMAS."""

    DESCRIPTION = "The schedule of Karras et al. between two noise levels. SVD's are 700 and 0.002."
    CATEGORY = SCHEDULERS
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ROW
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        rho = {"default": 7.0, "min": 0.0, "max": 100.0, "step": 0.01, "round": False, "tooltip": "Bend of the row."}
        return {
            "required": {
                "steps": inputs.steps(),
                "sigma_max": inputs.sigma(14.614642, "Largest"),
                "sigma_min": inputs.sigma(0.0291675, "Smallest"),
                "rho": ("FLOAT", rho),
            }
        }

    def get_sigmas(self, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[torch.Tensor]:
        """(steps + 1,), the last 0."""
        from ...svd_core.diffusion.schedulers import karras

        return (karras(steps, sigma_min, sigma_max, rho),)


class ExponentialScheduler:
    """Even steps in log sigma -> SIGMAS."""

    DESCRIPTION = "A schedule even in log between two noise levels. SVD's are 700 and 0.002."
    CATEGORY = SCHEDULERS
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ROW
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "steps": inputs.steps(),
                "sigma_max": inputs.sigma(14.614642, "Largest"),
                "sigma_min": inputs.sigma(0.0291675, "Smallest"),
            }
        }

    def get_sigmas(self, steps: int, sigma_max: float, sigma_min: float) -> tuple[torch.Tensor]:
        """(steps + 1,), the last 0."""
        from ...svd_core.diffusion.schedulers import exponential

        return (exponential(steps, sigma_min, sigma_max),)


class AlignYourStepsScheduler:
    """The published schedule for few steps -> SIGMAS."""

    DESCRIPTION = "The schedule that was fitted to SVD for few steps. Those of image models are refused."
    CATEGORY = SCHEDULERS
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ROW
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model_type": (["SD1", "SDXL", "SVD"], {"tooltip": "For whom the row was fitted; here SVD."}),
                "steps": inputs.steps(10),
                "denoise": inputs.denoise(),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model_type: str | None = None) -> bool | str:
        """True for SVD, and for a wired value, which is looked at when it is known."""
        if model_type in (None, "SVD"):
            return True
        if model_type not in ("SD1", "SDXL"):
            return f'there is no row of "{model_type}"; choose SVD'
        return f'the row of "{model_type}" is for image models, and only SVD runs here without ComfyUI; choose SVD'

    def get_sigmas(self, model_type: str, steps: int, denoise: float) -> tuple[torch.Tensor]:
        """Raises SettingError for the row of another model."""
        from ...svd_core.diffusion.schedulers import align_your_steps_part
        from ...svd_core.errors import SettingError

        answer = self.VALIDATE_INPUTS(model_type)
        if answer is not True:
            raise SettingError(str(answer))
        return (align_your_steps_part(steps, denoise),)


class SplitSigmas:
    """SIGMAS -> its first steps and the rest."""

    DESCRIPTION = "Cuts a row of noise levels in two after some steps."
    CATEGORY = ROWS
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    OUTPUT_TOOLTIPS = TWO_ROWS
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        step = {"default": 0, "min": 0, "max": 10000, "tooltip": "How many steps the first row has."}
        return {"required": {"sigmas": inputs.sigmas(), "step": ("INT", step)}}

    def get_sigmas(self, sigmas: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Both rows have the level where they meet."""
        row = read_row(sigmas)
        return row[: step + 1], row[step:]


class SplitSigmasDenoise:
    """SIGMAS -> its last share of the steps, and what is before."""

    DESCRIPTION = "Cuts a row of noise levels in two; the second part has this share of the steps."
    CATEGORY = ROWS
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    OUTPUT_TOOLTIPS = TWO_ROWS
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sigmas": inputs.sigmas(), "denoise": inputs.denoise()}}

    def get_sigmas(self, sigmas: torch.Tensor, denoise: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Both rows have the level where they meet; as in core the first is empty when the second has no step."""
        row = read_row(sigmas)
        last = round(max(len(row) - 1, 0) * denoise)
        return row[:-last] if last else row[:0], row[-(last + 1) :]


class FlipSigmas:
    """SIGMAS -> the same row upwards."""

    DESCRIPTION = "Turns a row of noise levels round: sampling then finds the noise of a video."
    CATEGORY = ROWS
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("The row upwards; it begins at 0.0001 where it ended in 0.",)
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sigmas": inputs.sigmas()}}

    def get_sigmas(self, sigmas: torch.Tensor) -> tuple[torch.Tensor]:
        """A new row."""
        from ...svd_core.diffusion.schedulers import flip_sigmas

        return (flip_sigmas(read_row(sigmas)),)
