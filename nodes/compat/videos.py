"""Videos out: CreateVideo, SaveVideo and SaveWEBM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...svd_core.errors import SettingError
from .saving import HIDDEN, PREFIX_TOOLTIP, graph_metadata, save_moving

if TYPE_CHECKING:
    import torch

    from ...svd_core.media.video_io import Video


class CreateVideo:
    """IMAGE and a number of frames per second to VIDEO."""

    DESCRIPTION = "Create a video from images."
    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    OUTPUT_TOOLTIPS = ("The images as a video, for SaveVideo.",)
    FUNCTION = "create_video"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The images to create a video from."}),
                "fps": (
                    "FLOAT",
                    {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0, "tooltip": "Frames per second."},
                ),
            },
            "optional": {
                "audio": ("AUDIO", {"tooltip": "Sound for the video. Only ComfyUI can add it; leave it out here."})
            },
        }

    def create_video(self, images: torch.Tensor, fps: float, audio: Any = None) -> tuple[Video]:
        """images (F, H, W, 3) in [0, 1]. Raises SettingError when sound is connected."""
        from ...svd_core.media.video_io import Video, exact_fps

        if audio is not None:
            raise SettingError(
                "CreateVideo outside ComfyUI makes videos without sound, but its audio input is connected; disconnect "
                "it and add the sound with another program, or run the graph in ComfyUI."
            )
        return (Video(images, exact_fps(fps)),)


class SaveVideo:
    """VIDEO to an mp4 in the output folder."""

    DESCRIPTION = "Saves the video to the output folder, with the graph inside."
    CATEGORY = "image/video"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FOLDER = "output"
    FUNCTION = "save_video"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "video": ("VIDEO", {"tooltip": "The video to save."}),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI", "tooltip": PREFIX_TOOLTIP}),
                "format": (["auto", "mp4"], {"default": "auto", "tooltip": "The kind of file; auto is mp4."}),
                "codec": (["auto", "h264"], {"default": "auto", "tooltip": "How it is compressed; auto is h264."}),
            },
            "hidden": HIDDEN,
        }

    def save_video(
        self,
        video: Video,
        filename_prefix: str,
        format: str,
        codec: str,
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """An mp4 with h264, whatever `format` and `codec` say: each has one meaning so far."""
        from ...svd_core.media.video_io import encode_mp4

        metadata = graph_metadata(prompt, extra_pnginfo)
        return save_moving(
            video.frames, filename_prefix, "mp4", lambda file: encode_mp4(file, video.frames, video.fps, metadata)
        )


class SaveWEBM:
    """IMAGE to a webm in the output folder."""

    DESCRIPTION = "Saves the input images as a webm video in the output folder, with the graph inside."
    CATEGORY = "image/video"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FOLDER = "output"
    FUNCTION = "save_images"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        crf = "How much is left out: higher makes smaller files that look worse."
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The frames of the video."}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": PREFIX_TOOLTIP}),
                "codec": (["vp9", "av1"], {"tooltip": "How it is compressed; av1 makes smaller files, more slowly."}),
                "fps": (
                    "FLOAT",
                    {"default": 24.0, "min": 0.01, "max": 1000.0, "step": 0.01, "tooltip": "Frames per second."},
                ),
                "crf": ("FLOAT", {"default": 32.0, "min": 0, "max": 63.0, "step": 1, "tooltip": crf}),
            },
            "hidden": HIDDEN,
        }

    def save_images(
        self,
        images: torch.Tensor,
        codec: str,
        fps: float,
        filename_prefix: str,
        crf: float,
        prompt: Any = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """images (F, H, W, 3 or 4) in [0, 1]."""
        from ...svd_core.media.video_io import encode_webm

        metadata = graph_metadata(prompt, extra_pnginfo)
        return save_moving(
            images, filename_prefix, "webm", lambda file: encode_webm(file, images, fps, codec, crf, metadata)
        )
