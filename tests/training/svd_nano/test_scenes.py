"""The picture that ships, and the scene it is drawn from."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from error_checks import raises
from PIL import Image
from svd_stages.svd_core.errors import SettingError
from svd_stages.training.svd_nano.scenes import Planet, Rocket, Scene, Sky, draw_rocket, render

SHIPPED = Path(__file__).parents[3] / "example_workflows" / "rocket.png"
WIDTH, HEIGHT = 128, 72


def pixels_that_differ(scene: Scene, other: Scene) -> np.ndarray:
    """(H, W) bool."""
    difference = render(scene, WIDTH, HEIGHT).astype(int) - render(other, WIDTH, HEIGHT)
    return np.abs(difference).max(axis=-1) > 24


def middle_of(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) of the mask's middle, in scene units."""
    rows, columns = np.nonzero(mask)
    return (columns.mean() - WIDTH / 2) / HEIGHT, (rows.mean() - HEIGHT / 2) / HEIGHT


def test_the_shipped_picture_is_what_the_scene_draws():
    with Image.open(SHIPPED) as picture:
        assert (picture.mode, picture.size) == ("RGB", (768, 432))
        shipped = np.asarray(picture).astype(int)
    drawn = np.asarray(draw_rocket(768, 432)).astype(int)
    # Other builds of numpy may round an exponential the other way.
    assert np.abs(shipped - drawn).max() <= 4
    assert np.abs(shipped - drawn).mean() < 0.05


def test_the_shipped_picture_is_small():
    assert SHIPPED.stat().st_size < 400_000


def test_a_larger_drawing_shows_the_same_picture():
    small = render(Scene(), WIDTH, HEIGHT).astype(float)
    large = render(Scene(), 2 * WIDTH, 2 * HEIGHT).astype(float)
    shrunk = large.reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - shrunk).mean() < 1.0


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.45, -0.1), (-0.3, 0.2)])
def test_the_rocket_is_where_the_scene_says(place):
    rocket = Rocket(x=place[0], y=place[1], length=0.3)
    hull = pixels_that_differ(Scene(rocket=rocket), Scene(rocket=replace(rocket, hull=(0.0, 0.0, 0.0))))
    assert middle_of(hull) == pytest.approx(place, abs=0.03)


@pytest.mark.parametrize("angle", [0.0, 52.0, 90.0, 200.0])
def test_the_fire_is_behind_a_rocket_that_flies_where_it_points(angle):
    rocket = Rocket(x=0.0, y=0.0, angle=angle, length=0.4, flame=0.2)
    longer = replace(rocket, flame=0.8)
    fire_x, fire_y = middle_of(pixels_that_differ(Scene(rocket=rocket), Scene(rocket=longer)))
    turn = math.radians(angle)
    ahead = fire_x * math.sin(turn) - fire_y * math.cos(turn)
    aside = fire_x * math.cos(turn) + fire_y * math.sin(turn)
    assert ahead < -0.15
    assert abs(aside) < 0.05


def test_drawing_touches_no_global_random_state():
    before = np.random.get_state(legacy=False)
    first = render(Scene(), WIDTH, HEIGHT)
    after = np.random.get_state(legacy=False)
    assert np.array_equal(before["state"]["key"], after["state"]["key"])
    assert before["state"]["pos"] == after["state"]["pos"]
    assert np.array_equal(first, render(Scene(), WIDTH, HEIGHT))


@pytest.mark.parametrize(
    "other",
    [Scene(sky=Sky(seed=8)), Scene(planet=Planet(seed=4)), Scene(rocket=Rocket(seed=12))],
    ids=["sky", "planet", "rocket"],
)
def test_another_seed_is_another_texture(other):
    assert not np.array_equal(render(Scene(), 2 * WIDTH, 2 * HEIGHT), render(other, 2 * WIDTH, 2 * HEIGHT))


def test_the_sky_has_texture_and_stars():
    sky = render(Scene(planet=Planet(x=9.0), rocket=Rocket(x=9.0)), 4 * WIDTH, 4 * HEIGHT).astype(float).mean(axis=-1)
    assert sky.std() > 8
    assert sky.max() > 180
    assert 0.0002 < (sky > 120).mean() < 0.01


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 5)])
def test_an_empty_picture_is_refused_with_its_size(size):
    with raises(SettingError, "setting", f"{size[0]}x{size[1]}"):
        render(Scene(), *size)


def test_odd_sizes_are_drawn_whole():
    assert render(Scene(), 7, 5).shape == (5, 7, 3)
    assert draw_rocket(1, 1).size == (1, 1)
