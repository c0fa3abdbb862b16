"""LocalRuntime moves a component to a device for its stage, and afterwards where the option `memory` says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_device import DEVICE, DeviceTensor, fake_device
from svd_stages.svd_core import execution
from svd_stages.svd_core.diffusion.conditioning import MicroConditioning
from svd_stages.svd_core.diffusion.guidance import GuidanceCurve
from svd_stages.svd_core.models import optimizations
from svd_stages.svd_core.models.options import ModelOptions
from svd_stages.svd_core.pipeline import VideoNoise, condition_images
from svd_stages.svd_core.runtime.runtime import LocalRuntime
from tiny import mini_checkpoint, randn

CPU = torch.device("cpu")


def places(checkpoint) -> list[torch.device]:
    modules = (checkpoint.model.unet, checkpoint.clip_vision.encoder, checkpoint.vae.vae)
    return [next(module.parameters()).device for module in modules]


def video(checkpoint, device: torch.device) -> torch.Tensor:
    runtime = LocalRuntime(device_name=str(device))
    images = randn(1, 64, 64, 3).sigmoid()
    noise = VideoNoise.from_seed(0, "diffusers", images, 2)
    pairs = condition_images(checkpoint, [images], images, noise, MicroConditioning(7, 127, 0.02), runtime)
    sigmas = execution.model_sigmas(checkpoint.model, 2)
    curve = GuidanceCurve("linear", 1.0, 3.0)
    latents = execution.sample(runtime, checkpoint.model, pairs, noise.start(sigmas[0]), curve, sigmas)
    return execution.decode(runtime, checkpoint.vae, latents, "exact", 8, 0)[0]


@pytest.mark.parametrize(("memory", "unet"), [("auto", CPU), ("resident", DEVICE), ("offload", CPU), ("stream", CPU)])
def test_every_stage_computes_on_the_device_and_gives_the_frames_of_the_cpu(memory, unet, monkeypatch):
    monkeypatch.setattr(optimizations, "PLAIN_WEIGHTS", frozenset({torch.Tensor, DeviceTensor}))
    checkpoint = mini_checkpoint()
    expected = video(checkpoint, CPU)
    checkpoint = replace(checkpoint, model=replace(checkpoint.model, options=ModelOptions(memory=memory)))
    with fake_device() as device:
        frames = video(checkpoint, device)
    assert (frames - expected).abs().max() <= 1e-4  # in two steps, rounding at sigma 700 shows
    assert places(checkpoint) == [unet, CPU, CPU]
