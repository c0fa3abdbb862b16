"""Which names the user's folders give, and that no name leads out of them."""

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
    """A models folder in ComfyUI's layout, with much that is no checkpoint."""
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


def test_every_listed_name_is_found_at_its_place(root):
    library = ModelLibrary.from_roots([root])
    assert library.find("svd.safetensors") == root / "checkpoints" / "svd.safetensors"
    assert library.find("svd-xt") == root / "diffusers" / "svd-xt"
    assert all(library.find(name).exists() for name in library.names())


def test_the_embedded_name_is_the_built_in_model_even_beside_a_folder_of_that_name(root):
    touch(root / "diffusers" / EMBEDDED / "model_index.json")
    library = ModelLibrary.from_roots([root])
    assert library.names().count(EMBEDDED) == 1
    assert library.find(EMBEDDED) == EMBEDDED_FILE


@pytest.mark.parametrize("name", ["video/svd_xt.SAFETENSORS", "video\\svd_xt.SAFETENSORS"])
def test_either_path_separator_is_understood(root, name):
    assert ModelLibrary.from_roots([root]).find(name) == root / "checkpoints" / "video" / "svd_xt.SAFETENSORS"


def test_a_pickle_is_not_listed_but_found_when_named_so_that_it_can_be_refused(root):
    library = ModelLibrary.from_roots([root])
    assert "old.ckpt" not in library.names()
    assert library.find("old.ckpt") == root / "checkpoints" / "old.ckpt"


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "../../outside.safetensors",
        "video/../../../outside.safetensors",
        "./svd.safetensors",
        "video/../svd.safetensors",
        "..\\outside.safetensors",
        "loras/style.safetensors",
        "checkpoints/svd.safetensors",
        "folder/unet/diffusion_pytorch_model.safetensors",
        ".svd_xt.safetensors.123.part/half.safetensors",
        "",
        ".",
        "..",
        "\x00",
    ],
)
def test_names_that_are_not_listed_are_not_found(root, name):
    touch(root.parent / "outside.safetensors")
    with raises(CheckpointError, "checkpoint.not_found"):
        ModelLibrary.from_roots([root]).find(name)


@pytest.mark.parametrize("name", ["x" * 10_000, "x\ny", "\u202ex", "\ud800", "\x1b[2J"])
def test_a_strange_name_is_told_in_one_short_line(root, name):
    with pytest.raises(CheckpointError) as raised:
        ModelLibrary.from_roots([root]).find(name)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1500


def test_an_absolute_path_is_no_name(root):
    with raises(CheckpointError, "checkpoint.not_found"):
        ModelLibrary.from_roots([root]).find(str(root / "checkpoints" / "svd.safetensors"))


def test_null_for_a_name_says_so(root):
    with raises(CheckpointError, "checkpoint.not_found", "null"):
        ModelLibrary.from_roots([root]).find(None)


@pytest.mark.parametrize("value", [5, 1.5, True, {}, ["5"], ["svd.safetensors", 0, 1]])
def test_what_is_no_text_is_answered_with_the_nearest_names(root, value):
    touch(root / "diffusers" / "5" / "model_index.json")
    library = ModelLibrary.from_roots([root])
    with raises(CheckpointError, "checkpoint.not_found", f'"{value}"') as raised:
        library.find(value)
    assert sum(f'"{name}"' in str(raised.value) for name in library.names()) >= 3


def test_the_three_nearest_names_are_said(root):
    with raises(CheckpointError, "checkpoint.not_found", '"svd.safetensors"') as raised:
        ModelLibrary.from_roots([root]).find("svd.safetensor")
    assert str(raised.value).count('.safetensors"') <= 3


def test_links_are_followed_and_a_link_upwards_does_not_go_round(root, tmp_path):
    other = touch(tmp_path / "disk" / "big.safetensors")
    (root / "checkpoints" / "linked.safetensors").symlink_to(other)
    (root / "checkpoints" / "disk").symlink_to(other.parent)
    (root / "checkpoints" / "video" / "up").symlink_to(root / "checkpoints")
    names = ModelLibrary.from_roots([root]).names()
    assert "linked.safetensors" in names
    assert "disk/big.safetensors" in names
    assert sum(name.endswith("svd.safetensors") for name in names) == 1


def test_a_dangling_link_is_not_listed(root):
    (root / "checkpoints" / "gone.safetensors").symlink_to(root / "nowhere")
    assert "gone.safetensors" not in ModelLibrary.from_roots([root]).names()


def test_the_first_of_several_roots_wins(root, tmp_path):
    second = touch(tmp_path / "second" / "checkpoints" / "svd.safetensors").parents[1]
    assert ModelLibrary.from_roots([second, root]).find("svd.safetensors").is_relative_to(second)
    assert ModelLibrary.from_roots([root, second]).find("svd.safetensors").is_relative_to(root)


def test_roots_that_are_not_there_give_the_embedded_model_only(tmp_path):
    assert ModelLibrary.from_roots([tmp_path / "nothing"]).names() == [EMBEDDED]
    assert ModelLibrary().names() == [EMBEDDED]
