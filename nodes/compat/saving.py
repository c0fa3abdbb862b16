"""Compat nodes that save images and animations: SaveImage, PreviewImage, SaveAnimatedWEBP, SaveAnimatedPNG."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...svd_core.media.metadata import Metadata
from ...svd_core.media.video_io import check_frames, encode_apng, encode_png, encode_webp
from ...svd_core.runtime.runtime import Folder, forward_warnings, get_runtime
from ...svd_core.utils.output_files import OutputPath, next_counter, resolve_prefix, save_numbered
from ...svd_core.utils.redaction import redacted
from ...svd_core.utils.warnings import RunWarning
from ..base import Node
from . import inputs

if TYPE_CHECKING:
    import torch


def filename_prefix(default: str, more: str = "") -> inputs.Input:
    """Declare the beginning of the file's name. `more` is appended to the tooltip."""
    tooltip = (
        'How the file\'s name begins; "video/ComfyUI" puts it into a subfolder. %width%, %height%, %year%, %month%, '
        "%day%, %hour%, %minute% and %second% are filled in."
    )
    return ("STRING", {"default": default, "tooltip": tooltip + more})


def graph_metadata(prompt: Any, extra_pnginfo: dict[str, Any] | None) -> Metadata:
    """Return the metadata of ComfyUI's files: the API graph as "prompt", and extra_pnginfo, such as "workflow".

    Secrets and absolute paths are removed, see `redacted`, because files are passed on.
    """
    return redacted({**({} if prompt is None else {"prompt": prompt}), **(extra_pnginfo or {})})


def save_animation(
    images: torch.Tensor,
    prefix: str,
    extension: str,
    encode: Callable[[Path], Iterable[RunWarning] | None],
    animated: bool = True,
) -> dict[str, Any]:
    """Save images (F, H, W, C) as one file in the output folder. Return the node's `ui` result.

    `encode` fills the file and may return warnings.
    """
    output_path = _output_path("output", prefix, images)
    run_warnings: list[RunWarning] = []
    saved = save_numbered(output_path, extension, lambda file: run_warnings.extend(encode(file) or ()))
    forward_warnings(get_runtime(), run_warnings)
    return {"ui": {"images": [_ui_entry(saved.filename, output_path, "output")], "animated": (animated,)}}


def _save_pngs(
    images: torch.Tensor, kind: Folder, prefix: str, metadata: Metadata, compress_level: int
) -> dict[str, Any]:
    """Save each image (H, W, C) of a batch as a PNG with consecutive numbers. Return the node's `ui` result."""
    output_path = _output_path(kind, prefix, images)
    counter = next_counter(output_path)
    entries = []
    for index, image in enumerate(images):
        numbered = replace(output_path, name=output_path.name.replace("%batch_num%", str(index)))

        def write(file, image=image):
            encode_png(file, image, metadata, compress_level)

        saved = save_numbered(numbered, "png", write, counter)
        entries.append(_ui_entry(saved.filename, output_path, kind))
        counter = saved.counter + 1
    return {"ui": {"images": entries}}


def _output_path(kind: Folder, prefix: str, images: torch.Tensor) -> OutputPath:
    """Resolve a prefix for images (B, H, W, C). Raises SettingError or OutputError if they cannot be saved."""
    check_frames(images)
    return resolve_prefix(get_runtime().folder(kind), prefix, width=images.shape[2], height=images.shape[1])


def _ui_entry(filename: str, output_path: OutputPath, kind: Folder) -> dict[str, str]:
    return {"filename": filename, "subfolder": output_path.subfolder, "type": kind}


class Saver(Node):
    """A node that writes files to FOLDER, with the graph inside. Engines and batches look for those of "output"."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FOLDER = "output"
    HIDDEN_INPUTS = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


class SaveImage(Saver):
    """IMAGE -> one PNG per image in the output folder."""

    DESCRIPTION = "Saves the input images to the output folder, with the graph inside."
    CATEGORY = "image"
    INPUTS = {
        "images": ("IMAGE", {"tooltip": "The images to save."}),
        "filename_prefix": filename_prefix("ComfyUI", " %batch_num% is the image's place, from 0."),
    }

    def run(
        self,
        images: torch.Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Save images (B, H, W, 3 or 4) in [0, 1]."""
        return _save_pngs(images, "output", filename_prefix, graph_metadata(prompt, extra_pnginfo), compress_level=4)


class PreviewImage(Saver):
    """IMAGE -> one PNG per image in the temporary folder."""

    DESCRIPTION = "Saves the input images to the temporary folder, to look at and forget."
    CATEGORY = "image"
    FOLDER = "temp"
    INPUTS = {"images": ("IMAGE", {"tooltip": "The images to look at."})}

    def run(
        self, images: torch.Tensor, prompt: Any = None, extra_pnginfo: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Save images (B, H, W, 3 or 4) in [0, 1]."""
        letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(5))
        metadata = graph_metadata(prompt, extra_pnginfo)
        return _save_pngs(images, "temp", f"ComfyUI_temp_{letters}", metadata, compress_level=1)


class SaveAnimatedWEBP(Saver):
    """IMAGE -> one animated WebP in the output folder."""

    DESCRIPTION = "Saves the input images as one animated WebP in the output folder, with the graph inside."
    CATEGORY = "image/animation"

    _METHODS = {"default": 4, "fastest": 0, "slowest": 6}  # libwebp's method
    INPUTS = {
        "images": ("IMAGE", {"tooltip": "The frames of the animation."}),
        "filename_prefix": filename_prefix("ComfyUI"),
        "fps": inputs.fps(6.0, 0.01, 1000.0),
        "lossless": ("BOOLEAN", {"default": True, "tooltip": "Keep every pixel; the file is larger."}),
        "quality": inputs.integer(
            80, 0, 100, "How good it looks; when lossless, how much work goes into a smaller file."
        ),
        "method": (list(_METHODS), {"tooltip": "fastest makes larger files, slowest smaller ones."}),
    }

    def run(
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
        """Save images (F, H, W, 3 or 4) in [0, 1]."""
        check_frames(images)
        metadata, effort = graph_metadata(prompt, extra_pnginfo), self._METHODS[method]

        def encode(file: Path) -> None:
            encode_webp(file, images, fps, lossless, quality, effort, metadata)

        return save_animation(images, filename_prefix, "webp", encode, animated=len(images) != 1)


class SaveAnimatedPNG(Saver):
    """IMAGE -> one animated PNG in the output folder."""

    DESCRIPTION = "Saves the input images as one animated PNG in the output folder, with the graph inside."
    CATEGORY = "image/animation"
    INPUTS = {
        "images": ("IMAGE", {"tooltip": "The frames of the animation."}),
        "filename_prefix": filename_prefix("ComfyUI"),
        "fps": inputs.fps(6.0, 0.01, 1000.0),
        "compress_level": inputs.integer(4, 0, 9, "How much work goes into a smaller file."),
    }

    def run(
        self,
        images: torch.Tensor,
        fps: float,
        compress_level: int,
        filename_prefix: str = "ComfyUI",
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Save images (F, H, W, 3 or 4) in [0, 1]."""
        metadata = graph_metadata(prompt, extra_pnginfo)
        return save_animation(
            images, filename_prefix, "png", lambda file: encode_apng(file, images, fps, compress_level, metadata)
        )
