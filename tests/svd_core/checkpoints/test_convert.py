"""Conversion in both directions: exact, readable by diffusers itself, complete or nothing."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from error_checks import raises
from safetensors.torch import load_file
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint, save_single_file
from svd_stages.svd_core.checkpoints.inspect import inspect, read_defaults
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.checkpoints.reader import module_tensors
from svd_stages.svd_core.checkpoints.single_file import fold_quant_conv
from svd_stages.svd_core.errors import CheckpointError, OutputError, SettingError
from svd_stages.svd_core.models.components import SVDVae
from tiny import SCHEDULER_CONFIG, tiny_checkpoint, tiny_pipeline


@pytest.fixture(scope="module")
def converted(one_file, tmp_path_factory) -> Path:
    """The tiny single file as a folder. Read-only."""
    return convert_checkpoint(one_file, tmp_path_factory.mktemp("converted") / "tiny")


def test_one_file_to_folder_and_back_is_the_same_file(one_file, converted, tmp_path):
    back = convert_checkpoint(converted, tmp_path / "back.safetensors")
    assert back.read_bytes() == one_file.read_bytes()


def test_a_folder_of_diffusers_to_one_file_loads_the_same(folder, tiny, tmp_path, same_modules):
    loaded = load_checkpoint(convert_checkpoint(folder, tmp_path / "one.safetensors"))
    same_modules(loaded, tiny)
    assert loaded.model.defaults == tiny.model.defaults


def test_settings_that_a_folder_omits_are_the_libraries_defaults(copied, tmp_path, same_modules, tiny, edit_json):
    clip = copied / "image_encoder" / "config.json"
    edit_json(copied / "unet" / "config.json", layers_per_block=...)
    edit_json(clip, num_channels=..., hidden_act=None)
    with raises(CheckpointError, "checkpoint.layout", "hidden_act", "quick_gelu"):  # the default of CLIPVisionConfig
        convert_checkpoint(copied, tmp_path / "one.safetensors")
    edit_json(clip, hidden_act="gelu")
    same_modules(load_checkpoint(convert_checkpoint(copied, tmp_path / "one.safetensors")), tiny)


def test_progress_counts_every_tensor(one_file, tmp_path, recorder):
    progress, calls = recorder
    convert_checkpoint(one_file, tmp_path / "out", progress)
    total = 1426 + 374 + 40
    assert calls == [("writing", total, "tensor", done) for done in range(1, total + 1)]


def test_diffusers_own_pipeline_loads_the_converted_folder_and_makes_the_same_video(
    converted, tiny, picture, same_modules
):
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(converted)
    model, vae, clip = tiny.model, tiny.vae, tiny.clip_vision
    loaded = replace(
        tiny,
        model=replace(model, unet=pipeline.unet),
        vae=replace(vae, vae=pipeline.vae),
        clip_vision=replace(clip, encoder=pipeline.image_encoder),
    )
    same_modules(loaded, tiny)
    assert {key: pipeline.scheduler.config[key] for key in SCHEDULER_CONFIG} == SCHEDULER_CONFIG
    assert pipeline.unet.config.num_frames == 14
    assert pipeline.vae.config.scaling_factor == 0.18215
    assert pipeline.vae.config.force_upcast is True
    assert pipeline.image_encoder.config.hidden_act == "gelu"
    assert tuple(pipeline.feature_extractor.image_mean) == clip.image_mean
    assert pipeline.feature_extractor.crop_size["height"] == 224
    latents = []
    for each in (pipeline, tiny_pipeline(tiny)):
        each.set_progress_bar_config(disable=True)
        generator = torch.Generator("cpu").manual_seed(3)
        settings = {"height": 64, "width": 64, "num_frames": 3, "num_inference_steps": 2, "output_type": "latent"}
        latents.append(each(picture, generator=generator, **settings).frames)
    result, expected = latents
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()  # memory-mapped weights have other alignment


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_are_kept(dtype, tmp_path):
    path = save_single_file(tiny_checkpoint(dtype=dtype), tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    folder = convert_checkpoint(path, tmp_path / "half")
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    assert convert_checkpoint(folder, tmp_path / "back.safetensors").read_bytes() == path.read_bytes()


def test_the_folded_encoder_is_the_encoder_followed_by_quant_conv():
    vae, other = tiny_checkpoint().vae.vae, tiny_checkpoint(seed=1).vae.vae
    encoder = {name: each for name, each in module_tensors(vae).items() if name.startswith(("encoder.", "quant_conv."))}
    folded = {name.removeprefix("encoder."): each.read() for name, each in fold_quant_conv(encoder).items()}
    other.encoder.load_state_dict(folded)
    pixels = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(4)) * 2 - 1
    wanted = vae.double().quant_conv(vae.encoder(pixels))
    assert (other.double().encoder(pixels) - wanted).abs().max() < 1e-6 * wanted.abs().max()


def test_a_vae_that_the_layout_has_no_names_for_stays_a_folder(tiny, tmp_path):
    from diffusers import AutoencoderKLTemporalDecoder

    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    )
    with raises(CheckpointError, "checkpoint.layout", "VAE", 1):
        save_single_file(replace(tiny, vae=SVDVae(vae)), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
@pytest.mark.parametrize("name", ["existing", "existing.safetensors"])
def test_an_existing_destination_is_not_overwritten(one_file, folder, tmp_path, kind, name):
    target = tmp_path / name
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with raises(OutputError, "output.exists", target):
        convert_checkpoint(folder if target.suffix else one_file, target)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert kind != "file" or target.read_text() == "mine"


@pytest.mark.parametrize("source", ["one file", "folder"])
def test_a_disk_that_fills_up_leaves_no_files_and_the_error_names_the_destination(
    source, one_file, converted, tmp_path, full_disk, recorder
):
    progress, calls = recorder
    target = tmp_path / ("out" if source == "one file" else "out.safetensors")
    with full_disk(at=20_000_000), raises(OutputError, "output.unwritable", target) as raised:
        convert_checkpoint(one_file if source == "one file" else converted, target, progress)
    assert os.strerror(errno.EFBIG) in str(raised.value)
    assert ".part" not in str(raised.value)
    assert 0 < len(calls) < 1000
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_source_is_refused_before_anything_is_written(one_file, tmp_path, edit_tensors):
    def drop(tensors):
        return {name: tensor for name, tensor in tensors.items() if name != "model.diffusion_model.out.2.weight"}

    source = edit_tensors(one_file, tmp_path / "source.safetensors", drop)
    with raises(CheckpointError, "checkpoint.missing_tensors", "out.2.weight"):
        convert_checkpoint(source, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_a_destination_that_cannot_be_written_is_an_output_error(one_file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with raises(OutputError, "output.unwritable", tmp_path / "file"):
        convert_checkpoint(one_file, tmp_path / "file" / "target")


def test_unknown_frames_are_not_written_and_the_user_is_warned(without_frames, tmp_path, caplog, metadata_of):
    from diffusers import UNetSpatioTemporalConditionModel

    folder = convert_checkpoint(without_frames, tmp_path / "folder")
    assert "`num_frames`" in caplog.text
    assert "num_frames" not in json.loads((folder / "unet" / "config.json").read_text())
    own = json.loads((folder / "model_index.json").read_text())["_svd_stages"]
    assert own == {"width": 64, "height": 64, "preset": "reference"}
    assert inspect(folder).num_frames is None
    config = UNetSpatioTemporalConditionModel.load_config(folder / "unet")
    with torch.device("meta"):
        assert UNetSpatioTemporalConditionModel.from_config(config).config.num_frames == 25  # diffusers' default
    back = convert_checkpoint(folder, tmp_path / "back.safetensors")
    assert not metadata_of(back).keys() & {"num_frames", "min_guidance", "max_guidance"}
    assert inspect(back).num_frames is None
    assert load_checkpoint(back).model.defaults == VideoDefaults(25, 64, 64, 1.5, 3.0)


def test_the_users_frames_are_written_in_both_directions(without_frames, tmp_path, caplog):
    expected = VideoDefaults(14, 64, 64, 1.0, 2.5)
    folder = convert_checkpoint(without_frames, tmp_path / "folder", num_frames=14)
    assert json.loads((folder / "unet" / "config.json").read_text())["num_frames"] == 14
    assert read_defaults(folder) == expected
    assert read_defaults(convert_checkpoint(folder, tmp_path / "back.safetensors")) == expected
    assert caplog.text == ""


@pytest.mark.parametrize("frames", [0, -1, 5000])
def test_frames_out_of_range_are_refused(one_file, tmp_path, frames):
    with raises(SettingError, "setting", 4096, frames):
        convert_checkpoint(one_file, tmp_path / "folder", num_frames=frames)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_is_named_as_the_other_form_is_refused_with_the_right_command(one_file, folder, tmp_path):
    for source, wrong, right in ((folder, "out", "out.safetensors"), (one_file, "out.safetensors", "out")):
        with raises(SettingError, "setting") as raised:
            convert_checkpoint(source, tmp_path / wrong)
        command = str(raised.value).partition("convert-checkpoint ")[2]
        assert command.split()[:2] == [str(source), str(tmp_path / right)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-3)])
def test_a_clip_encoder_that_the_layout_cannot_describe_stays_a_folder(copied, tmp_path, edit_json, key, value):
    edit_json(copied / "image_encoder" / "config.json", **{key: value})
    with raises(CheckpointError, "checkpoint.layout", key, value):
        convert_checkpoint(copied, tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()
