"""The rows that fit a schedule to scenes and measure it on others."""

from __future__ import annotations

import re

import pytest
import torch
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.diffusion.schedule_fitting import FitOptions
from svd_stages.svd_core.diffusion.schedules import read_sigmas
from svd_stages.svd_core.sampler_comparison import Candidate
from svd_stages.training.svd_nano import sampler_rows
from svd_stages.training.svd_nano.evaluate import SETTINGS, held_out_scenes, true_clip


def test_a_schedule_is_fitted_to_half_of_the_scenes_and_measured_on_the_others(monkeypatch):
    monkeypatch.setattr(sampler_rows, "FIT", FitOptions(2, fine_steps=6, rounds=1))
    monkeypatch.setattr(sampler_rows, "FIT_FRAMES", 2)
    monkeypatch.setattr(sampler_rows, "CONVERGED", Candidate("dpmpp_2m", "align_your_steps", 12))
    scenes = held_out_scenes(3, width=64, height=64)
    frames = [true_clip(scene, SETTINGS)[:1] for scene in scenes]
    checkpoint = load_checkpoint(EMBEDDED_FILE, "fp32", torch.device("cpu"))
    fitted, *measured = sampler_rows.schedule_rows(checkpoint, scenes, frames, SETTINGS)
    assert len(read_sigmas(fitted[2])) == 3
    errors = {}
    for name, _, text in measured:
        mean, each = text.split(": ")
        values = [float(value) for value in each.split(", ")]
        assert len(values) == 2 and float(mean) == pytest.approx(sum(values) / 2, abs=1e-4)
        errors[re.sub(r"latent error of (the )?(\w+).*", r"\2", name)] = float(mean)
    assert list(errors) == ["karras", "align_your_steps", "fitted"]
    assert errors["fitted"] < errors["align_your_steps"] < errors["karras"]
