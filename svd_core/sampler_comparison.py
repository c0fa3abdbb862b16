"""Compare samplers on one's own images: network calls, time, and the error to a converged solution.

All candidates start from the same noise and conditioning. Only samplers that add no noise have a solution to converge
to: that of the probability-flow ODE (Song et al. 2021, arXiv:2011.13456).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch

from . import execution
from .diffusion.conditioning import MicroConditioning
from .diffusion.guidance import GuidanceCurve, GuidanceRefinement
from .diffusion.network_calls import NetworkCalls, count_network_calls
from .diffusion.sampling import ODE_SOLVERS, SOLVERS
from .diffusion.schedule_fitting import FitOptions, FitRow, OnRow
from .errors import SettingError, closest, printable
from .media.image_ops import psnr, resize_images
from .models.components import Checkpoint, SVDModel
from .models.step_cache import StepCache
from .pipeline import ALL_LEVELS, PRESETS, SCHEDULES, VideoNoise, VideoSettings, condition_images
from .runtime.runtime import Runtime, forward_warnings
from .utils.tensor_checks import check_images

SAMPLERS = ODE_SOLVERS
"""Samplers that can be compared."""
FORM = "PRESET or SAMPLER:SCHEDULE:STEPS, then :guidance=FROM-TO and :cache=N where they are wanted"


@dataclass(frozen=True)
class Candidate:
    """A way to sample.

    Attributes:
        sampler: One of SAMPLERS.
        schedule: One of `pipeline.SCHEDULES`.
        steps: 1 or more.
        guidance_from: Guidance acts at noise levels above this one,
        guidance_to: up to this one.
        step_cache: Of so many network calls one is whole, see `models.step_cache`. 1: all are.

    Raises:
        SettingError: A value is out of its range.
    """

    sampler: str
    schedule: str
    steps: int
    guidance_from: float = ALL_LEVELS["guidance_from"]
    guidance_to: float = ALL_LEVELS["guidance_to"]
    step_cache: int = 1

    def __post_init__(self) -> None:
        for name, value, choices in (("sampler", self.sampler, SAMPLERS), ("schedule", self.schedule, SCHEDULES)):
            if value not in choices:
                near = closest(value, choices)
                hint = f'. Did you mean "{near}"?' if near else ""
                alike = " (those that add no noise)" if name == "sampler" else ""
                raise SettingError(
                    f"{name} must be one of {', '.join(choices)}{alike}, got {printable(value, 60)}{hint}"
                )
        if self.steps < 1:
            raise SettingError(f"steps must be 1 or more, got {self.steps}. 10 to 25 are usual.")
        GuidanceRefinement(self.guidance_from, self.guidance_to)
        StepCache(self.step_cache)

    @classmethod
    def of_preset(cls, name: str) -> Candidate:
        """Return the settings of a preset, see `pipeline.PRESETS`."""
        return cls(**PRESETS[name])

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read a candidate as FORM says: fast, reference:cache=3, euler:align_your_steps:10:guidance=0.28-5.42.

        Raises:
            SettingError: The text has another form, or a value is out of its range.
        """
        head, changes = [], {}
        for part in text.split(":"):
            name, is_named, value = part.partition("=")
            if not is_named:
                head.append(part)
            elif name == "guidance":
                changes["guidance_from"], changes["guidance_to"] = _numbers(float, value.split("-"), 2, text)
            elif name == "cache":
                (changes["step_cache"],) = _numbers(int, [value], 1, text)
            else:
                raise _misspelt(text)
        if len(head) == 1 and head[0] in PRESETS:
            return replace(cls.of_preset(head[0]), **changes)
        if len(head) != 3:
            raise _misspelt(text)
        sampler, schedule, number = head
        (steps,) = _numbers(int, [number], 1, text)
        return cls(sampler, schedule, steps, **changes)

    @property
    def preset(self) -> str | None:
        """Return the name of the preset that samples so, or None."""
        return next((name for name, values in PRESETS.items() if {**values, "step_cache": 1} == self.settings), None)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the fields of `VideoSettings` that sample so."""
        names = ("sampler", "schedule", "steps", *ALL_LEVELS, "step_cache")
        return {name: getattr(self, name) for name in names}

    @property
    def text(self) -> str:
        """Return the text that `parse` reads as this candidate."""
        guided = f":guidance={self.guidance_from!r}-{self.guidance_to!r}" if self._has_interval else ""
        cached = "" if self.step_cache == 1 else f":cache={self.step_cache}"
        return f"{self.sampler}:{self.schedule}:{self.steps}{guided}{cached}"

    @property
    def _has_interval(self) -> bool:
        return any(getattr(self, name) != level for name, level in ALL_LEVELS.items())

    def __str__(self) -> str:
        guided = f", guidance in ({self.guidance_from:g}, {self.guidance_to:g}]" if self._has_interval else ""
        cached = "" if self.step_cache == 1 else f", step cache {self.step_cache}"
        return f"{self.sampler}, {self.schedule}, {self.steps}{guided}{cached}"


def _numbers(kind: type, texts: Sequence[str], count: int, text: str) -> list[Any]:
    try:
        numbers = [kind(each) for each in texts]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise _misspelt(text)
    return numbers


def _misspelt(text: str) -> SettingError:
    near = closest(text, PRESETS)
    hint = f'. Did you mean "{near}"?' if near else ', such as "dpmpp_2m:align_your_steps:10"'
    return SettingError(f'must be {FORM}, got "{printable(text, 60)}"{hint}')


REFERENCE = Candidate.of_preset("reference")
CONVERGED = Candidate("dpmpp_2m", "karras", 100)
"""Its result counts as the exact solution."""


@dataclass(frozen=True, eq=False)
class SampledVideo:
    """One video by one candidate.

    Attributes:
        seconds: Time of sampling, without encoding and decoding.
        latents: (F, 4, h, w) unscaled, float32 on the CPU.
        images: (F, H, W, 3) in [0, 1], float32 on the CPU.
    """

    seconds: float
    latents: torch.Tensor
    images: torch.Tensor


class ComparedVideo:
    """A video to sample in several ways, from the same noise and conditioning.

    Args:
        checkpoint: Its model samples.
        images: (1, H, W, 3) in [0, 1], at any size.
        settings: Of the video. Those of sampling are not used: the candidates have them.
        runtime: As for `pipeline.image_to_video`, whose errors are raised.
    """

    @torch.inference_mode()
    def __init__(self, checkpoint: Checkpoint, images: torch.Tensor, settings: VideoSettings, runtime: Runtime) -> None:
        _, height, width, _ = check_images(images).shape
        video: Any = settings.with_defaults(checkpoint.model.defaults, (width, height))
        resized, warnings = resize_images(images, video.width, video.height, video.fit)
        forward_warnings(runtime, warnings)
        noise = VideoNoise.from_seed(video.seed, video.noise, resized, video.num_frames)
        micro = MicroConditioning(video.fps, video.motion_bucket_id, video.noise_aug_strength)
        self._pairs = condition_images(checkpoint, [images], resized, noise, micro, runtime)
        self._checkpoint, self._settings, self._runtime, self._noise = checkpoint, video, runtime, noise.starting

    def network_calls(self, candidate: Candidate) -> NetworkCalls:
        """Return the number of network calls of a candidate."""
        model = self._model(candidate)
        return count_network_calls(
            SOLVERS[candidate.sampler], self._sigmas(candidate), self._curve(candidate), model.step_cache
        )

    @torch.inference_mode()
    def sample(
        self,
        candidate: Candidate,
        on_step: execution.OnStep = lambda video, step: None,
        sigmas: torch.Tensor | None = None,
    ) -> SampledVideo:
        """Sample and decode the video. Raises as `pipeline.image_to_video`. `sigmas` replace those of the schedule."""
        model, video = self._model(candidate), self._settings
        sigmas = self._sigmas(candidate) if sigmas is None else sigmas
        start = execution.noisy_latents(model, torch.zeros_like(self._noise), self._noise, sigmas[0])
        solver, curve = SOLVERS[candidate.sampler], self._curve(candidate)
        began = time.perf_counter()
        latents = execution.sample(self._runtime, model, self._pairs, start, curve, sigmas, on_step, solver)
        seconds = time.perf_counter() - began
        windows = (video.decode_mode, video.decode_chunk, video.decode_context)
        (images,) = execution.decode(self._runtime, self._checkpoint.vae, latents, *windows)
        return SampledVideo(seconds, latents[0], images)

    def _model(self, candidate: Candidate) -> SVDModel:
        return self._checkpoint.model.with_step_cache(candidate.step_cache)

    def _sigmas(self, candidate: Candidate) -> torch.Tensor:
        return execution.model_sigmas(self._checkpoint.model, candidate.steps, candidate.schedule)

    def _curve(self, interval: Candidate | VideoSettings) -> GuidanceCurve:
        levels: Any = interval
        refinement = GuidanceRefinement(levels.guidance_from, levels.guidance_to)
        return GuidanceCurve("linear", self._settings.min_guidance, self._settings.max_guidance, refinement)


@torch.inference_mode()
def fit_schedule(videos: Sequence[ComparedVideo], options: FitOptions, on_row: OnRow = lambda row: None) -> FitRow:
    """Fit a schedule to videos of one checkpoint, see `diffusion.schedule_fitting`.

    Args:
        videos: At least one. The guidance is that of the first one's settings.
        options: Steps and sampler of the schedule.
        on_row: Called with each schedule when its error is known. What it raises ends the fit.

    Raises:
        MemoryBudgetError, NonFiniteError: As `pipeline.image_to_video`.
    """
    first = videos[0]
    pairs = [pair for video in videos for pair in video._pairs]
    noises = [video._noise for video in videos]
    curve = first._curve(first._settings)
    return execution.fit_sigmas(first._runtime, first._checkpoint.model, pairs, noises, curve, options, on_row)


@dataclass(frozen=True, eq=False)
class SamplerRow:
    """The measurements of one candidate. Means over the videos.

    Attributes:
        calls: Network calls of one video.
        seconds: Time to sample one video.
        error: |latents - converged| / |converged|.
        psnr: Of the images against the converged video, in dB.
        videos: Each video by this candidate.
    """

    candidate: Candidate
    calls: NetworkCalls
    seconds: float
    error: float
    psnr: float
    videos: Sequence[SampledVideo]


def count_all_calls(videos: Sequence[ComparedVideo], candidates: Sequence[Candidate]) -> int:
    """Return the network calls of all candidates on all videos."""
    return sum(video.network_calls(candidate).total for video in videos for candidate in candidates)


def compare_samplers(
    videos: Sequence[ComparedVideo],
    candidates: Sequence[Candidate],
    converged: Candidate = CONVERGED,
    on_call: Callable[[int], object] = lambda calls: None,
) -> Iterator[SamplerRow]:
    """Yield the row of `converged`, then that of each candidate, as soon as it is known.

    Args:
        videos: At least one.
        candidates: What to compare with the converged solution.
        converged: Its results count as the exact solution.
        on_call: Called with the number of network calls so far, after each step. What it raises ends the comparison.
    """
    exact: Sequence[SampledVideo] = ()
    done = 0
    for candidate in (converged, *candidates):
        sampled = []
        for video in videos:
            calls = video.network_calls(candidate)
            before = done

            def report(index: int, step: Any, before: int = before, total: int = calls.total) -> None:
                on_call(before + step.done * total // step.total)

            sampled.append(video.sample(candidate, report))
            done += calls.total
        exact = exact or sampled
        pairs = list(zip(sampled, exact, strict=True))
        yield SamplerRow(
            candidate,
            videos[0].network_calls(candidate),
            mean(each.seconds for each in sampled),
            mean(float((one.latents - true.latents).norm() / true.latents.norm()) for one, true in pairs),
            mean(psnr(one.images, true.images) for one, true in pairs),
            sampled,
        )
