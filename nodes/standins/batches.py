"""Frames out of a batch, and a batch several times: latents and images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import inputs

if TYPE_CHECKING:
    import torch


def _part(count: int, first: int, length: int) -> slice:
    """`length` of `count` rows from `first` on, as many as there are, and at least the last one."""
    first = min(count - 1, first)
    return slice(first, min(count, first + length))


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
        count = samples["samples"].shape[0]
        part = _part(count, batch_index, length)
        places = list(samples.get("batch_index", range(count)))[part]
        return ({**samples, "samples": samples["samples"][part].clone(), "batch_index": places},)


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
        repeated = {**samples, "samples": samples["samples"].repeat(amount, 1, 1, 1)}
        places = samples.get("batch_index")
        if places is not None:
            step = max(places) - min(places) + 1
            repeated["batch_index"] = [place + step * turn for turn in range(amount) for place in places]
        return (repeated,)


class ImageFromBatch:
    """IMAGE -> some of its frames."""

    DESCRIPTION = "Takes frames out of a batch of images."
    CATEGORY = "image/batch"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The frames taken.",)
    FUNCTION = "frombatch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": inputs.socket("IMAGE", "The frames to take from."),
                "batch_index": (
                    "INT",
                    {"default": 0, "min": 0, "max": 4095, "tooltip": "Number of the first, from 0."},
                ),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "How many frames are taken."}),
            }
        }

    def frombatch(self, image: torch.Tensor, batch_index: int, length: int) -> tuple[torch.Tensor]:
        """A copy of the frames."""
        return (image[_part(image.shape[0], batch_index, length)].clone(),)
