"""The optimizer of hidden matrices, against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from svd_stages.training.svd_nano.architecture import new_modules
from svd_stages.training.svd_nano.muon import DECAY, MOMENTUM, Muon, is_hidden, orthogonalize
from tiny import randn

pytestmark = pytest.mark.usefixtures("gradients")


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 12, 40), (2, 40, 12)])
def test_all_singular_values_become_about_one(shape):
    matrices = randn(*shape)
    result = orthogonalize(matrices)
    u, _, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    along = torch.einsum("nik,nij,nkj->nk", u, result.double(), v)  # the diagonal of u^T result v
    assert along.min() > 0.3  # the smallest directions of a random square matrix are far below the others
    assert along.median() > 0.65
    assert along.max() < 1.35


def test_a_zero_matrix_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_a_convolution_is_updated_as_its_flattened_matrix():
    weight = torch.nn.Parameter(randn(16, 12, 3, 3))
    before, gradient = weight.detach().clone(), randn(16, 12, 3, 3, seed=1)
    weight.grad = gradient.clone()
    Muon([weight], 0.01).step()
    nesterov = gradient.lerp(gradient * (1 - MOMENTUM), MOMENTUM)
    update = orthogonalize(nesterov.reshape(1, 16, 108)).reshape(gradient.shape) * 0.2 * 108**0.5
    assert torch.allclose(weight, before * (1 - 0.01 * DECAY) - 0.01 * update, atol=1e-6)


def test_inner_matrices_are_hidden_and_the_first_and_last_are_not():
    unet = new_modules(1).unet
    hidden = {name for name, each in unet.named_parameters() if is_hidden(name, each)}
    assert "down_blocks.0.resnets.0.spatial_res_block.conv1.weight" in hidden
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" in hidden
    assert "mid_block.attentions.0.proj_in.weight" in hidden
    ends = ("conv_in", "conv_out", "time_embedding", "add_embedding")
    assert not [name for name in hidden if name.startswith(ends) or "norm" in name or "pos_embed" in name]
