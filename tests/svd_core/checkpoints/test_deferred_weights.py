"""Weights that one CLIP token never uses: left on the disk, read when something uses them, and never missed."""

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
from svd_stages.svd_core.checkpoints.deferred_weights import is_idle
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.errors import CheckpointError
from svd_stages.svd_core.models.components import Checkpoint

SETTINGS = Settings(frames=2, steps=2)
IMAGE = torch.rand((1, 64, 64, 3), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def defer_unused(one_file: Path) -> Checkpoint:
    return load_checkpoint(one_file, "fp32", defer_unused=True)


def names_of(checkpoint: Checkpoint) -> set[str]:
    return set(dict(checkpoint.model.unet.named_parameters()))


def all_equal(checkpoint: Checkpoint, other: Checkpoint) -> bool:
    ours, theirs = (dict(each.model.unet.named_parameters()) for each in (checkpoint, other))
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_queries_keys_and_norms_of_cross_attention_alone_are_left_out(tiny, defer_unused):
    idle = names_of(tiny) - names_of(defer_unused)
    assert idle == {name for name in names_of(tiny) if is_idle(name)}
    blocks = [name for name in names_of(tiny) if name.endswith("attn2.to_q.weight")]
    assert len(idle) == 4 * len(blocks) > 0  # to_q, to_k and the norm's two
    assert all("transformer_blocks." in name and (".attn2.to_" in name or ".norm2." in name) for name in idle)


def test_a_video_does_not_miss_them(tiny, defer_unused):
    wanted = sampled(tiny, IMAGE, SETTINGS)["samples"]
    found = sampled(defer_unused, IMAGE, SETTINGS)["samples"]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert names_of(defer_unused) < names_of(tiny)


@pytest.mark.parametrize("form", ["one_file", "folder"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_read_later_they_are_what_they_would_have_been(request, form, precision):
    path = request.getfixturevalue(form)
    defer_unused = load_checkpoint(path, precision, defer_unused=True)
    defer_unused.model.load_deferred()
    assert all_equal(defer_unused, load_checkpoint(path, precision))
    defer_unused.model.load_deferred()  # again does nothing


def test_a_conditioning_of_several_tokens_has_them_read(tiny, defer_unused):
    positive, negative, empty = conditioned(tiny, IMAGE, SETTINGS)
    more = [
        [[torch.cat([embeds, 0.5 * embeds], dim=1), extra] for embeds, extra in side] for side in (positive, negative)
    ]
    wires = {"positive": more[0], "negative": more[1], "latent": empty, "seed": 1, "steps": 2, "noise": "comfyui"}
    wires |= {"min_guidance": 1.0, "max_guidance": 3.0}
    (wanted,) = call("SVDEulerSampler", model=tiny.model, **wires)
    (found,) = call("SVDEulerSampler", model=defer_unused.model, **wires)
    assert (found["samples"] - wanted["samples"]).abs().max() <= 1e-5 * wanted["samples"].abs().max()
    assert names_of(defer_unused) == names_of(tiny)


def test_a_changed_network_has_them_read_and_is_called_as_it_is(one_file, defer_unused):
    full = load_checkpoint(one_file, "fp32")
    for each in (full, defer_unused):
        each.model.unet.mid_block.register_forward_hook(lambda *told: None)
    assert torch.equal(*(sampled(each, IMAGE, SETTINGS)["samples"] for each in (full, defer_unused)))
    assert names_of(defer_unused) == names_of(full)


def test_a_model_that_is_written_or_handed_on_is_complete(tiny, defer_unused):
    opened = open_in_memory(defer_unused)
    assert set(opened.unet.tensors) == set(tiny.model.unet.state_dict())


def test_copies_with_other_options_share_them(defer_unused, tiny):
    copy = replace(defer_unused.model)
    copy.load_deferred()
    defer_unused.model.load_deferred()
    assert names_of(defer_unused) == names_of(tiny)


@pytest.mark.parametrize("fault", ["gone", "another", "touched"])
def test_a_checkpoint_that_is_not_there_any_more_is_an_error_that_says_so(one_file, tmp_path, fault):
    path = tmp_path / "model.safetensors"
    shutil.copyfile(one_file, path)
    defer_unused = load_checkpoint(path, "fp32", defer_unused=True)
    if fault == "gone":
        path.unlink()
    elif fault == "another":
        path.write_bytes(path.read_bytes() + b" ")
    else:
        os.utime(path, ns=(1, 1))
    with raises(CheckpointError, "checkpoint.changed", path.name):
        defer_unused.model.load_deferred()
