"""Core's nodes and ours, wired both ways in a real ComfyUI: the same numbers on either side of every border.

One random file, every UNet level 320 wide, is opened by both. Core answers in the same process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from error_checks import check_facts

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
FLOAT32 = ("--cpu", "--force-fp32", "--fp32-unet", "--fp32-vae", "--fp32-text-enc", "--use-pytorch-cross-attention")
TOLERANCE = 1e-4
DEARER = 1.03
NEAR_ONE = 1e-3  # a largest weight of 1 against 1.0001


@pytest.fixture(scope="module")
def told(comfyui, random_checkpoints, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What crossing the borders gave."""
    checkpoint = random_checkpoints / "without.safetensors"
    said = comfyui.run(HERE / "core_borders.py", REPOSITORY, checkpoint, tmp_path_factory.mktemp("borders"), *FLOAT32)
    return json.loads(said.splitlines()[-1])


@pytest.mark.parametrize("border", ["sampling", "halves", "pictures", "latents_in_between", "cut_frames", "converted"])
def test_both_sides_of_the_border_give_the_same_numbers(told, border):
    assert {name: found for name, found in told[border].items() if not found < TOLERANCE} == {}


def test_a_largest_weight_of_one_is_no_special_case(told):
    assert {name: found for name, found in told["guidance_at_one"].items() if not found < NEAR_ONE} == {}


def test_a_lora_changes_our_sampler_as_it_changes_cores(told):
    assert told["lora"]["with it"] < TOLERANCE
    assert told["lora"]["without it again"] < TOLERANCE
    assert told["lora"]["what it changes"] > 0.05


def test_hooks_and_masks_reach_our_sampler_through_cores_model(told):
    assert told["hooked"]["MODEL"] < TOLERANCE
    assert told["hooked"]["what it changes"] > 0.05
    assert told["masked"]["MODEL"] < TOLERANCE
    assert told["masked"]["what the mask keeps"] < TOLERANCE


def test_many_videos_are_sampled_one_by_one_with_cores_model_too(told):
    assert told["videos"]["MODEL against SVD_MODEL"] < TOLERANCE


def test_core_manages_our_modules_and_lets_them_go(told):
    assert told["memory"] == {"times ours is listed": 1, "left after unloading": 0}


def test_our_sampler_costs_no_more_than_cores_on_cores_model(told):
    assert told["cost"]["seconds"] < DEARER
    assert told["cost"]["memory"] < DEARER


def test_what_goes_wrong_with_cores_parts_is_answered_as_with_ours(told):
    found = told["in_trouble"]
    assert found["notes"] == ["numbers.float32"] and found["its own weights are back"]
    assert found["in float32 again"] == 0.0
    assert found["memory"] == ["memory.exhausted", 0]
    assert 0.0 < found["in bfloat16 afterwards"] < 0.5
    assert found["nan"] == "numbers.latent"


def test_parts_of_other_families_are_refused_in_plain_words(told):
    said = told["refusals"]
    assert {text.split(": ")[0] for text in said.values()} == {"setting"}
    check_facts(said["model"], "model", "Linear", "ImageOnlyCheckpointLoader")
    assert said["guider"] == said["model"]
    check_facts(said["vae"], "vae", "VAEDecode")
    check_facts(said["wrong wire"], "vae", "SVDCheckpointLoader")
    assert "VAEDecode" not in said["wrong wire"]
    check_facts(said["nano"], "svd-nano", "SVDEulerSampler")
