"""The layers of the training: torch's results and gradients, and torch's layers afterwards."""

from __future__ import annotations

import pytest
import torch
from svd_stages.training.svd_nano.layers import channels_last_weights, layers_for_cpu
from svd_stages.training.svd_nano.training import mixed_precision
from tiny import randn

pytestmark = pytest.mark.usefixtures("gradients")


def blocks(channels: int) -> torch.nn.Sequential:
    """A group norm and a temporal convolution in which every weight influences the result."""
    layers = [
        torch.nn.GroupNorm(channels // 2, channels),
        torch.nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)),
    ]
    for seed, parameter in enumerate(each for layer in layers for each in layer.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=seed))
    return torch.nn.Sequential(*layers)


def gradients(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = module(x)
    return [y.detach(), *torch.autograd.grad((y.float() * randn(*y.shape, seed=9)).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("channels", [6, 64])
def test_results_and_gradients_are_those_of_torch(channels, layout):
    module = blocks(channels)
    x = randn(2, channels, 4, 6, 5).contiguous(memory_format=layout).requires_grad_()
    expected = gradients(module, x)
    with layers_for_cpu(module):
        results = gradients(module, x)
        with mixed_precision(x.device):
            rounded = gradients(module, x)
    for result, near, right in zip(results, rounded, expected, strict=True):
        scale = right.abs().max()
        assert (result - right).abs().max() <= 1e-4 * scale
        assert (near - right).norm() <= 0.05 * right.norm()


def test_torchs_layers_are_restored_after_an_error():
    module = blocks(4)
    with pytest.raises(ZeroDivisionError), layers_for_cpu(module):
        assert all("forward" in vars(each) or "_conv_forward" in vars(each) for each in module)
        raise ZeroDivisionError
    assert not any("forward" in vars(each) or "_conv_forward" in vars(each) for each in module)


def test_weights_are_channels_last_inside_the_with_only():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv3d(4, 4, (3, 1, 1)))
    before = [each.clone() for each in module.parameters()]
    with channels_last_weights(module):
        assert not module[0].weight.is_contiguous()
        assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(each.is_contiguous() for each in module.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
