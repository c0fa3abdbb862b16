"""Fixtures of all tests: the tiny checkpoint and an image."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from svd_stages.headless.engines.signals import STOP_SIGNALS
from svd_stages.svd_core.models.components import Checkpoint
from tiny import tiny_checkpoint

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return 2 processes for folders. Files and single tests run in this process, so that --pdb and -s work."""
    return 2 if any(Path(name.split("::")[0]).is_dir() for name in config.args) else 0


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def _logger_levels():
    """Undo the levels that the command line's --vram and --compile set for the rest of the process."""
    yield
    for name in logging.root.manager.loggerDict:
        if name.startswith("svd_stages"):
            logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def signal_handlers():
    """Restore the signal handlers after the test."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny() -> Checkpoint:
    """Return the tiny checkpoint. Tests must not change it."""
    return tiny_checkpoint()


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """An image of 250x170 pixels with edges, gradients and noise, so that every resize shows."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:170, 0:250]
    planes = np.stack([x * 255 / 249, y * 255 / 169, 255.0 * ((x // 16 + y // 16) % 2)], axis=-1)
    noisy = planes + rng.normal(0, 12, planes.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def images(picture: Image.Image) -> torch.Tensor:
    """Return `picture` as IMAGE (1, 170, 250, 3) in [0, 1], like LoadImage."""
    return torch.from_numpy(np.array(picture)).float()[None] / 255.0


@pytest.fixture(scope="session")
def full_disk():
    """Return a context manager that limits files to `at` bytes, by the operating system."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(at: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
