"""What all tests share: the tiny checkpoint, once a session, and a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from svd_stages.svd_core.models.components import Checkpoint
from tiny import tiny_checkpoint

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """The tiny SVD. Nothing may change it."""
    return tiny_checkpoint()


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """A picture of 250x170 pixels with edges, gradients and noise, so that every resize shows."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:170, 0:250]
    planes = np.stack([x * 255 / 249, y * 255 / 169, 255.0 * ((x // 16 + y // 16) % 2)], axis=-1)
    noisy = planes + rng.normal(0, 12, planes.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def images(picture: Image.Image) -> torch.Tensor:
    """The picture as IMAGE (1, 170, 250, 3) in [0, 1], as LoadImage gives it."""
    return torch.from_numpy(np.array(picture)).float()[None] / 255.0
