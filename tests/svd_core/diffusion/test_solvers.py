"""Each solver against a second implementation: its order on known data, diffusers' schedulers, the papers' formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.diffusion.denoiser import denoised_from_v, precondition
from svd_stages.svd_core.diffusion.guidance import GuidanceCurve
from svd_stages.svd_core.diffusion.network_calls import NetworkCalls, count_network_calls
from svd_stages.svd_core.diffusion.sampling import SOLVERS, SamplerStep, Solver, ignore_step
from svd_stages.svd_core.diffusion.schedules import make_sigmas
from svd_stages.svd_core.diffusion.step_noise import brownian_noise, independent_noise
from svd_stages.svd_core.errors import NonFiniteError, SettingError
from tiny import SCHEDULER_CONFIG, randn

STOCHASTIC = [name for name in SOLVERS if SOLVERS[name].make_noise is not None]
DETERMINISTIC = [name for name in SOLVERS if SOLVERS[name].make_noise is None]
SIGMAS = {name: make_sigmas("align_your_steps", steps) for name, steps in (("few", 5), ("many", 12))}
CALLS = {"heun": 2, "dpmpp_sde": 2, "dpmpp_2s_ancestral": 2}
MIX = torch.linalg.qr(randn(16, 16, seed=5).double()).Q


def predict_v(scaled: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
    """A network without weights: nonlinear in the latents, and different at each noise level."""
    mix = MIX.to(scaled)
    return torch.tanh((1.5 + c_noise) * scaled @ mix) - 0.3 * scaled @ mix.T


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return denoised_from_v(x, predict_v(*precondition(x, sigma)), sigma)


def start(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return randn(1, 3, 4, 16, 16).to(dtype) * 700


def with_draws(solver: Solver, draws: list[torch.Tensor]) -> Solver:
    """Return the solver with noise that is taken from a list."""
    left = iter(draws)
    return Solver(solver.sample, lambda x, sigmas, seed: lambda sigma, sigma_next: next(left).to(x))


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("uni_pc", 3)])
def test_the_error_falls_with_the_order_of_the_solver(name, order):
    """For data N(0, 1) the denoised x is x / (1 + sigma^2), and a solution is proportional to sqrt(1 + sigma^2)."""
    counts, errors = [32, 64, 128, 256], []
    for steps in counts:
        sigmas = torch.logspace(math.log10(700), -2, steps + 1, dtype=torch.float64)
        x = (sigmas[0] ** 2 + 1).sqrt() * torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
        end = SOLVERS[name](lambda x, sigma: x / (1 + sigma**2), x, sigmas, ignore_step, 0)
        errors.append(abs(end.item() - math.sqrt(1 + 0.01**2)))
    fall = torch.linalg.lstsq(
        torch.tensor([[math.log(steps), 1.0] for steps in counts]), torch.tensor(errors).log()[:, None]
    ).solution[0]
    assert -fall.item() == pytest.approx(order, abs=0.06)


def diffusers_loop(scheduler, sigmas: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Sample `start` with a scheduler of diffusers over our noise levels."""
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas.clone()
    scheduler.timesteps = 0.25 * sigmas[:-1].log()
    x = start()
    for t in scheduler.timesteps:
        v = predict_v(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(v, t, x, generator=generator).prev_sample
    return x


def multistep(**changes):
    from diffusers import EDMDPMSolverMultistepScheduler

    return EDMDPMSolverMultistepScheduler(
        sigma_max=700, sigma_data=1.0, prediction_type="v_prediction", lower_order_final=False, **changes
    )


@pytest.mark.parametrize("row", SIGMAS)
def test_2m_equals_diffusers(row):
    theirs = diffusers_loop(multistep(), SIGMAS[row])
    assert relative_error(SOLVERS["dpmpp_2m"](denoise, start(), SIGMAS[row], ignore_step, 0), theirs) <= 1e-5


@pytest.mark.parametrize("levels", [*SIGMAS.values(), *(make_sigmas("karras", steps) for steps in (2, 3, 4))])
@pytest.mark.parametrize(("name", "solver_type"), [("uni_pc", "bh1"), ("uni_pc_bh2", "bh2")])
def test_uni_pc_equals_diffusers(name, solver_type, levels):
    """It computes the denoised latents of x / sqrt(1 + sigma^2), here in float64."""
    from diffusers import UniPCMultistepScheduler

    steps = len(levels) - 1
    levels = torch.cat([levels[:-1], torch.tensor([0.001])]).double()
    scheduler = UniPCMultistepScheduler(
        solver_order=max(1, min(3, steps - 1)), solver_type=solver_type, prediction_type="sample"
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = levels, torch.arange(steps)
    x = start(torch.float64) / (levels[0] ** 2 + 1).sqrt()
    for t, sigma in zip(scheduler.timesteps, levels, strict=False):
        x = scheduler.step(denoise(x * (sigma**2 + 1).sqrt(), sigma), t, x).prev_sample
    theirs = x * (levels[-1] ** 2 + 1).sqrt()
    ours = SOLVERS[name](denoise, start(torch.float64), levels, ignore_step, 0)
    assert relative_error(ours, theirs) <= 1e-9
    single = SOLVERS[name](denoise, start(), levels.float(), ignore_step, 0)
    assert relative_error(single.double(), theirs) <= 1e-5


@pytest.mark.parametrize("smallest", [0.002, 0.001, 0.0001])
def test_uni_pc_ends_below_the_smallest_level(smallest):
    levels = torch.tensor([700.0, 10.0, 1.0, smallest, 0.0])
    ends = [*levels[:-1].tolist(), min(0.001, smallest / 2)]
    expected = SOLVERS["uni_pc"](denoise, start(), torch.tensor(ends), ignore_step, 0)
    assert torch.equal(SOLVERS["uni_pc"](denoise, start(), levels, ignore_step, 0), expected)


def test_uni_pc_begins_again_from_replaced_latents():
    other, levels = randn(*start().shape, seed=4), SIGMAS["many"]
    replaced = SOLVERS["uni_pc"](denoise, start(), levels, lambda step: other.clone() if step.done == 3 else None, 0)
    assert torch.equal(replaced, SOLVERS["uni_pc"](denoise, other, levels[3:], ignore_step, 0))


@pytest.mark.parametrize("row", SIGMAS)
def test_2m_sde_equals_diffusers(row):
    theirs = diffusers_loop(multistep(algorithm_type="sde-dpmsolver++"), SIGMAS[row], generator())
    assert relative_error(with_diffusers_draws("dpmpp_2m_sde", row), theirs) <= 1e-5


@pytest.mark.parametrize("row", SIGMAS)
def test_euler_ancestral_equals_diffusers(row):
    from diffusers import EulerAncestralDiscreteScheduler

    scheduler = EulerAncestralDiscreteScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=False)
    theirs = diffusers_loop(scheduler, SIGMAS[row], generator())
    assert relative_error(with_diffusers_draws("euler_ancestral", row), theirs) <= 1e-5


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def with_diffusers_draws(name: str, row: str) -> torch.Tensor:
    """Sample with the draws of diffusers' schedulers: one of the latents' shape in each step."""
    source = generator()
    draws = [torch.randn(start().shape, generator=source) for _ in SIGMAS[row]]
    return with_draws(SOLVERS[name], draws)(denoise, start(), SIGMAS[row], ignore_step, 0)


def exponential_2s_ancestral(x: torch.Tensor, sigmas: torch.Tensor, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
    """DPM-Solver++(2S), Lu et al. 2022, algorithm 1, in t = -ln sigma, with the ancestral noise of k-diffusion."""
    for now, then in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        up = min(then, math.sqrt(then**2 * (now**2 - then**2) / now**2))
        down = math.sqrt(then**2 - up**2)
        clean = denoise(x, torch.tensor(now, dtype=x.dtype))
        if down == 0:
            return clean
        t, t_next = -math.log(now), -math.log(down)
        h, middle = t_next - t, math.exp(-(t + t_next) / 2)
        half = middle / now * x - math.expm1(-h / 2) * clean
        x = down / now * x - math.expm1(-h) * denoise(half, torch.tensor(middle, dtype=x.dtype)) + up * draw()
    return x


def exponential_sde(x: torch.Tensor, sigmas: torch.Tensor, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
    """k-diffusion's DPM-Solver++ SDE with r = 1/2, eta = 1, in t = -ln sigma."""

    def ancestral(x: torch.Tensor, clean: torch.Tensor, now: float, then: float) -> torch.Tensor:
        up = min(then, math.sqrt(then**2 * (now**2 - then**2) / now**2))
        h = math.log(now) - math.log(math.sqrt(then**2 - up**2))
        return math.exp(-h) * x - math.expm1(-h) * clean + up * draw()

    for now, then in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        clean = denoise(x, torch.tensor(now, dtype=x.dtype))
        if then == 0:
            return clean
        middle = math.exp((math.log(now) + math.log(then)) / 2)
        half = ancestral(x, clean, now, middle)
        x = ancestral(x, denoise(half, torch.tensor(middle, dtype=x.dtype)), now, then)
    return x


def heun(x: torch.Tensor, sigmas: torch.Tensor, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Karras et al. 2022, algorithm 1."""
    for now, then in itertools.pairwise(sigmas):
        d = (x - denoise(x, now)) / now
        end = x + (then - now) * d
        x = end if then == 0 else x + (then - now) * (d / 2 + (end - denoise(end, then)) / then / 2)
    return x


def consistency(x: torch.Tensor, sigmas: torch.Tensor, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
    """AnimateLCM's step of its EDM row (animatelcm_scheduler.py): the denoised latents, and noise of the next level."""
    for now, then in itertools.pairwise(sigmas):
        x = denoise(x, now)
        x = x + then * draw() if then > 0 else x
    return x


@pytest.mark.parametrize("row", SIGMAS)
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("heun", heun),
        ("dpmpp_2s_ancestral", exponential_2s_ancestral),
        ("dpmpp_sde", exponential_sde),
        ("lcm", consistency),
    ],
)
def test_a_solver_equals_its_formulas_in_float64(name, reference, row):
    draws = [randn(*start().shape, seed=index) for index in range(2 * len(SIGMAS[row]))]
    left = iter(draws)
    theirs = reference(start(torch.float64), SIGMAS[row].double(), lambda: next(left).double())
    solver = with_draws(SOLVERS[name], draws) if name in STOCHASTIC else SOLVERS[name]
    assert relative_error(solver(denoise, start(), SIGMAS[row], ignore_step, 0).double(), theirs) <= 1e-5


@pytest.mark.parametrize("name", SOLVERS)
def test_each_step_is_reported_once_and_may_be_replaced(name):
    pytest.importorskip("torchsde", reason="noise of a Brownian path needs torchsde")
    steps: list[SamplerStep] = []
    end = SOLVERS[name](denoise, start(), SIGMAS["few"], steps.append, 0)
    assert [(step.done, step.total) for step in steps] == [(done, 5) for done in range(1, 6)]
    assert torch.equal(steps[-1].x, end) and end.dtype == torch.float32
    zeros = torch.zeros_like(start())
    replaced = SOLVERS[name](denoise, start(), SIGMAS["few"], lambda step: zeros if step.done == 5 else None, 0)
    assert torch.equal(replaced, zeros)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_takes_the_calls_of_its_paper_and_a_step_to_0_one(name):
    pytest.importorskip("torchsde", reason="noise of a Brownian path needs torchsde")
    sigmas: list[float] = []

    def counted(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigmas.append(sigma.item())
        return denoise(x, sigma)

    SOLVERS[name](counted, start(), SIGMAS["few"], ignore_step, 0)
    assert len(sigmas) == 4 * CALLS.get(name, 1) + 1 and min(sigmas) > 0
    no_guidance = GuidanceCurve("constant", max_guidance=1.0)
    assert count_network_calls(SOLVERS[name], SIGMAS["few"], no_guidance) == NetworkCalls(len(sigmas))


@pytest.mark.parametrize("name", SOLVERS)
def test_not_finite_numbers_are_found(name):
    pytest.importorskip("torchsde", reason="noise of a Brownian path needs torchsde")
    with raises(NonFiniteError, "numbers.latent"):
        SOLVERS[name](lambda x, sigma: x * math.nan, start(), SIGMAS["few"], ignore_step, 0)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_seed_gives_the_same_video_and_another_seed_another_one(name):
    pytest.importorskip("torchsde", reason="noise of a Brownian path needs torchsde")
    first, same, other = (SOLVERS[name](denoise, start(), SIGMAS["few"], ignore_step, seed) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.allclose(first, other)


@pytest.mark.parametrize("name", SOLVERS)
def test_only_solvers_without_noise_go_upwards(name):
    rising = torch.tensor([0.1, 1.0, 10.0])
    if name in STOCHASTIC:
        with raises(SettingError, "setting"):
            SOLVERS[name](denoise, start() / 700, rising, ignore_step, 0)
    else:
        up = SOLVERS[name](denoise, start() / 700, rising, ignore_step, 0)
        assert torch.isfinite(up).all() and up.std() > 5


def test_the_noise_of_steps_is_unit_gaussian_and_not_the_starting_noise():
    pytest.importorskip("torchsde", reason="noise of a Brownian path needs torchsde")
    x, sigmas = torch.zeros(1, 4, 4, 32, 32), SIGMAS["many"]
    for make in (independent_noise, brownian_noise):
        noise = make(x, sigmas, 7)
        draws = torch.stack([noise(now, then) for now, then in itertools.pairwise(sigmas[:-1])])
        assert draws.std().item() == pytest.approx(1, abs=0.01) and draws.mean().abs() < 0.01
        correlations = torch.corrcoef(draws.flatten(1)) - torch.eye(len(draws))
        assert correlations.abs().max() < 0.05
        starting = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
        assert not torch.equal(noise(sigmas[0], sigmas[1]), starting)


def test_the_path_of_more_steps_refines_that_of_fewer():
    """An increment of a Brownian path is the sum of its parts."""
    pytest.importorskip("torchsde", reason="noise of a Brownian path needs torchsde")
    low, middle, high = (torch.tensor(level) for level in (0.5, 3.0, 20.0))
    noise = brownian_noise(torch.zeros(1, 2, 4, 8, 8), torch.stack([high, low]), 0)
    whole = noise(high, low) * (high - low).sqrt()
    parts = noise(high, middle) * (high - middle).sqrt() + noise(middle, low) * (middle - low).sqrt()
    assert (whole - parts).abs().max() < 1e-5


def test_euler_is_the_scheduler_of_the_published_checkpoints():
    from diffusers import EulerDiscreteScheduler

    theirs = diffusers_loop(EulerDiscreteScheduler(**SCHEDULER_CONFIG), SIGMAS["many"])
    for name in ("euler", "ddim"):
        assert relative_error(SOLVERS[name](denoise, start(), SIGMAS["many"], ignore_step, 0), theirs) <= 1e-6
