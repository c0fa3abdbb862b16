"""Return the frames of a pipeline call, and write them to a video file, as diffusers does."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import SettingError
from ..media.video_io import ENCODERS
from ..utils.output_files import replacing

logger = logging.getLogger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def as_output(videos: Sequence[torch.Tensor], output_type: str, device: torch.device) -> Any:
    """Convert N videos (F, H, W, 3) in [0, 1].

    Returns:
        pil: A list of PIL images for each video. np: float32 (N, F, H, W, 3). pt: float32 tensor (N, F, 3, H, W) on the
            device.
    """
    if output_type == "pt":
        return torch.stack(list(videos)).movedim(-1, 2).to(device)
    arrays = np.stack([video.numpy() for video in videos])
    if output_type == "np":
        return arrays
    return [[Image.fromarray(frame) for frame in (video * 255.0).round().astype("uint8")] for video in arrays]


def as_frames(video_frames: Any) -> torch.Tensor:
    """Return the frames of one video as (F, H, W, 3) float32 in [0, 1].

    Args:
        video_frames: PIL images; arrays (H, W, 3) or an array (F, H, W, 3) in [0, 1] or uint8; a tensor (F, 3, H, W) as
            of a pipeline, or (F, H, W, 3) as of `animate`, in [0, 1].

    Raises:
        SettingError: There are no frames, or they are of several videos.
    """
    if len(video_frames) == 0:
        raise SettingError("a video needs one frame or more, got none", code="video.frames")
    if isinstance(video_frames[0], (list, tuple)) or getattr(video_frames[0], "ndim", 3) != 3:
        raise SettingError(
            "the frames of one video are needed, got a list of videos; use frames[0]", code="video.frames"
        )
    if isinstance(video_frames, torch.Tensor):
        frames = video_frames.detach().float().cpu()
        return frames if frames.shape[-1] == 3 and frames.shape[-3] != 3 else frames.movedim(-3, -1)
    if isinstance(video_frames[0], torch.Tensor):
        return as_frames(torch.stack(list(video_frames)))
    frames = torch.from_numpy(np.stack([np.asarray(frame) for frame in video_frames]))
    return frames.float() / 255.0 if frames.dtype is torch.uint8 else frames.float()


def export_to_video(
    video_frames: Any,
    output_video_path: str | os.PathLike | None = None,
    fps: float | Fraction = 10,
    quality: float = 5.0,
    bitrate: int | None = None,
    macro_block_size: int | None = 16,
) -> str:
    """Write the frames of one video to a file. The arguments of `diffusers.utils.export_to_video`.

    The suffix chooses the format: .mp4 (h264), .webm (vp9), .webp (lossless), .gif, .png (animated). The rate is exact
    and the size is kept: odd sides get one more row or column in mp4 and webm.

    Args:
        video_frames: PIL images, arrays (H, W, 3) or a tensor (F, 3, H, W), in [0, 1] or uint8.
        output_video_path: Replaced if it exists. None: a new .mp4 in the temporary folder.
        fps: Frames per second.
        quality: Ignored: the quality is fixed at one that shows no loss.
        bitrate: Ignored.
        macro_block_size: Ignored: no encoder here needs sizes of 16.

    Returns:
        The path of the file.

    Raises:
        SettingError: Unknown suffix, no frames, or a rate out of range.
        OutputError: The frames cannot be encoded, or the file cannot be written.
    """
    if quality != 5.0 or bitrate is not None:
        logger.warning(
            "export_to_video ignores quality and bitrate: it encodes at a fixed quality without visible loss"
        )
    frames = as_frames(video_frames)
    if output_video_path is None:
        descriptor, output_video_path = tempfile.mkstemp(suffix=".mp4")
        os.close(descriptor)
    path = Path(output_video_path)
    encode = ENCODERS.get(path.suffix.lower())
    if encode is None:
        raise SettingError(f'the file must end in {", ".join(ENCODERS)}, got "{path.name}"', code="output.suffix")
    with replacing(path) as temporary:
        encode(temporary, frames, fps)
    return str(path)
