"""Nodes of the sampling stage: noise levels, guidance and its refinements, Euler sampler."""

from __future__ import annotations

from dataclasses import replace

from . import samplers, sockets, wire_formats
from .backend import Request
from .base import StageNode


class SVDSigmas(StageNode):
    """Settings -> SIGMAS."""

    DESCRIPTION = "The row of noise levels the sampler walks down. Fits core's SamplerCustom and SplitSigmas too."
    RETURN_TYPES = ("SIGMAS",)
    RETURN_NAMES = ("sigmas",)
    OUTPUT_TOOLTIPS = ("steps + 1 falling noise levels, the last one 0.",)
    INPUTS = {
        "steps": sockets.steps(),
        "schedule": sockets.choice(
            ["karras", "align_your_steps", "exponential", "animate_lcm"],
            "karras",
            "karras: the reference. align_your_steps: made for SVD and few steps. exponential: even in log. "
            "animate_lcm: for AnimateLCM-SVD with 1 to 8 steps of the sampler lcm.",
        ),
        "sigma_min": sockets.number(0.002, 0.0001, 10.0, 0.001, "Lower end of the noise range. SVD's is 0.002."),
        "sigma_max": sockets.number(
            700.0, 0.1, 10000.0, 1.0, "Upper end of the range: the first noise level. SVD's is 700."
        ),
        "rho": sockets.number(
            7.0, 0.1, 100.0, 0.1, "Bend of the karras and animate_lcm rows: higher spends more steps on small noise."
        ),
    }
    OPTIONAL_INPUTS = {"model": sockets.socket("SVD_MODEL", "Its noise range replaces sigma_min and sigma_max.")}

    def run(self, steps: int, schedule: str, sigma_min: float, sigma_max: float, rho: float, model=None) -> tuple:
        from ..svd_core.diffusion.schedules import make_sigmas

        if model is not None:
            svd_model = wire_formats.svd_model(model)
            sigma_min, sigma_max = svd_model.sigma_min, svd_model.sigma_max
        return (make_sigmas(schedule, steps, sigma_min, sigma_max, rho),)


class SVDGuidance(StageNode):
    """Settings -> SVD_GUIDANCE, the guidance weight of each frame."""

    DESCRIPTION = "How strongly each frame follows the image. Overrides the sampler's own two widgets."
    RETURN_TYPES = ("SVD_GUIDANCE",)
    RETURN_NAMES = ("guidance",)
    OUTPUT_TOOLTIPS = ("The curve, for SVDEulerSampler.",)
    INPUTS = {
        "shape": sockets.choice(
            ["linear", "triangle", "constant"],
            "linear",
            "linear: min on the first frame, max on the last. triangle: max in the middle. constant: max.",
        ),
        **sockets.guidance_range("on the last frame, or in the middle"),
    }

    def run(self, shape: str, min_guidance: float, max_guidance: float) -> tuple:
        from ..svd_core.diffusion.guidance import GuidanceCurve

        return (GuidanceCurve(shape, min_guidance, max_guidance),)


class SVDGuidanceRefine(StageNode):
    """SVD_GUIDANCE -> SVD_GUIDANCE with an interval, rescale and projection."""

    DESCRIPTION = (
        "Limits guidance to a part of the noise levels, where alone it costs a second network call, and tames strong "
        "guidance. With its defaults it changes nothing."
    )
    RETURN_TYPES = ("SVD_GUIDANCE",)
    RETURN_NAMES = ("guidance",)
    OUTPUT_TOOLTIPS = ("The refined guidance, for SVDEulerSampler, SVDFrameGuider and SVDFrameGuidance.",)
    INPUTS = {
        "sigma_low": sockets.number(0.0, 0.0, 10000.0, 0.01, "Guidance acts at noise levels above this one."),
        "sigma_high": sockets.number(
            10000.0, 0.001, 10000.0, 0.01, "Guidance acts up to this noise level. 10000 is all of them."
        ),
        "rescale": sockets.number(
            0.0, 0.0, 1.0, 0.05, "How far contrast goes back to that without guidance. 0 is off, 0.7 is usual."
        ),
        "eta": sockets.number(
            1.0, 0.0, 1.0, 0.05, "How much of guidance's saturating part is kept. 1 is all, 0 is usual with APG."
        ),
        "norm_threshold": sockets.number(
            0.0, 0.0, 100000.0, 0.1, "Largest size of guidance's difference in a frame. 0 is no limit."
        ),
        "momentum": sockets.number(
            0.0, -1.0, 1.0, 0.05, "How much earlier steps' guidance counts in a step. 0 is off, -0.5 is usual with APG."
        ),
    }

    OPTIONAL_INPUTS = {
        "guidance": sockets.socket("SVD_GUIDANCE", "The curve, from SVDGuidance; else the sampler's two weights.")
    }

    def run(
        self, sigma_low: float, sigma_high: float, rescale: float, eta: float, norm_threshold: float, momentum: float,
        guidance=None,
    ) -> tuple:  # fmt: skip
        from ..svd_core.diffusion.guidance import GuidanceCurve, GuidanceRefinement

        refinement = GuidanceRefinement(sigma_low, sigma_high, rescale, eta, norm_threshold, momentum)
        return (replace(guidance, refinement=refinement) if isinstance(guidance, GuidanceCurve) else refinement,)


class SVDEulerSampler(StageNode):
    """Model, conditioning, LATENT -> LATENT of the sampled videos."""

    DESCRIPTION = (
        "The sampling loop, by default Euler's, with guidance that rises over the frames. Several videos are sampled "
        "one after the other; video i uses seed + i. A MODEL of ComfyUI's own, with its LoRA and patches, is sampled "
        "as well."
    )
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The video's latent, for SVDTemporalVAEDecode or VAEDecode.",)
    INPUTS = {
        "model": sockets.socket(sockets.EITHER_MODEL, "The denoising network, ours or ComfyUI's."),
        "positive": sockets.socket("CONDITIONING", "Conditioning with the image."),
        "negative": sockets.socket("CONDITIONING", "Conditioning without it."),
        "latent": sockets.socket("LATENT", "The empty video, or a latent to go on from."),
        "seed": sockets.seed("Seed of the starting noise, and of a sampler's noise. Video i of many uses seed + i."),
        "steps": sockets.steps(),
        **sockets.guidance_range(),
        "noise": sockets.choice(
            ["comfyui", "diffusers", "none"],
            "comfyui",
            "Whose starting noise a seed means: core's KSampler's, the diffusers pipeline's, or none at all "
            "for a latent that still carries noise.",
        ),
    }
    OPTIONAL_INPUTS = {
        "sigmas": sockets.socket("SIGMAS", "Noise levels; overrides steps."),
        "guidance": sockets.guidance_curve(),
        "sampler": sockets.socket(
            "SAMPLER", "How a step is made, from SVDSamplerSelect or KSamplerSelect; else Euler."
        ),
    }
    REPLACED_INPUTS = {"steps": "sigmas"}

    def run(
        self, model, positive, negative, latent: dict, seed: int, steps: int,
        min_guidance: float, max_guidance: float, noise: str, sigmas=None, guidance=None, sampler=None,
    ) -> tuple:  # fmt: skip
        curve = wire_formats.guidance_curve(guidance, min_guidance, max_guidance)
        request = Request(noise, seed, steps, curve, sigmas, sampler)
        return (samplers.get_sampler(model)(positive, negative, latent, request),)
