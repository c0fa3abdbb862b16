"""The built-in svd-nano: a short version of its model card's table, and loading by diffusers.

Some bounds are looser than the table's, for three scenes and eight steps. A model without motion or with motion in
arbitrary directions fails.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from chain import Settings as ChainSettings
from chain import decoded, pipeline_frames, sampled
from PIL import Image
from svd_stages.svd_core.autoencoder.encode import encode_images
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.media.image_ops import psnr
from svd_stages.training.svd_nano import evaluate
from svd_stages.training.svd_nano.architecture import METADATA
from svd_stages.training.svd_nano.clips import draw_backdrop
from svd_stages.training.svd_nano.evaluate import SETTINGS, held_out_scenes, motion_of, position_error, true_clip
from svd_stages.training.svd_nano.tracking import along, cosine

CPU = torch.device("cpu")
QUICK = replace(SETTINGS, steps=8)


@pytest.fixture(scope="module", autouse=True)
def _two_threads():
    """Use two threads: these tensors are large enough."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def nano():
    return load_checkpoint(EMBEDDED_FILE, "fp32", CPU)


@pytest.fixture(scope="module")
def make(nano):
    return evaluate.cached_generate(nano)


@pytest.fixture(scope="module")
def scenes():
    """Two rockets and a ball."""
    return held_out_scenes(3)


def test_the_file_is_small_and_has_its_metadata_and_latents_of_unit_variance(nano, scenes):
    assert EMBEDDED_FILE.stat().st_size <= 32_000_000
    assert nano.model.defaults == METADATA.defaults()
    images = torch.cat([true_clip(scene, QUICK)[:1] for scene in scenes])
    latents = encode_images(nano.vae, images, CPU) * nano.model.scaling_factor
    assert 0.6 < latents.std() < 1.6


def test_the_vae_reconstructs_clips(nano, scenes):
    clips = [true_clip(scene, QUICK) for scene in scenes]
    assert statistics.mean(psnr(evaluate.reconstruct(nano, clip), clip) for clip in clips) >= 28


@pytest.mark.slow
def test_clips_start_with_the_image_and_objects_move_as_they_should(make, scenes):
    clips = [(scene, make(scene, QUICK), true_clip(scene, QUICK)) for scene in scenes]
    assert statistics.mean(psnr(clip[0], truth[0]) for _, clip, truth in clips) >= 24
    assert statistics.mean(cosine(motion_of(scene, clip), scene) for scene, clip, _ in clips) >= 0.9
    assert statistics.median(position_error(*each) for each in clips) <= 0.08


@pytest.mark.slow
def test_motion_bucket_id_and_fps_change_the_distance(make, scenes):
    def distance(**changes: float) -> float:
        settings = replace(QUICK, **changes)
        return statistics.median(along(motion_of(scene, make(scene, settings)), scene) for scene in scenes)

    usual = distance()
    assert distance(motion_bucket_id=255) > 1.3 * usual > 1.3 * 1.3 * distance(motion_bucket_id=32)
    assert 1.3 < usual / distance(fps=15) < 3.2


@pytest.mark.slow
def test_noise_augmentation_makes_the_first_frame_less_similar(make, scenes):
    def similarity(strength: float) -> float:
        settings = replace(QUICK, noise_aug_strength=strength)
        return statistics.mean(psnr(make(scene, settings)[0], true_clip(scene, settings)[0]) for scene in scenes)

    assert similarity(0.02) > similarity(0.5) > similarity(1.0)


def test_a_lost_object_counts_as_an_error(scenes):
    (scene, *_), settings = scenes, replace(SETTINGS, num_frames=2)
    empty = draw_backdrop(scene.backdrop, 128, 128).movedim(0, -1).expand(2, -1, -1, -1)
    assert position_error(scene, empty, true_clip(scene, settings)) == float("inf")
    assert along(motion_of(scene, empty), scene) == 0
    assert cosine(motion_of(scene, empty), scene) == 0


@pytest.mark.slow
def test_the_table_is_complete(nano):
    text: list[str] = []
    evaluate.measure(nano, 1, replace(SETTINGS, num_frames=2, steps=1), text.append)
    rows = "".join(text).splitlines()
    assert len(rows) == 2 + 24
    assert all(row.count("|") == 4 for row in rows)


def test_diffusers_loads_it_and_generates_the_same_frames(nano, scenes, tmp_path):
    from diffusers import StableVideoDiffusionPipeline

    folder = convert_checkpoint(EMBEDDED_FILE, tmp_path / "svd-nano")
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pixels = (true_clip(scenes[0], QUICK)[0] * 255).round().byte().numpy()
    settings = ChainSettings(width=128, height=128, steps=5, max_guidance=2.5)
    (expected,) = pipeline_frames(pipeline, Image.fromarray(pixels), settings, "pt")
    images = torch.from_numpy(pixels)[None].float() / 255
    (ours,) = decoded(nano, sampled(nano, images, settings), "exact")
    assert (ours - expected.movedim(1, -1)).abs().max() <= 1e-4
