"""The commands on checkpoints: `svd-stages inspect`, `convert-checkpoint` and `download`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...svd_core.checkpoints.catalog import published
from ...svd_core.checkpoints.library import EMBEDDED
from ...svd_core.runtime.runtime import LocalRuntime
from ..engines.run_config import RunConfig, default_models_roots
from .console import Console
from .options import add_command
from .parser import integer


def add_inspect(commands: Any) -> None:
    """Add `svd-stages inspect`."""
    parser = add_command(
        commands, "inspect", inspect, "tell what checkpoint a file or folder is, from its headers", ["quiet"]
    )
    parser.add_argument("checkpoint", type=Path, metavar="FILE_OR_FOLDER", help=f"or {EMBEDDED}")
    parser.add_argument(
        "--verify", action="store_true", help="read every number as well, and see that all are finite (no NaN)"
    )


def add_convert_checkpoint(commands: Any) -> None:
    """Add `svd-stages convert-checkpoint`."""
    parser = add_command(
        commands,
        "convert-checkpoint",
        convert_checkpoint,
        "convert a one-file checkpoint to a diffusers folder, or back",
        ["quiet"],
    )
    parser.add_argument("source", type=Path, metavar="SRC", help=f"a file, a folder, or {EMBEDDED}")
    parser.add_argument("destination", type=Path, metavar="DST", help="NAME.safetensors, or a new folder")
    parser.add_argument(
        "--frames",
        dest="num_frames",
        type=integer,
        metavar="N",
        help="it was trained for, where SRC does not say so: svd 14, svd_xt 25",
    )


def add_download(commands: Any) -> None:
    """Add `svd-stages download`."""
    text = "fetch a known checkpoint from the hub, checked by sha256"
    parser = add_command(commands, "download", download, text, ["models", "quiet"])
    parser.add_argument("name", metavar="NAME", help="svd, svd-xt, svd-xt-1-1, ...; an unknown name lists all")


def inspect(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages inspect`."""
    from ...svd_core.checkpoints.inspect import inspect as inspect_checkpoint

    inspection = inspect_checkpoint(_by_name(arguments.checkpoint))
    if not arguments.verify:
        console.result(inspection.describe(), **inspection.as_dict())
        return
    from ...svd_core.checkpoints.inspect import verify

    verified = verify(inspection.path, LocalRuntime(reporter=console.report).progress)
    text = f"{inspection.describe()}\n  {verified.describe()}"
    console.result(text, **inspection.as_dict(), verified=asdict(verified))


def convert_checkpoint(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages convert-checkpoint`."""
    from ...svd_core.checkpoints.convert import convert_checkpoint as convert_it

    progress = LocalRuntime(reporter=console.report).progress
    convert_it(_by_name(arguments.source), arguments.destination, progress, arguments.num_frames)
    console.result(f"wrote {arguments.destination}", output=arguments.destination)


def download(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages download`."""
    from ...svd_core.checkpoints.download import download as download_it

    root = Path(arguments.models[0]) if arguments.models else default_models_roots()[0]
    path = download_it(arguments.name, root, LocalRuntime(reporter=console.report).progress)
    console.result(f"{path} is complete", output=path)


def _by_name(checkpoint: Path) -> Path:
    """Return the file of the built-in or a published model for its name, otherwise the path."""
    if checkpoint.exists() or not (str(checkpoint) == EMBEDDED or published(str(checkpoint))):
        return checkpoint
    return RunConfig().runtime().library.find(str(checkpoint))
