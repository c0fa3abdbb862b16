"""The two Python calls."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import svd_stages
import torch
from svd_stages import headless
from svd_stages.svd_core.checkpoints import library
from svd_stages.svd_core.errors import CheckpointError, GraphError, ImageError, SettingError

ROCKET = Path(__file__).parents[3] / "example_workflows" / "rocket.png"
QUICK = {"width": 64, "height": 64, "num_frames": 2, "steps": 3}


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return svd_stages.animate(ROCKET, **QUICK)


def test_animate_gives_frames_between_zero_and_one(clip):
    assert clip.shape == (1, 2, 64, 64, 3) and clip.dtype == torch.float32
    assert clip.min() >= 0 and clip.max() <= 1


def test_every_form_of_one_picture_gives_the_same_clip(clip):
    from PIL import Image

    picture = Image.open(ROCKET).convert("RGB")
    array = np.array(picture)
    for image in (str(ROCKET), picture, array, torch.from_numpy(array)[None].float() / 255):
        assert torch.equal(svd_stages.animate(image, **QUICK), clip)


def test_outputs_come_as_asked(clip):
    as_array = svd_stages.animate(ROCKET, output_type="np", **QUICK)
    assert isinstance(as_array, np.ndarray) and np.array_equal(as_array, clip.numpy())
    ((first, second),) = svd_stages.animate(ROCKET, output_type="pil", **QUICK)
    assert first.size == second.size == (64, 64)
    assert np.abs(np.array(first) / 255 - clip[0, 0].numpy()).max() <= 0.5 / 255 + 1e-6


def test_a_flipped_array_is_the_flipped_picture():
    array = np.ascontiguousarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    once = svd_stages.animate(array[::-1], **QUICK)
    assert torch.equal(once, svd_stages.animate(np.ascontiguousarray(array[::-1]), **QUICK))


def test_a_batch_of_pictures_makes_a_video_each():
    images = torch.rand((2, 64, 64, 3), generator=torch.Generator("cpu").manual_seed(0))
    clips = svd_stages.animate(images, seed=3, **QUICK)
    assert clips.shape == (2, 2, 64, 64, 3)
    assert torch.equal(clips[1:], svd_stages.animate(images[1:], seed=4, **QUICK))


@pytest.mark.parametrize(
    ("image", "options", "error"),
    [
        ("nope.png", {}, ImageError),
        (ROCKET, {"model": "gone"}, CheckpointError),
        (ROCKET, {"width": 100}, SettingError),
        (ROCKET, {"output_type": "jpg"}, SettingError),
        (ROCKET, {"num_frames": 0}, SettingError),
        (torch.full((1, 64, 64, 3), float("nan")), {}, ImageError),
        (torch.full((64, 64, 3), 200.0), {}, ImageError),
        (np.zeros((64, 64, 3), dtype=np.uint16), {}, ImageError),
        (np.zeros((64, 64, 3), dtype=bool), {}, ImageError),
        (None, {}, ImageError),
        ([], {}, ImageError),
        ([ROCKET, None], {}, ImageError),
        (ROCKET, {"fps": 7.5}, SettingError),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_arguments_raise_our_errors(image, options, error):
    with pytest.raises(error):
        svd_stages.animate(image, **{**QUICK, **options})


def test_run_graph_writes_files_and_reports_them(tmp_path):
    shutil.copy(ROCKET, tmp_path)
    seen = []
    report = svd_stages.run_graph(
        headless.PACKAGE / "example_workflows" / "quickstart_nano.json",
        ["SVDResizeImage.width=64", "SVDResizeImage.height=64", "SVDEulerSampler.steps=1"],
        input_dir=tmp_path,
        output_dir=tmp_path / "out",
        on_progress=lambda stage, done, total, unit: seen.append(stage),
    )
    assert report.files and all(path.is_file() for path in report.files)
    assert {path.suffix for path in report.files} == {".mp4", ".webp"}
    assert "sampling" in seen and "decoding" in seen


def test_run_graph_takes_a_dict_and_does_not_change_it(tmp_path):
    graph = json.loads((headless.PACKAGE / "example_workflows" / "quickstart_nano.json").read_text())
    before = json.dumps(graph)
    with pytest.raises(GraphError) as refused:
        svd_stages.run_graph(graph, ["LoadImage.image=gone.png"], input_dir=tmp_path, output_dir=tmp_path / "out")
    assert refused.value.exit_status == 3 and "gone.png" in str(refused.value)
    assert json.dumps(graph) == before and not (tmp_path / "out").exists()


def test_models_come_from_options_then_environment_then_comfyui(monkeypatch, tmp_path):
    monkeypatch.setenv("SVD_STAGES_MODELS", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    assert headless.default_models_roots() == [tmp_path / "a", tmp_path / "b"]
    for given in (tmp_path / "c", str(tmp_path / "c"), [tmp_path / "c"]):
        assert headless.RunConfig(models=given).runtime().library.flat_folders == (tmp_path / "c",)
    monkeypatch.delenv("SVD_STAGES_MODELS")
    assert headless.default_models_roots() == [Path("models")]
    monkeypatch.setattr(library, "PACKAGE", tmp_path / "ComfyUI" / "custom_nodes" / "SVD Stages")
    assert headless.default_models_roots() == [tmp_path / "ComfyUI" / "models"]
