"""Pictures and animations out: SaveImage, PreviewImage, SaveAnimatedWEBP and SaveAnimatedPNG."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...svd_core.media.metadata import Metadata
from ...svd_core.runtime.runtime import Folder, forward_warnings, get_runtime
from ...svd_core.utils.output_files import OutputPath, next_counter, resolve_prefix, save_numbered
from ...svd_core.utils.redaction import redacted
from ...svd_core.utils.warnings import RunWarning

if TYPE_CHECKING:
    import torch

PREFIX_TOOLTIP = (
    'How the file\'s name begins; "video/ComfyUI" puts it into a subfolder. %width%, %height%, %year%, %month%, %day%, '
    "%hour%, %minute% and %second% are filled in."
)
HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def graph_metadata(prompt: Any, extra_pnginfo: dict[str, Any] | None) -> Metadata:
    """What ComfyUI puts into its files: the API graph as "prompt", and all of extra_pnginfo, such as "workflow".

    Without secrets and absolute paths, see `redacted`: what is in a file goes where the file goes.
    """
    return redacted({**({} if prompt is None else {"prompt": prompt}), **(extra_pnginfo or {})})


def ui_entry(filename: str, place: OutputPath, kind: Folder) -> dict[str, str]:
    """A saved file as a node's `ui` result tells it."""
    return {"filename": filename, "subfolder": place.subfolder, "type": kind}


def place_in(kind: Folder, prefix: str, images: torch.Tensor) -> OutputPath:
    """The place that a prefix means for images (B, H, W, C). Raises SettingError and OutputError for no images."""
    from ...svd_core.media.video_io import check_frames

    check_frames(images)
    return resolve_prefix(get_runtime().folder(kind), prefix, width=images.shape[2], height=images.shape[1])


def save_moving(
    images: torch.Tensor,
    prefix: str,
    extension: str,
    encode: Callable[[Path], Iterable[RunWarning] | None],
    animated: bool = True,
) -> dict[str, Any]:
    """Save images (F, H, W, C) to one file in the output folder. Return the node's `ui` result.

    `encode` fills the file and may return warnings.
    """
    place = place_in("output", prefix, images)
    run_warnings: list[RunWarning] = []
    saved = save_numbered(place, extension, lambda file: run_warnings.extend(encode(file) or ()))
    forward_warnings(run_warnings)
    return {"ui": {"images": [ui_entry(saved.filename, place, "output")], "animated": (animated,)}}


def _save_pngs(
    images: torch.Tensor, kind: Folder, prefix: str, metadata: Metadata, compress_level: int
) -> dict[str, Any]:
    """Each image (H, W, C) of the batch in a file of its own, with numbers that follow each other."""
    from ...svd_core.media.video_io import encode_png

    place = place_in(kind, prefix, images)
    counter = next_counter(place)
    entries = []
    for batch_number, image in enumerate(images):
        numbered = replace(place, name=place.name.replace("%batch_num%", str(batch_number)))

        def write(file, image=image):
            encode_png(file, image, metadata, compress_level)

        saved = save_numbered(numbered, "png", write, counter)
        entries.append(ui_entry(saved.filename, place, kind))
        counter = saved.counter + 1
    return {"ui": {"images": entries}}


class SaveImage:
    """IMAGE to one png per image in the output folder."""

    DESCRIPTION = "Saves the input images to the output folder, with the graph inside."
    CATEGORY = "image"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FOLDER = "output"
    FUNCTION = "save_images"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The images to save."}),
                "filename_prefix": (
                    "STRING",
                    {"default": "ComfyUI", "tooltip": f"{PREFIX_TOOLTIP} %batch_num% is the image's place, from 0."},
                ),
            },
            "hidden": HIDDEN,
        }

    def save_images(
        self,
        images: torch.Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """images (B, H, W, 3 or 4) in [0, 1]."""
        return _save_pngs(images, "output", filename_prefix, graph_metadata(prompt, extra_pnginfo), compress_level=4)


class PreviewImage:
    """IMAGE to one png per image in the temporary folder."""

    DESCRIPTION = "Saves the input images to the temporary folder, to look at and forget."
    CATEGORY = "image"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save_images"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE", {"tooltip": "The images to look at."})}, "hidden": HIDDEN}

    def save_images(
        self, images: torch.Tensor, prompt: Any = None, extra_pnginfo: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """images (B, H, W, 3 or 4) in [0, 1]."""
        letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(5))
        metadata = graph_metadata(prompt, extra_pnginfo)
        return _save_pngs(images, "temp", f"ComfyUI_temp_{letters}", metadata, compress_level=1)


class SaveAnimatedWEBP:
    """IMAGE to one animated WebP in the output folder."""

    DESCRIPTION = "Saves the input images as one animated WebP in the output folder, with the graph inside."
    CATEGORY = "image/animation"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FOLDER = "output"
    FUNCTION = "save_images"

    _METHODS = {"default": 4, "fastest": 0, "slowest": 6}  # libwebp's method

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames of the animation."}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": PREFIX_TOOLTIP}),
                "fps": (
                    "FLOAT",
                    {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01, "tooltip": "Frames per second."},
                ),
                "lossless": ("BOOLEAN", {"default": True, "tooltip": "Keep every pixel; the file is larger."}),
                "quality": (
                    "INT",
                    {
                        "default": 80,
                        "min": 0,
                        "max": 100,
                        "tooltip": "How good it looks; when lossless, how much work goes into a smaller file.",
                    },
                ),
                "method": (list(cls._METHODS), {"tooltip": "fastest makes larger files, slowest smaller ones."}),
            },
            "hidden": HIDDEN,
        }

    def save_images(
        self,
        images: torch.Tensor,
        fps: float,
        filename_prefix: str,
        lossless: bool,
        quality: int,
        method: str,
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """images (F, H, W, 3 or 4) in [0, 1]."""
        from ...svd_core.media.video_io import check_frames, encode_webp

        check_frames(images)
        metadata, effort = graph_metadata(prompt, extra_pnginfo), self._METHODS[method]

        def encode(file: Path) -> None:
            encode_webp(file, images, fps, lossless, quality, effort, metadata)

        return save_moving(images, filename_prefix, "webp", encode, animated=len(images) != 1)


class SaveAnimatedPNG:
    """IMAGE to one animated PNG in the output folder."""

    DESCRIPTION = "Saves the input images as one animated PNG in the output folder, with the graph inside."
    CATEGORY = "image/animation"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FOLDER = "output"
    FUNCTION = "save_images"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames of the animation."}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": PREFIX_TOOLTIP}),
                "fps": (
                    "FLOAT",
                    {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01, "tooltip": "Frames per second."},
                ),
                "compress_level": (
                    "INT",
                    {"default": 4, "min": 0, "max": 9, "tooltip": "How much work goes into a smaller file."},
                ),
            },
            "hidden": HIDDEN,
        }

    def save_images(
        self,
        images: torch.Tensor,
        fps: float,
        compress_level: int,
        filename_prefix: str = "ComfyUI",
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """images (F, H, W, 3 or 4) in [0, 1]."""
        from ...svd_core.media.video_io import encode_apng

        metadata = graph_metadata(prompt, extra_pnginfo)
        return save_moving(
            images, filename_prefix, "png", lambda file: encode_apng(file, images, fps, compress_level, metadata)
        )
