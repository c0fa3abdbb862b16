"""Frames to mp4, webm, animated webp and png, with the graph that made them inside.

`encode_*` fill the file they are given; `write_*` put a complete file in place of whatever is there. Numbered files
are made by `outputs.save_numbered` around an `encode_*`.

frames   (F, H, W, 3) floating point in [0, 1]; values outside are clipped, NaN and infinity are refused
metadata names -> what can be JSON; ComfyUI's names are "prompt" (the API graph) and "workflow" (the UI graph)
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ImageError, OutputError, SettingError
from ..runtime.runtime import warn
from ..utils.nan_checks import is_finite
from ..utils.output_files import replacing
from .metadata import Metadata, exif_texts, json_texts

if TYPE_CHECKING:
    import numpy as np
    import torch

MAX_FPS = 1024

_BT709 = 1  # ISO/IEC 23091-2: primaries, transfer and matrix of BT.709 all have the number 1
_LIMITED_RANGE = 1  # ffmpeg's AVCOL_RANGE_MPEG: 16 to 235
_FULL_RANGE = 2  # ffmpeg's AVCOL_RANGE_JPEG: 0 to 255


@dataclass(frozen=True, eq=False)
class Video:
    """What the VIDEO wire carries headless: frames (F, H, W, 3) in [0, 1], and exactly how many go by in a second."""

    frames: torch.Tensor
    fps: Fraction


def exact_fps(fps: float | Fraction) -> Fraction:
    """Frames per second as the fraction that is meant: 7.0 -> 7, 23.976 -> 2997/125, 24000 / 1001 -> 24000/1001.

    Raises SettingError unless 0 < fps <= 1000.
    """
    if not (math.isfinite(fps) and 0 < fps <= MAX_FPS):
        raise SettingError(
            f"fps must be more than 0 and at most {MAX_FPS}, got {float(fps):g}; try 7.", code="video.fps"
        )
    rate = Fraction(fps).limit_denominator(100_000)
    if rate == 0:
        raise SettingError(f"fps must be at least 0.00001, got {float(fps):g}; try 7.", code="video.fps")
    return rate


def write_mp4(
    path: str | os.PathLike, frames: torch.Tensor, fps: float | Fraction, metadata: Metadata | None = None
) -> None:
    """`encode_mp4` into `path`, which is replaced when the file is complete and never holds half of it."""
    with replacing(path) as temporary:
        encode_mp4(temporary, frames, fps, metadata)


def write_webp(
    path: str | os.PathLike,
    frames: torch.Tensor,
    fps: float | Fraction,
    lossless: bool = True,
    quality: int = 80,
    method: int = 4,
    metadata: Metadata | None = None,
) -> None:
    """`encode_webp` into `path`, which is replaced when the file is complete and never holds half of it."""
    with replacing(path) as temporary:
        encode_webp(temporary, frames, fps, lossless, quality, method, metadata)


def write_png(path: str | os.PathLike, frame: torch.Tensor, metadata: Metadata | None = None) -> None:
    """`encode_png` into `path`, which is replaced when the file is complete and never holds half of it."""
    with replacing(path) as temporary:
        encode_png(temporary, frame, metadata)


def describe_mp4(path: str | os.PathLike) -> str:
    """What the file says it is, for people: "14 frames, 128x128, 7 fps". Raises ImageError for what is no mp4."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path), format="mp4") as container:
            stream = container.streams.video[0]
            rate = f"{float(stream.average_rate or 0):g}"
            return f"{stream.frames} frames, {stream.width}x{stream.height}, {rate} fps"
    except (FFmpegError, IndexError) as error:
        raise ImageError(f"{path} is no mp4 that can be read; make it again.", code="image.unreadable") from error


def encode_mp4(file: Path, frames: torch.Tensor, fps: float | Fraction, metadata: Metadata | None = None) -> None:
    """h264 in yuv420p: BT.709, limited range, tagged as such; every frame once, at exactly `fps`.

    Odd sizes grow by one repeated row or column at the bottom or right, because yuv420p has even sizes only. The same
    frames give the same bytes on every machine with the same libraries (one encoder thread, no dates). The file is
    opened again and its frames counted. Raises OutputError for what cannot be encoded, OSError for trouble of the disk.
    """
    import av
    from av.codec.codec import UnknownCodecError
    from av.error import FFmpegError

    check_frames(frames, channels=(3,))
    rate = exact_fps(fps)
    texts = json_texts(metadata)
    try:
        with av.open(str(file), "w", format="mp4", options=_MP4_OPTIONS) as container:
            container.metadata.update(texts)
            _encode_frames(container, frames, rate, _H264)
        _check_written(file, len(frames))
    except (FFmpegError, UnknownCodecError) as error:
        if isinstance(error, OSError):
            raise
        _, height, width, _ = frames.shape
        reason = getattr(error, "strerror", None) or error  # the whole of it names the temporary file
        raise OutputError(
            f"{len(frames)} frames of {width}x{height} could not be encoded as h264: {reason}. h264 needs PyAV with "
            f"libx264 (pip install av) and sides of at most 16384 pixels; SaveAnimatedWEBP is another way to save.",
            code="output.encoder",
        ) from error


_MP4_OPTIONS = {
    "movflags": "use_metadata_tags+faststart",  # keep names such as "prompt"; index first, so that players can stream
    "fflags": "+bitexact",  # no library version in the file
}


_H264_OPTIONS = {
    "crf": "17",
    "preset": "medium",
    # x264's look-ahead by macroblocks reads beyond sizes that are no multiple of 128, so that the same frames gave
    # other bytes from run to run; without it they do not.
    "x264-params": "mbtree=0",
}


def encode_webm(
    file: Path,
    frames: torch.Tensor,
    fps: float | Fraction,
    codec: str = "vp9",
    crf: float = 32.0,
    metadata: Metadata | None = None,
) -> None:
    """vp9 in yuv420p, or av1 with 10 bits: BT.709, sizes and threads as in `encode_mp4`; transparency is left out.

    crf 0 (best) to 63. Raises OutputError for what cannot be encoded, OSError for trouble of the disk.
    """
    import av
    from av.codec.codec import UnknownCodecError
    from av.error import FFmpegError

    check_frames(frames)
    rate, texts, chosen = exact_fps(fps), json_texts(metadata), _WEBM_CODECS[codec]
    encoder = replace(chosen, options={**chosen.options, "crf": f"{crf:g}"})
    try:
        with av.open(str(file), "w", format="webm", options={"fflags": "+bitexact"}) as container:
            container.metadata.update(texts)
            _encode_frames(container, frames[..., :3], rate, encoder)
    except (FFmpegError, UnknownCodecError) as error:
        if isinstance(error, OSError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]} could not be encoded as {codec}: {reason}. "
            f"CreateVideo and SaveVideo are another way to save.",
            code="output.encoder",
        ) from error


@dataclass(frozen=True)
class _Encoder:
    """One of ffmpeg's: its name, the form of its pixels, its options."""

    name: str
    pixels: str
    options: dict[str, str]


_H264 = _Encoder("libx264", "yuv420p", _H264_OPTIONS)
_WEBM_CODECS = {
    "vp9": _Encoder("libvpx-vp9", "yuv420p", {"b": "0"}),
    "av1": _Encoder("libsvtav1", "yuv420p10le", {"preset": "6"}),
}


def _encode_frames(container: Any, frames: torch.Tensor, rate: Fraction, encoder: _Encoder) -> None:
    """One video stream with all frames, into an open av.OutputContainer."""
    import av

    stream = container.add_stream(encoder.name, rate=rate, options=encoder.options)
    stream.height, stream.width = (size + size % 2 for size in frames.shape[1:3])
    if (stream.height, stream.width) != tuple(frames.shape[1:3]):
        height, width = frames.shape[1:3]
        warn(
            "video.padded",
            f"the video of {width}x{height} is saved as {stream.width}x{stream.height}: its last row or column is "
            "there twice",
        )
    stream.pix_fmt = encoder.pixels
    context = stream.codec_context
    context.thread_count = 1
    context.color_primaries = context.color_trc = context.colorspace = _BT709
    context.color_range = _LIMITED_RANGE
    for pixels in _as_bytes(frames):
        picture = av.VideoFrame.from_ndarray(_pad_to_even(pixels), format="rgb24").reformat(
            format=encoder.pixels, dst_colorspace=_BT709, src_color_range=_FULL_RANGE, dst_color_range=_LIMITED_RANGE
        )
        container.mux(stream.encode(picture))
    container.mux(stream.encode(None))


def _check_written(file: Path, count: int) -> None:
    """Decode the finished file. Raises OutputError unless it has `count` frames."""
    import av

    with av.open(str(file), format="mp4") as container:
        found = sum(1 for _ in container.decode(video=0))
    if found != count:
        raise OutputError(
            f"the mp4 should have {count} frames, but {found} can be read back; nothing was kept. Is the disk full or "
            f"failing? Try another output folder.",
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
    """An animated WebP through Pillow: quality 0 to 100, method 0 (fast) to 6 (small), metadata in EXIF as in ComfyUI.

    WebP counts whole milliseconds: each frame begins at the one nearest to its time, so that the clip's length is
    right. Raises OutputError for what cannot be encoded, OSError for trouble of the disk.
    """
    from PIL import Image

    check_frames(frames)
    durations = _milliseconds(len(frames), fps)
    first, *others = [Image.fromarray(pixels) for pixels in _as_bytes(frames)]
    exif = first.getexif()
    for tag, text in exif_texts(metadata).items():
        exif[tag] = text
    try:
        first.save(
            file,
            format="WEBP",
            save_all=True,
            append_images=others,
            duration=durations,
            exif=exif,
            lossless=lossless,
            quality=quality,
            method=method,
        )
    except ValueError as error:
        raise OutputError(
            f"{len(frames)} frames of {first.width}x{first.height} could not be encoded as WebP: {error}. WebP takes "
            f"sides of at most 16383 pixels; CreateVideo and SaveVideo are another way to save.",
            code="output.encoder",
        ) from error


def encode_apng(
    file: Path, frames: torch.Tensor, fps: float | Fraction, compress_level: int = 4, metadata: Metadata | None = None
) -> None:
    """An animated PNG through Pillow, metadata in `comf` chunks after the first picture as in ComfyUI.

    Times are whole milliseconds, as in `encode_webp`. Raises OSError for trouble of the disk.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    check_frames(frames)
    first, *others = [Image.fromarray(pixels) for pixels in _as_bytes(frames)]
    texts = PngInfo()
    for name, text in json_texts(metadata).items():
        texts.add(b"comf", f"{name}\0{text}".encode("latin-1"), after_idat=True)
    durations = _milliseconds(len(frames), fps)
    first.save(
        file,
        format="PNG",
        save_all=True,
        append_images=others,
        duration=durations,
        pnginfo=texts,
        compress_level=compress_level,
    )


def _milliseconds(count: int, fps: float | Fraction) -> list[int]:
    """How long each frame stands: it begins at the whole millisecond nearest to its time."""
    starts = [round(index * 1000 / exact_fps(fps)) for index in range(count + 1)]
    return [max(1, end - start) for start, end in itertools.pairwise(starts)]


def encode_png(file: Path, frame: torch.Tensor, metadata: Metadata | None = None, compress_level: int = 4) -> None:
    """One frame (H, W, 3 or 4) as an 8-bit PNG through Pillow, metadata in tEXt chunks as ComfyUI has it.

    Raises OSError for trouble of the disk.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    frames = frame[None]
    check_frames(frames)
    texts = PngInfo()
    for name, text in json_texts(metadata).items():
        texts.add_text(name, text)
    (pixels,) = _as_bytes(frames)
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=texts, compress_level=compress_level)


def check_frames(frames: torch.Tensor, channels: tuple[int, ...] = (3, 4)) -> None:
    """Refuse what cannot be saved before anything is written.

    Raises SettingError for another shape than (F, H, W, one of `channels`) or numbers without a fraction, OutputError
    naming the first frame with NaN or infinity: saved, it would be black.
    """
    import torch

    if not isinstance(frames, torch.Tensor) or frames.layout != torch.strided or frames.device.type == "meta":
        raise SettingError(
            f"saving needs images, a dense tensor with numbers in it, got {type(frames).__name__}; connect an IMAGE.",
            code="video.frames",
        )
    shape = tuple(frames.shape)
    if len(shape) != 4 or shape[3] not in channels or 0 in shape or not frames.is_floating_point():
        raise SettingError(
            f"saving needs images of shape (frames, height, width, {' or '.join(map(str, channels))}) in floating "
            f"point, at least one and none empty, got {shape} of {frames.dtype}; connect an IMAGE.",
            code="video.frames",
        )
    for index, frame in enumerate(frames):
        if not is_finite(frame):
            raise OutputError(
                f"frame {index} of {shape[0]} holds NaN or infinity, which would be saved as black; nothing was "
                f"written. The stage before made numbers that its precision cannot hold: try precision fp32 or bf16.",
                code="output.not_finite",
            )


def _as_bytes(frames: torch.Tensor) -> Iterator[np.ndarray]:
    """Each frame (H, W, C) uint8, clipped and rounded to nearest."""
    for frame in frames:
        yield to_uint8(frame)


def to_uint8(frames: torch.Tensor) -> np.ndarray:
    """Frames of any shape as they are saved: uint8, clipped and rounded to nearest. k / 255 gives k again."""
    import torch

    return (frames.detach().float().clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()


def _pad_to_even(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) with the last row and column repeated where H or W is odd."""
    import numpy as np

    height, width, _ = pixels.shape
    if height % 2 == 0 and width % 2 == 0:
        return np.ascontiguousarray(pixels)
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
