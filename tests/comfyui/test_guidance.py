"""Test refined guidance on core's MODEL in a real ComfyUI: its formulas, its consumers and its network calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

HERE = Path(__file__).parent
FLAGS = ("--cpu", "--force-fp32", "--use-pytorch-cross-attention")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def results(comfyui, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Return the answers of core_guidance.py."""
    output = comfyui.run(HERE / "core_guidance.py", HERE.parents[1], tmp_path_factory.mktemp("guidance"), *FLAGS)
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("node", ["RescaleCFG", "APG"])
def test_refinements_equal_cores_nodes(results, node):
    assert results["formulas"][node] < TOLERANCE
    assert results["formulas"][f"effect of {node}"] > 0.05


def test_a_refined_curve_means_the_same_to_all_consumers_and_in_every_run(results):
    consumers = results["consumers"]
    assert [name for name, difference in consumers["differences"].items() if not difference < TOLERANCE] == []
    assert consumers["repeatable"]
    assert consumers["effect"] > 0.05


def test_default_refinements_change_no_bit(results):
    assert results["neutral"] == dict.fromkeys(("SVDFrameGuidance", "SVDFrameGuider", "SVDEulerSampler"), True)


def test_outside_of_the_interval_the_negative_side_is_not_computed(results):
    sides = results["interval"]["sides"]
    assert sides == dict.fromkeys(("SVDFrameGuidance", "SVDFrameGuider", "SVDEulerSampler"), 6)  # of 8 in 4 steps
    assert results["interval"]["cfg_pp without guidance"] < TOLERANCE
