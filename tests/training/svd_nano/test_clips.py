"""The synthetic training clips, and the tracker that measures them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.media.image_ops import psnr
from svd_stages.training.svd_nano import clips
from svd_stages.training.svd_nano.clips import HELD_OUT, TRAINED, frame_distance, make_scene, positions, render_clip
from svd_stages.training.svd_nano.evaluate import held_out_scenes, track_ends
from svd_stages.training.svd_nano.tracking import along, cosine, displacement, moving_part, sharpness


@pytest.fixture(scope="module")
def scenes():
    """Four rockets, two balls, two fish, and two of each held-out kind."""
    return [*held_out_scenes(8), *held_out_scenes(6, HELD_OUT)]


@pytest.mark.parametrize("kind", [*sorted(set(TRAINED)), *HELD_OUT])
def test_a_seed_determines_the_clip(kind):
    first, again, other = (render_clip(make_scene(seed, kinds=[kind]), 3, 127, 7) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.05)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 128), (192, 128), (64, 128)])
def test_clips_of_multiples_of_64_are_in_range(width, height):
    clip = render_clip(make_scene(3, width, height), 4, 255, 7)
    assert clip.shape == (4, height, width, 3)
    assert clip.min() >= 0 and clip.max() <= 1


@pytest.mark.parametrize("size", [(100, 128), (128, 0), (32, 64)])
def test_another_size_raises_an_error_with_the_size(size):
    with raises(SettingError, "setting", f"{size[0]}x{size[1]}"):
        make_scene(0, *size)


def test_bucket_255_is_five_times_as_fast_as_32_and_covers_reach():
    assert frame_distance(255, 7) == pytest.approx(5 * frame_distance(32, 7))
    assert 13 * frame_distance(255, 7) == pytest.approx(clips.REACH, rel=0.05)
    assert frame_distance(127, 7) == pytest.approx(frame_distance(127, 15) * 15 / 7)
    distances = [frame_distance(bucket, 7) for bucket in range(0, 256, 5)]
    assert all(a < b for a, b in itertools.pairwise([0, *distances]))


@pytest.mark.parametrize("bucket", [32, 127, 255])
def test_the_tracker_measures_motion_within_a_hundredth_of_the_width(scenes, bucket):
    for scene in scenes:
        tracked = displacement(track_ends(scene, render_clip(scene, 14, bucket, 7)))
        expected = displacement(positions(scene.mover, 14, bucket, 7))
        assert (tracked - expected).norm() <= 0.01, scene
        assert cosine(tracked, scene) > 0.99, scene
        assert along(tracked, scene) == pytest.approx(13 * frame_distance(bucket, 7), abs=0.01)


def test_held_out_objects_stay_in_the_image(scenes):
    """An image of twice the size around the same center shows no more of the object."""
    for scene in scenes:
        sticker, smaller = clips.draw_plates(scene).sticker, replace(scene.mover, length=scene.mover.length / 2)
        for center in positions(scene.mover, 14, 255, 7)[[0, -1]]:
            visible = clips.place(clips.Plates(torch.zeros(3, 128, 128), sticker), scene.mover, center[None])
            complete = clips.place(clips.Plates(torch.zeros(3, 256, 256), sticker), smaller, center[None] / 2)
            assert visible.sum() >= 0.97 * complete.sum(), scene


def test_the_tracker_has_a_large_error_on_the_clip_of_another_scene(scenes):
    errors = []
    for scene, other in zip(scenes, [*scenes[1:], scenes[0]], strict=True):
        expected = displacement(positions(scene.mover, 14, 127, 7))
        errors.append((displacement(track_ends(other, render_clip(other, 14, 127, 7))) - expected).norm())
    assert torch.stack(errors).median() > 0.08


def test_a_mover_outside_the_image_leaves_the_backdrop(scenes):
    plates = clips.draw_plates(scenes[0])
    (image,) = clips.place(plates, scenes[0].mover, torch.tensor([[5.0, 5.0]]))
    assert torch.allclose(image, plates.backdrop)


def test_every_backdrop_has_contrast():
    assert min(clips.draw_plates(make_scene(seed)).backdrop.std() for seed in range(20)) > 0.02


def test_drawing_clips_leaves_the_global_random_state():
    before, numbers = torch.get_rng_state(), np.random.get_state(legacy=False)
    render_clip(make_scene(1), 2, 127, 7)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numbers["state"]["key"], np.random.get_state(legacy=False)["state"]["key"])


def test_image_measures():
    image = torch.rand((8, 8, 3), generator=torch.Generator().manual_seed(0))
    assert psnr(image, image + 0.1) == pytest.approx(20.0, abs=1e-3)
    assert sharpness(torch.full((8, 8, 3), 0.3)) == 0.0
    assert sharpness(2 * image) == pytest.approx(4 * sharpness(image), rel=1e-5)


def test_the_moving_part_is_where_the_object_was_and_where_it_ends():
    clip = torch.full((3, 4, 4, 3), 0.5)
    clip[0, 0, 0] = clip[1, 1, 1] = 1.0
    clip[2, 2, 2, 1] = 0.53
    clip[2, 3, 3] = 0.51
    assert moving_part(clip).nonzero().tolist() == [[0, 0], [2, 2]]
