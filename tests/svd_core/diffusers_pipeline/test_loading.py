"""Load, save and convert pipelines, and refuse what stock diffusers would run."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.checkpoints.catalog import find_entry
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.diffusers_pipeline.pipeline import StableVideoDiffusionPipeline
from svd_stages.svd_core.errors import CheckpointError, SettingError
from tiny import mini_checkpoint, tiny_checkpoint, tiny_pipeline

SHORT = {"height": 64, "width": 64, "num_frames": 2, "num_inference_steps": 1, "output_type": "np", "seed": 0}
IMAGE = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in the published layout that stock diffusers wrote, without a variant and as fp16."""
    path = tmp_path_factory.mktemp("models") / "svd"
    tiny_pipeline(mini_checkpoint()).save_pretrained(path)
    tiny_pipeline(mini_checkpoint(torch.float16)).save_pretrained(path, variant="fp16")
    return path


def frames_of(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(IMAGE, **SHORT).frames


def test_a_folder_of_diffusers_loads_and_the_saved_one_loads_there(folder, tmp_path):
    from diffusers import StableVideoDiffusionPipeline as Stock

    ours = StableVideoDiffusionPipeline.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "saved")
    stock = Stock.from_pretrained(tmp_path / "saved")
    weights = ours.unet.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in stock.unet.state_dict().items())
    again = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert np.array_equal(frames_of(again), frames_of(ours))


@pytest.mark.parametrize("load", ["from_pretrained", "from_single_file"])
def test_the_built_in_model_is_found_by_its_name(load):
    named = getattr(StableVideoDiffusionPipeline, load)("svd-nano", torch_dtype=torch.float16)
    by_path = StableVideoDiffusionPipeline.from_single_file(EMBEDDED_FILE, torch_dtype=torch.float16)
    weights = by_path.unet.state_dict()
    assert named.unet.dtype == torch.float16
    assert all(torch.equal(weight, weights[name]) for name, weight in named.unet.state_dict().items())


def test_a_downloaded_checkpoint_is_found_by_its_name_in_the_catalog(folder, tmp_path, monkeypatch):
    """The names are those of files and folders that `svd-stages download` stores in the default models folder."""
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    for kind in ("checkpoints", "diffusers"):
        (tmp_path / "models" / kind).mkdir(parents=True)
    for name in ("svd-xt", "svd-xt-1-1"):
        shutil.copy(EMBEDDED_FILE, tmp_path / "models" / "checkpoints" / find_entry(name).file_name)
    shutil.copytree(folder, tmp_path / "models" / "diffusers" / find_entry("svd-diffusers-fp16").file_name)
    one_file = StableVideoDiffusionPipeline.from_single_file(EMBEDDED_FILE).unet.conv_in.weight
    in_folder = StableVideoDiffusionPipeline.from_pretrained(folder).unet.conv_in.weight
    expected = {"svd-xt": one_file, "svd_xt.safetensors": one_file, "svd-xt-1.1": one_file}
    for name, weight in {**expected, "svd-diffusers-fp16": in_folder}.items():
        assert torch.equal(StableVideoDiffusionPipeline.from_pretrained(name).unet.conv_in.weight, weight)
    with raises(CheckpointError, "checkpoint.not_found", "svd-diffusers-fp16", "from_pretrained"):
        StableVideoDiffusionPipeline.from_single_file("svd-diffusers-fp16")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_component_has_the_dtype_that_was_asked_for(folder, dtype):
    loaded = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, variant="fp16")
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.image_encoder.dtype} == {dtype}
    assert {weight.dtype for weight in loaded.vae.parameters()} == {dtype}


def test_a_variant_is_loaded_or_missed(folder, tmp_path):
    half = StableVideoDiffusionPipeline.from_pretrained(folder, variant="fp16")
    full = StableVideoDiffusionPipeline.from_pretrained(folder)
    assert torch.equal(half.unet.conv_in.weight, full.unet.conv_in.weight.half().float())
    assert not torch.equal(half.unet.conv_in.weight, full.unet.conv_in.weight)
    with raises(SettingError, "checkpoint.variant", "bf16"):
        StableVideoDiffusionPipeline.from_pretrained(folder, variant="bf16")


def test_a_single_file_loads(tmp_path):
    tiny_pipeline(tiny_checkpoint()).save_pretrained(tmp_path / "folder")
    file = convert_checkpoint(tmp_path / "folder", tmp_path / "svd.safetensors")
    single = StableVideoDiffusionPipeline.from_single_file(file)
    assert np.array_equal(
        frames_of(single), frames_of(StableVideoDiffusionPipeline.from_pretrained(tmp_path / "folder"))
    )


def test_a_given_component_takes_the_place_of_the_folders(folder):
    unet = mini_checkpoint().model.unet
    assert StableVideoDiffusionPipeline.from_pretrained(folder, unet=unet, device_map="cpu").unet is unet


@pytest.mark.parametrize(
    "argument",
    [{"trust_remote_code": True}, {"quantization_config": {"load_in_8bit": True}}, {"use_safetensors": False}],
)
def test_an_argument_that_runs_code_or_is_not_kept_is_refused(folder, argument):
    with raises(SettingError, "pipeline.unsupported", next(iter(argument))):
        StableVideoDiffusionPipeline.from_pretrained(folder, **argument)


@pytest.mark.parametrize("name", ["low_cpu_mem_usage", "max_memory", "offload_folder", "disable_mmap"])
def test_an_argument_without_effect_is_logged_by_name(folder, caplog, name):
    StableVideoDiffusionPipeline.from_pretrained(folder, use_safetensors=True, **{name: True})
    (record,) = caplog.records
    assert f" {name} " in record.getMessage()


def test_an_argument_for_the_hub_is_logged_by_a_single_file(tmp_path, caplog):
    with raises(CheckpointError):
        StableVideoDiffusionPipeline.from_single_file(tmp_path / "gone.safetensors", revision="main")
    assert any(" revision " in record.getMessage() for record in caplog.records)


def test_calls_of_a_loaded_pipeline_read_no_file(folder, tmp_path):
    """The folder is gone before the first call, and the second one opens no file, but to ask for free memory."""
    shutil.copytree(folder, tmp_path / "svd")
    pipeline = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "svd")
    shutil.rmtree(tmp_path / "svd")
    first, weights = frames_of(pipeline), {name: each.data_ptr() for name, each in pipeline.unet.named_parameters()}
    opened, watching = set(), [True]
    sys.addaudithook(lambda event, arguments: opened.add(arguments[0]) if watching and event == "open" else None)
    second = frames_of(pipeline)
    watching.clear()
    assert np.array_equal(first, second) and opened <= {"/proc/meminfo"}
    assert weights == {name: each.data_ptr() for name, each in pipeline.unet.named_parameters()}


def test_the_image_processor_is_saved_by_its_published_name(folder, tmp_path):
    """transformers 5 calls its class CLIPImageProcessorPil where torchvision is missing."""
    StableVideoDiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]
    saved = json.loads((tmp_path / "feature_extractor" / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "CLIPImageProcessor"


def changed(folder, tmp_path, file: str, **values):
    """Copy the folder with other values in one of its JSON files."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


def test_a_folder_that_names_code_of_its_own_is_refused(folder, tmp_path):
    copy = changed(folder, tmp_path, "model_index.json", unet=["my_unet", "UNetSpatioTemporalConditionModel2"])
    (copy / "unet" / "my_unet.py").write_text("raise SystemExit('this ran')")
    with raises(CheckpointError, "checkpoint.family"):
        StableVideoDiffusionPipeline.from_pretrained(copy)


def test_a_folder_with_another_scheduler_is_refused(folder, tmp_path):
    copy = changed(folder, tmp_path, "scheduler/scheduler_config.json", prediction_type="epsilon")
    with raises(SettingError, "pipeline.scheduler", "epsilon"):
        StableVideoDiffusionPipeline.from_pretrained(copy)


def test_a_folder_of_pickles_is_refused(folder, tmp_path):
    copy = tmp_path / "pickles"
    shutil.copytree(folder, copy)
    for file in (copy / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with raises(CheckpointError, "checkpoint.pickle"):
        StableVideoDiffusionPipeline.from_pretrained(copy)


def test_a_missing_folder_is_said_without_asking_the_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with raises(CheckpointError, "checkpoint.not_found", "nowhere"):
        StableVideoDiffusionPipeline.from_pretrained("nowhere")


def test_a_name_of_the_hub_is_fetched_with_the_files_that_are_read_alone(folder, monkeypatch):
    calls = []

    def fetch(name, **arguments):
        calls.append((name, arguments))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    StableVideoDiffusionPipeline.from_pretrained("org/svd", variant="fp16", revision="main", token="t")
    ((name, arguments),) = calls
    assert (name, arguments["revision"], arguments["token"]) == ("org/svd", "main", "t")
    assert "unet/*.fp16*.safetensors" in arguments["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in arguments["allow_patterns"])
