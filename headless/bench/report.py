"""The measurements as a table for people and as values for programs, with the machine they were made on."""

from __future__ import annotations

import contextlib
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...svd_core.runtime.memory import format_bytes
from .compare import STOCK, Bench
from .measuring import Result
from .op_counter import Cost

Measured = dict[str, dict[str, Result]]
Counted = dict[str, dict[str, Cost]]


def machine(bench: Bench) -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import version

    facts: dict[str, Any] = {
        "device": _name_of(bench.device),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "size": bench.size,
        "turns": bench.turns,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if bench.device.type == "cuda":
        with contextlib.suppress(ImportError, RuntimeError):  # it asks a package that few have
            facts["clock"] = f"{torch.cuda.clock_rate(bench.device)} MHz"
    return facts


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if device.type == "cpu" and cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or device.type


def as_values(facts: dict[str, Any], measured: Measured, counted: Counted) -> Any:
    """All of it, for JSON."""
    return {
        "machine": facts,
        "measured": {name: {way: asdict(each) for way, each in ways.items()} for name, ways in measured.items()},
        "counted": {name: {way: asdict(each) for way, each in ways.items()} for name, ways in counted.items()},
    }


def as_text(facts: dict[str, Any], measured: Measured, counted: Counted) -> str:
    """Two tables in Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    lines += _table("measured", "seconds", "first call", "spread", "times faster", "error", "peak memory")
    for name, ways in measured.items():
        for way, each in ways.items():
            faster = f"{ways[STOCK].seconds / each.seconds:.2f}" if STOCK in ways else ""
            peak = "" if each.peak is None else format_bytes(each.peak)
            times = (f"{each.seconds:.4g}", f"{each.first:.4g}", f"{each.spread:.0%}")
            lines.append(_row(name, way, *times, faster, f"{each.error:.2g}", peak))
    lines += ["", *_table("counted, SVD-XT at 1024x576 in fp16", "TFLOP", "operations", "GB moved", "peak memory")]
    for name, ways in counted.items():
        for way, each in ways.items():
            figures = (
                f"{each.flops / 1e12:.2f}",
                f"{each.operations}",
                f"{each.moved / 1e9:.0f}",
                format_bytes(each.peak),
            )
            lines.append(_row(name, way, *figures))
    return "\n".join(lines)


def _table(title: str, *columns: str) -> list[str]:
    return [_row(title, "", *columns), "|---" * (len(columns) + 2) + "|"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
