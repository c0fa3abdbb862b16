"""Nodes that convert between this package's types and those of ComfyUI's core nodes, or of the compat nodes."""

from __future__ import annotations

from ..svd_core.errors import SettingError
from . import samplers, sockets, wire_formats
from .backend import get_backend
from .base import StageNode


class SVDToComfyModel(StageNode):
    """SVD_MODEL, SVD_CLIP_VISION, SVD_VAE -> MODEL, CLIP_VISION, VAE."""

    DESCRIPTION = (
        "Hands a checkpoint that SVD Stages loaded, also a diffusers folder, to ComfyUI's core nodes: LoRA loaders, "
        "KSampler, VAEDecode. Not for svd-nano, whose widths ComfyUI does not know."
    )
    RETURN_TYPES = ("MODEL", "CLIP_VISION", "VAE")
    RETURN_NAMES = ("model", "clip_vision", "vae")
    OUTPUT_TOOLTIPS = ("For LoRA loaders and KSampler.", "For SVD_img2vid_Conditioning.", "For VAEDecode.")
    INPUTS = {
        "model": sockets.socket("SVD_MODEL", "From SVDCheckpointLoader."),
        "clip_vision": sockets.socket("SVD_CLIP_VISION", "From the same loader."),
        "vae": sockets.socket("SVD_VAE", "From the same loader."),
    }

    def run(self, model, clip_vision, vae) -> tuple:
        checkpoint = wire_formats.checkpoint(model, clip_vision, vae)
        if checkpoint.model.step_cache is not None:
            raise SettingError("a MODEL of ComfyUI cannot reuse features between steps. Remove SVDStepCache.")
        return get_backend().convert_checkpoint(checkpoint)


class SVDFrameGuider(StageNode):
    """MODEL, conditioning -> GUIDER with one guidance weight per frame."""

    DESCRIPTION = (
        "Guidance that rises over the frames, for core's SamplerCustomAdvanced. Also right where the largest weight is "
        "1.0, which core's own video guidance is not."
    )
    RETURN_TYPES = ("GUIDER",)
    RETURN_NAMES = ("guider",)
    OUTPUT_TOOLTIPS = ("For SamplerCustomAdvanced.",)
    INPUTS = {
        "model": sockets.socket("MODEL", "An SVD of ComfyUI's ImageOnlyCheckpointLoader."),
        "positive": sockets.socket("CONDITIONING", "Conditioning with the image."),
        "negative": sockets.socket("CONDITIONING", "Conditioning without it."),
        **sockets.guidance_range(),
    }
    OPTIONAL_INPUTS = {"guidance": sockets.guidance_curve()}

    def run(self, model, positive, negative, min_guidance: float, max_guidance: float, guidance=None) -> tuple:
        curve = wire_formats.guidance_curve(guidance, min_guidance, max_guidance)
        return (get_backend().frame_guider(model, positive, negative, curve),)


class SVDFrameGuidance(StageNode):
    """MODEL -> MODEL with one guidance weight per frame."""

    DESCRIPTION = (
        "Guidance that rises over the frames, for core's KSampler. It replaces KSampler's cfg: whatever stands there, "
        "the frames are guided by this curve."
    )
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("For KSampler, SamplerCustom and other core samplers.",)
    INPUTS = {
        "model": sockets.socket("MODEL", "An SVD of ComfyUI's ImageOnlyCheckpointLoader."),
        **sockets.guidance_range(),
    }
    OPTIONAL_INPUTS = {"guidance": sockets.guidance_curve()}

    def run(self, model, min_guidance: float, max_guidance: float, guidance=None) -> tuple:
        curve = wire_formats.guidance_curve(guidance, min_guidance, max_guidance)
        return (get_backend().frame_guidance(model, curve),)


class SVDEulerSamplerSelect(StageNode):
    """Nothing -> SAMPLER of this package's Euler loop."""

    DESCRIPTION = "The Euler loop of SVDEulerSampler, for core's SamplerCustom and SamplerCustomAdvanced."
    RETURN_TYPES = ("SAMPLER",)
    RETURN_NAMES = ("sampler",)
    OUTPUT_TOOLTIPS = ("For SamplerCustom and SamplerCustomAdvanced.",)

    def run(self) -> tuple:
        return (get_backend().make_sampler("euler"),)


class SVDSamplerSelect(StageNode):
    """Name -> SAMPLER of this package's solver of that name."""

    DESCRIPTION = (
        "How a step is made, for SVDEulerSampler, SamplerCustom and SamplerCustomAdvanced. With svd-nano, dpmpp_2m on "
        "10 steps of align_your_steps comes as near to the exact solution as euler on 25; on few karras steps it does "
        "not."
    )
    RETURN_TYPES = ("SAMPLER",)
    RETURN_NAMES = ("sampler",)
    OUTPUT_TOOLTIPS = ("For SVDEulerSampler, SamplerCustom and SamplerCustomAdvanced.",)
    INPUTS = {"sampler_name": sockets.sampler_name()}

    @classmethod
    def VALIDATE_INPUTS(cls, sampler_name: str | None = None) -> bool | str:
        """Return True, or a message for a sampler whose package is missing."""
        return samplers.validate_solver_name(sampler_name)

    def run(self, sampler_name: str) -> tuple:
        return (get_backend().make_sampler(sampler_name),)
