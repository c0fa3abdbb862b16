"""The names of the user's checkpoints; no name leads out of the models folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from error_checks import raises
from svd_stages.svd_core.checkpoints.library import EMBEDDED, EMBEDDED_FILE, ModelLibrary
from svd_stages.svd_core.errors import CheckpointError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """A models folder in ComfyUI's layout, with many files that are not checkpoints."""
    root = tmp_path / "models"
    for name in (
        "checkpoints/svd.safetensors",
        "checkpoints/video/svd_xt.SAFETENSORS",
        "checkpoints/old.ckpt",
        "checkpoints/notes.txt",
        "checkpoints/.svd_xt.safetensors.123.part/half.safetensors",
        "checkpoints/folder/model_index.json",
        "checkpoints/folder/unet/diffusion_pytorch_model.safetensors",
        "diffusers/svd-xt/model_index.json",
        "diffusers/svd-xt/unet/diffusion_pytorch_model.safetensors",
        "diffusers/no_index/unet/diffusion_pytorch_model.safetensors",
        "loras/style.safetensors",
        "vae/vae.safetensors",
        "beside.safetensors",
        "beside/model_index.json",
    ):
        touch(root / name)
    return root


def test_names_are_checkpoints_and_diffusers_folders_and_nothing_else(root):
    assert ModelLibrary.from_roots([root]).names() == [
        "beside",
        "beside.safetensors",
        "svd-xt",
        "svd.safetensors",
        "video/svd_xt.SAFETENSORS",
        EMBEDDED,
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("svd.safetensors", "checkpoints/svd.safetensors"),
        ("svd-xt", "diffusers/svd-xt"),
        ("video/svd_xt.SAFETENSORS", "checkpoints/video/svd_xt.SAFETENSORS"),
        ("video\\svd_xt.SAFETENSORS", "checkpoints/video/svd_xt.SAFETENSORS"),
        ("old.ckpt", "checkpoints/old.ckpt"),  # not listed, but found, so that the loader can refuse it
    ],
)
def test_names_are_found_at_their_paths_with_both_path_separators(root, name, path):
    library = ModelLibrary.from_roots([root])
    assert library.find(name) == root / path
    assert all(library.find(name).exists() for name in library.names())


def test_the_embedded_name_is_the_built_in_model_even_with_a_folder_of_that_name(root):
    touch(root / "diffusers" / EMBEDDED / "model_index.json")
    library = ModelLibrary.from_roots([root])
    assert library.names().count(EMBEDDED) == 1
    assert library.find(EMBEDDED) == EMBEDDED_FILE


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "../../outside.safetensors",
        "video/../../../outside.safetensors",
        "./svd.safetensors",
        "video/../svd.safetensors",
        "..\\outside.safetensors",
        "{root}/checkpoints/svd.safetensors",
        "loras/style.safetensors",
        "checkpoints/svd.safetensors",
        "folder/unet/diffusion_pytorch_model.safetensors",
        ".svd_xt.safetensors.123.part/half.safetensors",
        "",
        ".",
        "..",
        "\x00",
        "x" * 10_000,
        "x\ny",
        "\u202ex",
        "\ud800",
        "\x1b[2J",
    ],
)
def test_names_that_are_not_listed_are_not_found_with_one_short_line(root, name):
    touch(root.parent / "outside.safetensors")
    with raises(CheckpointError, "checkpoint.not_found") as raised:
        ModelLibrary.from_roots([root]).find(name.replace("{root}", str(root)))
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1500


@pytest.mark.parametrize("value", [5, 1.5, True, {}, ["5"], ["svd.safetensors", 0, 1]])
def test_a_name_that_is_not_a_string_is_refused_with_the_nearest_names_and_null_as_null(root, value):
    touch(root / "diffusers" / "5" / "model_index.json")
    library = ModelLibrary.from_roots([root])
    with raises(CheckpointError, "checkpoint.not_found", f'"{value}"') as raised:
        library.find(value)
    assert sum(f'"{name}"' in str(raised.value) for name in library.names()) >= 3
    with raises(CheckpointError, "checkpoint.not_found", "null"):
        library.find(None)


def test_the_three_nearest_names_are_suggested(root):
    with raises(CheckpointError, "checkpoint.not_found", '"svd.safetensors"') as raised:
        ModelLibrary.from_roots([root]).find("svd.safetensor")
    assert str(raised.value).count('.safetensors"') <= 3


def test_links_are_followed_but_not_dangling_ones_and_a_link_upwards_does_not_loop(root, tmp_path):
    other = touch(tmp_path / "disk" / "big.safetensors")
    (root / "checkpoints" / "linked.safetensors").symlink_to(other)
    (root / "checkpoints" / "disk").symlink_to(other.parent)
    (root / "checkpoints" / "video" / "up").symlink_to(root / "checkpoints")
    (root / "checkpoints" / "gone.safetensors").symlink_to(root / "nowhere")
    names = ModelLibrary.from_roots([root]).names()
    assert {"linked.safetensors", "disk/big.safetensors"} < set(names)
    assert "gone.safetensors" not in names
    assert sum(name.endswith("svd.safetensors") for name in names) == 1


def test_the_first_of_several_roots_wins(root, tmp_path):
    second = touch(tmp_path / "second" / "checkpoints" / "svd.safetensors").parents[1]
    assert ModelLibrary.from_roots([second, root]).find("svd.safetensors").is_relative_to(second)
    assert ModelLibrary.from_roots([root, second]).find("svd.safetensors").is_relative_to(root)


def test_roots_that_do_not_exist_give_the_embedded_model_only(tmp_path):
    assert ModelLibrary.from_roots([tmp_path / "nothing"]).names() == [EMBEDDED]
    assert ModelLibrary().names() == [EMBEDDED]
