"""An incomplete or inconsistent checkpoint is an error that names the cause, before any weight is read."""

from __future__ import annotations

import re
import time
from unittest.mock import Mock

import pytest
from error_checks import check_facts, raises
from svd_stages.svd_core.checkpoints.build_modules import build_modules, check_tensors
from svd_stages.svd_core.checkpoints.detect import Family, detect_family
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.safetensors_header import TensorInfo, read_header
from svd_stages.svd_core.checkpoints.single_file import open_single_file
from svd_stages.svd_core.errors import CheckpointError, printable

UNET = "model.diffusion_model."
VISUAL = "conditioner.embedders.0.open_clip.model.visual."
NAMES = (
    UNET + "input_blocks.1.0.in_layers.2.weight",
    UNET + "input_blocks.3.0.op.weight",
    UNET + "input_blocks.4.1.time_stack.0.attn1.to_k.weight",
    UNET + "middle_block.1.time_mixer.mix_factor",
    "first_stage_model.decoder.up.3.block.0.time_stack.out_layers.3.weight",
    "first_stage_model.decoder.mid.attn_1.q.weight",
    "first_stage_model.decoder.conv_out.time_mix_conv.weight",
    "conditioner.embedders.3.encoder.quant_conv.weight",
    "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.1.attn.in_proj_weight",
    "conditioner.embedders.0.open_clip.model.visual.proj",
)


@pytest.fixture
def described(one_file):
    """The tensors of the tiny single file: name -> (dtype, shape)."""
    return {name: (info.dtype, info.shape) for name, info in read_header(one_file).tensors.items()}


@pytest.fixture
def refused(one_file, header_only, tmp_path):
    """Return a function that loads a file of these tensors and returns the error's message."""
    metadata = read_header(one_file).metadata

    def load(tensors, code: str) -> str:
        with raises(CheckpointError, code) as raised:
            load_checkpoint(header_only(tmp_path / "x.safetensors", tensors, metadata))
        assert raised.value.exit_status == 3
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return load


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_is_missing_renamed_or_of_another_shape_is_named(name, described, refused):
    missing = {key: value for key, value in described.items() if key != name}
    assert len(missing) == len(described) - 1
    assert name in refused(missing, "checkpoint.missing_tensors")
    assert name in refused({**missing, name + "_ema": described[name]}, "checkpoint.missing_tensors")
    dtype, shape = described[name]
    assert name in refused({**described, name: (dtype, (shape[0] + 3, *shape[1:]))}, "checkpoint.shape")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("F64", NAMES[0]), ("I8", NAMES[4]), ("I64", NAMES[8]), ("F8_E4M3", NAMES[2]), ("F8_E5M2", NAMES[7])],
)
def test_a_tensor_of_another_dtype_is_named(dtype, name, described, refused):
    message = refused({**described, name: (dtype, described[name][1])}, "checkpoint.dtype")
    check_facts(message, name, dtype)


def kinds(names) -> dict[str, list[str]]:
    """Group tensors by module and return the first module of each kind, and all modules between levels.

    The component and the end of the name decide the kind.
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


def test_a_missing_module_of_any_kind_is_named_and_no_other(one_file, described, header_only, tmp_path):
    metadata = read_header(one_file).metadata
    with open_single_file(one_file) as intact:
        configs = [component.config for component in intact.components()]
        modules = build_modules(intact)
    used = [name for name in described if not name.startswith("first_stage_model.encoder.")]
    chosen = list(kinds(used).values())
    assert {UNET + "input_blocks.3.0.op." + each for each in ("weight", "bias")} in map(set, chosen)
    assert 50 < len(chosen) < 90
    for removed in chosen:
        kept = {name: each for name, each in described.items() if name not in removed}
        path = header_only(tmp_path / "x.safetensors", kept, metadata)
        with pytest.raises(CheckpointError) as raised, open_single_file(path) as opened:
            assert [component.config for component in opened.components()] == configs, removed
            for component, module in zip(opened.components(), modules, strict=True):
                check_tensors(opened, component, module)
        named = set(re.findall(r"(?:model|first_stage_model|conditioner)\.[\w.]+\w", str(raised.value)))
        assert named and named <= set(removed), (removed, named)


PARTS = {
    "the VAE's last level": "first_stage_model.decoder.up.3.",
    "the CLIP tower's last layer": VISUAL + "transformer.resblocks.31.",
    "the first level's first attention": UNET + "input_blocks.1.1.",
    "the UNet's last level": UNET + "input_blocks.10.",
    "the UNet's last blocks": UNET + "output_blocks.11.",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_published_file_without_a_level_or_layer_is_not_a_smaller_model(part, layout, header_only, tmp_path):
    kept = {name: ("F32", shape) for name, shape in layout.items() if not name.startswith(PARTS[part])}
    assert len(kept) < len(layout)
    with raises(CheckpointError, "checkpoint.missing_tensors") as raised:
        load_checkpoint(header_only(tmp_path / "svd.safetensors", kept))
    assert PARTS[part] in str(raised.value)


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
def test_an_unknown_tensor_is_named_and_costs_no_time(name, described, refused):
    started = time.process_time()
    message = refused({**described, name: ("F32", (1,))}, "checkpoint.unused_tensors")
    assert time.process_time() - started < 30  # a tower of 300000 layers takes minutes
    printed = printable(name, 200)
    assert printed in message
    check_facts(message.replace(printed, ""), 1)
    assert len(message) < 1000


def without_bias(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "quant_conv.bias"}


def with_another_bias(tensors):
    return {**tensors, "post_quant_conv.bias": tensors["quant_conv.bias"].clone()}


@pytest.mark.parametrize(
    ("change", "code", "name"),
    [
        (without_bias, "checkpoint.missing_tensors", "vae/quant_conv.bias"),
        (with_another_bias, "checkpoint.unused_tensors", "vae/post_quant_conv.bias"),
    ],
)
def test_a_missing_or_unknown_tensor_of_a_folder_is_named_with_its_component(copied, edit_tensors, change, code, name):
    edit_tensors(copied / "vae" / "diffusion_pytorch_model.safetensors", change=change)
    with raises(CheckpointError, code, name):
        load_checkpoint(copied)


@pytest.mark.parametrize("mark", ["lora_A.weight", "lora_down.weight"])
def test_a_lora_under_the_full_models_prefixes_is_a_lora(mark):
    name = f"{UNET}input_blocks.1.1.time_stack.0.attn1.to_q.{mark}"
    assert detect_family({name: TensorInfo("F16", (4, 8), 64)}) is Family.LORA


@pytest.mark.parametrize("error", [MemoryError, TimeoutError])
def test_errors_that_no_configuration_causes_are_not_blamed_on_it(error, one_file, monkeypatch):
    from diffusers import UNetSpatioTemporalConditionModel

    monkeypatch.setattr(UNetSpatioTemporalConditionModel, "from_config", Mock(side_effect=error))
    with pytest.raises(error):
        load_checkpoint(one_file)


def test_many_missing_tensors_are_counted_and_ten_are_named(described, refused):
    missing = [name for name in described if ".time_stack.0.attn1." in name]
    kept = {name: value for name, value in described.items() if name not in missing}
    message = refused(kept, "checkpoint.missing_tensors")
    check_facts(message, len(missing), 1426, len(missing) - 10)
    assert sum(name in message for name in missing) == 10


def test_a_missing_component_is_named(described, refused):
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
    if kept > 0.01:  # the header, which has the other size, is complete
        assert f"{len(content):,}" in str(raised.value)


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("model_index.json", "checkpoint.family"),
        ("unet/config.json", "checkpoint.missing_parts"),
        ("image_encoder/model.safetensors", "checkpoint.missing_parts"),
        ("unet/diffusion_pytorch_model.safetensors", "checkpoint.missing_parts"),
        ("scheduler/scheduler_config.json", "checkpoint.missing_parts"),
    ],
)
def test_a_missing_file_of_a_folder_is_named(copied, missing, code):
    path = copied / missing
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
        ("unet/config.json", {"num_attention_heads": 0}),
        ("vae/config.json", {"layers_per_block": None}),
        ("image_encoder/config.json", {"num_attention_heads": 5}),
        ("unet/config.json", {"num_frames": -1}),
        ("vae/config.json", {"scaling_factor": "0.18215"}),
        ("scheduler/scheduler_config.json", {"sigma_min": 1000.0}),
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_refused(copied, edit_json, file, changes):
    edit_json(copied / file, **changes)
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
def test_a_folder_of_another_pipeline_is_refused_by_name(copied, edit_json, changes, name):
    edit_json(copied / "model_index.json", **changes)
    with raises(CheckpointError, "checkpoint.family", name):
        load_checkpoint(copied)


def test_a_folder_with_pickled_weights_only_is_refused_with_the_safetensors_name(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with raises(CheckpointError, "checkpoint.pickle", "UNet", weights.name):
        load_checkpoint(copied)


@pytest.mark.parametrize(
    "metadata",
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
def test_metadata_out_of_range_is_refused_by_name(metadata, described, header_only, tmp_path):
    path = header_only(tmp_path / "x.safetensors", described, {"svd_stages": metadata})
    with raises(CheckpointError, None, "svd_stages", *re.findall(r'"(\w+)": [^N]', metadata)):  # NaN is not JSON
        load_checkpoint(path)
