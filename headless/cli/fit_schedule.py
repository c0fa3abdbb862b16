"""The command `svd-stages fit-schedule`."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...svd_core.errors import counted
from ...svd_core.media.alpha_compositing import GREY, read_background
from ...svd_core.pipeline import ODE_SAMPLERS, VideoSettings
from ..animation.image_sources import find_images
from ..engines.graphs import write_text
from .animate import add_settings
from .console import Console
from .options import add_background, add_command, add_threads, make_run_config
from .parser import count, integer

if TYPE_CHECKING:
    from ...svd_core.diffusion.schedule_fitting import FitRow
    from ..animation.sampler_table import PlannedImage

STEPS, FINE_STEPS, ROUNDS = 10, 50, 2
SETTINGS = (
    "model", "width", "height", "fit", "num_frames", "seed", "fps", "motion_bucket_id", "noise_aug_strength",
    "min_guidance", "max_guidance", "guidance_from", "guidance_to",
)  # fmt: skip
"""Fields of VideoSettings that are options: those that change the solution."""


def add_fit_schedule(commands: Any) -> None:
    """Add `svd-stages fit-schedule`."""
    text = "fit the noise levels of few steps to images, for --sigmas; Ctrl-C keeps the rows that are printed"
    parser = add_command(commands, "fit-schedule", fit_schedule, text)
    parser.add_argument(
        "image", nargs="+", metavar="IMAGE", help="as of animate; one gives a schedule, three or more a better one"
    )
    parser.add_argument("--steps", type=count, default=STEPS, metavar="N", help=f"of the schedule (default: {STEPS})")
    parser.add_argument(
        "--sampler", choices=ODE_SAMPLERS, default="euler", help="for which the schedule is made (default: euler)"
    )
    parser.add_argument(
        "--fine-steps", type=count, default=FINE_STEPS, metavar="N", help="of dpmpp_2m, whose result counts as the "
        f"exact solution (default: {FINE_STEPS})",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=integer, default=ROUNDS, metavar="N", help=f"improvements, at most (default: {ROUNDS})"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the best row to this text file, too")
    parser.add_argument("--no-network", action="store_true", help="refuse http(s) addresses")
    add_settings(parser, SETTINGS)
    add_background(parser, "grey 0.5")
    add_threads(parser)


def fit_schedule(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages fit-schedule`. Each schedule is printed when its error is known."""
    from ...svd_core import execution
    from ...svd_core.diffusion.noise_augmentation import seed_for_index
    from ...svd_core.diffusion.schedule_fitting import FitOptions, format_sigmas
    from ...svd_core.sampler_comparison import ComparedVideo
    from ...svd_core.sampler_comparison import fit_schedule as fit_videos
    from ..animation.sampler_table import plan_images

    began = time.monotonic()
    options = FitOptions(arguments.steps, arguments.sampler, arguments.fine_steps, arguments.rounds)
    settings = VideoSettings(**{name: getattr(arguments, name) for name in SETTINGS})
    runtime = make_run_config(arguments, console).runtime()
    background = runtime.background or read_background(GREY)
    images: list[PlannedImage] = []
    for source in find_images(arguments.image):  # each image has noise of its own
        own = replace(settings, seed=seed_for_index(settings.seed, len(images)))
        images += plan_images([source], background, not arguments.no_network, own, runtime)
    most = options.most_calls(len(images))
    text = (
        f"{counted(len(images), 'image')}, at most {most} sampling steps; with guidance, a step calls the network twice"
    )
    console.announce("fit", text, images=len(images), steps=most)
    console.expect(["loading", *["embedding", "encoding"] * len(images), "fitting"])
    rows: list[FitRow] = []

    def print_row(row: FitRow) -> None:
        rows.append(row)
        text = format_sigmas(row.sigmas)
        console.part("row", f"{row.name:<18}{row.error:.4f}  {text}", name=row.name, error=row.error, sigmas=text)

    try:
        checkpoint = execution.load(runtime, settings.model, "auto")
        videos = [ComparedVideo(checkpoint, each.plan.images, each.plan.settings, runtime) for each in images]
        fit_videos(videos, options, print_row)
    finally:  # also after Ctrl-C
        if rows:
            _print_best(rows, arguments.output, console)
    seconds = round(time.monotonic() - began, 2)
    best = _best_of(rows)
    text = "" if console.is_quiet else f"{seconds:.1f} s in all"
    console.result(text, name=best.name, error=best.error, sigmas=format_sigmas(best.sigmas), seconds=seconds)


def _best_of(rows: list[FitRow]) -> FitRow:
    return min(rows, key=lambda row: row.error)


def _print_best(rows: list[FitRow], output: Path | None, console: Console) -> None:
    """Print the best row alone on a line. Write it to `output`, if one was given. Raises OutputError."""
    from ...svd_core.diffusion.schedule_fitting import format_sigmas

    best = _best_of(rows)
    text = format_sigmas(best.sigmas)
    console.part("best", text, name=best.name, error=best.error, sigmas=text)
    if output is not None:
        write_text(output, text + "\n")
        console.part("wrote", f"wrote {output}", files=[str(output)])
