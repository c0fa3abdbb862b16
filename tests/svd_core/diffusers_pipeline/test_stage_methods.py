"""Compare the stages of our StableVideoDiffusionPipeline with diffusers', and a subclass with a loop of its own."""

from __future__ import annotations

import inspect

import diffusers
import numpy as np
import pytest
import torch
from error_checks import raises
from PIL import Image
from svd_stages.svd_core.diffusers_pipeline.pipeline import StableVideoDiffusionPipeline
from svd_stages.svd_core.errors import ImageError, SettingError
from tiny import mini_checkpoint, randn, tiny_pipeline

TOLERANCE = 1e-5
ONE_IMAGE = (1, True), (1, False), (2, True)


@pytest.fixture(scope="module")
def pipelines():
    """(ours, diffusers') with the same modules, and a scheduler whose steps are set."""
    theirs = tiny_pipeline(mini_checkpoint())
    theirs.scheduler.set_timesteps(3)
    ours = StableVideoDiffusionPipeline(**theirs.components)
    for each in (ours, theirs):
        each.set_progress_bar_config(disable=True)
    return ours, theirs


def picture(seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), np.uint8)
    return Image.fromarray(levels).resize((96, 80), Image.Resampling.BICUBIC)


def outputs(pipelines, method: str, *arguments):
    with torch.no_grad():
        return [getattr(each, method)(*arguments) for each in pipelines]


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    assert (ours - theirs).abs().max() <= TOLERANCE * max(1, theirs.abs().max())


def test_no_method_of_diffusers_class_is_missing(pipelines):
    ours, theirs = pipelines
    assert {name for name in vars(diffusers.StableVideoDiffusionPipeline) if not name.startswith("__")} <= {*dir(ours)}
    assert {*vars(theirs)} <= {*vars(ours)}
    for name in ("_encode_image", "_encode_vae_image", "_get_add_time_ids", "decode_latents", "prepare_latents"):
        mine, other = (inspect.signature(getattr(each, name)).parameters.values() for each in pipelines)
        assert [(each.name, each.default) for each in mine] == [(each.name, each.default) for each in other]


@pytest.mark.parametrize(("copies", "guided"), ONE_IMAGE)
@pytest.mark.parametrize("image", [picture(), [picture(0), picture(1)], randn(1, 3, 224, 224).sigmoid()])
def test_image_embeddings_are_diffusers(pipelines, image, copies, guided):
    assert_equal(*outputs(pipelines, "_encode_image", image, "cpu", copies, guided))


@pytest.mark.parametrize(("copies", "guided"), ONE_IMAGE)
def test_image_latents_are_diffusers(pipelines, copies, guided):
    assert_equal(*outputs(pipelines, "_encode_vae_image", 1.5 * randn(1, 3, 64, 80), "cpu", copies, guided))


def test_latents_of_several_images_stand_in_the_order_of_their_embeddings(pipelines):
    pixels = randn(2, 3, 64, 64)
    one, two = (outputs(pipelines[:1], "_encode_vae_image", pixels, "cpu", copies, False)[0] for copies in (1, 2))
    assert torch.equal(two, one[[0, 0, 1, 1]])


@pytest.mark.parametrize(("copies", "guided"), ONE_IMAGE)
def test_time_ids_are_diffusers(pipelines, copies, guided):
    assert_equal(*outputs(pipelines, "_get_add_time_ids", 6, 127, 0.02, torch.float32, 2, copies, guided))


@pytest.mark.parametrize("chunk", [1, 3, 14])
def test_decoded_pixels_are_diffusers(pipelines, chunk):
    latents = 3 * randn(1, 3, 4, 8, 10)
    ours, theirs = outputs(pipelines, "decode_latents", latents, 3, chunk)
    assert_equal(ours, theirs)
    assert theirs.abs().max() > 1  # nothing is clamped
    videos = [each.video_processor.postprocess_video(ours, output_type="np") for each in pipelines]
    assert np.array_equal(*videos)


def test_chunks_hold_frames_of_one_video(pipelines):
    latents = randn(2, 3, 4, 8, 8)
    both = pipelines[0].decode_latents(latents, 3, 2)
    assert torch.equal(both, torch.cat([pipelines[0].decode_latents(each[None], 3, 2) for each in latents]))


@pytest.mark.parametrize("latents", [None, randn(2, 3, 4, 8, 8)])
def test_starting_latents_are_diffusers(pipelines, latents):
    ours, theirs = (
        each.prepare_latents(2, 3, 8, 64, 64, torch.float32, "cpu", torch.Generator().manual_seed(1), latents)
        for each in pipelines
    )
    assert torch.equal(ours, theirs)


def test_inputs_are_checked_as_in_a_call(pipelines):
    ours, _ = pipelines
    ours.check_inputs(picture(), 64, 72)
    with raises(SettingError):
        ours.check_inputs(picture(), 64, 70)
    with raises(ImageError):
        ours.check_inputs([], 64, 64)
    with raises(SettingError):
        ours.prepare_latents(2, 3, 8, 64, 64, torch.float32, "cpu", [torch.Generator()])


def test_guidance_has_the_shape_of_diffusers(pipelines):
    for each in pipelines:
        each(picture(), 64, 64, num_frames=3, num_inference_steps=1, num_videos_per_prompt=2, output_type="latent")
    ours, theirs = pipelines
    assert_equal(ours.guidance_scale, theirs.guidance_scale)
    assert ours.num_timesteps == theirs.num_timesteps and ours.do_classifier_free_guidance
    ours._guidance_scale = 1.0  # as a subclass does before its steps
    assert not ours.do_classifier_free_guidance


def own_call(pipeline, image, size: int, frames: int, steps: int, seed: int) -> np.ndarray:
    """Animate with diffusers' own function, as the loop of a subclass."""
    call = inspect.unwrap(diffusers.StableVideoDiffusionPipeline.__call__)
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        return call(
            pipeline, image, size, size, frames, steps, generator=generator, num_videos_per_prompt=2, output_type="np"
        ).frames


def test_the_loop_of_diffusers_runs_on_our_stages(pipelines):
    ours, theirs = (own_call(each, picture(), 64, 3, 3, 5) for each in pipelines)
    assert np.abs(ours - theirs).max() <= 2e-5
