"""Loading either form: equal modules, the right types, memory of their own."""

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
from safetensors.torch import load_file, save_file
from svd_stages.svd_core.checkpoints.convert import save_single_file
from svd_stages.svd_core.checkpoints.load import load_checkpoint, resolve_dtypes
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.errors import CheckpointError, SettingError
from tiny import CLIP_CONFIG, UNET_CONFIG, VAE_CONFIG, save_tiny_folder, tiny_checkpoint, to_be_saved

SECOND_VAE = "conditioner.embedders.3.encoder."
FIRST_ENCODER = "first_stage_model.encoder."
VISUAL = "conditioner.embedders.0.open_clip.model.visual."
OUT_BIAS = "model.diffusion_model.out.2.bias"


def modules(checkpoint) -> tuple[torch.nn.Module, ...]:
    return checkpoint.model.unet, checkpoint.vae.vae, checkpoint.clip_vision.encoder


def rewrite(source: Path, target: Path, change, metadata: dict[str, str] | None = None) -> Path:
    """`source` with its tensors as `change` makes them, and its metadata or another."""
    from safetensors import safe_open

    with safe_open(str(source), framework="pt") as file:
        kept = file.metadata()
    save_file(change(load_file(source)), target, metadata=kept if metadata is None else metadata)
    return target


def test_one_file_and_folder_load_to_the_same_modules_as_were_saved(tiny, one_file, folder, same_modules):
    from_file, from_folder = load_checkpoint(one_file), load_checkpoint(folder)
    same_modules(from_file, tiny)
    same_modules(from_folder, tiny)


def test_the_facts_beside_the_tensors_survive_both_forms(tiny, one_file, folder):
    for loaded in (load_checkpoint(one_file), load_checkpoint(folder)):
        same_unet = replace(loaded.model, unet=tiny.model.unet, identity=tiny.model.identity)
        assert asdict_shallow(same_unet) == asdict_shallow(tiny.model)
        assert loaded.clip_vision.image_mean == tiny.clip_vision.image_mean
        assert loaded.clip_vision.image_std == tiny.clip_vision.image_std
        assert loaded.vae.vae.config.force_upcast is True


def asdict_shallow(value) -> dict:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def test_a_loaded_model_computes_what_the_saved_one_computes(tiny, one_file):
    loaded = load_checkpoint(one_file)
    generator = torch.Generator("cpu").manual_seed(1)
    sample = torch.randn(1, 3, 8, 8, 8, generator=generator)
    tokens, ids = torch.randn(1, 1, 32, generator=generator), torch.tensor([[6.0, 127.0, 0.02]])
    pixels = torch.randn(1, 3, 224, 224, generator=generator)
    answers = [
        (
            each.model.unet(sample, torch.tensor(0.5), tokens, ids).sample,
            each.clip_vision.encoder(pixels).image_embeds,
            each.vae.vae.decode(sample[0, :, :4], num_frames=3).sample,
        )
        for each in (loaded, tiny)
    ]
    for ours, theirs in zip(*answers, strict=True):  # sampling may have laid out the same weights otherwise in memory
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_loaded_modules_are_frozen_whole_and_ordinary_tensors(one_file):
    with torch.inference_mode():
        loaded = load_checkpoint(one_file)
    for module in modules(loaded):
        assert not module.training
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            assert tensor.device.type == "cpu", name
            assert not tensor.requires_grad, name
            assert not tensor.is_inference(), name


def test_loading_leaves_the_global_random_state_alone(one_file):
    before = torch.get_rng_state()
    load_checkpoint(one_file)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("form", ["one file", "folder"])
def test_writing_over_the_files_does_not_change_the_loaded_model(form, one_file, folder, tiny, tmp_path, same_modules):
    path = tmp_path / "copy"
    if form == "folder":
        shutil.copytree(folder, path)
    else:
        shutil.copyfile(one_file, path)
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
def test_precision_means_a_type_for_the_device(precision, device, stored, upcast, compute, encoder):
    dtypes = resolve_dtypes(precision, torch.device(device), stored, upcast)
    assert (dtypes.compute, dtypes.encoder) == (compute, encoder)


def test_an_unknown_precision_is_refused_with_the_known_ones(one_file):
    with raises(SettingError, "setting", "int8", "auto", "fp16", "bf16", "fp32"):
        load_checkpoint(one_file, "int8")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_encoder_stays_float32_in_half_precision(one_file, tiny, precision):
    loaded = load_checkpoint(one_file, precision)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    vae = loaded.vae.vae
    assert {each.dtype for each in (*vae.encoder.parameters(), *vae.quant_conv.parameters())} == {torch.float32}
    rest = (loaded.model.unet, loaded.clip_vision.encoder, vae.decoder)
    assert {each.dtype for part in rest for each in part.parameters()} == {half}
    assert torch.equal(vae.decoder.conv_in.weight, tiny.vae.vae.decoder.conv_in.weight.to(half))


def test_the_encoder_follows_the_rest_where_the_checkpoint_does_not_ask_for_float32(one_file, tmp_path):
    path = rewrite(one_file, tmp_path / "x.safetensors", lambda tensors: tensors, _facts(force_upcast=False))
    loaded = load_checkpoint(path, "fp16")
    assert {each.dtype for each in loaded.vae.vae.parameters()} == {torch.float16}


def _facts(**facts) -> dict[str, str]:
    return {"svd_stages": json.dumps({"clip_heads": 4, "clip_layers": 2, **facts})}


def with_a_number(source: Path, target: Path, number: float, name: str = OUT_BIAS) -> Path:
    """`source` with `number` as the last one of its tensor `name`."""

    def put(tensors):
        changed = tensors[name].clone()
        changed[-1] = number
        return {**tensors, name: changed}

    return rewrite(source, target, put)


def test_numbers_that_fp16_cannot_hold_are_refused_with_the_way_out(one_file, tmp_path):
    path = with_a_number(one_file, tmp_path / "x.safetensors", 1e6)
    with raises(CheckpointError, "checkpoint.range", "bf16", OUT_BIAS):
        load_checkpoint(path, "fp16")
    assert load_checkpoint(path, "bf16").model.unet.dtype == torch.bfloat16


@pytest.mark.parametrize("name", [OUT_BIAS, "first_stage_model.decoder.conv_out.bias", VISUAL + "ln_post.bias"])
def test_auto_on_cuda_goes_to_bf16_where_fp16_is_too_small(name, one_file, tiny, tmp_path, caplog):
    path = with_a_number(one_file, tmp_path / "x.safetensors", 1e6, name)
    loaded = load_checkpoint(path, "auto", device="cuda")
    vae = loaded.vae.vae
    rest = (loaded.model.unet, loaded.clip_vision.encoder, vae.decoder)
    assert {each.dtype for part in rest for each in part.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in vae.encoder.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.unet.conv_in.weight, tiny.model.unet.conv_in.weight.bfloat16())
    assert not any(tensor.requires_grad or tensor.is_meta for part in rest for tensor in part.parameters())
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert name in said[0] and "bf16" in said[0]


def test_auto_on_cuda_is_fp16_where_that_is_enough(one_file, tmp_path, caplog):
    path = with_a_number(one_file, tmp_path / "x.safetensors", 65504.0)
    assert load_checkpoint(path, "auto", device="cuda").model.unet.dtype == torch.float16
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("number", "precision"),
    [(math.nan, "fp16"), (math.inf, "fp16"), (-math.inf, "auto"), (math.nan, "bf16"), (math.inf, "fp32")],
)
def test_numbers_that_are_not_finite_are_refused_by_name(number, precision, one_file, tmp_path):
    path = with_a_number(one_file, tmp_path / "x.safetensors", number)
    with raises(CheckpointError, "checkpoint.not_finite", OUT_BIAS):
        load_checkpoint(path, precision, device="cuda")


def test_a_file_without_the_second_vae_encodes_with_the_first_one(tiny, one_file, tmp_path):
    def drop(tensors):
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(SECOND_VAE)}

    loaded = load_checkpoint(rewrite(one_file, tmp_path / "x.safetensors", drop))
    quant = loaded.vae.vae.quant_conv
    assert torch.equal(quant.weight[:, :, 0, 0], torch.eye(8))
    assert not quant.bias.any()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator("cpu").manual_seed(2)) * 2 - 1
    ours, theirs = (vae.encode(pixels).latent_dist.mode() for vae in (loaded.vae.vae, tiny.vae.vae))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_second_vae_is_the_one_that_encodes_when_both_are_there(tiny, one_file, tmp_path):
    def spoil(tensors):
        return {name: tensor * 0 if name.startswith(FIRST_ENCODER) else tensor for name, tensor in tensors.items()}

    loaded = load_checkpoint(rewrite(one_file, tmp_path / "x.safetensors", spoil))
    assert torch.equal(loaded.vae.vae.encoder.conv_in.weight, tiny.vae.vae.encoder.conv_in.weight)


def test_what_the_metadata_says_goes_before_what_is_published(one_file, tmp_path):
    path = rewrite(one_file, tmp_path / "x.safetensors", lambda tensors: tensors, _facts(num_frames=8, width=128))
    loaded = load_checkpoint(path)
    assert loaded.model.defaults == VideoDefaults(8, 128, 576, 1.0, 3.0)
    assert loaded.model.unet.config.num_frames == 8


def shaped(tiny, unet: dict, vae: dict, clip: dict):
    """The tiny SVD with other settings of its modules, random."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        made = (
            UNetSpatioTemporalConditionModel(**{**UNET_CONFIG, "num_frames": 14, **unet}),
            AutoencoderKLTemporalDecoder(**{**VAE_CONFIG, **vae}),
            CLIPVisionModelWithProjection(CLIPVisionConfig(**{**CLIP_CONFIG, **clip})),
        )
    return replace(
        tiny,
        model=replace(tiny.model, unet=made[0].eval()),
        vae=replace(tiny.vae, vae=made[1].eval()),
        clip_vision=replace(tiny.clip_vision, encoder=made[2].eval()),
    )


def test_a_model_of_another_depth_says_so_in_its_file(tiny, tmp_path, same_modules):
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
    other = shaped(tiny, unet, vae, {"num_hidden_layers": 3})
    same_modules(load_checkpoint(save_single_file(other, tmp_path / "other.safetensors")), other)


def test_a_narrow_model_of_the_published_depth_needs_no_metadata(tiny, tmp_path, same_modules):
    widths = {"block_out_channels": (64,) * 4, "num_attention_heads": (1,) * 4}
    other = shaped(tiny, widths, {}, {"hidden_size": 80, "num_attention_heads": 1, "num_hidden_layers": 32})
    path = save_single_file(other, tmp_path / "other.safetensors")
    same_modules(load_checkpoint(rewrite(path, tmp_path / "bare.safetensors", lambda tensors: tensors, {})), other)


def test_a_clip_tower_whose_heads_nobody_tells_is_refused(one_file, tmp_path):
    path = rewrite(one_file, tmp_path / "x.safetensors", lambda tensors: tensors, {"format": "pt"})
    with raises(CheckpointError, "checkpoint.heads", "clip_heads"):
        load_checkpoint(path)


def test_leftovers_are_ignored_and_said_once(one_file, tmp_path, tiny, same_modules, caplog):
    extra = {
        "denoiser.sigmas": torch.ones(1000),
        "model_ema.decay": torch.ones(()),
        "conditioner.embedders.0.open_clip.model.logit_scale": torch.ones(()),
        "control_model.weight": torch.ones(2, 2),
    }
    path = rewrite(one_file, tmp_path / "x.safetensors", lambda tensors: {**tensors, **extra})
    with caplog.at_level(logging.INFO, logger="svd_stages"):
        same_modules(load_checkpoint(path), tiny)
    said = [record for record in caplog.records if "checkpoints.load" in record.name]
    assert [record.levelname for record in said] == ["INFO", "WARNING"]
    assert "control_model.weight" in said[1].getMessage()
    assert "denoiser" not in said[1].getMessage()
    check_facts(said[0].getMessage(), 1, 2)


def test_a_half_precision_folder_variant_is_taken_when_half_precision_is_wanted(tiny, folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "both")
    half = tiny_checkpoint(seed=1)
    for module in modules(half):
        module.half()
    save_tiny_folder(tmp_path / "half", half, variant="fp16")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "image_encoder/model"):
        shutil.copyfile(tmp_path / "half" / f"{name}.fp16.safetensors", path / f"{name}.fp16.safetensors")
    full, halved = tiny.model.unet.conv_in.weight, half.model.unet.conv_in.weight
    assert torch.equal(load_checkpoint(path, "fp16").model.unet.conv_in.weight, halved)
    assert torch.equal(load_checkpoint(path, "fp32").model.unet.conv_in.weight, full)
    assert torch.equal(load_checkpoint(path, "bf16").model.unet.conv_in.weight, full.bfloat16())
    assert torch.equal(load_checkpoint(tmp_path / "half", "fp32").model.unet.conv_in.weight, halved.float())


def sharded(folder: Path, path: Path, tiny, variant: str | None) -> list[Path]:
    """`folder` copied to `path` with its UNet and CLIP tower in shards, written by their own libraries; the UNet's."""
    shutil.copytree(folder, path)
    for module, size in ((tiny.model.unet, "20MB"), (tiny.clip_vision.encoder, "500KB")):
        part = path / ("unet" if module is tiny.model.unet else "image_encoder")
        for weights in part.glob("*.safetensors"):
            weights.unlink()
        to_be_saved(module).save_pretrained(part, max_shard_size=size, variant=variant)
        assert len(list(part.glob("*-of-*.safetensors"))) > 1
    return sorted((path / "unet").glob("*-of-*.safetensors"))


@pytest.mark.parametrize("index", ["with its index", "without its index"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_folders_load(folder, tiny, tmp_path, same_modules, index, variant):
    sharded(folder, tmp_path / "sharded", tiny, variant)
    if index == "without its index":
        for file in (tmp_path / "sharded").rglob("*.index*.json"):
            file.unlink()
    same_modules(load_checkpoint(tmp_path / "sharded"), tiny)


def test_a_missing_shard_is_an_error_that_names_it(folder, tiny, tmp_path):
    sharded(folder, tmp_path / "sharded", tiny, None)[1].unlink()
    with raises(CheckpointError, "checkpoint.missing_parts", "UNet") as raised:
        load_checkpoint(tmp_path / "sharded")
    check_facts(str(raised.value).replace(str(tmp_path), ""), 2)


def test_a_folder_with_old_transformers_position_numbers_loads(folder, tmp_path, tiny, same_modules):
    shutil.copytree(folder, tmp_path / "old")
    weights = tmp_path / "old" / "image_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "vision_model.embeddings.position_ids": torch.arange(50)[None]}, weights)
    same_modules(load_checkpoint(tmp_path / "old"), tiny)
