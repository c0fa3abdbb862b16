"""The command `svd-stages bench`."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from typing import Any

from ...svd_core.runtime.runtime import LocalRuntime
from .console import Console
from .options import add_command
from .parser import count


def add_bench(commands: Any) -> None:
    """Add `svd-stages bench`."""
    text = "measure this package against stock diffusers on this machine, in minutes"
    parser = add_command(commands, "bench", bench, text, ["device", "precision", "quiet"])
    parser.add_argument(
        "--size", choices=("small", "full"),
        help="of the random models: small suits a CPU, full is SVD-XT at 1024x576 (default: full on CUDA, else small)",
    )  # fmt: skip
    parser.add_argument("--turns", type=count, default=7, metavar="N", help="how often each is timed (default: 7)")
    parser.add_argument("--compiled", action="store_true", help="measure whole steps through torch.compile, too")


def bench(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages bench`."""
    import torch

    from ...svd_core.checkpoints.load import resolve_dtypes
    from ..bench import compare, report

    runtime = LocalRuntime(device_name=arguments.device, reporter=console.report)
    device = runtime.device()
    dtype = resolve_dtypes(arguments.precision, device, torch.float32, force_upcast=False).compute
    size = arguments.size or ("full" if device.type == "cuda" else "small")
    planned = compare.Bench(size, device, dtype, arguments.turns, arguments.compiled)
    facts = report.machine(planned)
    with runtime.progress("measuring", planned.calls(), "call") as advance:
        done = itertools.count(1)
        measured = compare.compare(replace(planned, on_call=lambda: advance(next(done))))
    counted = compare.full_size_costs()
    console.result(report.as_text(facts, measured, counted), **report.as_values(facts, measured, counted))
