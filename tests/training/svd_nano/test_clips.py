"""Clips that svd-nano is trained on: the laws of what is drawn, and the tracker that measures them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.errors import SettingError
from svd_stages.training.svd_nano.clips import (
    HELD_OUT,
    KINDS,
    REACH,
    Plates,
    draw_plates,
    frame_distance,
    make_scene,
    place,
    positions,
    render_clip,
)
from svd_stages.training.svd_nano.evaluate import followed, held_out_scenes
from svd_stages.training.svd_nano.tracking import along, cosine, moved, psnr, sharpness


@pytest.fixture(scope="module")
def scenes():
    """Four rockets, two balls and two fish, and two of each kind that training never sees."""
    return [*held_out_scenes(8), *held_out_scenes(6, HELD_OUT)]


@pytest.mark.parametrize("kind", [*sorted(set(KINDS)), *HELD_OUT])
def test_one_seed_is_one_clip_and_another_seed_another(kind):
    first, again, other = (render_clip(make_scene(seed, kinds=[kind]), 3, 127, 7) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.05)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 128), (192, 128), (64, 128)])
def test_clips_of_multiples_of_64_are_drawn_in_range(width, height):
    clip = render_clip(make_scene(3, width, height), 4, 255, 7)
    assert clip.shape == (4, height, width, 3)
    assert clip.min() >= 0
    assert clip.max() <= 1


@pytest.mark.parametrize("size", [(100, 128), (128, 0), (32, 64)])
def test_another_size_is_refused_by_name(size):
    with raises(SettingError, "setting", f"{size[0]}x{size[1]}"):
        make_scene(0, *size)


def test_bucket_255_goes_five_times_as_far_as_32_and_just_reaches():
    assert frame_distance(255, 7) == pytest.approx(5 * frame_distance(32, 7))
    assert 13 * frame_distance(255, 7) == pytest.approx(REACH, rel=0.05)
    assert frame_distance(127, 7) == pytest.approx(frame_distance(127, 15) * 15 / 7)
    steps = [frame_distance(bucket, 7) for bucket in range(0, 256, 5)]
    assert all(a < b for a, b in itertools.pairwise(steps))
    assert steps[0] > 0


@pytest.mark.parametrize("bucket", [32, 127, 255])
def test_the_tracker_finds_the_way_within_a_hundredth_of_the_width(scenes, bucket):
    for scene in scenes:
        clip = render_clip(scene, 14, bucket, 7)
        way = moved(followed(scene, clip))
        true = moved(positions(scene.mover, 14, bucket, 7))
        assert (way - true).norm() <= 0.01, scene
        assert cosine(way, scene) > 0.99, scene
        assert along(way, scene) == pytest.approx(13 * frame_distance(bucket, 7), abs=0.01)


def test_held_out_things_are_in_the_picture_from_the_first_frame_to_the_last(scenes):
    """A picture of twice the size around the same middle shows no more of the thing."""
    for scene in scenes:
        sticker, smaller = draw_plates(scene).sticker, replace(scene.mover, length=scene.mover.length / 2)
        for middle in positions(scene.mover, 14, 255, 7)[[0, -1]]:
            seen = place(Plates(torch.zeros(3, 128, 128), sticker), scene.mover, middle[None])
            whole = place(Plates(torch.zeros(3, 256, 256), sticker), smaller, middle[None] / 2)
            assert seen.sum() >= 0.97 * whole.sum(), scene


def test_the_tracker_is_far_off_on_another_scenes_clip(scenes):
    off = []
    for scene, other in zip(scenes, [*scenes[1:], scenes[0]], strict=True):
        true = moved(positions(scene.mover, 14, 127, 7))
        off.append((moved(followed(other, render_clip(other, 14, 127, 7))) - true).norm())
    assert torch.stack(off).median() > 0.08


def test_a_mover_far_away_leaves_the_backdrop_alone(scenes):
    scene = scenes[0]
    plates = draw_plates(scene)
    (image,) = place(plates, scene.mover, torch.tensor([[5.0, 5.0]]))
    assert torch.allclose(image, plates.backdrop)


def test_every_backdrop_has_contrast():
    spreads = [draw_plates(make_scene(seed)).backdrop.std() for seed in range(20)]
    assert min(spreads) > 0.02


def test_drawing_clips_touches_no_global_random_state():
    before, numbers = torch.get_rng_state(), np.random.get_state(legacy=False)
    render_clip(make_scene(1), 2, 127, 7)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numbers["state"]["key"], np.random.get_state(legacy=False)["state"]["key"])


def test_measures_of_pictures():
    image = torch.rand((8, 8, 3), generator=torch.Generator().manual_seed(0))
    assert psnr(image, image + 0.1) == pytest.approx(20.0, abs=1e-3)
    assert sharpness(torch.full((8, 8, 3), 0.3)) == 0.0
    assert sharpness(2 * image) == pytest.approx(4 * sharpness(image), rel=1e-5)
