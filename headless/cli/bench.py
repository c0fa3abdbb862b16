"""The command `svd-stages bench`."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import asdict
from typing import Any

from ...svd_core.runtime.runtime import LocalRuntime
from .console import Console
from .options import add_command, add_threads, set_threads
from .parser import count

logger = logging.getLogger(__name__)

PARTS = ("counted", "step", "decode", "video")
BUSY_PERCENT = 10


def add_bench(commands: Any) -> None:
    """Add `svd-stages bench`."""
    text = "measure this package against stock diffusers on this machine; Ctrl-C keeps the rows that are printed"
    parser = add_command(commands, "bench", bench, text, ["device", "precision", "quiet"])
    parser.add_argument(
        "--size", choices=("small", "full"),
        help="of the random models: small suits a CPU, full is SVD-XT at 1024x576 (default: full on CUDA, else small)",
    )  # fmt: skip
    parser.add_argument(
        "--only", type=_parts, action="extend", metavar="PART", help="counted, step, decode or video; repeatable, or a "
        "list with commas (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--turns", type=count, default=7, metavar="N", help="time each variant at most so often; fewer where the "
        "ratios of 3 turns agree (default: 7)",
    )  # fmt: skip
    parser.add_argument("--compiled", action="store_true", help="measure whole steps through torch.compile, too")
    add_threads(parser)


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f'must be one of {", ".join(PARTS)}, got "{unknown[0]}"')
    return parts


def bench(arguments: argparse.Namespace, console: Console) -> None:
    """Run `svd-stages bench`. Each row is printed when it is known."""
    import torch

    from ...svd_core.checkpoints.load import resolve_dtypes
    from ..bench import compare, report

    began = time.monotonic()
    set_threads(arguments)
    runtime = LocalRuntime(device_name=arguments.device, reporter=console.report)
    device = runtime.device()
    dtype = resolve_dtypes(arguments.precision, device, torch.float32, force_upcast=False).compute
    size = arguments.size or ("full" if device.type == "cuda" else "small")
    parts = arguments.only or PARTS
    planned = compare.Bench(size, device, dtype, arguments.turns, arguments.compiled, parts, runtime.progress)
    facts = report.machine(planned)
    console.part("machine", ", ".join(f"{name} {value}" for name, value in facts.items()), **facts)
    if facts["busy_percent"] > BUSY_PERCENT:
        logger.warning("The machine is busy: other programs use %.0f %% of its CPUs.", facts["busy_percent"])
    results: dict[str, Any] = {"machine": facts, "measured": {}, "counted": {}}
    tables: Any = (
        ("counted", report.COUNTED, report.counted_row, compare.count_full_size(planned)),
        ("measured", report.MEASURED, report.measured_row, compare.compare(planned)),
    )
    for kind, columns, row, comparisons in tables:
        title = report.header(columns) + "\n"
        for comparison, variants in comparisons:
            results[kind][comparison] = {variant: asdict(result) for variant, result in variants.items()}
            for variant, result in variants.items():
                text = title + row(comparison, variant, result)
                console.part(kind, text, comparison=comparison, variant=variant, **asdict(result))
                title = ""
    text = "" if console.is_quiet else f"\n{time.monotonic() - began:.0f} s in all"
    console.result(text, **results)
