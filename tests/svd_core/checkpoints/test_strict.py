"""A checkpoint that is not whole is an error that names what is wrong, before any weight is read."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from error_checks import check_facts, raises
from safetensors.torch import load_file, save_file
from svd_stages.svd_core.checkpoints.build_modules import check, empty_clip, empty_unet, empty_vae
from svd_stages.svd_core.checkpoints.detect import Family, family_of
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.safetensors_header import TensorInfo, read_header
from svd_stages.svd_core.checkpoints.single_file import open_single_file
from svd_stages.svd_core.errors import CheckpointError

UNET = "model.diffusion_model."
VISUAL = "conditioner.embedders.0.open_clip.model.visual."
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

    def load(tensors, code: str) -> str:
        with raises(CheckpointError, code) as raised:
            load_checkpoint(header_only(tmp_path / "x.safetensors", tensors, metadata))
        assert raised.value.exit_status == 3
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return load


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tensor_is_named(name, described, refused):
    assert name in described
    kept = {key: value for key, value in described.items() if key != name}
    assert name in refused(kept, "checkpoint.missing_tensors")


@pytest.mark.parametrize("name", NAMES[::4])
def test_a_tensor_under_another_name_is_missing(name, described, refused):
    renamed = {(key + "_ema" if key == name else key): value for key, value in described.items()}
    assert name in refused(renamed, "checkpoint.missing_tensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_another_shape_is_named(name, described, refused):
    dtype, shape = described[name]
    message = refused({**described, name: (dtype, (shape[0] + 3, *shape[1:]))}, "checkpoint.shape")
    assert name in message


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("F64", NAMES[0]), ("I8", NAMES[8]), ("I64", NAMES[14]), ("F8_E4M3", NAMES[3]), ("F8_E5M2", NAMES[13])],
)
def test_a_tensor_of_a_type_that_is_no_weight_is_named(dtype, name, described, refused):
    message = refused({**described, name: (dtype, described[name][1])}, "checkpoint.dtype")
    assert name in message
    assert dtype in message


def kinds(names) -> dict[str, list[str]]:
    """Of each kind of module (the part and the end of its name tell) the names of the first one's tensors.

    Of what lies between levels, every module.
    """
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(name.rsplit(".", 1)[0], []).append(name)
    chosen: dict[str, list[str]] = {}
    for module, tensors in modules.items():
        end = re.sub(r"\d+", "#", ".".join(module.split(".")[-2:]))
        kind = module if module.endswith((".0.op", ".conv")) else module.split(".")[0] + end
        chosen.setdefault(kind, tensors)
    return chosen


def test_a_missing_module_of_any_kind_is_named_and_nothing_else(one_file, described, header_only, tmp_path):
    metadata = read_header(one_file).metadata
    with open_single_file(one_file) as intact:
        configs = [component.config for component in intact.components()]
        modules = [empty(intact) for empty in (empty_unet, empty_vae, empty_clip)]
    used = [name for name in described if not name.startswith("first_stage_model.encoder.")]
    chosen = list(kinds(used).values())
    assert {UNET + "input_blocks.3.0.op." + each for each in ("weight", "bias")} in map(set, chosen)
    assert 50 < len(chosen) < 90
    for gone in chosen:
        kept = {name: each for name, each in described.items() if name not in gone}
        path = header_only(tmp_path / "x.safetensors", kept, metadata)
        with pytest.raises(CheckpointError) as raised, open_single_file(path) as opened:
            assert [component.config for component in opened.components()] == configs, gone
            for component, module in zip(opened.components(), modules, strict=True):
                check(opened, component, module)
        named = set(re.findall(r"(?:model|first_stage_model|conditioner)\.[\w.]+\w", str(raised.value)))
        assert named and named <= set(gone), (gone, named)


PARTS = {
    "the VAE's last level": "first_stage_model.decoder.up.3.",
    "the CLIP tower's last layer": VISUAL + "transformer.resblocks.31.",
    "the first level's first attention": UNET + "input_blocks.1.1.",
    "the UNet's last level": UNET + "input_blocks.10.",
    "the UNet's last blocks": UNET + "output_blocks.11.",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_published_file_without_a_whole_part_is_no_smaller_model(part, layout, header_only, tmp_path):
    kept = {name: ("F32", shape) for name, shape in layout.items() if not name.startswith(PARTS[part])}
    assert len(kept) < len(layout)
    with raises(CheckpointError, "checkpoint.missing_tensors") as raised:
        load_checkpoint(header_only(tmp_path / "svd.safetensors", kept))
    assert PARTS[part] in str(raised.value)


@pytest.mark.parametrize("part", ["first_stage_model.decoder.up.3.", VISUAL + "transformer.resblocks.1."])
def test_a_file_that_says_its_depth_is_no_smaller_model_without_a_part(part, described, refused):
    kept = {name: each for name, each in described.items() if not name.startswith(part)}
    assert part in refused(kept, "checkpoint.missing_tensors")


STRAYS = (
    VISUAL + "transformer.resblocks.2.ln_1.weight",
    VISUAL + "transformer.resblocks.300000.x",
    VISUAL + "transformer.resblocks." + "9" * 5000 + ".x",
    VISUAL + "transformer.resblocks.\u0662.x",
    VISUAL + "ln_pre.weight.more",
    VISUAL + "a\nb",
    UNET + "input_blocks.12.0.x",
    UNET + "input_blocks.1.0.op.weight",
    UNET + "middle_block.1.transformer_blocks.1.norm1.weight",
    "first_stage_model.decoder.up.4.block.0.conv1.weight",
    "first_stage_model.decoder.up.0.upsample.conv.weight",
    "first_stage_model.quant_conv.weight",
)


@pytest.mark.parametrize("name", STRAYS, ids=lambda name: name[-40:])
def test_a_tensor_without_a_place_is_named_and_costs_no_time(name, described, refused):
    started = time.process_time()
    message = refused({**described, name: ("F32", (1,))}, "checkpoint.unused_tensors")
    assert time.process_time() - started < 30  # a tower of 300000 layers takes minutes
    shown = ascii(name[:200])[1:-1]
    assert shown in message
    check_facts(message.replace(shown, ""), 1)
    assert len(message) < 1000


def test_a_stray_tensor_of_a_folder_is_named_with_its_part(copied):
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "post_quant_conv.bias": tensors["quant_conv.bias"].clone()}, weights)
    with raises(CheckpointError, "checkpoint.unused_tensors", "vae/post_quant_conv.bias"):
        load_checkpoint(copied)


@pytest.mark.parametrize("mark", ["lora_A.weight", "lora_down.weight"])
def test_a_lora_under_the_full_models_prefixes_is_a_lora(mark):
    name = f"{UNET}input_blocks.1.1.time_stack.0.attn1.to_q.{mark}"
    assert family_of({name: TensorInfo("F16", (4, 8), 64)}) is Family.LORA


@pytest.mark.parametrize("error", [MemoryError, TimeoutError])
def test_what_no_configuration_causes_is_not_blamed_on_it(error, one_file, monkeypatch):
    from diffusers import UNetSpatioTemporalConditionModel

    def fail(config):
        raise error

    monkeypatch.setattr(UNetSpatioTemporalConditionModel, "from_config", fail)
    with pytest.raises(error):
        load_checkpoint(one_file)


def test_many_missing_tensors_are_counted_and_ten_are_named(described, refused):
    gone = [name for name in described if ".time_stack.0.attn1." in name]
    kept = {name: value for name, value in described.items() if name not in gone}
    message = refused(kept, "checkpoint.missing_tensors")
    check_facts(message, len(gone), 1426, len(gone) - 10)
    assert sum(name in message for name in gone) == 10


def test_a_part_that_is_not_there_is_named(described, refused):
    for part, mark in (("CLIP tower", ".visual."), ("VAE", "first_stage")):
        kept = {name: value for name, value in described.items() if mark not in name}
        assert part in refused(kept, "checkpoint.missing_parts")


@pytest.mark.parametrize(
    "kept", [0.001, 0.5, 0.99, 1.0], ids=["in the header", "in the middle", "near the end", "a byte"]
)
def test_a_truncated_file_is_refused_with_both_sizes(kept, one_file, tmp_path):
    path = tmp_path / "cut.safetensors"
    content = one_file.read_bytes()
    path.write_bytes(content[: min(int(kept * len(content)), len(content) - 1)])
    with raises(CheckpointError, "checkpoint.truncated", f"{path.stat().st_size:,}") as raised:
        load_checkpoint(path)
    if kept > 0.01:  # the header, which tells the other size, is whole
        assert f"{len(content):,}" in str(raised.value)


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def test_a_missing_tensor_of_a_folder_is_named_with_its_part(copied):
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["quant_conv.bias"]
    save_file(tensors, weights)
    with raises(CheckpointError, "checkpoint.missing_tensors", "vae/quant_conv.bias"):
        load_checkpoint(copied)


@pytest.mark.parametrize(
    ("gone", "code"),
    [
        ("model_index.json", "checkpoint.family"),
        ("unet/config.json", "checkpoint.missing_parts"),
        ("image_encoder/model.safetensors", "checkpoint.missing_parts"),
        ("unet/diffusion_pytorch_model.safetensors", "checkpoint.missing_parts"),
        ("scheduler/scheduler_config.json", "checkpoint.missing_parts"),
    ],
)
def test_a_missing_file_of_a_folder_is_named(copied, gone, code):
    path = copied / gone
    path.unlink()
    with raises(CheckpointError, code, path.parent, path.name):
        load_checkpoint(copied)


@pytest.mark.parametrize("text", ["", "[]", "{", "nonsense", "[" * 100_000])
def test_a_damaged_config_is_refused(copied, text):
    (copied / "vae" / "config.json").write_text(text)
    with raises(CheckpointError, "checkpoint.damaged", copied / "vae" / "config.json"):
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
    ("changes", "name"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "StableDiffusionPipeline"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "UNet2DConditionModel"),
        ({"vae": [None, None]}, "AutoencoderKLTemporalDecoder"),
    ],
)
def test_a_folder_of_another_pipeline_is_refused_by_name(copied, changes, name):
    index = copied / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))
    with raises(CheckpointError, "checkpoint.family", name):
        load_checkpoint(copied)


def test_a_folder_with_pickled_weights_only_is_refused_with_the_way_out(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with raises(CheckpointError, "checkpoint.pickle", "UNet", weights.name):
        load_checkpoint(copied)


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
        '{"unet_attention": [1, 1, 1, 0]}',
        '{"unet_attention": []}',
        '{"unet_layers": 9}',
        '{"unet_transformers": 0}',
        '{"vae_levels": "4"}',
        '{"clip_layers": 300000}',
        '{"scaling_factor": 0}',
        '{"sigma_min": 800}',
        '{"force_upcast": 1}',
        '{"image_mean": [0.5, 0.5]}',
        '{"image_std": [0, 1, 1]}',
    ],
)
def test_facts_out_of_range_are_refused_by_name(facts, described, header_only, tmp_path):
    path = header_only(tmp_path / "x.safetensors", described, {"svd_stages": facts})
    with raises(CheckpointError, None, "svd_stages", *re.findall(r'"(\w+)": [^N]', facts)):  # NaN is no JSON
        load_checkpoint(path)
