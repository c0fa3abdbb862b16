"""Add seeded noise to the input image. More noise binds the video less to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..errors import SettingError
from ..utils.tensor_checks import check_images

SEEDS = 2**64


def make_generator(seed: int) -> torch.Generator:
    """Make a generator on the CPU. Raises SettingError unless `seed` is 0 to 2**64 - 1."""
    if not 0 <= seed < SEEDS:
        raise SettingError(f"seed must be from 0 to 2**64 - 1 ({SEEDS - 1}), got {seed}")
    return torch.Generator("cpu").manual_seed(seed)


def seed_for_index(seed: int, index: int) -> int:
    """Return the seed of image or video `index`: seed + index, modulo 2**64."""
    return (seed + index) % SEEDS


def augment_images(images: torch.Tensor, noise_aug_strength: float, seed: int) -> torch.Tensor:
    """Add Gaussian noise whose standard deviation is `noise_aug_strength` in [-1, 1].

    images (B, H, W, 3) in [0, 1] -> the same shape, not clamped. Image i uses the seed `seed + i`, so each equals its
    single run. The noise is the first (1, 3, H, W) draw of the generator, as in diffusers' pipeline and in Stability's
    simple_video_sample.py; in [0, 1] its deviation is half of that in [-1, 1].

    Raises:
        SettingError: The strength is negative or not finite, or the seed is out of range.
    """
    if not (math.isfinite(noise_aug_strength) and noise_aug_strength >= 0):
        raise SettingError(f"noise_aug_strength must be 0 or more, got {noise_aug_strength}; 0.02 is the usual value")
    images = check_images(images)
    return images + noise_aug_strength / 2 * draw_augmentation_noise(seed, images.shape)


def draw_augmentation_noise(seed: int, shape: Sequence[int]) -> torch.Tensor:
    """Draw the augmentation noise of images (B, H, W, 3), unit Gaussian. Image i uses the seed `seed + i`.

    Raises:
        SettingError: The seed is out of range.
    """
    count, height, width, _ = shape
    generators = [make_generator(seed_for_index(seed, index)) for index in range(count)]
    return torch.stack([augmentation_noise(generator, height, width) for generator in generators])


def augment_images_as_core(images: torch.Tensor, level: float, seed: int) -> torch.Tensor:
    """Add noise as ComfyUI's SVD_img2vid_Conditioning does: deviation `level` in [0, 1], twice the reference's.

    images (B, H, W, 3) in [0, 1] -> the same shape, not clamped. ComfyUI draws one (B, H, W, 3) from torch's
    global generator; here it is the first draw of a generator seeded with `seed`.
    """
    images = check_images(images)
    return images + level * torch.randn(images.shape, generator=make_generator(seed))


def augmentation_noise(generator: torch.Generator, height: int, width: int) -> torch.Tensor:
    """Draw the noise of one image: the generator's next (1, 3, height, width), returned as (height, width, 3)."""
    return torch.randn((1, 3, height, width), generator=generator)[0].movedim(0, -1)
