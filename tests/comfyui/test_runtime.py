"""nodes/comfy/runtime.py inside a real ComfyUI, without its server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.comfyui

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("core_runtime.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base directory with a one-file checkpoint in a subfolder and a diffusers folder, by name only."""
    base = tmp_path_factory.mktemp("base")
    for name in ("models/checkpoints/video/one.safetensors", "models/diffusers/two/model_index.json"):
        (base / name).parent.mkdir(parents=True)
        (base / name).touch()
    return base


@pytest.fixture(scope="module")
def told(comfyui, base) -> dict[str, Any]:
    return json.loads(comfyui.run(SCRIPT, REPOSITORY, base))


def test_importing_the_package_inside_comfyui_makes_comfyui_the_host(told):
    assert told["class"] == "ComfyRuntime"


def test_models_are_those_of_comfyui_s_folders(told):
    assert told["names"] == ["two", "video/one.safetensors", "svd-nano"]


def test_folders_are_comfyui_s(told, base):
    assert told["folders"] == {kind: str(base / kind) for kind in ("input", "output", "temp")}


def test_stages_compute_on_comfyui_s_device(told):
    assert (told["device"], told["inside"]) == ("cpu", "cpu")
    assert told["free"] > 0


def test_a_part_leaves_when_it_is_to_and_no_other_does(told):
    assert told["kept"] == {
        "both used": 2,
        "a copy in use": 2,  # copies share weights, and the patcher
        "a copy gone": 1,
        "used to stay": 2,
        "beside": 1,
    }


def test_cancel_stops_at_the_next_unit(told):
    assert told["stopped_at"] == [1]


def test_comfyui_s_precision_flags_are_what_auto_means(comfyui, base, told):
    flagged = json.loads(comfyui.run(SCRIPT, REPOSITORY, base, "--force-fp32"))
    assert (told["precision"], flagged["precision"]) == ("auto", "fp32")
