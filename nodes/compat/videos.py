"""Compat nodes of videos: CreateVideo, SaveVideo, SaveWEBM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...svd_core.errors import SettingError
from ...svd_core.media.video_io import Video, encode_mp4, encode_webm, exact_fps
from ..base import Node
from . import inputs
from .saving import Saver, filename_prefix, graph_metadata, save_animation

if TYPE_CHECKING:
    import torch


class CreateVideo(Node):
    """IMAGE, frames per second -> VIDEO."""

    DESCRIPTION = "Create a video from images."
    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    OUTPUT_TOOLTIPS = ("The images as a video, for SaveVideo.",)
    INPUTS = {
        "images": ("IMAGE", {"tooltip": "The images to create a video from."}),
        "fps": inputs.fps(30.0, 1.0, 120.0, step=1.0),
    }
    OPTIONAL_INPUTS = {
        "audio": ("AUDIO", {"tooltip": "Sound for the video. Only ComfyUI can add it; leave it out here."})
    }

    def run(self, images: torch.Tensor, fps: float, audio: Any = None) -> tuple[Video]:
        """Make a video of images (F, H, W, 3) in [0, 1]. Raises SettingError if audio is connected."""
        if audio is not None:
            raise SettingError(
                "CreateVideo makes videos without sound outside ComfyUI, but its audio input is connected. Disconnect "
                "it and add the sound with another program, or run the graph in ComfyUI."
            )
        return (Video(images, exact_fps(fps)),)


class SaveVideo(Saver):
    """VIDEO -> one mp4 in the output folder."""

    DESCRIPTION = "Saves the video to the output folder, with the graph inside."
    CATEGORY = "image/video"
    INPUTS = {
        "video": ("VIDEO", {"tooltip": "The video to save."}),
        "filename_prefix": filename_prefix("video/ComfyUI"),
        "format": (["auto", "mp4"], {"default": "auto", "tooltip": "The kind of file; auto is mp4."}),
        "codec": (["auto", "h264"], {"default": "auto", "tooltip": "How it is compressed; auto is h264."}),
    }

    def run(
        self,
        video: Video,
        filename_prefix: str,
        format: str,
        codec: str,
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Save an mp4 with h264, the only choice of `format` and `codec`."""
        metadata = graph_metadata(prompt, extra_pnginfo)
        return save_animation(
            video.frames, filename_prefix, "mp4", lambda file: encode_mp4(file, video.frames, video.fps, metadata)
        )


class SaveWEBM(Saver):
    """IMAGE -> one webm in the output folder."""

    DESCRIPTION = "Saves the input images as a webm video in the output folder, with the graph inside."
    CATEGORY = "image/video"
    INPUTS = {
        "images": ("IMAGE", {"tooltip": "The frames of the video."}),
        "filename_prefix": filename_prefix("ComfyUI"),
        "codec": (["vp9", "av1"], {"tooltip": "How it is compressed; av1 makes smaller files, more slowly."}),
        "fps": inputs.fps(24.0, 0.01, 1000.0),
        "crf": inputs.number(32.0, 0, 63.0, 1, "How much is left out: higher makes smaller files that look worse."),
    }

    def run(
        self,
        images: torch.Tensor,
        codec: str,
        fps: float,
        filename_prefix: str,
        crf: float,
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Save images (F, H, W, 3 or 4) in [0, 1]."""
        metadata = graph_metadata(prompt, extra_pnginfo)
        return save_animation(
            images, filename_prefix, "webm", lambda file: encode_webm(file, images, fps, codec, crf, metadata)
        )
