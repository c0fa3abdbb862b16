"""The size of a video follows the shape of its image, at the area that the checkpoint was trained for."""

from __future__ import annotations

import math

import pytest
from svd_stages.svd_core.media.video_size import choose_size, is_far

SVD, NANO = (1024, 576), (128, 128)


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ((1920, 1080), (1024, 576)),
        ((1080, 1920), (576, 1024)),
        ((3000, 3000), (768, 768)),
        ((4032, 3024), (832, 640)),
        ((2000, 3000), (640, 960)),
        ((2100, 900), (1216, 512)),
    ],
)
def test_landscape_portrait_and_square_keep_their_shape(image, size):
    assert choose_size(SVD, image) == size
    assert choose_size(SVD, image[::-1]) == size[::-1]


@pytest.mark.parametrize("ratio", [1, 1.2, 4 / 3, 1.5, 1.6, 16 / 9, 2, 2.39, 3, 5, 8])
def test_no_valid_size_near_the_trained_area_is_nearer_to_the_image(ratio):
    area = SVD[0] * SVD[1]
    width, height = choose_size(SVD, (round(1000 * ratio), 1000))
    error = abs(math.log(width / height / ratio))
    assert abs(width * height / area - 1) <= 0.1 and width % 64 == height % 64 == 0
    sides = range(256, 2560, 64)
    near = [(w, h) for w in sides for h in sides if abs(w * h / area - 1) <= 0.1]
    assert error <= min(abs(math.log(w / h / ratio)) for w, h in near) + 1e-3
    assert error < 0.06  # an edge of 6 % at most is cut


@pytest.mark.parametrize("image", [(768, 432), (432, 768), (500, 500), (4000, 500)])
def test_a_small_model_keeps_its_only_size(image):
    assert choose_size(NANO, image) == NANO


def test_one_side_gives_the_other():
    assert choose_size(SVD, (1920, 1080), width=640) == (640, 384)
    assert choose_size(SVD, (1080, 1920), height=1024) == (576, 1024)
    assert choose_size(NANO, (1600, 200), width=128) == (128, 64)
    assert choose_size(SVD, (5, 7), width=64, height=128) == (64, 128)


@pytest.mark.parametrize(
    ("size", "far"),
    [((1024, 576), False), ((768, 768), False), ((576, 576), False), ((512, 512), True), ((1536, 1024), True)],
)
def test_a_size_is_far_from_twice_or_half_the_trained_area(size, far):
    assert is_far(SVD, size) == far
