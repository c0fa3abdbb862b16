"""The input picture as numbers: its CLIP embedding, and its image latent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import NonFiniteError, SettingError
from ..media.image_ops import (
    PREPROCESSES,
    clip_input_center_crop,
    clip_input_reference,
    clip_input_whole,
    to_pixels,
)
from ..models.components import ClipVision, Vae
from ..utils.nan_checks import DAMAGED, is_finite
from ..utils.size_checks import check_multiple
from ..utils.tensor_checks import check_images


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """What CLIP says of B images, float32 on the CPU.

    image_embeds                (B, D) projected, the one token SVD attends to
    last_hidden_state           (B, tokens, width)
    penultimate_hidden_states   (B, tokens, width)
    """

    image_embeds: torch.Tensor
    last_hidden_state: torch.Tensor
    penultimate_hidden_states: torch.Tensor


def embed_images(
    clip_vision: ClipVision,
    images: torch.Tensor,
    preprocess: str,
    device: torch.device,
    on_image: Callable[[int], None] = lambda done: None,
) -> ImageEmbedding:
    """Embed images (B, H, W, 3) in [0, 1]: the picture as it was loaded, before resize and augmentation.

    preprocess is `reference` (whole frame) or one of ComfyUI core's, `center_crop` (middle square) and `whole` (frame);
    the encoder is on `device`.
    What `on_image`, told the images done, raises stops the work.
    Raises SettingError for another word, ImageError for what is no picture, NonFiniteError for an embedding with NaN or
    infinity.
    """
    if preprocess not in PREPROCESSES:
        raise SettingError(f'preprocess must be one of {", ".join(PREPROCESSES)}, got "{preprocess}"')
    look = _LOOKS[preprocess]
    pixels = look(check_images(images), clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std)
    # One image at a time: each then equals its single run to the last bit.
    answers = []
    for each in pixels:
        answers.append(clip_vision.embed(each[None].to(device)))
        _check(answers[-1][0], "the CLIP encoder", "numbers.embedding")
        on_image(len(answers))
    return ImageEmbedding(*(torch.cat(rows).float().cpu() for rows in zip(*answers, strict=True)))


_LOOKS = {"reference": clip_input_reference, "center_crop": clip_input_center_crop, "whole": clip_input_whole}


def encode_images(
    vae: Vae,
    images: torch.Tensor,
    device: torch.device,
    on_image: Callable[[int], None] = lambda done: None,
    offload_activations: bool = False,
) -> torch.Tensor:
    """Unscaled image latents (B, 4, H/8, W/8) float32 CPU of images (B, H, W, 3): the posterior's mode.

    The encoder is on `device`. With `offload_activations` a large image's activations lie on the CPU: the same bits.
    Raises
    SettingError unless H and W are multiples of 8, NonFiniteError for a latent with NaN or infinity.
    """
    images = check_images(images)
    check_multiple("the image's height", images.shape[1], 8)
    check_multiple("the image's width", images.shape[2], 8)
    pixels = to_pixels(images)
    latents = []
    with vae.encoding(offload_activations) as encode:
        for each in pixels:
            latents.append(encode(each[None].to(device)).float().cpu())
            _check(latents[-1], "the VAE's encoder", "numbers.image_latent")
            on_image(len(latents))
    return torch.cat(latents)


def _check(answer: torch.Tensor, who: str, code: str) -> None:
    if not is_finite(answer):
        raise NonFiniteError(
            f"{who} answers the picture with NaN or infinity. Use precision bf16 or fp32. Where fp32 was used, "
            f"{DAMAGED}",
            code=code,
        )
