"""ComfyUI's schedules: their laws, and some of core's own numbers. All of them beside core itself: tests/comfyui."""

from __future__ import annotations

import time

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.diffusion.schedules import (
    SCHEDULERS,
    align_your_steps_part,
    core_sigmas,
    exponential_sigmas,
    flip_sigmas,
    karras_sigmas,
    level_table,
    sampler_steps,
    slice_sigmas,
    truncate_sigmas,
)
from svd_stages.svd_core.errors import SettingError

TABLE = level_table(0.002, 700.0)
CORE = {
    "simple": (699.9999, 28.68756, 1.17568, 0.04818199, 0),
    "sgm_uniform": (699.9999, 28.77935, 1.183215, 0.04864597, 0),
    "karras": (700.0001, 70.54086, 2.269119, 0.002000004, 0),
    "exponential": (699.9999, 9.932883, 0.140946, 0.002, 0),
    "ddim_uniform": (29.43017, 1.206114, 0.04942924, 0.00202572, 0),
    "beta": (699.9999, 73.85252, 1.1908, 0.01895669, 0),
    "normal": (699.9999, 9.932883, 0.140946, 0.002, 0),
    "linear_quadratic": (699.9999, 691.2499, 682.4999, 507.5, 0),
    "kl_optimal": (700.0049, 1.730908, 0.5784937, 0.002, 0),
}
"""What core's calculate_sigmas gives for 4 steps of its ModelSamplingContinuousEDM."""


def falls(row: torch.Tensor) -> bool:
    return bool((row[:-1] > row[1:]).all())


@pytest.mark.parametrize("scheduler", CORE)
def test_a_schedule_has_cores_numbers(scheduler):
    assert core_sigmas(scheduler, 4, TABLE).tolist() == pytest.approx(CORE[scheduler], rel=1e-5)
    assert list(CORE) == list(SCHEDULERS)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25, 100])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_falls_to_zero(scheduler, steps):
    row = core_sigmas(scheduler, steps, TABLE)
    assert falls(row) and row[-1] == 0 and row.dtype == torch.float32
    if scheduler not in ("ddim_uniform", "beta"):
        assert len(row) == steps + 1
    if scheduler != "ddim_uniform":
        assert row[0].item() == pytest.approx(700.0, rel=1e-4)


def test_beta_puts_even_shares_of_the_distribution_between_its_levels():
    middles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = (middles * (1 - middles)) ** (0.6 - 1)
    shares = torch.cumsum(density, 0) / density.sum()
    row = core_sigmas("beta", 8, TABLE)[:-1]
    places = [(TABLE - sigma).abs().argmin().item() for sigma in row]
    found = [shares[min(199_999, int(place / 999 * 200_000))].item() for place in places]
    assert found == pytest.approx([1 - step / 8 for step in range(8)], abs=0.01)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_million_steps_are_no_work(scheduler):
    """The schedule of 10,000 steps with a denoise of 0.01."""
    started = time.process_time()
    row = core_sigmas(scheduler, 1_000_000, TABLE)
    assert time.process_time() - started < 20
    if scheduler in ("beta", "ddim_uniform"):
        assert torch.equal(row, torch.cat([TABLE.flip(0)[: len(row) - 1], torch.zeros(1)])) and len(row) >= 1000


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_denoise_below_one_takes_the_end_of_a_longer_row(scheduler):
    assert torch.equal(truncate_sigmas(scheduler, 10, TABLE, 0.5), core_sigmas(scheduler, 20, TABLE)[-11:])
    assert torch.equal(truncate_sigmas(scheduler, 10, TABLE, 1.0), core_sigmas(scheduler, 10, TABLE))
    assert len(truncate_sigmas(scheduler, 10, TABLE, 0.0)) == 0


@pytest.mark.parametrize(("steps", "levels", "highest"), [(7, 9, 665.12), (12, 14, 682.34), (30, 32, 631.98)])
def test_ksampler_walks_all_of_a_row_that_is_longer_than_asked(steps, levels, highest):
    """The numbers are those of core's comfy.samplers.KSampler."""
    row = sampler_steps("ddim_uniform", steps, TABLE, 1.0)
    assert len(row) == levels and row[0].item() == pytest.approx(highest, rel=1e-5)
    assert torch.equal(sampler_steps("ddim_uniform", steps, TABLE, 0.99995), row)
    assert len(truncate_sigmas("ddim_uniform", steps, TABLE, 1.0)) == steps + 1
    assert torch.equal(sampler_steps("karras", steps, TABLE, 0.5), truncate_sigmas("karras", steps, TABLE, 0.5))


def test_two_parts_of_a_row_meet_and_make_the_whole():
    row = core_sigmas("karras", 6, TABLE)
    first, second = slice_sigmas(row, 0, 4, keep_noise=True), slice_sigmas(row, 4, 10000, keep_noise=False)
    assert torch.equal(first, row[:5]) and torch.equal(second, row[4:])
    assert torch.equal(slice_sigmas(row, 0, 6, keep_noise=False), row)


def test_a_part_that_keeps_no_noise_ends_in_zero_and_leaves_the_row_alone():
    row = core_sigmas("karras", 6, TABLE)
    kept = row.clone()
    part = slice_sigmas(row, 1, 3, keep_noise=False)
    assert part.tolist() == [*row[1:3].tolist(), 0.0]
    assert torch.equal(row, kept)


@pytest.mark.parametrize(("start", "end"), [(6, 10000), (20, 10000), (0, 0), (4, 3)])
def test_a_part_without_steps_is_empty(start, end):
    assert len(slice_sigmas(core_sigmas("karras", 6, TABLE), start, end, keep_noise=True)) == 0


def test_a_row_turned_round_rises_from_above_zero():
    row = torch.tensor([5.0, 1.0, 0.0])
    assert flip_sigmas(row).tolist() == pytest.approx([0.0001, 1.0, 5.0])
    assert flip_sigmas(torch.tensor([5.0, 1.0])).tolist() == [1.0, 5.0]
    assert len(flip_sigmas(torch.empty(0))) == 0
    assert row.tolist() == [5.0, 1.0, 0.0]


def test_align_your_steps_with_a_share_of_the_steps_is_the_end_of_the_row():
    whole = align_your_steps_part(10, 1.0)
    assert whole.tolist() == pytest.approx([700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0])
    assert torch.equal(align_your_steps_part(10, 0.5), whole[-6:])
    assert len(align_your_steps_part(10, 0.0)) == 0


@pytest.mark.parametrize("rho", [0.0, 0.001, 0.05, -1.0])
def test_a_rho_too_small_for_float32_is_refused(rho):
    with raises(SettingError, "setting", "rho", "0.074", rho):
        karras_sigmas(5, 0.002, 700.0, rho, dtype=torch.float32)
    assert torch.isfinite(karras_sigmas(5, 0.002, 700.0, 0.08, dtype=torch.float32)).all()


@pytest.mark.parametrize("ends", [(0.0, 700.0), (0.002, 0.0), (0.0, 0.0)])
def test_an_exponential_row_from_or_to_zero_is_refused(ends):
    with raises(SettingError, "setting", "sigma_min", "sigma_max", *ends):
        exponential_sigmas(5, *ends, dtype=torch.float32)


def test_an_unknown_scheduler_and_no_steps_are_refused():
    with raises(SettingError, "setting", "karras", "bong_tangent"):
        core_sigmas("bong_tangent", 20, TABLE)
    with raises(SettingError, "setting", "steps", 0):
        core_sigmas("karras", 0, TABLE)
