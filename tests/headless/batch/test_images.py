"""Images of a batch are known by content, hashed once, and inside one folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import pytest
from error_checks import check_error, raises
from svd_stages.headless.batch import images as images_module
from svd_stages.headless.batch.images import Image, ImageFolder, check_unchanged
from svd_stages.headless.batch.ledger import Ledger
from svd_stages.svd_core.errors import ImageError


@pytest.fixture
def ledger():
    with contextlib.closing(Ledger(None)) as ledger:
        yield ledger


@pytest.fixture
def root(tmp_path) -> Path:
    """Return a folder of images. Its sibling must not be readable through it."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    (tmp_path / "photos" / "a.png").write_bytes(b"a")
    (tmp_path / "photos" / "sub" / "b.png").write_bytes(b"b")
    (tmp_path / "photos-secret").mkdir()
    (tmp_path / "photos-secret" / "key.png").write_bytes(b"key")
    return tmp_path / "photos"


def look(root: Path, ledger: Ledger, *paths: str, base: Path | None = None) -> list:
    images = ImageFolder(root, base or root, ledger).resolve(paths)
    assert images.keys() == set(paths)
    return [each.code if isinstance(each, ImageError) else each for each in map(images.get, paths)]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_different_paths_of_a_file_are_one_image(root, ledger):
    (root / "link.png").symlink_to(root / "sub" / "b.png")
    (root / "shortcut").symlink_to(root / "sub")
    paths = ["sub/b.png", "./sub//b.png", "sub/../sub/b.png", str(root / "sub" / "b.png"), "link.png", "shortcut/b.png"]
    assert set(look(root, ledger, *paths)) == {Image("sub/b.png", sha(b"b"))}


def test_relative_paths_start_at_the_base_and_names_at_the_root(root, ledger):
    assert look(root, ledger, "photos/a.png", base=root.parent) == [Image("a.png", sha(b"a"))]
    images = look(root, ledger, "b.png", "../a.png", base=root / "sub")
    assert images == [Image("sub/b.png", sha(b"b")), Image("a.png", sha(b"a"))]


def test_no_path_leads_outside(root, ledger):
    secret = root.parent / "photos-secret"
    (root / "link.png").symlink_to(secret / "key.png")
    (root / "away").symlink_to(secret)
    (root / "twice").symlink_to(root / "away")
    paths = [
        "../photos-secret/key.png",
        "sub/../../photos-secret/key.png",
        str(secret / "key.png"),
        "/etc/passwd",
        "link.png",
        "away/key.png",
        "twice/key.png",
        "away/../photos-secret/key.png",
    ]
    assert look(root, ledger, *paths) == ["image.outside"] * len(paths)


@pytest.mark.parametrize(
    "path", ["gone.png", "", ".", "..", "sub", "sub/", "a.png/x", "x" * 5000, "a\0.png", "circular", "pipe.png"]
)
def test_a_path_without_a_regular_file_is_missing(root, ledger, path):
    (root / "circular").symlink_to(root / "circular")
    os.mkfifo(root / "pipe.png")
    assert look(root, ledger, path)[0] in ("image.missing", "image.outside")


def test_a_folder_in_an_error_ends_no_sentence_twice(root, ledger, monkeypatch):
    monkeypatch.chdir(root)
    images = ImageFolder(Path(), Path(), ledger).resolve(["gone.png", "../photos-secret/key.png"])
    check_error(images["gone.png"], "image.missing", '"gone.png"', '"."')
    check_error(images["../photos-secret/key.png"], "image.outside", '"../photos-secret/key.png"', '"."')


def test_the_error_for_a_name_that_is_not_utf_8_can_be_printed(root, ledger):
    name = os.fsdecode(b"\xff.png")
    (root / name).write_bytes(b"x")
    error = ImageFolder(root, root, ledger).resolve([name])[name]
    assert isinstance(error, ImageError) and error.code == "image.name"
    str(error).encode()


def test_a_bad_image_does_not_affect_the_others(root, ledger):
    images = look(root, ledger, "gone.png", "a.png", "../x")
    assert images == ["image.missing", Image("a.png", sha(b"a")), "image.missing"]


def test_an_image_is_hashed_once_as_long_as_it_does_not_change(root, ledger, monkeypatch):
    read: list[str] = []
    hash_one = images_module._hash_one
    monkeypatch.setattr(images_module, "_hash_one", lambda path: read.append(Path(path).name) or hash_one(path))
    look(root, ledger, "a.png", "sub/b.png", "a.png")
    assert sorted(read) == ["a.png", "b.png"]
    look(root, ledger, "a.png", "sub/b.png")
    assert len(read) == 2
    (root / "a.png").write_bytes(b"other")
    assert look(root, ledger, "a.png", "sub/b.png") == [Image("a.png", sha(b"other")), Image("sub/b.png", sha(b"b"))]
    assert read[2:] == ["a.png"]
    os.utime(root / "sub" / "b.png", ns=(1, 1))
    look(root, ledger, "sub/b.png")
    assert read[3:] == ["b.png"]


def test_many_images_have_their_own_hashes(root, ledger):
    names = [f"{number}.png" for number in range(300)]
    for name in names:
        (root / name).write_bytes(name.encode() * 1000)
    (root / names[200]).unlink()
    images = look(root, ledger, *names)
    assert images.pop(200) == "image.missing"
    assert images == [Image(name, sha(name.encode() * 1000)) for name in names if name != names[200]]


def test_an_image_that_is_deleted_before_it_is_hashed_is_an_error(root, ledger, monkeypatch):
    locate = ImageFolder._locate

    def vanishing(self, path):
        location = locate(self, path)
        (root / "a.png").unlink(missing_ok=True)
        return location

    monkeypatch.setattr(ImageFolder, "_locate", vanishing)
    assert look(root, ledger, "a.png") == ["image.unreadable"]
    assert ledger.known_images([str(root / "a.png")]) == {}


def test_a_changed_or_missing_image_is_refused(root):
    check_unchanged(root / "a.png", sha(b"a"))
    with raises(ImageError, "image.changed"):
        check_unchanged(root / "a.png", sha(b"b"))
    with raises(ImageError, "image.unreadable"):
        check_unchanged(root / "gone.png", sha(b"a"))
