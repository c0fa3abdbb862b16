"""HEIC photographs open when pillow-heif is installed, and the error names it when it is not."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from error_checks import raises
from PIL import Image, ImageFile
from svd_stages.svd_core.errors import ImageError
from svd_stages.svd_core.media import image_io
from svd_stages.svd_core.media.image_io import KEEP, load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def container(*brands: bytes) -> bytes:
    """Return an `ftyp` box, as the files of ISO/IEC 14496-12 begin, and raw pixels."""
    major, *compatible = brands
    body = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body + PIXELS.tobytes()


class RawHeif(ImageFile.ImageFile):
    """A reader of `container` in place of pillow-heif's."""

    format, format_description = "HEIF", "raw pixels behind a box"

    def _open(self):
        start = int.from_bytes(self.fp.read(4), "big")
        self._size, self._mode = (32, 24), "RGB"
        self.tile = [("raw", (0, 0, 32, 24), start, ("RGB", 0, 1))]


@pytest.fixture
def installed(monkeypatch):
    """Install a package pillow_heif that registers `RawHeif`."""
    monkeypatch.setattr(image_io, "has_extra", lambda package: package == "pillow_heif")
    opener = types.ModuleType("pillow_heif")
    opener.register_heif_opener = lambda: Image.register_open("HEIF", RawHeif, lambda prefix: prefix[4:8] == b"ftyp")
    monkeypatch.setitem(sys.modules, "pillow_heif", opener)
    monkeypatch.setattr(Image, "OPEN", {name: reader for name, reader in Image.OPEN.items() if name != "HEIF"})
    monkeypatch.setattr(Image, "ID", [*Image.ID])


@pytest.mark.parametrize("brands", [(b"heic", b"mif1"), (b"mif1", b"heix"), (b"msf1", b"hevc")])
def test_a_heic_photograph_is_read_by_pillow_heif(tmp_path, installed, brands):
    (tmp_path / "a.heic").write_bytes(container(*brands))
    assert np.array_equal((load_image(tmp_path / "a.heic", KEEP).images[0] * 255).round().numpy(), PIXELS)


@pytest.mark.skipif("HEIF" in Image.OPEN, reason="a reader is registered")
def test_without_pillow_heif_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(image_io, "has_extra", lambda package: False)
    (tmp_path / "a.heic").write_bytes(container(b"heic", b"mif1"))
    with raises(ImageError, "image.unsupported", "a.heic", "HEIC", "pip install pillow-heif"):
        load_image(tmp_path / "a.heic", KEEP)


@pytest.mark.parametrize("brands", [(b"avif", b"mif1"), (b"mif1", b"avif"), (b"isom", b"mp42")])
def test_other_files_of_this_container_do_not_ask_for_it(tmp_path, installed, brands):
    (tmp_path / "a.bin").write_bytes(container(*brands))
    with pytest.raises(ImageError) as refused:
        load_image(tmp_path / "a.bin", KEEP)
    assert "pillow-heif" not in str(refused.value) and "HEIF" not in Image.OPEN


def test_a_real_photograph_if_the_package_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(PIXELS).resize((256, 192))).save(tmp_path / "a.heic", quality=95)
    expected = np.asarray(Image.fromarray(PIXELS).resize((256, 192))) / 255
    assert np.abs(load_image(tmp_path / "a.heic", KEEP).images[0].numpy() - expected).mean() < 0.05
