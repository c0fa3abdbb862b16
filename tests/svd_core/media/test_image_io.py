"""Image files, PIL images and arrays of every format, depth, color space and orientation are loaded exactly."""

from __future__ import annotations

import itertools
import json
import os
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from error_checks import check_facts, raises
from PIL import Image, ImageCms
from svd_stages.svd_core.errors import ImageError, SettingError
from svd_stages.svd_core.media.alpha_compositing import KEEP, read_background
from svd_stages.svd_core.media.image_io import as_images, image_size, load_image

from . import odd_files
from .odd_files import saved, written

HEIGHT, WIDTH = 20, 37
RNG = np.random.default_rng(11)
RGBA = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
RGB = np.ascontiguousarray(RGBA[..., :3])
SAMPLES = {channels: RNG.integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16) for channels in (1, 2, 3, 4)}
"""Random 16-bit images by number of channels."""
LOSSY = [suffix for suffix in ("jpg", "avif") if f".{suffix}" in Image.registered_extensions()]
"""Pillow writes AVIF from 11.3 on."""


def codes(loaded) -> list[str]:
    return [warning.code for warning in loaded.warnings]


def to_bytes(images: torch.Tensor) -> np.ndarray:
    return (images[0].numpy() * 255).round().astype(np.uint8)


def colors_of(samples: np.ndarray) -> np.ndarray:
    """Convert 16-bit samples to (H, W, 3) float64 in [0, 1]."""
    return samples[..., [0, 0, 0] if samples.shape[2] < 3 else [0, 1, 2]].astype(np.float64) / 65535


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp"])
def test_lossless_formats_are_exact_and_detected_by_content(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, Image.fromarray(RGB), f"a.{suffix}", **options).rename(tmp_path / "a.txt")
    loaded = load_image(path)
    assert loaded.images.dtype == loaded.mask.dtype == torch.float32
    assert torch.equal(loaded.images, torch.from_numpy(RGB.astype(np.float32) / 255)[None])
    assert torch.equal(loaded.mask, torch.zeros(1, 64, 64)) and loaded.warnings == ()


@pytest.mark.parametrize("suffix", LOSSY)
def test_lossy_formats_are_close(tmp_path, suffix):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    smooth = np.stack([y * 10, x * 6, (x + y) * 4], axis=-1).astype(np.uint8)
    images = load_image(saved(tmp_path, Image.fromarray(smooth), f"a.{suffix}", quality=95)).images
    assert np.abs(to_bytes(images).astype(int) - smooth).mean() < 4


def test_the_file_is_closed_and_its_memory_copied(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB))
    images = load_image(path).images
    path.write_bytes(b"\0" * path.stat().st_size)
    assert np.array_equal(to_bytes(images), RGB)


# Bit depth


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "little-endian tiff", "big-endian tiff", "compressed tiff"])
def test_16_bit_samples_keep_their_precision(tmp_path, channels, kind):
    samples = SAMPLES[channels]
    if kind == "png":
        content = odd_files.deep_png(samples)
    else:
        content = odd_files.tiff(samples, ">" if kind.startswith("big") else "<", kind.startswith("compressed"))
    path = written(tmp_path, content)
    if channels == 2 and kind != "png":  # Pillow does not know this kind
        with raises(ImageError, "image.unsupported", path, "PNG"):
            load_image(path)
        return
    loaded = load_image(path, KEEP)
    assert np.abs(loaded.images[0].double().numpy() - colors_of(samples)).max() <= 0.01 / 65535
    if channels in (2, 4):
        assert np.abs(1 - loaded.mask[0].double().numpy() - samples[..., -1] / 65535).max() <= 0.01 / 65535
    else:
        assert torch.equal(loaded.mask, torch.zeros(1, 64, 64))
    assert loaded.warnings == ()


def test_16_bit_files_that_two_decoders_read_differently_are_loaded_with_8_bits(tmp_path):
    samples = SAMPLES[4].copy()
    samples[..., 3] = 65535
    samples[0, 0] = (100 << 8, 50 << 8, 25 << 8, 128 << 8)  # premultiplied, as tag 338 says: 1
    loaded = load_image(written(tmp_path, odd_files.tiff(samples, t338=1)), KEEP)
    assert abs(float(loaded.images[0, 0, 0, 0]) - 200 / 255) < 0.02
    assert codes(loaded) == ["image.depth"]


def test_32_bit_grey_is_scaled_by_65535_and_float_grey_kept(tmp_path):
    integers = RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.int32)
    floats = RNG.random((HEIGHT, WIDTH)).astype(np.float32)
    for grey, expected in ((integers, integers / np.float32(65535)), (floats, floats)):
        images = load_image(saved(tmp_path, Image.fromarray(grey), "a.tiff")).images
        assert torch.allclose(images[0], torch.from_numpy(expected).float()[..., None], atol=1e-7)


@pytest.mark.parametrize("values", [(0, 255), (-1, 1), (0, 1.001), (0, float("nan")), (0, float("inf")), (0, 65536)])
def test_grey_of_another_scale_is_refused_with_its_range(tmp_path, values):
    dtype = np.int32 if values[1] == 65536 else np.float32
    path = saved(tmp_path, Image.fromarray(np.resize(np.array(values, dtype), (HEIGHT, WIDTH))), "a.tiff")
    low, high = (np.float32(values).min(), np.float32(values).max())
    with raises(ImageError, "image.range", f"{low:g}", f"{high:g}"):
        load_image(path)


# Orientation


UPRIGHT = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint16).reshape(HEIGHT, WIDTH, 3) * 29
CORNERS = {  # where the stored first row and first column belong: EXIF 2.32, table of tag 0x0112
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def stored(orientation: int) -> np.ndarray:
    """Return `UPRIGHT` as a camera stores it, pixel by pixel from the words of the standard."""
    row_side, column_side = CORNERS[orientation]
    transposed = row_side in ("left", "right")
    pixels = np.zeros((WIDTH, HEIGHT, 3) if transposed else UPRIGHT.shape, UPRIGHT.dtype)
    for row, column in np.ndindex(*pixels.shape[:2]):
        first = row if row_side in ("top", "left") else -1 - row
        second = column if column_side in ("top", "left") else -1 - column
        pixels[row, column] = UPRIGHT[second, first] if transposed else UPRIGHT[first, second]
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["16-bit png", "16-bit tiff", "png", "tiff", "jpeg", "webp"])
def test_images_are_turned_upright(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, eight_bit = stored(orientation), (stored(orientation) >> 8).astype(np.uint8)
    if kind == "16-bit png":
        path = written(tmp_path, odd_files.deep_png(pixels, odd_files.chunk(b"eXIf", exif.tobytes()[6:])))
    elif kind.endswith("tiff"):
        path = written(tmp_path, odd_files.tiff(pixels if "16" in kind else eight_bit, t274=orientation))
    else:
        options = {"lossless": True} if kind == "webp" else {}
        path = saved(tmp_path, Image.fromarray(eight_bit), f"a.{kind}", exif=exif, quality=100, **options)
    images = load_image(path).images
    expected = UPRIGHT / 65535 if "16" in kind else (UPRIGHT >> 8) / 255
    assert images.shape[1:3] == (HEIGHT, WIDTH)
    assert image_size(path) == (WIDTH, HEIGHT)
    error = np.abs(images[0].double().numpy() - expected)
    assert (error.mean() <= 0.05 and error.max() <= 0.6) if kind == "jpeg" else error.max() <= 1e-6


# Color spaces


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Convert CIE Lab (D50) to sRGB in 0 to 255, float64: CIE 15, Bradford to D65, IEC 61966-2-1."""
    f = np.stack([(lab[..., 0] + 16) / 116 + lab[..., 1] / 500, (lab[..., 0] + 16) / 116,
                  (lab[..., 0] + 16) / 116 - lab[..., 2] / 200], -1)  # fmt: skip
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.96422, 1, 0.82521)
    to_linear = np.array([[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540],
                          [0.0719453, -0.2289914, 1.4052427]])  # fmt: skip
    linear = (xyz @ to_linear.T).clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


INKS = np.array(list(itertools.product((0, 255), repeat=4)), np.uint8)
PAPER = np.stack([90 - 10.0 * INKS[:, :3].sum(1) / 255 - 40 * (INKS[:, 3] / 255), 12.0 - INKS[:, 0] / 12,
                  INKS[:, 2] / 16 - 8.0], -1)  # fmt: skip
"""Lab of each corner of the CMYK cube: muted colors inside sRGB; no ink is white, all inks are black."""
PAPER[0], PAPER[-1] = (100, 0, 0), (0, 0, 0)


@pytest.mark.parametrize("suffix", ["tiff", "jpg"])
def test_cmyk_is_converted_with_the_profile_of_the_file(tmp_path, suffix):
    patches = Image.fromarray(np.repeat(np.repeat(INKS.reshape(4, 4, 4), 16, 0), 16, 1), "CMYK")
    options = {"icc_profile": odd_files.ink_profile(PAPER), **({"quality": 100} if suffix == "jpg" else {})}
    loaded = load_image(saved(tmp_path, patches, f"a.{suffix}", **options))
    centers = loaded.images[0, 8::16, 8::16].reshape(16, 3).double().numpy() * 255
    expected = lab_to_srgb(PAPER)
    assert np.abs(centers - expected).max() <= 4
    naive = np.asarray(patches.convert("RGB"), np.float64)[8::16, 8::16].reshape(16, 3)
    assert np.abs(naive - expected).max() > 50
    assert loaded.warnings == ()


@pytest.mark.parametrize("profile", [None, b"rubbish" * 40])
def test_cmyk_without_a_usable_profile_is_approximate_and_warns(tmp_path, profile):
    image = Image.fromarray(RGBA, "CMYK")
    options = {"icc_profile": profile} if profile else {}
    loaded = load_image(saved(tmp_path, image, "a.tiff", **options))
    assert np.array_equal(to_bytes(loaded.images), np.asarray(image.convert("RGB")))
    assert codes(loaded) == ["image.inks"] and [w.code for w in as_images(image)[1]] == ["image.inks"]
    check_facts(loaded.warnings[0].text, "CMYK", "sRGB")


def test_the_inverted_cmyk_of_adobe_jpegs_is_recognized(tmp_path):
    white = Image.new("CMYK", (32, 32), (0, 0, 0, 0))
    assert load_image(saved(tmp_path, white, "a.jpg")).images.min() > 0.98


def test_profiles_of_rgb_files_and_gamma_are_ignored_as_in_comfyui_with_a_warning(tmp_path):
    for color_space, expected in (("XYZ", ["image.profile"]), ("sRGB", [])):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(color_space)).tobytes()
        loaded = load_image(saved(tmp_path, Image.fromarray(RGB), icc_profile=profile))
        assert np.array_equal(to_bytes(loaded.images), RGB) and codes(loaded) == expected
    for gamma, expected in ((100_000, ["image.gamma"]), (45_455, [])):
        chunk = odd_files.chunk(b"gAMA", gamma.to_bytes(4, "big"))
        assert codes(load_image(written(tmp_path, odd_files.deep_png(SAMPLES[3], chunk)))) == expected


def test_lab_is_refused(tmp_path):
    path = saved(tmp_path, Image.new("LAB", (32, 32), (50, 20, 20)), "a.tiff")
    with raises(ImageError, "image.unsupported", "Lab"):
        load_image(path)


# Transparency


def transparent_file(folder, mode: str):
    """Save an image with transparency. Return the path, its colors (H, W, 3) and its alpha (H, W, 1), float64."""
    if mode.startswith("16-bit"):
        samples = SAMPLES[4 if mode == "16-bit RGBA" else 2]
        return written(folder, odd_files.deep_png(samples)), colors_of(samples), samples[..., -1:] / 65535
    if mode == "P":
        indices = RNG.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
        image = Image.fromarray(indices, "P")
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        path, alpha = saved(folder, image, transparency=1), 1.0 - (indices == 1)[..., None]
        return path, np.asarray(image.convert("RGB")) / 255, alpha
    image = Image.fromarray(RGBA).convert(mode)
    opaque = image.getchannel("L").convert("RGB") if mode == "LA" else image.convert("RGB")
    return saved(folder, image), np.asarray(opaque) / 255, RGBA[..., 3:] / 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "16-bit RGBA", "16-bit LA"])
@pytest.mark.parametrize("background", ["0.5", "white", "#336699", "0", "keep", None])
def test_transparent_parts_get_the_background(tmp_path, mode, background):
    path, colors, alpha = transparent_file(tmp_path, mode)
    color = None if background is None else read_background(background)
    loaded = load_image(path, color)
    expected = colors if color in (None, KEEP) else colors * alpha + np.array(color) * (1 - alpha)
    assert np.abs(loaded.images[0].double().numpy() - expected).max() < 1e-6
    assert np.abs(loaded.mask[0].double().numpy() - (1 - alpha[..., 0])).max() < 1e-6
    assert codes(loaded) == ([] if background == "keep" else ["image.transparent"])
    if background is None:
        check_facts(loaded.warnings[0].text, "`background`")


def test_an_opaque_alpha_channel_changes_nothing(tmp_path):
    opaque = RGBA.copy()
    opaque[..., 3] = 255
    path = saved(tmp_path, Image.fromarray(opaque))
    for background in ((0.5, 0.5, 0.5), None):
        loaded = load_image(path, background)
        assert np.array_equal(to_bytes(loaded.images), RGB) and loaded.warnings == ()


def test_every_form_of_a_transparent_image_gets_the_same_background(tmp_path):
    image, background = Image.fromarray(RGBA), read_background("#204060")
    forms = [saved(tmp_path, image), image, RGBA, torch.from_numpy(RGBA), torch.from_numpy(RGBA / 255)]
    before = RGBA.copy()
    (first, run_warnings), *following = [as_images(form, background) for form in forms]
    assert [warning.code for warning in run_warnings] == ["image.transparent"]
    for images, other_warnings in following:
        assert (images - first).abs().max() < 1e-6 and len(other_warnings) == 1
    assert np.array_equal(RGBA, before)


@pytest.mark.parametrize("value", ["", "no color", "1.5", "-0.1", "nan", (0.1, 0.2), (0, 0, 2), (0, "x", 0), None, 7])
def test_invalid_backgrounds_are_refused(value):
    with raises(SettingError, "setting.background"):
        read_background(value)


@pytest.mark.parametrize(
    ("value", "color"),
    [("keep", "keep"), ("white", (1, 1, 1)), ("#ff0000", (1, 0, 0)), ("0.25", (0.25,) * 3), (0, (0,) * 3),
     ((0, 0.5, 1), (0, 0.5, 1)), ("rgb(0, 255, 0)", (0, 1, 0))],
)  # fmt: skip
def test_backgrounds_are_parsed(value, color):
    assert read_background(value) == color


# Several images in one file


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_an_animation_becomes_a_batch_of_its_frames(tmp_path, suffix):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), (60 * index,) * 3) for index in range(4)]
    options = {"lossless": True} if suffix == "webp" else {}
    loaded = load_image(saved(tmp_path, frames[0], f"a.{suffix}", save_all=True, append_images=frames[1:], **options))
    assert loaded.images.shape == (4, HEIGHT, WIDTH, 3) and loaded.mask.shape[0] == 4
    assert (loaded.images.mean(dim=(1, 2, 3)) * 255).round().tolist() == [0, 60, 120, 180]
    assert codes(loaded) == ["image.several"]
    check_facts(loaded.warnings[0].text, 4)


def test_pages_of_another_size_are_skipped_with_a_warning(tmp_path):
    pages = [Image.new("RGB", size, color) for size, color in (((8, 9), "red"), ((9, 8), "lime"), ((8, 9), "blue"))]
    loaded = load_image(saved(tmp_path, pages[0], "a.tiff", save_all=True, append_images=pages[1:]))
    assert loaded.images[:, 0, 0].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert codes(loaded) == ["image.several"] * 2  # one for the skipped page, one for the others
    check_facts(loaded.warnings[0].text, 1)


def test_opaque_and_transparent_pages_share_one_mask(tmp_path):
    pages = [Image.new("RGB", (8, 9), "red"), Image.new("RGBA", (8, 9), (0, 0, 0, 0))]
    mask = load_image(saved(tmp_path, pages[0], "a.tiff", save_all=True, append_images=pages[1:])).mask
    assert mask.shape == (2, 9, 8) and (mask[0].max(), mask[1].min()) == (0, 1)


# as_images


@pytest.mark.parametrize(("width", "height", "code"), [
    (1, 1, "image.too_small"), (15, 100, "image.too_small"), (1, 4000, "image.too_small"),
    (16, 129, "image.too_narrow"), (4000, 100, "image.too_narrow"), (16, 128, None), (1001, 577, None),
])  # fmt: skip
def test_only_images_to_animate_must_not_be_too_small_or_narrow(tmp_path, width, height, code):
    path = saved(tmp_path, Image.new("RGB", (width, height)))
    assert load_image(path).images.shape == (1, height, width, 3)
    if code is None:
        assert as_images(path)[0].shape == (1, height, width, 3)
        return
    with raises(ImageError, code, f"{width}x{height}"):
        as_images(path)


@pytest.mark.parametrize("value", [
    np.zeros((32, 32, 3), np.int64), np.zeros((32, 32, 3), np.uint16), np.zeros((32, 32, 3), bool),
    np.zeros((32, 32, 3), complex), np.zeros((32, 32, 3), object), np.full((32, 32, 3), 255.0),
    np.full((32, 32, 3), -1.0), np.full((32, 32, 3), np.nan), np.zeros((32, 32)), np.zeros(()),
    np.zeros((0, 32, 32, 3)), np.zeros((32, 32, 2)), np.full((32, 32, 3), 1e300), [[0.0]], b"bytes", None, 5,
    Image.new("I", (32, 32)), Image.new("F", (32, 32)), Image.new("LAB", (32, 32)),
], ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', getattr(value, 'mode', ''))}")  # fmt: skip
def test_other_types_shapes_and_scales_are_refused(value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError):
            as_images(value)


def test_arrays_of_every_memory_layout_are_the_same_image():
    values = RNG.random((HEIGHT, WIDTH, 3)).astype(np.float32)
    read_only = values.copy()
    read_only.flags.writeable = False
    forms = [values, values.astype(">f4"), np.asfortranarray(values), read_only, values[::-1].copy()[::-1],
             values.astype(np.float64), values.astype(np.longdouble), values[None]]  # fmt: skip
    first, *following = [as_images(form)[0] for form in forms]
    assert all(torch.equal(first, images) for images in following)


NAMES = [
    os.fsdecode(b"caf\xe9.png"), "🚀 éß.png",
    unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"),
    "x" * 251 + ".png", "new\nline.png", "-o.png", " .png",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_files_of_any_name_are_loaded_and_messages_can_be_printed(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(RGBA)).rename(tmp_path / name)
    loaded = load_image(path)
    assert loaded.images.shape == (1, HEIGHT, WIDTH, 3)
    texts = [warning.text for warning in loaded.warnings]
    path.write_bytes(b"rubbish")
    for _ in ("damaged", "missing"):
        with pytest.raises(ImageError) as caught:
            load_image(path)
        texts.append(str(caught.value))
        path.unlink(missing_ok=True)
    assert len(texts) == 3
    json.dumps(texts, ensure_ascii=False).encode("utf-8")
