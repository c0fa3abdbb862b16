"""Strange pictures: every depth, ink, turn, name and bomb is read as it is meant, or refused with a code."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from error_checks import check_facts, raises
from PIL import Image, ImageFile
from svd_stages.svd_core.errors import ImageError, SettingError
from svd_stages.svd_core.media import alpha_compositing, image_io

from . import odd_files

HEIGHT, WIDTH = 20, 37
RNG = np.random.default_rng(11)
DEEP = {channels: RNG.integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16) for channels in (1, 2, 3, 4)}
ONE_DEEP_STEP = 1 / 65535
AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="no AVIF"))


@pytest.fixture
def notes():
    """Collect the warnings of `load`."""
    WARNINGS.clear()
    return WARNINGS


def written(folder: Path, content: bytes, name: str = "a.png") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


WARNINGS: list = []


def load(path, background=None):
    loaded = image_io.load_image(path, background)
    WARNINGS.extend(loaded.warnings)
    return loaded.images, loaded.mask


def saved(folder: Path, picture: Image.Image, name: str = "a.png", **options) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def code_of(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return caught.value.code


def wanted_colours(samples: np.ndarray) -> np.ndarray:
    """(H, W, 3) float64 of samples with 16 bits."""
    return samples[..., [0, 0, 0] if samples.shape[2] < 3 else [0, 1, 2]].astype(np.float64) / 65535


# Depth


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "little tiff", "big tiff", "compressed tiff"])
def test_16_bits_a_channel_keep_every_digit(tmp_path, channels, kind):
    samples = DEEP[channels]
    if channels == 2 and kind != "png":
        with raises(ImageError, "image.unsupported", "PNG"):
            load(written(tmp_path, odd_files.tiff(samples)))
        return
    content = {
        "png": lambda: odd_files.deep_png(samples),
        "little tiff": lambda: odd_files.tiff(samples),
        "big tiff": lambda: odd_files.tiff(samples, ">"),
        "compressed tiff": lambda: odd_files.tiff(samples, compressed=True),
    }[kind]()
    images, mask = load(written(tmp_path, content), alpha_compositing.KEEP)
    assert images.dtype == torch.float32
    assert np.abs(images[0].double().numpy() - wanted_colours(samples)).max() <= ONE_DEEP_STEP / 100
    if channels in (2, 4):
        assert np.abs(1 - mask[0].double().numpy() - samples[..., -1] / 65535).max() <= ONE_DEEP_STEP / 100
    else:
        assert torch.equal(mask, torch.zeros(1, 64, 64))


def test_a_ramp_in_the_low_byte_keeps_its_256_levels(tmp_path):
    """Pillow keeps one of them."""
    ramp = np.repeat(np.arange(0x8000, 0x8100, dtype=np.uint16)[None, :, None].repeat(16, 0), 3, axis=2)
    images, _ = load(written(tmp_path, odd_files.deep_png(ramp)))
    assert len(images.unique()) == 256


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kept", [0.4, 0.97])
@pytest.mark.parametrize("write", [odd_files.deep_png, odd_files.tiff])
def test_a_truncated_deep_picture_is_refused(tmp_path, channels, kept, write):
    whole = write(DEEP[channels])
    assert code_of(written(tmp_path, whole[: int(len(whole) * kept)])) in ("image.damaged", "image.unsupported")


def test_depth_that_cannot_be_had_is_8_bits_and_said(tmp_path, notes):
    opaque = DEEP[4].copy()
    opaque[..., 3] = 65535
    opaque[0, 0] = (100 << 8, 50 << 8, 25 << 8, 128 << 8)  # in proportion to its alpha, as tag 338 says: 1
    images, _ = load(written(tmp_path, odd_files.tiff(opaque, t338=1)), alpha_compositing.KEEP)
    assert images.shape == (1, HEIGHT, WIDTH, 3)
    assert abs(float(images[0, 0, 0, 0]) - 200 / 255) < 0.02
    assert [each.code for each in notes] == ["image.depth"]


def test_float_grey_in_0_to_1_is_kept(tmp_path):
    grey = RNG.random((HEIGHT, WIDTH)).astype(np.float32)
    images, _ = load(saved(tmp_path, Image.fromarray(grey), "a.tiff"))
    assert torch.equal(images[0], torch.from_numpy(grey)[..., None].expand(-1, -1, 3))


@pytest.mark.parametrize("values", [(0, 255), (-1, 1), (0, 1.001), (0, float("nan")), (0, float("inf"))])
def test_float_grey_of_another_scale_is_refused_with_its_range(tmp_path, values):
    grey = np.resize(np.float32(values), (HEIGHT, WIDTH))
    path = saved(tmp_path, Image.fromarray(grey), "a.tiff")
    assert code_of(path) == "image.range"
    with raises(ImageError, "image.range", f"{grey.min():g}", f"{grey.max():g}"):
        load(path)


def test_32_bit_grey_beyond_16_bits_is_refused(tmp_path):
    grey = np.full((HEIGHT, WIDTH), 65536, np.int32)
    assert code_of(saved(tmp_path, Image.fromarray(grey), "a.tiff")) == "image.range"


# Turns


UPRIGHT = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint16).reshape(HEIGHT, WIDTH, 3) * 29
CORNERS = {  # where the stored first row and first column are to be seen: EXIF 2.32, table of tag 0x0112
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores for it to be shown upright, pixel by pixel from the words of the standard."""
    row_side, column_side = CORNERS[orientation]
    flip_sigmas = row_side in ("left", "right")
    height, width = upright.shape[:2]
    stored = np.zeros((width, height, 3) if flip_sigmas else upright.shape, upright.dtype)
    for row, column in np.ndindex(*stored.shape[:2]):
        place = {"top": row, "left": row, "bottom": -1 - row, "right": -1 - row}[row_side]
        other = {"left": column, "top": column, "right": -1 - column, "bottom": -1 - column}[column_side]
        stored[row, column] = upright[other, place] if flip_sigmas else upright[place, other]
    return stored


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["deep png", "deep tiff", "tiff", "jpeg", "webp"])
def test_all_turns_of_all_kinds(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = as_stored(UPRIGHT, orientation)
    if kind == "deep png":
        path = written(tmp_path, odd_files.deep_png(stored, odd_files.chunk(b"eXIf", exif.tobytes()[6:])))
    elif kind == "deep tiff":
        path = written(tmp_path, odd_files.tiff(stored, t274=orientation))
    elif kind == "tiff":
        path = written(tmp_path, odd_files.tiff((stored >> 8).astype(np.uint8), t274=orientation))
    else:
        smooth = Image.fromarray((stored >> 8).astype(np.uint8))
        path = saved(
            tmp_path, smooth, f"a.{kind}", exif=exif, quality=100, **({"lossless": True} if kind == "webp" else {})
        )
    images, _ = load(path)
    wanted = UPRIGHT / 65535 if kind.startswith("deep") else (UPRIGHT >> 8) / 255
    tolerance = 0.2 if kind == "jpeg" else 1e-6
    assert images.shape[1:3] == (HEIGHT, WIDTH)
    assert np.abs(images[0].double().numpy() - wanted).mean() <= tolerance / 4
    assert np.abs(images[0].double().numpy() - wanted).max() <= max(tolerance, 1e-6) * 3


# Inks and profiles


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """CIE Lab (D50) to sRGB in 0 to 255, float64: CIE 15, Bradford to D65, IEC 61966-2-1."""
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
"""Lab of each corner of the inks' cube: dull colours, inside of sRGB; paper is white, all inks are black."""
PAPER[0], PAPER[-1] = (100, 0, 0), (0, 0, 0)


@pytest.mark.parametrize("ending", ["tiff", "jpg"])
def test_inks_become_what_the_profile_in_the_file_says(tmp_path, ending, notes):
    patches = Image.fromarray(np.repeat(np.repeat(INKS.reshape(4, 4, 4), 16, 0), 16, 1), "CMYK")
    options = {"icc_profile": odd_files.ink_profile(PAPER), **({"quality": 100} if ending == "jpg" else {})}
    images, _ = load(saved(tmp_path, patches, f"a.{ending}", **options))
    centres = images[0, 8::16, 8::16].reshape(16, 3).double().numpy() * 255
    wanted = lab_to_srgb(PAPER)
    assert np.abs(centres - wanted).max() <= 4
    naive = np.asarray(patches.convert("RGB"), np.float64)[8::16, 8::16].reshape(16, 3)
    assert np.abs(naive - wanted).max() > 50
    assert not notes


@pytest.mark.parametrize("profile", [None, b"rubbish" * 40])
def test_inks_without_a_good_profile_are_a_guess_and_said_to_be(tmp_path, profile, notes):
    picture = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8), "CMYK")
    images, _ = load(saved(tmp_path, picture, "a.tiff", **({"icc_profile": profile} if profile else {})))
    assert np.array_equal((images[0].numpy() * 255).round(), np.asarray(picture.convert("RGB")))
    assert [each.code for each in notes] == ["image.inks"]
    check_facts(notes[0].text, "CMYK", "sRGB")


def test_the_inverted_inks_of_adobe_jpegs_are_turned_back(tmp_path):
    white = Image.new("CMYK", (32, 32), (0, 0, 0, 0))
    assert load(saved(tmp_path, white, "a.jpg"))[0].min() > 0.98


def test_a_wide_profile_is_ignored_as_in_comfyui_and_that_is_said(tmp_path, notes):
    from PIL import ImageCms

    colours = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile, told in ((lab, ["image.profile"]), (srgb, [])):
        notes.clear()
        images, _ = load(saved(tmp_path, Image.fromarray(colours), icc_profile=profile))
        assert np.array_equal((images[0].numpy() * 255).round(), colours)
        assert [each.code for each in notes] == told


def test_a_gamma_that_is_not_srgbs_is_said_to_be_ignored(tmp_path, notes):
    for gamma, told in ((100000, ["image.gamma"]), (45455, [])):
        notes.clear()
        gama = odd_files.chunk(b"gAMA", gamma.to_bytes(4, "big"))
        load(written(tmp_path, odd_files.deep_png(DEEP[3], gama)))
        assert [each.code for each in notes] == told


def test_lab_is_refused_by_name(tmp_path):
    path = saved(tmp_path, Image.new("LAB", (32, 32), (50, 20, 20)), "a.tiff")
    with raises(ImageError, "image.unsupported", "Lab"):
        load(path)


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "deep", "deep grey"])
@pytest.mark.parametrize("on", ["0.5", "white", "#336699", "0"])
def test_transparent_parts_are_put_on_the_background(tmp_path, mode, on, notes):
    if mode.startswith("deep"):
        samples = DEEP[4 if mode == "deep" else 2]
        path = written(tmp_path, odd_files.deep_png(samples))
        colours, alpha = wanted_colours(samples), samples[..., -1:] / 65535
    else:
        rgba = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8))
        if mode == "P":
            picture = Image.fromarray(RNG.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8), "P")
            picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
            path, shown = saved(tmp_path, picture, transparency=1), picture.convert("RGB")
            alpha = 1.0 - (np.asarray(picture) == 1)[..., None]
        else:
            path, shown = saved(tmp_path, rgba.convert(mode)), rgba.convert(mode).convert("RGB")
            alpha = np.asarray(rgba)[..., 3:] / 255
        if mode == "LA":
            shown = rgba.convert("LA").getchannel("L").convert("RGB")
        colours = np.asarray(shown) / 255
    ground = np.array(alpha_compositing.read_background(on))
    images, mask = load(path, alpha_compositing.read_background(on))
    assert np.abs(images[0].double().numpy() - (colours * alpha + ground * (1 - alpha))).max() < 1e-6
    assert np.abs(mask[0].double().numpy() - (1 - alpha[..., 0])).max() < 1e-6
    assert [each.code for each in notes] == ["image.transparent"] and "--background" not in notes[0].text


def test_without_a_choice_the_hidden_colours_stay_as_in_comfyui_and_that_is_said(tmp_path, notes):
    colours = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(colours))
    for choice, told in ((None, True), (alpha_compositing.KEEP, False)):
        notes.clear()
        images, _ = load(path, choice)
        assert np.array_equal((images[0].numpy() * 255).round(), colours[..., :3])
        assert any("--background" in note.text for note in notes) is told


def test_a_picture_that_only_could_be_transparent_is_left_to_the_last_bit(tmp_path, notes):
    colours = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    colours[..., 3] = 255
    path = saved(tmp_path, Image.fromarray(colours))
    grey, keep = (load(path, each)[0] for each in ((0.5, 0.5, 0.5), None))
    assert torch.equal(grey, keep)
    assert not notes


def test_every_form_of_a_transparent_picture_is_put_on_the_same_background(tmp_path):
    colours = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    picture = Image.fromarray(colours)
    ground = alpha_compositing.read_background("#204060")
    forms = [saved(tmp_path, picture), picture, colours, torch.from_numpy(colours), torch.from_numpy(colours / 255)]
    first, *others = [image_io.as_images(form, ground)[0] for form in forms]
    assert all((first - other).abs().max() < 1e-6 for other in others)
    assert np.array_equal(np.asarray(picture), colours)


@pytest.mark.parametrize("given", ["", "no colour", "1.5", "-0.1", "nan", (0.1, 0.2), (0, 0, 2), (0, "x", 0), None, 7])
def test_what_is_no_background_is_refused(given):
    with pytest.raises(SettingError) as caught:
        alpha_compositing.read_background(given)
    assert caught.value.code == "setting.background"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("keep", "keep"), ("white", (1, 1, 1)), ("#ff0000", (1, 0, 0)), ("0.25", (0.25,) * 3), (0, (0,) * 3),
     ((0, 0.5, 1), (0, 0.5, 1)), ("rgb(0, 255, 0)", (0, 1, 0))],
)  # fmt: skip
def test_a_background_is_read_as_it_is_said(given, meant):
    assert alpha_compositing.read_background(given) == meant


# Truncated files, whatever others told Pillow


@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "gif", "bmp", "webp"])
def test_truncated_files_are_refused_when_pillow_was_told_to_take_them(tmp_path, ending, monkeypatch):
    noise = Image.fromarray(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    whole = saved(tmp_path, noise, f"a.{ending}").read_bytes()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert code_of(written(tmp_path, whole[: len(whole) * 2 // 3], f"a.{ending}")) == "image.damaged"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert load(written(tmp_path, whole, f"a.{ending}"))[0].shape == (1, 96, 96, 3)


def test_threads_that_read_at_once_refuse_truncated_files_and_leave_pillow_as_it_was(tmp_path, monkeypatch):
    noise = Image.fromarray(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    whole = saved(tmp_path, noise, "a.jpg").read_bytes()
    path = written(tmp_path, whole[: len(whole) // 2], "a.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    loaded = []

    def load() -> None:
        for _ in range(20):
            try:
                loaded.append(image_io.load_image(path))
            except ImageError:
                continue

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == []
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


# Several pictures in one file


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_several_pictures_in_a_file_are_told_of(tmp_path, ending, notes):
    frames = [Image.new("RGB", (32, 32), (80 * number,) * 3) for number in range(3)]
    path = saved(tmp_path, frames[0], f"a.{ending}", save_all=True, append_images=frames[1:])
    assert load(path)[0].shape[0] == 3
    assert [each.code for each in notes] == ["image.several"]
    check_facts(notes[0].text, 3)


def test_pages_that_are_left_out_are_told_of(tmp_path, notes):
    pages = [Image.new("RGB", size) for size in ((32, 33), (33, 32), (32, 33))]
    load(saved(tmp_path, pages[0], "a.tiff", save_all=True, append_images=pages[1:]))
    assert [each.code for each in notes] == ["image.several"] * 2  # one for the omitted page, one for the others
    check_facts(notes[0].text, 1)


def test_a_tiff_that_is_followed_by_itself_ends(tmp_path):
    assert load(written(tmp_path, odd_files.tiff_in_a_circle()))[0].shape == (1, 20, 20, 3)


# Shapes


@pytest.mark.parametrize(("width", "height", "code"), [
    (1, 1, "image.too_small"), (15, 100, "image.too_small"), (1, 4000, "image.too_small"),
    (16, 129, "image.too_narrow"), (4000, 100, "image.too_narrow"), (16, 128, None), (1001, 577, None),
])  # fmt: skip
def test_slivers_are_refused_where_they_are_animated_and_nowhere_else(tmp_path, width, height, code):
    path = saved(tmp_path, Image.new("RGB", (width, height)))
    assert load(path)[0].shape == (1, height, width, 3)
    if code is None:
        assert image_io.as_images(path)[0].shape == (1, height, width, 3)
        return
    with raises(ImageError, code, f"{width}x{height}"):
        image_io.as_images(path)


# What is no file of a picture


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert code_of(tmp_path / "a.png") == "image.unreadable"
    assert code_of(Path("/dev/zero")) == "image.unreadable"


@pytest.mark.parametrize("given", [
    np.zeros((32, 32, 3), np.int64), np.zeros((32, 32, 3), np.uint16), np.zeros((32, 32, 3), bool),
    np.zeros((32, 32, 3), complex), np.zeros((32, 32, 3), object), np.full((32, 32, 3), 255.0),
    np.full((32, 32, 3), -1.0), np.full((32, 32, 3), np.nan), np.zeros((32, 32)), np.zeros(()),
    np.zeros((0, 32, 32, 3)), np.zeros((32, 32, 2)), np.full((32, 32, 3), 1e300), [[0.0]], b"bytes", None, 5,
    Image.new("I", (32, 32)), Image.new("F", (32, 32)), Image.new("LAB", (32, 32)),
], ids=lambda given: f"{type(given).__name__} {getattr(given, 'dtype', getattr(given, 'mode', ''))}")  # fmt: skip
def test_arrays_and_pictures_of_another_kind_are_refused(given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError):
            image_io.as_images(given)[0]


def test_arrays_of_every_layout_are_the_same_picture():
    values = RNG.random((HEIGHT, WIDTH, 3)).astype(np.float32)
    frozen = values.copy()
    frozen.flags.writeable = False
    forms = [values, values.astype(">f4"), np.asfortranarray(values), frozen, values[::-1].copy()[::-1],
             values.astype(np.float64), values.astype(np.longdouble), values[None]]  # fmt: skip
    first, *others = [image_io.as_images(form)[0] for form in forms]
    assert all(torch.equal(first, other) for other in others)


# Names


NAMES = [
    os.fsdecode(b"caf\xe9.png"), "🚀 éß.png",
    unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"),
    "x" * 251 + ".png", "new\nline.png", "-o.png", " .png",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_pictures_of_any_name_are_read_and_can_be_told_of(tmp_path, name, caplog):
    path = saved(tmp_path, Image.fromarray(RNG.integers(0, 256, (32, 32, 4), dtype=np.uint8)), "plain.png")
    path = path.rename(tmp_path / name)
    caplog.set_level(logging.INFO)
    assert load(path)[0].shape == (1, 32, 32, 3)
    caplog.text.encode("utf-8")
    json.dumps(caplog.text, ensure_ascii=False).encode("utf-8")
    path.write_bytes(b"rubbish")
    with pytest.raises(ImageError) as caught:
        load(path)
    str(caught.value).encode("utf-8")
    path.unlink()
    with pytest.raises(ImageError) as caught:
        load(path)
    str(caught.value).encode("utf-8")


# Bombs


TEXT = zlib.compress(bytes(1_000_000), 9)
LONG_TEXT = zlib.compress(bytes(200_000_000), 9)
BOMBS = {
    "13,000 x 13,000": lambda: odd_files.claiming_png(13_000, 13_000),
    "13,000 x 13,000 of 16 bits": lambda: odd_files.claiming_png(13_000, 13_000, bits=16),
    "20,000 x 20,000": lambda: odd_files.claiming_png(20_000, 20_000),
    "4,000,000,000 wide": lambda: odd_files.tiff(DEEP[2]).replace(
        b"\0\1\3\0\1\0\0\0\x25\0\0\0", b"\0\1\4\0\1\0\0\0\0\x28\x6b\xee"
    ),
    "one long text": lambda: odd_files.claiming_png(32, 32, odd_files.chunk(b"zTXt", b"k\0\0" + LONG_TEXT), 32 * 97),
    "one long profile": lambda: odd_files.claiming_png(32, 32, odd_files.chunk(b"iCCP", b"k\0\0" + LONG_TEXT), 32 * 97),
    "500 texts": lambda: odd_files.claiming_png(
        32, 32, b"".join(odd_files.chunk(b"zTXt", b"k%d\0\0" % each + TEXT) for each in range(500)), 32 * 97
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
if ".avif" in Image.registered_extensions():
    BOMBS["an AVIF of 16,000 x 16,000"] = lambda: odd_files.claiming("AVIF")

OPEN_BOMBS = """
import json, os, resource, sys, time
import av, numpy, torch, PIL.Image, PIL.ImageOps, PIL.ImageSequence
from svd_stages.svd_core.media import color, image_16bit, image_io, image_ops
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
        grown = (after.ru_maxrss - before.ru_maxrss) / 1024
        print(json.dumps([code, grown, time.process_time() - began]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def opened_bombs(tmp_path_factory) -> dict[str, tuple[str, float, float]]:
    """(code, MB, seconds) of each, opened in a process of its own after all libraries were loaded."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = [written(folder, make(), str(number)) for number, make in enumerate(BOMBS.values())]
    command = [sys.executable, "-c", OPEN_BOMBS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return dict(zip(BOMBS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_costs_little_and_is_refused(opened_bombs, bomb):
    code, megabytes, seconds = opened_bombs[bomb]
    assert code in ("image.too_large", "image.damaged", "image.unsupported")
    assert megabytes <= 100
    assert seconds <= (2 if bomb.startswith(("13", "20")) else 8)


def test_progressive_pictures_as_they_are_have_few_scans(tmp_path):
    noise = Image.fromarray(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    for options in ({"progressive": True}, {"restart_marker_blocks": 1}, {}):
        thumbnail = io.BytesIO()
        noise.save(thumbnail, "JPEG", progressive=True)
        path = saved(tmp_path, noise, "a.jpg", comment=b"\xff\xda" * 500, **options)
        path.write_bytes(path.read_bytes() + thumbnail.getvalue() * 30)
        assert load(path)[0].shape == (1, 96, 96, 3)


@pytest.mark.parametrize("marker", [b"\xff\xe0", b"\xff\xda"], ids=["APP0", "SOS"])
def test_a_jpeg_of_millions_of_segments_is_refused_without_counting_them(tmp_path, marker):
    picture = tmp_path / "picture.jpg"
    Image.new("RGB", (64, 64)).save(picture)
    content = picture.read_bytes()
    picture.write_bytes(content[:2] + (marker + b"\x00\x02") * 5_000_000 + content[2:])
    began = time.process_time()
    with pytest.raises(ImageError) as refused:
        load(picture)
    assert refused.value.code == "image.too_large" and time.process_time() - began < 1


def test_a_picture_with_gigabytes_behind_it_is_refused_unread(tmp_path):
    picture = tmp_path / "picture.jpg"
    Image.new("RGB", (64, 64)).save(picture)
    os.truncate(picture, 1_500_000_000)
    with raises(ImageError, "image.too_large", 1_500_000_000, image_io.MAX_FILE_BYTES):
        load(picture)
