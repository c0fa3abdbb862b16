"""The commands on graphs: `svd-stages run`, `validate`, `convert` and `nodes`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...svd_core.errors import GraphError
from ..engines.choose import choose_engine
from ..engines.embedded.engine import EmbeddedEngine
from ..engines.events import EventTranslator
from ..engines.graph_errors import check_described
from ..engines.graph_loading import find_input_folder, read_source
from ..engines.graphs import EMBEDDED_NODES, GraphEngine, check_place, open_graph, write_text
from ..engines.manifest import make_manifest
from ..engines.preflight import find_missing, without_missing
from ..engines.run_config import RunConfig
from ..graph import NodeTable, described_nodes, read_graph
from .console import Console
from .options import (
    COMPUTING,
    add_background,
    add_command,
    add_on_oom,
    add_threads,
    make_run_config,
    print_files,
    print_written,
)

STAGES = {
    **dict.fromkeys(("SVDCheckpointLoader", "ImageOnlyCheckpointLoader"), ("loading",)),
    **dict.fromkeys(("SVDCLIPVisionEncode", "CLIPVisionEncode"), ("embedding",)),
    **dict.fromkeys(("SVDVAEEncode", "VAEEncode"), ("encoding",)),
    "SVD_img2vid_Conditioning": ("embedding", "encoding"),
    **dict.fromkeys(
        ("SVDEulerSampler", "KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"), ("sampling",)
    ),
    **dict.fromkeys(("SVDTemporalVAEDecode", "VAEDecode", "VAEDecodeTiled"), ("decoding",)),
    "SVDImageToVideo": ("embedding", "encoding", "sampling", "decoding"),
}
"""Node class -> the stages whose progress it reports, without ComfyUI."""


def add_run(commands: Any) -> None:
    """Add `svd-stages run`."""
    parser = add_command(commands, "run", run, "run a saved graph, API or UI format")
    _add_graph(parser)
    parser.add_argument("--output-dir", type=Path, default=Path("output"), metavar="DIR", help="default: output")
    add_background(parser, "keep, with a note")
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE.json", help="write what the results were made from: graph, seeds, "
        "versions, sha256 of models, images and frames",
    )  # fmt: skip
    add_on_oom(parser)
    add_threads(parser)


def add_validate(commands: Any) -> None:
    """Add `svd-stages validate`."""
    parser = add_command(
        commands,
        "validate",
        validate,
        "check a graph without running it: what is missing, and what is wrong",
        COMPUTING,
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


def add_convert(commands: Any) -> None:
    """Add `svd-stages convert`."""
    parser = add_command(commands, "convert", convert, "convert a UI-format graph to API format", [])
    parser.add_argument("graph", type=Path, metavar="UI.json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="API.json")
    _add_object_info(parser)


def _add_object_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--object-info", type=Path, metavar="FILE.json",
        help="what a ComfyUI answers at /object_info, saved to a file: its nodes are known, too",
    )  # fmt: skip


def add_nodes(commands: Any) -> None:
    """Add `svd-stages nodes`."""
    text = "list the nodes; with --json in the shape of ComfyUI's /object_info"
    add_command(commands, "nodes", nodes, text, ["models"])


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages run`."""
    began = time.monotonic()
    source = read_source(arguments.graph, arguments.allowed)
    folder = find_input_folder(arguments.graph, source, arguments.input_dir)
    run_config = make_run_config(arguments, console, input_folder=folder, output_folder=arguments.output_dir)
    if arguments.manifest is not None:
        check_place(arguments.manifest)
    engine = _engine(arguments, run_config)
    graph = open_graph(source, arguments.settings, engine.table, arguments.allowed)
    if engine.name == "embedded":
        classes = [str(node.get("class_type")) for node in graph.prompt.values() if isinstance(node, dict)]
        console.expect([stage for each in classes for stage in STAGES.get(each, ())])
    listener = _FilePrinter(console)
    report = engine.run(graph, EventTranslator(graph.prompt, engine.table, listener))
    listener.print_new(report.files)
    seconds = time.monotonic() - began
    if arguments.manifest is not None:  # before the result, which is the last line: it reports progress
        manifest = make_manifest(graph, report, run_config, engine, seconds)
        write_text(arguments.manifest, json.dumps(manifest, indent=2) + "\n")
    print_files(report.files, seconds, console)
    if report.faults:
        raise GraphError(report.faults, code="graph.some_outputs", node_errors=report.node_errors)


class _FilePrinter:
    """An `EventListener` that passes all to a console, and prints files as soon as their node is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed: set[str] = set()

    def event(self, name: str, /, **values: Any) -> None:
        """Receive an event."""
        self._console.event(name, **values)
        self.print_new(map(Path, values.get("files", ())))

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Receive progress."""
        self._console.report(stage, done, total, unit, node)

    def print_new(self, files: Iterable[Path]) -> None:
        """Print the files that were not printed before: equal nodes report the same ones."""
        new = [path for path in files if str(path) not in self._printed]
        self._printed.update(map(str, new))
        if new:
            print_written(new, self._console)


def validate(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages validate`."""
    source = read_source(arguments.graph, arguments.allowed)
    folder = find_input_folder(arguments.graph, source, arguments.input_dir)
    run_config = make_run_config(arguments, console, input_folder=folder)
    engine = _engine(arguments, run_config)
    table = engine.table if arguments.object_info is None else _table(arguments)
    missing = find_missing(source, engine, run_config, arguments.settings, table)
    for each in missing:
        console.announce("missing", each.describe(), **asdict(each))
    try:
        graph = open_graph(source, arguments.settings, table, arguments.allowed)
        if arguments.object_info is None:
            checked = engine.check(graph)
        else:
            checked = check_described(graph.prompt, table, "the ComfyUI that has them")
    except GraphError as error:
        raise without_missing(error, missing, arguments.graph, table) from error
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
    info = EmbeddedEngine(RunConfig(models=arguments.models)).object_info()
    if arguments.json:
        sys.stdout.write(json.dumps(info, indent=2) + "\n")
        return
    for name, node in info.items():
        summary = textwrap.shorten(node["description"], 100, placeholder=" ...")
        sys.stdout.write(f"{name:<24} {summary}\n")


def _table(arguments: argparse.Namespace) -> NodeTable:
    """Return our nodes and the compat nodes. Those of --object-info replace nodes of the same class."""
    if arguments.object_info is None:
        return EMBEDDED_NODES
    described = described_nodes(read_graph(arguments.object_info, finite=False))
    return described.with_others(EMBEDDED_NODES)


def _engine(arguments: argparse.Namespace, run_config: RunConfig) -> GraphEngine:
    return choose_engine(run_config, arguments.comfyui, arguments.custom_nodes, arguments.server)
