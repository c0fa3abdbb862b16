"""Encode frames to mp4, webm, animated WebP and PNG, with the graph that made them as metadata.

An `encode_*` function fills the file that it is given. Use it inside `output_files.save_numbered` or `replacing`, so
that no incomplete file gets a final name.

frames    (F, H, W, 3) floating point in [0, 1]; values outside are clipped, NaN and infinity are refused
metadata  names -> JSON-serializable values. ComfyUI's names are "prompt" (API format) and "workflow" (UI format).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import ImageError, OutputError, SettingError, counted, quoted
from ..utils.nan_checks import is_finite
from ..utils.warnings import RunWarning
from .image_io import frame_durations
from .metadata import Metadata, exif_texts, json_texts

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

MAX_FPS = 1024

_BT709 = 1  # ISO/IEC 23091-2: the number of BT.709 for primaries, transfer and matrix
_LIMITED_RANGE = 1  # ffmpeg's AVCOL_RANGE_MPEG: 16 to 235
_FULL_RANGE = 2  # ffmpeg's AVCOL_RANGE_JPEG: 0 to 255


@dataclass(frozen=True, eq=False)
class Video:
    """ComfyUI's VIDEO outside ComfyUI: frames (F, H, W, 3) in [0, 1] and the exact frame rate."""

    frames: torch.Tensor
    fps: Fraction


def exact_fps(fps: float | Fraction) -> Fraction:
    """Return a frame rate as a fraction: 7.0 -> 7, 23.976 -> 2997/125, 24000 / 1001 -> 24000/1001.

    Raises:
        SettingError: `fps` is not in (0, 1024] (code `video.fps`).
    """
    rate = Fraction(fps).limit_denominator(100_000) if math.isfinite(fps) and 0 < fps <= MAX_FPS else Fraction(0)
    if rate == 0:
        raise SettingError(
            f"fps must be at least 0.00001 and at most {MAX_FPS}, got {float(fps):g}. Use 7.", code="video.fps"
        )
    return rate


def describe_video(path: str | os.PathLike) -> str:
    """Describe a file of one of `ENCODERS` for the user: "14 frames, 128x128, 7 fps"; a still PNG has no rate.

    Raises:
        ImageError: The file is not a readable video or image.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".mp4", ".webm"):
        (width, height), frames, rate = _read_timing(path, suffix[1:])
    else:
        (width, height), durations = frame_durations(path)
        frames, rate = len(durations), 1000 * len(durations) / (sum(durations) or math.inf)
    return f"{counted(frames, 'frame')}, {width}x{height}" + (f", {rate:.4g} fps" if rate else "")


def _read_timing(path: str | os.PathLike, container_format: str) -> tuple[tuple[int, int], int, float]:
    """Return the size, the frames and the rate of a video. WebM has no count of frames in its header."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path), format=container_format) as container:
            stream = container.streams.video[0]
            frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            return (stream.width, stream.height), frames, float(stream.average_rate or 0)
    except (FFmpegError, IndexError) as error:
        kind = container_format
        raise ImageError(f"{quoted(path)} is not a readable {kind}. Make it again.", code="image.unreadable") from error


@dataclass(frozen=True)
class _Encoder:
    """An encoder of ffmpeg with its pixel format and options, and the container around it."""

    name: str
    pixel_format: str
    options: Mapping[str, str]
    container: str
    container_options: Mapping[str, str]


_H264 = _Encoder(
    "libx264",
    "yuv420p",
    # x264's macroblock tree reads beyond frames whose size is not a multiple of 128: the bytes differed between runs.
    {"preset": "medium", "x264-params": "mbtree=0"},
    "mp4",
    # Keep metadata names such as "prompt", put the index first for streaming, leave the library's version out.
    {"movflags": "use_metadata_tags+faststart", "fflags": "+bitexact"},
)
_H264_CRF = 17
_WEBM_OPTIONS = {"fflags": "+bitexact"}
_WEBM_CODECS = {
    "vp9": _Encoder("libvpx-vp9", "yuv420p", {"b": "0"}, "webm", _WEBM_OPTIONS),
    "av1": _Encoder("libsvtav1", "yuv420p10le", {"preset": "6"}, "webm", _WEBM_OPTIONS),
}


def encode_mp4(
    file: Path, frames: torch.Tensor, fps: float | Fraction, metadata: Metadata | None = None
) -> tuple[RunWarning, ...]:
    """Encode frames as h264 in yuv420p (BT.709, limited range, tagged). Return warnings.

    Odd sizes are padded with a repeated row or column at the bottom or right, because yuv420p needs even sizes. The
    same frames give the same bytes on every machine with the same libraries (one encoder thread, no dates). The file
    is decoded again to count its frames.

    Raises:
        OutputError: The frames cannot be encoded, or the file is incomplete.
        OSError: The disk failed.
    """
    check_frames(frames, channels=(3,))
    suggestion = "h264 needs PyAV with libx264 and sides of at most 16384 pixels. Or save with SaveAnimatedWEBP."
    with _translate_encoder_errors(frames, "h264", suggestion):
        _encode_video(file, frames, exact_fps(fps), _H264, _H264_CRF, json_texts(metadata))
        _check_frame_count(file, len(frames))
    return _padding_warnings(frames)


def encode_webm(
    file: Path,
    frames: torch.Tensor,
    fps: float | Fraction,
    codec: str = "vp9",
    crf: float = 32.0,
    metadata: Metadata | None = None,
) -> tuple[RunWarning, ...]:
    """Encode frames as vp9 in yuv420p, or av1 with 10 bits. Return warnings.

    Color, sizes and threads as in `encode_mp4`. Alpha is dropped. crf is 0 (best) to 63.

    Raises:
        OutputError: The frames cannot be encoded.
        OSError: The disk failed.
    """
    check_frames(frames)
    with _translate_encoder_errors(frames, codec, "Or save with CreateVideo and SaveVideo."):
        _encode_video(file, frames[..., :3], exact_fps(fps), _WEBM_CODECS[codec], crf, json_texts(metadata))
    return _padding_warnings(frames)


@contextlib.contextmanager
def _translate_encoder_errors(frames: torch.Tensor, codec: str, suggestion: str) -> Iterator[None]:
    """Convert ffmpeg's errors to OutputError, except errors of the operating system."""
    from av.codec.codec import UnknownCodecError
    from av.error import FFmpegError

    try:
        yield
    except (FFmpegError, UnknownCodecError) as error:
        if isinstance(error, OSError):
            raise
        reason = getattr(error, "strerror", None) or error  # str(error) would name the temporary file
        raise OutputError(
            f"{counted(len(frames), 'frame')} of {frames.shape[2]}x{frames.shape[1]} could not be encoded as "
            f"{codec}: {reason}. {suggestion}",
            code="output.encoder",
        ) from error


def _encode_video(
    file: Path, frames: torch.Tensor, rate: Fraction, encoder: _Encoder, crf: float, texts: Mapping[str, str]
) -> None:
    """Write a file with one video stream and `texts` as metadata."""
    import av

    with av.open(str(file), "w", format=encoder.container, options=dict(encoder.container_options)) as container:
        container.metadata.update(texts)
        stream = container.add_stream(encoder.name, rate=rate, options={**encoder.options, "crf": f"{crf:g}"})
        stream.height, stream.width = (size + size % 2 for size in frames.shape[1:3])
        stream.pix_fmt = encoder.pixel_format
        context = stream.codec_context
        context.thread_count = 1
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED_RANGE
        for frame in frames:
            image = av.VideoFrame.from_ndarray(_pad_to_even(to_uint8(frame)), format="rgb24").reformat(
                format=encoder.pixel_format,
                dst_colorspace=_BT709,
                src_color_range=_FULL_RANGE,
                dst_color_range=_LIMITED_RANGE,
            )
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))


def _padding_warnings(frames: torch.Tensor) -> tuple[RunWarning, ...]:
    height, width = frames.shape[1:3]
    if height % 2 == width % 2 == 0:
        return ()
    text = (
        f"the video of {width}x{height} is saved as {width + width % 2}x{height + height % 2}: its last row or column "
        "is repeated, because the codec needs even sizes."
    )
    return (RunWarning("video.padded", text),)


def _check_frame_count(file: Path, count: int) -> None:
    """Decode the finished file. Raise OutputError unless it has `count` frames."""
    import av

    with av.open(str(file), format="mp4") as container:
        decoded = sum(1 for _ in container.decode(video=0))
    if decoded != count:
        raise OutputError(
            f"the mp4 must have {counted(count, 'frame')}, but {decoded} can be decoded, so it was discarded. Check "
            "the disk, or use another output folder.",
            code="output.incomplete",
        )


def encode_webp(
    file: Path,
    frames: torch.Tensor,
    fps: float | Fraction,
    lossless: bool = True,
    quality: int = 80,
    method: int = 4,
    metadata: Metadata | None = None,
) -> None:
    """Encode frames as an animated WebP with Pillow. Metadata goes to EXIF as in ComfyUI.

    WebP has durations of whole milliseconds. Rounding does not accumulate, see `_frame_durations`.

    Args:
        file: Written.
        frames: (F, H, W, 3 or 4) in [0, 1].
        fps: Frames per second.
        lossless: Keep every pixel.
        quality: 0 to 100.
        method: 0 (fast) to 6 (small).
        metadata: The graph.

    Raises:
        OutputError: The frames cannot be encoded.
        OSError: The disk failed.
    """
    first, following = _pil_frames(frames)
    exif = first.getexif()
    for tag, text in exif_texts(metadata).items():
        exif[tag] = text
    try:
        first.save(
            file,
            format="WEBP",
            save_all=True,
            append_images=following,
            duration=_frame_durations(len(frames), fps),
            exif=exif,
            lossless=lossless,
            quality=quality,
            method=method,
        )
    except ValueError as error:
        raise OutputError(
            f"{counted(len(frames), 'frame')} of {first.width}x{first.height} could not be encoded as WebP: {error}. "
            "WebP needs sides of at most 16383 pixels. Or save with CreateVideo and SaveVideo.",
            code="output.encoder",
        ) from error


def encode_apng(
    file: Path, frames: torch.Tensor, fps: float | Fraction, compress_level: int = 4, metadata: Metadata | None = None
) -> None:
    """Encode frames as an animated PNG with Pillow. Metadata goes to `comf` chunks after the first image as in ComfyUI.

    Durations are whole milliseconds, as in `encode_webp`. Raises OSError if the disk failed.
    """
    from PIL.PngImagePlugin import PngInfo

    first, following = _pil_frames(frames)
    info = PngInfo()
    for name, text in json_texts(metadata).items():
        info.add(b"comf", f"{name}\0{text}".encode("latin-1"), after_idat=True)
    first.save(
        file,
        format="PNG",
        save_all=True,
        append_images=following,
        duration=_frame_durations(len(frames), fps),
        pnginfo=info,
        compress_level=compress_level,
    )


def encode_gif(file: Path, frames: torch.Tensor, fps: float | Fraction, metadata: Metadata | None = None) -> None:
    """Encode an animated GIF with Pillow: 256 colors a frame, durations of whole hundredths of a second, a loop.

    `metadata` is not written: no program looks for a graph in a GIF. Raises OSError if the disk failed.
    """
    first, following = _pil_frames(frames)
    durations = _frame_durations(len(frames), fps, unit=10)
    first.save(file, format="GIF", save_all=True, append_images=following, duration=durations, loop=0)


class Encode(Protocol):
    """Encodes a video file from frames (F, H, W, 3) in [0, 1]. May return warnings."""

    def __call__(
        self, file: Path, frames: torch.Tensor, fps: float | Fraction, *, metadata: Metadata | None = None
    ) -> tuple[RunWarning, ...] | None:
        """Encode the frames. `metadata` goes where ComfyUI looks for it."""
        ...


ENCODERS: Mapping[str, Encode] = {
    ".mp4": encode_mp4,
    ".webm": encode_webm,
    ".webp": encode_webp,
    ".gif": encode_gif,
    ".png": encode_apng,
}
"""Suffix of a video file -> its encoder: h264, vp9, lossless animated WebP, GIF, animated PNG."""


def encode_png(file: Path, frame: torch.Tensor, metadata: Metadata | None = None, compress_level: int = 4) -> None:
    """Encode one frame (H, W, 3 or 4) as an 8-bit PNG with Pillow. Metadata goes to tEXt chunks as in ComfyUI.

    Raises OSError if the disk failed.
    """
    from PIL.PngImagePlugin import PngInfo

    image, _ = _pil_frames(frame[None])
    info = PngInfo()
    for name, text in json_texts(metadata).items():
        info.add_text(name, text)
    image.save(file, format="PNG", pnginfo=info, compress_level=compress_level)


def _pil_frames(frames: torch.Tensor) -> tuple[Image.Image, list[Image.Image]]:
    """Check frames and convert them to PIL images: the first one, and the others."""
    from PIL import Image

    check_frames(frames)
    first, *following = [Image.fromarray(to_uint8(frame)) for frame in frames]
    return first, following


def _frame_durations(count: int, fps: float | Fraction, unit: int = 1) -> list[int]:
    """Return durations in milliseconds. Each frame begins at the multiple of `unit` nearest to its exact time."""
    starts = [unit * round(index * 1000 / unit / exact_fps(fps)) for index in range(count + 1)]
    return [max(unit, end - start) for start, end in itertools.pairwise(starts)]


def check_frames(frames: torch.Tensor, channels: tuple[int, ...] = (3, 4)) -> None:
    """Check that frames can be saved, before anything is written.

    Raises:
        SettingError: Not (F, H, W, C) in floating point with C in `channels`, or empty (code `video.frames`).
        OutputError: A frame contains NaN or infinity (code `output.not_finite`). It would be saved as black.
    """
    import torch

    has_data = isinstance(frames, torch.Tensor) and frames.layout == torch.strided and frames.device.type != "meta"
    shape = tuple(frames.shape) if has_data else ()
    if len(shape) != 4 or shape[3] not in channels or 0 in shape or not frames.is_floating_point():
        raise SettingError(
            f"images to save must be a dense floating-point tensor (frames, height, width, "
            f"{' or '.join(map(str, channels))}) with at least one frame and pixel, got "
            f"{f'{shape} of {frames.dtype}' if has_data else type(frames).__name__}. Connect an IMAGE.",
            code="video.frames",
        )
    for index, frame in enumerate(frames):
        if not is_finite(frame):
            raise OutputError(
                f"frame {index} of {shape[0]} contains NaN or infinity and would be saved as black, so nothing was "
                "written. Use precision fp32 or bf16 in the stage before.",
                code="output.not_finite",
            )


def to_uint8(frames: torch.Tensor) -> np.ndarray:
    """Convert frames of any shape to uint8 as they are saved: clipped, rounded to nearest. k / 255 becomes k."""
    import torch

    return (frames.detach().float().clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()


def _pad_to_even(frame: np.ndarray) -> np.ndarray:
    """Repeat the last row and column of (H, W, 3) where H or W is odd."""
    import numpy as np

    height, width, _ = frame.shape
    return np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
