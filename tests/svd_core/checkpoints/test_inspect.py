"""Inspection of files and folders from headers and config files alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from error_checks import check_facts, raises
from svd_stages.svd_core.checkpoints.catalog import find_entry
from svd_stages.svd_core.checkpoints.detect import Family
from svd_stages.svd_core.checkpoints.diffusers_format import UNET as UNET_COMPONENT
from svd_stages.svd_core.checkpoints.diffusers_format import variants
from svd_stages.svd_core.checkpoints.inspect import inspect, read_defaults
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults, sidecar_path, write_sidecar
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
    Family.SD1: {**SPATIAL, TEXT_LAYER: (320, 768)},
    Family.SD2: {**SPATIAL, TEXT_LAYER: (320, 1024)},
    Family.SDXL: {**SPATIAL, LABELS: (1280, 2816)},
    Family.SV3D_U: temporal(256, "mid.block_1.time_stack.in_layers.0.weight"),
    Family.SV3D_P: temporal(1280, "mid.block_1.time_stack.in_layers.0.weight"),
    Family.SVD_IMAGE_DECODER: temporal(768, "mid.block_1.norm1.weight"),
    Family.LORA: {f"{LORA_LAYER}.lora_A.weight": (8, 320), f"{LORA_LAYER}.lora_B.weight": (320, 8)},
    Family.DIFFUSERS_SVD_UNET: {
        "conv_in.weight": (320, 8, 3, 3),
        "down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight": (320,),
    },
    Family.DIFFUSERS_UNET: {"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.norm1.weight": (320,)},
    Family.DIFFUSERS_VAE: {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
    Family.VAE: {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.up.0.block.0.norm1.weight": (128,),
    },
    Family.CLIP_TOWER: {"visual_projection.weight": (1024, 1280)},
    Family.UNKNOWN: {"something.weight": (3, 3)},
    Family.EMPTY: {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_named_and_refused_with_a_fix_in_under_a_second(family, header_only, tmp_path):
    tensors = {name: ("F16", shape) for name, shape in FAMILIES[family].items()}
    if tensors:
        tensors["padding"] = ("F16", (2_500_000_000, 2))  # 10 GB
    path = header_only(tmp_path / "other.safetensors", tensors)
    started = time.process_time()
    inspection = inspect(path)
    with raises(CheckpointError, "checkpoint.family", family.label) as raised:
        load_checkpoint(path)
    assert time.process_time() - started < 5
    assert (inspection.family, inspection.usable) == (family.label, False)
    assert family.label in inspection.describe()
    assert family.suggestion and family.suggestion in str(raised.value)
    if family in (Family.SVD_IMAGE_DECODER, Family.EMPTY):
        check_facts(str(raised.value), "svd_xt.safetensors")


def test_a_published_file_is_recognized_in_under_a_second(full_size):
    started = time.process_time()
    inspection = inspect(full_size)
    assert time.process_time() - started < 5
    assert (inspection.kind, inspection.family, inspection.usable) == ("one file", "SVD", True)
    assert abs(inspection.bytes - 9_559_625_980) < 100_000  # the same tensors; the padding of the header differs
    assert {part.name: part.tensors for part in inspection.parts} == {
        "UNet": 1428,
        "VAE": 372,
        "conditioning VAE": 248,
        "CLIP tower": 392,
        "other": 6,
    }
    assert {dtype for part in inspection.parts for dtype in part.dtypes} == {"fp32"}
    assert inspection.num_frames is None
    check_facts(inspection.describe(), 14, 25)


def test_a_file_with_frames_in_its_metadata_needs_no_note(one_file):
    inspection = inspect(one_file)
    assert (inspection.family, inspection.usable, inspection.num_frames, inspection.notes) == ("SVD", True, 14, ())


def test_a_folder_is_recognized_with_its_variants(tmp_path):
    half = tiny_checkpoint(num_frames=25, dtype=torch.float16)
    inspection = inspect(save_tiny_folder(tmp_path / "half", half, variant="fp16"))
    summary = (inspection.kind, inspection.family, inspection.usable, inspection.num_frames)
    assert summary == ("diffusers folder", "SVD", True, 25)
    assert {part.name: (part.variant, part.tensors, part.dtypes) for part in inspection.parts} == {
        "UNet": ("fp16", 1426, ("fp16",)),
        "VAE": ("fp16", 374, ("fp16",)),
        "CLIP tower": ("fp16", 40, ("fp16",)),
    }


def test_a_folder_without_a_component_is_not_usable(folder, tmp_path):
    for part in ("unet", "vae", "scheduler", "feature_extractor"):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    inspection = inspect(tmp_path)
    assert not inspection.usable
    assert "CLIP tower" in inspection.describe()


def test_another_pipelines_folder_is_named_by_its_class(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    inspection = inspect(tmp_path)
    assert (inspection.family, inspection.usable) == ("StableDiffusionXLPipeline", False)


def test_defaults_are_those_of_loading(one_file, folder, full_size, tiny):
    assert read_defaults(one_file) == tiny.model.defaults
    assert read_defaults(folder) == tiny.model.defaults
    assert read_defaults(full_size) == VideoDefaults(25, 1024, 576, 1.5, 3.0)


@pytest.fixture
def published(layout, header_only, tmp_path):
    """Return a function that writes a file with the published tensors and some metadata."""
    tensors = {name: ("F16", shape) for name, shape in layout.items()}

    def write(metadata: dict | None = None) -> Path:
        stored = None if metadata is None else {"svd_stages": json.dumps(metadata)}
        return header_only(tmp_path / "any name.safetensors", tensors, stored)

    return write


@pytest.mark.parametrize(
    ("metadata", "defaults"),
    [
        ({"num_frames": 14}, VideoDefaults(14, 1024, 576, 1.0, 2.5)),
        ({"num_frames": 8, "from_the_future": 1}, VideoDefaults(8, 1024, 576, 1.0, 3.0)),
        ({"num_frames": 14, "width": 128, "height": 64, "max_guidance": 4}, VideoDefaults(14, 128, 64, 1.0, 4)),
    ],
)
def test_metadata_overrides_the_published_values(metadata, defaults, published):
    assert read_defaults(published(metadata)) == defaults


def test_a_checkpoint_without_frames_has_a_note_with_the_published_numbers(published, copied, edit_json):
    edit_json(copied / "unet" / "config.json", num_frames=...)
    for path in (published({"width": 512}), copied):
        inspection = inspect(path)
        assert (inspection.usable, inspection.num_frames) == (True, None)
        (note,) = inspection.notes
        check_facts(note, 14, 25)
        assert read_defaults(path).num_frames == 25


@pytest.fixture
def downloaded(published) -> Path:
    """A file as published, without frames, with the sidecar of `svd-stages download svd`."""
    path = published()
    write_sidecar(path, "svd", None, find_entry("svd").defaults)
    return path


def test_a_file_that_was_downloaded_by_name_has_the_frames_of_that_name(downloaded):
    assert read_defaults(downloaded) == VideoDefaults(14, 1024, 576, 1.0, 2.5)
    inspection = inspect(downloaded)
    assert (inspection.usable, inspection.num_frames) == (True, 14)
    (note,) = inspection.notes
    check_facts(note, '"svd"')


def test_a_sidecar_is_ignored_for_a_file_of_another_size(downloaded, published):
    published({"from_the_future": 1})
    assert read_defaults(downloaded).num_frames == 25
    assert inspect(downloaded).num_frames is None


def test_metadata_overrides_the_sidecar(published):
    path = published({"num_frames": 8})
    write_sidecar(path, "svd", None, find_entry("svd").defaults)
    assert read_defaults(path) == VideoDefaults(8, 1024, 576, 1.0, 3.0)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", '{"num_frames": "many"}'])
def test_a_damaged_sidecar_is_named(downloaded, text):
    sidecar = sidecar_path(downloaded)
    if "num_frames" in text:
        text = json.dumps({**json.loads(sidecar.read_text()), "facts": json.loads(text)})
    sidecar.write_bytes(text.encode("latin-1"))
    with raises(CheckpointError, "checkpoint.facts", sidecar.name):
        read_defaults(downloaded)


def test_of_two_complete_sets_of_shards_the_indexed_one_is_taken_or_the_one_with_fewest_files(tmp_path):
    unet = tmp_path / "unet"
    unet.mkdir()
    for count in (2, 3):
        for number in range(1, count + 1):
            (unet / f"diffusion_pytorch_model-{number:05}-of-{count:05}.safetensors").touch()
    assert [path.name[24:38] for path in variants(unet, UNET_COMPONENT)[""]] == ["00001-of-00002", "00002-of-00002"]
    indexed = {f"weight{number}": f"diffusion_pytorch_model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)}
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": indexed}))
    assert [path.name for path in variants(unet, UNET_COMPONENT)[""]] == list(indexed.values())
    (unet / indexed["weight3"]).unlink()
    assert len(variants(unet, UNET_COMPONENT)[""]) == 2
    (unet / "diffusion_pytorch_model-00001-of-00002.safetensors").unlink()
    with raises(CheckpointError, "checkpoint.missing_parts", unet) as raised:
        variants(unet, UNET_COMPONENT)
    check_facts(str(raised.value).replace(str(unet), ""), 2, 1)


def test_inspecting_checkpoints_loads_no_heavy_library(one_file):
    program = (
        "import sys\n"
        "from svd_stages.svd_core.checkpoints import catalog, download, inspect, library\n"
        "inspect.inspect(sys.argv[1])\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'safetensors', 'huggingface_hub'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(one_file)], check=True)
