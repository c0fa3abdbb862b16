"""Samplers: solvers of the diffusion ODE and SDE over falling noise levels, and the starting noise.

Each solver is a function of a denoiser, latents, noise levels and a callback. Those that add noise take it from a
function, see `step_noise`. Their names are ComfyUI's.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..errors import NonFiniteError, SettingError
from ..utils.nan_checks import DAMAGED, is_finite
from .denoiser import Denoiser
from .noise_augmentation import augmentation_noise, make_generator, seed_for_index
from .step_noise import MakeStepNoise, StepNoise, brownian_noise, independent_noise

NOISES = ("comfyui", "diffusers", "none")
SCALE = 8
"""Pixels per latent pixel of the published models, where no VAE is at hand that knows it (`Vae.scale`)."""


@dataclass(frozen=True, eq=False)
class SamplerStep:
    """The state of the loop after a step. x and denoised are scaled latents (1, F, 4, h, w)."""

    done: int
    total: int
    sigma: float
    x: torch.Tensor
    denoised: torch.Tensor


OnStep = Callable[[SamplerStep], torch.Tensor | None]
"""Called after each step. If it returns a tensor, the next step starts from it in place of x. What it raises stops the
loop."""


def ignore_step(step: SamplerStep) -> None:
    """Do nothing after a step."""


def sample_euler(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep = ignore_step
) -> torch.Tensor:
    """Follow the probability-flow ODE from sigmas[0] to sigmas[-1] with Euler steps. ComfyUI's ddim is the same.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without its second-order correction.
    The step is written as diffusers and ComfyUI's core write it, in float32: a long step down from 700 cancels most of
    x, so with one or two steps its rounding (up to 1e-4) shows in the latents.

    Args:
        x: (1, F, 4, h, w) float32 scaled latents at noise level sigmas[0].
        sigmas: (steps + 1,) float32 on the CPU, falling, or rising to invert a video.
        on_step: See `OnStep`.

    Raises:
        NonFiniteError: A step gave NaN or infinity.
    """
    for sigma, sigma_next, finish in iterate_steps(sigmas, on_step):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        x = finish(x + slope * (sigma_next - sigma), denoised)
    return x


def sample_heun(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep = ignore_step
) -> torch.Tensor:
    """Follow the ODE with Heun steps, of second order: two network calls each, one for a step to 0.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1. The mean of both slopes is written as one step to denoised
    latents D + (D_next - D) sigma / (2 sigma_next), which cancels less in float32. Arguments and errors are those of
    `sample_euler`.
    """
    for sigma, sigma_next, finish in iterate_steps(sigmas, on_step):
        denoised = clean = denoise(x, sigma)
        if sigma_next > 0:
            next_denoised = denoise(_step_to(x, denoised, sigma, sigma_next), sigma_next)
            clean = denoised + sigma / (2 * sigma_next) * (next_denoised - denoised)
        x = finish(_step_to(x, clean, sigma, sigma_next), denoised)
    return x


def sample_dpmpp_2m(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep = ignore_step
) -> torch.Tensor:
    """Follow the ODE with DPM-Solver++(2M), of second order with one network call a step.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 2. The first step, and a last step to 0, are of first order, as in
    Stability's generative-models. Arguments and errors are those of `sample_euler`.
    """
    history = _History()
    for sigma, sigma_next, finish in iterate_steps(sigmas, on_step):
        denoised = denoise(x, sigma)
        x = finish(_step_to(x, history.extrapolate(denoised, sigma, sigma_next), sigma, sigma_next), denoised)
    return x


def sample_uni_pc(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep = ignore_step, is_bh2: bool = False
) -> torch.Tensor:
    """Follow the ODE with UniPC, a predictor and corrector of third order with one network call a step.

    Zhao et al. 2023 (arXiv:2302.04867), algorithm 1 in its data prediction form, with B(h) = h, or e^h - 1 if `is_bh2`.
    The first and the last steps are of lower order. As in ComfyUI, a last step to 0 ends at 0.001, or at half of a
    smaller level. After a step whose x `on_step` replaces, it begins again with the first order. Arguments and errors
    are those of `sample_euler`.
    """
    levels = torch.where(sigmas == 0, (sigmas[-2] / 2).clamp(max=0.001), sigmas)
    total = len(levels) - 1
    highest = max(1, min(3, total - 1))
    past: list[tuple[float, torch.Tensor]] = []  # noise levels and denoised latents, the last one first
    start, order = x, 0
    for done, (sigma, sigma_next, finish) in enumerate(iterate_steps(levels, on_step), 1):
        now = (sigma.item(), denoise(x, sigma))
        if past:
            x = _step_by_all(start, [*past[:order], now], sigma.item(), is_bh2)
        past = [now, *past][:highest]
        order = min(len(past), total + 1 - done)
        start, predicted = x, _step_by_all(x, past[:order], sigma_next.item(), is_bh2)
        x = finish(predicted, now[1])
        if x is not predicted:
            past = []
    return x


def sample_euler_ancestral(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep, noise: StepNoise
) -> torch.Tensor:
    """Take Euler steps to a level below the next one, and add noise up to it.

    Song et al. 2021 (arXiv:2010.02502), equation 16 with eta = 1, for sigma in place of alpha.

    Args:
        x, sigmas, on_step: See `sample_euler`; sigmas must fall.
        noise: Unit Gaussian noise of each step, see `step_noise`.

    Raises:
        SettingError: sigmas rise.
        NonFiniteError: A step gave NaN or infinity.
    """
    for sigma, sigma_next, finish in iterate_steps(sigmas, on_step):
        denoised = denoise(x, sigma)
        x = _step_to_noisy(x, denoised, sigma, sigma_next, noise(sigma, sigma_next))
        x = finish(x, denoised)
    return x


def sample_dpmpp_2m_sde(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep, noise: StepNoise
) -> torch.Tensor:
    """Take the steps of DPM-Solver++(2M) to a level below the next one, and add noise up to it.

    The midpoint form of k-diffusion's DPM-Solver++(2M) SDE with eta = 1. Arguments and errors are those of
    `sample_euler_ancestral`.
    """
    history = _History()
    for sigma, sigma_next, finish in iterate_steps(sigmas, on_step):
        denoised = denoise(x, sigma)
        extrapolated = history.extrapolate(denoised, sigma, sigma_next)
        x = _step_to_noisy(x, extrapolated, sigma, sigma_next, noise(sigma, sigma_next))
        x = finish(x, denoised)
    return x


def sample_dpmpp_2s_ancestral(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep, noise: StepNoise
) -> torch.Tensor:
    """Take the steps of DPM-Solver++(2S) to a level below the next one, and add noise up to it.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 1 with r = 1/2, which asks the network twice a step, with the noise of
    `sample_euler_ancestral`. Arguments and errors are those of that function.
    """
    for sigma, sigma_next, finish in iterate_steps(sigmas, on_step):
        denoised = denoise(x, sigma)
        down, up = _split_step(sigma, sigma_next)
        clean = denoised
        if down > 0:
            middle = (sigma * down).sqrt()
            clean = denoise(_step_to(x, denoised, sigma, middle), middle)
        x = finish(_step_to(x, clean, sigma, down) + up * noise(sigma, sigma_next), denoised)
    return x


def sample_dpmpp_sde(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep, noise: StepNoise
) -> torch.Tensor:
    """Take two ancestral half steps for each step, the second with the denoised latents of the first.

    k-diffusion's DPM-Solver++ SDE with r = 1/2 and eta = 1. Arguments and errors are those of
    `sample_euler_ancestral`.
    """
    for sigma, sigma_next, finish in iterate_steps(sigmas, on_step):
        denoised = clean = denoise(x, sigma)
        if sigma_next > 0:
            middle = (sigma * sigma_next).sqrt()
            clean = denoise(_step_to_noisy(x, denoised, sigma, middle, noise(sigma, middle)), middle)
        x = finish(_step_to_noisy(x, clean, sigma, sigma_next, noise(sigma, sigma_next)), denoised)
    return x


def sample_lcm(
    denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep, noise: StepNoise
) -> torch.Tensor:
    """Add fresh noise of the next level to the denoised latents, for networks that were distilled for it.

    Song et al. 2023, "Consistency models" (arXiv:2303.01469), algorithm 1. Arguments and errors are those of
    `sample_euler_ancestral`.
    """
    for sigma, sigma_next, finish in iterate_steps(sigmas, on_step):
        denoised = denoise(x, sigma)
        x = finish(denoised + sigma_next * noise(sigma, sigma_next), denoised)
    return x


Finish = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Report (x, denoised) after a step. Return the x from which to go on. Raise NonFiniteError for NaN or infinity."""


def iterate_steps(sigmas: torch.Tensor, on_step: OnStep) -> Iterator[tuple[torch.Tensor, torch.Tensor, Finish]]:
    """Yield the noise levels of each step, before and after, and the function that ends it."""
    total = sigmas.numel() - 1
    for done, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas.unbind()), 1):

        def finish(
            x: torch.Tensor, denoised: torch.Tensor, done: int = done, sigma: float = sigma.item()
        ) -> torch.Tensor:
            if not is_finite(x):
                raise NonFiniteError(
                    f"step {done} of {total} (sigma {sigma:.4g}) brought NaN or infinity into the latent. fp16 cannot "
                    f"hold large numbers: use precision bf16 or fp32, less guidance or more steps. Where fp32 was "
                    f"used, {DAMAGED}",
                    code="numbers.latent",
                )
            changed = on_step(SamplerStep(done, total, sigma, x, denoised))
            return x if changed is None else changed

        yield sigma, sigma_next, finish


def _step_to(x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
    """Return x at noise level sigma_next, on the line through x at sigma and the denoised latents at 0.

    It is the Euler step of `sample_euler`, and the first-order step of DPM-Solver++, where sigma_next / sigma is
    written e^-h.
    """
    ratio = sigma_next / sigma
    return ratio * x + (1 - ratio) * denoised


def _step_by_all(
    x: torch.Tensor, known: Sequence[tuple[float, torch.Tensor]], sigma_next: float, is_bh2: bool
) -> torch.Tensor:
    """Return x at noise level sigma_next: the unified step of UniPC.

    It is the step to the first denoised latents, corrected by the differences of the others, which it weights so that
    polynomials in ln(sigma) are followed exactly.

    Args:
        x: At the noise level of the first of `known`.
        known: Noise levels and their denoised latents, among them sigma_next in a corrector.
    """
    (sigma, denoised), *others = known
    step = math.log(sigma / sigma_next)
    points = torch.tensor([math.log(sigma / level) / step for level, _ in others], dtype=torch.float64)
    base = math.expm1(-step) if is_bh2 else -step
    phi, factorial, moments = math.expm1(-step) / -step - 1, 1, []
    for number in range(1, len(others) + 1):
        moments.append(phi * factorial / base)
        factorial *= number + 1
        phi = phi / -step - 1 / factorial
    weights = [0.5] * len(others)  # for one, the paper's own simplification
    if len(others) > 1:
        powers = torch.stack([points**number for number in range(len(others))])
        weights = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
    x = sigma_next / sigma * x - math.expm1(-step) * denoised
    for (_, other), point, weight in zip(others, points.tolist(), weights, strict=True):
        x = x - base * weight / point * (other - denoised)
    return x


def _step_to_noisy(
    x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Return x at noise level sigma_next: a step to a lower level, and noise for the rest."""
    down, up = _split_step(sigma, sigma_next)
    return _step_to(x, denoised, sigma, down) + up * noise


def _split_step(sigma: torch.Tensor, sigma_next: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the level to step down to and the deviation of the noise to add: sigma_next^2 = down^2 + up^2.

    up^2 = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2, the variance of q(x_next | x, x_0).
    """
    return sigma_next**2 / sigma, sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()


class _History:
    """The last denoised latents of a multistep method."""

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None
        self._last_h = torch.tensor(0.0)

    def extrapolate(self, denoised: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        """Return the denoised latents in the middle of a step in -ln sigma: D + h / (2 h_last) (D - D_last)."""
        h = (sigma / sigma_next).log()
        last, last_h = self._last, self._last_h
        self._last, self._last_h = denoised, h
        return denoised if last is None or sigma_next == 0 else denoised + h / (2 * last_h) * (denoised - last)


Solve = Callable[[Denoiser, torch.Tensor, torch.Tensor, OnStep, int], torch.Tensor]
"""(denoise, x, sigmas, on_step, seed) -> x at sigmas[-1]. The seed is that of the video's starting noise."""


@dataclass(frozen=True)
class Solver:
    """A solver with the noise that it adds.

    Attributes:
        sample: One of the functions above.
        make_noise: Makes the noise of the steps, see `step_noise`. None: the solver adds none.
    """

    sample: Callable[..., torch.Tensor]
    make_noise: MakeStepNoise | None = None

    @property
    def adds_noise(self) -> bool:
        """True if a seed gives another result."""
        return self.make_noise is not None

    def __call__(
        self, denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep, seed: int
    ) -> torch.Tensor:
        """Sample from sigmas[0] to sigmas[-1], see `Solve`. Raises SettingError if the solver cannot go upwards."""
        if self.make_noise is None:
            return self.sample(denoise, x, sigmas, on_step)
        if sigmas[-1] > sigmas[0]:
            raise SettingError(
                "a sampler that adds noise cannot follow rising sigmas, which invert a video. Use euler, heun or "
                "dpmpp_2m."
            )
        return self.sample(denoise, x, sigmas, on_step, self.make_noise(x, sigmas, seed))


SOLVERS = {
    "euler": Solver(sample_euler),
    "heun": Solver(sample_heun),
    "dpmpp_2m": Solver(sample_dpmpp_2m),
    "euler_ancestral": Solver(sample_euler_ancestral, independent_noise),
    "dpmpp_2m_sde": Solver(sample_dpmpp_2m_sde, brownian_noise),
    "dpmpp_sde": Solver(sample_dpmpp_sde, brownian_noise),
    "dpmpp_2s_ancestral": Solver(sample_dpmpp_2s_ancestral, independent_noise),
    "lcm": Solver(sample_lcm, independent_noise),
    "ddim": Solver(sample_euler),
    "uni_pc": Solver(sample_uni_pc),
    "uni_pc_bh2": Solver(functools.partial(sample_uni_pc, is_bh2=True)),
}
"""The solvers by their names in ComfyUI."""
ODE_SOLVERS = tuple(name for name, solver in SOLVERS.items() if not solver.adds_noise)
"""Those that add no noise: only they have a solution to converge to."""


def starting_point(latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, sigma_max: float) -> torch.Tensor:
    """Return scaled latents at noise level sigma () float32: latents + noise * scale.

    scale is sqrt(1 + sigma^2) if sigma is the model's largest, else sigma: at sigma_max the latents count as
    unit-variance data, as in diffusers' init_noise_sigma, Stability's BaseDiffusionSampler and ComfyUI (relative
    tolerance 1e-5).
    """
    at_largest = sigma.item() >= sigma_max * (1 - 1e-5)
    return latents + noise * ((sigma**2 + 1) ** 0.5 if at_largest else sigma)


def draw_noise(kind: str, seed: int, shape: Sequence[int], batch_index: Sequence[int] | None = None) -> torch.Tensor:
    """Draw the starting noise of N videos, each as in its single run: video i uses the seed `seed + i`.

    Args:
        kind: comfyui, diffusers or none, see `starting_noise`.
        shape: (N, F, 4, h, w), the result's.
        batch_index: ComfyUI's frame numbers of a latent that was cut from a longer one. For a single video only.

    Raises:
        SettingError: batch_index with several videos, or as `starting_noise` does.
    """
    videos, frames, _, height, width = shape
    if batch_index is not None and videos > 1:
        raise SettingError("a latent with batch_index must hold one video; sample the videos of the batch on their own")
    seeds = [seed_for_index(seed, video) for video in range(videos)]
    return torch.stack([starting_noise(kind, each, frames, height, width, batch_index) for each in seeds])


def starting_noise(
    kind: str, seed: int, frames: int, height: int, width: int, batch_index: Sequence[int] | None = None
) -> torch.Tensor:
    """Draw unit Gaussian noise (frames, 4, height, width) for one video; height and width in latent pixels.

    - comfyui: The first draw of a CPU generator seeded with `seed`, as in ComfyUI's samplers. With `batch_index`,
      frame i is single draw number batch_index[i], as in ComfyUI for a latent that was cut from a longer one.
    - diffusers: The generator first draws the (1, 3, 8 height, 8 width) augmentation noise, which is dropped, so that
      one seed for both noises gives the video of diffusers' pipeline. The draws of `batch_index` follow it.
    - none: Zeros, to continue a latent that still contains noise.

    Raises:
        SettingError: Unknown kind, seed out of range, or a batch_index of another length.
    """
    if kind not in NOISES:
        raise SettingError(f'noise must be one of {", ".join(NOISES)}, got "{kind}"')
    shape = (frames, 4, height, width)
    if kind == "none":
        return torch.zeros(shape)
    generator = make_generator(seed)
    if kind == "diffusers":
        augmentation_noise(generator, SCALE * height, SCALE * width)
    if batch_index is None:
        return torch.randn(shape, generator=generator)
    if len(batch_index) != frames or min(batch_index) < 0:
        raise SettingError(f"batch_index must name a frame number for each of {frames} frames, got {list(batch_index)}")
    draws = [torch.randn((1, *shape[1:]), generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([draws[index] for index in batch_index])
