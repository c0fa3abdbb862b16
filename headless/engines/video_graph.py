"""Make the graph of a video from its settings: the stages as nodes, from LoadImage to SaveVideo.

It is embedded in the mp4 files of `animate`, and batches run it. Running it gives the frames of
`pipeline.image_to_video`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from ...svd_core.checkpoints.inspect import read_defaults
from ...svd_core.models.options import DEFAULT, ModelOptions
from ...svd_core.pipeline import VideoSettings
from ...svd_core.runtime.runtime import Runtime
from ..graph import Prompt
from .graphs import DISPLAY_NAMES, Graph

STAGE_NODES = {
    "load": "SVDCheckpointLoader",
    "resize": "SVDResizeImage",
    "embed": "SVDCLIPVisionEncode",
    "augment": "SVDNoiseAugmentation",
    "encode": "SVDVAEEncode",
    "condition": "SVDImageConditioning",
    "sample": "SVDEulerSampler",
    "decode": "SVDTemporalVAEDecode",
    "save": "SaveVideo",
}
"""The node of each stage of `animate`."""


def image_to_video_graph(settings: VideoSettings, runtime: Runtime, image_name: str) -> Graph:
    """Return the graph of a video of the image file `image_name`.

    Raises:
        CheckpointError: There is no checkpoint `settings.model`.
        SettingError: A size is not a multiple of 64.
    """
    defaults = read_defaults(runtime.library.find(settings.model))
    return Graph(make_prompt(settings.with_defaults(defaults), image_name))


def make_prompt(settings: VideoSettings, image_name: str) -> Prompt:
    """Return the graph of settings without None, in API format. Seed, strength and fps are set in one node each.

    Node ids and the order of inputs are those of the template image_to_video: batches of today are named by them.
    """
    guidance = {"min_guidance": settings.min_guidance, "max_guidance": settings.max_guidance}
    decoding = {"mode": settings.decode_mode, "chunk_size": settings.decode_chunk, "context": settings.decode_context}
    prompt: Prompt = {
        "2": _node("SVDCheckpointLoader", checkpoint=settings.model, precision="auto"),
        "3": _node("LoadImage", image=image_name),
        "4": _node("SVDCLIPVisionEncode", preprocess="reference", clip_vision=["2", 1], image=["3", 0]),
        "5": _node(
            "SVDResizeImage", width=settings.width, height=settings.height, fit=settings.fit, image=["3", 0]
        ),
        "7": _node(
            "SVDNoiseAugmentation",
            noise_aug_strength=settings.noise_aug_strength,
            seed=settings.seed,
            image=["5", 0],
        ),
        "6": _node("SVDVAEEncode", vae=["2", 2], image=["7", 0]),
        "8": _node(
            "SVDImageConditioning",
            video_frames=settings.num_frames,
            clip_vision_output=["4", 0],
            image_latent=["6", 0],
        ),
        "9": _node(
            "SVDMicroConditioning",
            fps=settings.fps,
            motion_bucket_id=settings.motion_bucket_id,
            noise_aug_strength=["7", 1],
            positive=["8", 0],
            negative=["8", 1],
        ),
        "10": _node(
            "SVDEulerSampler", seed=["7", 2], steps=settings.steps, **guidance, noise=settings.noise,
            model=["2", 0], positive=["9", 0], negative=["9", 1], latent=["8", 2],
        ),
        "11": _node("SVDTemporalVAEDecode", **decoding, vae=["2", 2], latent=["10", 0]),
        "12": _node("CreateVideo", fps=["9", 2], images=["11", 0]),
        "13": _node("SaveVideo", filename_prefix="video", format="auto", codec="auto", video=["12", 0]),
    }  # fmt: skip
    if settings.compile != DEFAULT.compile:
        options = asdict(ModelOptions(compile=settings.compile))
        prompt["options"] = {"class_type": "SVDModelOptions", "inputs": {"model": ["2", 0], **options}}
        prompt["10"]["inputs"]["model"] = ["options", 0]
    return prompt


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": DISPLAY_NAMES[class_type]}}


_INPUTS = {
    "width": ("SVDResizeImage", "width"),
    "height": ("SVDResizeImage", "height"),
    "fit": ("SVDResizeImage", "fit"),
    "noise_aug_strength": ("SVDNoiseAugmentation", "noise_aug_strength"),
    "seed": ("SVDNoiseAugmentation", "seed"),
    "num_frames": ("SVDImageConditioning", "video_frames"),
    "fps": ("SVDMicroConditioning", "fps"),
    "motion_bucket_id": ("SVDMicroConditioning", "motion_bucket_id"),
    "steps": ("SVDEulerSampler", "steps"),
    "min_guidance": ("SVDEulerSampler", "min_guidance"),
    "max_guidance": ("SVDEulerSampler", "max_guidance"),
    "decode_mode": ("SVDTemporalVAEDecode", "mode"),
    "decode_chunk": ("SVDTemporalVAEDecode", "chunk_size"),
    "decode_context": ("SVDTemporalVAEDecode", "context"),
}
"""Field of VideoSettings -> the node class and input that `make_prompt` gives it to."""


def settings_of(prompt: Prompt, settings: VideoSettings) -> VideoSettings:
    """Return the settings with the values of a validated graph, in which "4" steps have become 4."""
    inputs = {name: prompt[node_of_class(prompt, kind)]["inputs"] for name, (kind, _) in _INPUTS.items()}
    return replace(settings, **{name: inputs[name][_INPUTS[name][1]] for name in _INPUTS})


def node_of_class(prompt: Prompt, class_type: str) -> str:
    """Return the id of the only node of a class in a graph made here."""
    (node_id,) = (key for key, node in prompt.items() if node["class_type"] == class_type)
    return node_id
