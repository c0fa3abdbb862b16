"""Assign the image latents of several images to the frames of one video."""

from __future__ import annotations

import pytest
import torch
from svd_stages.svd_core.diffusion.conditioning import expand_image_latents


@pytest.mark.parametrize(
    ("count", "frames", "places"),
    [
        (1, 5, [0]),
        (5, 5, [0, 1, 2, 3, 4]),
        (2, 5, [0, 0, 1, 1, 1]),
        (3, 4, [0, 1, 1, 2]),
        (5, 3, [0, 2, 4]),
        (4, 1, [0]),
    ],
)
def test_each_frame_has_the_nearest_picture(count, frames, places):
    latents = torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 4, 8, 8)
    assert expand_image_latents(latents, frames)[:, 0, 0, 0].tolist() == places
