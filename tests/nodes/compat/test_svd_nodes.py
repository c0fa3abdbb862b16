"""Compat nodes of core's SVD nodes on the tiny checkpoint: errors, and equality with this package's nodes.

tests/comfyui compares their numbers with core's.
"""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from chain import call as run
from error_checks import check_facts, raises
from svd_stages.headless import NODES
from svd_stages.headless.graph.validate import raise_if_invalid, validate
from svd_stages.nodes import backend, samplers
from svd_stages.nodes.compat import values
from svd_stages.nodes.compat.values import Guidance, Model
from svd_stages.nodes.wire_formats import read_latent
from svd_stages.svd_core.diffusion.guidance import GuidanceCurve
from svd_stages.svd_core.diffusion.schedules import SCHEDULERS
from svd_stages.svd_core.errors import GraphError, SettingError
from svd_stages.svd_core.models.components import Checkpoint
from svd_stages.svd_core.pipeline import SAMPLERS
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime

FRAMES = 2
ROUNDED = 1e-3
"""Core's karras is computed in float32, ours in float64: the second of two steps differs by 1e-4."""


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with use_runtime(LocalRuntime(device_name="cpu")):
        yield


@pytest.fixture(scope="module")
def model(tiny) -> Model:
    return Model(tiny.model)


@pytest.fixture(scope="module")
def conditioned(tiny, images) -> tuple:
    """Return positive, negative and latent of core's node, without noise."""
    with torch.inference_mode(), use_runtime(LocalRuntime(device_name="cpu")):
        return condition(tiny, images)


def condition(tiny: Checkpoint, images: torch.Tensor, **changes):
    parts = {"clip_vision": tiny.clip_vision, "vae": tiny.vae, "init_image": images}
    numbers = {"width": 64, "height": 64, "video_frames": FRAMES, "motion_bucket_id": 127, "fps": 6}
    return run("SVD_img2vid_Conditioning", **parts, **{**numbers, "augmentation_level": 0.0, **changes})


def ksampler(model: Model, conditioned: tuple, **changes) -> dict:
    positive, negative, latent = conditioned
    conditioning = {"positive": positive, "negative": negative, "latent_image": latent}
    numbers = {"seed": 4, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0}
    return run("KSampler", model=model, **{**conditioning, **numbers, **changes})[0]


def ours(model, conditioned: tuple, low: float, high: float) -> dict:
    positive, negative, latent = conditioned
    conditioning = {"positive": positive, "negative": negative, "latent": latent}
    numbers = {"seed": 4, "steps": 2, "min_guidance": low, "max_guidance": high, "noise": "comfyui"}
    return run("SVDEulerSampler", model=model, **conditioning, **numbers)[0]


def schedule(model: Model, steps: int, scheduler: str = "karras", denoise: float = 1.0) -> torch.Tensor:
    return run("BasicScheduler", model=model, scheduler=scheduler, steps=steps, denoise=denoise)[0]


def custom_advanced(guider, sigmas: torch.Tensor, latent: dict, **changes) -> tuple[dict, dict]:
    """Sample with SamplerCustomAdvanced, without noise unless `changes` names some."""
    (noise,), (sampler,) = run("DisableNoise"), run("KSamplerSelect", sampler_name="euler")
    values = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    return run("SamplerCustomAdvanced", **{**values, **changes})


def far(one: dict, other: dict) -> float:
    """Return the largest difference in standard deviations."""
    return float((one["samples"] - other["samples"]).abs().max() / other["samples"].std())


# SVD_img2vid_Conditioning


def test_conditioning_is_cores_dictionary_with_the_users_fps_and_zeros_on_the_other_side(conditioned):
    [[embeds, keys]], [[no_embeds, no_keys]], latent = conditioned
    assert (keys["fps"], keys["motion_bucket_id"], keys["augmentation_level"]) == (6, 127, 0.0)
    assert embeds.shape == (1, 1, 32) and keys["concat_latent_image"].shape == (1, 4, 8, 8)
    assert not no_embeds.any() and not no_keys["concat_latent_image"].any()
    assert {**no_keys, "concat_latent_image": 0} == {**keys, "concat_latent_image": 0}
    assert latent["samples"].shape == (FRAMES, 4, 8, 8) and not latent["samples"].any()


def test_its_noise_is_equal_in_every_run_and_a_warning_says_so(tiny, images, conditioned, caplog):
    with caplog.at_level(logging.WARNING):
        one, other = (condition(tiny, images, augmentation_level=0.1)[0][0][1] for _ in range(2))
    assert torch.equal(one["concat_latent_image"], other["concat_latent_image"])
    assert not torch.equal(one["concat_latent_image"], conditioned[0][0][1]["concat_latent_image"])
    check_facts(caplog.text, "seed", "SVDNoiseAugmentation")


def test_several_images_are_tokens_of_one_video(tiny, images, model):
    two = condition(tiny, torch.cat([images, images.flip(2)]))
    assert two[0][0][0].shape == (1, 2, 32) and two[0][0][1]["concat_latent_image"].shape == (FRAMES, 4, 8, 8)
    assert ksampler(model, two, steps=1)["samples"].shape == (FRAMES, 4, 8, 8)


def test_transparency_and_odd_sizes_are_cut_off(tiny, images):
    with_alpha = torch.cat([images, images[..., :1]], dim=-1)
    positive, _, latent = condition(tiny, with_alpha, width=68, height=76, augmentation_level=0.02)
    assert positive[0][1]["concat_latent_image"].shape[-2:] == latent["samples"].shape[-2:] == (9, 8)


# Guidance over the frames


@pytest.mark.parametrize("shape", ["linear", "triangle"])
def test_a_guidance_node_gives_a_copy_whose_curve_ends_in_the_samplers_cfg(model, shape):
    node = f"Video{shape.title()}CFGGuidance"
    (guided,) = run(node, model=model, min_cfg=1.5)
    assert guided.guidance.curve(2.5) == GuidanceCurve(shape, 1.5, 2.5)
    assert guided.model is model.model and model.guidance == Guidance()
    (again,) = run(node, model=guided, min_cfg=1.0)
    assert again.guidance.curve(2.5) == GuidanceCurve(shape, 1.0, 2.5)


def test_ksampler_with_linear_guidance_is_our_sampler(model, tiny, conditioned):
    (guided,) = run("VideoLinearCFGGuidance", model=model, min_cfg=1.0)
    assert far(ksampler(guided, conditioned), ours(tiny.model, conditioned, 1.0, 3.0)) < ROUNDED


def test_a_cfg_of_one_below_a_larger_min_cfg_still_guides(model, conditioned):
    (guided,) = run("VideoLinearCFGGuidance", model=model, min_cfg=3.0)
    at_one = ksampler(guided, conditioned, cfg=1.0, steps=1)
    assert far(at_one, ksampler(guided, conditioned, cfg=1.000001, steps=1)) < 1e-3
    assert far(at_one, ksampler(model, conditioned, cfg=1.0, steps=1)) > 0.01


# Samplers


def test_two_ksamplers_in_a_row_are_one(model, conditioned):
    positive, negative, latent = conditioned
    numbers = {"model": model, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "noise_seed": 4}
    conditioning = {"positive": positive, "negative": negative}

    def part(latent: dict, start: int, end: int, noise: str, leftover: str) -> dict:
        cut = {"start_at_step": start, "end_at_step": end, "add_noise": noise, "return_with_leftover_noise": leftover}
        return run("KSamplerAdvanced", latent_image=latent, **numbers, **conditioning, **cut)[0]

    kept = copy.deepcopy(latent)
    first = part(latent, 0, 2, "enable", "enable")
    all_at_once = ksampler(model, conditioned, cfg=2.0, steps=3, scheduler="normal")
    assert far(part(first, 2, 10000, "disable", "disable"), all_at_once) < 1e-4
    assert torch.equal(latent["samples"], kept["samples"])
    assert part(all_at_once, 3, 10000, "enable", "disable") is all_at_once


def test_ksampler_leaves_no_level_out_of_a_row_that_is_longer_than_asked(model, conditioned):
    positive, negative, latent = conditioned
    numbers = {"steps": 7, "cfg": 1.0, "sampler_name": "euler", "scheduler": "ddim_uniform"}
    conditioning = {"positive": positive, "negative": negative, "latent_image": latent}
    all_steps = {"start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
    (advanced,) = run(
        "KSamplerAdvanced", model=model, add_noise="enable", noise_seed=4, **numbers, **conditioning, **all_steps
    )
    assert torch.equal(ksampler(model, conditioned, **numbers)["samples"], advanced["samples"])


def test_a_row_of_one_level_puts_its_noise_on_the_latent(model, conditioned):
    """So a schedule that is split after 0 steps can be continued like any other."""
    positive, negative, latent = conditioned
    first, rest = run("SplitSigmas", sigmas=schedule(model, 2), step=0)
    (sampler,) = run("KSamplerSelect", sampler_name="euler")
    wires = {"model": model, "cfg": 3.0, "positive": positive, "negative": negative, "sampler": sampler}

    def sample(sigmas: torch.Tensor, latent: dict, add_noise: bool) -> tuple[dict, dict]:
        noise = {"add_noise": add_noise, "noise_seed": 4}
        return run("SamplerCustom", sigmas=sigmas, latent_image=latent, **noise, **wires)

    noisy, estimate = sample(first, latent, True)
    assert estimate is noisy
    assert far(sample(rest, noisy, False)[0], ksampler(model, conditioned)) < 1e-3  # float32 at a level of 700
    (end,) = run("AlignYourStepsScheduler", model_type="SVD", steps=10, denoise=0.04)
    assert end.tolist() == [0.0]
    assert torch.allclose(sample(end, noisy, True)[0]["samples"], noisy["samples"])


def test_samplers_of_parts_are_ksampler(model, conditioned):
    positive, negative, latent = conditioned
    (sampler,), (noise,) = run("KSamplerSelect", sampler_name="ddim"), run("RandomNoise", noise_seed=4)
    (guider,) = run("CFGGuider", model=model, positive=positive, negative=negative, cfg=3.0)
    wires = {"sampler": sampler, "sigmas": schedule(model, 2)}
    output, estimate = custom_advanced(guider, latent=latent, noise=noise, **wires)
    all_at_once = ksampler(model, conditioned)
    assert torch.equal(output["samples"], all_at_once["samples"])
    assert far(estimate, output) < 1e-3  # the last step lands on the estimate
    conditioning = {"positive": positive, "negative": negative, "latent_image": latent}
    custom = run("SamplerCustom", model=model, add_noise=True, noise_seed=4, cfg=3.0, **conditioning, **wires)
    assert torch.equal(custom[0]["samples"], all_at_once["samples"])


def test_before_the_last_step_the_estimate_is_cleaner_than_the_output(model, conditioned):
    high, _ = run("SplitSigmas", sigmas=schedule(model, 3), step=1)
    positive, _, latent = conditioned
    (guider,), (noise,) = run("BasicGuider", model=model, conditioning=positive), run("RandomNoise", noise_seed=4)
    output, estimate = custom_advanced(guider, high, latent, noise=noise)
    assert estimate["samples"].std() < output["samples"].std()


def test_sampling_upwards_and_down_again_comes_back(model, conditioned):
    """Only the curvature of the path within a step differs between the two directions."""
    positive, _, _ = conditioned
    video = {"samples": positive[0][1]["concat_latent_image"].expand(FRAMES, -1, -1, -1)}
    (guider,) = run("BasicGuider", model=model, conditioning=positive)
    row = torch.linspace(0.02, 0.0, 5)
    (up,) = run("FlipSigmas", sigmas=row)
    noisy, _ = custom_advanced(guider, up, video)
    back, _ = custom_advanced(guider, row, noisy)
    assert far(noisy, video) > 5 * far(back, video)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_is_offered_and_makes_sigmas(model, scheduler):
    assert tuple(values.SCHEDULER_NAMES) == SCHEDULERS
    sigmas = schedule(model, 4, scheduler, denoise=0.5)
    assert len(sigmas) == 5 and sigmas[-1] == 0


def test_basic_guider_cannot_guide_over_the_frames(model, conditioned):
    (guided,) = run("VideoLinearCFGGuidance", model=model, min_cfg=2.0)
    positive, _, latent = conditioned
    (guider,) = run("BasicGuider", model=guided, conditioning=positive)
    with raises(SettingError, "setting", "BasicGuider", "CFGGuider"):
        custom_advanced(guider, torch.tensor([1.0, 0.0]), latent)


def test_a_noise_mask_is_refused(model, conditioned):
    positive, negative, latent = conditioned
    masked = {**latent, "noise_mask": torch.ones(1, 1, 64, 64)}
    with raises(SettingError, "setting", "noise_mask"):
        ksampler(model, (positive, negative, masked))


@pytest.mark.parametrize("name", ["dpmpp_3m_sde", "res_multistep", "euler_cfg_pp"])
@pytest.mark.parametrize("class_type", ["KSampler", "KSamplerAdvanced", "KSamplerSelect"])
def test_a_sampler_that_only_comfyui_has_is_refused_by_name_before_anything_runs(class_type, name):
    node = NODES[class_type]
    assert name in node.INPUT_TYPES()["required"]["sampler_name"][0]
    graph = {
        "choose": {"class_type": class_type, "inputs": {"sampler_name": name}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["choose", 0]}},
    }
    with raises(GraphError, None, name, "euler", "ddim") as caught:
        raise_if_invalid(validate(graph, NODES))
    assert "custom_validation_failed" in {each["type"] for each in caught.value.node_errors["choose"]["errors"]}


def test_a_linked_sampler_name_is_checked_when_it_runs(model, conditioned):
    assert NODES["KSampler"].VALIDATE_INPUTS(None) is True
    with raises(SettingError, "setting", "eule", "euler", "ddim"):
        ksampler(model, conditioned, sampler_name="eule")


def test_the_rows_of_image_models_and_bislerp_are_refused_by_name():
    assert NODES["AlignYourStepsScheduler"].VALIDATE_INPUTS("SVD") is True
    assert "SDXL" in NODES["AlignYourStepsScheduler"].VALIDATE_INPUTS("SDXL")
    with raises(SettingError, "setting", "SD1", "SVD"):
        run("AlignYourStepsScheduler", model_type="SD1", steps=5, denoise=1.0)
    assert "bislerp" in NODES["LatentUpscaleBy"].VALIDATE_INPUTS("bislerp")
    with raises(SettingError, "setting", "bislerp", "bicubic"):
        run("LatentUpscaleBy", samples={"samples": torch.zeros(1, 4, 8, 8)}, upscale_method="bislerp", scale_by=2.0)


@pytest.mark.parametrize(
    ("class_type", "name", "value"),
    [
        ("KSampler", "sampler_name", "eule"),
        ("KSamplerAdvanced", "sampler_name", "eule"),
        ("KSamplerSelect", "sampler_name", "eule"),
        ("KSamplerSelect", "sampler_name", ["euler", "ddim", "lms"]),
        ("AlignYourStepsScheduler", "model_type", "SVD2"),
        ("AlignYourStepsScheduler", "model_type", 5),
        ("LatentUpscaleBy", "upscale_method", "lanczos"),
        ("LatentUpscaleBy", "upscale_method", "foo"),
        ("LatentUpscaleBy", "upscale_method", {}),
    ],
)
def test_what_a_combo_does_not_offer_is_refused_before_anything_runs(class_type, name, value):
    """The engine does not check an input that VALIDATE_INPUTS names."""
    node = {"class_type": class_type, "inputs": {name: {"__value__": value}}}
    show = {"class_type": "PreviewImage", "inputs": {"images": ["choose", 0]}}
    errors = validate({"choose": node, "show": show}, NODES).node_errors["choose"]["errors"]
    refused = [each["extra_info"]["input_name"] for each in errors if each["type"] == "custom_validation_failed"]
    assert refused == [name]
    assert all(each["type"] != "exception_during_validation" for each in errors)


def test_a_linked_method_for_images_does_not_resize_latents():
    with raises(SettingError, "setting", "lanczos", "bicubic"):
        run("LatentUpscaleBy", samples={"samples": torch.zeros(1, 4, 8, 8)}, upscale_method="lanczos", scale_by=2.0)


@pytest.mark.parametrize(
    ("class_type", "socket"),
    [("KSamplerSelect", "sampler"), ("RandomNoise", "noise"), ("CFGGuider", "guider"), ("BasicScheduler", "sigmas")],
)
def test_a_value_of_another_type_is_refused(model, conditioned, class_type, socket):
    positive, negative, latent = conditioned
    (guider,) = run("CFGGuider", model=model, positive=positive, negative=negative, cfg=3.0)
    wires = {"guider": guider, "sigmas": torch.tensor([1.0, 0.0])}
    wires[socket] = torch.ones(1, 2) if socket == "sigmas" else "something else"
    with raises(SettingError, "setting", socket, *([] if socket == "sigmas" else [class_type, "str"])):
        custom_advanced(latent=latent, **wires)


# VAE and CLIP


def test_all_frames_are_decoded_as_one_clip(tiny, model, conditioned):
    latent = ksampler(model, conditioned, steps=1)
    (frames,) = run("VAEDecode", samples=latent, vae=tiny.vae)
    (exact,) = run("SVDTemporalVAEDecode", vae=tiny.vae, latent=latent, mode="exact", chunk_size=1, context=0)
    assert torch.equal(frames, exact[0])
    (tiled,) = run(
        "VAEDecodeTiled", samples=latent, vae=tiny.vae, tile_size=64, overlap=64, temporal_size=64, temporal_overlap=8
    )
    assert tiled.shape == frames.shape and not torch.allclose(tiled, frames, atol=1e-3)


def test_encoding_cuts_the_middle(tiny, images):
    (cropped,) = run("VAEEncode", pixels=images[:, :42, :35], vae=tiny.vae)
    (middle,) = run("VAEEncode", pixels=images[:, 1:41, 1:33], vae=tiny.vae)
    assert torch.equal(cropped["samples"], middle["samples"])
    assert list(cropped) == ["samples"]


def test_clip_sees_the_middle_or_all(tiny, images):
    seen = {
        crop: run("CLIPVisionEncode", clip_vision=tiny.clip_vision, image=images, crop=crop)[0].image_embeds
        for crop in ("center", "none")
    }
    (middle,) = run("SVDCLIPVisionEncode", clip_vision=tiny.clip_vision, image=images, preprocess="center_crop")
    assert torch.equal(seen["center"], middle.image_embeds)
    assert not torch.allclose(seen["none"], seen["center"])


# Our nodes on these wires


def test_our_sampler_takes_a_model_and_warns_that_its_guidance_is_replaced(tiny, model, conditioned, caplog):
    (guided,) = run("VideoTriangleCFGGuidance", model=model, min_cfg=1.0)
    plain = ours(tiny.model, conditioned, 1.0, 3.0)
    assert torch.equal(ours(model, conditioned, 1.0, 3.0)["samples"], plain["samples"])
    assert not caplog.records
    assert torch.equal(ours(guided, conditioned, 1.0, 3.0)["samples"], plain["samples"])
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    check_facts(caplog.text, "MODEL", "VideoLinearCFGGuidance")


def test_our_checkpoint_goes_to_cores_samplers(tiny, conditioned):
    model, clip_vision, vae = run("SVDToComfyModel", model=tiny.model, clip_vision=tiny.clip_vision, vae=tiny.vae)
    assert (clip_vision, vae) == (tiny.clip_vision, tiny.vae)
    (guided,) = run("SVDFrameGuidance", model=model, min_guidance=1.0, max_guidance=3.0)
    sampled = ksampler(guided, conditioned, cfg=8.0)
    assert far(sampled, ours(tiny.model, conditioned, 1.0, 3.0)) < ROUNDED
    positive, negative, latent = conditioned
    conditioning = {"positive": positive, "negative": negative, "min_guidance": 1.0, "max_guidance": 3.0}
    (guider,) = run("SVDFrameGuider", model=model, **conditioning)
    (noise,), (sampler,) = run("RandomNoise", noise_seed=4), run("SVDEulerSamplerSelect")
    output, _ = custom_advanced(guider, schedule(model, 2), latent, noise=noise, sampler=sampler)
    assert torch.equal(output["samples"], sampled["samples"])


def test_an_svd_model_does_not_go_where_a_model_is_wanted():
    graph = {
        "load": {"class_type": "SVDCheckpointLoader", "inputs": {"checkpoint": "svd-nano", "precision": "auto"}},
        "guide": {"class_type": "VideoLinearCFGGuidance", "inputs": {"model": ["load", 0], "min_cfg": 1.0}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["guide", 0]}},
    }
    with raises(GraphError, "graph.return_type_mismatch", "model", "MODEL", 0, "load", "SVD_MODEL"):
        raise_if_invalid(validate(graph, NODES))


def test_without_comfyui_the_backend_is_that_of_the_compat_nodes(tiny):
    assert backend.get_backend().get_sampler(tiny.model) is None
    assert backend.get_backend().wrap_vae(tiny.vae) is None


# Latents and images between stages


def test_frames_of_a_latent_keep_their_numbers():
    samples = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 4, 8, 8)
    (part,) = run("LatentFromBatch", samples={"samples": samples, "other": 1}, batch_index=2, length=3)
    assert part["batch_index"] == [2, 3, 4] and part["other"] == 1
    assert part["samples"][:, 0, 0, 0].tolist() == [2, 3, 4]
    (last,) = run("LatentFromBatch", samples=part, batch_index=60, length=60)
    assert last["batch_index"] == [4]
    (twice,) = run("RepeatLatentBatch", samples=part, amount=2)
    assert twice["batch_index"] == [2, 3, 4, 5, 6, 7]
    assert twice["samples"][:, 0, 0, 0].tolist() == [2, 3, 4, 2, 3, 4]


def test_a_latent_with_another_number_of_frames_is_one_clip_as_in_core(tiny, model, conditioned):
    sampled = ksampler(model, conditioned, steps=1)
    assert sampled["svd"] == {"frames": FRAMES}
    (twice,) = run("RepeatLatentBatch", samples=sampled, amount=2)
    assert read_latent(twice).clips.shape == (1, 2 * FRAMES, 4, 8, 8)
    again = ksampler(model, (*conditioned[:2], twice), steps=1, denoise=0.5)
    assert again["svd"] == {"frames": 2 * FRAMES}
    three_videos = {"samples": torch.cat([sampled["samples"]] * 3), "svd": {"frames": FRAMES}}
    (part,) = run("LatentFromBatch", samples=three_videos, batch_index=1, length=4)
    assert read_latent(part).clips.shape == (1, 4, 4, 8, 8)
    (same,) = run("RepeatLatentBatch", samples=three_videos, amount=1)
    assert read_latent(same).clips.shape == (3, FRAMES, 4, 8, 8)
    assert three_videos["svd"] == sampled["svd"] == {"frames": FRAMES}


def test_frames_are_taken_out_of_a_batch():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 8, 8, 3)
    assert run("ImageFromBatch", image=images, batch_index=1, length=2)[0][:, 0, 0, 0].tolist() == [1, 2]
    assert run("ImageFromBatch", image=images, batch_index=9, length=9)[0][:, 0, 0, 0].tolist() == [3]


@pytest.mark.parametrize(
    ("kind", "value"), [("Int", -3), ("Float", 0.25), ("Boolean", True), ("String", "a"), ("StringMultiline", "a\nb")]
)
def test_a_primitive_gives_its_value(kind, value):
    assert run(f"Primitive{kind}", value=value) == (value,)


def test_scaling_to_nothing_is_refused(images):
    with raises(SettingError, "setting", "16x16", "0.01"):
        run("ImageScaleBy", image=images[:, :16, :16], upscale_method="area", scale_by=0.01)


def euler_sampler(model: Model, conditioned: tuple, **changes) -> torch.Tensor:
    positive, negative, latent = conditioned
    numbers = {"seed": 4, "steps": 3, "min_guidance": 1.0, "max_guidance": 3.0, "noise": "comfyui"}
    wired = {"model": model, "positive": positive, "negative": negative, "latent": latent}
    return run("SVDEulerSampler", **{**wired, **numbers, **changes})[0]["samples"]


def select(name: str, node: str = "SVDSamplerSelect"):
    return run(node, sampler_name=name)[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_the_same_in_all_nodes(model, conditioned, name):
    pytest.importorskip("torchsde", reason="noise of a Brownian path needs torchsde")
    ours = euler_sampler(model, conditioned, min_guidance=3.0, sampler=select(name))
    assert torch.equal(
        ours, euler_sampler(model, conditioned, min_guidance=3.0, sampler=select(name, "KSamplerSelect"))
    )
    if name.startswith("uni_pc"):  # KSampler leaves out the smallest level of one step more
        levels = schedule(model, 4)
        sigmas = torch.cat([levels[:-2], levels[-1:]])
        ours = euler_sampler(model, conditioned, min_guidance=3.0, sampler=select(name), sigmas=sigmas)
    core = ksampler(model, conditioned, steps=3, sampler_name=name)["samples"]
    assert (ours - core).abs().max() <= ROUNDED * core.abs().max()


def test_without_a_sampler_the_steps_are_eulers(model, conditioned):
    default = euler_sampler(model, conditioned)
    for sampler in (None, select("euler"), select("ddim"), run("SVDEulerSamplerSelect")[0]):
        assert torch.equal(default, euler_sampler(model, conditioned, sampler=sampler))
    for name in set(SAMPLERS) - {"euler", "ddim", "dpmpp_sde", "dpmpp_2m_sde"}:
        assert not torch.allclose(default, euler_sampler(model, conditioned, sampler=select(name)))


def test_a_value_that_is_no_sampler_is_refused(model, conditioned):
    with raises(SettingError, "setting", "SVDSamplerSelect", "str"):
        euler_sampler(model, conditioned, sampler="euler")


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde"])
def test_each_video_has_the_noise_of_its_own_seed(model, tiny, images, name):
    pytest.importorskip("torchsde", reason="noise of a Brownian path needs torchsde")
    two = image_conditioning(tiny, images[:1].repeat(2, 1, 1, 1))
    both = euler_sampler(model, two, sampler=select(name)).chunk(2)
    one = image_conditioning(tiny, images[:1])
    for index, video in enumerate(both):
        assert torch.equal(video, euler_sampler(model, one, seed=4 + index, sampler=select(name)))


def image_conditioning(tiny: Checkpoint, images: torch.Tensor) -> tuple:
    resized = run("SVDResizeImage", image=images, width=64, height=64, fit="crop")[0]
    (embedded,) = run("SVDCLIPVisionEncode", clip_vision=tiny.clip_vision, image=images, preprocess="reference")
    (encoded,) = run("SVDVAEEncode", vae=tiny.vae, image=resized)
    return run("SVDImageConditioning", clip_vision_output=embedded, image_latent=encoded, video_frames=FRAMES)


@pytest.mark.parametrize("name", ["heun", "dpmpp_sde", "lcm"])
def test_a_schedule_in_two_halves_and_a_part_of_one(model, conditioned, name):
    """The first half of a split schedule ends above 0, and the second goes on without noise of its own."""
    pytest.importorskip("torchsde", reason="noise of a Brownian path needs torchsde")
    guider = run("CFGGuider", model=model, positive=conditioned[0], negative=conditioned[1], cfg=2.0)[0]
    (sigmas,) = run("KarrasScheduler", steps=4, sigma_max=700.0, sigma_min=0.002, rho=7.0)
    high, low = run("SplitSigmas", sigmas=sigmas, step=2)
    (noise,), (none,) = run("RandomNoise", noise_seed=4), run("DisableNoise")

    def advanced(noise, sigmas: torch.Tensor, latent: dict) -> dict:
        wired = {"noise": noise, "guider": guider, "sampler": select(name), "sigmas": sigmas, "latent_image": latent}
        return run("SamplerCustomAdvanced", **wired)[0]

    whole = advanced(noise, sigmas, conditioned[2])["samples"]
    halves = advanced(none, low, advanced(noise, high, conditioned[2]))["samples"]
    assert torch.isfinite(halves).all()
    if name == "heun":
        assert (whole - halves).abs().max() <= 1e-4 * whole.abs().max()
    part = ksampler(model, conditioned, sampler_name=name, steps=3, denoise=0.5)["samples"]
    assert torch.isfinite(part).all() and not torch.equal(part, whole)


def test_a_sampler_whose_package_is_missing_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(samplers, "has_extra", lambda package: False)
    for class_type in ("KSampler", "KSamplerAdvanced", "KSamplerSelect", "SVDSamplerSelect"):
        for name in SAMPLERS:
            valid = NODES[class_type].VALIDATE_INPUTS(sampler_name=name)
            assert (valid is True) == (name not in ("dpmpp_sde", "dpmpp_2m_sde"))
            assert valid is True or "torchsde" in valid


@pytest.mark.parametrize("settings", [{"sigma_high": 60.0}, {"rescale": 0.7}, {"eta": 0.2, "momentum": -0.5}])
def test_refined_guidance_reaches_our_sampler_the_guider_and_the_model_alike(tiny, model, conditioned, settings):
    positive, negative, latent = conditioned
    neutral = {
        "sigma_low": 0.0, "sigma_high": 10000.0, "rescale": 0.0, "eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0,
    }  # fmt: skip
    (curve,) = run("SVDGuidance", shape="linear", min_guidance=1.0, max_guidance=3.0)
    (refined,) = run("SVDGuidanceRefine", guidance=curve, **{**neutral, **settings})
    unused = {"min_guidance": 1.0, "max_guidance": 1.0}
    (guided,) = run("SVDFrameGuidance", model=model, guidance=refined, **unused)
    sampled = ksampler(guided, conditioned)
    (guider,) = run("SVDFrameGuider", model=model, positive=positive, negative=negative, guidance=refined, **unused)
    (noise,) = run("RandomNoise", noise_seed=4)
    advanced, _ = custom_advanced(guider, schedule(model, 2), latent, noise=noise)
    numbers = {"seed": 4, "steps": 2, "noise": "comfyui", **unused}
    (own,) = run(
        "SVDEulerSampler", model=tiny.model, positive=positive, negative=negative, latent=latent, guidance=refined,
        sigmas=schedule(model, 2), **numbers,
    )  # fmt: skip
    assert torch.equal(advanced["samples"], sampled["samples"]) and torch.equal(own["samples"], sampled["samples"])
    (plain,) = run("SVDFrameGuidance", model=model, min_guidance=1.0, max_guidance=3.0)
    assert far(ksampler(plain, conditioned), sampled) > 1e-3


def test_the_step_cache_changes_the_video_unless_every_call_is_whole(tiny, conditioned):
    def sampled(**settings) -> torch.Tensor:
        values = {"mode": "deepcache", "interval": 3, "sigma_from": 10000.0, "sigma_to": 0.0, **settings}
        return euler_sampler(run("SVDStepCache", model=tiny.model, **values)[0], conditioned)

    plain = euler_sampler(tiny.model, conditioned)
    for settings in ({"mode": "off"}, {"interval": 1}, {"sigma_from": 1e-6}):
        assert torch.equal(sampled(**settings), plain)
    assert torch.isfinite(sampled()).all() and not torch.allclose(sampled(), plain)
    with raises(SettingError, "setting", "sigma_from", "sigma_to"):
        sampled(sigma_from=0.5, sigma_to=0.5)


def test_the_step_cache_keeps_model_options_and_needs_an_svd_model(model, tiny):
    options = {"memory": "resident", "forward_chunking": "auto", "compile": "off", "attention": "sdpa"}
    (cached,) = run("SVDStepCache", model=tiny.model, mode="deepcache", interval=2, sigma_from=10.0, sigma_to=0.0)
    (both,) = run("SVDModelOptions", model=cached, **options)
    assert both.step_cache == cached.step_cache and both.options.memory == "resident"
    with raises(SettingError, "setting", "SVDCheckpointLoader"):
        run("SVDStepCache", model=model, mode="deepcache", interval=2, sigma_from=10.0, sigma_to=0.0)
