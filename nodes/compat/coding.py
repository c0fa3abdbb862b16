"""Compat nodes that encode and decode: SVD_img2vid_Conditioning, CLIP, VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...svd_core.runtime.runtime import get_runtime
from ...svd_core.utils.warnings import RunWarning
from .. import sockets, wire_formats
from ..base import Node
from . import inputs, scaling

if TYPE_CHECKING:
    import torch

    from ...svd_core.models.components import Vae

AUGMENTATION_SEED = 0
UNUSED = "For other video models; SVD's frames are decoded one by one."
IMAGE = ("IMAGE", {"tooltip": "The picture or pictures."})


def _encode(vae: Vae, images: torch.Tensor) -> torch.Tensor:
    """Encode images (B, H, W, 3) to unscaled latents (B, 4, H // 8, W // 8).

    Both ends of a side are cropped evenly to a multiple of 8.
    """
    from ...svd_core import execution
    from ...svd_core.media.image_ops import crop_to_multiple

    images = wire_formats.images(images)[..., :3]
    cut = crop_to_multiple(images, 8)
    if cut.shape != images.shape:
        (height, width), (cut_height, cut_width) = images.shape[1:3], cut.shape[1:3]
        get_runtime().warn(
            RunWarning(
                "image.cut",
                f"the image of {width}x{height} was cropped to {cut_width}x{cut_height}. SVDResizeImage keeps all of "
                "it.",
            )
        )
    return execution.encode(get_runtime(), vae, cut)


def _side(default: int, name: str) -> inputs.Input:
    tooltip = f"{name} of the video in pixels. SVD was trained at 1024x576."
    return inputs.integer(default, 16, sockets.LARGEST_SIDE, tooltip, step=8)


class SVD_img2vid_Conditioning(Node):
    """IMAGE -> positive, negative CONDITIONING, empty LATENT, with core's arithmetic.

    CLIP sees the center square. The image is resized bilinearly after its longer side is cropped. The noise of
    augmentation_level is measured in [0, 1], which is twice the reference's. Core draws it from torch's global
    generator, so that runs differ; here its seed is 0, so that runs can be repeated.
    """

    DESCRIPTION = (
        "Prepares a picture for SVD as ComfyUI's core does. The noise of augmentation_level has the fixed seed 0 here; "
        "in ComfyUI it is another one in every run."
    )
    CATEGORY = "conditioning/video_models"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")
    OUTPUT_TOOLTIPS = ("With the picture.", "Without: zeros.", "The empty video, for the sampler.")
    INPUTS = {
        "clip_vision": inputs.CLIP_VISION,
        "init_image": inputs.socket("IMAGE", "The picture to animate."),
        "vae": inputs.VAE,
        "width": _side(1024, "Width"),
        "height": _side(576, "Height"),
        "video_frames": inputs.integer(14, 1, 4096, "Frames of the video: 14 for SVD, 25 for XT."),
        "motion_bucket_id": inputs.integer(127, 1, 1023, "How much motion; 127 is the middle."),
        "fps": inputs.integer(6, 1, 1024, "Frames per second the motion is made for."),
        "augmentation_level": inputs.number(
            0.0,
            0.0,
            10.0,
            0.01,
            "Noise on the picture, of this deviation in [0, 1]: twice what SVDNoiseAugmentation adds for the same "
            "number. Its seed is 0; SVDNoiseAugmentation lets you choose one.",
        ),
    }

    def run(
        self,
        clip_vision: Any,
        init_image: torch.Tensor,
        vae: Any,
        width: int,
        height: int,
        video_frames: int,
        motion_bucket_id: int,
        fps: int,
        augmentation_level: float,
    ) -> tuple:
        """Encode images (B, H, W, 3 or 4). As in core B images give one video with B image tokens, not B videos."""
        import torch

        from ...svd_core import execution
        from ...svd_core.diffusion.conditioning import MicroConditioning, expand_image_latents
        from ...svd_core.diffusion.noise_augmentation import augment_images_as_core

        embedding = execution.embed(get_runtime(), wire_formats.clip_vision(clip_vision), [init_image], "center_crop")
        images = scaling.scale_images(init_image[..., :3], "bilinear", width, height, "center")
        if augmentation_level > 0:
            get_runtime().warn(
                RunWarning(
                    "augmentation.seed",
                    f"the noise of augmentation_level has the fixed seed {AUGMENTATION_SEED} here; in ComfyUI every "
                    "run has another one. To choose a seed use SVDNoiseAugmentation.",
                )
            )
            images = augment_images_as_core(images, augmentation_level, AUGMENTATION_SEED)
        image_latents = expand_image_latents(_encode(wire_formats.vae(vae), images), video_frames)
        embeds, micro = embedding.image_embeds[None], MicroConditioning(fps, motion_bucket_id, augmentation_level)
        return (
            wire_formats.write_conditioning(embeds, image_latents, micro),
            wire_formats.write_conditioning(torch.zeros_like(embeds), torch.zeros_like(image_latents), micro),
            {"samples": torch.zeros((video_frames, 4, height // 8, width // 8))},
        )


class CLIPVisionEncode(Node):
    """IMAGE -> CLIP_VISION_OUTPUT."""

    DESCRIPTION = "Embeds pictures with CLIP, as ComfyUI's core does."
    CATEGORY = "conditioning"
    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)
    OUTPUT_TOOLTIPS = ("The embeddings, for SVDImageConditioning.",)

    _PREPROCESS = {"center": "center_crop", "none": "whole"}
    INPUTS = {
        "clip_vision": inputs.CLIP_VISION,
        "image": IMAGE,
        "crop": (
            list(_PREPROCESS),
            {"tooltip": "center looks at the middle square only, none at the whole picture, squeezed into a square."},
        ),
    }

    def run(self, clip_vision: Any, image: torch.Tensor, crop: str) -> tuple[wire_formats.ClipVisionOutput]:
        """Embed images (B, H, W, 3)."""
        from ...svd_core import execution

        clip = wire_formats.clip_vision(clip_vision)
        embedding = execution.embed(get_runtime(), clip, [image], self._PREPROCESS[crop])
        return (wire_formats.ClipVisionOutput(embedding, clip.image_size),)


class VAEEncode(Node):
    """IMAGE -> LATENT."""

    DESCRIPTION = "Encodes pictures into latents. What is over a multiple of 8 pixels is cut off evenly."
    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The latents, one sample per picture.",)
    INPUTS = {"pixels": IMAGE, "vae": inputs.VAE}

    def run(self, vae: Any, pixels: torch.Tensor) -> tuple[dict[str, Any]]:
        """Encode images (B, H, W, 3)."""
        return ({"samples": _encode(wire_formats.vae(vae), pixels)},)


class VAEDecode(Node):
    """LATENT -> IMAGE, each video decoded as one clip.

    ComfyUI's core does so only if memory suffices for all frames, else in shorter clips. Here the result does not
    depend on memory.
    """

    DESCRIPTION = "Decodes a video's latent into frames, all of it as one clip."
    CATEGORY = "latent"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The frames.",)
    INPUTS = {"samples": inputs.socket("LATENT", "The latent to decode."), "vae": inputs.VAE}

    def run(self, vae: Any, samples: dict[str, Any]) -> tuple[torch.Tensor]:
        """Return frames (F, H, W, 3) float32 in [0, 1]."""
        import torch

        from ...svd_core import execution

        clips = wire_formats.read_latent(samples).clips
        return (torch.cat(execution.decode(get_runtime(), wire_formats.vae(vae), clips, "exact", 1, 0)),)


class VAEDecodeTiled(Node):
    """LATENT -> IMAGE, decoded frame by frame in tiles as in core: without the temporal layers' context."""

    DESCRIPTION = (
        "Decodes frame by frame in tiles, for little memory; the frames do not see each other and may flicker. "
        "SVDTemporalVAEDecode takes little memory without that."
    )
    CATEGORY = "_for_testing"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The frames.",)
    INPUTS = {
        "samples": inputs.socket("LATENT", "The latent to decode."),
        "vae": inputs.VAE,
        "tile_size": inputs.integer(512, 64, 4096, "Side of a tile in pixels.", step=32),
        "overlap": inputs.integer(
            64, 0, 4096, "What neighbouring tiles share, in pixels; at most a quarter of a tile.", step=32
        ),
        "temporal_size": inputs.integer(64, 8, 4096, UNUSED, step=4),
        "temporal_overlap": inputs.integer(8, 4, 4096, UNUSED, step=4),
    }

    def run(
        self,
        vae: Any,
        samples: dict[str, Any],
        tile_size: int,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
    ) -> tuple[torch.Tensor]:
        """Return frames (F, H, W, 3) float32 in [0, 1]."""
        from ...svd_core import execution

        latents = wire_formats.read_latent(samples).clips.flatten(0, 1)
        overlap = min(overlap, tile_size // 4)
        return (execution.decode_tiled(get_runtime(), wire_formats.vae(vae), latents, tile_size // 8, overlap // 8),)
