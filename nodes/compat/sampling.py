"""The samplers: KSampler and KSamplerAdvanced, and the ones of parts with the parts they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...svd_core.errors import SettingError
from .. import samplers
from . import inputs
from .sigmas import table_of
from .values import (
    EulerSampler,
    Guider,
    Model,
    Noise,
    check_sampler,
    guider_of,
    model_of,
    noise_of,
    sampler_of,
    validated_sampler,
)

if TYPE_CHECKING:
    import torch

    Latent = dict[str, Any]

OUTPUTS = ("output", "denoised_output")
OUTPUT_TOOLTIPS = ("The latent after the last step.", "What the network took for clean in the last step.")


def _walked(guider: Guider, noise: Noise, sigmas: torch.Tensor, latent: Latent) -> tuple[Latent, Latent]:
    """The LATENT at the last noise level, and the denoiser's last estimate.

    As in core an empty row leaves the LATENT as it is, and a single level, from which no step leads on, puts its noise
    on it.
    """
    from ...svd_core.utils.tensor_checks import as_float32

    if as_float32(sigmas, "a row of sigmas").numel() == 0:
        return latent, latent
    if sigmas.shape == (1,):
        noisy = samplers.add_noise(guider.model.model, latent, noise.kind, noise.seed, sigmas[0])
        return noisy, noisy
    negative = guider.negative
    if negative is None:
        if guider.curve.guides:
            raise SettingError(
                "BasicGuider has no negative side, and the MODEL's guidance over the frames needs one; use CFGGuider"
            )
        negative = guider.positive
    request = samplers.Request(noise.kind, noise.seed, 0, guider.curve, sigmas)
    return samplers.sample_and_estimate(guider.model.model, guider.positive, negative, latent, request)


class KSampler:
    """MODEL, conditioning and LATENT -> the video's LATENT, by the Euler steps of SVDEulerSampler."""

    DESCRIPTION = "Denoises a latent with ComfyUI's schedules and starting noise. Without ComfyUI its sampler is euler."
    CATEGORY = "sampling"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": inputs.model(),
                "seed": inputs.seed(),
                "steps": inputs.steps(),
                "cfg": inputs.cfg(),
                "sampler_name": inputs.sampler_name(),
                "scheduler": inputs.scheduler(),
                "positive": inputs.positive(),
                "negative": inputs.negative(),
                "latent_image": inputs.latent_image(),
                "denoise": inputs.denoise(),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, sampler_name: str | None = None) -> bool | str:
        """True, or why this sampler cannot be had."""
        return validated_sampler(sampler_name)

    def sample(
        self, model: Any, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str,
        positive: Any, negative: Any, latent_image: Latent, denoise: float = 1.0,
    ) -> tuple[Latent]:  # fmt: skip
        """Raises SettingError for a sampler that only ComfyUI has."""
        from ...svd_core.diffusion.schedulers import sampler_steps

        check_sampler(sampler_name)
        own = model_of(model)
        sigmas = sampler_steps(scheduler, steps, table_of(own), denoise)
        guider = Guider(own, positive, negative, own.guidance.curve(cfg))
        return _walked(guider, Noise("comfyui", seed), sigmas, latent_image)[:1]


class KSamplerAdvanced:
    """The same over a part of the schedule, with or without noise at its beginning and at its end."""

    DESCRIPTION = "KSampler over a part of its steps: one may begin where another left off."
    CATEGORY = "sampling"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent, or one that still carries noise.",)
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def step(default: int, tooltip: str) -> inputs.Input:
            return ("INT", {"default": default, "min": 0, "max": 10000, "tooltip": tooltip})

        return {
            "required": {
                "model": inputs.model(),
                "add_noise": (["enable", "disable"], {"tooltip": "disable for a latent that still carries noise."}),
                "noise_seed": inputs.seed(),
                "steps": inputs.steps(),
                "cfg": inputs.cfg(),
                "sampler_name": inputs.sampler_name(),
                "scheduler": inputs.scheduler(),
                "positive": inputs.positive(),
                "negative": inputs.negative(),
                "latent_image": inputs.latent_image(),
                "start_at_step": step(0, "How many of the steps are left out at the beginning."),
                "end_at_step": step(10000, "After which step it ends."),
                "return_with_leftover_noise": (
                    ["disable", "enable"],
                    {"tooltip": "disable takes the rest of the noise off in the last step."},
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, sampler_name: str | None = None) -> bool | str:
        """True, or why this sampler cannot be had."""
        return validated_sampler(sampler_name)

    def sample(
        self, model: Any, add_noise: str, noise_seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str,
        positive: Any, negative: Any, latent_image: Latent, start_at_step: int, end_at_step: int,
        return_with_leftover_noise: str,
    ) -> tuple[Latent]:  # fmt: skip
        """Raises SettingError for a sampler that only ComfyUI has."""
        from ...svd_core.diffusion.schedulers import scheduled_sigmas, slice_sigmas

        check_sampler(sampler_name)
        own = model_of(model)
        row = scheduled_sigmas(scheduler, steps, table_of(own))
        sigmas = slice_sigmas(row, start_at_step, end_at_step, keep_noise=return_with_leftover_noise == "enable")
        noise = Noise("comfyui" if add_noise == "enable" else "none", noise_seed)
        guider = Guider(own, positive, negative, own.guidance.curve(cfg))
        return _walked(guider, noise, sigmas, latent_image)[:1]


class SamplerCustom:
    """MODEL, conditioning, SAMPLER, SIGMAS and LATENT -> two LATENTs."""

    DESCRIPTION = "Walks a row of noise levels with a sampler."
    CATEGORY = "sampling/custom_sampling"
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = OUTPUTS
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": inputs.model(),
                "add_noise": ("BOOLEAN", {"default": True, "tooltip": "Off for a latent that still carries noise."}),
                "noise_seed": inputs.seed(),
                "cfg": inputs.cfg(),
                "positive": inputs.positive(),
                "negative": inputs.negative(),
                "sampler": inputs.socket("SAMPLER", "From KSamplerSelect or SVDEulerSamplerSelect."),
                "sigmas": inputs.sigmas(),
                "latent_image": inputs.latent_image(),
            }
        }

    def sample(
        self, model: Any, add_noise: bool, noise_seed: int, cfg: float, positive: Any, negative: Any,
        sampler: Any, sigmas: torch.Tensor, latent_image: Latent,
    ) -> tuple[Latent, Latent]:  # fmt: skip
        """Raises SettingError for a row that neither falls nor rises."""
        sampler_of(sampler)
        own = model_of(model)
        guider = Guider(own, positive, negative, own.guidance.curve(cfg))
        return _walked(guider, Noise("comfyui" if add_noise else "none", noise_seed), sigmas, latent_image)


class SamplerCustomAdvanced:
    """NOISE, GUIDER, SAMPLER, SIGMAS and LATENT -> two LATENTs."""

    DESCRIPTION = "Walks a row of noise levels with a sampler, a guider and a noise."
    CATEGORY = "sampling/custom_sampling"
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = OUTPUTS
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "sample"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "noise": inputs.socket("NOISE", "From RandomNoise or DisableNoise."),
                "guider": inputs.socket("GUIDER", "From CFGGuider, BasicGuider or SVDFrameGuider."),
                "sampler": inputs.socket("SAMPLER", "From KSamplerSelect or SVDEulerSamplerSelect."),
                "sigmas": inputs.sigmas(),
                "latent_image": inputs.latent_image(),
            }
        }

    def sample(
        self, noise: Any, guider: Any, sampler: Any, sigmas: torch.Tensor, latent_image: Latent
    ) -> tuple[Latent, Latent]:
        """Raises SettingError for a row that neither falls nor rises."""
        sampler_of(sampler)
        return _walked(guider_of(guider), noise_of(noise), sigmas, latent_image)


class KSamplerSelect:
    """Name -> SAMPLER."""

    DESCRIPTION = "Chooses a sampler. Without ComfyUI that is euler."
    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("The sampler, for SamplerCustom and SamplerCustomAdvanced.",)
    FUNCTION = "get_sampler"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sampler_name": inputs.sampler_name()}}

    @classmethod
    def VALIDATE_INPUTS(cls, sampler_name: str | None = None) -> bool | str:
        """True, or why this sampler cannot be had."""
        return validated_sampler(sampler_name)

    def get_sampler(self, sampler_name: str) -> tuple[EulerSampler]:
        """Raises SettingError for a sampler that only ComfyUI has."""
        return (check_sampler(sampler_name),)


class CFGGuider:
    """MODEL and both conditionings -> GUIDER."""

    DESCRIPTION = "Guidance by both conditionings, for SamplerCustomAdvanced."
    CATEGORY = "sampling/custom_sampling/guiders"
    RETURN_TYPES = ("GUIDER",)
    OUTPUT_TOOLTIPS = ("The guider, for SamplerCustomAdvanced.",)
    FUNCTION = "get_guider"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": inputs.model(),
                "positive": inputs.positive(),
                "negative": inputs.negative(),
                "cfg": inputs.cfg(),
            }
        }

    def get_guider(self, model: Any, positive: Any, negative: Any, cfg: float) -> tuple[Guider]:
        """With the MODEL's guidance over the frames, if it has one."""
        own = model_of(model)
        return (Guider(own, positive, negative, own.guidance.curve(cfg)),)


class BasicGuider:
    """MODEL and one conditioning -> GUIDER that does not guide."""

    DESCRIPTION = "No guidance: the conditioning alone, for SamplerCustomAdvanced."
    CATEGORY = "sampling/custom_sampling/guiders"
    RETURN_TYPES = ("GUIDER",)
    OUTPUT_TOOLTIPS = ("The guider, for SamplerCustomAdvanced.",)
    FUNCTION = "get_guider"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": inputs.model(), "conditioning": inputs.positive()}}

    def get_guider(self, model: Any, conditioning: Any) -> tuple[Guider]:
        """Sampling with it raises SettingError when the MODEL is guided over the frames by weights other than 1."""
        own: Model = model_of(model)
        return (Guider(own, conditioning, None, own.guidance.curve(1.0)),)


class RandomNoise:
    """Seed -> NOISE."""

    DESCRIPTION = "The starting noise of a seed, the same as KSampler's."
    CATEGORY = "sampling/custom_sampling/noise"
    RETURN_TYPES = ("NOISE",)
    OUTPUT_TOOLTIPS = ("The noise, for SamplerCustomAdvanced.",)
    FUNCTION = "get_noise"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"noise_seed": inputs.seed()}}

    def get_noise(self, noise_seed: int) -> tuple[Noise]:
        """Drawn when its shape is known."""
        return (Noise("comfyui", noise_seed),)


class DisableNoise:
    """No noise as NOISE."""

    DESCRIPTION = "No noise, for a latent that still carries some."
    CATEGORY = "sampling/custom_sampling/noise"
    RETURN_TYPES = ("NOISE",)
    OUTPUT_TOOLTIPS = ("No noise, for SamplerCustomAdvanced.",)
    FUNCTION = "get_noise"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def get_noise(self) -> tuple[Noise]:
        """Zeros of any shape."""
        return (Noise("none"),)
