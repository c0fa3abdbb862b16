"""The key map, against the published layout on one side and the full-size classes on the other."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch
from svd_stages.svd_core.checkpoints.build_modules import build_modules, unused_keys
from svd_stages.svd_core.checkpoints.keymap import (
    CONDITIONING_VAE_PREFIX,
    THIRDS,
    TensorTransform,
    UNetLayout,
    apply_transform,
    clip_keymap,
    unet_keymap,
    vae_decoder_keymap,
    vae_encoder_keymap,
)
from svd_stages.svd_core.checkpoints.single_file import open_single_file, single_file_tensors

COUNTS = (1428, 374, 520)
NOT_IN_THE_MODEL = (
    "conditioner.embedders.0.open_clip.model.positional_embedding",
    "conditioner.embedders.0.open_clip.model.text_projection",
    "conditioner.embedders.0.open_clip.model.logit_scale",
    "conditioner.embedders.0.open_clip.model.token_embedding.",
    "conditioner.embedders.0.open_clip.model.ln_final.",
    "conditioner.embedders.3.encoder.decoder.",
    "conditioner.embedders.3.encoder.post_quant_conv.",
)
"""Tensors of published files that are not part of the model: the text encoder's ends and the second VAE's decoder."""
KEYMAPS = (
    unet_keymap(UNetLayout(2, (True, True, True, False))),
    vae_decoder_keymap(4, 2),
    vae_encoder_keymap(4, 2, CONDITIONING_VAE_PREFIX),
    clip_keymap(32),
)
DIGEST = "b79c6f4bc66fea74909a0a58cffd7385c182ddace4cc7b46de7a223841c0b5c6"
"""Of the complete table; recorded when tests/comfyui/test_equal_to_core.py passed."""


@pytest.fixture
def opened(full_size):
    with open_single_file(full_size) as opened:
        yield opened


def test_every_tensor_of_the_full_size_classes_comes_from_the_published_layout(opened):
    modules = build_modules(opened)
    assert tuple(len(module.state_dict()) for module in modules) == COUNTS
    for component, module in zip(opened.components(), modules, strict=True):
        assert unused_keys(component, module) == []


def test_every_tensor_of_the_published_layout_is_used_or_known_to_be_unused(opened):
    unused = [name for name in opened.ignored if not name.startswith(NOT_IN_THE_MODEL)]
    assert all(name.startswith("first_stage_model.encoder.") for name in unused)
    assert len(unused) == 106  # the first VAE's encoder: the second one's is used


def test_the_full_size_model_maps_back_to_the_published_names_and_shapes(opened, layout):
    back = {name: tensor.shape for name, tensor in single_file_tensors(opened).items()}
    assert back == {name: shape for name, shape in layout.items() if not name.startswith(NOT_IN_THE_MODEL)}


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
            x, apply_transform(joint.in_proj_weight, third), apply_transform(joint.in_proj_bias, third)
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
    matrix = apply_transform(weight, TensorTransform.MATRIX)
    as_matrix = torch.nn.functional.linear(x.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)
    torch.testing.assert_close(as_matrix, torch.nn.functional.conv2d(x, weight))


def test_the_key_map_is_the_one_that_equals_comfyui_and_has_no_module_name_twice(layout):
    """Two names of one shape in each other's place pass every other test of this file."""
    mapped = [
        (keymap.prefix, module, name, transform)
        for keymap in KEYMAPS
        for name in layout
        for module, transform in keymap.module_names(name)
    ]
    assert len({(prefix, module) for prefix, module, _, _ in mapped}) == len(mapped) == sum(COUNTS)
    rows = sorted(f"{module} <- {name}, {transform.name}" for _, module, name, transform in mapped)
    assert sha256("\n".join(rows).encode()).hexdigest() == DIGEST, (
        "the key map changed: run tests/comfyui/test_equal_to_core.py with ComfyUI, and when it passes write the new "
        "digest here"
    )
