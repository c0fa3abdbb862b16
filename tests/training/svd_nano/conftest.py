"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def gradients(_no_gradients):
    """Enable gradients, which the other tests run without."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
