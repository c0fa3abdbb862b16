"""How much memory a stage needs at its peak, from shapes alone. Weights are counted by whoever holds them.

The factors are counts of live tensors in the published architecture (peak of a tracker over storages).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .errors import MemoryBudgetError

if TYPE_CHECKING:
    import torch

    from .checkpoint.parts import SVDModel, Vae

logger = logging.getLogger(__name__)

DECODER_LIVE_TENSORS = 8  # full-size, first-width tensors alive in the decoder's last up block, at its time mixer
SPATIAL_LIVE_TENSORS = 8  # of the same kind, of one frame, alive in the last up block's first convolutions
SLAB_LIVE_TENSORS = 5  # slabs alive when a decoder that streams looks along the frames
ENCODER_LIVE_TENSORS = 4  # of the same kind, in the first ResNet of the encoder: input, norm, hidden, sum
UNET_LIVE_TENSORS = 13  # first-width tensors alive in the last up block's last transformer: skips, residuals, rows
WHOLE_UNET_LIVE_TENSORS = 28  # alive there when the UNet is called as it is, per frame
PIECE_LIVE_TENSORS = 16  # of a piece of rows, in the same place: what the feed-forward makes of them


def decode_bytes(vae: Vae, frames: int, height: int, width: int) -> int:
    """Peak activation bytes of decoding `frames` frames of height x width pixels as one clip."""
    frame = vae.first_width * height * width * vae.itemsize
    if not vae.streams:
        return DECODER_LIVE_TENSORS * frame * frames
    return frames * frame + spared_decode_bytes(vae, frames, height, width)


def spared_decode_bytes(vae: Vae, frames: int, height: int, width: int) -> int:
    """The same for a decoder that streams, with the clip's activations on the CPU."""
    from .fuse.decoder import SLAB

    frame = vae.first_width * height * width * vae.itemsize
    return max(SPATIAL_LIVE_TENSORS * frame, SLAB_LIVE_TENSORS * min(SLAB * vae.itemsize, frames * frame))


def encode_bytes(vae: Vae, height: int, width: int) -> int:
    """Peak activation bytes of the encoder on one image of height x width pixels, in float32."""
    return ENCODER_LIVE_TENSORS * vae.first_width * height * width * 4


def denoise_bytes(model: SVDModel, frames: int, latent_height: int, latent_width: int) -> int:
    """Peak activation bytes of one UNet call on a video of `frames` frames."""
    from .fuse.rewrites import why_not
    from .fuse.unet import GPU_PIECE

    rows = latent_height * latent_width * frames
    if why_not(model.unet) is None:
        tensors = UNET_LIVE_TENSORS * rows + PIECE_LIVE_TENSORS * min(rows, GPU_PIECE)
    else:
        tensors = WHOLE_UNET_LIVE_TENSORS * rows
    return tensors * model.first_width * itemsize_of(model.unet)


def must_stream(model: SVDModel, need: int, device: torch.device, capacity: int) -> bool:
    """Whether the UNet's weights must come to `device` block by block, for sampling that takes `need` bytes beside.

    Says the plan. It changes no pixel. A UNet that is called as it is cannot stream. Raises MemoryBudgetError when not
    even streaming helps.
    """
    from .fuse.rewrites import why_not

    weights = sum(weight.numel() * weight.element_size() for weight in model.module.parameters())
    fits = weights + need <= capacity
    stream = not fits and device.type != "cpu" and why_not(model.unet) is None
    logger.info(
        "sampling: the weights %s (%s), the work takes about %s beside, %s can be had",
        "come block by block" if stream else "are on the device",
        *map(in_words, (weights, need, capacity)),
    )
    if stream and need > capacity:
        raise MemoryBudgetError(
            f"sampling this video needs about {in_words(need)} even with its weights coming block by block, and "
            f"{in_words(capacity)} can be had; use fewer frames or a smaller size"
        )
    return stream


def itemsize_of(module: torch.nn.Module) -> int:
    """Bytes of one number in the module's own precision."""
    return next(module.parameters()).element_size()


def in_words(size: int) -> str:
    """A size in bytes as a person says it: 28.1 GiB, 640 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
