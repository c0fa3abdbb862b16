"""The guidance curve, by its corners and by ComfyUI core's formula for the triangle."""

from __future__ import annotations

import pytest
import torch
from svd_stages.svd_core.diffusion.guidance import GuidanceCurve
from svd_stages.svd_core.errors import SettingError


@pytest.mark.parametrize("frames", [2, 14, 25])
@pytest.mark.parametrize(("low", "high"), [(1.0, 3.0), (3.0, 1.0), (1.0, 1.0), (1.5, 0.5)])
def test_linear_goes_evenly_from_min_to_max(frames, low, high):
    weights = GuidanceCurve("linear", low, high).weights(frames)
    assert torch.equal(weights, torch.linspace(low, high, frames))


@pytest.mark.parametrize("frames", [2, 3, 14, 25])
def test_triangle_is_the_folded_ramp_of_core(frames):
    ramp = torch.linspace(0, 1, frames, dtype=torch.float64)
    wanted = 2 * (ramp - torch.floor(ramp + 0.5)).abs() * (3.0 - 1.0) + 1.0
    assert torch.allclose(GuidanceCurve("triangle", 1.0, 3.0).weights(frames).double(), wanted, atol=1e-6)


def test_constant_is_max_on_every_frame():
    assert GuidanceCurve("constant", 1.0, 2.5).weights(4).tolist() == [2.5] * 4


@pytest.mark.parametrize("bad", [{"shape": "square"}, {"min_guidance": float("nan")}, {"max_guidance": -1.0}])
def test_what_is_no_curve_is_refused(bad):
    with pytest.raises(SettingError):
        GuidanceCurve(**bad)
