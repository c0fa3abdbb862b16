"""Compare samplers on svd-nano: network calls against the error to the converged solution and to the true clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import torch

from ...svd_core import execution
from ...svd_core.diffusion.conditioning import MicroConditioning
from ...svd_core.diffusion.denoiser import Denoiser
from ...svd_core.diffusion.guidance import GuidanceCurve, GuidanceRefinement
from ...svd_core.diffusion.sampling import SOLVERS, OnStep, Solve
from ...svd_core.models.components import Checkpoint
from ...svd_core.pipeline import VideoNoise, VideoSettings, condition_images
from ...svd_core.runtime.runtime import LocalRuntime
from .clips import MovingScene
from .tracking import psnr


@dataclass(frozen=True)
class Candidate:
    """A way to sample. Guidance acts at noise levels in (guidance_from, guidance_to]."""

    sampler: str
    schedule: str
    steps: int
    guidance_from: float = 0.0
    guidance_to: float = math.inf

    def __str__(self) -> str:
        guided = "" if math.isinf(self.guidance_to) else f", guidance in ({self.guidance_from:g}, {self.guidance_to:g}]"
        return f"{self.sampler}, {self.schedule}, {self.steps}{guided}"


CONVERGED = Candidate("dpmpp_2m", "karras", 100)
"""Its result counts as the exact solution."""

CANDIDATES = (
    Candidate("euler", "karras", 25),
    Candidate("euler", "karras", 12),
    Candidate("euler", "align_your_steps", 10),
    Candidate("heun", "karras", 13),
    Candidate("heun", "align_your_steps", 6),
    Candidate("dpmpp_2m", "karras", 25),
    Candidate("dpmpp_2m", "karras", 12),
    Candidate("dpmpp_2m", "align_your_steps", 14),
    Candidate("dpmpp_2m", "align_your_steps", 10),
    Candidate("dpmpp_2m", "align_your_steps", 8),
    Candidate("dpmpp_2m", "align_your_steps", 7),
    Candidate("dpmpp_2m", "align_your_steps", 6),
    *(
        Candidate(sampler, "align_your_steps", steps, *interval)
        for interval in ((0.28, 5.42), (0.5, 60.0))
        for sampler, steps in (("euler", 10), ("euler", 8), ("dpmpp_2m", 10), ("dpmpp_2m", 8))
    ),
)
"""Samplers that add noise have no solution to converge to."""

PositionError = Callable[[MovingScene, torch.Tensor, torch.Tensor], float]


@dataclass(frozen=True, eq=False)
class Result:
    """One scene with one sampler.

    Attributes:
        calls: Calls of the network, both sides of guidance counted.
        latents: (F, 4, h, w) unscaled.
        images: (F, H, W, 3) in [0, 1].
    """

    calls: int
    latents: torch.Tensor
    images: torch.Tensor


class SceneSampler:
    """Samples one scene with several samplers, from the same noise and conditioning."""

    def __init__(self, checkpoint: Checkpoint, first_frame: torch.Tensor, seed: int, settings: VideoSettings) -> None:
        height, width, _ = first_frame.shape
        values: Any = replace(settings, width=width, height=height).with_defaults(checkpoint.model.defaults)
        self._checkpoint, self._runtime = checkpoint, LocalRuntime(device_name="cpu")
        self._curve = GuidanceCurve("linear", values.min_guidance, values.max_guidance)
        self._noise = VideoNoise.from_seed(seed, values.noise, first_frame[None], values.num_frames)
        micro = MicroConditioning(values.fps, values.motion_bucket_id, values.noise_aug_strength)
        images = first_frame[None]
        self._pairs = condition_images(checkpoint, [images], images, self._noise, micro, self._runtime)

    def sample(self, candidate: Candidate) -> Result:
        """Sample and decode the video."""
        model, noise = self._checkpoint.model, self._noise.starting
        sigmas = execution.model_sigmas(model, candidate.steps, candidate.schedule)
        start = execution.noisy_latents(model, torch.zeros_like(noise), noise, sigmas[0])
        curve = replace(self._curve, refinement=GuidanceRefinement(candidate.guidance_from, candidate.guidance_to))
        solve = _CountedCalls(SOLVERS[candidate.sampler], curve)
        latents = execution.sample(self._runtime, model, self._pairs, start, curve, sigmas, solver=solve)
        (images,) = execution.decode(self._runtime, self._checkpoint.vae, latents, "exact", 8, 2)
        return Result(solve.calls, latents[0], images)


class _CountedCalls:
    """A solver that counts the network calls of its denoiser, on both sides of guidance."""

    def __init__(self, solve: Solve, curve: GuidanceCurve) -> None:
        self._solve, self._curve, self.calls = solve, curve, 0

    def __call__(
        self, denoise: Denoiser, x: torch.Tensor, sigmas: torch.Tensor, on_step: OnStep, seed: int
    ) -> torch.Tensor:
        def counted(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            self.calls += 1 + (self._curve.guides and self._curve.refinement.acts_at(sigma))
            return denoise(x, sigma)

        return self._solve(counted, x, sigmas, on_step, seed)


def sampler_rows(
    checkpoint: Checkpoint,
    scenes: Sequence[MovingScene],
    truths: Sequence[torch.Tensor],
    settings: VideoSettings,
    position_error: PositionError,
) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each of CANDIDATES. `truths` are the true clips (F, H, W, 3) of the scenes."""
    samplers = [
        SceneSampler(checkpoint, truth[0], scene.mover.seed, settings)
        for scene, truth in zip(scenes, truths, strict=True)
    ]
    exact = [sampler.sample(CONVERGED) for sampler in samplers]
    yield (
        "sampler, schedule, steps",
        "",
        "network calls; latent error and PSNR against the converged video; PSNR against the truth: clip / last frame; "
        "place error",
    )
    for candidate in CANDIDATES:
        results = [sampler.sample(candidate) for sampler in samplers]
        errors = [
            float((result.latents - true.latents).norm() / true.latents.norm())
            for result, true in zip(results, exact, strict=True)
        ]
        to_exact = mean(psnr(result.images, true.images) for result, true in zip(results, exact, strict=True))
        clip = mean(psnr(result.images, truth) for result, truth in zip(results, truths, strict=True))
        last = mean(psnr(result.images[-1], truth[-1]) for result, truth in zip(results, truths, strict=True))
        places = (
            position_error(scene, result.images, truth)
            for scene, result, truth in zip(scenes, results, truths, strict=True)
        )
        yield (
            str(candidate),
            "compare",
            f"{results[0].calls}; {mean(errors):.4f}, {to_exact:.1f} dB; {clip:.2f} / {last:.2f} dB; "
            f"{100 * median(places):.1f} %",
        )
