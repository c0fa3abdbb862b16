"""`image_to_video`: equal to the graph of the same settings, few frames deep, settings declared once."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from error_checks import raises
from PIL import Image
from svd_stages import headless
from svd_stages.headless.cli.main import main, make_parser
from svd_stages.headless.engines.video_graph import STAGE_NODES
from svd_stages.svd_core import execution
from svd_stages.svd_core.checkpoints.model_metadata import PRESET_NAMES, VideoDefaults
from svd_stages.svd_core.diffusion.sampling import ODE_SOLVERS, SOLVERS
from svd_stages.svd_core.diffusion.schedules import make_sigmas
from svd_stages.svd_core.diffusion.step_noise import brownian_noise
from svd_stages.svd_core.errors import NodeError, NonFiniteError, SettingError
from svd_stages.svd_core.media.metadata import read_metadata
from svd_stages.svd_core.models.step_cache import StepCache
from svd_stages.svd_core.models.unet import PreparedUNet
from svd_stages.svd_core.pipeline import (
    BROWNIAN_SAMPLERS,
    ODE_SAMPLERS,
    PRESETS,
    SAMPLERS,
    SCHEDULES,
    STAGES,
    VideoSettings,
    image_to_video,
)
from svd_stages.svd_core.runtime.runtime import LocalRuntime, RunWarning

ROCKET = headless.PACKAGE / "example_workflows" / "rocket.png"
QUICK = VideoSettings(width=64, height=64, num_frames=2, steps=2)
DEEPEST = 10
"""Frames of this package from `main` to the first one in models/unet.py."""


@pytest.fixture(scope="module")
def nano():
    return execution.load(LocalRuntime(device_name="cpu"), "svd-nano", "fp32")


def test_main_reaches_the_unet_in_few_frames(tmp_path, monkeypatch):
    package, depths = headless.PACKAGE, []

    def count_frames(self, *arguments, **options):
        frame, count = sys._getframe(1), 1  # 1: PreparedUNet.__init__ itself
        while frame.f_code is not main.__code__:
            count += Path(frame.f_code.co_filename).resolve().is_relative_to(package)
            frame = frame.f_back
        depths.append(count + 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(PreparedUNet, "__init__", count_frames)
    size = ["--width", "64", "--height", "64", "--frames", "2", "--steps", "1"]
    assert main(["animate", str(ROCKET), "-o", str(tmp_path / "a.mp4"), *size]) == 130
    assert depths and depths[0] <= DEEPEST


def test_stages_are_announced_in_order():
    checkpoint, announced = execution.load(LocalRuntime(device_name="cpu"), "svd-nano", "fp32"), []
    images = torch.rand(2, 96, 64, 3, generator=torch.Generator().manual_seed(0))
    videos = image_to_video(checkpoint, images, QUICK, LocalRuntime(device_name="cpu"), announced.append)
    assert announced == list(STAGES)
    assert [video.shape for video in videos] == [(2, 64, 64, 3)] * 2
    (second,) = image_to_video(checkpoint, images[1:], replace(QUICK, seed=1), LocalRuntime(device_name="cpu"))
    assert torch.equal(second, videos[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"fit": "crop", "decode_mode": "windowed", "decode_chunk": 1, "decode_context": 1},
        {"preset": "balanced"},
        {"preset": "fast", "steps": 4},
        {"sampler": "euler_ancestral", "schedule": "exponential", "steps": 3},
    ],
    ids=str,
)
def test_the_embedded_graph_makes_the_same_file(tmp_path, changes):
    settings = replace(QUICK, seed=3, **changes)
    mp4 = tmp_path / "clip.mp4"
    headless.animate_file(ROCKET, mp4, settings, headless.RunConfig())
    report = headless.run_graph(mp4, input_dir=ROCKET.parent, output_dir=tmp_path / "again")
    assert report.files[0].read_bytes() == mp4.read_bytes()


def test_the_video_of_a_portrait_has_its_shape_and_its_graph_the_numbers(tmp_path):
    portrait = tmp_path / "portrait.png"
    Image.open(ROCKET).rotate(90, expand=True).save(portrait)
    headless.animate_file(portrait, tmp_path / "a.mp4", replace(QUICK, width=None, height=128), headless.RunConfig())
    (resize,) = [node for node in _graph_of(tmp_path / "a.mp4").values() if node["class_type"] == "SVDResizeImage"]
    assert {name: resize["inputs"][name] for name in ("width", "height", "fit")} == {
        "width": 64,
        "height": 128,
        "fit": "crop",
    }
    report = headless.run_graph(tmp_path / "a.mp4", input_dir=tmp_path, output_dir=tmp_path / "again")
    assert report.files[0].read_bytes() == (tmp_path / "a.mp4").read_bytes()


def _graph_of(path: Path) -> dict:
    return json.loads(read_metadata(path)["prompt"])


def test_settings_are_declared_once():
    names = {field.name for field in fields(VideoSettings)}
    assert names <= set(inspect.signature(headless.animate).parameters)
    options = vars(make_parser().parse_args(["animate", "a.png"]))
    flagless = {field.name for field in fields(VideoSettings) if field.metadata.get("flag", "") is None}
    assert names - flagless <= set(options)
    assert {name: options[name] for name in names - flagless} == {
        name: getattr(VideoSettings(), name) for name in names - flagless
    }
    with raises(TypeError, None, "steeps"):
        headless.animate(ROCKET, steeps=1)


def test_text_is_read_as_the_number_that_validation_makes_of_it():
    animated = headless.animate(ROCKET, width=64, height=64, num_frames="2", steps="1", seed="3")
    assert torch.equal(animated, headless.animate(ROCKET, width=64, height=64, num_frames=2, steps=1, seed=3))


def test_a_preset_fills_what_is_not_given():
    plain = VideoSettings().with_defaults(VideoDefaults())
    assert (plain.sampler, plain.schedule, plain.steps) == ("euler", "karras", 25)
    given = VideoSettings(preset="balanced", steps=7).with_defaults(VideoDefaults())
    assert (given.sampler, given.schedule, given.steps) == ("dpmpp_2m", "align_your_steps", 7)
    assert PRESETS["reference"] == {name: getattr(plain, name) for name in PRESETS["reference"]}


def test_the_checkpoint_chooses_the_preset_that_is_not_given():
    assert tuple(PRESETS) == PRESET_NAMES and len({tuple(preset) for preset in PRESETS.values()}) == 1
    chosen = VideoSettings(guidance_to=100.0).with_defaults(VideoDefaults(preset="fast"))
    assert (chosen.preset, chosen.schedule, chosen.steps) == ("fast", "align_your_steps", 10)
    assert (chosen.guidance_from, chosen.guidance_to) == (0.28, 100.0)
    given = VideoSettings(preset="reference").with_defaults(VideoDefaults(preset="fast"))
    assert PRESETS["reference"] == {name: getattr(given, name) for name in PRESETS["reference"]}
    nano = execution.load(LocalRuntime(device_name="cpu"), "svd-nano", "fp32").model.defaults
    assert (nano.preset, VideoDefaults().preset) == ("fast", "reference")


def test_guidance_acts_between_its_noise_levels():
    checkpoint = execution.load(LocalRuntime(device_name="cpu"), "svd-nano", "fp32")
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))

    def video(**changes) -> torch.Tensor:
        settings = replace(QUICK, **{"preset": "reference", "steps": 4, "max_guidance": 3.0, **changes})
        return image_to_video(checkpoint, image, settings, LocalRuntime(device_name="cpu"))[0]

    plain, everywhere = video(), video(guidance_from=0.001, guidance_to=700.0)
    assert torch.equal(plain, everywhere)
    nowhere = video(guidance_from=800.0)
    assert torch.equal(nowhere, video(min_guidance=1.0, max_guidance=1.0)) and not torch.equal(nowhere, plain)
    for changes in ({"guidance_from": 5.0, "guidance_to": 5.0}, {"preset": "fast", "guidance_from": 6.0}):
        with raises(SettingError, "setting", "guidance_from", "guidance_to"):
            video(**changes)


@pytest.mark.parametrize(
    ("sampling", "warns"),
    [
        ({"sampler": "dpmpp_2m", "schedule": "karras", "steps": 3}, True),
        ({"sampler": "dpmpp_2m", "schedule": "karras", "steps": 14}, True),
        ({"sampler": "dpmpp_2m", "schedule": "karras", "steps": 15}, False),
        ({"sampler": "dpmpp_2m", "schedule": "karras", "steps": 1}, False),
        ({"sampler": "dpmpp_2m", "schedule": "align_your_steps", "steps": 3}, False),
        ({"sampler": "dpmpp_2m", "sigmas": (700.0, 4.0, 0.0)}, False),
        ({"sampler": "euler", "schedule": "karras", "steps": 3}, False),
        ({"sampler": "heun", "schedule": "karras", "steps": 3}, False),
    ],
    ids=str,
)
def test_a_multistep_sampler_on_few_karras_steps_gives_a_warning(nano, sampling, warns):
    notes: list[RunWarning] = []
    settings = replace(QUICK, max_guidance=1.0, preset="reference", **sampling)
    image_to_video(nano, torch.rand(1, 64, 64, 3), settings, LocalRuntime(device_name="cpu", on_note=notes.append))
    facts = {"sampler": "dpmpp_2m", "steps": sampling.get("steps")}
    assert [(note.code, note.facts) for note in notes] == [("sampling.few_karras_steps", facts)] * warns


def test_the_step_cache_of_the_settings_is_that_of_the_model(nano):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    quick = replace(QUICK, steps=4)

    def video(settings: VideoSettings, cache: StepCache | None = None) -> torch.Tensor:
        given = replace(nano, model=replace(nano.model, step_cache=cache))
        return image_to_video(given, image, settings, LocalRuntime(device_name="cpu"))[0]

    plain, cached = video(quick), video(replace(quick, step_cache=2))
    assert torch.equal(cached, video(quick, StepCache(2))) and not torch.equal(cached, plain)
    assert torch.equal(plain, video(replace(quick, step_cache=1)))
    with raises(SettingError, "setting", "step_cache", 0):
        video(replace(quick, step_cache=0))


def test_the_names_of_schedules_and_samplers_are_those_of_the_library():
    assert tuple(SOLVERS) == SAMPLERS
    assert ODE_SOLVERS == ODE_SAMPLERS
    assert {name for name in SOLVERS if SOLVERS[name].make_noise is brownian_noise} == set(BROWNIAN_SAMPLERS)
    for schedule in SCHEDULES:
        assert len(make_sigmas(schedule, 4)) == 5
    assert all(preset["sampler"] in SAMPLERS and preset["schedule"] in SCHEDULES for preset in PRESETS.values())


def test_settings_without_values_are_those_of_the_checkpoint():
    settings = VideoSettings(height=64, decode_mode=None).with_defaults(VideoDefaults())
    assert (settings.width, settings.height, settings.num_frames) == (128, 64, 25)
    assert settings.decode_mode == "exact"
    portrait = VideoSettings().with_defaults(VideoDefaults(), (1080, 1920))
    assert (portrait.width, portrait.height, portrait.fit) == (576, 1024, "crop")
    with raises(SettingError, "setting", "width", 100):
        VideoSettings(width=100).with_defaults(VideoDefaults())
    with raises(SettingError, "setting", "fps", 7.5):
        VideoSettings(fps=7.5).with_defaults(VideoDefaults())


@pytest.mark.parametrize("stage", ["load", "embed", "encode", "sample", "decode"])
def test_an_error_names_the_node_of_its_stage(stage, monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise NonFiniteError("broken", code="numbers.latent")

    monkeypatch.setattr(execution, stage, fail)
    with pytest.raises(NodeError) as caught:
        headless.animate_file(ROCKET, tmp_path / "a.mp4", QUICK, headless.RunConfig())
    assert (caught.value.class_type, caught.value.code) == (STAGE_NODES[stage], "numbers.latent")
    assert caught.value.node_id == {"load": "2", "embed": "4", "encode": "6", "sample": "10", "decode": "11"}[stage]
    assert list(tmp_path.iterdir()) == []


def test_names_of_version_0_1_are_deprecated_aliases():
    for old, new in headless._DEPRECATED.items():
        with pytest.warns(DeprecationWarning):
            alias = getattr(headless, old)
        assert alias is getattr(headless, new)
    assert all(getattr(headless, name) is not None for name in headless.__all__)


def test_the_library_lists_its_public_names():
    import svd_stages.svd_core as library

    assert all(callable(getattr(library, name)) for name in library.__all__)
    with pytest.raises(AttributeError):
        library.nothing  # noqa: B018
