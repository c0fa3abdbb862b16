"""Fitted schedules: against the known best one of Gaussian data, and on svd-nano against other noise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core import execution
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.diffusion.conditioning import MicroConditioning
from svd_stages.svd_core.diffusion.guidance import GuidanceCurve
from svd_stages.svd_core.diffusion.sampling import ODE_SOLVERS, SOLVERS, ignore_step
from svd_stages.svd_core.diffusion.schedule_fitting import (
    BASELINES,
    FITTED,
    FitOptions,
    FitRow,
    VideoStart,
    fit_sigmas,
    format_sigmas,
    shortest_path,
)
from svd_stages.svd_core.diffusion.schedules import make_sigmas, read_sigmas
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.pipeline import VideoNoise, condition_images
from svd_stages.svd_core.runtime.runtime import LocalRuntime

SIGMA_MIN, SIGMA_MAX = 0.002, 700.0


class Gaussian:
    """The exact denoiser of independent Gaussian values, float64: D = x d^2 / (d^2 + sigma^2) for a deviation d.

    A solution is proportional to sqrt(d^2 + sigma^2). Counts its calls.
    """

    def __init__(self, deviations: list[float], seed: int = 0) -> None:
        self.variances = torch.tensor(deviations, dtype=torch.float64).square().repeat_interleave(64)
        noise = torch.randn(1, 1, 1, 1, len(self.variances), generator=torch.Generator().manual_seed(seed)).double()
        self.x = noise * (self.variances + SIGMA_MAX**2).sqrt()
        self.exact = noise * self.variances.sqrt()
        self.calls = 0

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.variances / (self.variances + sigma.double() ** 2)

    @property
    def video(self) -> VideoStart:
        return VideoStart(self, self.x)

    def error(self, solver: str, sigmas: torch.Tensor) -> float:
        """Return the error to the exact solution, without the fine run that a fit compares with."""
        end = SOLVERS[solver](self, self.x, sigmas, ignore_step, 0)
        return float((end - self.exact).norm() / self.exact.norm())


@pytest.mark.parametrize("steps", [5, 10])
def test_the_schedule_for_unit_data_is_the_known_optimum(steps):
    """With phi = atan(sigma), an Euler step scales x / sqrt(1 + sigma^2) by cos(phi - phi_next): even phi are best."""
    data = Gaussian([1.0])
    fitted = fit_sigmas([data.video], FitOptions(steps, rounds=3), SIGMA_MIN, SIGMA_MAX)
    top = math.atan(SIGMA_MAX)
    optimum = torch.tensor([math.tan(top * (1 - step / steps)) for step in range(1, steps)])
    assert torch.allclose(fitted.sigmas[1:-1], optimum, rtol=0.03)
    assert data.error("euler", fitted.sigmas) == pytest.approx(1 - math.cos(top / steps) ** steps, rel=0.001)
    assert data.error("euler", fitted.sigmas) < 0.7 * data.error("euler", make_sigmas("align_your_steps", steps))


@pytest.mark.parametrize("solver", ODE_SOLVERS)
def test_the_fitted_schedule_beats_the_known_ones_on_other_data(solver):
    fitted = fit_sigmas([Gaussian([0.3, 1.0, 3.0]).video], FitOptions(8, solver), SIGMA_MIN, SIGMA_MAX)
    other = Gaussian([0.4, 1.0, 2.5], seed=1)
    errors = {name: other.error(solver, make_sigmas(name, 8)) for name in BASELINES}
    assert other.error(solver, fitted.sigmas) < 0.9 * min(errors.values())


def test_several_videos_share_one_schedule_which_serves_both():
    narrow, wide = Gaussian([0.1, 0.2]), Gaussian([4.0, 5.0])
    options = FitOptions(6)
    alone, both = (
        fit_sigmas([each.video for each in videos], options, SIGMA_MIN, SIGMA_MAX).sigmas
        for videos in ([narrow], [narrow, wide])
    )
    assert wide.error("euler", both) < wide.error("euler", alone)
    assert narrow.error("euler", alone) < narrow.error("euler", both)


@pytest.mark.parametrize("solver", ODE_SOLVERS)
@pytest.mark.parametrize("rounds", [0, 1])
def test_the_calls_are_at_most_the_announced_ones(solver, rounds):
    options = FitOptions(4, solver, fine_steps=20, rounds=rounds)
    videos = [Gaussian([0.5, 1.0], seed) for seed in (0, 1)]
    reported = itertools.count()
    fit_sigmas([each.video for each in videos], options, SIGMA_MIN, SIGMA_MAX, on_call=lambda: next(reported))
    calls = sum(each.calls for each in videos)
    assert 0.8 * options.most_calls(2) <= calls <= options.most_calls(2)
    assert next(reported) == calls


def test_rows_have_the_error_of_their_printed_levels():
    data, rows = Gaussian([0.5, 2.0]), list[FitRow]()
    best = fit_sigmas([data.video], FitOptions(5), SIGMA_MIN, SIGMA_MAX, on_row=rows.append)
    assert best.error == min(row.error for row in rows) and rows[-1].name == FITTED
    fine = SOLVERS["dpmpp_2m"](data, data.x, make_sigmas("align_your_steps", 50), ignore_step, 0)
    for row in rows:
        end = SOLVERS["euler"](data, data.x, read_sigmas(format_sigmas(row.sigmas)), ignore_step, 0)
        assert float((end - fine).norm() / fine.norm()) == pytest.approx(row.error, rel=1e-5)
    improved = [row.error for row in rows if row.name == FITTED]
    assert improved == sorted(improved, reverse=True)


def test_a_row_that_is_known_when_the_fit_is_stopped_was_reported():
    rows = []

    def stop(row: FitRow) -> None:
        rows.append(row)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_sigmas([Gaussian([1.0]).video], FitOptions(3), SIGMA_MIN, SIGMA_MAX, on_row=stop)
    assert [row.name for row in rows] == ["karras"]


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_the_shortest_path_is_that_of_all_paths(steps):
    costs = torch.rand(8, 8, generator=torch.Generator().manual_seed(steps))
    paths = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1)]
    lengths = {path: sum(float(costs[edge]) for edge in itertools.pairwise(path)) for path in paths}
    assert tuple(shortest_path(costs, steps)) == min(lengths, key=lengths.__getitem__)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"solver": "lcm"}, "sampler"),
        ({"steps": 1}, "steps"),
        ({"fine_steps": 19}, "fine_steps"),
        ({"rounds": -1}, "rounds"),
    ],
)
def test_a_task_that_cannot_be_done_is_refused(change, name):
    with raises(SettingError, "setting", name):
        FitOptions(**change)


def test_on_svd_nano_the_schedule_beats_the_published_one_on_another_image():
    runtime, curve = LocalRuntime(device_name="cpu"), GuidanceCurve("linear", 1.0, 2.5)
    checkpoint = load_checkpoint(EMBEDDED_FILE, "fp32", torch.device("cpu"))
    options, rows = FitOptions(3, fine_steps=12, rounds=1), list[FitRow]()

    def problem(seed: int):
        image = torch.rand(1, 4, 4, 3, generator=torch.Generator().manual_seed(seed))
        image = (
            torch.nn.functional.interpolate(image.movedim(-1, 1), (64, 64), mode="bicubic").movedim(1, -1).clamp(0, 1)
        )
        noise = VideoNoise.from_seed(seed, "diffusers", image, 2)
        return condition_images(checkpoint, [image], image, noise, MicroConditioning(), runtime), noise.starting

    with torch.inference_mode():
        pairs, noise = problem(0)
        fitted = execution.fit_sigmas(runtime, checkpoint.model, pairs, [noise], curve, options, rows.append)
        pairs, noise = problem(1)
        start = execution.noisy_latents(checkpoint.model, torch.zeros_like(noise), noise, fitted.sigmas[0])

        def sample(sigmas: torch.Tensor, solver: str = "euler") -> torch.Tensor:
            model = checkpoint.model
            return execution.sample(runtime, model, pairs, start, curve, sigmas, solver=SOLVERS[solver])

        exact = sample(execution.model_sigmas(checkpoint.model, 25, "align_your_steps"), "dpmpp_2m")
        published = sample(execution.model_sigmas(checkpoint.model, 3, "align_your_steps"))
        ours = sample(fitted.sigmas)
    assert (ours - exact).norm() < 0.95 * (published - exact).norm()
    assert fitted.error < min(row.error for row in rows if row.name != FITTED)
