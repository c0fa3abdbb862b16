"""What a file is, from its header alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from error_checks import check_facts, raises
from svd_stages.svd_core.checkpoints.catalog import entry
from svd_stages.svd_core.checkpoints.detect import WAY_OUT, Family
from svd_stages.svd_core.checkpoints.diffusers_format import UNET as UNET_PART
from svd_stages.svd_core.checkpoints.diffusers_format import variants
from svd_stages.svd_core.checkpoints.inspect import inspect, read_defaults
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.checkpoints.sidecar import provenance_path, write_provenance
from svd_stages.svd_core.errors import CheckpointError
from tiny import save_tiny_folder, tiny_checkpoint

UNET = "model.diffusion_model."
SPATIAL = {
    UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
    UNET + "input_blocks.1.0.in_layers.0.weight": (320,),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
}
TEXT_LAYER = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
LABELS = UNET + "label_emb.0.0.weight"
LORA_LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def temporal(labels: int, decoder: str) -> dict[str, tuple[int, ...]]:
    return {
        UNET + "input_blocks.0.0.weight": (320, 8, 3, 3),
        UNET + "input_blocks.1.0.time_stack.in_layers.0.weight": (320,),
        LABELS: (1280, labels),
        f"first_stage_model.decoder.{decoder}": (512,),
        "conditioner.embedders.0.open_clip.model.visual.proj": (1280, 1024),
    }


FAMILIES = {
    "SD 1.x": {**SPATIAL, TEXT_LAYER: (320, 768)},
    "SD 2.x": {**SPATIAL, TEXT_LAYER: (320, 1024)},
    "SDXL": {**SPATIAL, LABELS: (1280, 2816)},
    "SV3D_u": temporal(256, "mid.block_1.time_stack.in_layers.0.weight"),
    "SV3D_p": temporal(1280, "mid.block_1.time_stack.in_layers.0.weight"),
    "SVD image decoder": temporal(768, "mid.block_1.norm1.weight"),
    "LoRA": {f"{LORA_LAYER}.lora_A.weight": (8, 320), f"{LORA_LAYER}.lora_B.weight": (320, 8)},
    "diffusers UNet of an SVD": {
        "conv_in.weight": (320, 8, 3, 3),
        "down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight": (320,),
    },
    "diffusers UNet": {"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.norm1.weight": (320,)},
    "diffusers VAE": {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
    "VAE": {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.up.0.block.0.norm1.weight": (128,),
    },
    "CLIP image tower": {"visual_projection.weight": (1024, 1280)},
    "unknown": {"something.weight": (3, 3)},
}
TEN_GIGABYTES = (2_500_000_000,)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_named_and_refused_in_under_a_second(family, header_only, tmp_path):
    tensors = {name: ("F16", shape) for name, shape in {**FAMILIES[family], "padding": TEN_GIGABYTES}.items()}
    path = header_only(tmp_path / "other.safetensors", tensors)
    started = time.process_time()
    found = inspect(path)
    with raises(CheckpointError, "checkpoint.family") as raised:
        load_checkpoint(path)
    assert time.process_time() - started < 5
    assert (found.family, found.usable) == (family, False)
    assert family in str(raised.value)
    assert family in found.describe()


def test_an_image_decoder_file_is_refused_with_the_temporal_files_name(header_only, tmp_path):
    tensors = {name: ("F32", shape) for name, shape in FAMILIES["SVD image decoder"].items()}
    with raises(CheckpointError, "checkpoint.family", "svd_xt.safetensors"):
        load_checkpoint(header_only(tmp_path / "svd_xt_image_decoder.safetensors", tensors))


def test_an_empty_file_of_tensors_is_called_empty_with_the_way_out(header_only, tmp_path):
    path = header_only(tmp_path / "nothing.safetensors", {})
    assert inspect(path).family == "empty"
    with raises(CheckpointError, "checkpoint.family", "empty", "svd_xt.safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_refusal_of_a_family_says_what_to_do(family, header_only, tmp_path):
    path = header_only(tmp_path / "x.safetensors", {name: ("F16", shape) for name, shape in FAMILIES[family].items()})
    with raises(CheckpointError, "checkpoint.family") as raised:
        load_checkpoint(path)
    assert (WAY_OUT[Family(family)] or "nothing") in str(raised.value)


def test_a_published_file_is_told_in_under_a_second(full_size):
    started = time.process_time()
    found = inspect(full_size)
    assert time.process_time() - started < 5
    assert (found.kind, found.family, found.usable) == ("one file", "SVD", True)
    assert abs(found.bytes - 9_559_625_980) < 100_000  # the same tensors; the header's spaces differ
    assert {part.name: part.tensors for part in found.parts} == {
        "UNet": 1428,
        "VAE": 372,
        "conditioning VAE": 248,
        "CLIP tower": 392,
        "other": 6,
    }
    assert {dtype for part in found.parts for dtype in part.dtypes} == {"fp32"}
    assert found.num_frames is None
    assert "14" in found.describe() and "25" in found.describe()


def test_a_file_that_says_its_frames_is_believed(one_file):
    found = inspect(one_file)
    assert (found.family, found.usable, found.num_frames, found.notes) == ("SVD", True, 14, ())


def test_a_folder_is_told_with_its_variants(tmp_path):
    half = tiny_checkpoint(num_frames=25)
    for module in (half.model.unet, half.vae.vae, half.clip_vision.encoder):
        module.half()
    found = inspect(save_tiny_folder(tmp_path / "half", half, variant="fp16"))
    assert (found.kind, found.family, found.usable, found.num_frames) == ("diffusers folder", "SVD", True, 25)
    told = {part.name: (part.variant, part.tensors, part.dtypes) for part in found.parts}
    assert told == {
        "UNet": ("fp16", 1426, ("fp16",)),
        "VAE": ("fp16", 374, ("fp16",)),
        "CLIP tower": ("fp16", 40, ("fp16",)),
    }


def test_a_folder_that_lacks_a_part_says_so(folder, tmp_path):
    for part in ("unet", "vae", "scheduler", "feature_extractor"):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    found = inspect(tmp_path)
    assert not found.usable
    assert "CLIP tower" in found.describe()


def test_another_pipelines_folder_is_told_by_its_class(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    found = inspect(tmp_path)
    assert (found.family, found.usable) == ("StableDiffusionXLPipeline", False)


def test_the_inspection_is_json(one_file, folder):
    for path in (one_file, folder):
        assert json.loads(json.dumps(inspect(path).as_dict()))["family"] == "SVD"


def test_defaults_are_read_as_loading_gives_them(one_file, folder, full_size, tiny):
    assert read_defaults(one_file) == tiny.model.defaults
    assert read_defaults(folder) == tiny.model.defaults
    assert read_defaults(full_size) == VideoDefaults(25, 1024, 576, 1.5, 3.0)


@pytest.mark.parametrize(
    ("facts", "defaults"),
    [
        ({"num_frames": 14}, VideoDefaults(14, 1024, 576, 1.0, 2.5)),
        ({"num_frames": 8, "from_the_future": 1}, VideoDefaults(8, 1024, 576, 1.0, 3.0)),
        ({"num_frames": 14, "width": 128, "height": 64, "max_guidance": 4}, VideoDefaults(14, 128, 64, 1.0, 4)),
    ],
)
def test_what_the_metadata_says_goes_before_what_is_published(facts, defaults, layout, header_only, tmp_path):
    tensors = {name: ("F16", shape) for name, shape in layout.items()}
    path = header_only(tmp_path / "x.safetensors", tensors, {"svd_stages": json.dumps(facts)})
    assert read_defaults(path) == defaults


def test_metadata_without_frames_do_not_say_the_frames(layout, header_only, tmp_path):
    tensors = {name: ("F16", shape) for name, shape in layout.items()}
    found = inspect(header_only(tmp_path / "x.safetensors", tensors, {"svd_stages": '{"width": 512}'}))
    assert (found.usable, found.num_frames) == (True, None)
    (note,) = found.notes
    check_facts(note, 14, 25)


def test_a_folder_without_frames_in_its_config_does_not_say_them(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other, copy_function=os.link)
    config = other / "unet" / "config.json"
    settings = json.loads(config.read_text())
    del settings["num_frames"]
    config.unlink()
    config.write_text(json.dumps(settings))
    found = inspect(other)
    assert (found.usable, found.num_frames) == (True, None)
    (note,) = found.notes
    check_facts(note, 14, 25)
    assert read_defaults(other).num_frames == 25


@pytest.fixture
def published(layout, header_only, tmp_path) -> Path:
    """A file as published, which does not say its frames, with what `svd-stages download svd` writes beside it."""
    path = header_only(tmp_path / "any name.safetensors", {name: ("F16", shape) for name, shape in layout.items()})
    write_provenance(path, "svd", None, entry("svd").defaults)
    return path


def test_a_file_that_was_downloaded_by_name_has_the_frames_of_that_name(published):
    assert read_defaults(published) == VideoDefaults(14, 1024, 576, 1.0, 2.5)
    found = inspect(published)
    assert (found.usable, found.num_frames) == (True, 14)
    (note,) = found.notes
    check_facts(note, '"svd"')


def test_what_was_downloaded_is_not_believed_of_a_file_of_another_size(published, header_only, layout):
    tensors = {name: ("F16", shape) for name, shape in layout.items()}
    header_only(published, tensors, {"other": "file"})
    assert read_defaults(published).num_frames == 25
    assert inspect(published).num_frames is None


def test_what_the_file_says_goes_before_what_was_downloaded(published, header_only, layout):
    tensors = {name: ("F16", shape) for name, shape in layout.items()}
    header_only(published, tensors, {"svd_stages": '{"num_frames": 8}'})
    write_provenance(published, "svd", None, entry("svd").defaults)
    assert read_defaults(published) == VideoDefaults(8, 1024, 576, 1.0, 3.0)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", '{"num_frames": "many"}'])
def test_a_damaged_note_of_a_download_is_named(published, text):
    beside = provenance_path(published)
    if "num_frames" in text:
        text = json.dumps({**json.loads(beside.read_text()), "facts": json.loads(text)})
    beside.write_bytes(text.encode("latin-1"))
    with raises(CheckpointError, "checkpoint.facts", beside.name):
        read_defaults(published)


def test_of_two_complete_sets_of_shards_the_listed_one_is_taken_or_the_one_with_fewest_files(tmp_path):
    unet = tmp_path / "unet"
    unet.mkdir()
    for count in (2, 3):
        for number in range(1, count + 1):
            (unet / f"diffusion_pytorch_model-{number:05}-of-{count:05}.safetensors").touch()
    assert [path.name[24:38] for path in variants(unet, UNET_PART)[""]] == ["00001-of-00002", "00002-of-00002"]
    listed = {f"weight{number}": f"diffusion_pytorch_model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)}
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    assert [path.name for path in variants(unet, UNET_PART)[""]] == list(listed.values())
    (unet / listed["weight3"]).unlink()
    assert len(variants(unet, UNET_PART)[""]) == 2
    (unet / "diffusion_pytorch_model-00001-of-00002.safetensors").unlink()
    with raises(CheckpointError, "checkpoint.missing_parts", unet) as raised:
        variants(unet, UNET_PART)
    check_facts(str(raised.value).replace(str(unet), ""), 2, 1)


def test_looking_at_checkpoints_loads_no_heavy_library(one_file):
    program = (
        "import sys\n"
        "from svd_stages.svd_core.checkpoints import catalog, download, inspect, library\n"
        "inspect.inspect(sys.argv[1])\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'safetensors', 'huggingface_hub'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(one_file)], check=True)
