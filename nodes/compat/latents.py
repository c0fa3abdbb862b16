"""Compat nodes that change a LATENT between stages: select, repeat and resize frames."""

from __future__ import annotations

from typing import Any

from .. import wire_formats
from ..base import Node
from . import inputs, scaling
from .values import raise_if_refused

METHODS = ("nearest-exact", "bilinear", "area", "bicubic")
"""Interpolations of latents. lanczos is for 8-bit images only."""
ONLY_IN_COMFYUI = "bislerp"


class LatentFromBatch(Node):
    """LATENT -> LATENT of some frames. They keep their frame numbers, so that a sampler draws the noise of those."""

    DESCRIPTION = "Takes frames out of a latent. They remember their places, so that they get the noise of those."
    CATEGORY = "latent/batch"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The frames taken.",)
    INPUTS = {
        "samples": inputs.socket("LATENT", "The frames to take from."),
        "batch_index": inputs.integer(0, 0, 63, "Number of the first, from 0."),
        "length": inputs.integer(1, 1, 64, "How many frames are taken."),
    }

    def run(self, samples: dict[str, Any], batch_index: int, length: int) -> tuple[dict[str, Any]]:
        """Return `length` frames from `batch_index` on. Both are limited to the frames of the LATENT."""
        count = wire_formats.samples(samples).shape[0]
        first = min(count - 1, batch_index)
        part = slice(first, first + length)
        numbers = list(samples.get("batch_index", range(count)))[part]
        return ({**wire_formats.with_samples(samples, samples["samples"][part].clone()), "batch_index": numbers},)


class RepeatLatentBatch(Node):
    """LATENT -> LATENT with all frames repeated in order."""

    DESCRIPTION = "Repeats the frames of a latent, all of them one after the other."
    CATEGORY = "latent/batch"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The frames, `amount` times.",)
    INPUTS = {
        "samples": inputs.socket("LATENT", "The frames to repeat."),
        "amount": inputs.integer(1, 1, 64, "How often they are there."),
    }

    def run(self, samples: dict[str, Any], amount: int) -> tuple[dict[str, Any]]:
        """Return the frames `amount` times. Repeats continue the frame numbers of `batch_index`."""
        frames = wire_formats.samples(samples)
        repeated = wire_formats.with_samples(samples, frames.repeat(amount, *[1] * (frames.ndim - 1)))
        numbers = samples.get("batch_index")
        if numbers is not None:
            step = max(numbers) - min(numbers) + 1
            repeated["batch_index"] = [number + step * turn for turn in range(amount) for number in numbers]
        return (repeated,)


class LatentUpscaleBy(Node):
    """LATENT -> LATENT of another size, by interpolation."""

    DESCRIPTION = "Resizes the frames of a latent by a factor. bislerp runs only inside ComfyUI."
    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The frames in the new size.",)
    INPUTS = {
        "samples": inputs.socket("LATENT", "The frames to resize."),
        "upscale_method": ([*METHODS, ONLY_IN_COMFYUI], {"tooltip": "How new latent pixels are made."}),
        "scale_by": inputs.scale_by(1.5),
    }

    @classmethod
    def VALIDATE_INPUTS(cls, upscale_method: str | None = None) -> bool | str:
        """Return True if the method runs without ComfyUI or is linked (None), else a message."""
        if upscale_method is None or upscale_method in METHODS:
            return True
        if upscale_method == ONLY_IN_COMFYUI:
            return f"{upscale_method} runs only inside ComfyUI. Use bilinear or bicubic."
        return f'the method for latents must be one of {", ".join(METHODS)}, got "{upscale_method}"'

    def run(self, samples: dict[str, Any], upscale_method: str, scale_by: float) -> tuple[dict[str, Any]]:
        """Return the resized frames. Raises SettingError for a method that needs ComfyUI or an empty result."""
        raise_if_refused(self.VALIDATE_INPUTS(upscale_method))
        channels_last = wire_formats.read_latent(samples).clips.flatten(0, 1).movedim(1, -1)
        scaled = scaling.scale_images_by(channels_last, upscale_method, scale_by).movedim(-1, 1)
        return ({**samples, "samples": scaled},)
