"""Pictures of every usual kind are read whole, and everything else is refused with the way out."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from error_checks import raises
from PIL import Image
from svd_stages.svd_core.errors import ImageError
from svd_stages.svd_core.media import image_io

HEIGHT, WIDTH = 24, 36
RNG = np.random.default_rng(5)
ENDINGS = [e for e in ("png", "jpg", "webp", "tiff", "bmp", "gif", "avif") if f".{e}" in Image.registered_extensions()]
"""Of the formats that are read, those that this Pillow can write: avif came with 11.3."""
COLOURS = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)


def smooth() -> Image.Image:
    """A picture that survives lossy formats, with no symmetry."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.stack([y * 10, x * 7, (x + y) * 4], axis=-1).astype(np.uint8))


WARNINGS: list = []


def load(path, background=None):
    loaded = image_io.load_image(path, background)
    WARNINGS.extend(loaded.warnings)
    return loaded.images, loaded.mask


def saved(folder: Path, picture: Image.Image, name: str, **options) -> Path:
    picture.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff", "a.bmp"])
def test_a_lossless_picture_comes_in_as_it_is(tmp_path, name):
    colours = COLOURS[..., :3]
    options = {"lossless": True} if name.endswith("webp") else {}
    images, mask = load(saved(tmp_path, Image.fromarray(colours), name, **options))
    assert images.dtype == mask.dtype == torch.float32
    assert torch.equal(images, torch.from_numpy(colours.astype(np.float32) / 255)[None])
    assert torch.equal(mask, torch.zeros(1, 64, 64))


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending in ("jpg", "avif")])
def test_a_lossy_picture_comes_in_nearly_as_it_is(tmp_path, ending):
    images, _ = load(saved(tmp_path, smooth(), f"a.{ending}", quality=95))
    assert (images[0] * 255 - torch.from_numpy(np.asarray(smooth(), np.float32))).abs().mean() < 4


def test_the_format_shows_in_the_content_not_in_the_name(tmp_path):
    path = saved(tmp_path, smooth(), "really_a_png.txt", format="PNG")
    assert load(path)[0].shape == (1, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_the_mask_and_leaves_the_colours(tmp_path, mode):
    picture = Image.fromarray(COLOURS).convert(mode)
    images, mask = load(saved(tmp_path, picture, "a.png"))
    assert torch.equal(mask, 1 - torch.from_numpy(COLOURS[None, ..., 3].astype(np.float32) / 255))
    colours = np.asarray(Image.fromarray(COLOURS[..., :3]).convert(mode[:-1]).convert("RGB"), np.float32)
    assert torch.equal(images, torch.from_numpy(colours)[None] / 255)


def test_a_transparent_colour_of_a_palette_becomes_the_mask(tmp_path):
    indices = RNG.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    _, mask = load(saved(tmp_path, picture, "a.png", transparency=1))
    assert torch.equal(mask, torch.from_numpy(indices == 1).float()[None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(tmp_path, orientation):
    turned_back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    upright = COLOURS[..., :3]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(np.ascontiguousarray(turned_back(upright))), "a.png", exif=exif)
    images, _ = load(path)
    assert np.array_equal((images[0].numpy() * 255).round().astype(np.uint8), upright)


@pytest.mark.parametrize("kind", ["16-bit png", "32-bit tiff"])
def test_deep_grey_is_not_blown_out(tmp_path, kind):
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).round()
    if kind == "16-bit png":
        path = saved(tmp_path, Image.fromarray(grey.astype(np.uint16)), "a.png")
    else:
        path = saved(tmp_path, Image.fromarray(grey.astype(np.int32)), "a.tiff")
    images, _ = load(path)
    assert (images[0] - torch.from_numpy(grey / 65535)[..., None]).abs().max() < 1e-6


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_an_animation_becomes_a_batch_of_its_frames(tmp_path, ending):
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), 60 * index, np.uint8)) for index in range(4)]
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path, frames[0], f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    images, mask = load(path)
    assert images.shape == (4, HEIGHT, WIDTH, 3)
    assert mask.shape[0] == 4
    assert (images.mean(dim=(1, 2, 3)) * 255).round().tolist() == [0, 60, 120, 180]


def test_pages_of_another_size_are_left_out(tmp_path):
    pages = [Image.new("RGB", size, colour) for size, colour in (((8, 9), "red"), ((9, 8), "lime"), ((8, 9), "blue"))]
    images, _ = load(saved(tmp_path, pages[0], "a.tiff", save_all=True, append_images=pages[1:]))
    assert images[:, 0, 0].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_frames_with_and_without_transparency_share_one_mask_size(tmp_path):
    pages = [Image.new("RGB", (8, 9), "red"), Image.new("RGBA", (8, 9), (0, 0, 0, 0))]
    _, mask = load(saved(tmp_path, pages[0], "a.tiff", save_all=True, append_images=pages[1:]))
    assert mask.shape == (2, 9, 8)
    assert (mask[0].max(), mask[1].min()) == (0, 1)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(tmp_path, ending, kept):
    noise = Image.fromarray(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    path = saved(tmp_path, noise, f"a.{ending}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ImageError) as caught:
        load(path)
    assert caught.value.code in ("image.damaged", "image.unsupported")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_file_gives_an_image_or_an_image_error(tmp_path, ending):
    path = saved(tmp_path, smooth(), f"a.{ending}")
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for position in RNG.integers(0, min(len(whole), 300), 4):
            damaged[position] = RNG.integers(0, 256)
        path.write_bytes(damaged)
        try:
            images, _ = load(path)
        except ImageError:
            continue
        assert images.ndim == 4


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    for name, code in (("a.png", "image.missing"), ("a.png/b.png", "image.missing"), ("", "image.unreadable")):
        with pytest.raises(ImageError) as caught:
            load(tmp_path / name)
        assert caught.value.code == code


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"SIMPLE  =                    T",
        b"8BPS\0\1",
    ],
)
def test_what_is_no_picture_of_a_known_format_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with raises(ImageError, "image.unsupported", "PNG", "JPEG"):
        load(tmp_path / "a.png")


def png_that_claims(width: int, height: int) -> bytes:
    """A valid PNG header and the first bytes of very many zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7072, 9500, 13000, 20000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side, recwarn, monkeypatch):
    def explode(*_, **__):
        raise AssertionError("decoded")

    (tmp_path / "a.png").write_bytes(png_that_claims(side, side))
    monkeypatch.setattr(Image.Image, "load", explode)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    with raises(ImageError, "image.too_large", 50):
        load(tmp_path / "a.png")
    assert not recwarn.list


def test_an_animation_is_limited_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(image_io, "MAX_TOTAL_PIXELS", HEIGHT * WIDTH * 3)
    for count, fits in ((3, True), (6, False)):
        frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), 30 * index, np.uint8)) for index in range(count)]
        path = saved(tmp_path, frames[0], "a.webp", save_all=True, append_images=frames[1:])
        if fits:
            assert load(path)[0].shape[0] == count
        else:
            with raises(ImageError, "image.too_large", count):
                load(path)


def test_nothing_of_the_file_stays_open(tmp_path):
    buffer = io.BytesIO()
    smooth().save(buffer, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    images, _ = load(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert images.sum() > 0
