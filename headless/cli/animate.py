"""The command `svd-stages animate`: arguments and output."""

from __future__ import annotations

import argparse
import time
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from ...svd_core.pipeline import VideoSettings
from ..animation.render import animate_file
from .console import Console
from .options import add_background, add_command, add_on_oom, make_run_config, print_files
from .parser import integer, number


def add_animate(commands: Any) -> None:
    """Add `svd-stages animate`."""
    parser = add_command(commands, "animate", animate, "animate an image to an mp4")
    parser.add_argument(
        "image",
        type=Path,
        metavar="IMAGE",
        help="PNG, JPEG, WebP, ...; an animated file makes a video of each of its images",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT.mp4",
        help="default: the image's name, in this folder, numbered if it is taken",
    )
    for setting in fields(VideoSettings):
        unset = setting.metadata["unset"] if setting.default is None else setting.default
        add_setting(parser, setting, setting.default, unset)
    add_background(parser, "grey 0.5")
    add_on_oom(parser)


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
    """Run `svd-stages animate`."""
    began = time.monotonic()
    options = vars(arguments)
    settings = VideoSettings(
        **{each.name: options[each.name] for each in fields(VideoSettings) if each.name in options}
    )
    output = arguments.output or _free_name(arguments.image.stem)
    report = animate_file(arguments.image, output, settings, make_run_config(arguments, console))
    print_files(report.files, time.monotonic() - began, console)


def _free_name(stem: str) -> Path:
    """Return `stem`.mp4 in this folder, or the first free numbered name, so that no earlier video is replaced."""
    from ...svd_core.utils.output_files import free_names

    first = Path(f"{stem}.mp4")
    return next(free_names(first, 2)) if first.exists() else first
