"""Fit a schedule: the noise levels at which a solver of few steps comes nearest to a fine solution.

1. A fine run of each video, from the same starting noise, counts as the exact solution.
2. Dynamic programming over the levels of the fine run gives a first schedule: the path whose Euler steps, each from a
   point of the fine run, deviate least from it. GITS, Chen et al. 2024 (arXiv:2405.11326). It calls no network.
3. The best of that schedule, align_your_steps and karras is improved by damped Newton steps in the logarithms of its
   levels. They minimize the squared difference of the final latents from the exact ones.

Calls that two runs share, those before the first level that differs, are made once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import SettingError
from .denoiser import Denoiser
from .guidance import GuidanceCurve
from .network_calls import count_network_calls
from .sampling import ODE_SOLVERS, SOLVERS, SamplerStep, ignore_step
from .schedules import make_sigmas

FINE_SOLVER, FINE_SCHEDULE = "dpmpp_2m", "align_your_steps"
BASELINES = ("karras", "align_your_steps")
PATH, FITTED = "shortest path", "fitted"
"""Names of rows: the result of the dynamic programming, and that of the fit."""

UNGUIDED = GuidanceCurve("constant", 1.0, 1.0)

DAMPINGS = (0.0005, 0.005, 0.1)
"""Added to the curvatures, relative to the largest. The best step is taken (Levenberg 1944, Marquardt 1963)."""
LEAST_GAIN = 0.005
"""Part of the error by which a round must reduce it, for another one to follow."""
BUMP = 0.05
"""Change of ln(sigma) of the finite differences, or a quarter of the distance to a neighbour if that is less."""
CLOSEST = 0.2
"""Part of a distance in ln(sigma) between two levels that a round keeps."""
SAMPLED_NUMEL = 2**16
"""Values of a video's latents that the dynamic programming compares."""


@dataclass(frozen=True)
class FitOptions:
    """The task of `fit_sigmas`.

    Attributes:
        steps: Of the schedule, 2 or more.
        solver: One of ODE_SOLVERS.
        fine_steps: Of the fine run, at least twice `steps`.
        rounds: Largest number of Newton steps; 0: only the dynamic programming.

    Raises:
        SettingError: A value is out of its range.
    """

    steps: int = 10
    solver: str = "euler"
    fine_steps: int = 50
    rounds: int = 2

    def __post_init__(self) -> None:
        if self.solver not in ODE_SOLVERS:
            raise SettingError(
                f"`sampler` must be one of {', '.join(ODE_SOLVERS)}, got {self.solver}. The others add noise, so that "
                "there is no exact solution to compare with."
            )
        if self.steps < 2:
            raise SettingError(f"`steps` must be 2 or more, got {self.steps}. One step has no level to fit.")
        if self.fine_steps < 2 * self.steps:
            raise SettingError(
                f"`fine_steps` must be at least twice `steps`, got {self.fine_steps}. Give {2 * self.steps} or more."
            )
        if self.rounds < 0:
            raise SettingError(f"`rounds` must be 0 or more, got {self.rounds}. 2 is usual.")

    def most_calls(self, videos: int) -> int:
        """Return the largest number of calls of denoisers for a number of videos: what runs share is counted once."""
        one_step = torch.tensor([2.0, 1.0])
        per_step = count_network_calls(SOLVERS[self.solver], one_step, UNGUIDED).total
        inner = self.steps - 1
        row = per_step * inner  # the first call of each row is the same
        one_each = per_step * self.steps * inner // 2  # of runs that differ from the best one after each inner level
        each_video = self.fine_steps + 1 + (len(BASELINES) + 1) * row
        each_round = 3 * one_each - per_step + len(DAMPINGS) * row
        return videos * (each_video + self.rounds * each_round)


@dataclass(frozen=True, eq=False)
class VideoStart:
    """A video to fit to: its denoiser, and its scaled latents (1, F, 4, h, w) at the largest noise level."""

    denoise: Denoiser
    x: torch.Tensor


@dataclass(frozen=True, eq=False)
class FitRow:
    """A schedule with its error.

    Attributes:
        name: A schedule of BASELINES, PATH or FITTED.
        sigmas: (steps + 1,) float32, with five significant digits after the first level.
        error: Root mean square over the videos of |x - exact| / |exact|, for final latents x.
    """

    name: str
    sigmas: torch.Tensor
    error: float


OnRow = Callable[[FitRow], None]
"""Called with each schedule as soon as its error is known. Those called FITTED improve."""


def fit_sigmas(
    videos: Sequence[VideoStart],
    options: FitOptions,
    sigma_min: float,
    sigma_max: float,
    on_call: Callable[[], None] = lambda: None,
    on_row: OnRow = lambda row: None,
) -> FitRow:
    """Return the schedule with the least error that was found, see this module's first lines.

    Args:
        videos: At least one. A denoiser must give the same result for the same x and sigma.
        sigma_min: Lower bound of the levels before 0.
        sigma_max: The first level.
        on_call: Called after each call of a denoiser. What it raises stops the fit.
        on_row: See OnRow.

    Raises:
        NonFiniteError: A denoiser gave NaN or infinity.
    """
    fine = make_sigmas(FINE_SCHEDULE, options.fine_steps, sigma_min, sigma_max)
    runs, costs = [], torch.zeros(len(fine), len(fine))
    for video in videos:
        run = _VideoRuns(video, options.solver, on_call)
        costs += run.solve_finely(fine)
        runs.append(run)
    rows = {name: make_sigmas(name, options.steps, sigma_min, sigma_max) for name in BASELINES}
    rows[PATH] = fine[shortest_path(costs, options.steps)]
    best = None
    for name, sigmas in rows.items():
        attempt = _attempt(runs, name, _rounded(sigmas))
        on_row(attempt.row)
        if best is None or attempt.row.error < best.row.error:
            best = attempt
            best.keep(runs)
    assert best is not None
    for _ in range(options.rounds):
        improved = _improve(runs, best, sigma_min)
        if improved is None:
            break
        gain = 1 - improved.row.error / best.row.error
        best = improved
        best.keep(runs)
        on_row(best.row)
        if gain < LEAST_GAIN:
            break
    return best.row


def shortest_path(costs: torch.Tensor, steps: int) -> list[int]:
    """Return the indices of the path of `steps` edges from the first node to the last with the least sum of costs.

    Args:
        costs: (M, M), entry (i, j) is the cost of the edge from i to j; only those with i < j are used.

    Returns:
        steps + 1 rising indices from 0 to M - 1.
    """
    nodes = len(costs)
    edges = costs.masked_fill(torch.ones_like(costs).tril().bool(), math.inf)
    least = torch.full((nodes,), math.inf)
    least[0] = 0.0
    previous = []
    for _ in range(steps):
        least, origin = (least[:, None] + edges).min(dim=0)
        previous.append(origin)
    path = [nodes - 1]
    for origin in reversed(previous):
        path.append(int(origin[path[-1]]))
    return path[::-1]


def format_sigmas(sigmas: torch.Tensor) -> str:
    """Return a schedule as text for --sigmas and ManualSigmas: "700,54.5,...,0"."""
    return ",".join(f"{sigma:.6g}" for sigma in sigmas.tolist())


_Calls = list[tuple[float, torch.Tensor]]
"""The noise level and the result of each call of a denoiser, in the order of a run."""


class _VideoRuns:
    """Runs of one video from the same start. `known` are the calls of the run whose calls are shared."""

    def __init__(self, video: VideoStart, solver: str, on_call: Callable[[], None]) -> None:
        self._video, self._solver, self._on_call = video, SOLVERS[solver], on_call
        self._exact = torch.empty(0)
        self.known: _Calls = []

    def solve_finely(self, sigmas: torch.Tensor) -> torch.Tensor:
        """Make the fine run. Return the cost of a step between each two of its levels, (M, M) float32.

        The cost is the deviation of an Euler step from level i from the fine run at level j. It is divided by
        sqrt(1 + sigma_j^2), the scale of noisy latents, and by the norm of the exact latents.
        """
        stride = max(1, self._video.x.numel() // SAMPLED_NUMEL)
        points, denoised = [self._video.x.flatten()[::stride]], []

        def record(step: SamplerStep) -> None:
            points.append(step.x.flatten()[::stride])
            denoised.append(step.denoised.flatten()[::stride])

        x = SOLVERS[FINE_SOLVER].sample(self._ask, self._video.x, sigmas, record)
        self._exact = x
        costs, norm, scales = torch.zeros(len(sigmas), len(sigmas)), points[-1].norm(), (sigmas**2 + 1).sqrt()
        following = torch.stack(points)
        for index, clean in enumerate(denoised):
            ratios = (sigmas[index + 1 :] / sigmas[index])[:, None].to(x.device)
            steps = ratios * points[index] + (1 - ratios) * clean - following[index + 1 :]
            costs[index, index + 1 :] = (steps.norm(dim=1) / norm).float().cpu() / scales[index + 1 :]
        return costs

    def solve(self, sigmas: torch.Tensor) -> tuple[torch.Tensor, _Calls]:
        """Return (x - exact) / |exact|, flat on the CPU, and the calls of the run."""
        calls: _Calls = []
        is_shared = True

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            nonlocal is_shared
            level, place = sigma.item(), len(calls)
            is_shared = is_shared and place < len(self.known) and self.known[place][0] == level
            calls.append((level, self.known[place][1] if is_shared else self._ask(x, sigma)))
            return calls[-1][1]

        x = self._solver.sample(denoise, self._video.x, sigmas, ignore_step)
        return ((x - self._exact) / self._exact.norm()).flatten().cpu(), calls

    def _ask(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        denoised = self._video.denoise(x, sigma)
        self._on_call()
        return denoised


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A row with the residual and the calls of each video."""

    row: FitRow
    residuals: Sequence[torch.Tensor]
    calls: Sequence[_Calls]

    def keep(self, runs: Sequence[_VideoRuns]) -> None:
        """Share the calls of this attempt with the next ones."""
        for run, calls in zip(runs, self.calls, strict=True):
            run.known = calls


def _attempt(runs: Sequence[_VideoRuns], name: str, sigmas: torch.Tensor) -> _Attempt:
    results = [run.solve(sigmas) for run in runs]
    error = math.sqrt(sum(float(residual.square().sum()) for residual, _ in results) / len(results))
    return _Attempt(FitRow(name, sigmas, error), *map(list, zip(*results, strict=True)))


def _improve(runs: Sequence[_VideoRuns], best: _Attempt, sigma_min: float) -> _Attempt | None:
    """Return the best of the Newton steps of DAMPINGS. None: none reduced the error."""
    levels = best.row.sigmas[:-1].double().log()
    gradient, hessian = _derivatives(runs, best, levels)
    curvatures, directions = torch.linalg.eigh(hessian)
    curvatures = curvatures.abs()  # a step downhill also where the error is not convex
    attempts = []
    for damping in DAMPINGS:
        damped = curvatures + damping * curvatures.max()
        change = -directions @ (directions.T @ gradient / damped)
        moved = _limited(levels, change).clamp(min=math.log(sigma_min))
        sigmas = _rounded(torch.cat([best.row.sigmas[:1], moved[1:].exp().float(), torch.zeros(1)]))
        if (sigmas[:-1] > sigmas[1:]).all():
            attempts.append(_attempt(runs, FITTED, sigmas))
    least = min(attempts, key=lambda attempt: attempt.row.error, default=best)
    return least if least.row.error < best.row.error else None


def _derivatives(runs: Sequence[_VideoRuns], best: _Attempt, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gradient (steps - 1,) and Hessian (steps - 1, steps - 1) of half the squared error, float64.

    Both are in ln(sigma) of the inner levels, by finite differences of the residual r: the Hessian is J^T J and the
    product of r with its second derivatives.
    """
    gaps = -levels.diff()
    bumps = torch.cat([torch.minimum(gaps[:-1], gaps[1:]), gaps[-1:]]).div(4).clamp(max=BUMP)
    inner = len(levels) - 1

    def residuals(run: _VideoRuns, changes: torch.Tensor) -> torch.Tensor:
        """Return (K, P) residuals for (K, steps - 1) changes of ln(sigma)."""
        results = [run.solve(_changed(best.row.sigmas, levels, change))[0] for change in changes]
        return torch.stack(results).double()

    own, pairs = bumps.diag(), bumps.diag()[:-1] + bumps.diag()[1:]
    gradient, hessian = torch.zeros(inner).double(), torch.zeros(inner, inner).double()
    for run, center in zip(runs, (each.double() for each in best.residuals), strict=True):
        above, below = residuals(run, own), residuals(run, -own)
        both = residuals(run, pairs) if inner > 1 else center[None][:0]
        jacobian = (above - below) / (2 * bumps[:, None])
        gradient += jacobian @ center
        hessian += jacobian @ jacobian.T + _second_derivatives(center, above, below, both, bumps)
    return gradient, hessian


def _changed(sigmas: torch.Tensor, levels: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return a schedule whose inner levels, ln sigma in `levels`, are changed. A change of 0 keeps the very level."""
    changed = sigmas.clone()
    changed[1:-1] = torch.where(change == 0, sigmas[1:-1], (levels[1:] + change).exp().float())
    return changed


def _second_derivatives(
    center: torch.Tensor, above: torch.Tensor, below: torch.Tensor, both: torch.Tensor, bumps: torch.Tensor
) -> torch.Tensor:
    """Return the products of the residual with its second derivatives, (steps - 1, steps - 1) float64, tridiagonal.

    Those of levels that are not neighbours are left out: a step deviates by the levels at its two ends.

    Args:
        center: (P,) the residual.
        above, below: (steps - 1, P) with one level changed by its bump, up and down.
        both: (steps - 2, P) with two neighbours changed up.
        bumps: (steps - 1,) changes of ln(sigma).
    """
    own = ((above + below - 2 * center) @ center) / bumps**2
    mixed = ((both - above[:-1] - above[1:] + center) @ center) / (bumps[:-1] * bumps[1:])
    return own.diag() + mixed.diag(1) + mixed.diag(-1)


def _limited(levels: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return the levels (ln sigma, falling) changed after the first, each distance keeping CLOSEST of it at least."""
    change = torch.cat([change.new_zeros(1), change])
    distances, shrinks = -levels.diff(), change.diff()
    shares = (1 - CLOSEST) * distances / shrinks.clamp(min=1e-9)
    return levels + min(1.0, float(shares.min())) * change


def _rounded(sigmas: torch.Tensor) -> torch.Tensor:
    """Return the schedule with five significant digits after its first level, which is that of the model."""
    first, *others = sigmas.tolist()
    return torch.tensor([first, *(float(f"{sigma:.5g}") for sigma in others)])
