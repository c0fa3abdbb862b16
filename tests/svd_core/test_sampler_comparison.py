"""Samplers compared without truth: exact counts of network calls, errors that fall, and the texts of candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.models.unet import PreparedUNet
from svd_stages.svd_core.pipeline import PRESETS, VideoSettings, image_to_video
from svd_stages.svd_core.runtime.runtime import LocalRuntime
from svd_stages.svd_core.sampler_comparison import (
    REFERENCE,
    SAMPLERS,
    Candidate,
    ComparedVideo,
    compare_samplers,
    count_all_calls,
)

SETTINGS = VideoSettings(width=64, height=64, num_frames=2, seed=3)
RUNTIME = LocalRuntime(device_name="cpu")


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(EMBEDDED_FILE, "fp32", "cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(1, 80, 96, 3, generator=torch.Generator("cpu").manual_seed(0))


@pytest.fixture(scope="module")
def video(checkpoint, images) -> ComparedVideo:
    return ComparedVideo(checkpoint, images, SETTINGS, RUNTIME)


@pytest.mark.parametrize(
    ("text", "whole", "cached"),
    [
        ("euler:karras:4", 8, 0),
        ("heun:karras:3", 10, 0),  # the step to 0 takes one call of each side
        ("dpmpp_2m:align_your_steps:5", 10, 0),
        ("euler:karras:4:guidance=0-0.1", 5, 0),  # of 700, 65, 2.1 and 0.002 only the last level is inside
        ("euler:karras:5:cache=2", 6, 4),
        ("heun:karras:3:cache=3", 4, 6),
        ("euler:align_your_steps:10:guidance=0.28-5.42:cache=2", None, None),
    ],
)
def test_the_counted_calls_are_those_of_the_network(video, monkeypatch, text, whole, cached):
    made = {"whole": 0, "all": 0}

    def counted(name: str, key: str) -> None:
        method = getattr(PreparedUNet, name)

        def call(self, *arguments):
            made[key] += 1
            return method(self, *arguments)

        monkeypatch.setattr(PreparedUNet, name, call)

    counted("_deep_blocks", "whole")
    counted("_last_blocks", "all")
    candidate = Candidate.parse(text)
    calls = video.network_calls(candidate)
    assert whole is None or (calls.whole, calls.cached) == (whole, cached)
    video.sample(candidate)
    assert (calls.whole, calls.total) == (made["whole"], made["all"])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_the_video_of_the_pipeline(checkpoint, images, video, name):
    few = {"steps": 3} if PRESETS[name]["schedule"] == "karras" else {}
    candidate = replace(Candidate.of_preset(name), **few)
    settings = replace(SETTINGS, **candidate.settings)
    (expected,) = image_to_video(checkpoint, images, settings, RUNTIME)
    assert torch.equal(video.sample(candidate).images, expected)


def test_errors_fall_to_that_of_the_converged_solution_and_calls_are_reported(video):
    converged = Candidate("dpmpp_2m", "karras", 24)
    texts = ("euler:karras:3", "euler:karras:6", "euler:karras:12", "dpmpp_2m:karras:24")
    candidates = [Candidate.parse(text) for text in texts]
    reported: list[int] = []
    exact, *rows = compare_samplers([video], candidates, converged, reported.append)
    assert (exact.candidate, exact.error, exact.calls.total) == (converged, 0.0, 48)
    assert [row.candidate for row in rows] == candidates and rows[-1].error == 0.0 and rows[-1].psnr == exact.psnr
    assert rows[0].error > rows[1].error > rows[2].error > 0
    assert rows[0].psnr < rows[1].psnr < rows[2].psnr
    assert all(row.seconds > 0 for row in rows)
    assert reported == sorted(reported)
    assert reported[-1] == count_all_calls([video], [converged, *candidates]) == 48 + 6 + 12 + 24 + 48


def test_rows_of_several_videos_are_means(checkpoint, images, video):
    other = ComparedVideo(checkpoint, images.flip(1), replace(SETTINGS, seed=4), RUNTIME)
    converged, candidate = Candidate("dpmpp_2m", "karras", 6), Candidate("euler", "karras", 2)
    one, two, both = (
        list(compare_samplers(videos, [candidate], converged))[1] for videos in ([video], [other], [video, other])
    )
    assert both.error == pytest.approx((one.error + two.error) / 2) and both.calls == one.calls
    assert both.psnr == pytest.approx((one.psnr + two.psnr) / 2)
    assert torch.equal(both.videos[1].latents, two.videos[0].latents)


@pytest.mark.parametrize("text", ["euler:karras:25", "heun:exponential:7:guidance=0.28-5.42", "ddim:karras:3:cache=2"])
def test_a_candidate_is_read_as_it_is_written(text):
    candidate = Candidate.parse(text)
    assert candidate.text == text and Candidate.parse(candidate.text) == candidate


def test_presets_are_candidates_and_are_recognised():
    assert Candidate.parse("reference") == REFERENCE == Candidate("euler", "karras", 25)
    assert Candidate.parse("balanced").preset == "balanced" and Candidate.parse("fast").text.endswith(
        "guidance=0.28-5.42"
    )
    cached = Candidate.parse("fast:cache=3")
    assert (cached.step_cache, cached.preset, cached.sampler) == (3, None, "euler")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", ("PRESET", "SAMPLER:SCHEDULE:STEPS")),
        ("blanced", ('"blanced"', "balanced")),
        ("euler:karras", ('"euler:karras"', "SAMPLER:SCHEDULE:STEPS")),
        ("euler:karras:many", ("many", "STEPS")),
        ("euler:karras:0", ("1 or more", 0)),
        ("dpmpp2m:karras:10", ("dpmpp2m", '"dpmpp_2m"')),
        ("dpmpp_2m_sde:karras:10", ("dpmpp_2m_sde", *SAMPLERS)),
        ("euler:karas:10", ("karas", '"karras"')),
        ("euler:karras:10:guidance=5", ("guidance=FROM-TO",)),
        ("euler:karras:10:guidance=5-1", ("5.0", "1.0")),
        ("euler:karras:10:cache=x", ("cache=N",)),
        ("euler:karras:10:cache=0", ("interval", 0)),
        ("fast:cash=2", ("fast:cash=2", "cache=N")),
    ],
)
def test_a_wrong_candidate_is_refused_with_the_fix(text, facts):
    with raises(SettingError, "setting", *facts):
        Candidate.parse(text)
