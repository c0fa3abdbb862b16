"""Nodes that join our stages and the core nodes of ComfyUI, or their stand-ins, by core's own wires."""

from __future__ import annotations

from typing import Any

from . import backend, sockets, wire_formats
from .base import StageNode


class SVDToComfyModel(StageNode):
    """Our three parts -> ComfyUI's own three."""

    DESCRIPTION = (
        "Hands a checkpoint that SVD Stages loaded, also a diffusers folder, to ComfyUI's core nodes: LoRA loaders, "
        "KSampler, VAEDecode. Not for svd-nano, whose widths ComfyUI does not know."
    )
    RETURN_TYPES = (sockets.MODEL, sockets.CLIP_VISION, sockets.VAE)
    RETURN_NAMES = ("model", "clip_vision", "vae")
    OUTPUT_TOOLTIPS = ("For LoRA loaders and KSampler.", "For SVD_img2vid_Conditioning.", "For VAEDecode.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": sockets.socket(sockets.SVD_MODEL, "From SVDCheckpointLoader."),
                "clip_vision": sockets.socket(sockets.SVD_CLIP_VISION, "From the same loader."),
                "vae": sockets.socket(sockets.SVD_VAE, "From the same loader."),
            }
        }

    def run(self, model, clip_vision, vae) -> tuple:
        return backend.get_backend().own_parts(wire_formats.checkpoint(model, clip_vision, vae))


class SVDFrameGuider(StageNode):
    """MODEL and conditioning -> GUIDER with a weight for each frame."""

    DESCRIPTION = (
        "Guidance that rises over the frames, for core's SamplerCustomAdvanced. Also right where the largest weight is "
        "1.0, which core's own video guidance is not."
    )
    RETURN_TYPES = (sockets.GUIDER,)
    RETURN_NAMES = ("guider",)
    OUTPUT_TOOLTIPS = ("For SamplerCustomAdvanced.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": sockets.socket(sockets.MODEL, "An SVD of ComfyUI's ImageOnlyCheckpointLoader."),
                "positive": sockets.socket(sockets.CONDITIONING, "Conditioning with the image."),
                "negative": sockets.socket(sockets.CONDITIONING, "Conditioning without it."),
                "min_guidance": sockets.guidance(1.0, "Smallest", "on the first frame"),
                "max_guidance": sockets.guidance(3.0, "Largest", "on the last frame"),
            },
            "optional": {"guidance": sockets.guidance_curve()},
        }

    def run(self, model, positive, negative, min_guidance: float, max_guidance: float, guidance=None) -> tuple:
        curve = wire_formats.curve(guidance, min_guidance, max_guidance)
        return (backend.get_backend().frame_guider(model, positive, negative, curve),)


class SVDFrameGuidance(StageNode):
    """MODEL -> MODEL that guides each frame with its own weight."""

    DESCRIPTION = (
        "Guidance that rises over the frames, for core's KSampler. It replaces KSampler's cfg: whatever stands there, "
        "the frames are guided by this curve."
    )
    RETURN_TYPES = (sockets.MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("For KSampler, SamplerCustom and other core samplers.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": sockets.socket(sockets.MODEL, "An SVD of ComfyUI's ImageOnlyCheckpointLoader."),
                "min_guidance": sockets.guidance(1.0, "Smallest", "on the first frame"),
                "max_guidance": sockets.guidance(3.0, "Largest", "on the last frame"),
            },
            "optional": {"guidance": sockets.guidance_curve()},
        }

    def run(self, model, min_guidance: float, max_guidance: float, guidance=None) -> tuple:
        curve = wire_formats.curve(guidance, min_guidance, max_guidance)
        return (backend.get_backend().frame_guidance(model, curve),)


class SVDEulerSamplerSelect(StageNode):
    """Our Euler loop as a SAMPLER."""

    DESCRIPTION = "The Euler loop of SVDEulerSampler, for core's SamplerCustom and SamplerCustomAdvanced."
    RETURN_TYPES = (sockets.SAMPLER,)
    RETURN_NAMES = ("sampler",)
    OUTPUT_TOOLTIPS = ("For SamplerCustom and SamplerCustomAdvanced.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple:
        return (backend.get_backend().euler_sampler(),)
