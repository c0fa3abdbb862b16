"""Weights that are copied to the device for the time of their use."""

from __future__ import annotations

import functools
import weakref

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.models import unet as unet_module
from svd_stages.svd_core.models.unet import PreparedUNet
from svd_stages.svd_core.models.weight_streaming import WeightStreamer, pin_weights, streamed_bytes
from tiny import tiny_checkpoint

CPU = torch.device("cpu")
WITHOUT_PREFETCH = ["enter", "fetch 0", "use 0", "enter", "fetch 1", "use 1"]


@pytest.fixture
def layers() -> list[torch.nn.Linear]:
    """Three layers whose weights are their index."""
    layers = [torch.nn.Linear(3, 2, bias=False) for _ in range(3)]
    for index, layer in enumerate(layers):
        layer.weight.data.fill_(index)
    return layers


def run_step(weights: WeightStreamer, layers: list[torch.nn.Linear], log: list[str]) -> list[str]:
    """Use all layers in order and return the events."""
    log.clear()
    for layer in layers:
        log.append("enter")
        with weights(layer):
            log.append(f"use {int(layer.weight[0, 0])}")
    return log


@pytest.fixture
def log(monkeypatch) -> list[str]:
    events: list[str] = []
    original = WeightStreamer._copy

    def copy(self, weight):
        events.append(f"fetch {int(weight[0, 0])}")
        return original(self, weight)

    monkeypatch.setattr(WeightStreamer, "_copy", copy)
    return events


def test_a_layer_is_prefetched_from_the_second_step_on(log, layers):
    weights = WeightStreamer(CPU, prefetch=True)
    assert run_step(weights, layers[:2], log) == WITHOUT_PREFETCH
    second = ["enter", "fetch 0", "use 0", "fetch 1", "enter", "use 1", "fetch 0"]
    assert run_step(weights, layers[:2], log) == second


def test_without_prefetch_a_layer_is_copied_when_it_is_used(log, layers):
    weights = WeightStreamer(CPU, prefetch=False)
    for _ in range(2):
        assert run_step(weights, layers[:2], log) == WITHOUT_PREFETCH


def test_a_prefetched_layer_that_does_not_follow_is_dropped(log, layers):
    weights = WeightStreamer(CPU, prefetch=True)
    run_step(weights, layers[:2], log)
    with weights(layers[0]):  # prefetches layer 1
        pass
    assert run_step(weights, layers[2:], log) == ["enter", "fetch 2", "use 2"] and not weights._prefetched


def test_the_parameters_are_restored_after_an_error():
    layer = torch.nn.Linear(3, 2)
    before = dict(layer.named_parameters())
    with raises(ValueError, None, "failed"), WeightStreamer(CPU)(layer):
        assert layer.weight is not before["weight"]
        raise ValueError("failed")
    assert all(layer.get_parameter(name) is weight for name, weight in before.items())


def test_the_copies_need_at_most_the_estimate(monkeypatch):
    """Count the bytes of live copies while the UNet computes two steps."""
    unet, copies, sizes = tiny_checkpoint().model.unet, [], []
    original = WeightStreamer._copy

    def copy(self, weight):
        result = original(self, weight)
        copies.append((weakref.ref(result.untyped_storage()), result.nbytes))
        sizes.append(sum(size for storage, size in copies if storage() is not None))
        return result

    monkeypatch.setattr(unet_module, "WeightStreamer", functools.partial(WeightStreamer, prefetch=True))
    embeds, latents = torch.randn(1, 1, 32), torch.randn(2, 4, 8, 8)
    c_noise = torch.tensor(0.7)
    prepared = PreparedUNet(unet, embeds, latents, torch.tensor([[6.0, 127.0, 0.02]]), c_noise[None], stream=True)
    monkeypatch.setattr(WeightStreamer, "_copy", copy)
    for _ in range(2):
        prepared(torch.randn(2, 4, 8, 8), c_noise)
    assert 0.5 * streamed_bytes(unet) < max(sizes) <= streamed_bytes(unet)


def test_weights_are_pinned_once_and_keep_names_and_values(layers, monkeypatch):
    module, pinned = torch.nn.ModuleList(layers), {}

    def pin(tensor):
        copy = tensor.clone()
        pinned[copy.data_ptr()] = copy
        return copy

    before = {name: weight.clone() for name, weight in module.named_parameters()}
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.nn.Parameter, "is_pinned", lambda tensor: tensor.data_ptr() in pinned)
    for _ in range(2):
        pin_weights(module)
    assert len(pinned) == len(before)
    for name, weight in module.named_parameters():
        assert weight.data_ptr() in pinned and torch.equal(weight, before[name])


def test_weights_that_cannot_be_pinned_stay(layers, monkeypatch):
    module = torch.nn.ModuleList(layers)

    def refuse(tensor):
        raise RuntimeError("CUDA error: out of memory")

    before = {name: weight.data_ptr() for name, weight in module.named_parameters()}
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    pin_weights(module)
    assert {name: weight.data_ptr() for name, weight in module.named_parameters()} == before
