"""Estimate the peak memory of a stage from shapes, and decide where the weights are.

Activations only; the caller adds the weights. The factors are counts of live tensors in the published architecture,
measured with a tracker over storages.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import MemoryBudgetError, SettingError, printable

if TYPE_CHECKING:
    import torch

    from ..models.components import SVDModel, Vae
    from .residency import After

logger = logging.getLogger(__name__)

DECODER_LIVE_TENSORS = 8  # full-size, first-width tensors alive in the decoder's last up block, at its time mixer
SPATIAL_LIVE_TENSORS = 4  # of the largest of one frame, alive in the first convolutions of each of its up blocks
TILE_LIVE_TENSORS = 5  # tiles alive in the temporal layers of a decoder that streams
ENCODER_LIVE_TENSORS = 4  # of the same kind, in the first ResNet of the encoder: input, norm, hidden, sum
ENCODER_RESIDENT_TENSORS = 2  # of an image that is encoded in tiles: input, hidden
DECODER_RESIDENT_TENSORS = 4  # of a frame that is decoded in tiles: input of twice the width, hidden, output
SPATIAL_TILE_TENSORS = 6  # tiles alive there
UNET_LIVE_TENSORS = 11  # first-width tensors alive in the last up block's last transformer: skips, residuals, rows
STOCK_UNET_LIVE_TENSORS = 28  # alive there in the UNet without the optimized forward pass, per frame
CHUNK_LIVE_TENSORS = 14  # of a chunk of rows, in the feed-forward layers of that transformer
MIN_SIZE = 2**20  # bytes that a user can mean as a size of memory


def decode_bytes(vae: Vae, frames: int, height: int, width: int, itemsize: int | None = None) -> int:
    """Return the peak activation bytes of decoding `frames` frames of height x width pixels as one clip.

    Args:
        itemsize: Bytes of one number. None: the decoder's own.
    """
    itemsize = itemsize or vae.itemsize
    frame = vae.base_channels * height * width * itemsize
    if not vae.streams:
        return DECODER_LIVE_TENSORS * frame * frames
    resident = DECODER_RESIDENT_TENSORS * frame if _is_tiled(2 * frame) else 0
    return frames * frame + resident + offloaded_decode_bytes(vae, frames, height, width, itemsize)


def offloaded_decode_bytes(vae: Vae, frames: int, height: int, width: int, itemsize: int | None = None) -> int:
    """Return the peak bytes on the device if the decoder streams and keeps the clip's activations on the CPU."""
    from ..models.vae_decoder import TILE_NUMEL

    itemsize = itemsize or vae.itemsize
    frame, slab = vae.base_channels * height * width * itemsize, TILE_NUMEL * itemsize
    largest = (2 * frame, frame, frame // 4, frame // 16)  # of one frame, where the decoder comes up to each level
    spatial = max(SPATIAL_TILE_TENSORS * slab if _is_tiled(each) else SPATIAL_LIVE_TENSORS * each for each in largest)
    return max(spatial, TILE_LIVE_TENSORS * min(slab, frames * frame))


def _is_tiled(size: int) -> bool:
    """Return True if an image of `size` bytes is computed in tiles of rows."""
    from ..models import tiled_layers

    return size > tiled_layers.TILING_THRESHOLD


def encode_bytes(vae: Vae, height: int, width: int, offload_activations: bool = False) -> int:
    """Return the peak activation bytes of the encoder on one image of height x width pixels, in float32.

    Args:
        offload_activations: Keep a large image's activations on the CPU.
    """
    from ..models import tiled_layers

    numbers, most = vae.base_channels * height * width, 0
    while vae.tiles_input and _is_tiled(4 * numbers):  # each level has half of the one before
        resident = 0 if offload_activations else ENCODER_RESIDENT_TENSORS * numbers
        most = max(most, resident + SPATIAL_TILE_TENSORS * tiled_layers.TILE_NUMEL)
        numbers //= 2
    return 4 * max(most, ENCODER_LIVE_TENSORS * numbers)


def denoise_bytes(model: SVDModel, frames: int, latent_height: int, latent_width: int) -> int:
    """Return the peak activation bytes of one UNet call on a video of `frames` frames."""
    from ..models.optimizations import unsupported_reason

    rows, itemsize = latent_height * latent_width * frames, itemsize_of(model.unet)
    if unsupported_reason(model.unet) is not None:
        return STOCK_UNET_LIVE_TENSORS * rows * model.base_channels * itemsize
    kept = 0 if model.step_cache is None else 2 * rows * model.base_channels * itemsize  # of both sides of guidance
    return kept + optimized_denoise_bytes(rows, model.base_channels, itemsize, model.options.forward_chunking != "off")


def optimized_denoise_bytes(rows: int, base_channels: int, itemsize: int, forward_chunking: bool = True) -> int:
    """Return the peak activation bytes of one call of the optimized UNet on `rows` latent pixels of all frames."""
    from ..models.unet import GPU_CHUNK_ROWS

    together = min(rows, GPU_CHUNK_ROWS) if forward_chunking else rows
    return (UNET_LIVE_TENSORS * rows + CHUNK_LIVE_TENSORS * together) * base_channels * itemsize


def describe_chunks(device: torch.device, forward_chunking: bool = True) -> str:
    """Describe how many rows of feed-forward and attention are computed at a time on a device."""
    from ..models.unet import CPU_CHUNK_ROWS, GPU_CHUNK_ROWS

    rows = CPU_CHUNK_ROWS if device.type == "cpu" else GPU_CHUNK_ROWS
    return f"in chunks of {rows}" if forward_chunking else "all at once"


AFTERWARDS: dict[str, After] = {"resident": "keep", "offload": "offload"}


@dataclass(frozen=True)
class Placement:
    """The placement of the UNet's weights while sampling.

    Attributes:
        stream: They are streamed to the device block by block.
        activation_bytes: Bytes that the work needs in addition to resident weights, or with streamed ones.
        after: Where resident weights are afterwards.
        if_short: The placement to try when memory runs out. None: there is no other.
    """

    stream: bool
    activation_bytes: int
    after: After = "default"
    if_short: Placement | None = None


def place_weights(model: SVDModel, need: int, device: torch.device, capacity: int) -> Placement:
    """Decide where the weights are while sampling, by `model.options.memory`, and log the plan. No pixel changes.

    `auto` streams the weights block by block if they do not fit.

    Args:
        need: Bytes of activations.
        capacity: Bytes of the device for weights and activations.

    Raises:
        MemoryBudgetError: The work does not fit even so.
    """
    from ..models.optimizations import unsupported_reason
    from ..models.weight_streaming import streamed_bytes

    option = model.options.memory if device.type != "cpu" else "default"  # the weights live there: nothing to choose
    weights = sum(weight.nbytes for weight in model.module.parameters())
    obstacle = unsupported_reason(model.unet)
    if option == "stream" and obstacle is not None:
        logger.warning("the weights cannot be streamed and stay on the device: %s", obstacle)
    wanted = option == "stream" or (option == "auto" and weights + need > capacity)
    stream = wanted and obstacle is None
    streamed = Placement(True, need + streamed_bytes(model.unet)) if obstacle is None else None
    activation_bytes = streamed.activation_bytes if stream and streamed else need
    logger.info(
        "sampling: the weights (%s) are %s, rows are computed %s, the activations need about %s%s, %s are available",
        format_bytes(weights),
        ("streamed from page-locked memory" if device.type == "cuda" else "streamed") if stream else "on the device",
        describe_chunks(device, model.options.forward_chunking != "off" and obstacle is None),
        format_bytes(activation_bytes),
        "" if stream else " more",
        format_bytes(capacity),
    )
    if stream and activation_bytes > capacity:
        raise MemoryBudgetError(
            f"sampling this video needs about {format_bytes(activation_bytes)} even with streamed weights, and "
            f"{format_bytes(capacity)} are available. Use fewer frames or a smaller size"
        )
    if option in ("resident", "offload") and weights + need > capacity:
        raise MemoryBudgetError(
            f"sampling this video with all weights on the device (memory = {option}) needs about "
            f"{format_bytes(weights + need)}, and {format_bytes(capacity)} are available. Set memory to auto or stream"
        )
    if stream and streamed:
        return streamed
    return Placement(False, need, AFTERWARDS.get(option, "default"), streamed if option == "auto" else None)


def itemsize_of(module: torch.nn.Module) -> int:
    """Return the bytes of one number in the module's precision."""
    return next(module.parameters()).element_size()


def format_bytes(size: int) -> str:
    """Format bytes for people: 28.1 GiB, 640 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def parse_bytes(name: str, size: int | str) -> int:
    """Return a size in bytes: of 6G, 6GiB, 512M, 2.5G or a number. K, M and G are powers of 1024, as for GPU memory.

    Raises:
        SettingError: It is no size, or less than 1M: 6 is meant as 6G. The message names the argument `name`.
    """
    is_size = isinstance(size, (int, str)) and not isinstance(size, bool)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", str(size).strip(), re.IGNORECASE) if is_size else None
    if match is None:
        raise SettingError(f'`{name}` must be a size with K, M or G, such as 6G, got "{printable(size, 40)}"')
    count = int(float(match[1]) * 1024 ** " KMG".index(match[2].upper() or " "))
    if count < MIN_SIZE:
        meant = f"{match[1]}{'G' if float(match[1]) < 1024 else 'M'}" if count else "6G"
        raise SettingError(f'`{name}` must be at least 1M, got "{printable(size, 40)}"; did you mean {meant}?')
    return count
