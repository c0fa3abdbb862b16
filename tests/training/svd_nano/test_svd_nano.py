"""The svd-nano that ships: what its words do, at a smaller size than its card's table, and that diffusers reads it.

The bounds that are looser than the table's are so because of three scenes and eight steps. A model that stands still or
moves anywhere fails.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from chain import Settings as ChainSettings
from chain import decoded, pipeline_frames, sampled
from PIL import Image
from svd_stages.svd_core.autoencoder.encode import encode_images
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.training.svd_nano.architecture import FACTS
from svd_stages.training.svd_nano.clips import draw_backdrop
from svd_stages.training.svd_nano.evaluate import (
    GROUPS,
    Settings,
    held_out_scenes,
    measure,
    place_error,
    reconstruct,
    remembering,
    true_clip,
    way_of,
)
from svd_stages.training.svd_nano.tracking import along, cosine, psnr

CPU = torch.device("cpu")
QUICK = Settings(steps=8)


@pytest.fixture(scope="module", autouse=True)
def _two_threads():
    """Here tensors are large enough for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def nano():
    return load_checkpoint(EMBEDDED_FILE, "fp32", CPU)


@pytest.fixture(scope="module")
def make(nano):
    """(scene, settings) -> the model's clip, each made once."""
    return remembering(nano)


@pytest.fixture(scope="module")
def scenes():
    """A rocket, another, and a ball."""
    return held_out_scenes(3)


def test_the_file_is_small_says_its_facts_and_has_latents_of_unit_variance(nano, scenes):
    assert EMBEDDED_FILE.stat().st_size <= 32_000_000
    assert nano.model.defaults == FACTS.defaults()
    images = torch.cat([true_clip(scene, QUICK)[:1] for scene in scenes])
    latents = encode_images(nano.vae, images, CPU) * nano.model.scaling_factor
    assert 0.6 < latents.std() < 1.6


def test_pictures_come_back_through_the_vae(nano, scenes):
    assert statistics.mean(psnr(reconstruct(nano, c), c) for c in (true_clip(s, QUICK) for s in scenes)) >= 28


@pytest.mark.slow
def test_the_first_frame_is_the_image(make, scenes):
    assert statistics.mean(psnr(make(scene, QUICK)[0], true_clip(scene, QUICK)[0]) for scene in scenes) >= 24


@pytest.mark.slow
def test_things_go_where_they_point(make, scenes):
    assert statistics.mean(cosine(way_of(scene, make(scene, QUICK)), scene) for scene in scenes) >= 0.9


@pytest.mark.slow
def test_things_end_where_they_should(make, scenes):
    assert statistics.median(place_error(s, make(s, QUICK), true_clip(s, QUICK)) for s in scenes) <= 0.08


@pytest.mark.slow
def test_more_motion_moves_farther_and_more_fps_less_in_a_frame(make, scenes):
    def distance(**told: float) -> float:
        settings = QUICK.told(**told)
        return statistics.median(along(way_of(s, make(s, settings)), s) for s in scenes)

    usual = distance()
    assert distance(motion_bucket_id=255) > 1.3 * usual > 1.3 * 1.3 * distance(motion_bucket_id=32)
    assert 1.3 < usual / distance(fps=15) < 3.2


@pytest.mark.slow
def test_more_noise_on_the_image_is_less_likeness(make, scenes):
    def likeness(strength: float) -> float:
        settings = QUICK.told(noise_aug_strength=strength)
        return statistics.mean(psnr(make(s, settings)[0], true_clip(s, settings)[0]) for s in scenes)

    assert likeness(0.02) > likeness(0.5) > likeness(1.0)


def test_a_thing_that_is_lost_is_no_success(scenes):
    (scene, *_), settings = scenes, Settings(frames=2)
    truth = true_clip(scene, settings)
    empty = draw_backdrop(scene.backdrop, 128, 128).movedim(0, -1).expand(2, -1, -1, -1)
    assert place_error(scene, empty, truth) == float("inf")
    assert along(way_of(scene, empty), scene) == 0
    assert cosine(way_of(scene, empty), scene) == 0


@pytest.mark.slow
def test_the_table_is_written_whole(nano):
    text: list[str] = []
    measure(nano, 1, Settings(frames=2, steps=1), text.append, GROUPS)
    rows = "".join(text).splitlines()
    assert len(rows) == 2 + 18
    assert all(row.count("|") == 4 for row in rows)


def test_stock_diffusers_loads_it_as_a_folder_and_makes_the_same_frames(nano, scenes, tmp_path):
    from diffusers import StableVideoDiffusionPipeline

    folder = convert_checkpoint(EMBEDDED_FILE, tmp_path / "svd-nano")
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pixels = (true_clip(scenes[0], QUICK)[0] * 255).round().byte().numpy()
    settings = ChainSettings(width=128, height=128, steps=5, max_guidance=2.5)
    (wanted,) = pipeline_frames(pipeline, Image.fromarray(pixels), settings, "pt")
    images = torch.from_numpy(pixels)[None].float() / 255
    (ours,) = decoded(nano, sampled(nano, images, settings), "exact")
    assert (ours - wanted.movedim(1, -1)).abs().max() <= 1e-4
