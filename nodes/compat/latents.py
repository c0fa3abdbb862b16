"""What is done with a LATENT between stages: frames taken out of it, its frames repeated, its frames made larger."""

from __future__ import annotations

from typing import Any

from ...svd_core.errors import SettingError
from .. import wire_formats
from . import inputs, scaling

METHODS = ("nearest-exact", "bilinear", "area", "bicubic")
"""Of latents; lanczos is for pictures, and needs 8 bits."""
ONLY_IN_COMFYUI = "bislerp"


class LatentFromBatch:
    """LATENT -> some of its frames, which remember their places, so that a sampler draws their own noise."""

    DESCRIPTION = "Takes frames out of a latent. They remember their places, so that they get the noise of those."
    CATEGORY = "latent/batch"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The frames taken.",)
    FUNCTION = "frombatch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": inputs.socket("LATENT", "The frames to take from."),
                "batch_index": ("INT", {"default": 0, "min": 0, "max": 63, "tooltip": "Number of the first, from 0."}),
                "length": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "How many frames are taken."}),
            }
        }

    def frombatch(self, samples: dict[str, Any], batch_index: int, length: int) -> tuple[dict[str, Any]]:
        """A new LATENT."""
        count = wire_formats.samples(samples).shape[0]
        first = min(count - 1, batch_index)
        part = slice(first, first + length)
        places = list(samples.get("batch_index", range(count)))[part]
        return ({**wire_formats.with_frames(samples, samples["samples"][part].clone()), "batch_index": places},)


class RepeatLatentBatch:
    """LATENT -> the same frames several times, one after the other."""

    DESCRIPTION = "Repeats the frames of a latent, all of them one after the other."
    CATEGORY = "latent/batch"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The frames, `amount` times.",)
    FUNCTION = "repeat"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": inputs.socket("LATENT", "The frames to repeat."),
                "amount": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "How often they are there."}),
            }
        }

    def repeat(self, samples: dict[str, Any], amount: int) -> tuple[dict[str, Any]]:
        """A new LATENT. Repeats go on counting the places of `batch_index`."""
        frames = wire_formats.samples(samples)
        repeated = wire_formats.with_frames(samples, frames.repeat(amount, *[1] * (frames.ndim - 1)))
        places = samples.get("batch_index")
        if places is not None:
            step = max(places) - min(places) + 1
            repeated["batch_index"] = [place + step * turn for turn in range(amount) for place in places]
        return (repeated,)


class LatentUpscaleBy:
    """LATENT -> the same frames larger or smaller, by interpolation."""

    DESCRIPTION = "Resizes the frames of a latent by a factor. bislerp runs only inside ComfyUI."
    CATEGORY = "latent"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The frames in the new size.",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        factor = {"default": 1.5, "min": 0.01, "max": 8.0, "step": 0.01, "tooltip": "2 is twice as wide and high."}
        return {
            "required": {
                "samples": inputs.socket("LATENT", "The frames to resize."),
                "upscale_method": (
                    [*METHODS, ONLY_IN_COMFYUI],
                    {"tooltip": "How new latent pixels are made."},
                ),
                "scale_by": ("FLOAT", factor),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, upscale_method: str | None = None) -> bool | str:
        """True, or why this method cannot be had. A wired one is None and is looked at when it is known."""
        if upscale_method is None or upscale_method in METHODS:
            return True
        if upscale_method == ONLY_IN_COMFYUI:
            return f"{upscale_method} runs only inside ComfyUI; choose bilinear or bicubic"
        return f'there is no method "{upscale_method}" for latents; choose one of {", ".join(METHODS)}'

    def upscale(self, samples: dict[str, Any], upscale_method: str, scale_by: float) -> tuple[dict[str, Any]]:
        """A new LATENT. Raises SettingError for a method that cannot be had, or when nothing is left."""
        answer = self.VALIDATE_INPUTS(upscale_method)
        if answer is not True:
            raise SettingError(str(answer))
        channels_last = wire_formats.read_latent(samples).clips.flatten(0, 1).movedim(1, -1)
        scaled = scaling.scale_images_by(channels_last, upscale_method, scale_by).movedim(-1, 1)
        return ({**samples, "samples": scaled},)
