"""Sigmas against diffusers' scheduler, the published table and the laws of a schedule."""

from __future__ import annotations

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.diffusion.schedules import (
    ALIGN_YOUR_STEPS,
    SCHEDULES,
    check_sigmas,
    make_sigmas,
    validate_sigmas,
)
from svd_stages.svd_core.errors import SettingError
from tiny import SCHEDULER_CONFIG


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25, 30, 100])
def test_karras_equals_diffusers(steps):
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**SCHEDULER_CONFIG)
    scheduler.set_timesteps(steps)
    assert torch.allclose(make_sigmas("karras", steps), scheduler.sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", [4, 5, 10, 20, 25])
def test_align_your_steps_is_log_linear_between_the_knots(steps):
    numpy = pytest.importorskip("numpy")
    knots = numpy.log(ALIGN_YOUR_STEPS)
    wanted = numpy.exp(numpy.interp(numpy.linspace(0, 10, steps + 1), numpy.arange(11), knots))
    ours = make_sigmas("align_your_steps", steps)
    assert numpy.allclose(ours[:-1].numpy(), wanted[:-1], rtol=1e-5) and ours[-1] == 0


def test_exponential_steps_are_even_in_log():
    row = make_sigmas("exponential", 9)[:-1].log()
    assert torch.allclose(row.diff(), row.diff()[0].expand(8), rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 8, 13, 40])
def test_animate_lcm_equals_the_scheduler_that_it_was_written_from(steps):
    """AnimateLCM-SVD's scheduler is diffusers' one for consistency models, but ends in 0."""
    from diffusers import CMStochasticIterativeScheduler

    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=700.0, rho=7.0)
    scheduler.set_timesteps(steps)
    ours = make_sigmas("animate_lcm", steps)
    assert torch.allclose(ours[:-1], scheduler.sigmas[:-1].float(), rtol=1e-6, atol=0) and ours[-1] == 0


def test_animate_lcm_has_at_most_the_steps_that_it_was_distilled_with():
    with raises(SettingError, "setting", "animate_lcm", "40"):
        make_sigmas("animate_lcm", 41)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 25, 40])
def test_every_schedule_falls_from_sigma_max_to_zero(schedule, steps):
    row = make_sigmas(schedule, steps, sigma_min=0.01, sigma_max=80.0)
    assert row.shape == (steps + 1,) and row.dtype == torch.float32
    assert row[0].item() == pytest.approx(80.0, rel=1e-6) and row[-1] == 0
    assert torch.equal(check_sigmas(row), row)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sigma_min_has_an_effect(schedule):
    assert not torch.equal(make_sigmas(schedule, 5, sigma_min=0.1), make_sigmas(schedule, 5))


@pytest.mark.parametrize(
    "bad",
    [
        {"schedule": "linear"},
        {"steps": 0},
        {"sigma_min": 0.0},
        {"sigma_min": 800.0},
        {"sigma_max": float("nan")},
        {"sigma_max": float("inf")},
        {"rho": 0.0},
        {"rho": float("nan")},
    ],
)
def test_what_makes_no_schedule_is_refused(bad):
    with pytest.raises(SettingError):
        make_sigmas(**{"schedule": "karras", "steps": 5, **bad})


@pytest.mark.parametrize("row", [[1.0], [1.0, 2.0], [1.0, 1.0], [1.0, -0.1], [float("nan"), 0.0], [[1.0, 0.0]]])
def test_a_row_that_does_not_fall_is_refused(row):
    with pytest.raises(SettingError):
        check_sigmas(torch.tensor(row))


def test_a_row_that_rises_from_above_zero_may_be_walked_too():
    for row in ([0.1, 1.0, 5.0], [5.0, 1.0, 0.0]):
        assert validate_sigmas(torch.tensor(row, dtype=torch.float64)).tolist() == torch.tensor(row).tolist()


@pytest.mark.parametrize("row", [[0.0, 1.0], [1.0, 1.0], [1.0], [1.0, float("inf")], [3.0, 1.0, 2.0], [-1.0, 1.0]])
def test_a_row_that_cannot_be_walked_is_refused(row):
    with raises(SettingError, "setting", "sigmas"):
        validate_sigmas(torch.tensor(row))
