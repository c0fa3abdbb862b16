"""Compat nodes that load images, resize them and select them from a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...svd_core.errors import ImageError
from ...svd_core.media.hashing import file_sha256
from ...svd_core.media.image_io import load_image
from ...svd_core.runtime.runtime import forward_warnings, get_runtime
from .. import sockets, wire_formats
from ..base import Node
from . import folders, inputs, scaling

if TYPE_CHECKING:
    import torch


class LoadImage(Node):
    """Name of a file in the input folder -> IMAGE, MASK."""

    DESCRIPTION = "Loads a picture from the input folder. An animation becomes a batch of its frames."
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    OUTPUT_TOOLTIPS = ("The picture, without its transparency.", "1 where the picture is transparent.")
    FILE_INPUTS = ("image",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = 'A picture in the input folder; "name.png [output]" takes one from the output folder.'
        return {"required": {"image": (folders.input_images(), {"image_upload": True, "tooltip": tooltip})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None = None) -> bool | str:
        """Return True if the file exists or its name is linked (None), else a message."""
        try:
            if image is not None:
                folders.annotated_file(image)
        except ImageError as error:
            return f"Invalid image file: {error}".rstrip(".")
        return True

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        """Return the sha256 of the file's content, in hex."""
        return file_sha256(folders.annotated_file(image))

    def run(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, H, W, 3) in [0, 1] and masks (B, H, W), or zeros (B, 64, 64) for an image without alpha.

        As in core transparent pixels keep the file's color, unless the runtime has a background color.
        """
        loaded = load_image(folders.annotated_file(image), get_runtime().background)
        forward_warnings(get_runtime(), loaded.warnings)
        return loaded.images, loaded.mask


_IMAGES = inputs.socket("IMAGE", "The images to resize.")
_METHOD = (list(scaling.METHODS), {"tooltip": "How new pixels are made. lanczos and area are good for making smaller."})


def _side(tooltip: str) -> inputs.Input:
    return inputs.integer(512, 0, sockets.LARGEST_SIDE, tooltip, step=1)


class _Resizes(Node):
    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The images in the new size.",)


class ImageScale(_Resizes):
    """IMAGE -> IMAGE of another size, by ComfyUI's methods."""

    DESCRIPTION = "Resizes images. A width or height of 0 is filled in from the other one, keeping the proportions."
    INPUTS = {
        "image": _IMAGES,
        "upscale_method": _METHOD,
        "width": _side("New width in pixels; 0 follows the height."),
        "height": _side("New height in pixels; 0 follows the width."),
        "crop": (
            list(scaling.CROPS),
            {"tooltip": "center cuts the longer side first, so that nothing is stretched."},
        ),
    }

    def run(self, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[torch.Tensor]:
        """Resize images (B, H, W, C) to (B, height, width, C)."""
        return (scaling.scale_images(wire_formats.images(image), upscale_method, width, height, crop),)


class ImageScaleBy(_Resizes):
    """IMAGE -> IMAGE of a multiple of its size, by ComfyUI's methods."""

    DESCRIPTION = "Resizes images by a factor, keeping the proportions."
    INPUTS = {"image": _IMAGES, "upscale_method": _METHOD, "scale_by": inputs.scale_by(1.0)}

    def run(self, image: torch.Tensor, upscale_method: str, scale_by: float) -> tuple[torch.Tensor]:
        """Resize images (B, H, W, C) by a factor. Sides are rounded. Raises SettingError for an empty result."""
        return (scaling.scale_images_by(wire_formats.images(image), upscale_method, scale_by),)


class ImageFromBatch(Node):
    """IMAGE -> IMAGE of some frames."""

    DESCRIPTION = "Takes frames out of a batch of images."
    CATEGORY = "image/batch"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The frames taken.",)
    INPUTS = {
        "image": ("IMAGE", {"tooltip": "The frames to take from."}),
        "batch_index": inputs.integer(0, 0, 4095, "Number of the first, from 0."),
        "length": inputs.integer(1, 1, 4096, "How many frames are taken."),
    }

    def run(self, image: torch.Tensor, batch_index: int, length: int) -> tuple[torch.Tensor]:
        """Return a copy of `length` frames from `batch_index` on. Both are limited to the frames of the batch."""
        images = wire_formats.images(image)
        first = min(images.shape[0] - 1, batch_index)
        return (images[first : first + length].clone(),)
