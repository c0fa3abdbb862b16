"""What the denoiser is told beside the noisy latents: the picture, and the micro-conditioning."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import SettingError


@dataclass(frozen=True)
class MicroConditioning:
    """The three numbers SVD was trained with.

    fps                 frames per second, the user's; the model is told fps - 1
    motion_bucket_id    how much motion
    noise_aug_strength  deviation of the noise added to the input image in [-1, 1]

    Raises SettingError for numbers that are not finite or below 0, and for fps below 1.
    """

    fps: float = 7.0
    motion_bucket_id: float = 127.0
    noise_aug_strength: float = 0.02

    def __post_init__(self) -> None:
        for name, lowest in (("fps", 1.0), ("motion_bucket_id", 0.0), ("noise_aug_strength", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= lowest):
                raise SettingError(f"{name} must be {lowest:g} or more, got {value}")

    def time_ids(self) -> torch.Tensor:
        """(1, 3) float32 [fps - 1, motion_bucket_id, noise_aug_strength], the order of the model's label embedding.

        "SVD was conditioned on fps - 1": Stability's scripts/sampling/simple_video_sample.py. This is the one place
        where the one is taken off.
        """
        return torch.tensor([[self.fps - 1, self.motion_bucket_id, self.noise_aug_strength]], dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The conditioning of one video.

    embeds        (1, T, D) float32: the CLIP embedding; T is 1, or the tokens that ComfyUI's core makes of T images
    image_latent  (1, 4, h, w) or (F, 4, h, w) float32: unscaled image latent for all frames, or one for each
    """

    embeds: torch.Tensor
    image_latent: torch.Tensor
    micro: MicroConditioning

    def per_frame(self, frames: int) -> torch.Tensor:
        """The image latent for each frame, (1, frames, 4, h, w). Raises SettingError when there are not 1 or frames."""
        count = self.image_latent.shape[0]
        if count not in (1, frames):
            raise SettingError(
                f"the conditioning holds {count} image latents for a video of {frames} frames; there must be one for "
                f"all frames or one for each"
            )
        return self.image_latent.expand(frames, -1, -1, -1)[None]


def prepare_conditioning(image_embeds: torch.Tensor, image_latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (N, D) and unscaled image latents (N, 4, h, w) of N images, as (N, 1, D) and (N, 4, h, w) float32.

    The unconditional side has zeros in both places: Stability's
    `force_uc_zero_embeddings=["cond_frames", "cond_frames_without_noise"]`.
    Raises SettingError when the counts differ.
    """
    if image_embeds.shape[0] != image_latents.shape[0]:
        raise SettingError(
            f"there are {image_embeds.shape[0]} CLIP embeddings and {image_latents.shape[0]} image latents; give both "
            f"encoders the same images, one video is made of each"
        )
    return image_embeds.float().cpu()[:, None], image_latents.float().cpu()


def make_conditioning_pairs(
    image_embeds: torch.Tensor, image_latents: torch.Tensor, micro: MicroConditioning
) -> list[tuple[Conditioning, Conditioning]]:
    """Return (positive, negative) conditioning of each of N images.

    Args:
        image_embeds: (N, D) CLIP embeddings.
        image_latents: (N, 4, h, w) unscaled latents.

    Raises:
        SettingError: The counts differ.
    """
    embeds, image_latents = prepare_conditioning(image_embeds, image_latents)
    return [
        (
            Conditioning(embed, image_latent, micro),
            Conditioning(torch.zeros_like(embed), torch.zeros_like(image_latent), micro),
        )
        for embed, image_latent in zip(embeds.split(1), image_latents.split(1), strict=True)
    ]


def expand_image_latents(image_latents: torch.Tensor, frames: int) -> torch.Tensor:
    """Image latents (B, 4, h, w) as one, or one for each frame: (1 or frames, 4, h, w).

    Of another number than these two ComfyUI's core gives each frame the one that is nearest to it in time
    (comfy/utils.py, resize_to_batch_size).
    """
    count = image_latents.shape[0]
    if count in (1, frames):
        return image_latents
    if frames < count:
        places = [round(frame * (count - 1) / max(1, frames - 1)) for frame in range(frames)]
    else:
        places = [min(count - 1, math.floor((frame + 0.5) * count / frames)) for frame in range(frames)]
    return image_latents[places]


def empty_latents(image_latents: torch.Tensor, frames: int) -> torch.Tensor:
    """Zeros (N, frames, 4, h, w) for N image latents (N, 4, h, w). Raises SettingError for no frames."""
    if frames < 1:
        raise SettingError(f"a video needs 1 frame or more, got {frames}; 14 (SVD) or 25 (SVD-XT) is usual")
    return torch.zeros((image_latents.shape[0], frames, *image_latents.shape[1:]))
