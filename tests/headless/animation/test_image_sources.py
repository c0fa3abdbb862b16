"""Files, folders, patterns, addresses and standard input name the images to animate."""

from __future__ import annotations

import io
import os
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from error_checks import raises
from http_serving import send, serving
from PIL import Image
from svd_stages.headless.animation import image_sources
from svd_stages.headless.animation.image_sources import MAX_IN_FOLDER, find_images
from svd_stages.svd_core.errors import ImageError
from svd_stages.svd_core.media.alpha_compositing import KEEP


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.png", ".hidden.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(image) -> list[str]:
    return [source.file_name for source in find_images(image)]


def test_folders_patterns_and_lists_are_expanded_in_order(folder):
    for image in (str(folder), folder, ".", "*.png", folder / "*.png", ["a.png", Path("b.png")], "[ab].png"):
        assert names(image) == ["a.png", "b.png"]
    assert names(["b.png", "*"]) == ["b.png", "a.png", "b.png", "notes.txt"]


def test_an_existing_file_is_no_pattern(folder):
    os.rename("b.png", "[a].png")
    assert names("[a].png") == ["[a].png"]


def test_an_empty_or_large_folder_is_refused(folder):
    (folder / "empty" / "folder.png").mkdir(parents=True)
    for missing in ("empty", "*.jpeg", []):
        with raises(ImageError, "image.missing"):
            find_images(missing)
    for index in range(MAX_IN_FOLDER + 1):
        (folder / "empty" / f"{index}.jpg").touch()
    with raises(ImageError, "image.too_many", "empty", MAX_IN_FOLDER + 1, MAX_IN_FOLDER, "batch run"):
        find_images("empty")


def test_a_file_standard_input_and_an_address_are_the_same_image(folder, monkeypatch):
    content = (folder / "a.png").read_bytes()
    stdin = types.SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
    monkeypatch.setattr(image_sources.sys, "stdin", stdin)
    with serving(send(content)) as address:
        (from_address,) = find_images(address + "?token=1/2")
        loaded = [source.read(KEEP)[0] for source in (*find_images(["a.png", "-"]), from_address)]
        assert torch.equal(loaded[0], loaded[1]) and torch.equal(loaded[0], loaded[2])
        assert find_images("-")[0].file_name == "standard_input.png"  # what `run` says that it does not find
        assert from_address.file_name == "photo.png" and from_address.stem == "photo"
        with raises(ImageError, "image.download", address):
            from_address.read(KEEP, allow_network=False)
    with raises(ImageError, "image.missing"):  # it was read to its end
        find_images("-")[0].read(KEEP)


def test_standard_input_is_bounded(monkeypatch):
    monkeypatch.setattr(image_sources, "MAX_FILE_BYTES", 10)
    stdin = types.SimpleNamespace(buffer=io.BytesIO(b"x" * 100), isatty=lambda: False)
    monkeypatch.setattr(image_sources.sys, "stdin", stdin)
    with raises(ImageError, "image.too_large", 10):
        find_images("-")[0].read(KEEP)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("http://a.b/c/d.jpg", "d.jpg"),
        ("https://a.b/c/", "image.png"),
        ("https://a.b", "image.png"),
        ("HTTP://a.b/../..%2fx%00.png?y=/z#/w", "2fx_00.png"),
        ("http://a.b/.ssh", "ssh"),
    ],
)
def test_the_name_of_an_address_is_a_plain_file_name(address, name):
    assert names(address) == [name]
