"""SVDImageToVideo: equal to the stages in a row, each cached by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from svd_stages.headless import NODES, animate
from svd_stages.headless.graph import Engine, validate
from svd_stages.svd_core.checkpoints.library import ModelLibrary
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime

SETTINGS: dict[str, Any] = {
    "width": 128, "height": 64, "fit": "crop", "video_frames": 3, "fps": 6, "motion_bucket_id": 90,
    "noise_aug_strength": 0.1, "seed": 5, "steps": 2, "min_guidance": 1.0, "max_guidance": 2.0,
    "decode_mode": "windowed", "chunk_size": 2, "context": 1,
}  # fmt: skip
LOADER = {"class_type": "SVDCheckpointLoader", "inputs": {"checkpoint": "svd-nano", "precision": "fp32"}}


def one_box(picture: str = "both.webp", **changed: Any) -> dict[str, Any]:
    """Return a graph of image, checkpoint and SVDImageToVideo."""
    parts = {"model": ["loader", 0], "clip_vision": ["loader", 1], "vae": ["loader", 2], "image": ["picture", 0]}
    box = {"class_type": "SVDImageToVideo", "inputs": {**parts, **SETTINGS, **changed}}
    return {"picture": {"class_type": "LoadImage", "inputs": {"image": picture}}, "loader": LOADER, "box": box}


class Runner:
    """An engine with its cache, and the node classes that the last run executed."""

    def __init__(self, folder: Path):
        self.engine = Engine(NODES, "classic")
        self.runtime = LocalRuntime(library=ModelLibrary(), device_name="cpu", input_folder=folder)
        self.ran: list[str] = []

    def videos(self, prompt: dict[str, Any]) -> list[torch.Tensor]:
        self.ran = []
        with use_runtime(self.runtime):
            checked = validate(prompt, NODES, keep=("box",))
            assert checked.ok, checked.node_errors
            result = self.engine.run(checked.prompt, checked.outputs, keep=("box",), on_event=self.hear)
        return result.values["box"][0]

    def hear(self, event: str, data: dict[str, Any]) -> None:
        if event == "executing" and data["node"] is not None:
            self.ran.append(str(data["node"]).split(".")[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return an input folder with an image, and an animation whose second frame is that image."""
    folder = tmp_path_factory.mktemp("input")
    drawn = torch.randint(0, 256, (2, 12, 20, 3), generator=torch.Generator().manual_seed(3))
    one, two = (Image.fromarray(each.numpy().astype("uint8")).resize((160, 96)) for each in drawn)
    two.save(folder / "second.png")
    one.save(folder / "both.webp", save_all=True, append_images=[two], lossless=True)
    return folder


@pytest.fixture
def runner(folder) -> Runner:
    return Runner(folder)


def test_one_box_equals_the_stages_in_a_row(runner, folder):
    videos = runner.videos(one_box())
    settings = {**SETTINGS, "preset": "reference", "num_frames": 3, "decode_chunk": 2, "decode_context": 1}
    for name in ("video_frames", "chunk_size", "context"):
        del settings[name]
    expected = animate(folder / "both.webp", precision="fp32", device="cpu", **settings)
    assert [video.shape for video in videos] == [(3, 64, 128, 3)] * 2
    assert torch.equal(torch.stack(videos), expected)


def test_each_image_of_many_is_its_single_run_with_the_next_seed(runner):
    videos = runner.videos(one_box())
    alone = runner.videos(one_box("second.png", seed=SETTINGS["seed"] + 1))
    assert len(alone) == 1 and torch.equal(alone[0], videos[1])


def test_only_the_stages_whose_inputs_changed_run_again(runner):
    runner.videos(one_box())
    assert {"SVDVAEEncode", "SVDCLIPVisionEncode", "SVDEulerSampler", "loader"} <= set(runner.ran)
    runner.videos(one_box(motion_bucket_id=200))
    rerun = ["SVDMicroConditioning", "SVDEulerSampler", "SVDTemporalVAEDecode", "SVDGatherVideos"]
    assert [each for each in runner.ran if each != "box"] == rerun
    runner.videos(one_box(motion_bucket_id=200, decode_mode="exact"))
    assert [each for each in runner.ran if each != "box"] == ["SVDTemporalVAEDecode", "SVDGatherVideos"]
    runner.videos(one_box(motion_bucket_id=200, decode_mode="exact"))
    assert runner.ran == []


class Lists:
    """A node that outputs a list of two images and a list of two seeds."""

    RETURN_TYPES = ("IMAGE", "INT")
    OUTPUT_IS_LIST = (True, True)
    FUNCTION = "give"
    INPUT_TYPES = classmethod(lambda cls: {"required": {"image": ("IMAGE",)}})

    def give(self, image: torch.Tensor) -> tuple:
        return ([image[:1], image[1:]], [7, 9])


def test_lists_are_distributed_in_the_box_as_in_the_stages(runner, monkeypatch):
    monkeypatch.setitem(NODES, "Lists", Lists)
    prompt = one_box(seed=["lists", 1])
    prompt["lists"] = {"class_type": "Lists", "inputs": {"image": ["picture", 0]}}
    prompt["box"]["inputs"]["image"] = ["lists", 0]
    videos = runner.videos(prompt)
    alone = runner.videos(one_box("second.png", seed=9))
    assert len(videos) == 2 and torch.equal(videos[1], alone[0])


def test_two_boxes_in_one_graph_do_not_share_ids(runner):
    prompt = one_box()
    prompt["other"] = {"class_type": "SVDImageToVideo", "inputs": {**prompt["box"]["inputs"], "seed": 6}}
    prompt["list"] = {"class_type": "PreviewImage", "inputs": {"images": ["other", 0]}}
    assert len(runner.videos(prompt)) == 2


@pytest.mark.parametrize("preset", ["balanced", "fast"])
def test_a_preset_equals_the_command_with_it(runner, folder, preset):
    settings = {"width": 64, "height": 64, "steps": 2, "decode_mode": "exact"}
    (video,) = runner.videos(one_box("second.png", **settings, preset=preset))
    given = {**SETTINGS, **settings, "num_frames": 3, "preset": preset}
    for name in ("video_frames", "chunk_size", "context", "steps"):
        del given[name]
    assert torch.equal(video, animate(folder / "second.png", precision="fp32", device="cpu", **given)[0])
    assert {"SVDSamplerSelect", "SVDSigmas", "SVDGuidanceRefine"} <= set(runner.ran)
