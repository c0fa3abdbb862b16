"""Conversion both ways: exact, readable by diffusers itself, all or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from error_checks import raises
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint, save_single_file
from svd_stages.svd_core.checkpoints.inspect import inspect, read_defaults
from svd_stages.svd_core.checkpoints.lazy_tensors import module_tensors
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.checkpoints.single_file import fold_quant_conv
from svd_stages.svd_core.errors import CheckpointError, OutputError, SettingError
from svd_stages.svd_core.models.components import SVDVae
from tiny import SCHEDULER_CONFIG, tiny_checkpoint


@pytest.fixture(scope="module")
def converted(one_file, tmp_path_factory) -> Path:
    """The tiny one-file checkpoint as a folder. Nothing may change it."""
    return convert_checkpoint(one_file, tmp_path_factory.mktemp("converted") / "tiny")


def test_one_file_to_folder_and_back_is_the_same_file(one_file, converted, tmp_path):
    back = convert_checkpoint(converted, tmp_path / "back.safetensors")
    assert back.read_bytes() == one_file.read_bytes()


def test_a_folder_of_diffusers_to_one_file_loads_the_same(folder, tiny, tmp_path, same_modules):
    loaded = load_checkpoint(convert_checkpoint(folder, tmp_path / "one.safetensors"))
    same_modules(loaded, tiny)
    assert loaded.model.defaults == tiny.model.defaults


def test_settings_that_a_folder_leaves_to_the_libraries_are_theirs(folder, tmp_path, same_modules, tiny):
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    for part, own in (("image_encoder", "num_channels"), ("unet", "layers_per_block")):
        config = copied / part / "config.json"
        settings = json.loads(config.read_text())
        del settings[own]
        config.write_text(json.dumps(settings))
    tower = copied / "image_encoder" / "config.json"
    tower.write_text(json.dumps({**json.loads(tower.read_text()), "hidden_act": None}))
    with raises(CheckpointError, "checkpoint.layout", "hidden_act", "quick_gelu"):  # CLIPVisionConfig's own
        convert_checkpoint(copied, tmp_path / "one.safetensors")
    tower.write_text(json.dumps({**json.loads(tower.read_text()), "hidden_act": "gelu"}))
    same_modules(load_checkpoint(convert_checkpoint(copied, tmp_path / "one.safetensors")), tiny)


def test_progress_counts_every_tensor(one_file, tmp_path):
    stages: list[tuple[str, int, str]] = []
    counts: list[int] = []

    @contextmanager
    def progress(stage: str, total: int, unit: str):
        stages.append((stage, total, unit))
        yield counts.append

    convert_checkpoint(one_file, tmp_path / "out", progress)
    assert stages == [("writing", 1426 + 374 + 40, "tensor")]
    assert counts == list(range(1, 1841))


def test_diffusers_own_pipeline_loads_the_converted_folder(converted, tiny):
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(converted)
    pairs = (
        (pipeline.unet, tiny.model.unet),
        (pipeline.vae, tiny.vae.vae),
        (pipeline.image_encoder, tiny.clip_vision.encoder),
    )
    for theirs, ours in pairs:
        assert theirs.state_dict().keys() == ours.state_dict().keys()
        assert all(torch.equal(theirs.state_dict()[name], ours.state_dict()[name]) for name in ours.state_dict())
    assert {key: pipeline.scheduler.config[key] for key in SCHEDULER_CONFIG} == SCHEDULER_CONFIG
    assert pipeline.unet.config.num_frames == 14
    assert pipeline.vae.config.scaling_factor == 0.18215
    assert pipeline.vae.config.force_upcast is True
    assert pipeline.image_encoder.config.hidden_act == "gelu"
    assert tuple(pipeline.feature_extractor.image_mean) == tiny.clip_vision.image_mean
    assert pipeline.feature_extractor.crop_size["height"] == 224


def test_the_pipeline_of_the_converted_folder_makes_the_same_video(converted, tiny, picture):
    from diffusers import StableVideoDiffusionPipeline
    from tiny import tiny_pipeline

    latents = []
    for pipeline in (StableVideoDiffusionPipeline.from_pretrained(converted), tiny_pipeline(tiny)):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator("cpu").manual_seed(3)
        settings = {"height": 64, "width": 64, "num_frames": 3, "num_inference_steps": 2, "output_type": "latent"}
        latents.append(pipeline(picture, generator=generator, **settings).frames)
    one, other = latents
    assert (one - other).abs().max() < 1e-4 * other.abs().max()  # not equal: mapped weights are aligned otherwise


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_are_kept(dtype, tmp_path, same_modules):
    half = tiny_checkpoint()
    for module in (half.model.unet, half.vae.vae, half.clip_vision.encoder):
        module.to(dtype)
    path = save_single_file(half, tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    folder = convert_checkpoint(path, tmp_path / "half")
    assert {tensor.dtype for tensor in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").values()} == {
        dtype
    }
    back = convert_checkpoint(folder, tmp_path / "back.safetensors")
    assert back.read_bytes() == path.read_bytes()


def test_the_folded_encoder_is_the_encoder_followed_by_quant_conv():
    vae, other = tiny_checkpoint().vae.vae, tiny_checkpoint(seed=1).vae.vae
    encoder = {name: each for name, each in module_tensors(vae).items() if name.startswith(("encoder.", "quant_conv."))}
    folded = {name.removeprefix("encoder."): each.read() for name, each in fold_quant_conv(encoder).items()}
    other.encoder.load_state_dict(folded)
    pixels = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(4)) * 2 - 1
    wanted = vae.double().quant_conv(vae.encoder(pixels))
    assert (other.double().encoder(pixels) - wanted).abs().max() < 1e-6 * wanted.abs().max()


def test_the_file_says_its_facts_in_the_metadata(one_file):
    with safe_open(str(one_file), framework="pt") as file:
        facts = json.loads(file.metadata()["svd_stages"])
    assert {key: facts[key] for key in ("num_frames", "width", "height", "clip_heads", "unet_head_width")} == {
        "num_frames": 14,
        "width": 64,
        "height": 64,
        "clip_heads": 4,
        "unet_head_width": 64,
    }


def test_a_vae_that_the_layout_has_no_names_for_stays_a_folder(tiny, tmp_path):
    from diffusers import AutoencoderKLTemporalDecoder

    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    )
    with raises(CheckpointError, "checkpoint.layout", "VAE", 1):
        save_single_file(replace(tiny, vae=SVDVae(vae)), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
@pytest.mark.parametrize("to", ["there", "there.safetensors"])
def test_what_is_there_is_not_written_over(one_file, folder, tmp_path, kind, to):
    target = tmp_path / to
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with raises(OutputError, "output.exists", target):
        convert_checkpoint(folder if target.suffix else one_file, target)
    assert [path.name for path in tmp_path.iterdir()] == [to]
    assert kind != "file" or target.read_text() == "mine"


@contextmanager
def full_disk(at: int):
    """Inside the `with`, no file may grow beyond `at` bytes, and the system itself refuses."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("source", ["one file", "folder"])
def test_a_disk_that_is_full_in_the_middle_leaves_nothing_and_names_the_destination(
    source, one_file, converted, tmp_path
):
    written: list[int] = []

    @contextmanager
    def progress(stage: str, total: int, unit: str):
        yield written.append

    target = tmp_path / ("out" if source == "one file" else "out.safetensors")
    with full_disk(at=20_000_000), raises(OutputError, "output.unwritable", target) as raised:
        convert_checkpoint(one_file if source == "one file" else converted, target, progress)
    assert os.strerror(errno.EFBIG) in str(raised.value)
    assert ".part" not in str(raised.value)
    assert 0 < len(written) < 1000
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_source_is_refused_before_anything_is_written(one_file, tmp_path):
    tensors = load_file(one_file)
    del tensors["model.diffusion_model.out.2.weight"]
    with safe_open(str(one_file), framework="pt") as file:
        save_file(tensors, tmp_path / "source.safetensors", metadata=file.metadata())
    with raises(CheckpointError, "checkpoint.missing_tensors", "out.2.weight"):
        convert_checkpoint(tmp_path / "source.safetensors", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_a_place_that_cannot_be_written_is_an_error_of_ours(one_file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with raises(OutputError, "output.unwritable", tmp_path / "file"):
        convert_checkpoint(one_file, tmp_path / "file" / "target")


def test_frames_that_are_not_known_are_not_written_down_and_the_user_is_told(silent, tmp_path, caplog):
    folder = convert_checkpoint(silent, tmp_path / "folder")
    assert "--frames" in caplog.text
    assert "num_frames" not in json.loads((folder / "unet" / "config.json").read_text())
    assert json.loads((folder / "model_index.json").read_text())["_svd_stages"] == {"width": 64, "height": 64}
    assert inspect(folder).num_frames is None
    back = convert_checkpoint(folder, tmp_path / "back.safetensors")
    with safe_open(str(back), framework="pt") as file:
        facts = json.loads(file.metadata()["svd_stages"])
    assert not facts.keys() & {"num_frames", "min_guidance", "max_guidance"}
    assert inspect(back).num_frames is None
    assert load_checkpoint(back).model.defaults == VideoDefaults(25, 64, 64, 1.5, 3.0)


def test_diffusers_takes_its_own_default_where_the_frames_are_not_known(silent, tmp_path):
    from diffusers import UNetSpatioTemporalConditionModel

    folder = convert_checkpoint(silent, tmp_path / "folder")
    config = UNetSpatioTemporalConditionModel.load_config(folder / "unet")
    with torch.device("meta"):
        assert UNetSpatioTemporalConditionModel.from_config(config).config.num_frames == 25


def test_the_frames_that_the_user_says_are_written_down_both_ways(silent, tmp_path, caplog):
    wanted = VideoDefaults(14, 64, 64, 1.0, 2.5)
    folder = convert_checkpoint(silent, tmp_path / "folder", num_frames=14)
    assert json.loads((folder / "unet" / "config.json").read_text())["num_frames"] == 14
    assert read_defaults(folder) == wanted
    assert read_defaults(convert_checkpoint(folder, tmp_path / "back.safetensors")) == wanted
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
def test_a_clip_tower_that_the_layout_cannot_describe_stays_a_folder(folder, tmp_path, key, value):
    other = tmp_path / "other"
    shutil.copytree(folder, other, copy_function=os.link)
    config = other / "image_encoder" / "config.json"
    text = json.dumps({**json.loads(config.read_text()), key: value})
    config.unlink()
    config.write_text(text)
    with raises(CheckpointError, "checkpoint.layout", key, value):
        convert_checkpoint(other, tmp_path / "one.safetensors")
    assert not (tmp_path / "one.safetensors").exists()
