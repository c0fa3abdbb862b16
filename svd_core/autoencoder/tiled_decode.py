"""Decode frame by frame in tiles, as ComfyUI's VAEDecodeTiled does (comfy/sd.py, decode_tiled_; comfy/utils.py,
tiled_scale_multidim).

Tiles need little memory, but the frames are decoded without each other. The exact mode of `decode.py` needs little
memory without that loss; this module is for saved graphs that use VAEDecodeTiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from ..errors import NonFiniteError, SettingError
from ..media.image_ops import to_images
from ..models.components import Vae
from .decode import check_finite_pixels


def decode_in_tiles(
    vae: Vae,
    latents: torch.Tensor,
    tile: int,
    overlap: int,
    device: torch.device,
    on_frame: Callable[[int], None] = lambda done: None,
    on_nonfinite: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Decode each frame of unscaled latents (F, 4, h, w) alone: images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    Each frame is decoded three times, in square, wide and tall tiles, and the three results are averaged.

    Args:
        tile: Side of a tile in latent pixels.
        overlap: Latent pixels that neighbouring tiles share.
        device: Device of the decoder.
        on_frame: Called with the number of frames done. What it raises stops the work.
        on_nonfinite: Called with the index of a frame that holds NaN or infinity; its pixels are undefined.

    Raises:
        SettingError: overlap is not below half of a tile.
        NonFiniteError: A frame holds NaN or infinity, and there is no `on_nonfinite`.
    """
    if not 0 <= overlap < tile // 2:
        raise SettingError(f"tiles of {tile} latent pixels must overlap by less than half of that, got {overlap}")
    shapes = ((2 * tile, tile // 2), (tile // 2, 2 * tile), (tile, tile))

    def decode(latent_tile: torch.Tensor) -> torch.Tensor:
        return vae.decode_clip(latent_tile.to(device)).float().cpu()

    images = torch.empty((latents.shape[0], vae.scale * latents.shape[2], vae.scale * latents.shape[3], 3))
    for index, frame in enumerate(latents.split(1)):
        fitted = [_fitted(frame, shape) for shape in shapes]
        passes = {shape: _blended(decode, frame, shape, overlap, vae.scale) for shape in set(fitted)}
        pixels = torch.stack([passes[shape] for shape in fitted]).mean(0)
        try:
            check_finite_pixels(pixels, index, len(latents))
            images[index] = to_images(pixels)[0]
        except NonFiniteError:
            if on_nonfinite is None:
                raise
            on_nonfinite(index)
        on_frame(index + 1)
    return images


def _fitted(frame: torch.Tensor, shape: tuple[int, int]) -> tuple[int, int]:
    """Return a tile's shape, limited to the frame's size."""
    return min(shape[0], frame.shape[2]), min(shape[1], frame.shape[3])


def _blended(
    decode: Callable[[torch.Tensor], torch.Tensor],
    frame: torch.Tensor,
    shape: tuple[int, int],
    overlap: int,
    scale: int,
) -> torch.Tensor:
    """Return pixels (1, 3, 8h, 8w) of a frame (1, 4, h, w): the mean of its tiles, weighted less near their edges."""
    height, width = frame.shape[-2:]
    total = torch.zeros((1, 3, scale * height, scale * width))
    weights = torch.zeros_like(total)
    rows, columns = (_starts(*sizes, overlap) for sizes in zip((height, width), shape, strict=True))
    for top, left in itertools.product(rows, columns):
        pixels = decode(frame[..., top : top + shape[0], left : left + shape[1]])
        down, across = (_ramp(size, scale * overlap) for size in pixels.shape[-2:])
        lines = slice(scale * top, scale * top + len(down))
        places = slice(scale * left, scale * left + len(across))
        total[..., lines, places] += pixels * down[:, None] * across
        weights[..., lines, places] += down[:, None] * across
    return total / weights


def _starts(size: int, tile: int, overlap: int) -> range:
    """Return the starts of tiles along a side of `size`. The last tiles may be shorter."""
    return range(0, size - overlap, tile - overlap) if size > tile else range(1)


def _ramp(size: int, feather: int) -> torch.Tensor:
    """Return weights along a side: they rise to 1 over `feather` pixels and fall again. All 1 if that is too long."""
    if feather >= size:
        return torch.ones(size)
    place = torch.arange(1, size + 1) / max(1, feather)
    return place.clamp(max=1) * place.flip(0).clamp(max=1)
