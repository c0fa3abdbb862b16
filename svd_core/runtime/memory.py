"""How much memory a stage needs at its peak, from shapes alone. Weights are counted by whoever holds them.

The factors are counts of live tensors in the published architecture (peak of a tracker over storages).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import MemoryBudgetError

if TYPE_CHECKING:
    import torch

    from ..models.components import SVDModel, Vae
    from .runtime import After

logger = logging.getLogger(__name__)

DECODER_LIVE_TENSORS = 8  # full-size, first-width tensors alive in the decoder's last up block, at its time mixer
SPATIAL_LIVE_TENSORS = 4  # of the largest of one frame, alive in the first convolutions of each of its up blocks
SLAB_LIVE_TENSORS = 5  # slabs alive when a decoder that streams looks along the frames
ENCODER_LIVE_TENSORS = 4  # of the same kind, in the first ResNet of the encoder: input, norm, hidden, sum
ENCODER_LYING_TENSORS = 2  # of a picture that is encoded in slabs: input, hidden
DECODER_LYING_TENSORS = 4  # of a frame that is decoded in slabs: input of twice the width, hidden, output
SPATIAL_SLAB_TENSORS = 6  # slabs alive there
UNET_LIVE_TENSORS = 11  # first-width tensors alive in the last up block's last transformer: skips, residuals, rows
WHOLE_UNET_LIVE_TENSORS = 28  # alive there when the UNet is called as it is, per frame
PIECE_LIVE_TENSORS = 14  # of a piece of rows, in the same place: what the feed-forward makes of them


def decode_bytes(vae: Vae, frames: int, height: int, width: int, itemsize: int | None = None) -> int:
    """Peak activation bytes of decoding `frames` frames of height x width pixels as one clip.

    itemsize  bytes of one number; None: the decoder's own
    """
    itemsize = itemsize or vae.itemsize
    frame = vae.base_channels * height * width * itemsize
    if not vae.streams:
        return DECODER_LIVE_TENSORS * frame * frames
    lying = DECODER_LYING_TENSORS * frame if _is_cut(2 * frame) else 0
    return frames * frame + lying + spared_decode_bytes(vae, frames, height, width, itemsize)


def spared_decode_bytes(vae: Vae, frames: int, height: int, width: int, itemsize: int | None = None) -> int:
    """The same for a decoder that streams, with the clip's activations on the CPU."""
    from ..models.vae_decoder import TILE_NUMEL

    itemsize = itemsize or vae.itemsize
    frame, slab = vae.base_channels * height * width * itemsize, TILE_NUMEL * itemsize
    largest = (2 * frame, frame, frame // 4, frame // 16)  # of one frame, where the decoder comes up to each level
    spatial = max(SPATIAL_SLAB_TENSORS * slab if _is_cut(each) else SPATIAL_LIVE_TENSORS * each for each in largest)
    return max(spatial, SLAB_LIVE_TENSORS * min(slab, frames * frame))


def _is_cut(size: int) -> bool:
    """Whether a picture of `size` bytes is computed in slabs of rows."""
    from ..models import tiled_layers

    return size > tiled_layers.TILING_THRESHOLD


def encode_bytes(vae: Vae, height: int, width: int, offload_activations: bool = False) -> int:
    """Peak activation bytes of the encoder on one image of height x width pixels, in float32.

    spare  with a large image's activations on the CPU
    """
    from ..models import tiled_layers

    numbers, most = vae.base_channels * height * width, 0
    while vae.tiles_input and _is_cut(4 * numbers):  # each level has half of the one before
        lying = 0 if offload_activations else ENCODER_LYING_TENSORS * numbers
        most = max(most, lying + SPATIAL_SLAB_TENSORS * tiled_layers.TILE_NUMEL)
        numbers //= 2
    return 4 * max(most, ENCODER_LIVE_TENSORS * numbers)


def denoise_bytes(model: SVDModel, frames: int, latent_height: int, latent_width: int) -> int:
    """Peak activation bytes of one UNet call on a video of `frames` frames."""
    from ..models.optimizations import unsupported_reason
    from ..models.unet import GPU_CHUNK_ROWS

    rows = latent_height * latent_width * frames
    if unsupported_reason(model.unet) is None:
        together = rows if model.options.forward_chunking == "off" else min(rows, GPU_CHUNK_ROWS)
        tensors = UNET_LIVE_TENSORS * rows + PIECE_LIVE_TENSORS * together
    else:
        tensors = WHOLE_UNET_LIVE_TENSORS * rows
    return tensors * model.base_channels * itemsize_of(model.unet)


AFTERWARDS: dict[str, After] = {"resident": "keep", "offload": "offload"}


@dataclass(frozen=True)
class Placement:
    """Where the UNet's weights are.

    stream  they come to the device block by block while a step is computed
    beside  bytes that the work takes beside weights that are all there, or with those that come and go
    after   if they are all there: where they are when the video is made
    """

    stream: bool
    beside: int
    after: After = "default"


def place_weights(model: SVDModel, need: int, device: torch.device, capacity: int) -> Placement:
    """Where the weights are to be for sampling that takes `need` bytes beside them, of `capacity` in all.

    As `model.options.memory` says; auto: block by block where they do not fit. Says the plan. It changes no pixel.
    Raises MemoryBudgetError when the work does not fit even so.
    """
    from ..models.optimizations import unsupported_reason
    from ..models.weight_streaming import streamed_bytes

    option = model.options.memory if device.type != "cpu" else "default"  # the weights live there: nothing to choose
    weights = sum(weight.nbytes for weight in model.module.parameters())
    obstacle = unsupported_reason(model.unet)
    if option == "stream" and obstacle is not None:
        logger.warning("the weights cannot come block by block, they are all on the device: %s", obstacle)
    wanted = option == "stream" or (option == "auto" and weights + need > capacity)
    stream = wanted and obstacle is None
    beside = need + streamed_bytes(model.unet) if stream else need
    logger.info(
        "sampling: the weights %s (%s), the work takes about %s%s, %s can be had",
        "come block by block" if stream else "are on the device",
        format_bytes(weights),
        format_bytes(beside),
        "" if stream else " beside",
        format_bytes(capacity),
    )
    if stream and beside > capacity:
        raise MemoryBudgetError(
            f"sampling this video needs about {format_bytes(beside)} even with its weights coming block by block, and "
            f"{format_bytes(capacity)} can be had; use fewer frames or a smaller size"
        )
    if option in ("resident", "offload") and weights + need > capacity:
        raise MemoryBudgetError(
            f"sampling this video with all weights on the device (memory = {option}) needs about "
            f"{format_bytes(weights + need)}, and {format_bytes(capacity)} can be had; set memory to auto or stream"
        )
    return Placement(stream, beside, AFTERWARDS.get(option, "default"))


def itemsize_of(module: torch.nn.Module) -> int:
    """Bytes of one number in the module's own precision."""
    return next(module.parameters()).element_size()


def format_bytes(size: int) -> str:
    """A size in bytes as a person says it: 28.1 GiB, 640 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
