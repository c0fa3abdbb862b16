"""The attention processors of the training: diffusers' results and gradients; diffusers' processors afterwards."""

from __future__ import annotations

import pytest
import torch
from svd_stages.training.svd_nano.architecture import new_modules
from svd_stages.training.svd_nano.attention import attention_for_cpu

pytestmark = pytest.mark.usefixtures("gradients")


@pytest.fixture
def unet():
    """A UNet in which every weight influences the result."""
    unet = new_modules(1).unet
    generator = torch.Generator().manual_seed(0)
    for parameter in unet.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return unet


def run(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((1, 3, 8, 16, 16), generator=generator)
    embeds = torch.randn((1, 1, 128), generator=generator)
    return unet(
        x, torch.tensor(0.3), encoder_hidden_states=embeds, added_time_ids=torch.tensor([[6, 127, 0.02]])
    ).sample


def test_results_and_gradients_are_those_of_diffusers(unet):
    stock = run(unet)
    stock.square().mean().backward()
    gradients = {name: each.grad.clone() for name, each in unet.named_parameters()}
    unet.zero_grad()
    with attention_for_cpu(unet):
        ours = run(unet)
        ours.square().mean().backward()
    assert torch.allclose(ours, stock, atol=1e-5 * stock.abs().max().item())
    for name, parameter in unet.named_parameters():
        if parameter.grad is None:  # weights without influence in a softmax over one key
            assert ".attn2.to_q" in name or ".attn2.to_k" in name or ".norm2." in name, name
            assert gradients[name].abs().max() < 1e-6
        else:
            scale = gradients[name].abs().max().clamp_min(1e-4)
            assert (parameter.grad - gradients[name]).abs().max() < 1e-3 * scale, name


def test_diffusers_processors_are_restored_after_an_error(unet):
    def processors() -> list[object]:
        return [each.processor for each in unet.modules() if hasattr(each, "processor")]

    before = processors()
    with pytest.raises(ZeroDivisionError), attention_for_cpu(unet):
        raise ZeroDivisionError
    assert processors() == before
