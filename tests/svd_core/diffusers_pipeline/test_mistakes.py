"""Mistakes in the arguments of a pipeline: each is one short error of the right type that names what was typed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from error_checks import check_error
from PIL import Image
from svd_stages.svd_core.diffusers_pipeline.pipeline import StableVideoDiffusionPipeline
from svd_stages.svd_core.errors import CheckpointError, ImageError, SettingError
from tiny import mini_checkpoint, tiny_pipeline

LONGEST = 200
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
SHORT = {"image": PICTURE, "height": 64, "width": 64, "num_frames": 2, "num_inference_steps": 1}

CALLS = {
    "a path": ({"image": "rocket.png"}, TypeError, None, "image", "rocket.png", "load_image"),
    "a path object": ({"image": Path("rocket.png")}, TypeError, None, "image", "rocket.png"),
    "no image": ({"image": []}, ImageError, "image", "image"),
    "another range": ({"image": torch.full((3, 64, 64), 128.0)}, ImageError, "image.range", "image", 128),
    "channels last": ({"image": torch.zeros(64, 64, 3)}, ImageError, "image", "image", "(64, 64, 3)"),
    "odd height": ({"height": 100}, SettingError, "setting", "height", 100, 96, 104),
    "text as width": ({"width": "64"}, TypeError, None, "width", "'64'"),
    "no frames": ({"num_frames": 0}, SettingError, "setting", "num_frames", 0),
    "text as frames": ({"num_frames": "14"}, TypeError, None, "num_frames", "'14'"),
    "no steps": ({"num_inference_steps": 0}, SettingError, "setting", "num_inference_steps", 0),
    "rising sigmas": ({"sigmas": [1.0, 2.0]}, SettingError, "setting", "sigmas", "1, 2"),
    "name as sigmas": ({"sigmas": "karras"}, TypeError, None, "sigmas"),
    "text as guidance": ({"max_guidance_scale": "3"}, TypeError, None, "max_guidance_scale", "'3'"),
    "NaN as guidance": ({"min_guidance_scale": float("nan")}, SettingError, "setting", "min_guidance_scale", "nan"),
    "text as fps": ({"fps": "7"}, TypeError, None, "fps", "'7'"),
    "no fps": ({"fps": 0}, SettingError, "setting", "fps", 0),
    "no videos": ({"num_videos_per_prompt": 0}, SettingError, "setting", "num_videos_per_prompt", 0),
    "empty chunks": ({"decode_chunk_size": 0}, SettingError, "setting", "decode_chunk_size", 0),
    "a seed as generator": ({"generator": 42}, TypeError, None, "generator", 42, "torch.manual_seed"),
    "three generators": ({"generator": [torch.Generator()] * 3}, SettingError, "setting", "generator", 1, 3),
    "seed and generator": ({"generator": torch.Generator(), "seed": 1}, SettingError, "setting", "generator", "seed"),
    "seeds": ({"seed": [1, 2]}, TypeError, None, "seed", "[1, 2]"),
    "negative seed": ({"seed": -1}, SettingError, "setting", "seed", -1),
    "latents of another size": (
        {"latents": torch.zeros(1, 2, 4, 9, 9)},
        *(SettingError, "setting", "latents", "(1, 2, 4, 8, 8)", "(1, 2, 4, 9, 9)"),
    ),
    "output type": ({"output_type": "mp4"}, SettingError, "setting", "output_type", "'mp4'", "'pil'"),
    "callback tensors": (
        {"callback_on_step_end_tensor_inputs": ["image_latents"]},
        *(SettingError, "setting", "callback_on_step_end_tensor_inputs", "'image_latents'", "'latents'"),
    ),
    "callback result": (
        {"callback_on_step_end": lambda *arguments: None},
        *(TypeError, None, "callback_on_step_end", "NoneType"),
    ),
    "similar name": ({"steps": 25}, TypeError, None, "steps", "num_inference_steps"),
    "prompt": ({"prompt": "a rocket"}, TypeError, None, '"prompt"', "text prompt", "image="),
    "no prompt": ({"negative_prompt": None}, TypeError, None, '"negative_prompt"', "text prompt", "image="),
    "prompt as image": ({"image": "a rocket that flies"}, TypeError, None, "image", "a rocket that flies", "prompt"),
    "strength": ({"strength": 0.8}, TypeError, None, '"strength"', "noise_aug_strength"),
    "mask": ({"mask_image": PICTURE}, TypeError, None, '"mask_image"', "no mask"),
    "control": ({"control_image": PICTURE}, TypeError, None, '"control_image"', "no ControlNet"),
    "adapter": ({"ip_adapter_image": PICTURE}, TypeError, None, '"ip_adapter_image"', "image="),
    "a video": ({"video": [PICTURE]}, TypeError, None, '"video"', "image="),
    "images": ({"num_images_per_prompt": 2}, TypeError, None, '"num_images_per_prompt"', "num_videos_per_prompt"),
    "timesteps": ({"timesteps": [3, 1]}, TypeError, None, '"timesteps"', "sigmas="),
    "old callback": ({"callback": print}, TypeError, None, '"callback"', "callback_on_step_end"),
    "attention": ({"cross_attention_kwargs": {}}, TypeError, None, '"cross_attention_kwargs"', "set_attn_processor"),
    "misspelled frames": ({"num_frame": 2}, TypeError, None, '"num_frame"', "num_frames"),
    "other frames": ({"video_length": 2}, TypeError, None, '"video_length"', "num_frames"),
    "other guidance": ({"cfg_scale": 3}, TypeError, None, '"cfg_scale"', "min_guidance_scale", "max_guidance_scale"),
    "sgm noise": ({"cond_aug": 0.02}, TypeError, None, '"cond_aug"', "noise_aug_strength"),
    "two similar names": ({"guidance_scale": 3}, TypeError, None, "min_guidance_scale", "max_guidance_scale"),
    "sampler": ({"sampler": "heunn"}, SettingError, "setting", "sampler", "'heunn'", "'heun'"),
    "schedule": ({"schedule": "karas"}, SettingError, "setting", "schedule", "'karas'", "'karras'"),
    "guidance shape": ({"guidance_shape": "flat"}, SettingError, "setting", "guidance_shape", "'flat'", "'constant'"),
    "decode": ({"decode": "fast"}, SettingError, "setting", "decode", "'fast'", "'exact'"),
    "exact in chunks": (
        {"decode": "exact", "decode_chunk_size": 8},
        *(SettingError, "setting", "decode", "decode_chunk_size"),
    ),
    "negative context": ({"decode_context": -1}, SettingError, "setting", "decode_context", -1),
    "memory": ({"memory": "low"}, SettingError, "setting", "memory", "low", "offload"),
    "compile": ({"compile": True}, SettingError, "setting", "compile", "True", "regional"),
    "unit of vram": ({"vram": "4X"}, SettingError, "setting", "vram", "4X", "6G"),
}
PRETRAINED = {
    "missing folder": ("models", {}, CheckpointError, "checkpoint.not_found", "models", "model_index.json"),
    "a file": (__file__, {}, CheckpointError, "checkpoint.not_found", "from_single_file"),
    "another folder": ("folder/unet", {}, CheckpointError, "checkpoint.missing_parts", "model_index.json"),
    "name of a dtype": (
        *("folder", {"torch_dtype": "float16"}),
        *(SettingError, "setting", "torch_dtype", "'float16'", "torch.float16"),
    ),
    "dtypes": ("folder", {"dtype": {"unet": "fp16"}}, SettingError, "setting", "dtype", "'fp16'"),
    "missing variant": ("folder", {"variant": "bf16"}, SettingError, "checkpoint.variant", "variant", "bf16"),
    "safety checker": ("folder", {"safety_checker": None}, TypeError, None, '"safety_checker"', "SVD has none"),
    "misspelled name": ("svd-nan", {}, CheckpointError, "checkpoint.not_found", '"svd-nan"', '"svd-nano"'),
    "published checkpoint": ("svd-xt", {}, CheckpointError, "checkpoint.not_found", "svd-stages download svd-xt"),
    "published with a dot": (
        *("svd-xt-1.1", {}),
        *(CheckpointError, "checkpoint.not_found", '"svd-xt-1.1"', "svd-stages download svd-xt-1-1"),
    ),
    "variant of a file": ("svd-nano", {"variant": "fp16"}, SettingError, "checkpoint.variant", "'fp16'", "variant"),
    "unknown argument": ("folder", {"torch_dtpye": 1}, TypeError, None, "torch_dtpye", "torch_dtype"),
    "program": ("folder", {"custom_pipeline": "x"}, SettingError, "pipeline.unsupported", "custom_pipeline"),
    "proxies": ("folder", {"proxies": {"https": "x"}}, SettingError, "pipeline.unsupported", "proxies", "HTTPS_PROXY"),
    "devices": ("folder", {"device_map": "auto"}, SettingError, "pipeline.unsupported", "device_map", "'auto'"),
    "scheduler": (
        *("folder", {"scheduler": DDIMScheduler()}),
        *(SettingError, "pipeline.scheduler", "scheduler", "DDIMScheduler", "EulerDiscreteScheduler"),
    ),
}
SINGLE_FILE = {
    "missing file": ("mine.safetensors", {}, CheckpointError, "checkpoint.unreadable", "mine.safetensors"),
    "a folder": ("folder", {}, CheckpointError, "checkpoint.not_found", "folder", "from_pretrained"),
    "published checkpoint": ("svd-xt", {}, CheckpointError, "checkpoint.not_found", "svd-stages download svd-xt"),
    "an address": ("https://example.com/svd.safetensors", {}, CheckpointError, "checkpoint.not_found"),
    "unknown argument": ("svd.safetensors", {"variant": "fp16"}, TypeError, None, "from_single_file", "variant"),
    "config": ("svd.safetensors", {"config": "org/svd"}, SettingError, "pipeline.unsupported", "config"),
}


def check_mistake(call, kind, code, *facts) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    check_error(caught.value, code, *facts)
    assert len(str(caught.value)) <= LONGEST and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def pipeline():
    pipeline = StableVideoDiffusionPipeline(**tiny_pipeline(mini_checkpoint()).components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def working_folder(pipeline, tmp_path_factory):
    """A working folder with a checkpoint in `folder`."""
    path = tmp_path_factory.mktemp("work")
    pipeline.save_pretrained(path / "folder")
    return path


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_in_a_call(pipeline, name):
    arguments, *expected = CALLS[name]
    check_mistake(lambda: pipeline(**{**SHORT, **arguments}), *expected)


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_mistake_in_loading_a_folder(working_folder, monkeypatch, name):
    path, arguments, *expected = PRETRAINED[name]
    monkeypatch.chdir(working_folder)
    check_mistake(lambda: StableVideoDiffusionPipeline.from_pretrained(path, **arguments), *expected)


@pytest.mark.parametrize("name", SINGLE_FILE)
def test_a_mistake_in_loading_a_file(working_folder, monkeypatch, name):
    path, arguments, *expected = SINGLE_FILE[name]
    monkeypatch.chdir(working_folder)
    check_mistake(lambda: StableVideoDiffusionPipeline.from_single_file(path, **arguments), *expected)
