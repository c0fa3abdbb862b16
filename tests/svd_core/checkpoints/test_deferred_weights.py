"""Weights that a video with one CLIP token never uses: left on disk, and read when they are needed."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chain import Settings, call, conditioned, sampled
from error_checks import raises
from svd_stages.svd_core.checkpoints.convert import open_in_memory
from svd_stages.svd_core.checkpoints.deferred_weights import is_deferrable
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.errors import CheckpointError
from svd_stages.svd_core.models.components import Checkpoint

SETTINGS = Settings(frames=2, steps=2)
IMAGE = torch.rand((1, 64, 64, 3), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def deferred(one_file: Path) -> Checkpoint:
    return load_checkpoint(one_file, "fp32", defer_unused=True)


def names_of(checkpoint: Checkpoint) -> set[str]:
    return set(dict(checkpoint.model.unet.named_parameters()))


def test_only_queries_keys_and_norms_of_cross_attention_are_deferred(tiny, deferred):
    removed = names_of(tiny) - names_of(deferred)
    assert removed == {name for name in names_of(tiny) if is_deferrable(name)}
    blocks = [name for name in names_of(tiny) if name.endswith("attn2.to_q.weight")]
    assert len(removed) == 4 * len(blocks) > 0  # to_q, to_k and the norm's two
    assert all("transformer_blocks." in name and (".attn2.to_" in name or ".norm2." in name) for name in removed)


def test_a_video_is_the_same_without_them(tiny, deferred):
    expected = sampled(tiny, IMAGE, SETTINGS)["samples"]
    result = sampled(deferred, IMAGE, SETTINGS)["samples"]
    assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert names_of(deferred) < names_of(tiny)


@pytest.mark.parametrize("form", ["one_file", "folder"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_that_are_read_later_equal_those_read_at_once(request, form, precision, same_modules):
    path = request.getfixturevalue(form)
    deferred = load_checkpoint(path, precision, defer_unused=True)
    deferred.model.load_deferred()
    same_modules(deferred, load_checkpoint(path, precision))
    deferred.model.load_deferred()  # again does nothing


def test_a_conditioning_of_several_tokens_reads_them(tiny, deferred):
    positive, negative, empty = conditioned(tiny, IMAGE, SETTINGS)
    doubled = [
        [[torch.cat([embeds, 0.5 * embeds], dim=1), extra] for embeds, extra in side] for side in (positive, negative)
    ]
    wires = {"positive": doubled[0], "negative": doubled[1], "latent": empty, "seed": 1, "steps": 2, "noise": "comfyui"}
    wires |= {"min_guidance": 1.0, "max_guidance": 3.0}
    (expected,) = call("SVDEulerSampler", model=tiny.model, **wires)
    (result,) = call("SVDEulerSampler", model=deferred.model, **wires)
    assert (result["samples"] - expected["samples"]).abs().max() <= 1e-5 * expected["samples"].abs().max()
    assert names_of(deferred) == names_of(tiny)


def test_a_unet_with_hooks_reads_them_and_is_called_unoptimized(one_file, deferred):
    full = load_checkpoint(one_file, "fp32")
    for each in (full, deferred):
        each.model.unet.mid_block.register_forward_hook(lambda *arguments: None)
    assert torch.equal(*(sampled(each, IMAGE, SETTINGS)["samples"] for each in (full, deferred)))
    assert names_of(deferred) == names_of(full)


def test_a_model_that_is_saved_or_converted_is_complete(tiny, deferred):
    opened = open_in_memory(deferred)
    assert set(opened.unet.tensors) == set(tiny.model.unet.state_dict())


def test_copies_with_other_options_share_them(deferred, tiny):
    replace(deferred.model).load_deferred()
    deferred.model.load_deferred()
    assert names_of(deferred) == names_of(tiny)


@pytest.mark.parametrize("fault", ["removed", "longer", "touched", "replaced"])
def test_a_checkpoint_that_was_removed_or_changed_is_an_error(one_file, tmp_path, fault):
    path = Path(shutil.copyfile(one_file, tmp_path / "model.safetensors"))
    deferred = load_checkpoint(path, "fp32", defer_unused=True)
    if fault == "removed":
        path.unlink()
    elif fault == "longer":
        path.write_bytes(path.read_bytes() + b" ")
    elif fault == "touched":
        os.utime(path, ns=(1, 1))
    else:
        os.replace(shutil.copy2(path, tmp_path / "copy"), path)  # the same size and time
    with raises(CheckpointError, "checkpoint.changed", path.name):
        replace(deferred.model).load_deferred()
