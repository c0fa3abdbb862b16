"""The table of names, against the published layout on one side and the full-size classes on the other."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch
from svd_stages.svd_core.checkpoints.build_modules import check, empty_clip, empty_unet, empty_vae, left_over
from svd_stages.svd_core.checkpoints.keymap import (
    CLIP_PREFIX,
    CONDITIONING_VAE_PREFIX,
    THIRDS,
    UNET_PREFIX,
    VAE_PREFIX,
    Keymap,
    TensorTransform,
    UNetLayout,
    change_tensor,
    clip_pairs,
    unet_pairs,
    vae_decoder_pairs,
    vae_encoder_pairs,
)
from svd_stages.svd_core.checkpoints.single_file import open_single_file, single_file_tensors

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
TABLES = {
    UNET_PREFIX: unet_pairs(UNetLayout(2, (True, True, True, False))),
    VAE_PREFIX: vae_decoder_pairs(4, 2),
    CONDITIONING_VAE_PREFIX: vae_encoder_pairs(4, 2),
    CLIP_PREFIX: clip_pairs(32),
}
"""The published model's pairs, below each prefix of the file."""
DIGEST = "b79c6f4bc66fea74909a0a58cffd7385c182ddace4cc7b46de7a223841c0b5c6"
"""Of the whole table; recorded when tests/comfyui/test_equal_to_core.py passed."""


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
        assert left_over(component, module) == []


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
    matrix = change_tensor(weight, TensorTransform.MATRIX)
    as_matrix = torch.nn.functional.linear(x.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)
    torch.testing.assert_close(as_matrix, torch.nn.functional.conv2d(x, weight))


@pytest.mark.parametrize("prefix", TABLES)
def test_no_module_name_is_in_the_table_twice(prefix):
    modules = [pair.module for pair in TABLES[prefix]]
    assert len(modules) == len(set(modules))


def test_the_table_is_the_one_that_gave_the_numbers_of_comfyui(layout):
    """Two names of one shape in each other's place pass every other test of this file."""
    rows = []
    for prefix, pairs in TABLES.items():
        keymap = Keymap(pairs)
        for name in (each for each in layout if each.startswith(prefix)):
            places = keymap.module_names(name[len(prefix) :])
            rows += [f"{module} <- {name}, {change.name}" for module, change in places]
    assert len(rows) == sum(COUNTS)
    assert sha256("\n".join(sorted(rows)).encode()).hexdigest() == DIGEST, (
        "the table of names changed: run tests/comfyui/test_equal_to_core.py with ComfyUI, and when it passes write "
        "the new digest here"
    )
