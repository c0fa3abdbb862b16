"""The table of names, against the published layout on one side and the full-size classes on the other."""

from __future__ import annotations

import pytest
import torch
from svd_stages.svd_core.checkpoint.keymap import THIRDS, Change, change_tensor, clip_pairs
from svd_stages.svd_core.checkpoint.modules import check, empty_clip, empty_unet, empty_vae, left_over
from svd_stages.svd_core.checkpoint.single_file import open_single_file, single_file_tensors

COUNTS = (1428, 374, 520)
LEFTOVERS = (
    "conditioner.embedders.0.open_clip.model.positional_embedding",
    "conditioner.embedders.0.open_clip.model.text_projection",
    "conditioner.embedders.0.open_clip.model.logit_scale",
    "conditioner.embedders.0.open_clip.model.token_embedding.",
    "conditioner.embedders.0.open_clip.model.ln_final.",
    "conditioner.embedders.3.encoder.decoder.",
    "conditioner.embedders.3.encoder.post_quant_conv.",
)
"""What a published file holds beside the model: the text tower's ends and the second VAE's decoder."""


@pytest.fixture
def opened(full_size):
    with open_single_file(full_size) as opened:
        yield opened


def is_leftover(name: str) -> bool:
    return name.startswith(LEFTOVERS)


def test_every_tensor_of_the_full_size_classes_comes_from_the_published_layout(opened):
    modules = (empty_unet(opened), empty_vae(opened), empty_clip(opened))
    assert tuple(len(module.state_dict()) for module in modules) == COUNTS
    for component, module in zip(opened.components(), modules, strict=True):
        check(opened, component, module)
        assert left_over(opened, component, module) == []


def test_every_tensor_of_the_published_layout_is_used_or_known_to_be_left_over(opened):
    unused = [name for name in opened.ignored if not is_leftover(name)]
    assert all(name.startswith("first_stage_model.encoder.") for name in unused)
    assert len(unused) == 106  # the first VAE's encoder, which the second one's stands in for


def test_the_full_size_model_maps_back_to_the_published_names_and_shapes(opened, layout):
    back = {name: tensor.shape for name, tensor in single_file_tensors(opened).items()}
    assert back == {name: shape for name, shape in layout.items() if not is_leftover(name)}


def test_the_configuration_read_from_shapes_is_the_published_one(opened):
    unet, vae, clip = opened.unet.config, opened.vae.config, opened.clip.config
    assert unet["block_out_channels"] == (320, 640, 1280, 1280)
    assert unet["num_attention_heads"] == (5, 10, 20, 20)
    assert (unet["layers_per_block"], unet["cross_attention_dim"], unet["num_frames"]) == (2, 1024, 25)
    assert vae["block_out_channels"] == (128, 256, 512, 512)
    assert (vae["layers_per_block"], vae["latent_channels"], vae["force_upcast"]) == (2, 4, True)
    published = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "projection_dim": 1024,
        "hidden_act": "gelu",
    }
    assert {key: clip[key] for key in published} == published


def test_the_joint_projection_splits_as_torch_multi_head_attention_does():
    generator = torch.Generator("cpu").manual_seed(0)
    joint = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    joint.in_proj_weight = torch.nn.Parameter(torch.randn(24, 8, generator=generator))
    joint.in_proj_bias = torch.nn.Parameter(torch.randn(24, generator=generator))
    x = torch.randn(1, 5, 8, generator=generator)
    query, key, value = (
        torch.nn.functional.linear(
            x, change_tensor(joint.in_proj_weight, third), change_tensor(joint.in_proj_bias, third)
        )
        .view(1, 5, 2, 4)
        .transpose(1, 2)
        for third in THIRDS
    )
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(1, 5, 8)
    torch.testing.assert_close(joint.out_proj(attended), joint(x, x, x)[0])


def test_a_1x1_convolution_as_a_matrix_gives_the_same_numbers():
    generator = torch.Generator("cpu").manual_seed(0)
    weight, x = torch.randn(6, 4, 1, 1, generator=generator), torch.randn(1, 4, 3, 2, generator=generator)
    matrix = change_tensor(weight, Change.MATRIX)
    as_matrix = torch.nn.functional.linear(x.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)
    torch.testing.assert_close(as_matrix, torch.nn.functional.conv2d(x, weight))


def test_no_module_name_is_in_the_table_twice():
    modules = [pair.module for pair in clip_pairs(3)]
    assert len(modules) == len(set(modules))
