"""The command `svd-stages batch`: arguments and output."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from ... import headless
from ...svd_core.checkpoints.library import EMBEDDED
from ...svd_core.errors import BatchError, counted, for_shell
from ...svd_core.pipeline import VideoSettings
from ..batch.driver import Options, Progress
from ..batch.export import FIELDS, export
from ..batch.folder import RunFolder
from ..batch.lock import active_drivers, parse_shard
from ..batch.manifest import parse_seeds
from ..batch.report import Status, damaged
from .animate import add_setting
from .console import Console
from .options import add_background, add_command, make_run_config
from .parser import count

VIDEO_SETTINGS = {each.name for each in fields(VideoSettings)} - {"model", "seed"}
"""Settings of `animate` that are options here, too. --model and --seeds have their own meaning."""


def add_batch(commands: Any) -> None:
    """Add `batch` with its own commands to the subparsers of `svd-stages`."""
    text = "many images to videos, on many processes or machines; stopped or killed, the same command goes on"
    parser = commands.add_parser("batch", help=text, description=text[0].upper() + text[1:] + ".")
    parts = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run_parser = add_command(parts, "run", _run, "make the video of each row that has none yet")
    _add_source(run_parser)
    _add_engine(run_parser)
    run_parser.add_argument("--limit", type=count, metavar="N", help="stop after N videos")
    run_parser.add_argument(
        "--deadline", type=_seconds, metavar="SECONDS", help="end a render that takes longer (default: five times what "
        "95 of 100 take, at least ten minutes)",
    )  # fmt: skip
    plan_parser = add_command(
        parts, "plan", _plan, "read the manifest, hash the images, and tell what would be made, what twice and what not"
    )
    _add_source(plan_parser)
    plan_parser.add_argument("--workers", type=count, default=1, metavar="N", help="tell the time for so many")
    plan_parser.add_argument("--measure", action="store_true", help="make the first video, to tell how long all take")
    status_parser = add_command(parts, "status", _status, "tell how far a batch is; also while it runs", ["quiet"])
    _add_run(status_parser)
    status_parser.add_argument("--verify", action="store_true", help="read every video and compare its sha256")
    retry_parser = add_command(parts, "retry", _retry, "have failed rows made again by the next run", [])
    _add_run(retry_parser)
    retry_parser.add_argument(
        "--code", action="append", default=[], metavar="CODE", help="only those that failed with this code, as status "
        "prints it, or a pattern: image.*; repeatable (default: all)",
    )  # fmt: skip
    _add_ledger(retry_parser)
    _add_export(add_command(parts, "export", _export, "give the videos names for people", []))


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="?", type=Path, metavar="MANIFEST_OR_FOLDER", help="CSV, JSON Lines or Parquet with a column "
        "image and any of seed, name and NODE.INPUT; or a folder of images (default: what was planned in the run)",
    )  # fmt: skip
    _add_run(parser)
    parser.add_argument(
        "--graph", type=Path, metavar="GRAPH.json", help="what makes each video: a saved graph, either format, or a "
        "video with its graph inside (default: that of the run, else the shipped image_to_video)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="NAME", help=f"checkpoint of the shipped graph (default: that of the run, else {EMBEDDED})"
    )
    settings = parser.add_argument_group(
        "settings of the videos",
        "of the shipped graph; with --graph use --set; what is not given, also --precision, is that of the run",
    )
    for setting in fields(VideoSettings):
        if setting.name in VIDEO_SETTINGS:
            new = setting.metadata["unset"] if setting.default is None else setting.default
            add_setting(settings, setting, argparse.SUPPRESS, f"that of the run, else {new}")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="NODE.INPUT=VALUE",
        help="set a value for all rows; NODE is an id, a class or a title; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", default="", metavar="SEEDS", help="make each row that names no seed with each of these: 7, 0,5,9 or "
        "0-3 (default: one seed that follows from the image and the values)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the folder that all images lie in (default: that of the manifest)"
    )
    _add_ledger(parser)
    add_background(parser, "that of the run, else grey 0.5, and with --graph keep")


def _add_ledger(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ledger", type=Path, metavar="FILE", help="where the driver keeps its account: on a local disk (default: in "
        "the run's folder, if that is one)",
    )  # fmt: skip


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", type=Path, required=True, metavar="DIR", dest="run_folder", help="the run's folder: plan, videos, "
        "records, and why rows failed",
    )  # fmt: skip


def _add_engine(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engine", "who renders")
    which = engine.add_mutually_exclusive_group()
    which.add_argument(
        "--ray", metavar="ADDRESS", help="all machines of a Ray cluster: auto, HOST:6379, or local to start Ray here; "
        "needs the ray extra (default: processes of this machine, without Ray)",
    )  # fmt: skip
    which.add_argument(
        "--shard", metavar="i/N", help="part i of N of the rows: N terminals, or the jobs of a Slurm array"
    )
    engine.add_argument(
        "--workers", type=count, metavar="N", help="processes (default: one for each GPU; without one, for each CPU)"
    )
    engine.add_argument(
        "--threads", type=count, default=1, metavar="N", help="of a worker on a CPU (default: 1); the same for a "
        "whole run, because videos depend on it in their last digits",
    )  # fmt: skip


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("target", type=Path, metavar="FOLDER", help="where the names go, and clips.csv")
    fields = ", ".join(f"{{{name}}}" for name in FIELDS)
    parser.add_argument(
        "--names", metavar="TEMPLATE", help=f"of {fields} (default: {{name}}, with the seed where it needs one)"
    )
    parser.add_argument("--copy", action="store_true", help="copies, instead of second names of the same files")


def _run(arguments: argparse.Namespace, console: Console) -> None:
    run_config = make_run_config(arguments, console)
    shard = parse_shard(arguments.shard) if arguments.shard else None
    workers = headless.Workers(arguments.workers, arguments.ray, shard, arguments.threads)
    options = Options(deadline=arguments.deadline, limit=arguments.limit)
    reporter = _Reporter(console)
    began = time.monotonic()
    status = headless.run_batch(_request(arguments), run_config, workers, options, reporter.watch, reporter.begin)
    seconds = time.monotonic() - began
    summary = {
        **status.as_dict(),
        "rendered": reporter.rendered,
        "seconds": round(seconds, 1),
        "run": arguments.run_folder,
    }
    lines = [status.describe(), f"{reporter.rendered} rendered in {seconds:.1f} s"]
    sheet = arguments.run_folder / "contact_sheet.jpg"
    if shard is None and sheet.is_file():
        lines.append(f"some of them: {sheet}")
    name = f"summary-{shard.name}.json" if shard is not None and shard.name else "summary.json"
    headless.write_text(arguments.run_folder / name, json.dumps(summary, indent=1, default=str) + "\n")
    console.result("\n".join(lines), **summary)
    _raise_if_failed(status, arguments.run_folder)


def _plan(arguments: argparse.Namespace, console: Console) -> None:
    request, run_config = _request(arguments), make_run_config(arguments, console)
    if request.source is None:
        raise BatchError("batch plan needs a manifest or a folder of images.", code="batch.no_source")
    status = headless.plan_batch(request, run_config)
    if arguments.measure and status.seconds is None and status.left:
        planned = headless.BatchRequest(arguments.run_folder, ledger=arguments.ledger)
        workers, options = headless.Workers(count=1), Options(limit=1, failures=1)
        status = headless.run_batch(planned, run_config, workers, options, _Reporter(console).watch)
        if status.seconds is None:
            reason = next((f"{each.code}: {each.example}" for each in status.reasons if each.state != "row"), "no row")
            message = f"the first video failed, so nothing was measured: {reason}"
            raise BatchError(message, code="batch.rows_failed", exit_status=4)
    console.result(status.describe(arguments.workers), **status.as_dict(), run=arguments.run_folder)


def _status(arguments: argparse.Namespace, console: Console) -> None:
    status = headless.batch_status(arguments.run_folder)
    drivers = active_drivers(arguments.run_folder)
    lines, faults = [status.describe(), *(f"running: {driver}" for driver in drivers)], []
    if arguments.verify:
        console.report("verifying", 0, status.counts["done"], "clip")

        def advance(count: int) -> None:
            console.report("verifying", count, status.counts["done"], "clip")

        faults = [{"task": task, "fault": fault} for task, fault in damaged(RunFolder(arguments.run_folder), advance)]
        lines += [f"damaged: {each['task']}: {each['fault']}" for each in faults]
        if not faults and status.counts["done"]:
            lines.append("all videos are unchanged")
    values = {**status.as_dict(), "drivers": drivers, "damaged": faults}
    console.result("\n".join(lines), **values, run=arguments.run_folder)
    if faults:
        message = f"{counted(len(faults), 'video')} damaged. Delete them and their records, and run again."
        raise BatchError(message, code="batch.damaged", exit_status=4)


def _retry(arguments: argparse.Namespace, console: Console) -> None:
    count = headless.retry_batch(arguments.run_folder, arguments.code or ("*",), arguments.ledger)
    text = f"{counted(count, 'video')} to render again: svd-stages batch run --run {for_shell(arguments.run_folder)}"
    if not count:
        text = (
            "no video has failed with such a code. `batch status` lists the codes. Faulty rows have no video: correct "
            "the manifest or the images, and give it again"
        )
    console.result(text, retried=count, run=arguments.run_folder)


def _export(arguments: argparse.Namespace, console: Console) -> None:
    exported = export(RunFolder(arguments.run_folder), arguments.target, arguments.names, arguments.copy)
    text = f"{exported.made} new names in {arguments.target}, {exported.kept} existed; clips.csv lists the row of each"
    console.result(text, made=exported.made, kept=exported.kept, target=arguments.target)


def _request(arguments: argparse.Namespace) -> headless.BatchRequest:
    return headless.BatchRequest(
        run=arguments.run_folder,
        source=arguments.source,
        graph=arguments.graph,
        settings=arguments.settings,
        model=arguments.model,
        video={key: value for key, value in vars(arguments).items() if key in VIDEO_SETTINGS},
        seeds=parse_seeds(arguments.seeds) if arguments.seeds else (),
        images=arguments.images,
        ledger=arguments.ledger,
    )


class _Reporter:
    """Reports a driver's progress on the console."""

    def __init__(self, console: Console):
        self._console = console
        self._has_bar = False
        self.rendered = 0

    def begin(self, pool: str, status: Status) -> None:
        """Report the workers and the number of videos."""
        text = f"{status.left} of {status.tasks} videos to render, {pool}"
        self._console.announce("batch", text, workers=pool, **status.as_dict())

    def watch(self, progress: Progress, outcome: dict[str, Any] | None) -> None:
        """Report a finished task. A `driver.Watch`."""
        if not self._has_bar:
            self._has_bar = True
            self._console.report("rendering", 0, progress.total - progress.before, "clip")
        if outcome is None:
            return
        self.rendered += outcome["made"]
        seconds = progress.seconds_left
        times = {"rate": round(progress.rate, 4), "seconds_left": None if seconds is None else round(seconds)}
        self._console.event("clip", **outcome, **times)
        self._console.report("rendering", progress.finished, progress.total - progress.before, "clip")


def _raise_if_failed(status: Status, run: Path) -> None:
    failed = status.counts["failed"] + status.counts["quarantined"] + status.bad
    if failed:
        raise BatchError(
            f"not all rows have a video: {status.counts['failed']} failed, {status.counts['quarantined']} quarantined, "
            f"{status.bad} with errors. `svd-stages batch status --run {for_shell(run)}` lists the "
            "reasons. Retry failed ones "
            "with `batch retry --code CODE`. For the others, correct the manifest or the images and give it again.",
            code="batch.rows_failed",
            exit_status=4,
        )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f'must be a number above 0, got "{text}"')
    return value
