"""Decode a latent clip with the temporal VAE: all frames as one clip, or in explicit windows with context.

The decoder mixes frames, and its group norms pool over all frames of a call. A frame therefore depends on the other
frames of its window. The caller chooses the windows; free memory never does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import MemoryBudgetError, NonFiniteError, SettingError, counted
from ..media.image_ops import to_images
from ..models.components import Vae
from ..models.options import Activations
from ..runtime.memory import decode_bytes, format_bytes, offloaded_decode_bytes
from ..utils.nan_checks import DAMAGED, first_nonfinite

logger = logging.getLogger(__name__)

MODES = ("exact", "windowed")
ACTIVATION_WORDS: dict[Activations, str] = {
    "keep": "all activations on the device (keep)",
    "recompute": "activations on the device, the largest computed twice (recompute)",
    "offload": "activations on the CPU between layers (offload)",
}
CONTEXT = 2  # frames that SVDTemporalVAEDecode shows a window on each side by default


@dataclass(frozen=True)
class Window:
    """One decoder call: its input is frames first ... last - 1; frames start ... stop - 1 of its output are kept."""

    start: int
    stop: int
    first: int
    last: int


def plan_windows(frames: int, chunk_size: int, context: int) -> list[Window]:
    """Split frames into chunks of `chunk_size`, each decoded with up to `context` more frames on both sides.

    Every frame is kept exactly once, in order.

    Raises:
        SettingError: chunk_size is below 1 or context is negative.
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
    """Return the number of input frames of the largest window."""
    return max(window.last - window.first for window in windows)


def decode_window(
    vae: Vae,
    latents: torch.Tensor,
    window: Window,
    device: torch.device,
    on_progress: Callable[[float], None],
    activations: Activations = "recompute",
) -> torch.Tensor:
    """Decode the frames that a window of a clip (F, 4, h, w) keeps: images (stop - start, 8h, 8w, 3) float32 CPU.

    Args:
        on_progress: Called with the fraction of the window that is done.

    Raises:
        NonFiniteError: A frame holds NaN or infinity.
    """
    inputs = latents[window.first : window.last].to(device)
    pixels = vae.decode_clip(inputs, activations, on_progress)
    pixels = pixels[window.start - window.first : window.stop - window.first]
    check_finite_pixels(pixels, window.start, len(latents))
    return to_images(pixels).cpu()


def check_finite_pixels(pixels: torch.Tensor, first: int, frames: int) -> None:
    """Raise NonFiniteError if pixels (T, ...) of frames `first` to `first` + T - 1 hold NaN or infinity."""
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
    activations: Activations = "recompute",
    on_nonfinite: Callable[[Window], None] | None = None,
) -> torch.Tensor:
    """Decode one clip, unscaled latents (F, 4, h, w), window by window: images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    With context 0 this is diffusers' `decode_chunk_size`. The decoder computes in its own dtype.

    Args:
        device: Device of the decoder.
        on_frames: Called with the number of frames done, some of them in part. What it raises stops the work.
        activations: See `Vae.decode_clip`.
        on_nonfinite: Called with a window whose frames hold NaN or infinity; their pixels are undefined.

    Raises:
        NonFiniteError: A frame holds NaN or infinity, and there is no `on_nonfinite`.
    """
    images = torch.empty((latents.shape[0], vae.scale * latents.shape[2], vae.scale * latents.shape[3], 3))
    report = on_frames or (lambda done: None)
    for window in windows:
        try:
            images[window.start : window.stop] = decode_window(
                vae, latents, window, device, _frames_callback(window, report), activations
            )
        except NonFiniteError:
            if on_nonfinite is None:
                raise
            on_nonfinite(window)
        report(window.stop)
    return images


def _frames_callback(window: Window, on_frames: Callable[[int], None]) -> Callable[[float], None]:
    """Convert the fraction of a window that is done to the number of frames of the clip."""
    return lambda fraction: on_frames(window.start + int(fraction * (window.stop - window.start)))


def place_activations(
    vae: Vae, windows: list[Window], height: int, width: int, device: torch.device, free: int
) -> Activations:
    """Decide where the activations of windows of latents (height, width) are: the fastest that fits into `free` bytes.

    On a CPU none is kept, as memory there is shared with other programs.

    Raises:
        MemoryBudgetError: A clip that is decoded as one does not fit even so.
    """
    frames = largest(windows)
    need = decode_bytes(vae, frames, vae.scale * height, vae.scale * width)
    kept = frames * vae.base_channels * vae.scale**2 * height * width * vae.itemsize
    may_offload = vae.streams and device.type != "cpu"
    least = offloaded_decode_bytes(vae, frames, vae.scale * height, vae.scale * width) if may_offload else need
    if need + kept <= free and may_offload:
        return _planned("keep", vae, frames, need + kept, free)
    if need <= free:
        return _planned("recompute", vae, frames, need, free)
    if least <= free or len(windows) > 1:  # the user chose the windows: try
        return _planned("offload" if may_offload else "recompute", vae, frames, least, free)
    chunk = max(1, frames * free // need - 4)
    windowed = f"use mode windowed with chunk_size {chunk} and context {CONTEXT}, or fewer frames, or "
    suggestion = "" if may_offload else windowed
    raise MemoryBudgetError(
        f"decoding {counted(frames, 'frame')} of {vae.scale * width}x{vae.scale * height} as one clip (mode exact) "
        f"needs about {format_bytes(least)}, and {format_bytes(free)} are free; {suggestion or 'use '}a smaller size"
    )


def _planned(activations: Activations, vae: Vae, frames: int, need: int, free: int) -> Activations:
    """Log where the activations of a window of so many frames are, and return it."""
    logger.info(
        "decoding: %s at a time, %s, about %s, %s are free",
        counted(frames, "frame"),
        ACTIVATION_WORDS[activations] if vae.streams else "in one call",
        format_bytes(need),
        format_bytes(free),
    )
    return activations


def describe_memory_need(
    vae: Vae, windows: list[Window], height: int, width: int, device: torch.device, free: int
) -> str:
    """Describe the memory that windows of height x width pixels need, the `free` bytes, and a fix."""
    frames = largest(windows)
    estimate = offloaded_decode_bytes if vae.streams and device.type != "cpu" else decode_bytes
    need = estimate(vae, frames, height, width)
    kept = max(window.stop - window.start for window in windows)
    context = CONTEXT if len(windows) == 1 else max(window.start - window.first for window in windows)
    # At most half: the estimate for the windows that were tried was too low.
    fitting = (each for each in range(kept // 2, 0, -1) if estimate(vae, each + 2 * context, height, width) <= free)
    chunk = next(fitting, 1)
    suggestion = f"mode windowed with chunk_size {chunk} and context {context}, or " if kept > 1 else ""
    return (
        f"decoding {counted(frames, 'frame')} of {width}x{height} together takes about {format_bytes(need)}, and "
        f"{format_bytes(free)} are free. Use {suggestion}a smaller size"
    )
