"""Options that several commands have."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from ...svd_core.errors import SVDStagesError
from ...svd_core.media.alpha_compositing import read_background
from ...svd_core.runtime.memory import parse_bytes
from ..engines.graphs import describe_file
from ..engines.run_config import RunConfig
from .console import Console
from .parser import Parser, count

Command = Callable[[argparse.Namespace, Console], None]


def parsed(name: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return the type of an option that `parse` reads. Its errors begin with the argument `name`."""

    def parse_text(text: str) -> Any:
        try:
            return parse(text)
        except SVDStagesError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"`{name}` ")) from error

    return parse_text


COMPUTING: dict[str, dict[str, Any]] = {
    "models": {
        "action": "append", "default": [], "metavar": "DIR", "help": "models folder in ComfyUI's layout; repeatable "
        "(default: $SVD_STAGES_MODELS, else the models folder of the ComfyUI around this package, else ./models)",
    },
    "device": {"default": "auto", "help": "auto, cpu, cuda, cuda:1, mps (default: auto)"},
    "precision": {
        "default": "auto", "choices": ("auto", "fp16", "bf16", "fp32"), "help": "of the weights (default: auto)"
    },
    "vram": {
        "type": parsed("vram", functools.partial(parse_bytes, "vram")), "metavar": "SIZE",
        "help": "use at most so much of the memory of the device, such as 6G: the same pixels, more slowly; prints the "
        "plan",
    },
}  # fmt: skip
"""Options of commands that load a model."""


def add_command(
    commands: Any, name: str, command: Command, help_text: str, options: Collection[str] = (*COMPUTING, "quiet")
) -> Parser:
    """Add a command with --json, --debug and the `options`: those of COMPUTING that it uses, and quiet."""
    parser = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    parser.set_defaults(command=command, parser=parser, form=parser.form)
    computing = parser.add_argument_group("model and device")
    for option in [each for each in COMPUTING if each in options]:
        computing.add_argument(f"--{option}", **COMPUTING[option])
    if "quiet" in options:
        parser.add_argument(
            "-q",
            "--quiet",
            action="store_true",
            help="print only results and errors: no progress, no notices, no total time",
        )
    common = parser.add_argument_group("common options")
    common.add_argument("--json", action="store_true", help="one JSON object a line on stdout: progress and result")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_background(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option for the background of transparent parts. `default` is its default in words."""
    parser.add_argument(
        "--background", type=parsed("background", read_background), metavar="COLOUR",
        help="color behind transparent parts of images: white, #336699, a grey level such as 0.5; keep: use the colors "
        f"stored there, as ComfyUI does (default: {default})",
    )  # fmt: skip


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads, see `set_threads`."""
    parser.add_argument(
        "--threads", dest="own_threads", type=count, metavar="N", help="threads on a CPU (default: torch's choice, "
        "usually one for each core); the last digits of a video depend on it",
    )  # fmt: skip


def set_threads(arguments: argparse.Namespace) -> None:
    """Set the threads of this process to --threads, if it was given."""
    if getattr(arguments, "own_threads", None) is not None:
        import torch

        torch.set_num_threads(arguments.own_threads)


def make_run_config(arguments: argparse.Namespace, console: Console, **folders: Path) -> RunConfig:
    """Convert the options that all commands have, and obey --threads."""
    set_threads(arguments)
    return RunConfig(
        models=arguments.models,
        device=arguments.device,
        precision=arguments.precision,
        reporter=console.report,
        vram=arguments.vram,
        background=getattr(arguments, "background", None),
        on_oom=getattr(arguments, "on_oom", "strict"),
        on_note=lambda note: console.event("note", **note.as_dict()),
        owns_process=True,
        **folders,
    )


def add_on_oom(parser: argparse.ArgumentParser) -> None:
    """Add --on-oom."""
    parser.add_argument(
        "--on-oom", choices=("strict", "adapt"), default="strict", help="when memory runs out while windows are "
        "decoded: an error, or smaller windows, which give other pixels and are noted (default: strict)",
    )  # fmt: skip


def print_written(files: Sequence[Path], console: Console, **video: Any) -> None:
    """Print files that are complete, a line for each. `video` are values for programs."""
    lines = "\n".join(f"wrote {path}{describe_file(path)}" for path in files)
    console.part("wrote", lines, files=[str(path) for path in files], **video)


def print_files(files: Sequence[Path], seconds: float, console: Console) -> None:
    """Print the result of a command that wrote files, which `print_written` named: the time, unless it is quiet."""
    text = "" if console.is_quiet else f"{seconds:.1f} s in all"
    console.result(text, files=[str(path) for path in files], seconds=round(seconds, 2))
