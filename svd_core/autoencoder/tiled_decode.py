"""Decoding frame by frame in tiles, as ComfyUI's VAEDecodeTiled does: little memory, and no frame sees another.

For the least memory without that loss there is `decode.py`, whose exact mode streams. This one keeps saved graphs'
results (comfy/sd.py, decode_tiled_; comfy/utils.py, tiled_scale_multidim).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from ..errors import NonFiniteError, SettingError
from ..media.image_ops import to_images
from ..models.components import Vae
from .decode import SCALE, refuse_faults


def decode_in_tiles(
    vae: Vae,
    latents: torch.Tensor,
    tile: int,
    overlap: int,
    device: torch.device,
    on_frame: Callable[[int], None] = lambda done: None,
    on_nonfinite: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Unscaled latents (F, 4, h, w), each frame on its own: images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    tile     side of a tile, overlap what neighbours share, in latent pixels

    Each frame is decoded three times, in square tiles and in two kinds of long ones, and the three are averaged. The
    decoder is on `device`. What `on_frame`, told the frames done, raises stops the work. `on_nonfinite` is told the
    numbers
    of frames with NaN or infinity, which are then not there; without it they raise NonFiniteError. Raises SettingError
    when tiles would not move on.
    """
    if not 0 <= overlap < tile // 2:
        raise SettingError(f"tiles of {tile} latent pixels must overlap by less than half of that, got {overlap}")
    shapes = ((2 * tile, tile // 2), (tile // 2, 2 * tile), (tile, tile))

    def decode(piece: torch.Tensor) -> torch.Tensor:
        return vae.decode_clip(piece.to(device)).float().cpu()

    images = torch.empty((latents.shape[0], SCALE * latents.shape[2], SCALE * latents.shape[3], 3))
    for index, frame in enumerate(latents.split(1)):
        passes = {shape: _blended(decode, frame, shape, overlap) for shape in _different(frame, shapes)}
        pixels = torch.stack([passes[_fitted(frame, shape)] for shape in shapes]).mean(0)
        try:
            refuse_faults(pixels, index, len(latents))
            images[index] = to_images(pixels)[0]
        except NonFiniteError:
            if on_nonfinite is None:
                raise
            on_nonfinite(index)
        on_frame(index + 1)
    return images


def _fitted(frame: torch.Tensor, shape: tuple[int, int]) -> tuple[int, int]:
    """A tile's shape, cut to the frame's: tiles that are larger than the frame are all the same."""
    return min(shape[0], frame.shape[2]), min(shape[1], frame.shape[3])


def _different(frame: torch.Tensor, shapes: tuple[tuple[int, int], ...]) -> set[tuple[int, int]]:
    return {_fitted(frame, shape) for shape in shapes}


def _blended(
    decode: Callable[[torch.Tensor], torch.Tensor], frame: torch.Tensor, shape: tuple[int, int], overlap: int
) -> torch.Tensor:
    """Pixels (1, 3, 8h, 8w) of a frame (1, 4, h, w): the mean of all tiles, whose weights fall towards their edges."""
    height, width = frame.shape[-2:]
    total = torch.zeros((1, 3, SCALE * height, SCALE * width))
    weights = torch.zeros_like(total)
    rows, columns = (_starts(*sizes, overlap) for sizes in zip((height, width), shape, strict=True))
    for top, left in itertools.product(rows, columns):
        pixels = decode(frame[..., top : top + shape[0], left : left + shape[1]])
        down, across = (_ramp(size, SCALE * overlap) for size in pixels.shape[-2:])
        lines = slice(SCALE * top, SCALE * top + len(down))
        places = slice(SCALE * left, SCALE * left + len(across))
        total[..., lines, places] += pixels * down[:, None] * across
        weights[..., lines, places] += down[:, None] * across
    return total / weights


def _starts(size: int, tile: int, overlap: int) -> range:
    """Where tiles begin along a side of `size`; the last ones may be shorter."""
    return range(0, size - overlap, tile - overlap) if size > tile else range(1)


def _ramp(size: int, feather: int) -> torch.Tensor:
    """Weights along a side: even steps up to 1 over `feather` pixels, and down again; all 1 where that is too long."""
    if feather >= size:
        return torch.ones(size)
    place = torch.arange(1, size + 1) / max(1, feather)
    return place.clamp(max=1) * place.flip(0).clamp(max=1)
