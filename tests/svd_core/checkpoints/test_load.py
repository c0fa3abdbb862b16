"""Loading both formats: equal modules, the right dtypes, memory of their own."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from error_checks import check_facts, raises
from safetensors.torch import load_file
from svd_stages.svd_core.checkpoints.convert import save_single_file
from svd_stages.svd_core.checkpoints.load import load_checkpoint, resolve_dtypes
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.errors import CheckpointError, SettingError
from svd_stages.svd_core.models.components import Checkpoint
from tiny import CLIP_CONFIG, UNET_CONFIG, VAE_CONFIG, random_checkpoint, save_tiny_folder, tiny_checkpoint, to_be_saved

VISUAL = "conditioner.embedders.0.open_clip.model.visual."
OUT_BIAS = "model.diffusion_model.out.2.bias"


def modules(checkpoint) -> tuple[torch.nn.Module, ...]:
    return checkpoint.model.unet, checkpoint.vae.vae, checkpoint.clip_vision.encoder


def encoder_dtypes(checkpoint) -> set[torch.dtype]:
    vae = checkpoint.vae.vae
    return {weight.dtype for weight in (*vae.encoder.parameters(), *vae.quant_conv.parameters())}


def other_dtypes(checkpoint) -> set[torch.dtype]:
    rest = (checkpoint.model.unet, checkpoint.clip_vision.encoder, checkpoint.vae.vae.decoder)
    return {weight.dtype for module in rest for weight in module.parameters()}


def metadata(**values) -> dict[str, str]:
    return {"svd_stages": json.dumps({"clip_heads": 4, "clip_layers": 2, **values})}


def test_both_formats_load_to_the_modules_that_were_saved(tiny, one_file, folder, same_modules):
    for path in (one_file, folder):
        same_modules(load_checkpoint(path), tiny)


def test_the_metadata_survives_both_formats(tiny, one_file, folder):
    for loaded in (load_checkpoint(one_file), load_checkpoint(folder)):
        model = replace(loaded.model, unet=tiny.model.unet, identity=tiny.model.identity)
        assert all(getattr(model, field.name) == getattr(tiny.model, field.name) for field in fields(model))
        assert loaded.clip_vision.image_mean == tiny.clip_vision.image_mean
        assert loaded.clip_vision.image_std == tiny.clip_vision.image_std
        assert loaded.vae.vae.config.force_upcast is True
        assert loaded.model.unet.config.num_frames == 14


def test_a_loaded_model_computes_what_the_saved_one_computes(tiny, one_file):
    loaded = load_checkpoint(one_file)
    generator = torch.Generator("cpu").manual_seed(1)
    sample = torch.randn(1, 3, 8, 8, 8, generator=generator)
    tokens, ids = torch.randn(1, 1, 32, generator=generator), torch.tensor([[6.0, 127.0, 0.02]])
    pixels = torch.randn(1, 3, 224, 224, generator=generator)

    def compute(checkpoint):
        yield checkpoint.model.unet(sample, torch.tensor(0.5), tokens, ids).sample
        yield checkpoint.clip_vision.encoder(pixels).image_embeds
        yield checkpoint.vae.vae.decode(sample[0, :, :4], num_frames=3).sample

    for result, expected in zip(compute(loaded), compute(tiny), strict=True):  # sampling may have changed the layout
        assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_loaded_modules_are_frozen_ordinary_tensors_on_the_cpu_and_no_random_number_is_drawn(one_file):
    before = torch.get_rng_state()
    with torch.inference_mode():
        loaded = load_checkpoint(one_file)
    assert torch.equal(before, torch.get_rng_state())
    for module in modules(loaded):
        assert not module.training
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            assert tensor.device.type == "cpu", name
            assert not tensor.requires_grad, name
            assert not tensor.is_inference(), name


@pytest.mark.parametrize("form", ["one file", "folder"])
def test_overwriting_the_files_does_not_change_the_loaded_model(form, one_file, copied, tiny, tmp_path, same_modules):
    path = copied if form == "folder" else Path(shutil.copyfile(one_file, tmp_path / "copy"))
    loaded = load_checkpoint(path, "fp32")
    for file in [path] if path.is_file() else list(path.rglob("*.safetensors")):
        with file.open("r+b") as opened:
            size = file.stat().st_size
            opened.seek(size // 8)
            opened.write(b"\x3f" * (size - size // 8))
    same_modules(loaded, tiny)


@pytest.mark.parametrize(
    ("precision", "device", "stored", "upcast", "compute", "encoder"),
    [
        ("auto", "cpu", torch.float16, True, torch.float32, torch.float32),
        ("auto", "mps", torch.bfloat16, True, torch.float32, torch.float32),
        ("auto", "cuda", torch.float32, True, torch.float16, torch.float32),
        ("auto", "cuda", torch.float16, False, torch.float16, torch.float16),
        ("auto", "cuda", torch.bfloat16, True, torch.bfloat16, torch.float32),
        ("fp16", "cpu", torch.float32, True, torch.float16, torch.float32),
        ("bf16", "cuda", torch.float32, False, torch.bfloat16, torch.bfloat16),
        ("fp32", "cuda", torch.float16, True, torch.float32, torch.float32),
    ],
)
def test_precision_resolves_to_dtypes_for_the_device(precision, device, stored, upcast, compute, encoder):
    dtypes = resolve_dtypes(precision, torch.device(device), stored, upcast)
    assert (dtypes.compute, dtypes.encoder) == (compute, encoder)


def test_an_unknown_precision_is_refused_with_the_known_ones(one_file):
    with raises(SettingError, "setting", "int8", "auto", "fp16", "bf16", "fp32"):
        load_checkpoint(one_file, "int8")


@pytest.mark.parametrize(("precision", "half"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_encoder_stays_float32_in_half_precision(one_file, tiny, precision, half):
    loaded = load_checkpoint(one_file, precision)
    assert (encoder_dtypes(loaded), other_dtypes(loaded)) == ({torch.float32}, {half})
    assert torch.equal(loaded.vae.vae.decoder.conv_in.weight, tiny.vae.vae.decoder.conv_in.weight.to(half))


def test_the_encoder_is_in_half_precision_without_force_upcast(one_file, tmp_path, edit_tensors):
    path = edit_tensors(one_file, tmp_path / "x.safetensors", metadata=metadata(force_upcast=False))
    assert encoder_dtypes(load_checkpoint(path, "fp16")) == {torch.float16}


@pytest.fixture
def with_a_number(one_file, tmp_path, edit_tensors):
    """Return a function that writes the tiny file with `number` as the last one of its tensor `name`."""

    def write(number: float, name: str = OUT_BIAS) -> Path:
        def change(tensors):
            changed = tensors[name].clone()
            changed[-1] = number
            return {**tensors, name: changed}

        return edit_tensors(one_file, tmp_path / "x.safetensors", change)

    return write


def test_numbers_that_fp16_cannot_hold_are_refused_with_a_fix(with_a_number):
    path = with_a_number(1e6)
    with raises(CheckpointError, "checkpoint.range", "bf16", OUT_BIAS):
        load_checkpoint(path, "fp16")
    assert load_checkpoint(path, "bf16").model.unet.dtype == torch.bfloat16


@pytest.mark.parametrize("name", [OUT_BIAS, "first_stage_model.decoder.conv_out.bias", VISUAL + "ln_post.bias"])
def test_auto_on_cuda_falls_back_to_bf16_where_fp16_is_too_small(name, with_a_number, tiny, caplog):
    loaded = load_checkpoint(with_a_number(1e6, name), "auto", device="cuda")
    assert (encoder_dtypes(loaded), other_dtypes(loaded)) == ({torch.float32}, {torch.bfloat16})
    assert torch.equal(loaded.model.unet.conv_in.weight, tiny.model.unet.conv_in.weight.bfloat16())
    assert not any(weight.requires_grad or weight.is_meta for each in modules(loaded) for weight in each.parameters())
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    check_facts(warning, name, "bf16")


def test_auto_on_cuda_is_fp16_where_that_is_enough(with_a_number, caplog):
    assert load_checkpoint(with_a_number(65504.0), "auto", device="cuda").model.unet.dtype == torch.float16
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("number", "precision"),
    [(math.nan, "fp16"), (math.inf, "fp16"), (-math.inf, "auto"), (math.nan, "bf16"), (math.inf, "fp32")],
)
def test_numbers_that_are_not_finite_are_refused_by_name(number, precision, with_a_number):
    with raises(CheckpointError, "checkpoint.not_finite", OUT_BIAS):
        load_checkpoint(with_a_number(number), precision, device="cuda")


def test_a_file_without_the_second_vae_encodes_with_the_first_one(tiny, one_file, tmp_path, edit_tensors):
    def drop(tensors):
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("conditioner.embedders.3.")}

    loaded = load_checkpoint(edit_tensors(one_file, tmp_path / "x.safetensors", drop))
    quant = loaded.vae.vae.quant_conv
    assert torch.equal(quant.weight[:, :, 0, 0], torch.eye(8))
    assert not quant.bias.any()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator("cpu").manual_seed(2)) * 2 - 1
    result, expected = (vae.encode(pixels).latent_dist.mode() for vae in (loaded.vae.vae, tiny.vae.vae))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_the_second_vae_encodes_when_both_are_in_the_file(tiny, one_file, tmp_path, edit_tensors):
    def spoil(tensors):
        first_encoder = "first_stage_model.encoder."
        return {name: tensor * 0 if name.startswith(first_encoder) else tensor for name, tensor in tensors.items()}

    loaded = load_checkpoint(edit_tensors(one_file, tmp_path / "x.safetensors", spoil))
    assert torch.equal(loaded.vae.vae.encoder.conv_in.weight, tiny.vae.vae.encoder.conv_in.weight)


def shaped(unet: dict, vae: dict, clip: dict) -> Checkpoint:
    """Make the tiny SVD with other settings of its modules."""
    configs = {**UNET_CONFIG, **unet}, {**VAE_CONFIG, **vae}, {**CLIP_CONFIG, **clip}
    return random_checkpoint(*configs, VideoDefaults(num_frames=14))


def test_a_model_of_another_depth_is_described_in_its_file(tmp_path, same_modules):
    kinds = ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")
    unet = {
        "block_out_channels": (64, 64, 128),
        "num_attention_heads": (1, 1, 2),
        "layers_per_block": 1,
        "transformer_layers_per_block": 2,
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
    }
    vae = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2}
    other = shaped(unet, vae, {"num_hidden_layers": 3})
    same_modules(load_checkpoint(save_single_file(other, tmp_path / "other.safetensors")), other)


def test_a_narrow_model_of_the_published_depth_needs_no_metadata(tmp_path, same_modules, edit_tensors):
    widths = {"block_out_channels": (64,) * 4, "num_attention_heads": (1,) * 4}
    other = shaped(widths, {}, {"hidden_size": 80, "num_attention_heads": 1, "num_hidden_layers": 32})
    path = save_single_file(other, tmp_path / "other.safetensors")
    same_modules(load_checkpoint(edit_tensors(path, tmp_path / "bare.safetensors", metadata={})), other)


def test_a_clip_encoder_with_unknown_heads_is_refused(one_file, tmp_path, edit_tensors):
    path = edit_tensors(one_file, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with raises(CheckpointError, "checkpoint.heads", "clip_heads"):
        load_checkpoint(path)


def test_unused_tensors_are_ignored_and_logged_once(one_file, tmp_path, tiny, same_modules, caplog, edit_tensors):
    extra = {
        "denoiser.sigmas": torch.ones(1000),
        "model_ema.decay": torch.ones(()),
        "conditioner.embedders.0.open_clip.model.logit_scale": torch.ones(()),
        "control_model.weight": torch.ones(2, 2),
    }
    path = edit_tensors(one_file, tmp_path / "x.safetensors", lambda tensors: {**tensors, **extra})
    with caplog.at_level(logging.INFO, logger="svd_stages"):
        same_modules(load_checkpoint(path), tiny)
    records = [record for record in caplog.records if "checkpoints.load" in record.name]
    assert [record.levelname for record in records] == ["INFO", "WARNING"]
    known, unknown = (record.getMessage() for record in records)
    check_facts(known, 1, 2)
    check_facts(unknown, "control_model.weight")
    assert "denoiser" not in unknown


def test_the_weight_variant_of_a_folder_follows_the_precision(tiny, copied, tmp_path):
    half = tiny_checkpoint(seed=1, dtype=torch.float16)
    save_tiny_folder(tmp_path / "half", half, variant="fp16")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "image_encoder/model"):
        shutil.copyfile(tmp_path / "half" / f"{name}.fp16.safetensors", copied / f"{name}.fp16.safetensors")
    full, halved = tiny.model.unet.conv_in.weight, half.model.unet.conv_in.weight
    for path, precision, expected in (
        (copied, "fp16", halved),
        (copied, "fp32", full),
        (copied, "bf16", full.bfloat16()),
        (tmp_path / "half", "fp32", halved.float()),
    ):
        assert torch.equal(load_checkpoint(path, precision).model.unet.conv_in.weight, expected)


def shard(folder: Path, tiny, variant: str | None = None) -> list[Path]:
    """Split the weights of `folder`'s UNet and CLIP encoder into shards, by their own libraries; return the UNet's."""
    for module, size in ((tiny.model.unet, "20MB"), (tiny.clip_vision.encoder, "500KB")):
        part = folder / ("unet" if module is tiny.model.unet else "image_encoder")
        for weights in part.glob("*.safetensors"):
            weights.unlink()
        to_be_saved(module).save_pretrained(part, max_shard_size=size, variant=variant)
        assert len(list(part.glob("*-of-*.safetensors"))) > 1
    return sorted((folder / "unet").glob("*-of-*.safetensors"))


@pytest.mark.parametrize("index", ["with its index", "without its index"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_folders_load(copied, tiny, same_modules, index, variant):
    shard(copied, tiny, variant)
    if index == "without its index":
        for file in copied.rglob("*.index*.json"):
            file.unlink()
    same_modules(load_checkpoint(copied), tiny)


def test_a_missing_shard_is_an_error_that_names_it(copied, tiny):
    shard(copied, tiny)[1].unlink()
    with raises(CheckpointError, "checkpoint.missing_parts", "UNet") as raised:
        load_checkpoint(copied)
    check_facts(str(raised.value).replace(str(copied), ""), 2)


def test_a_folder_with_the_position_ids_of_old_transformers_loads(copied, tiny, same_modules, edit_tensors):
    weights = copied / "image_encoder" / "model.safetensors"
    positions = {"vision_model.embeddings.position_ids": torch.arange(50)[None]}
    edit_tensors(weights, change=lambda tensors: {**tensors, **positions})
    assert positions.keys() < load_file(weights).keys()
    same_modules(load_checkpoint(copied), tiny)
