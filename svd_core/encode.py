"""The input picture as numbers: its CLIP embedding, and its image latent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .checkpoint.parts import SVDClipVision, SVDVae
from .errors import SettingError
from .images import PREPROCESSES, check_images, check_multiple, clip_input_center_crop, clip_input_reference, to_pixels


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
    clip_vision: SVDClipVision,
    images: torch.Tensor,
    preprocess: str,
    device: torch.device,
    on_image: Callable[[int], None] = lambda done: None,
) -> ImageEmbedding:
    """Embed images (B, H, W, 3) in [0, 1]: the picture as it was loaded, before resize and augmentation.

    preprocess is `reference` (whole frame) or `center_crop` (ComfyUI core's middle square); the encoder is on `device`.
    What `on_image`, told the images done, raises stops the work.
    Raises SettingError for another word, ImageError for what is no picture.
    """
    if preprocess not in PREPROCESSES:
        raise SettingError(f'preprocess must be one of {", ".join(PREPROCESSES)}, got "{preprocess}"')
    look = clip_input_reference if preprocess == "reference" else clip_input_center_crop
    encoder = clip_vision.encoder
    pixels = look(images, clip_vision.image_size, clip_vision.image_mean, clip_vision.image_std)
    dtype = next(encoder.parameters()).dtype
    # One image at a time: each then equals its single run to the last bit.
    answers = []
    for each in pixels:
        answers.append(encoder(pixel_values=each[None].to(device, dtype), output_hidden_states=True))
        on_image(len(answers))

    def gathered(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(rows).float().cpu()

    return ImageEmbedding(
        image_embeds=gathered([answer.image_embeds for answer in answers]),
        last_hidden_state=gathered([answer.last_hidden_state for answer in answers]),
        penultimate_hidden_states=gathered([answer.hidden_states[-2] for answer in answers]),
    )


def encode_images(
    vae: SVDVae, images: torch.Tensor, device: torch.device, on_image: Callable[[int], None] = lambda done: None
) -> torch.Tensor:
    """Unscaled image latents (B, 4, H/8, W/8) float32 CPU of images (B, H, W, 3): the posterior's mode.

    The encoder is on `device`. It computes in float32 when the VAE asks for it (`force_upcast`), and has its own
    precision back afterwards. Raises SettingError unless H and W are multiples of 8.
    """
    images = check_images(images)
    check_multiple("the image's height", images.shape[1], 8)
    check_multiple("the image's width", images.shape[2], 8)
    pixels = to_pixels(images)
    latents = []
    with _encoding_precision(vae) as dtype:
        for each in pixels:
            latents.append(_posterior_mode(vae, each[None].to(device, dtype)).float().cpu())
            on_image(len(latents))
    return torch.cat(latents)


def _posterior_mode(vae: SVDVae, pixels: torch.Tensor) -> torch.Tensor:
    mean, _log_variance = vae.vae.quant_conv(vae.vae.encoder(pixels)).chunk(2, dim=1)
    return mean


@contextlib.contextmanager
def _encoding_precision(vae: SVDVae) -> Iterator[torch.dtype]:
    """The dtype to encode in. Casts encoder and quant_conv to float32 and back when the VAE needs it."""
    parts = (vae.vae.encoder, vae.vae.quant_conv)
    own = [next(part.parameters()).dtype for part in parts]
    if not vae.force_upcast and own[0] == own[1]:
        yield own[0]
        return
    try:
        for part in parts:
            part.to(torch.float32)
        yield torch.float32
    finally:
        for part, dtype in zip(parts, own, strict=True):
            part.to(dtype)
