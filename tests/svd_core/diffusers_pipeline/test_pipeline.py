"""Compare our StableVideoDiffusionPipeline with diffusers', call by call, on one set of random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from error_checks import raises
from PIL import Image
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.diffusers_pipeline.pipeline import StableVideoDiffusionPipeline
from svd_stages.svd_core.diffusion.sampling import SOLVERS, Solver, sample_dpmpp_2m_sde
from svd_stages.svd_core.errors import SettingError
from tiny import mini_checkpoint, randn, tiny_checkpoint, tiny_pipeline

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


def halve_last(pipeline, step, timestep, tensors):
    return {"latents": tensors["latents"] * 0.5} if step == pipeline.num_timesteps - 1 else tensors


CALLS = {
    "the guide's": lambda: {"image": picture(), "decode_chunk_size": 2},
    "more motion": lambda: {"image": picture(), "motion_bucket_id": 180, "noise_aug_strength": 0.1},
    "all frames at once": lambda: {"image": picture(), "fps": 12},
    "flat guidance": lambda: {"image": picture(), "min_guidance_scale": 2.0, "max_guidance_scale": 2.0},
    "no guidance": lambda: {"image": picture(), "max_guidance_scale": 1.0},
    "own latents": lambda: {"image": picture(), "latents": randn(1, FRAMES, 4, 8, 8, seed=3)},
    "own noise levels": lambda: {"image": picture(), "sigmas": [80.0, 5.0, 0.3, 0.0]},
    "noise levels that do not end in 0": lambda: {"image": picture(), "sigmas": [80.0, 5.0, 0.3]},
    "own size": lambda: {"image": picture(), "height": 80, "width": 112},
    "the UNet's size": lambda: {"image": picture(), "height": None, "width": None},
    "two images": lambda: {"image": [picture(0), picture(1)], "generator": generators(2)},
    "two images, one generator": lambda: {"image": [picture(0), picture(1)]},
    "two videos": lambda: {"image": picture(), "num_videos_per_prompt": 2, "generator": generators(2)},
    "two videos, own latents": lambda: {
        **{"image": picture(), "num_videos_per_prompt": 2, "latents": randn(2, FRAMES, 4, 8, 8, seed=3)},
    },
    "a callback": lambda: {"image": picture(), "callback_on_step_end": halve},
    "a callback of two videos": lambda: {
        **{"image": picture(), "num_videos_per_prompt": 2, "callback_on_step_end": halve},
    },
    "a callback in the last step": lambda: {"image": picture(), "callback_on_step_end": halve_last},
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


@pytest.mark.parametrize(("sampler", "algorithm"), [("dpmpp_2m", "dpmsolver++"), ("dpmpp_2m_sde", "sde-dpmsolver++")])
def test_samplers_of_second_order_are_diffusers(pipelines, monkeypatch, sampler, algorithm):
    """diffusers' own pipeline with its EDM scheduler in place of Euler's. Its noise of steps is given to ours."""
    from diffusers import EDMDPMSolverMultistepScheduler

    ours, theirs = pipelines
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_max=700, sigma_data=1.0, prediction_type="v_prediction", algorithm_type=algorithm, lower_order_final=False
    )
    monkeypatch.setattr(theirs, "scheduler", scheduler)
    draws = []
    step = scheduler.step

    def same_noise(v, t, x, generator=None, **options):
        source = torch.Generator().manual_seed(len(draws))
        draws.append(torch.randn(x.shape, generator=torch.Generator().manual_seed(len(draws))))
        return step(v, t, x, generator=source, **options)

    monkeypatch.setattr(scheduler, "step", same_noise)
    wanted = call(theirs, {"image": picture()}, output_type="latent", num_inference_steps=4)
    left = iter(draws)
    noisy = Solver(sample_dpmpp_2m_sde, lambda x, sigmas, seed: lambda sigma, sigma_next: next(left))
    monkeypatch.setitem(SOLVERS, "dpmpp_2m_sde", noisy)
    found = call(ours, {"image": picture(), "sampler": sampler}, output_type="latent", num_inference_steps=4)
    assert (found - wanted).abs().max() <= LATENT_TOLERANCE * wanted.abs().max()


def test_a_generator_gives_the_noise_of_steps_and_euler_asks_for_none(pipelines):
    ours, _ = pipelines
    states = []
    for sampler in ("euler", "dpmpp_2m", "euler_ancestral"):
        (generator,) = generators(1)
        first = call(ours, {"image": picture(), "generator": generator, "sampler": sampler}, output_type="latent")
        states.append(generator.get_state())
        again = call(ours, {"image": picture(), "sampler": sampler}, output_type="latent")
        assert torch.equal(first, again)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_a_callback_sees_diffusers_steps(pipelines):
    seen: list[list] = []

    def note(pipeline, step, timestep, tensors):
        seen[-1].append((step, float(timestep), tensors["latents"].clone()))
        return tensors

    for each in pipelines:
        seen.append([])
        call(each, {"image": picture(), "callback_on_step_end": note}, output_type="latent")
    for (step, timestep, latents), (their_step, their_timestep, their_latents) in zip(*seen, strict=True):
        assert step == their_step and timestep == pytest.approx(their_timestep, abs=1e-6)
        assert (latents - their_latents).abs().max() <= LATENT_TOLERANCE * their_latents.abs().max()


@pytest.mark.parametrize("checkpoint", [mini_checkpoint, tiny_checkpoint])
@pytest.mark.parametrize(("height", "width"), [(72, 88), (104, 64)])
def test_a_multiple_of_8_that_the_unet_cannot_halve_evenly_works_as_there(checkpoint, height, width):
    theirs = tiny_pipeline(checkpoint())
    ours = StableVideoDiffusionPipeline(**theirs.components)
    ours.set_progress_bar_config(disable=True)
    arguments = {"image": picture(), "height": height, "width": width}
    ours, theirs = (call(each, arguments, output_type="np") for each in (ours, theirs))
    assert ours.shape == (1, FRAMES, height, width, 3)
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
    """A compiled UNet is the one that is called. Feed-forward layers run in chunks with either setting."""
    expected = call(pipelines[0], {"image": picture()}, output_type="np")
    own = StableVideoDiffusionPipeline(**tiny_pipeline(mini_checkpoint()).components)
    own.set_progress_bar_config(disable=True)
    own.unet.enable_forward_chunking()
    assert np.array_equal(call(own, {"image": picture()}, output_type="np"), expected)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    own.unet = torch.compile(pipelines[0].unet, backend=backend)
    assert np.abs(call(own, {"image": picture()}, output_type="np") - expected).max() <= FRAME_TOLERANCE
    assert graphs


METHODS = {
    **{f"{name}_attention_slicing": lambda pipeline, name=name: getattr(pipeline, f"{name}_attention_slicing")()
       for name in ("enable", "disable")},
    "enable_xformers": lambda pipeline: pipeline.enable_xformers_memory_efficient_attention(),
    "disable_xformers": lambda pipeline: pipeline.disable_xformers_memory_efficient_attention(),
    "enable_vae_slicing": lambda pipeline: pipeline.enable_vae_slicing(),
    "enable_vae_tiling": lambda pipeline: pipeline.enable_vae_tiling(),
    "enable_freeu": lambda pipeline: pipeline.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "fuse_qkv_projections": lambda pipeline: pipeline.fuse_qkv_projections(),
    "load_lora_weights": lambda pipeline: pipeline.load_lora_weights("lora"),
    "vae.enable_slicing": lambda pipeline: pipeline.vae.enable_slicing(),
    "vae.enable_tiling": lambda pipeline: pipeline.vae.enable_tiling(),
    "unet.set_default_attn_processor": lambda pipeline: pipeline.unet.set_default_attn_processor(),
    "maybe_free_model_hooks": lambda pipeline: pipeline.maybe_free_model_hooks(),
    "reset_device_map": lambda pipeline: pipeline.reset_device_map(),
    "remove_all_hooks": lambda pipeline: pipeline.remove_all_hooks(),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_code_for_diffusers_calls_works_or_fails_as_there(pipelines, name):
    outcomes = []
    for pipeline in pipelines:
        try:
            outcomes.append(METHODS[name](pipeline))
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    assert outcomes[0] == outcomes[1]


def test_attention_processors_of_others_are_used(pipelines):
    """Slicing, xformers and own processors are set on the UNet; then its own forward runs, with them."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    calls = []

    class Counting(AttnProcessor2_0):
        def __call__(self, *arguments, **more):
            calls.append(1)
            return super().__call__(*arguments, **more)

    own = StableVideoDiffusionPipeline(**tiny_pipeline(mini_checkpoint()).components)
    own.set_progress_bar_config(disable=True)
    expected = call(own, {"image": picture()}, output_type="np")
    own.unet.set_attn_processor(Counting())
    assert np.abs(call(own, {"image": picture()}, output_type="np") - expected).max() <= FRAME_TOLERANCE
    assert calls


def test_a_pipeline_of_diffusers_becomes_ours_with_the_same_modules(pipelines):
    ours = StableVideoDiffusionPipeline.from_pipe(pipelines[1])
    assert type(ours) is StableVideoDiffusionPipeline
    assert all(ours.components[name] is component for name, component in pipelines[1].components.items())


def test_exact_is_one_clip_and_windowed_is_chunks_with_context(pipelines, monkeypatch):
    ours, _ = pipelines
    exact = call(ours, {"image": picture()}, output_type="np")
    assert np.array_equal(call(ours, {"image": picture(), "decode": "exact"}, output_type="np"), exact)
    chunks = call(ours, {"image": picture(), "decode_chunk_size": 1}, output_type="np")
    assert not np.array_equal(chunks, exact)
    wide = {"image": picture(), "decode": "windowed", "decode_chunk_size": 1, "decode_context": FRAMES}
    assert np.array_equal(call(ours, wide, output_type="np"), exact)  # every window sees all frames
    monkeypatch.setattr("svd_stages.svd_core.diffusers_pipeline.arguments.CHUNK_SIZE", 1)
    assert np.array_equal(call(ours, {"image": picture(), "decode": "windowed"}, output_type="np"), chunks)


@pytest.mark.parametrize("memory", ["auto", "resident", "offload", "stream"])
def test_memory_changes_no_number(pipelines, memory):
    ours, _ = pipelines
    expected = call(ours, {"image": picture()}, output_type="np")
    assert np.array_equal(call(ours, {"image": picture(), "memory": memory}, output_type="np"), expected)


def test_a_visible_stretch_is_logged_once(pipelines, caplog):
    call(pipelines[0], {"image": [picture(0, 128, 64), picture(1, 128, 64)]}, output_type="latent")
    assert len([each for each in caplog.records if "64x64" in each.getMessage()]) == 1
    caplog.clear()
    call(pipelines[0], {"image": picture(0, 64, 64)}, output_type="latent")
    assert not caplog.records


def test_a_size_far_from_the_trained_area_is_logged_with_the_size_to_set(caplog):
    """The default size is diffusers'. svd-nano was trained for 128x128."""
    ours = StableVideoDiffusionPipeline.from_single_file(EMBEDDED_FILE)
    wrong = torch.zeros(1)  # found after the image is resized, before anything is computed
    with raises(SettingError):
        ours(picture(), latents=wrong)
    hints = [each.getMessage() for each in caplog.records if "height=128, width=128" in each.getMessage()]
    assert len(hints) == 1 and "1024x576" in hints[0]
    caplog.clear()
    for size in ({"height": None, "width": None}, {"height": 128, "width": 144}):
        with raises(SettingError):
            ours(picture(width=96, height=96), latents=wrong, **size)
    assert not [each for each in caplog.records if "trained" in each.getMessage()]


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
