"""Test nodes/comfy/runtime.py inside a real ComfyUI, without its server."""

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
    """Return a base directory with an empty one-file checkpoint in a subfolder and an empty diffusers folder."""
    base = tmp_path_factory.mktemp("base")
    for name in ("models/checkpoints/video/one.safetensors", "models/diffusers/two/model_index.json"):
        (base / name).parent.mkdir(parents=True)
        (base / name).touch()
    return base


@pytest.fixture(scope="module")
def answers(comfyui, base) -> dict[str, Any]:
    return json.loads(comfyui.run(SCRIPT, REPOSITORY, base))


def test_importing_the_package_inside_comfyui_sets_its_runtime(answers):
    assert answers["class"] == "ComfyRuntime"


def test_models_are_those_of_comfyui_s_folders(answers):
    assert answers["names"] == ["two", "video/one.safetensors", "svd-nano"]


def test_folders_are_comfyui_s(answers, base):
    assert answers["folders"] == {kind: str(base / kind) for kind in ("input", "output", "temp")}


def test_the_device_is_comfyui_s(answers):
    assert (answers["device"], answers["inside"]) == ("cpu", "cpu")
    assert answers["free"] > 0


def test_only_offloaded_parts_leave_the_device(answers):
    assert answers["kept"] == {
        "both used": 2,
        "a copy in use": 2,  # copies share weights, and the patcher
        "a copy gone": 1,
        "used to stay": 2,
        "beside": 1,
    }


def test_cancel_stops_at_the_next_unit(answers):
    assert answers["stopped_at"] == [1]


def test_comfyui_s_precision_flags_are_what_auto_means(comfyui, base, answers):
    flagged = json.loads(comfyui.run(SCRIPT, REPOSITORY, base, "--force-fp32"))
    assert (answers["precision"], flagged["precision"]) == ("auto", "fp32")
