"""Encoded videos and images hold the same frames, times, colors and graphs, or an error leaves no file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from error_checks import check_facts, raises
from PIL import Image, ImageSequence
from svd_stages.headless.engines.graph_loading import read_embedded_graphs
from svd_stages.svd_core.errors import OutputError, SettingError
from svd_stages.svd_core.media import video_io
from svd_stages.svd_core.utils.output_files import replacing

GRAPH = {
    "prompt": {"1": {"class_type": "LoadImage", "inputs": {"image": 'é 日本 "quoted"\n.png'}}},
    "workflow": {"nodes": [{"id": 1}], "version": 0.4},
}
COLORS = """000000 ffffff ff0000 00ff00 0000ff 808080 e69933 1a66b3 00ffff ff00ff ffff00 ccb399 050505 faf7fc"""
PATCHES = torch.tensor([list(bytes.fromhex(color)) for color in COLORS.split()]) / 255


def clip(frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Return (F, H, W, 3) smooth moving colors."""
    time, y, x = torch.meshgrid(
        torch.arange(float(frames)), torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij"
    )
    return torch.stack([torch.sin(x + time / 5), torch.cos(y - time / 7), torch.sin(x * y)], dim=-1) / 2 + 0.5


def as_bytes(frames: torch.Tensor) -> np.ndarray:
    return np.floor(frames.double().clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8)


def planes(frame: av.VideoFrame) -> tuple[np.ndarray, ...]:
    """Return Y (H, W), Cb and Cr (H/2, W/2) of a yuv420p frame."""
    height, width = frame.height, frame.width
    flat = frame.to_ndarray().reshape(-1)
    sizes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
    starts = (0, height * width, height * width * 5 // 4)
    return tuple(flat[at : at + h * w].reshape(h, w) for at, (h, w) in zip(starts, sizes, strict=True))


def limited_range_to_rgb(y: float, cb: float, cr: float, kr: float, kb: float) -> np.ndarray:
    """Convert 8-bit limited range to RGB in 0 to 255: ITU-R BT.709 section 3, or BT.601 with its kr and kb."""
    luma, blue, red = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    r = luma + 2 * (1 - kr) * red
    b = luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.array([r, g, b]), 0, 1) * 255


@pytest.mark.parametrize("frames", [1, 2, 14, 25])
@pytest.mark.parametrize("fps", [7.0, 23.976, Fraction(24000, 1001), 0.5, 120])
def test_an_mp4_has_every_frame_at_the_exact_rate(tmp_path, frames, fps):
    video_io.encode_mp4(tmp_path / "a.mp4", clip(frames), fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        (stream,) = container.streams
        assert stream.average_rate == video_io.exact_fps(fps)
        assert stream.frames == frames
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [index / video_io.exact_fps(fps) for index in range(frames)]


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (7.0, Fraction(7)),
        (7, Fraction(7)),
        (23.976, Fraction(2997, 125)),
        (24000 / 1001, Fraction(24000, 1001)),
        (0.01, Fraction(1, 100)),
        (12.34567, Fraction(1234567, 100000)),
        (1000.0, Fraction(1000)),
    ],
)
def test_frame_rates_become_exact_fractions(fps, exact):
    assert video_io.exact_fps(fps) == exact


@pytest.mark.parametrize("fps", [0, -1.0, 1025, float("nan"), float("inf"), 1e-9])
def test_invalid_frame_rates_are_refused(fps):
    with raises(SettingError, "video.fps", "fps", f"{fps:g}"):
        video_io.exact_fps(fps)


def test_an_mp4_is_playable_h264_with_color_tags_in_stream_and_container(tmp_path):
    assert video_io.encode_mp4(tmp_path / "a.mp4", clip(3), 7) == ()
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert context.color_primaries == context.color_trc == context.colorspace == 1
        assert context.color_range == 1
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    # ISO/IEC 14496-12, ColourInformationBox: primaries, transfer and matrix of BT.709, limited range
    assert content[content.index(b"colrnclx") + 8 :][:7] == bytes([0, 1, 0, 1, 0, 1, 0])


SIZES = [(32, 32), (320, 576), (480, 640), (576, 1024), (1080, 1920)]
"""(height, width): small, SD (players assume BT.601 without tags), the size of SVD, HD."""


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", ["mp4", "vp9", "av1"])
def test_players_show_flat_colors_within_two_levels(tmp_path, kind, height, width):
    """Checked with BT.709 in float64 on the planes, and with ffmpeg's conversion by the tags of the file.

    av1 only on the planes: ffmpeg's conversion of 10 bits is three levels off.
    """
    if height > {"mp4": 1080, "vp9": 576, "av1": 480}[kind]:
        pytest.skip("slow, and equal to smaller sizes")
    patches = PATCHES if height < 400 else PATCHES[2:5]
    frames = patches[:, None, None].expand(-1, height, width, 3)
    if kind == "mp4":
        video_io.encode_mp4(tmp_path / "a", frames, 7)
    else:
        video_io.encode_webm(tmp_path / "a", frames, 7, kind, crf=1.0)
    as_601 = []
    with av.open(str(tmp_path / "a")) as container:
        tags = container.streams.video[0].codec_context
        assert tags.color_primaries == tags.color_trc == tags.colorspace == tags.color_range == 1
        for expected, frame in zip(as_bytes(patches).astype(float), container.decode(video=0), strict=True):
            assert (frame.colorspace, frame.color_range) == (1, 1)
            scale = 4 if "10" in frame.format.name else 1
            y, cb, cr = (plane.mean() / scale for plane in planes(frame))
            assert np.abs(limited_range_to_rgb(y, cb, cr, 0.2126, 0.0722) - expected).max() <= 2
            as_601.append(np.abs(limited_range_to_rgb(y, cb, cr, 0.299, 0.114) - expected).max())
            if kind != "av1":
                seen = frame.reformat(format="rgb24", dst_color_range="JPEG").to_ndarray().astype(float)
                assert np.abs(seen - expected).max() <= 2
    assert max(as_601) > 20


@pytest.mark.parametrize(("height", "width"), [(33, 48), (32, 47), (31, 31), (1, 1), (5, 2)])
def test_odd_sizes_are_padded_by_repeating_the_edge_with_a_warning(tmp_path, height, width):
    frames, even_height, even_width = clip(2, height, width), height + height % 2, width + width % 2
    frames[:, -1:, :] = 0.25
    frames[:, :, -1:] = 0.75
    (warning,) = video_io.encode_mp4(tmp_path / "a.mp4", frames, 7)
    assert warning.code == "video.padded"
    check_facts(warning.text, f"{width}x{height}", f"{even_width}x{even_height}")
    with av.open(str(tmp_path / "a.mp4")) as container:
        for frame in container.decode(video=0):
            assert (frame.height, frame.width) == (even_height, even_width)
            y = planes(frame)[0].astype(int)
            if height % 2:
                assert np.abs(y[-1] - y[-2]).max() <= 8
            if width % 2:
                assert np.abs(y[:, -1] - y[:, -2]).max() <= 8


def test_an_mp4_looks_like_its_frames(tmp_path):
    frames = clip(5, 64, 96)
    video_io.encode_mp4(tmp_path / "a.mp4", frames, 7)
    with av.open(str(tmp_path / "a.mp4")) as container:
        colors = {"format": "rgb24", "src_colorspace": "ITU709", "src_color_range": "MPEG", "dst_color_range": "JPEG"}
        read = np.stack([frame.reformat(**colors).to_ndarray() for frame in container.decode(video=0)])
    error = np.abs(read.astype(int) - as_bytes(frames)).mean()
    assert error < 2.5
    assert np.abs(read[::-1].astype(int) - as_bytes(frames)).mean() > 2 * error


@pytest.mark.parametrize(("width", "height"), [(128, 128), (64, 64), (576, 320)])
def test_the_same_frames_give_the_same_bytes_whatever_uninitialized_memory_contains(tmp_path, width, height):
    """MALLOC_PERTURB_ fills new memory with a byte, which reveals reads of uninitialized memory."""
    script = (
        "import sys, torch; from svd_stages.svd_core.media import video_io; "
        "noise = torch.rand((9, int(sys.argv[3]), int(sys.argv[2]), 3), generator=torch.Generator().manual_seed(0)); "
        "video_io.encode_mp4(sys.argv[1], noise, 7)"
    )
    digests = set()
    for fill in ("0", "7", "165"):
        command = [sys.executable, "-c", script, str(tmp_path / "a.mp4"), str(width), str(height)]
        subprocess.run(command, check=True, env={**os.environ, "MALLOC_PERTURB_": fill})
        digests.add(hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_frames_of_any_float_dtype_are_accepted_and_not_modified(tmp_path, dtype):
    frames = clip(2).to(dtype)
    before = frames.clone()
    video_io.encode_mp4(tmp_path / "a.mp4", frames, 7)
    assert torch.equal(frames, before)


@pytest.mark.parametrize("fps", [7.0, 6.0, 23.976, 1000.0])
@pytest.mark.parametrize(("kind", "mode"), [("webp", "RGB"), ("apng", "RGB"), ("apng", "RGBA")])
def test_lossless_animations_keep_every_pixel_and_the_length(tmp_path, kind, mode, fps):
    frames = torch.cat([clip(7), clip(7)[..., :1]], dim=-1)[..., : len(mode)]
    write_any(tmp_path / f"a.{kind}", frames, GRAPH, fps)
    with Image.open(tmp_path / f"a.{kind}") as animation:
        decoded, durations = [], []
        for frame in ImageSequence.Iterator(animation):
            decoded.append(np.asarray(frame.convert(mode)))
            durations.append(frame.info["duration"])
    assert np.array_equal(np.stack(decoded), as_bytes(frames))
    assert sum(durations) == round(7000 / fps)


def test_quality_and_method_have_an_effect_on_a_webp(tmp_path):
    sizes = []
    for quality, method in ((10, 4), (95, 4), (95, 0)):
        video_io.encode_webp(tmp_path / "a.webp", clip(4, 96, 96), 7, lossless=False, quality=quality, method=method)
        sizes.append((tmp_path / "a.webp").stat().st_size)
    assert sizes[0] < sizes[1] != sizes[2]


@pytest.mark.parametrize("channels", [3, 4])
def test_a_png_keeps_every_pixel_rounded_to_nearest(tmp_path, channels):
    frame = torch.rand(9, 13, channels, generator=torch.Generator("cpu").manual_seed(1)) * 1.4 - 0.2
    video_io.encode_png(tmp_path / "a.png", frame)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), as_bytes(frame))


@pytest.mark.parametrize("codec", ["vp9", "av1"])
def test_a_webm_has_every_frame_and_looks_like_them(tmp_path, codec):
    frames = clip(5, 64, 95)
    video_io.encode_webm(tmp_path / "a.webm", frames, 7, codec, crf=10.0)
    with av.open(str(tmp_path / "a.webm")) as container:
        stream = container.streams.video[0]
        assert codec in stream.codec.canonical_name
        assert stream.average_rate == 7
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert decoded.shape == (5, 64, 96, 3)
    assert np.abs(decoded[:, :, :95].astype(int) - as_bytes(frames)).mean() < 4


def test_crf_makes_a_webm_smaller(tmp_path):
    frames = torch.rand(4, 64, 64, 3, generator=torch.Generator("cpu").manual_seed(0))
    for crf in (5.0, 60.0):
        video_io.encode_webm(tmp_path / f"{crf}.webm", frames, 7, crf=crf)
    assert (tmp_path / "60.0.webm").stat().st_size < 0.5 * (tmp_path / "5.0.webm").stat().st_size


def write_any(path, frames: torch.Tensor, metadata=None, fps: float = 7) -> None:
    """Save with the encoder of the file's suffix."""
    with replacing(path) as temporary:
        if path.suffix == ".png":
            video_io.encode_png(temporary, frames[-1], metadata)
        else:
            getattr(video_io, f"encode_{path.suffix[1:]}")(temporary, frames, fps, metadata=metadata)


ENDINGS = ["mp4", "webp", "png", "webm", "apng"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_graph_comes_back_from_the_file(tmp_path, ending):
    large = {**GRAPH, "prompt": {str(index): {"class_type": "x" * 50} for index in range(10_000)}}
    for name, metadata in (("all", GRAPH), ("large", large), ("prompt", {"prompt": {"1": 2}}), ("none", {})):
        path = tmp_path / f"{name}.{ending}"
        write_any(path, clip(2), metadata)
        assert read_embedded_graphs(path) == metadata


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_frame_that_is_not_finite_is_named_and_nothing_is_written(tmp_path, ending, bad):
    frames = clip(4)
    frames[3, 5, 6, 1] = bad
    with raises(OutputError, "output.not_finite", *((3, 4) if ending != "png" else (0, 1))):
        write_any(tmp_path / f"a.{ending}", frames)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(0, 8, 8, 3),
        torch.zeros(2, 0, 8, 3),
        torch.zeros(2, 8, 8, 1),
        torch.zeros(8, 8, 3),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
    ],
    ids=["no frames", "no rows", "one channel", "no batch", "bytes"],
)
def test_invalid_frames_are_refused(tmp_path, frames):
    for ending in ("mp4", "webp"):
        with raises(SettingError, "video.frames", frames.dtype):
            write_any(tmp_path / f"a.{ending}", frames)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ending", "other"), [("mp4", "SaveAnimatedWEBP"), ("webp", "SaveVideo")])
def test_an_encoder_error_names_the_size_and_another_node(tmp_path, ending, other):
    with raises(OutputError, "output.encoder", "20000x2", other):
        write_any(tmp_path / f"a.{ending}", torch.zeros(1, 2, 20000, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_graph_that_is_not_json_serializable_is_refused(tmp_path, ending):
    for value in (float("nan"), {"x": torch.zeros(1)}):
        with raises(OutputError, "output.metadata", "JSON"):
            write_any(tmp_path / f"a.{ending}", clip(1), {"prompt": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["mp4", "webp", "png"])
def test_a_full_disk_leaves_nothing(tmp_path, full_disk, ending):
    noise = torch.rand(4, 128, 128, 3, generator=torch.Generator("cpu").manual_seed(0))
    with full_disk(at=20_000), raises(OutputError, "output.no_space"):
        write_any(tmp_path / f"a.{ending}", noise)
    assert list(tmp_path.iterdir()) == []
