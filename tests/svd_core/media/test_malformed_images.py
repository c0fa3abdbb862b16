"""Truncated, damaged and hostile image files raise ImageError quickly and without much memory."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from error_checks import raises
from PIL import Image, ImageFile
from svd_stages.svd_core.errors import ImageError
from svd_stages.svd_core.media import image_io
from svd_stages.svd_core.media.image_io import load_image

from . import odd_files
from .odd_files import saved, written

RNG = np.random.default_rng(5)
SUFFIXES = [
    suffix
    for suffix in ("png", "jpg", "webp", "tiff", "bmp", "gif", "avif")
    if f".{suffix}" in Image.registered_extensions()
]
NOISE = Image.fromarray(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8))
SAMPLES = {channels: RNG.integers(0, 65536, (20, 37, channels), dtype=np.uint16) for channels in (1, 2, 3, 4)}


def code_of(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return caught.value.code


# Truncated and damaged files


@pytest.mark.parametrize("allowed_by_pillow", [False, True])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_files_are_refused_whatever_pillow_is_set_to(
    tmp_path, suffix, fraction, allowed_by_pillow, monkeypatch
):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed_by_pillow)
    content = saved(tmp_path, NOISE, f"a.{suffix}").read_bytes()
    truncated = written(tmp_path, content[: int(len(content) * fraction)], f"b.{suffix}")
    assert code_of(truncated) in ("image.damaged", "image.unsupported")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is allowed_by_pillow
    assert load_image(tmp_path / f"a.{suffix}").images.shape == (1, 96, 96, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("fraction", [0.4, 0.97])
@pytest.mark.parametrize("write", [odd_files.deep_png, odd_files.tiff])
def test_truncated_16_bit_files_are_refused(tmp_path, channels, fraction, write):
    content = write(SAMPLES[channels])
    truncated = written(tmp_path, content[: int(len(content) * fraction)])
    assert code_of(truncated) in ("image.damaged", "image.unsupported")


def test_threads_refuse_truncated_files_and_restore_pillows_setting(tmp_path, monkeypatch):
    content = saved(tmp_path, NOISE, "a.jpg").read_bytes()
    path = written(tmp_path, content[: len(content) // 2], "a.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refused = []

    def load() -> None:
        for _ in range(20):
            with pytest.raises(ImageError):
                load_image(path)
            refused.append(path)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 80 and ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_load_or_raise_image_error(tmp_path, suffix):
    path = saved(tmp_path, NOISE, f"a.{suffix}")
    content = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for position in RNG.integers(0, min(len(content), 300), 4):
            damaged[position] = RNG.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert load_image(path).images.ndim == 4
        except ImageError:
            continue


def test_a_tiff_whose_first_page_follows_itself_ends(tmp_path):
    assert load_image(written(tmp_path, odd_files.tiff_in_a_circle())).images.shape == (1, 20, 20, 3)


# Other things than image files


def test_missing_files_folders_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    codes = {name: code_of(tmp_path / name) for name in ("a.png", "a.png/b.png", "", "pipe", "/dev/zero")}
    assert list(codes.values()) == ["image.missing"] * 2 + ["image.unreadable"] * 3


@pytest.mark.parametrize("content", [
    b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"SIMPLE  =                    T", b"8BPS\0\1",
])  # fmt: skip
def test_other_formats_are_refused(tmp_path, content):
    with raises(ImageError, "image.unsupported", "PNG", "JPEG"):
        load_image(written(tmp_path, content))


# Bombs


@pytest.mark.parametrize("side", [7072, 20000])
def test_an_image_that_is_too_large_is_not_decoded(tmp_path, side, recwarn, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with raises(ImageError, "image.too_large", 50):
        load_image(written(tmp_path, odd_files.claiming_png(side, side)))
    assert not recwarn.list


def test_all_frames_together_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(image_io, "MAX_TOTAL_PIXELS", 24 * 36 * 3)
    for count in (3, 6):
        frames = [Image.new("RGB", (36, 24), (30 * index,) * 3) for index in range(count)]
        path = saved(tmp_path, frames[0], f"{count}.webp", save_all=True, append_images=frames[1:])
        if count == 3:
            assert load_image(path).images.shape[0] == count
        else:
            with raises(ImageError, "image.too_large", count):
                load_image(path)


TEXT = zlib.compress(bytes(1_000_000), 9)
LONG_TEXT = zlib.compress(bytes(200_000_000), 9)
BOMBS = {
    "13,000 x 13,000": lambda: odd_files.claiming_png(13_000, 13_000),
    "13,000 x 13,000 of 16 bits": lambda: odd_files.claiming_png(13_000, 13_000, bits=16),
    "20,000 x 20,000": lambda: odd_files.claiming_png(20_000, 20_000),
    "4,000,000,000 wide": lambda: odd_files.tiff(SAMPLES[3]).replace(
        b"\0\1\3\0\1\0\0\0\x25\0\0\0", b"\0\1\4\0\1\0\0\0\0\x28\x6b\xee"
    ),
    "one long text": lambda: odd_files.claiming_png(32, 32, odd_files.chunk(b"zTXt", b"k\0\0" + LONG_TEXT), 32 * 97),
    "one long profile": lambda: odd_files.claiming_png(32, 32, odd_files.chunk(b"iCCP", b"k\0\0" + LONG_TEXT), 32 * 97),
    "500 texts": lambda: odd_files.claiming_png(
        32, 32, b"".join(odd_files.chunk(b"zTXt", b"k%d\0\0" % index + TEXT) for index in range(500)), 32 * 97
    ),
    "a chunk of 2 GB": lambda: odd_files.PNG + b"\0\0\0\rIHDR" + bytes(4) + b"\x7f\xff\xff\xffeXIf",
    "a GIF of 20,000 frames": lambda: odd_files.gif_of(16, 16, 20_000),
    "a GIF of 65,535 x 65,535": lambda: odd_files.gif_of(65_535, 65_535, 1),
    "a WebP of 20,000 frames": lambda: odd_files.webp_of(16, 16, 20_000),
    "a WebP of 16,383 x 16,383": lambda: odd_files.webp_of(16_383, 16_383, 1),
    "100 WebP frames of 7,000 x 7,000": lambda: odd_files.webp_of(7_000, 7_000, 100),
    "an APNG of 5,000 frames": lambda: odd_files.apng_of(5_000, 5_000),
    "an APNG that claims 2,000,000,000": lambda: odd_files.apng_of(3, 2**31 - 1),
    "a TIFF of 20,000 pages": lambda: odd_files.tiff_of_pages(20_000),
    "a JPEG of 500 scans": lambda: odd_files.jpeg_of_scans(3_000, 500),
    "a BMP of 30,000 x 30,000": lambda: odd_files.claiming("BMP"),
    "a JPEG of 65,000 x 65,000": lambda: odd_files.claiming("JPEG"),
}
if "avif" in SUFFIXES:
    BOMBS["an AVIF of 16,000 x 16,000"] = lambda: odd_files.claiming("AVIF")

OPEN_BOMBS = """
import json, os, resource, sys, time
import av, numpy, torch, PIL.Image, PIL.ImageOps, PIL.ImageSequence
from svd_stages.svd_core.media import image_io
from svd_stages.svd_core.errors import ImageError

PIL.Image.init()
for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
        try:
            image_io.load_image(path)
            code = "loaded"
        except ImageError as error:
            code = error.code
        after = resource.getrusage(resource.RUSAGE_SELF)
        megabytes = (after.ru_maxrss - before.ru_maxrss) / 1024
        print(json.dumps([code, megabytes, time.process_time() - began]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def opened_bombs(tmp_path_factory) -> dict[str, tuple[str, float, float]]:
    """Return (code, MB, seconds) of each bomb, opened in a process of its own after all libraries were imported."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = [written(folder, make(), str(number)) for number, make in enumerate(BOMBS.values())]
    command = [sys.executable, "-c", OPEN_BOMBS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return dict(zip(BOMBS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_quickly_and_without_much_memory(opened_bombs, bomb):
    code, megabytes, seconds = opened_bombs[bomb]
    assert code in ("image.too_large", "image.damaged", "image.unsupported")
    assert megabytes <= 100
    assert seconds <= (2 if bomb.startswith(("13", "20")) else 8)


def test_scans_in_comments_thumbnails_and_after_the_image_do_not_count(tmp_path):
    for options in ({"progressive": True}, {"restart_marker_blocks": 1}, {}):
        thumbnail = io.BytesIO()
        NOISE.save(thumbnail, "JPEG", progressive=True)
        path = saved(tmp_path, NOISE, "a.jpg", comment=b"\xff\xda" * 500, **options)
        path.write_bytes(path.read_bytes() + thumbnail.getvalue() * 30)
        assert load_image(path).images.shape == (1, 96, 96, 3)


@pytest.mark.parametrize("marker", [b"\xff\xe0", b"\xff\xda"], ids=["APP0", "SOS"])
def test_a_jpeg_of_millions_of_segments_is_refused_early(tmp_path, marker):
    content = saved(tmp_path, NOISE, "a.jpg").read_bytes()
    path = written(tmp_path, content[:2] + (marker + b"\x00\x02") * 5_000_000 + content[2:])
    began = time.process_time()
    assert code_of(path) == "image.too_large" and time.process_time() - began < 1


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    path = saved(tmp_path, NOISE, "a.jpg")
    os.truncate(path, 1_500_000_000)
    with raises(ImageError, "image.too_large", 1_500_000_000, image_io.MAX_FILE_BYTES):
        load_image(path)
