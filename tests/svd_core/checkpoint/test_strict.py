"""A checkpoint that is not whole is an error that names what is wrong, before any weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from svd_stages.svd_core.checkpoint.header import read_header
from svd_stages.svd_core.checkpoint.load import load_checkpoint
from svd_stages.svd_core.errors import CheckpointError

UNET = "model.diffusion_model."
NAMES = (
    UNET + "input_blocks.1.0.in_layers.2.weight",
    UNET + "input_blocks.1.0.out_layers.3.weight",
    UNET + "input_blocks.3.0.op.weight",
    UNET + "input_blocks.4.1.time_stack.0.attn1.to_k.weight",
    UNET + "middle_block.1.time_mixer.mix_factor",
    UNET + "output_blocks.11.1.proj_out.bias",
    UNET + "out.2.weight",
    UNET + "time_embed.2.bias",
    "first_stage_model.decoder.up.3.block.0.time_stack.out_layers.3.weight",
    "first_stage_model.decoder.up.2.upsample.conv.weight",
    "first_stage_model.decoder.mid.attn_1.q.weight",
    "first_stage_model.decoder.conv_out.time_mix_conv.weight",
    "conditioner.embedders.3.encoder.encoder.down.1.block.0.nin_shortcut.weight",
    "conditioner.embedders.3.encoder.quant_conv.weight",
    "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.1.attn.in_proj_weight",
    "conditioner.embedders.0.open_clip.model.visual.ln_pre.weight",
    "conditioner.embedders.0.open_clip.model.visual.proj",
)


@pytest.fixture
def described(one_file):
    """The tiny one-file checkpoint's tensors: name -> (type, shape)."""
    return {name: (info.dtype, info.shape) for name, info in read_header(one_file).tensors.items()}


@pytest.fixture
def refused(one_file, header_only, tmp_path):
    """The message with which a file of these tensors is refused."""
    metadata = read_header(one_file).metadata

    def load(tensors) -> str:
        with pytest.raises(CheckpointError) as raised:
            load_checkpoint(header_only(tmp_path / "x.safetensors", tensors, metadata))
        assert raised.value.exit_status == 3
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return load


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tensor_is_named(name, described, refused):
    assert name in described
    assert name in refused({key: value for key, value in described.items() if key != name})


@pytest.mark.parametrize("name", NAMES[::4])
def test_a_tensor_under_another_name_is_missing(name, described, refused):
    assert name in refused({(key + "_ema" if key == name else key): value for key, value in described.items()})


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_another_shape_is_named(name, described, refused):
    dtype, shape = described[name]
    message = refused({**described, name: (dtype, (shape[0] + 3, *shape[1:]))})
    assert name in message


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("F64", NAMES[0]), ("I8", NAMES[8]), ("I64", NAMES[14]), ("F8_E4M3", NAMES[3]), ("F8_E5M2", NAMES[13])],
)
def test_a_tensor_of_a_type_that_is_no_weight_is_named(dtype, name, described, refused):
    message = refused({**described, name: (dtype, described[name][1])})
    assert name in message
    assert dtype in message


def test_many_missing_tensors_are_counted_and_ten_are_named(described, refused):
    gone = [name for name in described if ".time_stack.0.attn1." in name]
    message = refused({name: value for name, value in described.items() if name not in gone})
    assert f"lacks {len(gone)} of its 1426 tensors" in message
    assert f"and {len(gone) - 10} more" in message
    assert sum(name in message for name in gone) == 10


def test_a_part_that_is_not_there_is_named(described, refused):
    assert "CLIP tower" in refused({name: value for name, value in described.items() if ".visual." not in name})
    assert "VAE" in refused({name: value for name, value in described.items() if "first_stage" not in name})


def test_a_truncated_file_is_refused_with_both_sizes(one_file, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(one_file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=f"{one_file.stat().st_size:,}") as raised:
        load_checkpoint(path)
    assert raised.value.code == "checkpoint.truncated"


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def test_a_missing_tensor_of_a_folder_is_named_with_its_part(copied):
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["quant_conv.bias"]
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"vae/quant_conv\.bias"):
        load_checkpoint(copied)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("model_index.json", "model_index.json"),
        ("unet/config.json", "config.json"),
        ("image_encoder/model.safetensors", "CLIP tower"),
        ("unet/diffusion_pytorch_model.safetensors", "UNet"),
        ("scheduler/scheduler_config.json", "scheduler_config.json"),
    ],
)
def test_a_missing_file_of_a_folder_is_named(copied, gone, said):
    (copied / gone).unlink()
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(copied)


@pytest.mark.parametrize("text", ["", "[]", "{", "nonsense", "[" * 100_000])
def test_a_damaged_config_is_refused(copied, text):
    (copied / "vae" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_checkpoint(copied)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"block_out_channels": [64, 64, 128]}),
        ("unet/config.json", {"down_block_types": ["No", "Such", "Block", "Type"]}),
        ("unet/config.json", {"block_out_channels": "wide"}),
        ("unet/config.json", {"num_attention_heads": 0}),
        ("vae/config.json", {"layers_per_block": None}),
        ("image_encoder/config.json", {"num_attention_heads": 5}),
        ("image_encoder/config.json", {"hidden_size": "64"}),
        ("unet/config.json", {"num_frames": -1}),
        ("vae/config.json", {"scaling_factor": "0.18215"}),
        ("scheduler/scheduler_config.json", {"sigma_min": 1000.0}),
    ],
)
def test_a_config_that_makes_no_model_is_refused(copied, file, changes):
    path = copied / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(copied)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "StableDiffusionPipeline"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "UNet2DConditionModel"),
        ({"vae": [None, None]}, "AutoencoderKLTemporalDecoder"),
    ],
)
def test_a_folder_of_another_pipeline_is_refused_by_name(copied, changes, said):
    index = copied / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(copied)


def test_a_folder_with_pickled_weights_only_is_refused_with_the_way_out(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="safetensors") as raised:
        load_checkpoint(copied)
    assert raised.value.code == "checkpoint.pickle"


@pytest.mark.parametrize(
    "facts",
    [
        "not json",
        "[1]",
        '{"num_frames": 0}',
        '{"num_frames": 14.5}',
        '{"num_frames": true}',
        '{"width": 100}',
        '{"max_guidance": NaN}',
        '{"clip_heads": "16"}',
        '{"clip_heads": 7}',
        '{"unet_head_width": 48}',
        '{"scaling_factor": 0}',
        '{"sigma_min": 800}',
        '{"force_upcast": 1}',
        '{"image_mean": [0.5, 0.5]}',
        '{"image_std": [0, 1, 1]}',
    ],
)
def test_facts_out_of_range_are_refused_by_name(facts, described, header_only, tmp_path):
    path = header_only(tmp_path / "x.safetensors", described, {"svd_stages": facts})
    with pytest.raises(CheckpointError, match="svd_stages"):
        load_checkpoint(path)
