"""The command line: `svd-stages`, or `python -m svd_stages`. Parse arguments, run a command, print errors.

Exit status: 0 done; 2 bad usage or bad graph; 3 a model or input file is missing or invalid, or a server cannot be
reached; 4 a node failed; 130 interrupted; 143 ended by SIGTERM (128 plus the number of the signal).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ..._version import __version__
from ...svd_core.errors import Interrupted, NodeError, SVDStagesError, UsageError
from ...svd_core.utils.redaction import redacted_text
from ..engines.signals import STOP_SIGNALS
from .animate import add_animate
from .batch import add_batch
from .bench import add_bench
from .checkpoint_commands import add_convert_checkpoint, add_download, add_inspect
from .compare_samplers import add_compare_samplers
from .console import Console, ConsoleLog, JsonConsole, TerminalConsole
from .fit_schedule import add_fit_schedule
from .graph_commands import add_convert, add_nodes, add_run, add_validate
from .parser import Parser

PACKAGE_NAME = __name__.removesuffix(".headless.cli.main")
"""The name that this package was imported by: loggers below it are set by options."""

PLANNERS = (
    *("runtime.memory", "runtime.runtime", "autoencoder.decode", "execution"),
    "models.weight_streaming",  # says where page-locked memory ends
)
"""Loggers of svd_core that say the plan of the memory: those that --vram makes visible."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    stop = _StopSignal()
    try:
        arguments = make_parser().parse_args(argv)
    except UsageError as error:
        unparsed = argparse.Namespace(json="--json" in (sys.argv if argv is None else argv), parser=Parser())
        return _fail(unparsed, Console(), str(error), error.code, error.exit_status)
    quiet = getattr(arguments, "quiet", False)
    console: Console = (JsonConsole if arguments.json else TerminalConsole)(lambda: stop.asked is not None, quiet)
    level = logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[ConsoleLog(console, arguments.parser.spell)])
    if getattr(arguments, "vram", None) is not None and not quiet:
        for planner in PLANNERS:
            logging.getLogger(f"{PACKAGE_NAME}.svd_core.{planner}").setLevel(logging.INFO)
    if getattr(arguments, "compile", "off") != "off" and not quiet:
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


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(
        prog="svd-stages",
        description="Stable Video Diffusion in stages: animate an image, or run a graph, with or without ComfyUI.",
    )
    parser.add_argument("--version", action="version", version=f"svd-stages {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (
        add_animate, add_run, add_validate, add_convert, add_nodes, add_inspect, add_convert_checkpoint, add_download,
        add_bench, add_compare_samplers, add_fit_schedule, add_batch,
    ):  # fmt: skip
        add(commands)
    return parser


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
    """Print an error and return its exit status."""
    console.close()
    text = arguments.parser.spell(text)
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
