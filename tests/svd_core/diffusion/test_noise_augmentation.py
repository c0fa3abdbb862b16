"""Noise augmentation: strength in [-1, 1], seeds, batches."""

from __future__ import annotations

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.diffusion.noise_augmentation import (
    augment_images,
    augment_images_as_core,
    make_generator,
)
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.media.image_ops import to_pixels


def test_the_noise_is_the_generators_first_draw_in_the_pipelines_layout_times_the_strength():
    grey = torch.full((1, 24, 32, 3), 0.5)
    wanted = torch.randn((1, 3, 24, 32), generator=torch.Generator("cpu").manual_seed(9))
    noise = to_pixels(augment_images(grey, 0.5, seed=9)) - to_pixels(grey)
    assert torch.allclose(noise, 0.5 * wanted, atol=1e-6)


def test_image_i_uses_seed_plus_i():
    images = torch.rand((3, 32, 32, 3), generator=torch.Generator("cpu").manual_seed(0))
    together = augment_images(images, 0.1, seed=2**64 - 2)
    for index, seed in enumerate([2**64 - 2, 2**64 - 1, 0]):
        assert torch.equal(together[index], augment_images(images[index : index + 1], 0.1, seed)[0])


def test_nothing_is_clamped_changed_or_drawn_from_the_global_generator():
    images = torch.ones((1, 32, 32, 3))
    state = torch.random.get_rng_state()
    assert augment_images(images, 0.5, seed=0).max() > 1.0
    assert torch.equal(images, torch.ones((1, 32, 32, 3)))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_a_strength_that_is_no_deviation_is_refused(strength):
    with raises(SettingError, "setting", "noise_aug_strength", strength):
        augment_images(torch.zeros((1, 32, 32, 3)), strength, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with raises(SettingError, "setting", "seed", seed):
        make_generator(seed)


def test_cores_noise_is_what_torchs_global_generator_gives_after_the_seed_and_twice_as_strong():
    grey = torch.full((2, 40, 48, 3), 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        wanted = grey + 0.1 * torch.randn_like(grey)
    state = torch.random.get_rng_state()
    noisy = augment_images_as_core(grey, 0.1, seed=5)
    assert torch.allclose(noisy, wanted, atol=1e-6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert to_pixels(noisy).std().item() == pytest.approx(0.2, rel=0.05)
