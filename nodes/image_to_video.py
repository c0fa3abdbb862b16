"""SVDImageToVideo, which expands into the nodes of the stages."""

from __future__ import annotations

import itertools
from typing import Any

from ..svd_core.pipeline import PRESET_NAMES, PRESETS
from . import sockets
from .base import StageNode
from .sampling import SVDGuidanceRefine, SVDSigmas

_expansion_numbers = itertools.count(1)
"""One number per expansion, so that node ids are unique in this process."""


def _raw_links(inputs: dict[str, sockets.Input]) -> dict[str, sockets.Input]:
    """Declare that a link is passed to the stages instead of its value.

    A stage then runs again only if its own inputs change, and lists are distributed over the stages as in a graph of
    single nodes.
    """
    return {name: (kind, {**options, "rawLink": True}) for name, (kind, options) in inputs.items()}


class SVDImageToVideo(StageNode):
    """Checkpoint, IMAGE, settings -> list of IMAGE, one batch of frames per image."""

    DESCRIPTION = (
        "A picture becomes a video in one box. It runs the stages' own nodes, each cached by itself: another "
        "motion_bucket_id does not load or encode again. Seed and steps give what the diffusers pipeline makes of them."
    )
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("The frames: one batch per image, so that a saver runs once per video.",)
    INPUTS = _raw_links(
        {
            "model": sockets.socket(sockets.EITHER_MODEL, "The denoising network, ours or ComfyUI's."),
            "clip_vision": sockets.socket(sockets.EITHER_CLIP_VISION, "The CLIP image encoder, ours or ComfyUI's."),
            "vae": sockets.socket(sockets.EITHER_VAE, "The temporal VAE, ours or ComfyUI's."),
            "image": sockets.socket("IMAGE", "The picture to animate. N pictures make N videos."),
            **sockets.size(),
            "fit": sockets.fit(),
            "video_frames": sockets.frames(),
            "fps": sockets.fps(),
            "motion_bucket_id": sockets.motion_bucket_id(),
            "noise_aug_strength": sockets.noise_aug_strength(),
            "seed": sockets.seed("Seed of both noises. Image i of many uses seed + i."),
            "steps": sockets.steps(),
            **sockets.guidance_range(),
            "decode_mode": sockets.decode_mode(),
            **sockets.decode_window(),
        }
    )
    OPTIONAL_INPUTS = {
        "preset": sockets.choice(
            list(PRESET_NAMES),
            "reference",
            "reference: Euler, karras, steps of above. balanced: dpmpp_2m on 10 steps of align_your_steps. fast: Euler "
            "on these, guided only at middle noise, 14 network calls. Both replace steps.",
        )
    }

    def run(
        self, model, clip_vision, vae, image, width: int, height: int, fit: str, video_frames: int, fps: int,
        motion_bucket_id: int, noise_aug_strength: float, seed: int, steps: int, min_guidance: float,
        max_guidance: float, decode_mode: str, chunk_size: int, context: int, preset: str = "reference",
    ) -> dict[str, Any]:  # fmt: skip
        stages = _Expansion()
        resized = stages.add("SVDResizeImage", image=image, width=width, height=height, fit=fit)
        noisy = stages.add("SVDNoiseAugmentation", image=(resized, 0), noise_aug_strength=noise_aug_strength, seed=seed)
        embedded = stages.add("SVDCLIPVisionEncode", clip_vision=clip_vision, image=image, preprocess="reference")
        encoded = stages.add("SVDVAEEncode", vae=vae, image=(noisy, 0))
        conditioned = stages.add(
            "SVDImageConditioning",
            clip_vision_output=(embedded, 0),
            image_latent=(encoded, 0),
            video_frames=video_frames,
        )
        micro = stages.add(
            "SVDMicroConditioning",
            positive=(conditioned, 0),
            negative=(conditioned, 1),
            fps=fps,
            motion_bucket_id=motion_bucket_id,
            noise_aug_strength=noise_aug_strength,
        )
        sampled = stages.add(
            "SVDEulerSampler",
            model=model,
            positive=(micro, 0),
            negative=(micro, 1),
            latent=(conditioned, 2),
            seed=seed,
            min_guidance=min_guidance,
            max_guidance=max_guidance,
            noise="diffusers",
            **_sampling_inputs(stages, preset, steps),
        )
        decoded = stages.add(
            "SVDTemporalVAEDecode",
            vae=vae,
            latent=(sampled, 0),
            mode=decode_mode,
            chunk_size=chunk_size,
            context=context,
        )
        gathered = stages.add("SVDGatherVideos", images=(decoded, 0))
        return {"result": ([gathered, 0],), "expand": stages.nodes}


class _Expansion:
    """Builder of an expansion in ComfyUI's format: {id: {"class_type", "inputs"}}."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self._number = next(_expansion_numbers)

    def add(self, class_type: str, **inputs: Any) -> str:
        """Add a node and return its id. An input that is a tuple (id, slot) links to a node of this expansion."""
        node_id = f"SVDImageToVideo-{self._number}.{class_type}"
        linked = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
        self.nodes[node_id] = {"class_type": class_type, "inputs": linked}
        return node_id


def _sampling_inputs(stages: _Expansion, preset: str, steps: int) -> dict[str, Any]:
    """Return the inputs of SVDEulerSampler that a preset chooses, with their nodes. reference needs none."""
    if preset == "reference":
        return {"steps": steps}
    chosen = PRESETS[preset]
    sampler = stages.add("SVDSamplerSelect", sampler_name=chosen["sampler"])
    sigmas = _with_defaults(SVDSigmas, steps=chosen["steps"], schedule=chosen["schedule"])
    interval = {"sigma_low": chosen["guidance_from"], "sigma_high": chosen["guidance_to"]}
    refine = _with_defaults(SVDGuidanceRefine, **interval)
    return {
        "steps": chosen["steps"],
        "sampler": (sampler, 0),
        "sigmas": (stages.add("SVDSigmas", **sigmas), 0),
        "guidance": (stages.add("SVDGuidanceRefine", **refine), 0),
    }


def _with_defaults(node: type[StageNode], **inputs: Any) -> dict[str, Any]:
    """Return the required inputs of a node: the given ones, and the defaults of the others."""
    return {**{name: options["default"] for name, (_, options) in node.INPUTS.items()}, **inputs}


class SVDGatherVideos(StageNode):
    """List of IMAGE -> SVD_VIDEOS, a single value.

    An expansion returns each value of a link separately. A list reaches the outer node only as one value.
    """

    DESCRIPTION = "Gathers the videos of SVDImageToVideo, which needs it inside. There is no reason to place it."
    CATEGORY = f"{StageNode.CATEGORY}/inside"
    INPUT_IS_LIST = True
    RETURN_TYPES = ("SVD_VIDEOS",)
    RETURN_NAMES = ("videos",)
    OUTPUT_TOOLTIPS = ("All videos as one value.",)
    INPUTS = {"images": sockets.socket("IMAGE", "Videos, one batch of frames each.")}

    def run(self, images: list) -> tuple:
        return (list(images),)
