"""Pictures in, to another size, and out of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ...svd_core.errors import ImageError
from ...svd_core.media.hashing import file_sha256
from ...svd_core.runtime.runtime import forward_warnings, get_runtime
from .. import wire_formats
from . import folders, scaling

if TYPE_CHECKING:
    import torch


class LoadImage:
    """A picture file of the input folder as IMAGE and MASK."""

    DESCRIPTION = "Loads a picture from the input folder. An animation becomes a batch of its frames."
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    OUTPUT_TOOLTIPS = ("The picture, without its transparency.", "1 where the picture is transparent.")
    FUNCTION = "load_image"
    FILE_INPUTS = ("image",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = 'A picture in the input folder; "name.png [output]" takes one from the output folder.'
        return {"required": {"image": (folders.input_pictures(), {"image_upload": True, "tooltip": tooltip})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None = None) -> Literal[True] | str:
        """True, or why the name means no file. A linked name is None here and is looked up when it is known."""
        if image is None:
            return True
        try:
            folders.annotated_file(image)
        except ImageError as error:
            return f"Invalid image file: {error}".rstrip(".")
        return True

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        """The sha256 of the file's content, as hex."""
        return file_sha256(folders.annotated_file(image))

    def load_image(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, H, W, 3) in [0, 1] and mask (B, H, W), or (B, 64, 64) of zeros for a picture without alpha.

        Transparent parts keep the colours that the file has there, as in core, unless the host's background says
        otherwise.
        """
        from ...svd_core.media.image_io import load_image

        loaded = load_image(folders.annotated_file(image), get_runtime().background)
        forward_warnings(loaded.warnings)
        return loaded.images, loaded.mask


class ImageScale:
    """IMAGE to another size, by ComfyUI's methods."""

    DESCRIPTION = "Resizes images. A width or height of 0 is filled in from the other one, keeping the proportions."
    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The images in the new size.",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 0, "max": scaling.LARGEST_SIDE, "step": 1}
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The images to resize."}),
                "upscale_method": (
                    list(scaling.METHODS),
                    {"tooltip": "How new pixels are made. lanczos and area are good for making smaller."},
                ),
                "width": ("INT", {**side, "tooltip": "New width in pixels; 0 follows the height."}),
                "height": ("INT", {**side, "tooltip": "New height in pixels; 0 follows the width."}),
                "crop": (
                    list(scaling.CROPS),
                    {"tooltip": "center cuts the longer side first, so that nothing is stretched."},
                ),
            }
        }

    def upscale(
        self, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: str
    ) -> tuple[torch.Tensor]:
        """images (B, H, W, C) -> (B, height, width, C)."""
        return (scaling.scale_images(wire_formats.images(image), upscale_method, width, height, crop),)


class ImageScaleBy:
    """IMAGE to a multiple of its size, by ComfyUI's methods."""

    DESCRIPTION = "Resizes images by a factor, keeping the proportions."
    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    OUTPUT_TOOLTIPS = ("The images in the new size.",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        factor = {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01, "tooltip": "2 is twice as wide and high."}
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The images to resize."}),
                "upscale_method": (
                    list(scaling.METHODS),
                    {"tooltip": "How new pixels are made. lanczos and area are good for making smaller."},
                ),
                "scale_by": ("FLOAT", factor),
            }
        }

    def upscale(self, image: torch.Tensor, upscale_method: str, scale_by: float) -> tuple[torch.Tensor]:
        """images (B, H, W, C) -> both sides times scale_by, rounded. Raises SettingError when nothing is left."""
        return (scaling.scale_images_by(wire_formats.images(image), upscale_method, scale_by),)


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
                "image": ("IMAGE", {"tooltip": "The frames to take from."}),
                "batch_index": (
                    "INT",
                    {"default": 0, "min": 0, "max": 4095, "tooltip": "Number of the first, from 0."},
                ),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "How many frames are taken."}),
            }
        }

    def frombatch(self, image: torch.Tensor, batch_index: int, length: int) -> tuple[torch.Tensor]:
        """A copy of the frames."""
        images = wire_formats.images(image)
        first = min(images.shape[0] - 1, batch_index)
        return (images[first : first + length].clone(),)
