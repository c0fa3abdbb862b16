"""The whole way from a picture to a video in one box, made of the stages' own nodes."""

from __future__ import annotations

import itertools
from typing import Any

from . import sockets
from .base import StageNode

_calls = itertools.count(1)
"""Numbers the expansions of this process: ids of the nodes in them must not meet."""


def _handed_on(declared: sockets.Input) -> sockets.Input:
    """An input whose link, if it has one, is handed on to the stages.

    So a stage is computed again only when its own inputs change, and lists meet in the stages as they do in a row.
    """
    kind, options = declared
    return (kind, {**options, "rawLink": True})


class SVDImageToVideo(StageNode):
    """Image and checkpoint -> a list of IMAGE, one batch of frames per image."""

    DESCRIPTION = (
        "A picture becomes a video in one box. It runs the stages' own nodes, each cached by itself: another "
        "motion_bucket_id does not load or encode again. Seed and steps give what the diffusers pipeline makes of them."
    )
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("images",)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("The frames: one batch per image, so that a saver runs once per video.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        inputs = {
            "model": sockets.socket(sockets.EITHER_MODEL, "The denoising network, ours or ComfyUI's."),
            "clip_vision": sockets.socket(sockets.EITHER_CLIP_VISION, "The CLIP image encoder, ours or ComfyUI's."),
            "vae": sockets.socket(sockets.EITHER_VAE, "The temporal VAE, ours or ComfyUI's."),
            "image": sockets.socket(sockets.IMAGE, "The picture to animate. N pictures make N videos."),
            "width": sockets.pixels(1024, "Width"),
            "height": sockets.pixels(576, "Height"),
            "fit": sockets.fit(),
            "video_frames": sockets.frames(),
            "fps": sockets.fps(),
            "motion_bucket_id": sockets.motion_bucket_id(),
            "noise_aug_strength": sockets.noise_aug_strength(),
            "seed": sockets.seed("Seed of both noises. Image i of many uses seed + i."),
            "steps": sockets.steps(),
            "min_guidance": sockets.guidance(1.0, "Smallest", "on the first frame"),
            "max_guidance": sockets.guidance(3.0, "Largest", "on the last frame"),
            "decode_mode": sockets.decode_mode(),
            "chunk_size": sockets.chunk_size(),
            "context": sockets.context(),
        }
        return {"required": {name: _handed_on(declared) for name, declared in inputs.items()}}

    def run(
        self, model, clip_vision, vae, image, width: int, height: int, fit: str, video_frames: int, fps: int,
        motion_bucket_id: int, noise_aug_strength: float, seed: int, steps: int, min_guidance: float,
        max_guidance: float, decode_mode: str, chunk_size: int, context: int,
    ) -> dict[str, Any]:  # fmt: skip
        stages = _Expansion()
        resized = stages.add("SVDResizeImage", image=image, width=width, height=height, fit=fit)
        noisy = stages.add("SVDNoiseAugmentation", image=(resized, 0), noise_aug_strength=noise_aug_strength, seed=seed)
        seen = stages.add("SVDCLIPVisionEncode", clip_vision=clip_vision, image=image, preprocess="reference")
        encoded = stages.add("SVDVAEEncode", vae=vae, image=(noisy, 0))
        joined = stages.add(
            "SVDImageConditioning",
            clip_vision_output=(seen, 0),
            image_latent=(encoded, 0),
            video_frames=video_frames,
        )
        told = stages.add(
            "SVDMicroConditioning",
            positive=(joined, 0),
            negative=(joined, 1),
            fps=fps,
            motion_bucket_id=motion_bucket_id,
            noise_aug_strength=noise_aug_strength,
        )
        sampled = stages.add(
            "SVDEulerSampler",
            model=model,
            positive=(told, 0),
            negative=(told, 1),
            latent=(joined, 2),
            seed=seed,
            steps=steps,
            min_guidance=min_guidance,
            max_guidance=max_guidance,
            noise="diffusers",
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
    """Nodes that take the place of one, as ComfyUI wants them: {id: {"class_type", "inputs"}}."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self._number = next(_calls)

    def add(self, class_type: str, **inputs: Any) -> str:
        """Add a node; its id. A pair (id, slot) is a link to one of these nodes."""
        node_id = f"SVDImageToVideo-{self._number}.{class_type}"
        linked = {name: list(value) if isinstance(value, tuple) else value for name, value in inputs.items()}
        self.nodes[node_id] = {"class_type": class_type, "inputs": linked}
        return node_id


class SVDGatherVideos(StageNode):
    """A list of IMAGE -> one value that holds them all.

    An expansion hands on each value of a link, so a list reaches the outer node only as one value.
    """

    DESCRIPTION = "Gathers the videos of SVDImageToVideo, which needs it inside. There is no reason to place it."
    CATEGORY = f"{StageNode.CATEGORY}/inside"
    INPUT_IS_LIST = True
    RETURN_TYPES = (sockets.SVD_VIDEOS,)
    RETURN_NAMES = ("videos",)
    OUTPUT_TOOLTIPS = ("All videos as one value.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": sockets.socket(sockets.IMAGE, "Videos, one batch of frames each.")}}

    def run(self, images: list) -> tuple:
        return (list(images),)
