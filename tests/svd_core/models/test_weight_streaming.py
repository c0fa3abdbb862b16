"""Weights that come to the device for as long as they are used."""

from __future__ import annotations

import functools
import weakref

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.models import unet as rewriting
from svd_stages.svd_core.models.unet import PreparedUNet
from svd_stages.svd_core.models.weight_streaming import WeightStreamer, streamed_bytes
from tiny import tiny_checkpoint

CPU = torch.device("cpu")


def numbered(count: int) -> list[torch.nn.Linear]:
    """Layers whose weights are their number."""
    layers = [torch.nn.Linear(3, 2, bias=False) for _ in range(count)]
    for number, layer in enumerate(layers):
        layer.weight.data.fill_(number)
    return layers


def walk(here: WeightStreamer, layers: list[torch.nn.Linear], log: list[str]) -> None:
    """One step: through all layers, noting what happens when."""
    for layer in layers:
        log.append("then")
        with here(layer):
            log.append(f"use {int(layer.weight[0, 0])}")


@pytest.fixture
def log(monkeypatch) -> list[str]:
    noted: list[str] = []
    copied = WeightStreamer._copied

    def note(self, weight):
        noted.append(f"fetch {int(weight[0, 0])}")
        return copied(self, weight)

    monkeypatch.setattr(WeightStreamer, "_copied", note)
    return noted


def test_a_part_is_fetched_while_the_one_before_it_is_computed(log):
    layers = numbered(2)
    here = WeightStreamer(CPU, ahead=True)
    walk(here, layers, log)
    assert log == ["then", "fetch 0", "use 0", "then", "fetch 1", "use 1"]  # nobody knows yet what follows
    log.clear()
    walk(here, layers, log)
    assert log == ["then", "fetch 0", "use 0", "fetch 1", "then", "use 1", "fetch 0"]


def test_without_looking_ahead_a_part_is_fetched_when_its_turn_comes(log):
    layers = numbered(2)
    here = WeightStreamer(CPU, ahead=False)
    for _ in range(2):
        log.clear()
        walk(here, layers, log)
        assert log == ["then", "fetch 0", "use 0", "then", "fetch 1", "use 1"]


def test_a_part_that_was_fetched_and_did_not_follow_is_dropped(log):
    layers = numbered(3)
    here = WeightStreamer(CPU, ahead=True)
    walk(here, [layers[0], layers[1]], log)
    with here(layers[0]):  # 1 is fetched ahead
        pass
    log.clear()
    walk(here, [layers[2]], log)
    assert log == ["then", "fetch 2", "use 2"] and not here._fetched


def test_the_parameters_are_back_when_the_work_fails():
    layer = torch.nn.Linear(3, 2)
    before = dict(layer.named_parameters())
    with raises(ValueError, None, "failed"), WeightStreamer(CPU)(layer):
        assert layer.weight is not before["weight"]
        raise ValueError("failed")
    assert all(layer.get_parameter(name) is weight for name, weight in before.items())


def test_what_is_there_at_once_is_foretold(monkeypatch):
    """While a whole network is computed: the bytes of the copies that are alive."""
    unet, alive, most = tiny_checkpoint().model.unet, [], []
    copied = WeightStreamer._copied

    def counted(self, weight):
        copy = copied(self, weight)
        alive.append((weakref.ref(copy.untyped_storage()), copy.nbytes))
        most.append(sum(size for storage, size in alive if storage() is not None))
        return copy

    monkeypatch.setattr(rewriting, "WeightStreamer", functools.partial(WeightStreamer, ahead=True))
    embeds, latents = torch.randn(1, 1, 32), torch.randn(2, 4, 8, 8)
    level = torch.tensor(0.7)
    prepared = PreparedUNet(unet, embeds, latents, torch.tensor([[6.0, 127.0, 0.02]]), level[None], stream=True)
    monkeypatch.setattr(WeightStreamer, "_copied", counted)
    for _ in range(2):
        prepared(torch.randn(2, 4, 8, 8), level)
    assert 0.5 * streamed_bytes(unet) < max(most) <= streamed_bytes(unet)
