"""Encode the input image: its CLIP embedding and its image latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import NonFiniteError, SettingError
from ..media.image_ops import clip_input_center_crop, clip_input_reference, clip_input_whole, to_pixels
from ..models.components import ClipVision, Vae
from ..utils.nan_checks import DAMAGED, is_finite
from ..utils.size_checks import check_multiple
from ..utils.tensor_checks import check_images

PREPROCESSES = {"reference": clip_input_reference, "center_crop": clip_input_center_crop, "whole": clip_input_whole}
"""Preparation of CLIP's input by the name of its setting."""


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """The output of the CLIP image encoder for B images, float32 on the CPU.

    Attributes:
        image_embeds: (B, D) projected embedding, the single context token of SVD.
        last_hidden_state: (B, tokens, width).
        penultimate_hidden_states: (B, tokens, width).
    """

    image_embeds: torch.Tensor
    last_hidden_state: torch.Tensor
    penultimate_hidden_states: torch.Tensor


def embed_images(
    clip_vision: ClipVision,
    images: Sequence[torch.Tensor],
    preprocess: str,
    device: torch.device,
    on_image: Callable[[int], None] = lambda done: None,
) -> ImageEmbedding:
    """Embed images as they were loaded: before resizing and augmentation.

    Args:
        images: Batches (b, H, W, 3) in [0, 1], each of any size; B images in all.
        preprocess: `reference` (the whole frame, as Stability and diffusers), or as ComfyUI's core: `center_crop` (the
            middle square) or `whole` (the frame).
        device: Device of the encoder.
        on_image: Called with the number of images done. What it raises stops the work.

    Raises:
        SettingError: Unknown preprocess.
        ImageError: See `check_images`.
        NonFiniteError: The embedding holds NaN or infinity.
    """
    if preprocess not in PREPROCESSES:
        raise SettingError(f'preprocess must be one of {", ".join(PREPROCESSES)}, got "{preprocess}"')
    normalization = (clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std)
    pixels = [PREPROCESSES[preprocess](check_images(each), *normalization) for each in images]
    # One image at a time, so that each equals its single run bit by bit.
    outputs = []
    for each in torch.cat(pixels):
        outputs.append(clip_vision.embed(each[None].to(device)))
        _check(outputs[-1][0], "the CLIP encoder", "numbers.embedding")
        on_image(len(outputs))
    return ImageEmbedding(*(torch.cat(rows).float().cpu() for rows in zip(*outputs, strict=True)))


def encode_images(
    vae: Vae,
    images: torch.Tensor,
    device: torch.device,
    on_image: Callable[[int], None] = lambda done: None,
    offload_activations: bool = False,
) -> torch.Tensor:
    """Encode images (B, H, W, 3) to unscaled image latents (B, 4, H/8, W/8) float32 CPU: the posterior's mode.

    Args:
        device: Device of the encoder.
        on_image: Called with the number of images done. What it raises stops the work.
        offload_activations: Keep a large image's activations on the CPU. The bits are the same.

    Raises:
        SettingError: H or W is not a multiple of 8.
        NonFiniteError: A latent holds NaN or infinity.
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


def _check(output: torch.Tensor, component: str, code: str) -> None:
    if not is_finite(output):
        raise NonFiniteError(
            f"{component} returns NaN or infinity for this image. Use precision bf16 or fp32. Where fp32 was used, "
            f"{DAMAGED}",
            code=code,
        )
