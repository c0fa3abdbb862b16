"""The graph of the template image_to_video as plain calls of the node classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from svd_stages.headless import NODES
from svd_stages.svd_core.models.components import Checkpoint


@dataclass(frozen=True)
class Settings:
    """Values of one run; the defaults are the nodes' own."""

    width: int = 64
    height: int = 64
    frames: int = 14
    steps: int = 3
    seed: int = 42
    fps: int = 7
    motion_bucket_id: int = 127
    noise_aug_strength: float = 0.02
    min_guidance: float = 1.0
    max_guidance: float = 3.0


def call(class_type: str, **inputs):
    """Run a node as ComfyUI does: by its table, by its FUNCTION, with keywords."""
    node = NODES[class_type]()
    return getattr(node, node.FUNCTION)(**inputs)


def conditioned(checkpoint: Checkpoint, images: torch.Tensor, settings: Settings) -> tuple[list, list, dict]:
    """Return positive, negative and the empty latent."""
    (embedding,) = call("SVDCLIPVisionEncode", clip_vision=checkpoint.clip_vision, image=images, preprocess="reference")
    resized, _, _ = call("SVDResizeImage", image=images, width=settings.width, height=settings.height, fit="stretch")
    noisy, strength, _ = call(
        "SVDNoiseAugmentation", image=resized, noise_aug_strength=settings.noise_aug_strength, seed=settings.seed
    )
    (latent,) = call("SVDVAEEncode", vae=checkpoint.vae, image=noisy)
    positive, negative, empty = call(
        "SVDImageConditioning", clip_vision_output=embedding, image_latent=latent, video_frames=settings.frames
    )
    positive, negative, _ = call(
        "SVDMicroConditioning",
        positive=positive,
        negative=negative,
        fps=settings.fps,
        motion_bucket_id=settings.motion_bucket_id,
        noise_aug_strength=strength,
    )
    return positive, negative, empty


def sampled(checkpoint: Checkpoint, images: torch.Tensor, settings: Settings, noise: str = "diffusers", **more) -> dict:
    """Return the LATENT of the video."""
    positive, negative, empty = conditioned(checkpoint, images, settings)
    (latent,) = call(
        "SVDEulerSampler",
        model=checkpoint.model,
        positive=positive,
        negative=negative,
        latent=empty,
        seed=settings.seed,
        steps=settings.steps,
        min_guidance=settings.min_guidance,
        max_guidance=settings.max_guidance,
        noise=noise,
        **more,
    )
    return latent


def decoded(checkpoint: Checkpoint, latent: dict, mode: str = "exact", chunk_size: int = 8, context: int = 2) -> list:
    """Return one IMAGE batch per video."""
    (videos,) = call(
        "SVDTemporalVAEDecode",
        vae=checkpoint.vae,
        latent=latent,
        mode=mode,
        chunk_size=chunk_size,
        context=context,
    )
    return videos


def pipeline_frames(pipeline, picture, settings: Settings, output_type: str, chunk: int | None = None) -> torch.Tensor:
    """Return the frames of diffusers' pipeline with the same settings: (1, F, ...)."""
    return pipeline(
        picture,
        width=settings.width,
        height=settings.height,
        num_frames=settings.frames,
        num_inference_steps=settings.steps,
        min_guidance_scale=settings.min_guidance,
        max_guidance_scale=settings.max_guidance,
        fps=settings.fps,
        motion_bucket_id=settings.motion_bucket_id,
        noise_aug_strength=settings.noise_aug_strength,
        decode_chunk_size=chunk,
        generator=torch.Generator("cpu").manual_seed(settings.seed),
        output_type=output_type,
    ).frames
