"""Seeded noise augmentation of the input image: more of it, and the video is less bound to the picture."""

from __future__ import annotations

import math

import torch

from ..errors import SettingError
from ..utils.tensor_checks import check_images

SEEDS = 2**64


def make_generator(seed: int) -> torch.Generator:
    """A generator on the CPU. `seed` is 0 ... 2**64 - 1; raises SettingError outside."""
    if not 0 <= seed < SEEDS:
        raise SettingError(f"seed must be from 0 to 2**64 - 1 ({SEEDS - 1}), got {seed}")
    return torch.Generator("cpu").manual_seed(seed)


def seed_for_index(seed: int, index: int) -> int:
    """The seed of image or video `index` of many: seed + index, going round at 2**64."""
    return (seed + index) % SEEDS


def augment_images(images: torch.Tensor, noise_aug_strength: float, seed: int) -> torch.Tensor:
    """Add Gaussian noise whose standard deviation is `noise_aug_strength` in [-1, 1].

    images (B, H, W, 3) in [0, 1] -> the same shape, not clamped. Image i uses the seed `seed + i`, so each equals its
    single run. The noise is the first (1, 3, H, W) draw of the generator, as in diffusers' pipeline and in Stability's
    simple_video_sample.py; in [0, 1] its deviation is half of what it is in [-1, 1].
    Raises SettingError for a negative or not finite strength or a seed out of range.
    """
    if not (math.isfinite(noise_aug_strength) and noise_aug_strength >= 0):
        raise SettingError(f"noise_aug_strength must be 0 or more, got {noise_aug_strength}; 0.02 is the usual value")
    images = check_images(images)
    return torch.stack(
        [
            image
            + noise_aug_strength / 2 * augmentation_noise(make_generator(seed_for_index(seed, index)), *image.shape[:2])
            for index, image in enumerate(images)
        ]
    )


def augment_images_as_core(images: torch.Tensor, level: float, seed: int) -> torch.Tensor:
    """Add noise as ComfyUI's SVD_img2vid_Conditioning does: its deviation is `level` in [0, 1], twice the reference's.

    images (B, H, W, 3) in [0, 1] -> the same shape, not clamped. Core draws one (B, H, W, 3) from torch's global
    generator, whatever its state; here it is the first draw of a generator seeded with `seed`.
    """
    images = check_images(images)
    return images + level * torch.randn(images.shape, generator=make_generator(seed))


def augmentation_noise(generator: torch.Generator, height: int, width: int) -> torch.Tensor:
    """The noise of one image: the generator's next (1, 3, height, width) draw, given as (height, width, 3)."""
    return torch.randn((1, 3, height, width), generator=generator)[0].movedim(0, -1)
