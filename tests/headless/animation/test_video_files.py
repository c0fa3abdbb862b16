"""The name of an output chooses its format, and no file is replaced unless that is asked for."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from error_checks import check_facts, raises
from PIL import Image
from svd_stages.headless.animation.video_files import OutputNames
from svd_stages.headless.engines.graphs import describe_file
from svd_stages.svd_core.errors import OutputError, SettingError
from svd_stages.svd_core.media.metadata import read_metadata

GRAPH = {"prompt": {"1": {"class_type": "LoadImage", "inputs": {}}}}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(output: str | None, names: list[str], seeds: list[int], force: bool = False) -> list[str]:
    paths = OutputNames.parse(output, len(names), len(seeds), force).paths(names, seeds)
    return [path.as_posix() for row in paths for path in row]


@pytest.mark.parametrize(
    ("output", "images", "seeds", "files"),
    [
        (None, ["a"], [3], ["a.mp4"]),
        (None, ["a", "b"], [0], ["a.mp4", "b.mp4"]),
        (None, ["a"], [1, 2], ["a_seed1.mp4", "a_seed2.mp4"]),
        ("c.webm", ["a"], [0], ["c.webm"]),
        ("new/", ["a"], [0], ["new/a.mp4"]),
        ("folder", ["a"], [0], ["folder/a.mp4"]),
        ("other", ["a", "b"], [0], ["other/a.mp4", "other/b.mp4"]),
        ("x/{name}-{seed}.gif", ["a", "b"], [1, 2], ["x/a-1.gif", "x/a-2.gif", "x/b-1.gif", "x/b-2.gif"]),
        (None, ["a", "a", "a"], [0], ["a.mp4", "a_00002.mp4", "a_00003.mp4"]),
        ("{name}/%05d.png", ["{seed}", "b"], [0], ["{seed}/%05d.png", "b/%05d.png"]),
    ],
)
def test_files_are_named_by_output_image_and_seed(output, images, seeds, files):
    assert planned(output, images, seeds) == files


@pytest.mark.parametrize("output", ["a.avi", "a", "%05d.mp4", "%d.webp", "b.mp4/.."])
def test_a_name_of_no_format_is_refused(output):
    with raises(SettingError, "setting"):
        OutputNames.parse(output, 1, 1)


def test_a_named_file_that_exists_is_refused_before_rendering():
    Path("a.mp4").touch()
    Path("folder/a.mp4").touch()
    Path("00001.png").touch()
    for output, existing in (("a.mp4", "a.mp4"), ("{name}.mp4", "a.mp4"), ("%05d.png", "00001.png")):
        with raises(SettingError, "output.exists", existing, "force"):
            planned(output, ["a"], [0])
        assert planned(output, ["a"], [0], force=True)
    assert planned("folder", ["a", "a"], [0]) == ["folder/a_00002.mp4", "folder/a_00003.mp4"]
    assert planned("folder", ["a", "a"], [0], force=True) == ["folder/a.mp4", "folder/a_00002.mp4"]


def test_further_videos_of_a_file_get_names_that_are_free(here):
    for output, existing in (("{name}.mp4", "a_00002.mp4"), ("%05d.png", "00007_00002.png")):
        Path(existing).touch()
        for force in (False, True):
            names = OutputNames.parse(output, 1, 1, force)
            ((first,),) = names.paths(["a"], [0])
            number = 2 if force else 3
            assert names.next_path("a", 0) == first.with_stem(f"{first.stem}_{number:05}")
            assert names.next_path("a", 0) == first.with_stem(f"{first.stem}_{number + 1:05}")


def test_numbered_frames_of_two_names_never_share_a_file():
    first, second, third = planned("x/{name}%d.png", ["a1", "a", "b"], [0], force=True)
    assert (first, second, third) == ("x/a1%d.png", "x/a%d_00002.png", "x/b%d.png")  # frame 11 of a is frame 1 of a1
    assert planned("{seed}_%d.png", ["a"], [1, 11]) == ["1_%d.png", "11_%d.png"]
    templates = planned("{name}%d{seed}.png", ["a", "a2"], [35, 5], force=True)  # frame 21 of a%d35, frame 13 of a2%d5
    frames = [template.replace("%d", str(number)) for template in templates for number in range(1, 500)]
    assert len(set(frames)) == 4 * 499


def test_a_folder_that_cannot_be_listed_is_refused_before_rendering(monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with raises(SettingError, "output.not_writable", '"folder"', "Permission denied"):
        planned("folder/%05d.png", ["a"], [0])


def moving(frames: int = 3) -> torch.Tensor:
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    return torch.stack([ramp.roll(4 * index, -1).movedim(0, -1) for index in range(frames)])


def frames_in(path: Path) -> int:
    if path.suffix in (".mp4", ".webm"):
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    with Image.open(path) as image:
        return image.n_frames


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".webp", ".gif", ".png"])
def test_each_format_has_the_frames_and_the_graph_if_it_has_a_place(suffix):
    path = Path(f"new/clip{suffix}")
    names = OutputNames.parse(str(path), 1, 1)
    assert names.save(moving(), path, Fraction(7), GRAPH) == ([path], [])
    assert frames_in(path) == 3
    check_facts(describe_file(path), "3 frames", "64x64", "fps")
    assert float(describe_file(path).split()[-2]) == pytest.approx(7, rel=0.03)
    if suffix != ".gif":
        assert "LoadImage" in read_metadata(path)["prompt"]
    (second,), _ = names.save(moving(), path, Fraction(7), GRAPH)
    assert second == path.with_stem("clip_00002")
    assert replace(names, replace=True).save(moving(2), path, Fraction(7), GRAPH)[0] == [path]
    assert frames_in(path) == 2 and len(list(Path("new").iterdir())) == 2


def test_numbered_frames_are_pngs_of_every_pixel():
    names = OutputNames.parse("new/f%03d.png", 1, 1)
    ((path,),) = names.paths(["a"], [0])
    files, _ = names.save(moving(), path, Fraction(7), GRAPH)
    assert [file.name for file in files] == ["f001.png", "f002.png", "f003.png"]
    for file, frame in zip(files, moving(), strict=True):
        check_facts(describe_file(file), "1 frame", "64x64")
        assert np.array_equal(np.asarray(Image.open(file)), (frame * 255).round().byte().numpy())
        assert "LoadImage" in read_metadata(file)["prompt"]
    before = [file.read_bytes() for file in files]
    files[0].unlink()
    with raises(OutputError, "output.exists", "f002.png"):
        names.save(moving() / 2, path, Fraction(7), GRAPH)
    assert not files[0].exists() and [file.read_bytes() for file in files[1:]] == before[1:]


def test_replacing_a_longer_video_leaves_none_of_its_frames():
    names = OutputNames.parse("new/f%03d.png", 1, 1, True)
    ((path,),) = names.paths(["a"], [0])
    names.save(moving(5), path, Fraction(7), GRAPH)
    Path("new/f9.png").touch()
    names.save(moving(2), path, Fraction(7), GRAPH)
    assert sorted(file.name for file in Path("new").iterdir()) == ["f001.png", "f002.png", "f9.png"]
    Path("new/f001.png").unlink()
    with raises(SettingError, "output.exists", "f002.png"):
        planned("new/f%03d.png", ["a"], [0])


def test_numbered_pictures_of_the_user_are_kept():
    """shots/0100.png is animated into shots/%04d.png, beside other photographs."""
    Path("new").mkdir()
    Image.new("RGB", (8, 8)).save("new/0004.png")
    Path("new/0100.png").write_text("no picture")
    names = OutputNames.parse("new/%04d.png", 1, 1, True)
    names.save(moving(3), names.paths(["a"], [0])[0][0], Fraction(7), GRAPH)
    assert sorted(file.name for file in Path("new").iterdir()) == [*(f"000{n}.png" for n in range(1, 5)), "0100.png"]


def test_only_files_of_the_same_number_format_are_replaced_frames():
    names = OutputNames.parse("new/%03d.png", 1, 1, True)
    path = Path("new/%03d.png")
    names.save(moving(5), path, Fraction(7), GRAPH)
    others = ["0004.png", "4.png", "004.jpg", "x004.png"]
    for other in others:
        Path("new", other).touch()
    names.save(moving(2), path, Fraction(7), GRAPH)
    assert sorted(file.name for file in Path("new").iterdir()) == sorted(["001.png", "002.png", *others])


@pytest.mark.parametrize("output", [None, "{name}.gif", "{name}/%05d.png"])
def test_a_name_that_is_too_long_is_refused_before_rendering(output):
    with raises(SettingError, "output.name_too_long", 255, "{name}"):
        planned(output, ["x" * 300], [0])
    assert planned("short.mp4", ["x" * 300], [0]) == ["short.mp4"]
