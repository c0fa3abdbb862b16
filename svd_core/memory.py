"""How much memory a stage needs at its peak, from shapes alone. Weights are counted by whoever holds them.

The factors are counts of live tensors in the published architecture (peak of a tracker over storages).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .checkpoint.parts import SVDModel, Vae

DECODER_LIVE_TENSORS = 8  # full-size, first-width tensors alive in the decoder's last up block, at its time mixer
ENCODER_LIVE_TENSORS = 4  # of the same kind, in the first ResNet of the encoder: input, norm, hidden, sum
UNET_LIVE_TENSORS = 28  # first-width tensors alive in the last up block's temporal feed-forward (GEGLU), per frame


def decode_bytes(vae: Vae, frames: int, height: int, width: int) -> int:
    """Peak activation bytes of one decoder call on `frames` frames of height x width pixels."""
    return DECODER_LIVE_TENSORS * vae.first_width * height * width * frames * vae.itemsize


def encode_bytes(vae: Vae, height: int, width: int) -> int:
    """Peak activation bytes of the encoder on one image of height x width pixels, in float32."""
    return ENCODER_LIVE_TENSORS * vae.first_width * height * width * 4


def denoise_bytes(model: SVDModel, videos: int, frames: int, latent_height: int, latent_width: int) -> int:
    """Peak activation bytes of one UNet call on `videos` videos of `frames` frames."""
    latent_pixels = latent_height * latent_width * frames * videos
    return UNET_LIVE_TENSORS * model.first_width * latent_pixels * itemsize_of(model.unet)


def itemsize_of(module: torch.nn.Module) -> int:
    """Bytes of one number in the module's own precision."""
    return next(module.parameters()).element_size()


def in_words(size: int) -> str:
    """A size in bytes as a person says it: 28.1 GiB, 640 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
