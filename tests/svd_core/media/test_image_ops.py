"""Resizing and the input of CLIP equal diffusers, Pillow and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from error_checks import check_facts, raises
from PIL import Image, ImageOps
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.media.image_ops import (
    clip_input_center_crop,
    clip_input_reference,
    clip_input_whole,
    crop_to_multiple,
    resize_images,
    to_images,
    to_pixels,
)
from svd_stages.svd_core.utils.size_checks import check_multiple

IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SIZES = [(250, 170), (1024, 576), (64, 300), (224, 224), (100, 90)]


def random_images(width: int, height: int, count: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.rand((count, height, width, 3), generator=generator)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_reference_clip_input_equals_diffusers(width, height):
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    images = random_images(width, height)
    expected = (_resize_with_antialiasing(images.movedim(-1, 1) * 2.0 - 1.0, (224, 224)) + 1.0) / 2.0
    assert (clip_input_reference(images, 224, *IDENTITY) - expected).abs().max() <= 1e-6


def test_clip_input_center_crop_is_the_center_square():
    images = torch.zeros((1, 100, 200, 3))
    images[:, :, 50:150] = 1.0
    pixels = clip_input_center_crop(images, 224, *IDENTITY)
    assert pixels.shape == (1, 3, 224, 224) and pixels[..., 4:-4].min() == 1.0


def test_clip_input_whole_is_the_stretched_frame():
    images = torch.zeros((1, 100, 200, 3))
    images[:, :, 50:150] = 1.0
    pixels = clip_input_whole(images, 224, *IDENTITY)
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels[..., :50].max() == 0.0 and pixels[..., 60:164].min() == 1.0


@pytest.mark.parametrize(("height", "width", "top", "left"), [(33, 47, 0, 3), (32, 40, 0, 0), (39, 41, 3, 0)])
def test_crop_to_multiple_keeps_the_center(height, width, top, left):
    images = torch.rand((1, height, width, 3), generator=torch.Generator("cpu").manual_seed(0))
    assert torch.equal(crop_to_multiple(images, 8), images[:, top : top + 32, left : left + 40])


def test_clip_input_is_normalized_per_channel():
    images = torch.full((1, 224, 224, 3), 0.5)
    pixels = clip_input_reference(images, 224, (0.5, 0.25, 0.0), (1.0, 0.5, 0.25))
    assert torch.allclose(pixels.mean(dim=(0, 2, 3)), torch.tensor([0.0, 0.5, 2.0]), atol=1e-6)


@pytest.mark.parametrize("size", [(128, 64), (512, 320), (64, 64)])
def test_stretch_equals_diffusers_preprocess(picture, images, size):
    from diffusers.image_processor import VaeImageProcessor

    expected = VaeImageProcessor(vae_scale_factor=8).preprocess(picture, height=size[1], width=size[0])
    assert torch.equal(to_pixels(resize_images(images, *size, "stretch")[0]), expected)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_float_and_8_bit_resizes_differ_by_rounding_only(fit):
    """On a smooth image. At hard edges 8 bits clip the filter's overshoot between its two passes."""
    y, x = torch.meshgrid(torch.arange(170.0), torch.arange(250.0), indexing="ij")
    smooth = torch.stack([x / 249, y / 169, 0.5 + 0.4 * torch.sin(x / 30)], dim=-1)[None]
    eight_bit = (smooth * 255).round() / 255
    difference = resize_images(eight_bit, 128, 64, fit)[0] - resize_images(smooth, 128, 64, fit)[0]
    assert difference.abs().max() <= 2 / 255


def test_float_resize_clamps_nothing():
    images = random_images(128, 128) * 3.0 - 1.0
    resized = resize_images(images, 64, 64, "stretch")[0]
    assert resized.min() < -0.2 and resized.max() > 1.2


def test_crop_keeps_shape_and_middle():
    images = torch.zeros((1, 100, 400, 3))
    images[:, :, 140:260] = 1.0
    cropped, run_warnings = resize_images(images, 64, 64, "crop")
    assert cropped.min() == 1.0 and run_warnings == ()
    stretched, (warning,) = resize_images(images, 64, 64, "stretch")
    assert stretched.min() == 0.0 and warning.code == "image.stretched"
    check_facts(warning.text, "400x100", "64x64")


@pytest.mark.parametrize("size", [(1024, 576), (576, 1024), (768, 768), (192, 64), (64, 320)])
def test_crop_equals_pillows_fit(picture, images, size):
    expected = np.asarray(ImageOps.fit(picture, size, Image.Resampling.LANCZOS))
    assert np.array_equal((resize_images(images, *size, "crop")[0][0] * 255).round().numpy(), expected)


def test_pad_keeps_the_full_image_and_repeats_the_edge():
    images = torch.zeros((1, 64, 256, 3))
    images[:, 0] = 1.0
    padded = resize_images(images, 128, 128, "pad")[0]
    assert padded.shape == (1, 128, 128, 3)
    assert torch.equal(padded[:, :48], padded[:, 48:49].expand(-1, 48, -1, -1))
    assert torch.equal(padded[:, 80:], padded[:, 79:80].expand(-1, 48, -1, -1))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_each_image_of_a_batch_equals_its_single_run(fit):
    images = random_images(90, 70, count=3)
    together = resize_images(images, 64, 128, fit)[0]
    for index in range(3):
        assert torch.equal(together[index : index + 1], resize_images(images[index : index + 1], 64, 128, fit)[0])


def test_pixels_and_images_convert_back_and_forth():
    images = random_images(16, 24)
    assert torch.allclose(to_images(to_pixels(images)), images, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "nearest"), [(100, (64, 128)), (1000, (960, 1024)), (0, (64,)), (-5, (64,)), (7, (64,))]
)
def test_a_size_error_names_the_nearest_valid_sizes(value, nearest):
    with raises(SettingError, "setting", "width", value, *nearest):
        check_multiple("width", value, 64)


def test_an_unknown_fit_is_refused(images):
    with raises(SettingError, "setting", "fit", "stretch", "crop", "pad", "squash"):
        resize_images(images, 64, 64, "squash")[0]
