"""The temporal VAE's decoder over a clip: all of it as one, or in explicit windows with context.

The decoder mixes frames, and its group norms pool over all frames of a call, so a window's frames depend on what is in
the window. Windows are therefore chosen by the caller, never by free memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import MemoryBudgetError, NonFiniteError, SettingError
from ..media.image_ops import to_images
from ..models.components import Vae
from ..runtime.memory import decode_bytes, format_bytes, spared_decode_bytes
from ..runtime.runtime import Runtime
from ..utils.nan_checks import DAMAGED, first_nonfinite

logger = logging.getLogger(__name__)

MODES = ("exact", "windowed")
CONTEXT = 2  # frames that SVDTemporalVAEDecode shows a window on each side by default
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


def largest(windows: list[Window]) -> int:
    """How many frames the window that sees most of them sees."""
    return max(window.last - window.first for window in windows)


def decode_window(
    vae: Vae,
    latents: torch.Tensor,
    window: Window,
    device: torch.device,
    on_progress: Callable[[float], None],
    offload_activations: bool = False,
) -> torch.Tensor:
    """The images (stop - start, 8h, 8w, 3) float32 CPU of the frames that a window of a clip (F, 4, h, w) keeps.

    on_share  called with the share of the window that is done. Raises NonFiniteError for NaN or infinity in one.
    """
    seen = latents[window.first : window.last].to(device)
    pixels = vae.decode_clip(seen, offload_activations, on_progress)
    kept = pixels[window.start - window.first : window.stop - window.first]
    refuse_faults(kept, window.start, len(latents))
    return to_images(kept.cpu())


def refuse_faults(pixels: torch.Tensor, first: int, frames: int) -> None:
    """Raise NonFiniteError when pixels (T, ...) of frame `first` and the next of `frames` hold NaN or infinity."""
    fault = first_nonfinite(pixels)
    if fault is not None:
        raise NonFiniteError(
            f"decoding gives NaN or infinity in frame {first + fault + 1} of {frames}. Use precision bf16 or "
            f"fp32, less guidance or more steps. Where fp32 was used, {DAMAGED}",
            code="numbers.frames",
        )


def decode_windows(
    vae: Vae,
    latents: torch.Tensor,
    windows: list[Window],
    device: torch.device,
    on_frames: Callable[[int], None] | None = None,
    offload_activations: bool = False,
    on_nonfinite: Callable[[Window], None] | None = None,
) -> torch.Tensor:
    """Decode one clip, unscaled latents (F, 4, h, w), window by window: images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    The decoder is on `device` and computes in its own dtype. `on_frames` is called with the number of frames done, some
    of them in part; what it raises stops the work. With `offload_activations` they lie on the CPU where that
    gives the same bits. With context 0 this is what diffusers' `decode_chunk_size` does.

    `on_nonfinite` is told the windows with NaN or infinity in their frames, that are then not there. Without it
    they raise NonFiniteError.
    """
    images = torch.empty((latents.shape[0], SCALE * latents.shape[2], SCALE * latents.shape[3], 3))
    tell = on_frames or (lambda done: None)
    for window in windows:
        try:
            made = decode_window(vae, latents, window, device, _part_of(window, tell), offload_activations)
            images[window.start : window.stop] = made
        except NonFiniteError:
            if on_nonfinite is None:
                raise
            on_nonfinite(window)
        tell(window.stop)
    return images


def _part_of(window: Window, tell: Callable[[int], None]) -> Callable[[float], None]:
    """From the share of a window that is done to the frames of the clip that are."""
    return lambda share: tell(window.start + int(share * (window.stop - window.start)))


def needs_activation_offload(
    vae: Vae, windows: list[Window], height: int, width: int, device: torch.device, free: int
) -> bool:
    """Whether activations must lie on the CPU for windows of latents height x width to fit into `free` bytes.

    Raises MemoryBudgetError, with the need and the way out, when not even that helps a clip that is decoded whole.
    """
    frames = largest(windows)
    need = decode_bytes(vae, frames, SCALE * height, SCALE * width)
    logger.info("decoding: takes about %s, %s are free", *map(format_bytes, (need, free)))
    if need <= free:
        return False
    may_spare = vae.streams and device.type != "cpu"
    least = spared_decode_bytes(vae, frames, SCALE * height, SCALE * width) if may_spare else need
    if least <= free:
        logger.info("decoding: activations lie on the CPU, which leaves about %s on the device", format_bytes(least))
        return True
    if len(windows) > 1:
        return may_spare  # the choice of windows was the user's: try
    chunk = max(1, frames * free // need - 4)
    windowed = (
        f"use SVDTemporalVAEDecode in mode windowed with chunk_size {chunk} and context {CONTEXT}, or fewer frames, or "
    )
    suggestion = "" if may_spare else windowed
    raise MemoryBudgetError(
        f"decoding {frames} frames of {SCALE * width}x{SCALE * height} as one clip (mode exact) needs about "
        f"{format_bytes(least)}, and {format_bytes(free)} are free; {suggestion or 'use '}a smaller size"
    )


def decoding_needs(runtime: Runtime, vae: Vae, windows: list[Window], height: int, width: int) -> str:
    """What decoding frames of height x width pixels in these windows takes, what there is, and the way out."""
    device, seen = runtime.device(), largest(windows)
    foretell = spared_decode_bytes if vae.streams and device.type != "cpu" else decode_bytes
    need, free = foretell(vae, seen, height, width), runtime.free_memory(device)
    kept = max(window.stop - window.start for window in windows)
    context = CONTEXT if len(windows) == 1 else max(window.start - window.first for window in windows)
    # no more than half: what was foretold for the windows that were tried has not sufficed
    fitting = (each for each in range(kept // 2, 0, -1) if foretell(vae, each + 2 * context, height, width) <= free)
    chunk = next(fitting, 1)
    suggestion = f"mode windowed with chunk_size {chunk} and context {context}, or " if kept > 1 else ""
    return (
        f"decoding {seen} frames of {width}x{height} together takes about {format_bytes(need)}, and "
        f"{format_bytes(free)} are free. Use {suggestion}a smaller size"
    )
