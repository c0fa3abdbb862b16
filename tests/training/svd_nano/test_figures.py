"""The pictures of the documentation: all of them, and the rows that their names promise."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.pipeline import VideoSettings
from svd_stages.training.svd_nano import figures


@pytest.mark.slow
def test_all_pictures_of_svd_nano_are_drawn(tmp_path):
    for folder in ("docs/images", "example_workflows"):
        (tmp_path / folder).mkdir(parents=True)
    paths = figures.draw_figures(EMBEDDED_FILE, tmp_path, VideoSettings(steps=1, num_frames=2))
    committed = {path.name for path in (figures.ROOT / "docs" / "images").iterdir()} - {"graph.png", "samplers.svg"}
    assert {path.name for path in paths} == committed | {"svd_nano.webp"}
    for path in paths:
        with Image.open(path) as drawn, Image.open(figures.ROOT / path.relative_to(tmp_path)) as kept:
            assert drawn.size == kept.size, path.name
            assert getattr(kept, "n_frames", 1) == (14 if path.suffix == ".webp" else 1)


def test_a_strip_shows_a_row_for_each_setting():
    def make(settings: VideoSettings) -> torch.Tensor:
        level = settings.motion_bucket_id / 255
        return torch.linspace(0, level, 14)[:, None, None, None].expand(-1, 8, 8, 3)

    image = figures.draw_strips(make, figures.STRIPS["motion_bucket_id"], VideoSettings())
    side = 8 + figures.GAP
    assert image.size == (figures.LABELS + 5 * side, 3 * side)
    last = [image.getpixel((figures.LABELS + 4 * side + 4, row * side + 4)) for row in range(3)]
    assert last == [(bucket,) * 3 for bucket in (32, 127, 255)]
