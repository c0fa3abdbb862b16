"""Core's VAE as a component, with stand-ins for core's modules: float32 beside the copies that core keeps."""

from __future__ import annotations

import importlib
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tiny import randn

HALF = torch.float16
MODULES = ("comfy", "comfy.clip_vision", "comfy.sd", "comfy.ldm", "comfy.ldm.modules", "comfy.ldm.modules.temporal_ae")


@pytest.fixture
def parts(monkeypatch):
    """Import `nodes.comfy.parts` with empty modules in place of core's."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in MODULES[1:]:
        owner, _, child = name.rpartition(".")
        monkeypatch.setattr(sys.modules[owner], child, sys.modules[name], raising=False)
    yield importlib.import_module("svd_stages.nodes.comfy.parts")
    sys.modules.pop("svd_stages.nodes.comfy.parts")


class DynamicConv(torch.nn.Conv2d):
    """A layer of core 0.28 with dynamic VRAM (comfy/ops.py, `cast_modules_with_vbar`), on a device that is the CPU.

    Core copies the bytes of its weights once. Later it reads them in the shape and dtype of the parameters.
    """

    comfy_cast_weights = True
    copied: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (self.weight, self.bias)
        if self.copied is None:
            self.copied = torch.cat([each.detach().flatten().view(torch.uint8) for each in weights])
        cast, offset = [], 0
        for each in weights:
            size = math.prod(each.shape) * each.element_size()
            if offset + size > len(self.copied):
                raise ValueError("Buffer too small")
            cast.append(self.copied[offset : offset + size].view(each.dtype).view(each.shape).to(x.dtype))
            offset += size
        return torch.nn.functional.conv2d(x, *cast, padding=1)


class Decoder(torch.nn.Module):
    """Two convolutions, one of them blended by a parameter that core does not cast."""

    def __init__(self, conv: type[torch.nn.Conv2d]) -> None:
        super().__init__()
        self.first, self.second = conv(4, 8, 3, padding=1), conv(8, 3, 3, padding=1)
        self.mix_factor = torch.nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.silu(self.first(x))) * torch.sigmoid(self.mix_factor)


def core_vae(conv: type[torch.nn.Conv2d], dtype: torch.dtype) -> SimpleNamespace:
    decoder = Decoder(conv).to(dtype).requires_grad_(False)
    for index, weight in enumerate(decoder.parameters()):
        weight.copy_(0.2 * randn(*weight.shape, seed=index))
    return SimpleNamespace(vae_dtype=HALF, first_stage_model=SimpleNamespace(decoder=decoder, decode=decoder))


@pytest.mark.parametrize("conv", [torch.nn.Conv2d, DynamicConv], ids=["loaded", "dynamic VRAM"])
def test_float32_is_exact_beside_cached_16_bit_weights_and_leaves_them(parts, conv):
    latents = randn(2, 4, 5, 7)
    core = core_vae(conv, HALF)
    weights = {name: weight for name, weight in core.first_stage_model.decoder.named_parameters()}
    exact = core_vae(torch.nn.Conv2d, torch.float64).first_stage_model
    exact.decoder.load_state_dict({name: weight.double() for name, weight in weights.items()})
    vae = parts.CoreVae(core)
    before = vae.decode_clip(latents)
    with vae.in_float32():
        pixels = vae.decode_clip(latents)
        assert vae.itemsize == 4
    assert pixels.dtype == torch.float32 and torch.allclose(pixels.double(), exact.decode(latents.double()), atol=1e-6)
    assert before.dtype == HALF and torch.equal(vae.decode_clip(latents), before) and vae.itemsize == 2
    assert all(weights[name] is each for name, each in core.first_stage_model.decoder.named_parameters())


def test_float32_takes_memory_for_the_weights_that_core_does_not_cast(parts):
    loaded, dynamic = (parts.CoreVae(core_vae(conv, HALF)) for conv in (torch.nn.Conv2d, DynamicConv))
    assert dynamic.float32_bytes == 4
    assert loaded.float32_bytes == 4 * sum(map(torch.numel, loaded.vae.first_stage_model.decoder.parameters()))


def test_the_dtype_is_cores_and_not_that_of_a_mapped_file(parts):
    """With dynamic VRAM the parameters that core casts are those of the file, in its dtype."""
    vae = parts.CoreVae(core_vae(DynamicConv, torch.float32))
    vae.vae.first_stage_model.decoder.mix_factor.data = torch.tensor([0.5], dtype=HALF)
    assert vae.itemsize == 2 and vae.decode_clip(randn(1, 4, 5, 7)).dtype == HALF
