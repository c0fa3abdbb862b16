"""The command `svd-stages compare-samplers`."""

from __future__ import annotations

import argparse
import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...svd_core.errors import counted
from ...svd_core.media.alpha_compositing import GREY, read_background
from ...svd_core.pipeline import VideoSettings
from ...svd_core.runtime.runtime import LocalRuntime, ignore_progress
from ..animation.image_sources import find_images
from ..engines.setting_checks import check_settings
from .animate import add_settings
from .console import Console
from .options import add_background, add_command, add_on_oom, add_threads, make_run_config, parsed, print_written
from .parser import count

if TYPE_CHECKING:
    from ...svd_core.sampler_comparison import Candidate, ComparedVideo, SamplerRow
    from ..animation.sampler_table import PlannedImage, VideoFolder

SETTINGS = (
    "model", "width", "height", "fit", "num_frames", "seed", "fps", "motion_bucket_id", "noise_aug_strength",
    "min_guidance", "max_guidance", "decode_mode", "decode_chunk", "decode_context",
)  # fmt: skip
"""The settings of `animate` that are the same for all candidates."""
COLUMNS = (
    "sampler, schedule, steps", "preset", "network calls", "seconds", "latent error", "of the reference's", "PSNR",
)  # fmt: skip


def add_compare_samplers(commands: Any) -> None:
    """Add `svd-stages compare-samplers`."""
    text = (
        "compare samplers on your own images and weights: network calls, time, and the error to a converged solution; "
        "Ctrl-C keeps the rows that are printed"
    )
    parser = add_command(commands, "compare-samplers", compare_samplers, text)
    parser.add_argument("image", nargs="+", metavar="IMAGE", help="as for animate; each adds its time to every row")
    parser.add_argument(
        "--candidate", type=parsed("candidate", _read_candidate), action="append", metavar="CANDIDATE",
        help="a preset, or SAMPLER:SCHEDULE:STEPS such as dpmpp_2m:align_your_steps:10; then, where wanted, "
        ":guidance=FROM-TO (noise levels) and :cache=N (see SVDStepCache); repeatable (default: the presets and more)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=count, metavar="N", help="of the converged solution: dpmpp_2m, karras (default: 100)"
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="save the video of each row there, with its graph inside"
    )
    parser.add_argument("--force", action="store_true", help="replace existing files")
    parser.add_argument("--no-network", action="store_true", help="refuse http(s) addresses")
    add_settings(parser, SETTINGS)
    add_background(parser, "grey 0.5")
    add_on_oom(parser)
    add_threads(parser)


def _read_candidate(text: str) -> Candidate:
    from ...svd_core.sampler_comparison import Candidate

    return Candidate.parse(text)


def compare_samplers(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages compare-samplers`. Each row is printed when it is known."""
    from ...svd_core import execution
    from ...svd_core.sampler_comparison import ComparedVideo
    from ..animation.sampler_table import CANDIDATES, VideoFolder, converged_settings, plan_images, with_reference

    began = time.monotonic()
    run_config = make_run_config(arguments, console)
    runtime = run_config.runtime()
    options = vars(arguments)
    settings = VideoSettings(**{name: options[name] for name in SETTINGS})
    settings, converged = converged_settings(settings, arguments.steps)
    candidates = with_reference(arguments.candidate or CANDIDATES)
    folder = None if arguments.output is None else VideoFolder(arguments.output, arguments.force)
    background = runtime.background or read_background(GREY)
    for candidate in candidates:
        check_settings(replace(settings, **candidate.settings))
    images = plan_images(find_images(arguments.image), background, not arguments.no_network, settings, runtime)
    with contextlib.nullcontext() if folder is None else folder.opened():
        checkpoint = execution.load(runtime, settings.model, "auto")
        silent = replace(runtime, reporter=ignore_progress)  # the calls of all candidates have one bar
        videos = [ComparedVideo(checkpoint, each.plan.images, each.plan.settings, silent) for each in images]
        table = _Table(console, images, folder, runtime)
        table.announce(videos, converged, candidates)
        table.print_rows(videos, converged, candidates)
    table.print_result(time.monotonic() - began)


class _Table:
    """The printed rows of a comparison."""

    def __init__(
        self, console: Console, images: list[PlannedImage], folder: VideoFolder | None, runtime: LocalRuntime
    ) -> None:
        self._console, self._images, self._folder, self._runtime = console, images, folder, runtime
        self._rows: list[SamplerRow] = []
        self._files: list[Path] = []
        self._total = 0

    def announce(self, videos: list[ComparedVideo], converged: Candidate, candidates: list[Candidate]) -> None:
        """Print what will be compared, and the number of network calls."""
        from ...svd_core.sampler_comparison import count_all_calls

        video = self._images[0].plan.settings
        exact, others = (count_all_calls(videos, each) for each in ([converged], candidates))
        self._total = exact + others
        text = (
            f"{video.model}, {video.width}x{video.height}, {counted(video.num_frames or 0, 'frame')}, "
            f"{counted(len(self._images), 'image')}: {counted(self._total, 'network call')}, {exact} of them for the "
            f"converged solution ({converged}), {others} for {counted(len(candidates), 'candidate')}"
        )
        values = {name: getattr(video, name) for name in ("model", "width", "height", "num_frames", "seed")}
        names = [candidate.text for candidate in candidates]
        self._console.part("comparison", text, **values, images=len(self._images), candidates=names, calls=self._total)

    def print_rows(self, videos: list[ComparedVideo], converged: Candidate, candidates: list[Candidate]) -> None:
        """Measure and print. Progress is that of all network calls."""
        from ...svd_core.sampler_comparison import compare_samplers
        from ..bench.report import header, table_row

        title = header(COLUMNS) + "\n"
        self._report(0)
        for row in compare_samplers(videos, candidates, converged, self._report):
            values = self._values(row)
            self._console.part("compared", title + table_row(*_cells(row, values)), **values)
            if self._folder is not None:
                files = self._folder.save(row, self._images, self._runtime)
                print_written(files, self._console)
                self._files += files
            self._rows.append(replace(row, videos=()))  # many frames, which nothing needs any more
            title = ""

    def _report(self, calls: int) -> None:
        self._console.report("comparing", calls, self._total, "network call")

    def _values(self, row: SamplerRow) -> dict[str, Any]:
        from ..animation.sampler_table import row_values

        known = [*self._rows[1:], row][:1] if self._rows else []
        return {**row_values(row, *known or [None]), "converged": not self._rows}

    def print_result(self, seconds: float) -> None:
        """Print the fastest candidate that is as near to the converged solution as the reference, and the time."""
        from ..animation.sampler_table import fastest, row_values

        reference = self._rows[1]
        best = fastest(self._rows[2:], reference)
        if best is None:
            text = f"No candidate has at most the reference's error, {reference.error:.4f}, with fewer network calls."
        else:
            preset = f" (--preset {best.candidate.preset})" if best.candidate.preset else ""
            text = (
                f"Fastest with at most the reference's error, {reference.error:.4f}: {best.candidate}{preset}, "
                f"{best.seconds:.3g} s in place of {reference.seconds:.3g} s"
            )
        if not self._console.is_quiet:
            text += f"\n{seconds:.1f} s in all"
        files = [str(path) for path in self._files]
        values = None if best is None else row_values(best, reference)
        self._console.result("\n" + text, fastest=values, files=files, seconds=round(seconds, 2))


def _cells(row: SamplerRow, values: dict[str, Any]) -> tuple[str, ...]:
    calls = str(row.calls.total) + (f", {row.calls.cached} cached" if row.calls.cached else "")
    name = f"{row.candidate} (converged)" if values["converged"] else str(row.candidate)
    share = "" if values["of_reference"] is None else f"{values['of_reference']:.2f}"
    psnr = "" if values["converged"] else f"{row.psnr:.1f} dB"
    return name, row.candidate.preset or "", calls, f"{row.seconds:.3g}", f"{row.error:.4f}", share, psnr
