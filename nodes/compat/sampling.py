"""Compat nodes that sample: KSampler, KSamplerAdvanced, SamplerCustom and the nodes that make its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...svd_core.errors import SettingError
from .. import samplers, wire_formats
from ..backend import Request
from ..base import Node
from . import inputs
from .sigmas import sigma_table
from .values import (
    Guider,
    NamedSampler,
    Noise,
    cfg_guider,
    raise_if_refused,
    read_guider,
    read_noise,
    read_sampler,
    validate_sampler_name,
)

if TYPE_CHECKING:
    import torch

    Latent = dict[str, Any]


def _sample(
    guider: Guider, noise: Noise, sampler: NamedSampler, sigmas: torch.Tensor, latent: Latent
) -> tuple[Latent, Latent]:
    """Sample a LATENT. Return it at the last noise level, and the denoised estimate of the last step.

    As in core no levels leave the LATENT unchanged, and a single level, which makes no step, adds its noise.
    """
    if wire_formats.read_tensor(sigmas, "a row of sigmas").numel() == 0:
        return latent, latent
    network = guider.model.model
    if sigmas.shape == (1,):
        noisy = samplers.add_noise(network, latent, noise.kind, noise.seed, sigmas[0])
        return noisy, noisy
    negative = guider.negative
    if negative is None:
        if guider.curve.guides:
            raise SettingError(
                "BasicGuider has no negative conditioning, and the MODEL's guidance over the frames needs one. Use "
                "CFGGuider."
            )
        negative = guider.positive
    request = Request(noise.kind, noise.seed, 0, guider.curve, sigmas, sampler)
    return samplers.sample_with_estimate(network, guider.positive, negative, latent, request)


_SCHEDULE_AND_CONDITIONING = {
    "steps": inputs.steps(),
    "cfg": inputs.CFG,
    "sampler_name": inputs.SAMPLER_NAME,
    "scheduler": inputs.SCHEDULER,
    "positive": inputs.POSITIVE,
    "negative": inputs.NEGATIVE,
    "latent_image": inputs.LATENT_IMAGE,
}


WITHOUT_SMALLEST_LEVEL = ("uni_pc", "uni_pc_bh2")
"""The samplers for which KSampler leaves out the smallest level of one step more."""


class _NamedSampler(Node):
    """A node with the input sampler_name."""

    @classmethod
    def VALIDATE_INPUTS(cls, sampler_name: str | None = None) -> bool | str:
        """Return True if the sampler runs without ComfyUI, else a message."""
        return validate_sampler_name(sampler_name)


class KSampler(_NamedSampler):
    """MODEL, CONDITIONING, LATENT -> sampled LATENT."""

    DESCRIPTION = "Denoises a latent with ComfyUI's samplers, schedules and starting noise."
    CATEGORY = "sampling"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent.",)
    INPUTS = {
        "model": inputs.MODEL,
        "seed": inputs.SEED,
        **_SCHEDULE_AND_CONDITIONING,
        "denoise": inputs.DENOISE,
    }

    def run(
        self, model: Any, seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str,
        positive: Any, negative: Any, latent_image: Latent, denoise: float = 1.0,
    ) -> tuple[Latent]:  # fmt: skip
        """Sample the LATENT. Raises SettingError for a sampler that needs ComfyUI."""
        from ...svd_core.diffusion.schedules import sampler_steps

        raise_if_refused(validate_sampler_name(sampler_name))
        guider = cfg_guider(model, positive, negative, cfg)
        drop = sampler_name in WITHOUT_SMALLEST_LEVEL
        sigmas = sampler_steps(scheduler, steps, sigma_table(guider.model), denoise, drop)
        return _sample(guider, Noise("comfyui", seed), NamedSampler(sampler_name), sigmas, latent_image)[:1]


class KSamplerAdvanced(_NamedSampler):
    """MODEL, CONDITIONING, LATENT -> LATENT sampled over a part of the steps, with or without noise at either end."""

    DESCRIPTION = "KSampler over a part of its steps: one may begin where another left off."
    CATEGORY = "sampling"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent, or one that still carries noise.",)
    INPUTS = {
        "model": inputs.MODEL,
        "add_noise": (["enable", "disable"], {"tooltip": "disable for a latent that still carries noise."}),
        "noise_seed": inputs.SEED,
        **_SCHEDULE_AND_CONDITIONING,
        "start_at_step": inputs.integer(0, 0, 10000, "How many of the steps are left out at the beginning."),
        "end_at_step": inputs.integer(10000, 0, 10000, "After which step it ends."),
        "return_with_leftover_noise": (
            ["disable", "enable"],
            {"tooltip": "disable takes the rest of the noise off in the last step."},
        ),
    }

    def run(
        self, model: Any, add_noise: str, noise_seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str,
        positive: Any, negative: Any, latent_image: Latent, start_at_step: int, end_at_step: int,
        return_with_leftover_noise: str,
    ) -> tuple[Latent]:  # fmt: skip
        """Sample the LATENT. Raises SettingError for a sampler that needs ComfyUI."""
        from ...svd_core.diffusion.schedules import core_sigmas, slice_sigmas

        raise_if_refused(validate_sampler_name(sampler_name))
        guider = cfg_guider(model, positive, negative, cfg)
        drop = sampler_name in WITHOUT_SMALLEST_LEVEL
        sigmas = core_sigmas(scheduler, steps, sigma_table(guider.model), drop)
        sigmas = slice_sigmas(sigmas, start_at_step, end_at_step, keep_noise=return_with_leftover_noise == "enable")
        noise = Noise("comfyui" if add_noise == "enable" else "none", noise_seed)
        return _sample(guider, noise, NamedSampler(sampler_name), sigmas, latent_image)[:1]


class _CustomSampler(Node):
    CATEGORY = "sampling/custom_sampling"
    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")
    OUTPUT_TOOLTIPS = ("The latent after the last step.", "What the network took for clean in the last step.")


class SamplerCustom(_CustomSampler):
    """MODEL, CONDITIONING, SAMPLER, SIGMAS, LATENT -> sampled LATENT, denoised estimate."""

    DESCRIPTION = "Walks a row of noise levels with a sampler."
    INPUTS = {
        "model": inputs.MODEL,
        "add_noise": ("BOOLEAN", {"default": True, "tooltip": "Off for a latent that still carries noise."}),
        "noise_seed": inputs.SEED,
        "cfg": inputs.CFG,
        "positive": inputs.POSITIVE,
        "negative": inputs.NEGATIVE,
        "sampler": inputs.SAMPLER,
        "sigmas": inputs.SIGMAS,
        "latent_image": inputs.LATENT_IMAGE,
    }

    def run(
        self, model: Any, add_noise: bool, noise_seed: int, cfg: float, positive: Any, negative: Any,
        sampler: Any, sigmas: torch.Tensor, latent_image: Latent,
    ) -> tuple[Latent, Latent]:  # fmt: skip
        """Sample the LATENT. Raises SettingError for sigmas that neither fall nor rise."""
        noise = Noise("comfyui" if add_noise else "none", noise_seed)
        guider = cfg_guider(model, positive, negative, cfg)
        return _sample(guider, noise, read_sampler(sampler), sigmas, latent_image)


class SamplerCustomAdvanced(_CustomSampler):
    """NOISE, GUIDER, SAMPLER, SIGMAS, LATENT -> sampled LATENT, denoised estimate."""

    DESCRIPTION = "Walks a row of noise levels with a sampler, a guider and a noise."
    INPUTS = {
        "noise": inputs.socket("NOISE", "From RandomNoise or DisableNoise."),
        "guider": inputs.socket("GUIDER", "From CFGGuider, BasicGuider or SVDFrameGuider."),
        "sampler": inputs.SAMPLER,
        "sigmas": inputs.SIGMAS,
        "latent_image": inputs.LATENT_IMAGE,
    }

    def run(
        self, noise: Any, guider: Any, sampler: Any, sigmas: torch.Tensor, latent_image: Latent
    ) -> tuple[Latent, Latent]:
        """Sample the LATENT. Raises SettingError for sigmas that neither fall nor rise."""
        return _sample(read_guider(guider), read_noise(noise), read_sampler(sampler), sigmas, latent_image)


class KSamplerSelect(_NamedSampler):
    """Name -> SAMPLER."""

    DESCRIPTION = "Chooses a sampler: one of those of SVDSamplerSelect, without ComfyUI."
    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("The sampler, for SamplerCustom and SamplerCustomAdvanced.",)
    INPUTS = {"sampler_name": inputs.SAMPLER_NAME}

    def run(self, sampler_name: str) -> tuple[NamedSampler]:
        """Return the sampler. Raises SettingError for one that needs ComfyUI."""
        raise_if_refused(validate_sampler_name(sampler_name))
        return (NamedSampler(sampler_name),)


class _MakesGuider(Node):
    CATEGORY = "sampling/custom_sampling/guiders"
    RETURN_TYPES = ("GUIDER",)
    OUTPUT_TOOLTIPS = ("The guider, for SamplerCustomAdvanced.",)


class CFGGuider(_MakesGuider):
    """MODEL, positive and negative CONDITIONING -> GUIDER."""

    DESCRIPTION = "Guidance by both conditionings, for SamplerCustomAdvanced."
    INPUTS = {
        "model": inputs.MODEL,
        "positive": inputs.POSITIVE,
        "negative": inputs.NEGATIVE,
        "cfg": inputs.CFG,
    }

    def run(self, model: Any, positive: Any, negative: Any, cfg: float) -> tuple[Guider]:
        """Return a GUIDER with the MODEL's guidance over the frames."""
        return (cfg_guider(model, positive, negative, cfg),)


class BasicGuider(_MakesGuider):
    """MODEL, CONDITIONING -> GUIDER without guidance."""

    DESCRIPTION = "No guidance: the conditioning alone, for SamplerCustomAdvanced."
    INPUTS = {"model": inputs.MODEL, "conditioning": inputs.POSITIVE}

    def run(self, model: Any, conditioning: Any) -> tuple[Guider]:
        """Return a GUIDER. Sampling raises SettingError if the MODEL guides the frames by weights other than 1."""
        return (cfg_guider(model, conditioning, None, 1.0),)


class _MakesNoise(Node):
    CATEGORY = "sampling/custom_sampling/noise"
    RETURN_TYPES = ("NOISE",)


class RandomNoise(_MakesNoise):
    """Seed -> NOISE."""

    DESCRIPTION = "The starting noise of a seed, the same as KSampler's."
    OUTPUT_TOOLTIPS = ("The noise, for SamplerCustomAdvanced.",)
    INPUTS = {"noise_seed": inputs.SEED}

    def run(self, noise_seed: int) -> tuple[Noise]:
        """Return noise that is drawn when its shape is known."""
        return (Noise("comfyui", noise_seed),)


class DisableNoise(_MakesNoise):
    """Nothing -> NOISE of zeros."""

    DESCRIPTION = "No noise, for a latent that still carries some."
    OUTPUT_TOOLTIPS = ("No noise, for SamplerCustomAdvanced.",)

    def run(self) -> tuple[Noise]:
        """Return zeros of any shape."""
        return (Noise("none"),)
