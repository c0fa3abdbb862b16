"""Compare samplers on svd-nano: network calls against the error to the converged solution and to the true clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import mean, median

import torch

from ...svd_core.diffusion.schedule_fitting import FitOptions, format_sigmas
from ...svd_core.media.image_ops import psnr
from ...svd_core.models.components import Checkpoint
from ...svd_core.pipeline import ALL_LEVELS, VideoSettings
from ...svd_core.runtime.runtime import LocalRuntime
from ...svd_core.sampler_comparison import CONVERGED, Candidate, ComparedVideo, compare_samplers, fit_schedule
from .clips import MovingScene

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
    *(replace(Candidate.of_preset(name), step_cache=interval) for name in ("reference", "fast") for interval in (2, 3)),
)

FIT = FitOptions(steps=10, solver="euler", rounds=1)
FIT_FRAMES = 8
"""Frames of the videos of `schedule_rows`: fewer, because a fit takes hundreds of sampling steps for each video."""

PositionError = Callable[[MovingScene, torch.Tensor, torch.Tensor], float]


def sampler_rows(
    checkpoint: Checkpoint,
    scenes: Sequence[MovingScene],
    truths: Sequence[torch.Tensor],
    settings: VideoSettings,
    position_error: PositionError,
    candidates: Sequence[Candidate] = CANDIDATES,
) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each candidate. `truths` are the true clips (F, H, W, 3) of the scenes."""
    runtime = LocalRuntime(device_name="cpu")
    videos = [
        ComparedVideo(checkpoint, truth[:1], _of_scene(settings, scene), runtime)
        for scene, truth in zip(scenes, truths, strict=True)
    ]
    rows = compare_samplers(videos, candidates)
    next(rows)  # the converged solution itself
    yield (
        "sampler, schedule, steps",
        "",
        "network calls (cached of them); seconds to sample; latent error and PSNR against the converged video; PSNR "
        "against the truth: clip / last frame; place error",
    )
    for row in rows:
        clips = [video.images for video in row.videos]
        clip = mean(psnr(images, truth) for images, truth in zip(clips, truths, strict=True))
        last = mean(psnr(images[-1], truth[-1]) for images, truth in zip(clips, truths, strict=True))
        places = (
            position_error(scene, images, truth) for scene, images, truth in zip(scenes, clips, truths, strict=True)
        )
        cached = f" ({row.calls.cached})" if row.calls.cached else ""
        yield (
            str(row.candidate),
            "compare",
            f"{row.calls.total}{cached}; {row.seconds:.2f} s; {row.error:.4f}, {row.psnr:.1f} dB; "
            f"{clip:.2f} / {last:.2f} dB; {100 * median(places):.1f} %",
        )


def schedule_rows(
    checkpoint: Checkpoint, scenes: Sequence[MovingScene], first_frames: Sequence[torch.Tensor], settings: VideoSettings
) -> Iterator[tuple[str, str, str]]:
    """Yield a schedule that is fitted to the first half of the scenes, and errors of schedules on the other half.

    Args:
        first_frames: (1, H, W, 3) in [0, 1] of each scene. At least two.
        settings: Of the videos, but for the number of frames. Guidance acts at all noise levels.
    """
    runtime = LocalRuntime(device_name="cpu")
    settings = replace(settings, num_frames=FIT_FRAMES, **ALL_LEVELS)
    videos = [
        ComparedVideo(checkpoint, frame, _of_scene(settings, scene), runtime)
        for scene, frame in zip(scenes, first_frames, strict=True)
    ]
    half = len(videos) // 2
    fitted = fit_schedule(videos[:half], FIT)
    yield f"{FIT.solver}, {FIT.steps} steps, fitted to {half} scenes", "", format_sigmas(fitted.sigmas)
    exact = [video.sample(CONVERGED).latents for video in videos[half:]]
    for name, sigmas in (("karras", None), ("align_your_steps", None), ("the fitted schedule", fitted.sigmas)):
        candidate = Candidate(FIT.solver, "karras" if sigmas is not None else name, FIT.steps)
        errors = [
            float((video.sample(candidate, sigmas=sigmas).latents - true).norm() / true.norm())
            for video, true in zip(videos[half:], exact, strict=True)
        ]
        each = ", ".join(f"{error:.4f}" for error in errors)
        yield f"latent error of {name} on the other scenes", "compare", f"{mean(errors):.4f}: {each}"


def _of_scene(settings: VideoSettings, scene: MovingScene) -> VideoSettings:
    return replace(settings, width=scene.width, height=scene.height, seed=scene.mover.seed)
