"""Schedulers of diffusers on our pipeline: those that fit SVD give diffusers' videos, the others are refused."""

from __future__ import annotations

import logging

import diffusers
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from error_checks import raises
from PIL import Image
from svd_stages.svd_core.diffusers_pipeline.pipeline import StableVideoDiffusionPipeline
from svd_stages.svd_core.diffusers_pipeline.scheduler_solver import check_fits
from svd_stages.svd_core.errors import SettingError
from tiny import SCHEDULER_CONFIG, mini_checkpoint, tiny_pipeline

SETTINGS = {"height": 64, "width": 64, "num_frames": 3, "num_inference_steps": 4, "output_type": "latent"}
V = {"sigma_max": 700.0, "sigma_data": 1.0, "prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def pipelines():
    """(ours, diffusers') with the same modules."""
    theirs = tiny_pipeline(mini_checkpoint())
    ours = StableVideoDiffusionPipeline(**theirs.components)
    ours.set_progress_bar_config(disable=True)
    return ours, theirs


@pytest.fixture
def ours(pipelines):
    """Return our pipeline, and give it its own scheduler again."""
    kept = pipelines[0].scheduler
    yield pipelines[0]
    pipelines[0].scheduler = kept


def latents(pipeline, **changes) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    picture = Image.radial_gradient("L").convert("RGB")
    return pipeline(picture, **{**SETTINGS, "generator": generator, **changes}).frames


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    "options", [{}, {"solver_order": 3}, {"solver_type": "heun"}, {"sigma_schedule": "exponential"}], ids=str
)
def test_a_scheduler_that_fits_gives_diffusers_latents(ours, pipelines, monkeypatch, options):
    _, theirs = pipelines
    monkeypatch.setattr(theirs, "scheduler", EDMDPMSolverMultistepScheduler(**V, **options))
    ours.scheduler = EDMDPMSolverMultistepScheduler(**V, **options)
    assert far(latents(ours), latents(theirs)) <= 1e-5
    assert far(latents(ours), latents(ours)) == 0  # the scheduler's state is not ours


def test_the_default_of_sigma_data_is_replaced_with_a_warning(ours, caplog):
    ours.scheduler = EDMDPMSolverMultistepScheduler(**V)
    wanted = latents(ours)
    ours.scheduler = EDMDPMSolverMultistepScheduler.from_config(EulerDiscreteScheduler(**SCHEDULER_CONFIG).config)
    assert ours.scheduler.config.sigma_data == 0.5
    caplog.clear()
    assert far(latents(ours), wanted) <= 1e-6
    assert {record.levelno for record in caplog.records if "sigma_data" in record.getMessage()} == {logging.WARNING}
    ours.scheduler = EDMDPMSolverMultistepScheduler(**{**V, "sigma_data": 0.5})
    with raises(SettingError, "pipeline.scheduler", "EDMDPMSolverMultistepScheduler"):
        latents(ours)


def test_the_noise_of_a_scheduler_has_the_seed(ours):
    ours.scheduler = EDMDPMSolverMultistepScheduler(**V, algorithm_type="sde-dpmsolver++")
    first, same, other = (latents(ours, generator=None, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.allclose(first, other)


def test_only_a_scheduler_that_adds_noise_asks_the_generator(ours):
    states = []
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        ours.scheduler = EDMDPMSolverMultistepScheduler(**V, algorithm_type=algorithm)
        generator = torch.Generator().manual_seed(0)
        latents(ours, generator=generator)
        states.append(generator.get_state())
    assert not torch.equal(*states)


def test_each_video_has_the_noise_of_its_own_generator(ours):
    """With starting noise of the caller only the noise of steps comes from the second video's generator."""
    ours.scheduler = EDMDPMSolverMultistepScheduler(**V, algorithm_type="sde-dpmsolver++")
    start = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(5))

    def videos(*seeds: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return latents(ours, num_videos_per_prompt=2, generator=generators, latents=start)

    first, second = videos(0, 1), videos(0, 2)
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])


class WrongInput(EDMDPMSolverMultistepScheduler):
    """c_in = 1 / sigma, which is SVD's at large noise levels only."""

    def precondition_inputs(self, sample, sigma):
        return sample / sigma


def test_the_scaling_is_checked_at_small_noise_levels_too():
    with raises(SettingError, "pipeline.scheduler", "WrongInput", "input"):
        check_fits(WrongInput(**V))


def test_edm_euler_fits(ours, pipelines):
    wanted = latents(ours)
    ours.scheduler = EDMEulerScheduler(**V)
    assert far(latents(ours), wanted) <= 1e-4  # written in another order


@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "HeunDiscreteScheduler",
     "LCMScheduler", "UniPCMultistepScheduler", "EulerAncestralDiscreteScheduler"],
)  # fmt: skip
def test_schedulers_of_other_models_are_refused_by_name(ours, name):
    ours.scheduler = getattr(diffusers, name)()
    with raises(SettingError, "pipeline.scheduler", name, "EDMDPMSolverMultistepScheduler"):
        latents(ours)


@pytest.mark.parametrize("changes", [{"prediction_type": "epsilon"}, {"sigma_data": 0.5}], ids=str)
@pytest.mark.parametrize("kind", [EDMDPMSolverMultistepScheduler, EDMEulerScheduler])
def test_another_parameterization_is_refused(kind, changes):
    with raises(SettingError, "pipeline.scheduler", kind.__name__):
        check_fits(kind(**{**V, **changes}))


def test_a_sampler_or_noise_levels_beside_a_scheduler_are_refused(ours):
    ours.scheduler = EDMDPMSolverMultistepScheduler(**V)
    for changes in ({"sampler": "euler"}, {"schedule": "exponential"}, {"sigmas": [700.0, 1.0]}):
        with raises(SettingError, "pipeline.scheduler", "EDMDPMSolverMultistepScheduler"):
            latents(ours, **changes)
