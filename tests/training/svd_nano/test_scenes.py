"""The renderer of scenes, and rocket.png, which it drew."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from error_checks import raises
from PIL import Image
from svd_stages.svd_core.errors import SettingError
from svd_stages.training.svd_nano.scenes import Planet, Rocket, Scene, Sky, render

ROCKET = Path(__file__).parents[3] / "example_workflows" / "rocket.png"
WIDTH, HEIGHT = 128, 72


def center_of_difference(scene: Scene, other: Scene) -> tuple[float, float]:
    """Return the center (x, y), in scene units, of the pixels in which two scenes differ."""
    difference = render(scene, WIDTH, HEIGHT).astype(int) - render(other, WIDTH, HEIGHT)
    rows, columns = np.nonzero(np.abs(difference).max(axis=-1) > 24)
    return (columns.mean() - WIDTH / 2) / HEIGHT, (rows.mean() - HEIGHT / 2) / HEIGHT


def test_rocket_png_is_small_and_is_what_the_scene_renders():
    assert ROCKET.stat().st_size < 400_000
    with Image.open(ROCKET) as image:
        assert (image.mode, image.size) == ("RGB", (768, 432))
        shipped = np.asarray(image).astype(int)
    rendered = render(Scene(), 768, 432).astype(int)
    # other builds of numpy may round an exponential differently
    assert np.abs(shipped - rendered).max() <= 4
    assert np.abs(shipped - rendered).mean() < 0.05


def test_a_larger_size_shows_the_same_scene():
    small = render(Scene(), WIDTH, HEIGHT).astype(float)
    large = render(Scene(), 2 * WIDTH, 2 * HEIGHT).astype(float)
    shrunk = large.reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - shrunk).mean() < 1.0


@pytest.mark.parametrize("center", [(0.0, 0.0), (0.45, -0.1), (-0.3, 0.2)])
def test_the_rocket_is_at_its_position(center):
    rocket = Rocket(x=center[0], y=center[1], length=0.3)
    black = replace(rocket, hull=(0.0, 0.0, 0.0))
    assert center_of_difference(Scene(rocket=rocket), Scene(rocket=black)) == pytest.approx(center, abs=0.03)


@pytest.mark.parametrize("angle", [0.0, 52.0, 90.0, 200.0])
def test_the_flame_is_behind_the_rocket(angle):
    rocket = Rocket(x=0.0, y=0.0, angle=angle, length=0.4, flame=0.2)
    x, y = center_of_difference(Scene(rocket=rocket), Scene(rocket=replace(rocket, flame=0.8)))
    turn = math.radians(angle)
    assert x * math.sin(turn) - y * math.cos(turn) < -0.15
    assert abs(x * math.cos(turn) + y * math.sin(turn)) < 0.05


@pytest.mark.parametrize(
    "other",
    [Scene(sky=Sky(seed=8)), Scene(planet=Planet(seed=4)), Scene(rocket=Rocket(seed=12))],
    ids=["sky", "planet", "rocket"],
)
def test_another_seed_gives_another_texture(other):
    assert not np.array_equal(render(Scene(), 2 * WIDTH, 2 * HEIGHT), render(other, 2 * WIDTH, 2 * HEIGHT))


def test_the_sky_has_texture_and_stars():
    sky = render(Scene(planet=Planet(x=9.0), rocket=Rocket(x=9.0)), 4 * WIDTH, 4 * HEIGHT).astype(float).mean(axis=-1)
    assert sky.std() > 8
    assert sky.max() > 180
    assert 0.0002 < (sky > 120).mean() < 0.01


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 5)])
def test_an_empty_image_raises_an_error_with_its_size(size):
    with raises(SettingError, "setting", f"{size[0]}x{size[1]}"):
        render(Scene(), *size)


@pytest.mark.parametrize(("width", "height"), [(7, 5), (1, 1)])
def test_odd_sizes_are_rendered(width, height):
    assert render(Scene(), width, height).shape == (height, width, 3)
