"""Run our StableVideoDiffusionPipeline on a device that is not the CPU, and count what is moved there and back."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from error_checks import raises
from fake_device import DEVICE, DeviceTensor, fake_device
from PIL import Image
from svd_stages.svd_core.diffusers_pipeline.pipeline import StableVideoDiffusionPipeline
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.models import optimizations
from tiny import mini_checkpoint, tiny_pipeline

PARTS = ("image_encoder", "unet", "vae")
SHORT = {"height": 64, "width": 64, "num_frames": 2, "num_inference_steps": 2, "seed": 1, "output_type": "np"}
PLACES = {
    "on the device": lambda pipeline: pipeline.to(DEVICE),
    "offloaded": lambda pipeline: pipeline.enable_model_cpu_offload(device=DEVICE),
    "streamed": lambda pipeline: pipeline.enable_sequential_cpu_offload(device=DEVICE),
}
ONCE = Counter({"image_encoder": 1, "vae": 2, "unet": 1})
"""Moves to the device in a call, and as many back: the VAE encodes and decodes."""


@pytest.fixture
def device(monkeypatch):
    """The device. The optimized UNet takes its weights for plain ones."""
    monkeypatch.setattr(optimizations, "PLAIN_WEIGHTS", frozenset({torch.Tensor, DeviceTensor}))
    with fake_device() as device:
        yield device


class Moves:
    """A pipeline, and the names of its parts that were moved to the device and back."""

    def __init__(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pipeline = StableVideoDiffusionPipeline(**tiny_pipeline(mini_checkpoint()).components)
        self.pipeline.set_progress_bar_config(disable=True)
        PLACES[place](self.pipeline)
        self.there, self.back = Counter(), Counter()
        for name in PARTS:
            part = getattr(self.pipeline, name)
            monkeypatch.setattr(type(part), "to", self._counting(name, type(part), type(part).to))

    def _counting(self, name: str, kind: type, move):
        def to(module, *args, **kwargs):
            before = next(module.parameters()).device
            moved = move(module, *args, **kwargs)
            after = next(module.parameters()).device
            if before != after:
                (self.there if after == DEVICE else self.back)[name] += 1
            return moved

        return to

    def places(self) -> set[str]:
        return {str(next(getattr(self.pipeline, name).parameters()).device) for name in PARTS}


def picture(seed: int = 0, width: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, width, 3), np.uint8))


@pytest.fixture(scope="module")
def expected():
    """The frames of the CPU."""
    pipeline = StableVideoDiffusionPipeline(**tiny_pipeline(mini_checkpoint()).components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(picture(), **SHORT).frames


def test_the_device_refuses_tensors_of_the_cpu(device):
    on_device, on_cpu = torch.ones(2, device=device), torch.ones(2)
    with pytest.raises(RuntimeError, match="add"):
        on_device + on_cpu
    assert (on_device * torch.tensor(3.0)).device == device
    assert torch.equal((on_device + on_cpu.to(device)).cpu(), 2 * on_cpu)


@pytest.mark.parametrize(
    ("place", "moves", "afterwards"),
    [
        ("on the device", Counter(), {str(DEVICE)}),
        ("offloaded", ONCE, {"cpu"}),
        ("streamed", Counter({"image_encoder": 1, "vae": 2}), {"cpu"}),
    ],
)
def test_each_part_goes_to_the_device_once_for_its_work(place, moves, afterwards, device, expected, monkeypatch):
    run = Moves(place, monkeypatch)
    frames = run.pipeline(picture(), **SHORT).frames
    assert np.abs(frames - expected).max() <= 2e-5
    assert run.there == run.back == moves and run.places() == afterwards


def test_several_images_of_other_sizes_are_embedded_in_one_go(device, monkeypatch):
    run = Moves("offloaded", monkeypatch)
    few = {**SHORT, "num_inference_steps": 1, "num_frames": 1, "output_type": "latent"}
    run.pipeline([picture(0), picture(1, 80), picture(2, 96)], **few, num_videos_per_prompt=2)
    assert run.there == run.back == Counter({"image_encoder": 1, "vae": 1, "unet": 1})


@pytest.mark.parametrize(
    ("memory", "unet_afterwards"), [("resident", DEVICE), ("stream", DEVICE), ("offload", torch.device("cpu"))]
)
def test_memory_moves_the_unet_alone(memory, unet_afterwards, device, expected, monkeypatch):
    run = Moves("on the device", monkeypatch)
    for _ in range(2):  # the second call computes on the device as well
        assert np.abs(run.pipeline(picture(), **SHORT, memory=memory).frames - expected).max() <= 2e-5
        assert run.pipeline.unet.device == unet_afterwards
        assert {*run.there, *run.back} <= {"unet"} and run.pipeline.vae.device == device
    assert run.pipeline._execution_device == device


def test_latents_and_tensors_stay_on_the_device_in_the_models_dtype(device, monkeypatch):
    pipeline = Moves("on the device", monkeypatch).pipeline
    latents = pipeline(picture(), **{**SHORT, "output_type": "latent"}).frames
    assert latents.device == device and latents.dtype == pipeline.unet.dtype
    frames = pipeline(picture(), **{**SHORT, "output_type": "pt"}).frames
    assert frames.device == device
    decoded = pipeline.decode_latents(latents, 2, 2)
    assert decoded.device == device
    assert ((decoded.movedim(2, 1) / 2 + 0.5).clamp(0, 1) - frames).abs().max().cpu() <= 2e-5
    pipeline.to(torch.bfloat16)
    assert pipeline(picture(), **{**SHORT, "output_type": "latent"}).frames.dtype == torch.bfloat16


def test_stages_place_their_part_and_return_tensors_on_the_device_asked_for(device, monkeypatch):
    run = Moves("offloaded", monkeypatch)
    embeds = run.pipeline._encode_image(picture(), device, 1, True)
    latents = run.pipeline._encode_vae_image(torch.zeros(1, 3, 64, 64), device, 1, True)
    assert {embeds.device, latents.device} == {device} and run.places() == {"cpu"}


def test_a_callback_gets_latents_on_the_device_and_its_error_takes_the_parts_back(device, monkeypatch):
    run = Moves("offloaded", monkeypatch)
    seen = []

    def fail(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"].device)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.pipeline(picture(), **SHORT, callback_on_step_end=fail)
    assert seen == [device] and run.places() == {"cpu"}


def test_placing_the_pipeline_ends_offloading(device, monkeypatch):
    run = Moves("offloaded", monkeypatch)
    run.pipeline.to(dtype=torch.float32)
    assert run.pipeline._execution_device == device
    run.pipeline.to("cpu")
    assert run.pipeline._execution_device == torch.device("cpu")


def test_offloading_half_precision_says_nothing_and_a_device_has_one_index(device, monkeypatch, caplog):
    run = Moves("offloaded", monkeypatch)
    run.pipeline.to(torch.float16)
    caplog.clear()
    run.pipeline.enable_model_cpu_offload(device=DEVICE)
    assert not [each for each in caplog.records if "float16" in each.getMessage()]
    with raises(SettingError):
        run.pipeline.enable_model_cpu_offload(gpu_id=1, device="lazy:0")
