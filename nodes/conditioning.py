"""Nodes of the conditioning stages: resize, CLIP, noise augmentation, VAE, micro-conditioning."""

from __future__ import annotations

from ..svd_core.runtime.runtime import forward_warnings, get_runtime
from . import sockets, wire_formats
from .base import StageNode


class SVDResizeImage(StageNode):
    """IMAGE -> IMAGE of the video's size, width, height."""

    DESCRIPTION = (
        "Brings the image to the video's size with the Lanczos filter. Equal to diffusers' resize for 8-bit pictures."
    )
    RETURN_TYPES = ("IMAGE", "INT", "INT")
    RETURN_NAMES = ("image", "width", "height")
    OUTPUT_TOOLTIPS = ("The resized image.", "Its width.", "Its height.")
    INPUTS = {
        "image": sockets.socket("IMAGE", "The picture to animate."),
        **sockets.size(),
        "fit": sockets.fit(),
    }

    def run(self, image, width: int, height: int, fit: str) -> tuple:
        from ..svd_core.media.image_ops import resize_images

        resized, run_warnings = resize_images(image, width, height, fit)
        forward_warnings(get_runtime(), run_warnings)
        return (resized, width, height)


class SVDCLIPVisionEncode(StageNode):
    """IMAGE -> CLIP_VISION_OUTPUT."""

    DESCRIPTION = (
        "Embeds the picture with CLIP. Give it the picture as loaded, before resize and noise. reference looks at the "
        "whole frame as Stability and diffusers do; center_crop at the middle square only, as ComfyUI's core does."
    )
    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)
    RETURN_NAMES = ("clip_vision_output",)
    OUTPUT_TOOLTIPS = ("The CLIP embedding, usable by core's nodes too.",)
    INPUTS = {
        "clip_vision": sockets.socket(sockets.EITHER_CLIP_VISION, "The CLIP image encoder, ours or ComfyUI's."),
        "image": sockets.socket("IMAGE", "The picture as loaded."),
        "preprocess": sockets.choice(
            ["reference", "center_crop"], "reference", "How the picture becomes CLIP's square."
        ),
    }

    def run(self, clip_vision, image, preprocess: str) -> tuple:
        from ..svd_core import execution

        clip = wire_formats.clip_vision(clip_vision)
        embedding = execution.embed(get_runtime(), clip, [image], preprocess)
        return (wire_formats.ClipVisionOutput(embedding, clip.image_size),)


class SVDNoiseAugmentation(StageNode):
    """IMAGE -> IMAGE with seeded noise, not clamped, and the noise's settings."""

    DESCRIPTION = (
        "Adds seeded noise to the resized image, measured in [-1, 1] as in the reference. The result leaves [0, 1] on "
        "purpose: wire it straight to SVDVAEEncode."
    )
    RETURN_TYPES = ("IMAGE", "FLOAT", "INT")
    RETURN_NAMES = ("image", "noise_aug_strength", "seed")
    OUTPUT_TOOLTIPS = (
        "The noisy image.",
        "The strength, for SVDMicroConditioning: the model must be told what was done.",
        "The seed, for SVDEulerSampler: with noise = diffusers one seed gives the diffusers pipeline's video.",
    )
    INPUTS = {
        "image": sockets.socket("IMAGE", "The image at the video's size."),
        "noise_aug_strength": sockets.noise_aug_strength(),
        "seed": sockets.seed("Seed of the noise. Image i of many uses seed + i."),
    }

    def run(self, image, noise_aug_strength: float, seed: int) -> tuple:
        from ..svd_core.diffusion.noise_augmentation import augment_images

        return (augment_images(image, noise_aug_strength, seed), noise_aug_strength, seed)


class SVDVAEEncode(StageNode):
    """IMAGE -> LATENT."""

    DESCRIPTION = "Encodes the image with the temporal VAE: the posterior's mode, unscaled, in float32 where asked for."
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The image latent, one sample per image, for SVDImageConditioning.",)
    INPUTS = {
        "vae": sockets.socket(sockets.EITHER_VAE, "The temporal VAE, ours or ComfyUI's."),
        "image": sockets.socket("IMAGE", "The image at the video's size, with its noise."),
    }

    def run(self, vae, image) -> tuple:
        from ..svd_core import execution

        latents = execution.encode(get_runtime(), wire_formats.vae(vae), image)
        return (wire_formats.write_latent(latents[:, None]),)


class SVDImageConditioning(StageNode):
    """CLIP_VISION_OUTPUT, image LATENT -> positive, negative, empty LATENT."""

    DESCRIPTION = (
        "Joins embedding and image latent to conditioning, and makes the empty latent of the video. N images make N "
        "videos. Motion, fps and strength have their usual values until SVDMicroConditioning sets others."
    )
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")
    OUTPUT_TOOLTIPS = ("With the image.", "Without: zeros.", "The empty video, for the sampler.")
    INPUTS = {
        "clip_vision_output": sockets.socket("CLIP_VISION_OUTPUT", "The picture's CLIP embedding."),
        "image_latent": sockets.socket("LATENT", "The encoded image, from SVDVAEEncode or VAEEncode."),
        "video_frames": sockets.frames(),
    }

    def run(self, clip_vision_output, image_latent: dict, video_frames: int) -> tuple:
        from ..svd_core.diffusion.conditioning import MicroConditioning, empty_latents, prepare_conditioning

        image_latents = wire_formats.read_latent(image_latent).clips.flatten(0, 1)
        embeds, image_latents = prepare_conditioning(wire_formats.read_embeds(clip_vision_output), image_latents)
        micro = MicroConditioning()
        return (
            wire_formats.write_conditioning(embeds, image_latents, micro),
            wire_formats.write_conditioning(
                embeds.new_zeros(embeds.shape), image_latents.new_zeros(image_latents.shape), micro
            ),
            wire_formats.write_latent(empty_latents(image_latents, video_frames)),
        )


class SVDMicroConditioning(StageNode):
    """CONDITIONING -> CONDITIONING with fps, motion_bucket_id and noise_aug_strength."""

    DESCRIPTION = "Tells the model frames per second, how much motion, and how much noise the input image got."
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "FLOAT")
    RETURN_NAMES = ("positive", "negative", "fps")
    OUTPUT_TOOLTIPS = ("With the image.", "Without.", "The fps again, for CreateVideo.")
    INPUTS = {
        "positive": sockets.socket("CONDITIONING", "From SVDImageConditioning."),
        "negative": sockets.socket("CONDITIONING", "From SVDImageConditioning."),
        "fps": sockets.fps(),
        "motion_bucket_id": sockets.motion_bucket_id(),
        "noise_aug_strength": sockets.noise_aug_strength(),
    }

    def run(self, positive, negative, fps: int, motion_bucket_id: int, noise_aug_strength: float) -> tuple:
        from ..svd_core.diffusion.conditioning import MicroConditioning

        micro = MicroConditioning(fps, motion_bucket_id, noise_aug_strength)
        return (wire_formats.with_micro(positive, micro), wire_formats.with_micro(negative, micro), float(fps))
