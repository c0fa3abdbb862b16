"""The command `svd-stages animate`: arguments and output."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Collection
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from ...svd_core.errors import OutputError, printable
from ...svd_core.pipeline import VideoSettings
from ..animation.estimate import describe_plan
from ..animation.render import FailedImage, FilePlan, FileRequest, animate_files
from ..batch.manifest import parse_seeds
from .console import Console
from .options import (
    add_background,
    add_command,
    add_on_oom,
    add_threads,
    make_run_config,
    parsed,
    print_files,
    print_written,
)
from .parser import integer, number

STAGES = ("embedding", "encoding", "sampling", "decoding")
"""The stages of a video that report progress."""


def add_animate(commands: Any) -> None:
    """Add `svd-stages animate`."""
    parser = add_command(commands, "animate", animate, "animate images to videos")
    parser.add_argument(
        "image",
        nargs="+",
        metavar="IMAGE",
        help='a PNG, JPEG, WebP, HEIC, ... file, a folder of up to 50, a pattern in quotes such as "photos/*.jpg", an '
        "http(s) address, or - for standard input; an animated file makes a video of each of its images",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help='a file ending in .mp4, .webm, .gif, .webp or .png (animated), a folder such as "videos/", or numbered '
        "frames: frames/%%05d.png; {name} and {seed} stand for the image and the seed (default: the image's name with "
        ".mp4, in this folder, numbered if it is taken)",
    )
    parser.add_argument("--force", action="store_true", help="replace existing files")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the size, settings, files, memory and time of each video; write nothing",
    )
    parser.add_argument("--no-network", action="store_true", help="refuse http(s) addresses")
    seeds = parser.add_mutually_exclusive_group()
    for setting in fields(VideoSettings):
        unset = setting.metadata["unset"] if setting.default is None else setting.default
        add_setting(seeds if setting.name == "seed" else parser, setting, setting.default, unset)
    seeds.add_argument(
        "--seeds", type=parsed("seeds", parse_seeds), default=(), metavar="LIST",
        help="a video for each: 0-3, or 1,5,9",
    )  # fmt: skip
    add_background(parser, "grey 0.5")
    add_on_oom(parser)
    add_threads(parser)


def add_settings(parser: Any, names: Collection[str]) -> None:
    """Add the options of these fields of VideoSettings, with their defaults."""
    for setting in fields(VideoSettings):
        if setting.name in names:
            unset = setting.metadata["unset"] if setting.default is None else setting.default
            add_setting(parser, setting, setting.default, unset)


def add_setting(parser: Any, setting: Field, default: Any, described: object) -> None:
    """Add the option of a field of VideoSettings. `described` is its default in the help text."""
    about = setting.metadata
    flag = about.get("flag", "--" + setting.name.replace("_", "-"))
    if flag is None:
        return
    types = {int: integer, float: number}
    form = {"choices": about["choices"]} if "choices" in about else {"type": types.get(about["kind"], about["kind"])}
    parser.add_argument(
        flag, dest=setting.name, default=default, metavar=about.get("metavar"),
        help=f"{about['description']} (default: {described})", **form,
    )  # fmt: skip


def animate(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages animate`.

    Raises:
        OutputError: Some of several images have no video (code `output.images_failed`).
    """
    began = time.monotonic()
    options = vars(arguments)
    settings = VideoSettings(
        **{each.name: options[each.name] for each in fields(VideoSettings) if each.name in options}
    )
    request = FileRequest.make(
        arguments.image, arguments.output, settings, arguments.seeds, arguments.force, not arguments.no_network
    )
    console.expect(["loading", *STAGES * request.count])

    video: dict[str, Any] = {}

    def name_video(plan: FilePlan) -> None:
        video.update(image=plan.source.name, seed=plan.video.settings.seed)
        subject = f"{plan.number}/{request.count} {printable(plan.source.file_name, 24)} "
        console.name(subject if request.count > 1 else "", **video)

    run_config = make_run_config(arguments, console)
    files: list[Path] = []
    failed: list[FailedImage] = []
    results = request.plan(run_config.runtime())
    if not arguments.dry_run:
        results = animate_files(request, run_config, name_video)
    plans: list[str] = []
    made = 0
    with contextlib.closing(results):
        for result in results:
            if isinstance(result, FailedImage):
                failed.append(result)
                _announce(result, console)
                continue
            made += 1
            if isinstance(result, FilePlan):
                text, values = describe_plan(result, run_config.runtime())
                console.event("plan", **values)
                plans.append(text)
            else:
                files += result.files
                print_written(result.files, console, **video)
    if arguments.dry_run:
        console.result("\n".join(plans), files=[], seconds=round(time.monotonic() - began, 2))
    else:
        print_files(files, time.monotonic() - began, console)
    if failed:
        names = ", ".join(dict.fromkeys(each.name for each in failed))
        raise OutputError(
            f"{request.count - made} of {request.count} videos were not made, those of {names}. "
            f"The first reason: {failed[0].error}",
            code="output.images_failed",
        )


def _announce(failure: FailedImage, console: Console) -> None:
    code, message = failure.error.code, str(failure.error)
    text = message if failure.name in message else f"{failure.name}: {message}"
    console.failure(text, image=failure.name, code=code, message=message)
