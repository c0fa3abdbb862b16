"""Test core's nodes and ours connected in both directions in a real ComfyUI: the results are equal.

Both open one random file with 320 channels at every UNet level, in one process.
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
MAX_COST = 1.03
NEAR_ONE = 1e-3  # a largest weight of 1 against 1.0001


@pytest.fixture(scope="module")
def results(comfyui, random_checkpoints, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Return the differences of core_borders.py."""
    checkpoint = random_checkpoints / "without.safetensors"
    output = comfyui.run(HERE / "core_borders.py", REPOSITORY, checkpoint, tmp_path_factory.mktemp("borders"), *FLOAT32)
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("border", ["sampling", "halves", "images", "latents_in_between", "cut_frames", "converted"])
def test_our_nodes_equal_core_when_connected_to_it(results, border):
    assert [name for name, difference in results[border].items() if not difference < TOLERANCE] == []


def test_a_largest_weight_of_one_equals_its_limit(results):
    assert [name for name, difference in results["guidance_at_one"].items() if not difference < NEAR_ONE] == []


def test_a_lora_changes_our_sampler_as_it_changes_cores(results):
    assert results["lora"]["with it"] < TOLERANCE
    assert results["lora"]["without it again"] < TOLERANCE
    assert results["lora"]["effect"] > 0.05


def test_hooks_and_masks_reach_our_sampler_through_cores_model(results):
    assert results["hooked"]["MODEL"] < TOLERANCE
    assert results["hooked"]["effect"] > 0.05
    assert results["masked"]["MODEL"] < TOLERANCE
    assert results["masked"]["kept by the mask"] < TOLERANCE


def test_many_videos_are_sampled_one_by_one_with_cores_model_too(results):
    assert results["videos"]["MODEL against SVD_MODEL"] < TOLERANCE


def test_core_manages_and_unloads_our_modules(results):
    assert results["memory"] == {"loaded": 1, "after unloading": 0}


def test_our_sampler_costs_no_more_than_cores_on_cores_model(results):
    assert results["cost"]["seconds"] < MAX_COST
    assert results["cost"]["memory"] < MAX_COST


def test_failures_of_cores_models_are_handled_like_ours(results):
    failures = results["failures"]
    assert failures["notes"] == ["numbers.float32"] and failures["weights restored"]
    assert failures["retried in float32"] == 0.0
    assert failures["memory"] == ["memory.exhausted", 0]
    assert 0.0 < failures["bfloat16 afterwards"] < 0.5
    assert failures["nan"] == "numbers.latent"


def test_models_of_other_families_are_refused(results):
    errors = results["refusals"]
    assert {text.split(": ")[0] for text in errors.values()} == {"setting"}
    check_facts(errors["model"], "model", "Linear", "ImageOnlyCheckpointLoader")
    assert errors["guider"] == errors["model"]
    check_facts(errors["vae"], "vae", "VAEDecode")
    check_facts(errors["wrong socket"], "vae", "SVDCheckpointLoader")
    assert "VAEDecode" not in errors["wrong socket"]
    check_facts(errors["nano"], "svd-nano", "SVDEulerSampler")
