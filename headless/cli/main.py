"""The command line: `svd-stages`, or `python -m svd_stages`. Parse arguments, run a command, print errors.

Exit status: 0 done; 2 bad usage or bad graph; 3 a model or input file is missing or invalid, or a server cannot be
reached; 4 a node failed; 130 interrupted; 143 ended by SIGTERM (128 plus the number of the signal).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

from ..._version import __version__
from ...svd_core.checkpoints.library import EMBEDDED, EMBEDDED_FILE
from ...svd_core.errors import GraphError, Interrupted, NodeError, SVDStagesError
from ...svd_core.pipeline import OF_CHECKPOINT, VideoSettings
from ...svd_core.utils.redaction import redacted_text
from ..engines.choose import choose_engine
from ..engines.embedded.engine import EmbeddedEngine
from ..engines.events import EventTranslator
from ..engines.graph_errors import check_described
from ..engines.graph_loading import read_source
from ..engines.graphs import EMBEDDED_NODES, GraphEngine, check_place, describe_file, open_graph, write_text
from ..engines.manifest import make_manifest
from ..engines.preflight import find_missing
from ..engines.run_config import RunConfig, default_models_roots
from ..engines.signals import STOP_SIGNALS
from ..graph import NodeTable, described_nodes, read_graph
from .animate import animate_file
from .batch import add_batch
from .console import Console, JsonConsole, LogAboveBar, TerminalConsole
from .options import add_background, add_command, make_run_config

PACKAGE_NAME = __name__.removesuffix(".headless.cli.main")
"""The name that this package was imported by: loggers below it are set by options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    arguments = make_parser().parse_args(argv)
    stop = _StopSignal()
    console: Console = (JsonConsole if arguments.json else TerminalConsole)(lambda: stop.asked is not None)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LogAboveBar()])
    if arguments.vram is not None:
        for planner in ("runtime.memory", "autoencoder.decode", "execution"):
            logging.getLogger(f"{PACKAGE_NAME}.svd_core.{planner}").setLevel(logging.INFO)
    if getattr(arguments, "compile", "off") != "off":
        logging.getLogger(f"{PACKAGE_NAME}.svd_core.models").setLevel(logging.INFO)
    _quiet_libraries()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end a run
    try:
        arguments.command(arguments, console)
        sys.stdout.flush()
        return 0
    except (KeyboardInterrupt, Interrupted):
        return _interrupted(arguments, console, stop.asked)
    except BrokenPipeError:
        _stop_printing()  # whoever read our output has gone
        return 0
    except OSError as error:
        _stop_printing()
        return _fail(arguments, console, f"the output could not be printed: {error.strerror}", "output.stdout", 4)
    except SVDStagesError as error:
        if stop.asked is not None:  # it came up in what a library does when it is stopped
            return _interrupted(arguments, console, stop.asked)
        if arguments.debug:
            traceback.print_exc()
        return _fail(arguments, console, str(error), error.code, error.exit_status, **_where(error))
    finally:
        console.close()


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="svd-stages",
        description="Stable Video Diffusion in stages: animate an image, or run a graph, with or without ComfyUI.",
    )
    parser.add_argument("--version", action="version", version=f"svd-stages {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (
        _add_animate, _add_run, _add_validate, _add_convert, _add_nodes, _add_inspect, _add_convert_checkpoint,
        _add_download, _add_bench,
    ):  # fmt: skip
        add(commands)
    add_batch(commands)
    return parser


def _add_animate(commands: Any) -> None:
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
        _add_setting(parser, setting)
    add_background(parser, "grey 0.5")
    _add_on_oom(parser)


def _add_setting(parser: argparse.ArgumentParser, setting: Field) -> None:
    """Add the option of a field of VideoSettings."""
    about = setting.metadata
    flag = about.get("flag", "--" + setting.name.replace("_", "-"))
    if flag is None:
        return
    default = OF_CHECKPOINT if setting.default is None else f"default: {setting.default}"
    form = {"choices": about["choices"]} if "choices" in about else {"type": about["kind"]}
    parser.add_argument(
        flag, dest=setting.name, default=setting.default, metavar=about.get("metavar"),
        help=f"{about['description']} ({default})", **form,
    )  # fmt: skip


def _add_on_oom(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-oom", choices=("strict", "adapt"), default="strict", help="when memory runs out while windows are "
        "decoded: an error, or smaller windows, which give other pixels and are noted (default: strict)",
    )  # fmt: skip


def _add_run(commands: Any) -> None:
    parser = add_command(commands, "run", run, "run a saved graph, API or UI format")
    _add_graph(parser)
    parser.add_argument("--output-dir", type=Path, default=Path("output"), metavar="DIR", help="default: output")
    add_background(parser, "keep, with a note")
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE.json", help="write what the results were made from: graph, seeds, "
        "versions, sha256 of models, images and frames",
    )  # fmt: skip
    _add_on_oom(parser)


def _add_validate(commands: Any) -> None:
    parser = add_command(
        commands, "validate", validate, "check a graph without running it: what is missing, and what is wrong"
    )
    _add_graph(parser)
    _add_object_info(parser)


def _add_graph(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "graph", type=Path, metavar="GRAPH.json",
        help="saved by ComfyUI, either format; or an mp4, PNG or WebP with its graph inside",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="NODE.INPUT=VALUE",
        help="set a value; NODE is an id, a class or a title; repeatable",
    )  # fmt: skip
    parser.add_argument("--input-dir", type=Path, default=Path("input"), metavar="DIR", help="default: input")
    parser.add_argument(
        "--allow-node", action="append", default=[], dest="allowed", metavar="PATTERN",
        help="refuse a graph with other node classes before anything is imported: SVD*, SaveVideo; repeatable "
        "(default: all that the engine knows)",
    )  # fmt: skip
    engines = parser.add_argument_group("engine", "where the graph runs; without these, on this package alone")
    which = engines.add_mutually_exclusive_group()
    which.add_argument(
        "--comfyui", type=Path, metavar="PATH", help="on the ComfyUI in this folder: its executor and core nodes, in "
        "this process, which its Python must run",
    )  # fmt: skip
    which.add_argument(
        "--server", metavar="URL", help="on a running ComfyUI, as http://localhost:8188 or https://user:password@host; "
        "input files are uploaded, results are fetched",
    )  # fmt: skip
    engines.add_argument(
        "--custom-node", action="append", default=[], dest="custom_nodes", metavar="NAME",
        help="with --comfyui: load this folder of its custom_nodes; repeatable (default: none)",
    )  # fmt: skip


def _add_convert(commands: Any) -> None:
    parser = add_command(commands, "convert", convert, "convert a UI-format graph to API format")
    parser.add_argument("graph", type=Path, metavar="UI.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="API.json")
    _add_object_info(parser)


def _add_object_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--object-info", type=Path, metavar="FILE.json",
        help="what a ComfyUI answers at /object_info, saved to a file: its nodes are known, too",
    )  # fmt: skip


def _add_nodes(commands: Any) -> None:
    add_command(commands, "nodes", nodes, "list the nodes; with --json in the shape of ComfyUI's /object_info")


def _add_inspect(commands: Any) -> None:
    parser = add_command(commands, "inspect", inspect, "tell what checkpoint a file or folder is, from its headers")
    parser.add_argument("checkpoint", type=Path, metavar="FILE_OR_FOLDER", help=f"or {EMBEDDED}")
    parser.add_argument(
        "--verify", action="store_true", help="read every number as well, and see that all are finite (no NaN)"
    )


def _add_convert_checkpoint(commands: Any) -> None:
    parser = add_command(
        commands,
        "convert-checkpoint",
        convert_checkpoint,
        "convert a one-file checkpoint to a diffusers folder, or back",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help=f"a file, a folder, or {EMBEDDED}")
    parser.add_argument("destination", type=Path, metavar="DST", help="NAME.safetensors, or a new folder")
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="it was trained for, where SRC does not say so: svd 14, svd_xt 25",
    )


def _add_download(commands: Any) -> None:
    parser = add_command(commands, "download", download, "fetch a known checkpoint from the hub, checked by sha256")
    parser.add_argument("name", metavar="NAME", help="svd, svd-xt, svd-xt-1-1, ...; an unknown name lists all")


def _add_bench(commands: Any) -> None:
    parser = add_command(
        commands, "bench", bench, "measure this package against stock diffusers on this machine, in minutes"
    )
    parser.add_argument(
        "--size", choices=("small", "full"),
        help="of the random models: small suits a CPU, full is SVD-XT at 1024x576 (default: full on CUDA, else small)",
    )  # fmt: skip
    parser.add_argument("--turns", type=int, default=7, metavar="N", help="how often each is timed (default: 7)")
    parser.add_argument("--compiled", action="store_true", help="measure whole steps through torch.compile, too")


def animate(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages animate`."""
    began = time.monotonic()
    options = vars(arguments)
    settings = VideoSettings(
        **{each.name: options[each.name] for each in fields(VideoSettings) if each.name in options}
    )
    output = arguments.output or _free_name(arguments.image.stem)
    report = animate_file(arguments.image, output, settings, make_run_config(arguments, console))
    _say_files(report.files, time.monotonic() - began, console)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages run`."""
    began = time.monotonic()
    run_config = make_run_config(
        arguments, console, input_folder=arguments.input_dir, output_folder=arguments.output_dir
    )
    source = read_source(arguments.graph, arguments.allowed)
    if arguments.manifest is not None:
        check_place(arguments.manifest)
    engine = _engine(arguments, run_config)
    graph = open_graph(source, arguments.settings, engine.table, arguments.allowed)
    report = engine.run(graph, EventTranslator(graph.prompt, engine.table, console))
    seconds = time.monotonic() - began
    if arguments.manifest is not None:  # before the result, which is the last line: it reports progress
        manifest = make_manifest(graph, report, run_config, engine, seconds)
        write_text(arguments.manifest, json.dumps(manifest, indent=2) + "\n")
    _say_files(report.files, seconds, console)
    if report.faults:
        raise GraphError(report.faults, code="graph.some_outputs", node_errors=report.node_errors)


def validate(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages validate`."""
    source = read_source(arguments.graph, arguments.allowed)
    run_config = make_run_config(arguments, console, input_folder=arguments.input_dir)
    engine = _engine(arguments, run_config)
    table = engine.table if arguments.object_info is None else _table(arguments)
    for missing in find_missing(source, engine, run_config, arguments.settings, table):
        console.announce("missing", missing.describe(), **asdict(missing))
    graph = open_graph(source, arguments.settings, table, arguments.allowed)
    if arguments.object_info is None:
        checked = engine.check(graph)
    else:
        checked = check_described(graph.prompt, table, "the ComfyUI that has them")
    for note in checked.notes:
        sys.stderr.write(f"note: {note}\n")
    text = f"{arguments.graph}: {len(graph.prompt)} nodes, nothing wrong; it ends in {', '.join(checked.outputs)}"
    console.result(text, graph=arguments.graph, nodes=len(graph.prompt), outputs=checked.outputs, notes=checked.notes)


def convert(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages convert`."""
    graph = open_graph(arguments.graph, table=_table(arguments))
    write_text(arguments.output, json.dumps(graph.prompt, indent=2) + "\n")
    console.result(f"wrote {arguments.output}: {len(graph.prompt)} nodes", output=arguments.output)


def nodes(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages nodes`."""
    info = EmbeddedEngine(make_run_config(arguments, console)).object_info()
    if arguments.json:
        sys.stdout.write(json.dumps(info, indent=2) + "\n")
        return
    for name, node in info.items():
        summary = textwrap.shorten(node["description"], 100, placeholder=" ...")
        sys.stdout.write(f"{name:<24} {summary}\n")


def inspect(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages inspect`."""
    from ...svd_core.checkpoints.inspect import inspect as inspect_checkpoint

    inspection = inspect_checkpoint(_by_name(arguments.checkpoint))
    if not arguments.verify:
        console.result(inspection.describe(), **inspection.as_dict())
        return
    from ...svd_core.checkpoints.inspect import verify

    verified = verify(inspection.path, make_run_config(arguments, console).runtime().progress)
    text = f"{inspection.describe()}\n  {verified.describe()}"
    console.result(text, **inspection.as_dict(), verified=asdict(verified))


def convert_checkpoint(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages convert-checkpoint`."""
    from ...svd_core.checkpoints.convert import convert_checkpoint as convert_it

    progress = make_run_config(arguments, console).runtime().progress
    convert_it(_by_name(arguments.source), arguments.destination, progress, arguments.frames)
    console.result(f"wrote {arguments.destination}", output=arguments.destination)


def download(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages download`."""
    from ...svd_core.checkpoints.download import download as download_it

    root = Path(arguments.models[0]) if arguments.models else default_models_roots()[0]
    path = download_it(arguments.name, root, make_run_config(arguments, console).runtime().progress)
    console.result(f"{path} is complete", output=path)


def bench(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages bench`."""
    import torch

    from ...svd_core.checkpoints.load import resolve_dtypes
    from ..bench import compare, report

    runtime = make_run_config(arguments, console).runtime()
    device = runtime.device()
    dtype = resolve_dtypes(arguments.precision, device, torch.float32, force_upcast=False).compute
    size = arguments.size or ("full" if device.type == "cuda" else "small")
    planned = compare.Bench(size, device, dtype, max(1, arguments.turns), arguments.compiled)
    facts = report.machine(planned)
    with runtime.progress("measuring", planned.calls(), "call") as advance:
        done = itertools.count(1)
        measured = compare.compare(replace(planned, on_call=lambda: advance(next(done))))
    counted = compare.full_size_costs()
    console.result(report.as_text(facts, measured, counted), **report.as_values(facts, measured, counted))


def _by_name(checkpoint: Path) -> Path:
    """Return the built-in model's file for its name, otherwise the path."""
    return EMBEDDED_FILE if str(checkpoint) == EMBEDDED else checkpoint


def _free_name(stem: str) -> Path:
    """Return `stem`.mp4 in this folder, or the first free numbered name, so that no earlier video is replaced."""
    from ...svd_core.utils.output_files import free_names

    first = Path(f"{stem}.mp4")
    return next(free_names(first, 2)) if first.exists() else first


def _table(arguments: argparse.Namespace) -> NodeTable:
    """Return our nodes and the compat nodes. Those of --object-info replace nodes of the same class."""
    if arguments.object_info is None:
        return EMBEDDED_NODES
    described = described_nodes(read_graph(arguments.object_info, finite=False))
    return described.with_others(EMBEDDED_NODES)


def _engine(arguments: argparse.Namespace, run_config: RunConfig) -> GraphEngine:
    return choose_engine(run_config, arguments.comfyui, arguments.custom_nodes, arguments.server)


def _say_files(files: list[Path], seconds: float, console: Console) -> None:
    described = [describe_file(path) for path in files]
    lines = [f"wrote {path}{text}" for path, text in zip(files, described, strict=True)]
    lines.append(f"{seconds:.1f} s in all")
    console.result("\n".join(lines), files=[str(path) for path in files], seconds=round(seconds, 2))


class _StopSignal:
    """A signal handler that raises KeyboardInterrupt, but not while a library is being imported.

    What is stopped in the middle of its import fails in other ways: an ImportError, an abort, an exit by SIGINT.
    """

    asked: int | None = None
    """Number of the first signal."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or number
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                again = threading.Timer(0.05, signal.raise_signal, (number,))
                again.daemon = True
                again.start()
                return
            frame = frame.f_back
        raise KeyboardInterrupt


def _interrupted(arguments: argparse.Namespace, console: Console, number: int | None) -> int:
    """Return the exit status of a program that a signal ended: 128 and its number. Without a signal: that of Ctrl-C."""
    status = 128 + (number or signal.SIGINT)
    return _fail(arguments, console, "interrupted; no half-written result was left", "interrupted", status)


def _fail(arguments: argparse.Namespace, console: Console, text: str, code: str, status: int, **where: Any) -> int:
    console.close()
    text = "".join(character if character.isprintable() else "?" for character in text)
    if arguments.json:
        line = {
            "event": "error",
            "code": code,
            "message": redacted_text(text),
            "exit_status": status,
            **redacted_text(where),
        }
        sys.stdout.write(json.dumps(line, default=str) + "\n")
    sys.stderr.write(textwrap.fill(f"svd-stages: {text}", 100, break_long_words=False, break_on_hyphens=False) + "\n")
    return status


def _stop_printing() -> None:
    """Discard further output on stdout. Python would fail on it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _where(error: SVDStagesError) -> dict[str, Any]:
    if isinstance(error, NodeError):
        return {"node_id": error.node_id, "class_type": error.class_type}
    node_errors = getattr(error, "node_errors", None)
    return {"node_errors": node_errors} if node_errors else {}


def _quiet_libraries() -> None:
    """Hide the developer messages of diffusers and transformers, which read these variables when they are imported."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
