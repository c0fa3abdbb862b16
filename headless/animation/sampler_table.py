"""Compare samplers on images of the user, and save the videos: the work of `compare-samplers`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...nodes.compat.saving import graph_metadata
from ...svd_core.errors import SettingError
from ...svd_core.media.alpha_compositing import Background
from ...svd_core.media.video_io import ENCODERS, exact_fps
from ...svd_core.pipeline import PRESETS, VideoSettings
from ...svd_core.runtime.runtime import LocalRuntime, forward_warnings
from ...svd_core.sampler_comparison import CONVERGED, REFERENCE, SAMPLERS, Candidate, SamplerRow
from ...svd_core.utils.output_files import scratch_folder_beside
from ..engines.video_graph import with_sampling
from .image_sources import ImageSource
from .render import VideoPlan, plan_video
from .video_files import OutputNames

CANDIDATES = (
    *(Candidate.of_preset(name) for name, values in PRESETS.items() if values["sampler"] in SAMPLERS),
    Candidate("dpmpp_2m", "karras", 25),
    Candidate("euler", "align_your_steps", 10),
    Candidate("dpmpp_2m", "align_your_steps", 8),
    replace(REFERENCE, step_cache=3),
    replace(Candidate.of_preset("fast"), step_cache=2),
)
"""What is compared if nothing else is asked for."""


@dataclass(frozen=True, eq=False)
class PlannedImage:
    """One image to compare on, checked.

    Attributes:
        name: The image's file name without suffix.
        plan: Its video, with the settings of the converged solution.
    """

    name: str
    plan: VideoPlan


def plan_images(
    sources: Sequence[ImageSource],
    background: Background,
    allow_network: bool,
    settings: VideoSettings,
    runtime: LocalRuntime,
) -> list[PlannedImage]:
    """Read the images and check the settings. Images of an animated file use the next seeds, as in `animate`.

    Raises:
        ImageError: An image is missing or damaged.
        CheckpointError, SettingError, GraphError: As `plan_video`.
    """
    from ...svd_core.diffusion.noise_augmentation import seed_for_index

    planned = []
    for source in sources:
        images, warnings = source.read(background, allow_network)
        forward_warnings(runtime, warnings)
        for index in range(len(images)):
            own = replace(settings, seed=seed_for_index(settings.seed, index))
            plan = plan_video(images[index : index + 1], own, runtime, source.file_name)
            first = planned[-index].plan if index else plan
            planned.append(PlannedImage(source.stem, replace(plan, prompt=first.prompt)))  # of all images of the file
    return planned


def converged_settings(settings: VideoSettings, steps: int | None) -> tuple[VideoSettings, Candidate]:
    """Return the settings of the converged solution with so many steps, and its candidate. Raises SettingError."""
    converged = CONVERGED if steps is None else replace(CONVERGED, steps=steps)
    return replace(settings, **converged.settings), converged


@dataclass(frozen=True, eq=False)
class VideoFolder:
    """The folder that a comparison writes the videos of its candidates to: IMAGE_SAMPLER_SCHEDULE_STEPS.mp4.

    Raises:
        SettingError: The name is that of a file.
    """

    folder: str
    replace: bool = False
    names: OutputNames = field(init=False)

    def __post_init__(self) -> None:
        if Path(self.folder).suffix.lower() in ENCODERS or Path(self.folder).is_file():
            raise SettingError(f'`output` must be a folder such as "samplers/", got "{self.folder}"')
        object.__setattr__(self, "names", OutputNames.parse(f"{self.folder}/", 1, 1, self.replace))

    def opened(self) -> contextlib.AbstractContextManager[object]:
        """Make the folder. Raises SettingError if it cannot be written."""
        return scratch_folder_beside(Path(self.folder) / "video")

    def save(self, row: SamplerRow, images: Sequence[PlannedImage], runtime: LocalRuntime) -> list[Path]:
        """Write the video of each image by one candidate, with its graph. Raises OutputError."""
        files: list[Path] = []
        for planned, video in zip(images, row.videos, strict=True):
            metadata = graph_metadata(with_sampling(planned.plan.prompt, row.candidate.settings), None)
            path = self.names.next_path(
                f"{planned.name}_{row.candidate.text.replace(':', '_')}", planned.plan.settings.seed
            )
            fps = exact_fps(float(planned.plan.settings.fps))
            saved, warnings = self.names.save(video.images, path, fps, metadata)
            forward_warnings(runtime, warnings)
            files += saved
        return files


def row_values(row: SamplerRow, reference: SamplerRow | None) -> dict[str, Any]:
    """Return the values of a row for programs. `of_reference`: its error as a part of the reference's, once known."""
    candidate = row.candidate
    return {
        "candidate": candidate.text,
        **candidate.settings,
        "preset": candidate.preset,
        "calls": row.calls.total,
        "cached": row.calls.cached,
        "seconds": round(row.seconds, 3),
        "error": row.error,
        "psnr": row.psnr,
        "of_reference": None if reference is None else row.error / reference.error,
    }


def with_reference(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates, each once, after the preset reference."""
    return list(dict.fromkeys((REFERENCE, *candidates)))


def fastest(rows: Sequence[SamplerRow], reference: SamplerRow) -> SamplerRow | None:
    """Return the fastest row with fewer whole network calls than the reference and at most its error, or None."""
    near = [row for row in rows if row.error <= reference.error and row.calls.whole < reference.calls.whole]
    return min(near, key=lambda row: row.seconds, default=None)
