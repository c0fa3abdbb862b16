"""The denoiser's algebra in float64, the loop on a problem with a known answer, and what it starts from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.diffusion.conditioning import Conditioning, MicroConditioning
from svd_stages.svd_core.diffusion.denoiser import denoised_from_v, make_denoiser, precondition
from svd_stages.svd_core.diffusion.sampling import sample_euler, starting_noise, starting_point
from svd_stages.svd_core.diffusion.schedules import make_sigmas
from svd_stages.svd_core.errors import SettingError
from tiny import SCHEDULER_CONFIG, randn

CPU = torch.device("cpu")


def some_conditioning(frames: int = 1, seed: int = 0) -> Conditioning:
    return Conditioning(randn(1, 1, 32, seed=seed), randn(frames, 4, 8, 8, seed=seed + 1), MicroConditioning())


def nothing(like: Conditioning) -> Conditioning:
    return replace(like, embeds=torch.zeros_like(like.embeds), image_latent=torch.zeros_like(like.image_latent))


@pytest.mark.parametrize("sigma", [0.002, 0.5, 10.0, 700.0])
def test_the_clean_estimate_is_the_v_parameterisations(sigma):
    """In the variance-preserving frame, z = (x0 + sigma n)/sqrt(1+sigma^2), v = (n - sigma x0)/sqrt(1+sigma^2)."""
    x0, n = randn(1, 2, 4, 8, 8).double(), randn(1, 2, 4, 8, 8, seed=1).double()
    s = torch.tensor(sigma, dtype=torch.float64)
    x = x0 + s * n
    v = (n - s * x0) / (1 + s**2).sqrt()
    assert torch.allclose(denoised_from_v(x, v, s), x0, atol=1e-9 * max(1.0, sigma))


def test_the_network_sees_unit_variance_and_a_quarter_of_log_sigma():
    sigma = torch.tensor(10.0)
    scaled, c_noise = precondition(randn(1, 14, 4, 32, 32) * math.sqrt(101.0), sigma)
    assert scaled.std().item() == pytest.approx(1.0, rel=0.02)
    assert c_noise.item() == pytest.approx(0.25 * math.log(10.0))


@pytest.mark.parametrize("sigma", [700.0, 3.0, 0.002])
def test_one_step_equals_diffusers_scheduler(tiny, sigma):
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**SCHEDULER_CONFIG)
    scheduler.set_timesteps(sigmas=[sigma, sigma / 2])
    x, positive = randn(1, 3, 4, 8, 8) * sigma, some_conditioning()
    denoise = make_denoiser(tiny.model.unet, positive, nothing(positive), torch.full((3,), 1.0), CPU)
    ours = sample_euler(denoise, x, torch.tensor([sigma, sigma / 2]))
    t = scheduler.timesteps[0]
    model_input = torch.cat([scheduler.scale_model_input(x, t), positive.per_frame(3)], dim=2)
    v = tiny.model.unet(model_input, t, positive.embeds, positive.micro.time_ids(), return_dict=False)[0]
    wanted = scheduler.step(v, t, x).prev_sample
    assert (ours - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_levels_known_before_give_what_others_give(tiny):
    x, positive, sigmas = randn(1, 4, 4, 8, 8), some_conditioning(), torch.tensor([5.0, 2.0, 0.3])
    weights = torch.linspace(1.0, 3.0, 4)
    known, unknown = (
        make_denoiser(tiny.model.unet, positive, nothing(positive), weights, CPU, levels) for levels in (sigmas, None)
    )
    for sigma in sigmas:
        assert (known(x, sigma) - unknown(x, sigma)).abs().max() <= 1e-5 * x.abs().max()


def test_each_frame_has_its_own_weight(tiny):
    """Guided v is affine in the weight, so frame f of a rising curve equals frame f of a constant one."""
    x, positive = randn(1, 3, 4, 8, 8), some_conditioning()
    sigma = torch.tensor(2.0)

    def denoised(weights: list[float]) -> torch.Tensor:
        return make_denoiser(tiny.model.unet, positive, nothing(positive), torch.tensor(weights), CPU)(x, sigma)

    rising = denoised([1.0, 2.0, 3.0])
    for frame, weight in enumerate([1.0, 2.0, 3.0]):
        assert torch.allclose(rising[:, frame], denoised([weight] * 3)[:, frame], atol=1e-5)
    assert (rising[:, 2] - rising[:, 0]).abs().max() > 0.01


def test_weights_of_one_skip_the_negative_side(tiny):
    calls = []
    hook = tiny.model.unet.conv_in.register_forward_hook(lambda *told: calls.append(told))
    positive, x = some_conditioning(), randn(1, 2, 4, 8, 8)
    counts = []
    for weights in ([1.0, 1.0], [1.0, 2.0]):
        make_denoiser(tiny.model.unet, positive, nothing(positive), torch.tensor(weights), CPU)(x, torch.tensor(1.0))
        counts.append(len(calls))
    hook.remove()
    assert counts == [1, 3]


def test_an_image_latent_for_each_frame_is_used_for_that_frame(tiny):
    x, one = randn(1, 3, 4, 8, 8), some_conditioning()
    each = replace(one, image_latent=one.image_latent.expand(3, -1, -1, -1))
    sigma, weights = torch.tensor(1.0), torch.tensor([1.0, 2.0, 3.0])
    same = [make_denoiser(tiny.model.unet, side, nothing(side), weights, CPU)(x, sigma) for side in (one, each)]
    assert torch.equal(*same)
    with raises(SettingError, "setting", 2, 3):
        replace(one, image_latent=one.image_latent.expand(2, -1, -1, -1)).per_frame(3)


def test_the_loop_finds_the_exact_solution_for_gaussian_data():
    """For data N(0, s^2) the clean estimate is x s^2/(s^2 + sigma^2), and the ODE's solution scales x by
    sqrt((s^2 + end^2)/(s^2 + start^2)); Euler converges to it with the number of steps."""
    spread, x = 0.7, randn(1, 2, 4, 8, 8) * 80.0

    def error(steps: int) -> float:
        sigmas = make_sigmas("karras", steps, 0.002, 80.0)
        end = sample_euler(lambda x, sigma: x * spread**2 / (spread**2 + sigma**2), x, sigmas)
        wanted = x * spread / math.sqrt(spread**2 + 80.0**2)
        return ((end - wanted).norm() / wanted.norm()).item()

    assert error(400) < 0.02 and error(400) < 0.6 * error(200) < 0.36 * error(100)


def test_a_schedule_ending_in_zero_ends_on_the_clean_estimate():
    end = sample_euler(
        lambda x, sigma: torch.full_like(x, 0.25), randn(1, 1, 4, 8, 8), make_sigmas("karras", 5, 0.1, 5)
    )
    assert torch.allclose(end, torch.full_like(end, 0.25), atol=1e-5)


def test_the_observer_sees_every_step_and_can_stop_the_loop():
    seen = []

    def stop_at_three(step):
        seen.append((step.done, step.total))
        if step.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_euler(lambda x, sigma: x * 0, torch.ones(1, 1, 4, 8, 8), make_sigmas("karras", 9), stop_at_three)
    assert seen == [(1, 9), (2, 9), (3, 9)]


def test_comfyui_noise_is_the_first_draw():
    wanted = torch.randn((5, 4, 9, 16), generator=torch.Generator("cpu").manual_seed(11))
    assert torch.equal(starting_noise("comfyui", 11, 5, 9, 16), wanted)


def test_diffusers_noise_comes_after_the_augmentation_noise():
    generator = torch.Generator("cpu").manual_seed(11)
    torch.randn((1, 3, 72, 128), generator=generator)
    wanted = torch.randn((1, 5, 4, 9, 16), generator=generator)[0]
    assert torch.equal(starting_noise("diffusers", 11, 5, 9, 16), wanted)


def test_batch_index_draws_frame_by_frame_as_core_does():
    generator = torch.Generator("cpu").manual_seed(11)
    single = [torch.randn((1, 4, 8, 8), generator=generator) for _ in range(6)]
    wanted = torch.cat([single[3], single[5], single[3]])
    assert torch.equal(starting_noise("comfyui", 11, 3, 8, 8, batch_index=[3, 5, 3]), wanted)
    with raises(SettingError, "setting", "batch_index", 3):
        starting_noise("comfyui", 11, 3, 8, 8, batch_index=[0, 1])


def test_no_noise_is_zeros_and_other_words_are_refused():
    assert not starting_noise("none", 0, 2, 8, 8).any()
    with raises(SettingError, "setting", "noise", "comfyui", "diffusers", "none", "pink"):
        starting_noise("pink", 0, 2, 8, 8)


@pytest.mark.parametrize(("sigma", "scale"), [(700.0, math.sqrt(490001.0)), (699.999, math.sqrt(490001.0)), (5.0, 5.0)])
def test_the_start_is_scaled_by_cores_rule(sigma, scale):
    latents, noise = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1)
    start = starting_point(latents, noise, torch.tensor(sigma), 700.0)
    assert torch.allclose(start, latents + noise * scale, rtol=1e-5)


@pytest.mark.parametrize(
    "bad", [{"fps": 0}, {"fps": float("nan")}, {"motion_bucket_id": -1}, {"noise_aug_strength": -0.1}]
)
def test_micro_conditioning_out_of_range_is_refused(bad):
    with raises(SettingError, "setting", *bad, *bad.values()):
        MicroConditioning(**bad)
