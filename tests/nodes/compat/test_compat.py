"""Compat nodes that load, resize and save: equal to ComfyUI's core nodes for a graph."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from chain import call as run
from error_checks import check_facts, raises
from PIL import Image
from svd_stages import headless
from svd_stages.headless.engines.graph_loading import read_embedded_graphs
from svd_stages.headless.graph.validate import validate
from svd_stages.nodes.compat import COMPAT_CLASS_MAPPINGS
from svd_stages.svd_core.errors import ImageError, OutputError, SettingError
from svd_stages.svd_core.media.video_io import Video
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime

PROMPT = {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}
WORKFLOW = {"nodes": [], "version": 0.4}
HIDDEN = {"prompt": PROMPT, "extra_pnginfo": {"workflow": WORKFLOW}}
GRAPHS = {"prompt": PROMPT, "workflow": WORKFLOW}
NODES = COMPAT_CLASS_MAPPINGS


@pytest.fixture
def folders(tmp_path):
    """Use the folders input, output and temp in tmp_path. Only the first exists."""
    (tmp_path / "input").mkdir()
    chosen = {f"{kind}_folder": tmp_path / kind for kind in ("input", "output", "temp")}
    with use_runtime(LocalRuntime(**chosen)):
        yield tmp_path


def clip(frames: int = 3, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator("cpu").manual_seed(frames))


def saver_inputs(node_id: str, frames: torch.Tensor) -> dict:
    """Return the inputs of a saving node besides its prefix."""
    return {
        "SaveImage": {"images": frames},
        "SaveAnimatedWEBP": {"images": frames, "fps": 7.0, "lossless": True, "quality": 80, "method": "default"},
        "SaveVideo": {"video": Video(frames, Fraction(7)), "format": "auto", "codec": "auto"},
    }[node_id]


def save_image(path: Path, colour: tuple = (10, 20, 30), size: tuple[int, int] = (24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(path)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_tables_need_no_heavy_library():
    script = """
import sys
before = set(sys.modules)
from svd_stages.nodes import compat
for node in compat.COMPAT_CLASS_MAPPINGS.values():
    node.INPUT_TYPES()
print(sorted({"torch", "numpy", "PIL", "av", "diffusers", "transformers"} & (set(sys.modules) - before)))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert process.stdout.strip() == "[]", process.stderr


def test_the_combo_lists_the_images_of_the_input_folder(folders):
    for name in ("b.png", "a.jpg", "sub/c.png"):
        save_image(folders / "input" / name)
    (folders / "input" / "notes.txt").write_text("not an image")
    options, widget = NODES["LoadImage"].INPUT_TYPES()["required"]["image"]
    assert options == ["a.jpg", "b.png"]
    assert widget["image_upload"] is True


def test_the_combo_is_empty_without_an_input_folder(tmp_path):
    with use_runtime(LocalRuntime(input_folder=tmp_path / "none")):
        assert NODES["LoadImage"].INPUT_TYPES()["required"]["image"][0] == []


def test_a_loaded_image_has_its_colors_and_mask(folders):
    save_image(folders / "input" / "a.png", (255, 0, 51, 204))
    images, mask = run("LoadImage", image="a.png")
    assert images.shape == (1, 16, 24, 3)
    assert torch.allclose(images[0, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert torch.allclose(mask, torch.full((1, 16, 24), 0.2))


@pytest.mark.parametrize("kind", ["input", "output", "temp"])
def test_an_annotated_name_loads_from_its_folder(folders, kind):
    for each in ("input", "output", "temp"):
        save_image(folders / each / "sub" / "a.png", (0, 255 if each == kind else 0, 0))
    name = f"sub/a.png [{kind}]"
    assert NODES["LoadImage"].VALIDATE_INPUTS(name) is True
    assert run("LoadImage", image=name)[0][0, 0, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "sub/../../secret.png", "link.png", "loop/secret.png"]
)
def test_an_image_outside_the_folder_is_refused(folders, name):
    secret = save_image(folders / "secret.png")
    (folders / "input" / "link.png").symlink_to(secret)
    (folders / "input" / "loop").symlink_to(folders)
    check_facts(NODES["LoadImage"].VALIDATE_INPUTS(name), name, folders / "input")
    with raises(ImageError, "image.outside", name):
        run("LoadImage", image=name)


def test_an_input_folder_that_is_a_link_is_followed(tmp_path):
    save_image(tmp_path / "real" / "a.png")
    (tmp_path / "input").symlink_to(tmp_path / "real")
    with use_runtime(LocalRuntime(input_folder=tmp_path / "input")):
        assert NODES["LoadImage"].VALIDATE_INPUTS("a.png") is True


@pytest.mark.parametrize("name", ["a.png", "a.png [temp]", "", "sub", "bad\0name.png"])
def test_a_missing_image_is_reported_before_the_run(folders, name):
    (folders / "input" / "sub").mkdir()
    folder = folders / ("temp" if name.endswith("[temp]") else "input")
    check_facts(NODES["LoadImage"].VALIDATE_INPUTS(name), folder)
    with raises(ImageError, "image.missing", folder):
        run("LoadImage", image=name)


def test_a_linked_name_is_checked_when_it_runs():
    assert NODES["LoadImage"].VALIDATE_INPUTS(None) is True


def test_null_for_a_name_is_reported_when_it_runs(folders):
    with raises(ImageError, "image.missing", "null"):
        run("LoadImage", image=None)


@pytest.mark.parametrize(
    ("class_type", "name"),
    [("LoadImage", "image"), ("ImageOnlyCheckpointLoader", "ckpt_name"), ("SVDCheckpointLoader", "checkpoint")],
)
@pytest.mark.parametrize("value", [5, 1.5, True, {}, ["a", "b", "c"]])
def test_a_name_that_is_not_a_string_is_refused_before_the_run(folders, class_type, name, value):
    node = {"class_type": class_type, "inputs": {"precision": "auto", name: {"__value__": value}}}
    show = {"class_type": "PreviewImage", "inputs": {"images": ["load", 0]}}
    errors = validate({"load": node, "show": show}, headless.NODES).node_errors["load"]["errors"]
    assert [each["type"] for each in errors] == ["custom_validation_failed"]
    assert str(value) in errors[0]["details"]


def test_changed_content_under_the_same_name_is_a_change(folders):
    changed = NODES["LoadImage"].IS_CHANGED
    save_image(folders / "input" / "a.png", (1, 2, 3))
    first = changed("a.png")
    save_image(folders / "input" / "b.png", (1, 2, 3))
    assert changed("b.png") == first
    save_image(folders / "input" / "a.png", (3, 2, 1))
    assert changed("a.png") != first
    assert len(first) == 64


def test_saved_images_are_numbered_and_reported(folders):
    result = run("SaveImage", images=clip(2), filename_prefix="still/a", **HIDDEN)
    entries = [{"filename": f"a_0000{n}_.png", "subfolder": "still", "type": "output"} for n in (1, 2)]
    assert result == {"ui": {"images": entries}}
    for index, entry in enumerate(entries):
        path = folders / "output" / "still" / entry["filename"]
        assert read_embedded_graphs(path) == GRAPHS
        with Image.open(path) as saved:
            assert saved.text == {name: json.dumps(graph) for name, graph in GRAPHS.items()}  # where ComfyUI looks
            assert np.abs(np.asarray(saved) / 255 - clip(2)[index].numpy()).max() <= 0.5001 / 255


def test_the_index_in_the_batch_can_be_in_the_name(folders):
    for _ in range(2):
        run("SaveImage", images=clip(2), filename_prefix="%width%x%height%_%batch_num%")
    assert files(folders / "output") == [
        "24x16_0_00001_.png",
        "24x16_0_00002_.png",
        "24x16_1_00002_.png",
        "24x16_1_00003_.png",
    ]


def test_a_preview_goes_to_the_temporary_folder(folders):
    (entry,) = run("PreviewImage", images=clip(1), **HIDDEN)["ui"]["images"]
    assert entry["type"] == "temp"
    assert entry["filename"].startswith("ComfyUI_temp_")
    assert entry["filename"].endswith("_00001_.png")
    assert files(folders) == [f"temp/{entry['filename']}"]


@pytest.mark.parametrize(("frames", "animated"), [(3, True), (1, False)])
def test_an_animated_webp_is_saved_and_reported(folders, frames, animated):
    result = run(
        "SaveAnimatedWEBP",
        images=clip(frames),
        fps=7.0,
        filename_prefix="a",
        lossless=True,
        quality=80,
        method="fastest",
        **HIDDEN,
    )
    entry = {"filename": "a_00001_.webp", "subfolder": "", "type": "output"}
    assert result == {"ui": {"images": [entry], "animated": (animated,)}}
    path = folders / "output" / "a_00001_.webp"
    assert read_embedded_graphs(path) == GRAPHS
    with Image.open(path) as saved:
        assert saved.n_frames == frames
        exif = saved.getexif()
    assert exif[0x0110] == "prompt:" + json.dumps(PROMPT)
    assert exif[0x010F] == "workflow:" + json.dumps(WORKFLOW)


def test_images_become_a_video_and_an_mp4(folders):
    (video,) = run("CreateVideo", images=clip(14), fps=23.976)
    assert isinstance(video, Video)
    assert video.fps == Fraction(2997, 125)
    for number in (1, 2):
        result = run("SaveVideo", video=video, filename_prefix="video/ComfyUI", format="auto", codec="auto", **HIDDEN)
        entry = {"filename": f"ComfyUI_0000{number}_.mp4", "subfolder": "video", "type": "output"}
        assert result == {"ui": {"images": [entry], "animated": (True,)}}
    path = folders / "output" / "video" / "ComfyUI_00002_.mp4"
    assert read_embedded_graphs(path) == GRAPHS
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.width, stream.height) == (14, Fraction(2997, 125), 24, 16)


def test_audio_is_refused(folders):
    with raises(SettingError, "setting", "CreateVideo", "audio"):
        run("CreateVideo", images=clip(2), fps=7.0, audio={"waveform": torch.zeros(1, 1, 9), "sample_rate": 8000})


@pytest.mark.parametrize("node_id", ["SaveImage", "SaveAnimatedWEBP", "SaveVideo"])
def test_a_frame_with_nan_is_named_and_none_is_saved(folders, node_id):
    frames = clip(3)
    frames[1, 2, 3, 0] = float("nan")
    with raises(OutputError, "output.not_finite", 1, 3):
        run(node_id, filename_prefix="a", **saver_inputs(node_id, frames))
    assert files(folders) == []


@pytest.mark.parametrize("node_id", ["SaveImage", "SaveAnimatedWEBP", "SaveVideo"])
def test_a_prefix_that_leads_outside_is_refused(folders, node_id):
    with raises(SettingError, "output.outside", "filename_prefix", "../a"):
        run(node_id, filename_prefix="../a", **saver_inputs(node_id, clip(1)))
    assert files(folders) == []


@pytest.mark.parametrize(
    ("width", "height", "crop", "shape"),
    [
        (10, 20, "disabled", (2, 20, 10, 3)),
        (10, 20, "center", (2, 20, 10, 3)),
        (48, 0, "disabled", (2, 32, 48, 3)),
        (0, 32, "center", (2, 32, 48, 3)),
        (0, 0, "center", (2, 16, 24, 3)),
    ],
)
@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"])
def test_images_are_scaled_to_the_requested_size(method, width, height, crop, shape):
    images = clip(2)
    before = images.clone()
    (scaled,) = run("ImageScale", image=images, upscale_method=method, width=width, height=height, crop=crop)
    assert scaled.shape == shape
    assert torch.equal(images, before)


def test_cropping_keeps_the_center():
    images = torch.linspace(0, 1, 30)[None, None, :, None].expand(1, 10, 30, 3)
    (scaled,) = run("ImageScale", image=images, upscale_method="bilinear", width=10, height=10, crop="center")
    assert torch.allclose(scaled, images[:, :, 10:20])


def test_cropping_to_nothing_is_refused():
    with raises(SettingError, "setting", "100x2", "1x1000"):
        run("ImageScale", image=clip(1, 2, 100), upscale_method="area", width=1, height=1000, crop="center")


def test_lanczos_does_not_turn_nan_into_black():
    with raises(ImageError, "image.nan"):
        run("ImageScale", image=clip(1) * torch.nan, upscale_method="lanczos", width=9, height=9, crop="disabled")


@pytest.mark.parametrize(
    ("text", "levels"), [("700, 4.2,0", [700, 4.2, 0]), ("1 .5;-2", [1, 0.5, -2]), ("a1b", [1]), ("1e-3", [1, -3])]
)
def test_manual_sigmas_are_the_numbers_that_core_finds(text, levels):
    assert run("ManualSigmas", sigmas=text)[0].tolist() == torch.tensor(levels, dtype=torch.float32).tolist()


@pytest.mark.parametrize("text", ["", "none", "1..2"])
def test_manual_sigmas_without_a_number_are_refused(text):
    with raises(SettingError, "setting", "sigmas"):
        run("ManualSigmas", sigmas=text)
