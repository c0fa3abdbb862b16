"""The temporal VAE's decoder over a clip: all frames at once, or in explicit windows with context.

The decoder mixes frames, and its group norms pool over all frames of a call, so a window's frames depend on what is in
the window. Windows are therefore chosen by the caller, never by free memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .checkpoint.parts import Vae
from .errors import MemoryBudgetError, SettingError
from .images import to_images
from .memory import decode_bytes, in_words

MODES = ("exact", "windowed")
SCALE = 8  # pixels per latent pixel, each way


@dataclass(frozen=True)
class Window:
    """One decoder call: it sees frames first ... last - 1, of which start ... stop - 1 are kept."""

    start: int
    stop: int
    first: int
    last: int


def plan_windows(frames: int, chunk_size: int, context: int) -> list[Window]:
    """Cut `frames` frames into chunks of `chunk_size`, each seen with up to `context` frames more on both sides.

    Every frame is kept exactly once, in order. Raises SettingError for an empty chunk or a negative context.
    """
    if chunk_size < 1:
        raise SettingError(f"chunk_size must be 1 or more, got {chunk_size}")
    if context < 0:
        raise SettingError(f"context must be 0 or more, got {context}")
    starts = range(0, frames, chunk_size)
    stops = [min(start + chunk_size, frames) for start in starts]
    return [
        Window(start, stop, max(0, start - context), min(frames, stop + context))
        for start, stop in zip(starts, stops, strict=True)
    ]


def decode_windows(
    vae: Vae,
    latents: torch.Tensor,
    windows: list[Window],
    device: torch.device,
    on_window: Callable[[Window], None] | None = None,
) -> torch.Tensor:
    """Decode one clip, unscaled latents (F, 4, h, w), window by window: images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    The decoder is on `device` and computes in its own dtype. What `on_window` raises stops the work. With context 0
    this is what diffusers' `decode_chunk_size` does.
    """
    images = torch.empty((latents.shape[0], SCALE * latents.shape[2], SCALE * latents.shape[3], 3))
    for window, pixels in _decoded(vae, latents, windows, device):
        images[window.start : window.stop] = to_images(pixels)
        if on_window is not None:
            on_window(window)
    return images


def whole_clip(vae: Vae, latents: torch.Tensor, free_memory: int) -> list[Window]:
    """The one window of mode `exact`: every frame sees every other.

    Raises MemoryBudgetError, with the need and the way out, when one call on the clip (F, 4, h, w) does not fit into
    `free_memory` bytes.
    """
    frames, _, height, width = latents.shape
    need = decode_bytes(vae, frames, SCALE * height, SCALE * width)
    if need > free_memory:
        per_frame = need // frames
        chunk = max(1, free_memory // per_frame - 4)
        raise MemoryBudgetError(
            f"decoding {frames} frames of {SCALE * width}x{SCALE * height} at once (mode exact) needs about "
            f"{in_words(need)}, and {in_words(free_memory)} are free; use mode windowed with chunk_size {chunk} and "
            f"context 2, or fewer frames, or a smaller size"
        )
    return plan_windows(frames, frames, 0)


def _decoded(
    vae: Vae, latents: torch.Tensor, windows: list[Window], device: torch.device
) -> Iterator[tuple[Window, torch.Tensor]]:
    """Each window with the pixels (kept frames, 3, 8h, 8w) of its kept frames."""
    for window in windows:
        pixels = vae.decode_clip(latents[window.first : window.last].to(device))
        yield window, pixels[window.start - window.first : window.stop - window.first].cpu()
