"""The step cache against diffusers' UNet whose deep features are held by a hook, as DeepCache holds them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core import execution
from svd_stages.svd_core.diffusion.conditioning import Conditioning, MicroConditioning
from svd_stages.svd_core.diffusion.guidance import GuidanceCurve
from svd_stages.svd_core.diffusion.schedules import make_sigmas
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.models.step_cache import DeepFeatures, StepCache
from svd_stages.svd_core.models.unet import PreparedUNet
from svd_stages.svd_core.runtime.runtime import LocalRuntime
from tiny import mini_checkpoint, randn, tiny_checkpoint

FRAMES, SIZE = 3, (16, 24)
C_NOISES = torch.linspace(1.5, -0.9, 7)
TIME_IDS = torch.tensor([[6.0, 127.0, 0.02]])
EMBEDS, IMAGE_LATENTS = randn(1, 1, 32, seed=2), randn(FRAMES, 4, *SIZE, seed=1)


def ours(unet, cache: StepCache | None, **options) -> list[torch.Tensor]:
    prepared = PreparedUNet(unet, EMBEDS, IMAGE_LATENTS, TIME_IDS, C_NOISES, step_cache=cache, **options)
    return [prepared(randn(FRAMES, 4, *SIZE, seed=index), c_noise) for index, c_noise in enumerate(C_NOISES)]


@contextmanager
def held_features(unet, is_whole: list[bool]) -> Iterator[None]:
    """Let the input of the last two residual blocks, without their skips, be that of the last whole call."""
    resnet, calls, kept = unet.up_blocks[-1].resnets[-2], iter(is_whole), {}
    skip = unet.down_blocks[0].resnets[0].spatial_res_block.conv2.out_channels

    def hold(module, inputs):
        hidden, *rest = inputs
        deep, from_skip = hidden[:, :-skip], hidden[:, -skip:]
        if next(calls):
            kept["deep"] = deep.clone()
        return (torch.cat([kept["deep"], from_skip], dim=1), *rest)

    hook = resnet.register_forward_pre_hook(hold)
    try:
        yield
    finally:
        hook.remove()


def theirs(unet, is_whole: list[bool]) -> list[torch.Tensor]:
    """Call diffusers' UNet at each noise level; deep features are held where `is_whole` is False."""
    results = []
    with held_features(unet, is_whole):
        for index, c_noise in enumerate(C_NOISES):
            sample = torch.cat([randn(FRAMES, 4, *SIZE, seed=index), IMAGE_LATENTS], dim=1)[None]
            inputs = {"encoder_hidden_states": EMBEDS, "added_time_ids": TIME_IDS, "return_dict": False}
            results.append(unet(sample, c_noise, **inputs)[0][0])
    return results


@pytest.mark.parametrize("checkpoint", [tiny_checkpoint, mini_checkpoint])
@pytest.mark.parametrize(
    ("cache", "is_whole"),
    [
        (StepCache(2), [True, False, True, False, True, False, True]),
        (StepCache(3), [True, False, False, True, False, False, True]),
        (StepCache(9, sigma_from=math.exp(4 * 1.2)), [True, False, False, False, False, False, False]),
        (StepCache(9, sigma_to=math.exp(4 * 0.2)), [True, False, False, False, True, True, True]),
    ],
    ids=str,
)
def test_cached_calls_equal_a_reference_that_holds_the_deep_features(checkpoint, cache, is_whole):
    unet = checkpoint().model.unet
    for found, wanted in zip(ours(unet, cache), theirs(unet, is_whole), strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_whole_calls_have_the_bits_of_no_cache():
    unet = tiny_checkpoint().model.unet
    plain = ours(unet, None)
    for cache in (StepCache(1), StepCache(5, sigma_from=1e-6)):
        assert all(map(torch.equal, ours(unet, cache), plain))
    cached = ours(unet, StepCache(3))
    assert [torch.equal(*pair) for pair in zip(cached, plain, strict=True)] == [True, False, False] * 2 + [True]


def test_cached_calls_compute_three_residual_blocks(monkeypatch):
    unet = tiny_checkpoint().model.unet
    calls: list[torch.nn.Module] = []
    compute = PreparedUNet._resnet

    def counted(self, x, block, conv_biases):
        calls.append(block)
        return compute(self, x, block, conv_biases)

    monkeypatch.setattr(PreparedUNet, "_resnet", counted)
    ours(unet, StepCache(len(C_NOISES)))
    kept = [unet.down_blocks[0].resnets[0], *unet.up_blocks[-1].resnets[-2:]]
    assert calls[-3:] == kept
    assert all(calls.count(block) == (len(C_NOISES) if block in kept else 1) for block in calls)
    assert len(set(calls)) > 3 * len(kept)


def conditioning(seed: int) -> tuple[Conditioning, Conditioning]:
    positive = Conditioning(randn(1, 1, 32, seed=seed), randn(1, 4, 8, 8, seed=seed + 1), MicroConditioning())
    zeros = {"embeds": torch.zeros_like(positive.embeds), "image_latent": torch.zeros_like(positive.image_latent)}
    return positive, replace(positive, **zeros)


def sample(model, pairs, start: torch.Tensor) -> torch.Tensor:
    curve, sigmas = GuidanceCurve("linear", 1.0, 3.0), make_sigmas("karras", 5)
    return execution.sample(LocalRuntime(device_name="cpu"), model, pairs, start, curve, sigmas)


def test_no_features_cross_videos_or_sides_of_guidance():
    model = replace(tiny_checkpoint().model, step_cache=StepCache(2))
    pairs, start = [conditioning(0), conditioning(5)], 700 * randn(2, FRAMES, 4, 8, 8)
    both = sample(model, pairs, start)
    for index, pair in enumerate(pairs):
        assert torch.equal(both[index : index + 1], sample(model, [pair], start[index : index + 1]))
    plain = sample(replace(model, step_cache=None), pairs, start)
    assert torch.isfinite(both).all() and not torch.allclose(both, plain)
    assert torch.equal(sample(replace(model, step_cache=StepCache(1)), pairs, start), plain)


def test_streamed_weights_give_the_same_bits():
    unet = tiny_checkpoint().model.unet
    assert all(map(torch.equal, ours(unet, StepCache(3), stream=True), ours(unet, StepCache(3))))


def test_a_unet_with_hooks_is_refused():
    model = replace(tiny_checkpoint().model, step_cache=StepCache(2))
    hook = model.unet.mid_block.register_forward_hook(lambda *inputs: None)
    try:
        with raises(SettingError, "setting", "SVDStepCache"):
            sample(model, [conditioning(0)], 700 * randn(1, FRAMES, 4, 8, 8))
    finally:
        hook.remove()


@pytest.mark.parametrize("values", [{"interval": 0}, {"sigma_from": 1.0, "sigma_to": 2.0}, {"sigma_to": -1.0}], ids=str)
def test_settings_out_of_range_are_refused(values):
    with raises(SettingError, "setting", *(str(value) for value in values.values())):
        StepCache(**values)


def test_features_are_reused_inside_the_range_of_noise_levels_only():
    features = DeepFeatures(StepCache(3, sigma_from=10.0, sigma_to=1.0))
    reused = []
    for sigma in (11.0, 10.0, 5.0, 5.0, 1.0, 1.0, 11.0, 5.0):
        reused.append(features.reusable(sigma) is not None)
        if not reused[-1]:
            features.store(torch.ones(1))
    assert reused == [False, True, True, False, False, False, False, True]
