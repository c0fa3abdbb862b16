"""Compare our StableVideoDiffusionPipeline with diffusers', call by call, on one set of random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from error_checks import raises
from PIL import Image
from svd_stages.svd_core.diffusers_pipeline.pipeline import StableVideoDiffusionPipeline
from svd_stages.svd_core.errors import ImageError, SettingError
from tiny import mini_checkpoint, randn, tiny_pipeline

FRAMES, STEPS, SIZE = 3, 3, 64  # with fewer steps, rounding at sigma 700 shows
SHORT = {"height": SIZE, "width": SIZE, "num_frames": FRAMES, "num_inference_steps": STEPS}
LATENT_TOLERANCE, FRAME_TOLERANCE = 1e-5, 2e-5


@pytest.fixture(scope="module")
def pipelines():
    """(ours, diffusers') with the same modules."""
    theirs = tiny_pipeline(mini_checkpoint())
    ours = StableVideoDiffusionPipeline(**theirs.components)
    ours.set_progress_bar_config(disable=True)
    return ours, theirs


def picture(seed: int = 0, width: int = 96, height: int = 80) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in range(count)]


def halve(pipeline, step, timestep, tensors):
    return {"latents": tensors["latents"] * 0.5} if step == 0 else {}


CALLS = {
    "the guide's": lambda: {"image": picture(), "decode_chunk_size": 2},
    "more motion": lambda: {"image": picture(), "motion_bucket_id": 180, "noise_aug_strength": 0.1},
    "all frames at once": lambda: {"image": picture(), "fps": 12},
    "flat guidance": lambda: {"image": picture(), "min_guidance_scale": 2.0, "max_guidance_scale": 2.0},
    "no guidance": lambda: {"image": picture(), "max_guidance_scale": 1.0},
    "own latents": lambda: {"image": picture(), "latents": randn(1, FRAMES, 4, 8, 8, seed=3)},
    "own noise levels": lambda: {"image": picture(), "sigmas": [80.0, 5.0, 0.3, 0.0]},
    "own size": lambda: {"image": picture(), "height": 80, "width": 112},
    "two images": lambda: {"image": [picture(0), picture(1)], "generator": generators(2)},
    "two images, one generator": lambda: {"image": [picture(0), picture(1)]},
    "two videos": lambda: {"image": picture(), "num_videos_per_prompt": 2, "generator": generators(2)},
    "a callback": lambda: {"image": picture(), "callback_on_step_end": halve},
    "a tensor": lambda: {"image": randn(1, 3, 224, 224).sigmoid(), "height": 224, "width": 224},
}


def call(pipeline, arguments: dict, **more):
    """Call a pipeline with settings for a short video, and a generator unless there is one."""
    given = {**SHORT, "generator": generators(1)[0], **arguments, **more}
    return pipeline(**given).frames


@pytest.mark.parametrize("name", CALLS)
def test_latents_and_frames_are_diffusers(pipelines, name):
    ours, theirs = (call(each, CALLS[name](), output_type="latent") for each in pipelines)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= LATENT_TOLERANCE * theirs.abs().max()
    ours, theirs = (call(each, CALLS[name](), output_type="np") for each in pipelines)
    assert np.abs(ours - theirs).max() <= FRAME_TOLERANCE


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_each_output_type_has_diffusers_form(pipelines, output_type):
    ours, theirs = (call(each, {"image": picture()}, output_type=output_type) for each in pipelines)
    assert type(ours) is type(theirs)
    if output_type == "pil":
        assert [len(video) for video in ours] == [len(video) for video in theirs] == [FRAMES]
        ours, theirs = (np.stack([np.asarray(frame, np.int16) for frame in each[0]]) for each in (ours, theirs))
        assert np.abs(ours - theirs).max() <= 1
    else:
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype


def test_the_result_is_the_frames_alone_without_a_dict(pipelines):
    with_dict, alone = (
        pipelines[0](picture(), **SHORT, seed=1, output_type="np", return_dict=each) for each in (True, False)
    )
    assert np.array_equal(with_dict.frames, alone)


def test_videos_of_one_image_follow_each_other(pipelines):
    """diffusers pairs the embedding of an image with the latent of another here."""
    ours, _ = pipelines
    images = [picture(0), picture(1)]
    four = call(
        ours, {"image": images, "num_videos_per_prompt": 2, "latents": randn(4, FRAMES, 4, 8, 8)}, output_type="np"
    )
    second = call(ours, {"image": images, "latents": randn(4, FRAMES, 4, 8, 8)[[0, 2]]}, output_type="np")
    assert np.array_equal(four[[0, 2]], second)


def test_a_seed_is_a_generator_on_the_cpu(pipelines):
    ours, _ = pipelines
    seeded = ours(picture(), **SHORT, seed=7, output_type="np").frames
    generated = call(ours, {"image": picture(), "generator": torch.Generator("cpu").manual_seed(7)}, output_type="np")
    assert np.array_equal(seeded, generated)


def test_a_compiled_unet_and_forward_chunking_change_no_number(pipelines):
    expected = call(pipelines[0], {"image": picture()}, output_type="np")
    own = StableVideoDiffusionPipeline(**tiny_pipeline(mini_checkpoint()).components)
    own.unet.enable_forward_chunking()
    assert np.array_equal(call(own, {"image": picture()}, output_type="np"), expected)
    own.unet = torch.compile(pipelines[0].unet, backend="eager")
    assert np.abs(call(own, {"image": picture()}, output_type="np") - expected).max() <= FRAME_TOLERANCE


def test_offloading_without_an_accelerator_changes_nothing(pipelines, monkeypatch):
    ours, _ = pipelines
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    expected = call(ours, {"image": picture()}, output_type="np")
    ours.enable_model_cpu_offload()
    ours.enable_sequential_cpu_offload()
    assert np.array_equal(call(ours, {"image": picture()}, output_type="np"), expected)


def test_sixteen_bit_components_keep_their_dtype(pipelines):
    components = tiny_pipeline(mini_checkpoint(torch.bfloat16)).components
    ours = StableVideoDiffusionPipeline(**components)
    frames = call(ours, {"image": picture()}, output_type="np")
    assert np.isfinite(frames).all()
    assert {ours.unet.dtype, ours.vae.dtype, ours.image_encoder.dtype} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"height": 60}, "setting"),
        ({"output_type": "mp4"}, "setting"),
        ({"callback_on_step_end_tensor_inputs": ["image_latents"]}, "setting"),
        ({"num_inference_steps": 0}, "setting"),
        ({"sigmas": [1.0, 2.0]}, "setting"),
        ({"fps": 0}, "setting"),
        ({"generator": generators(2), "num_videos_per_prompt": 3}, "setting"),
        ({"image": torch.full((1, 3, 64, 64), -0.5)}, "image"),
        ({"image": torch.zeros(1, 64, 64, 3)}, "image"),
    ],
)
def test_a_bad_argument_is_refused(pipelines, arguments, code):
    with raises(ValueError if code == "setting" else ImageError, code):
        call(pipelines[0], {"image": picture(), **arguments})


def test_a_path_is_no_image(pipelines):
    with pytest.raises(TypeError):
        call(pipelines[0], {"image": "rocket.png"})


def test_another_scheduler_is_refused(pipelines):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    ours, _ = pipelines
    kept = ours.scheduler
    for other in (DDIMScheduler(), EulerDiscreteScheduler.from_config(kept.config, prediction_type="epsilon")):
        ours.scheduler = other
        try:
            with raises(SettingError, "pipeline.scheduler"):
                call(ours, {"image": picture()})
        finally:
            ours.scheduler = kept
