"""The machine of a benchmark, and rows of its results as Markdown."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from ...svd_core.runtime.memory import format_bytes
from .measuring import Result
from .op_counter import Cost

COUNTED = ("counted, SVD-XT at 1024x576 in fp16", "", "TFLOP", "operations", "GB moved", "peak memory")
MEASURED = ("measured", "", "seconds", "times faster, in each turn", "turns", "spread", "first call", "error", "peak")
"""The columns of the two tables."""


def machine(device: torch.device, dtype: torch.dtype, size: str, turns: int) -> dict[str, Any]:
    """Describe the machine and the settings. Waits half a second to see how busy the machine is."""
    from importlib.metadata import version

    description: dict[str, Any] = {
        "device": _device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "size": size,
        "turns": turns,
        "threads": torch.get_num_threads(),
        "busy_percent": psutil.cpu_percent(interval=0.5),  # this process waits
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        with contextlib.suppress(Exception):  # needs nvidia-ml-py, whose errors have a class of their own
            description["clock"] = f"{torch.cuda.clock_rate(device)} MHz"
    return description


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if device.type == "cpu" and cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or device.type


def header(columns: tuple[str, ...]) -> str:
    """Return the first two lines of a table, after an empty one."""
    return f"\n{table_row(*columns)}\n{'|---' * len(columns)}|"


def measured_row(comparison: str, variant: str, result: Result) -> str:
    """Return a line of the table MEASURED."""
    faster = f"{result.faster:.2f} ({result.faster_least:.2f} to {result.faster_most:.2f})"
    peak = "" if result.peak is None else format_bytes(result.peak)
    spread, first = f"{result.spread:.0%}", f"{result.first:.4g}"
    seconds, error = f"{result.seconds:.4g}", f"{result.error:.2g}"
    return table_row(comparison, variant, seconds, faster, str(result.turns), spread, first, error, peak)


def counted_row(comparison: str, variant: str, cost: Cost) -> str:
    """Return a line of the table COUNTED."""
    tflop, gb_moved = f"{cost.flops / 1e12:.2f}", f"{cost.moved / 1e9:.0f}"
    return table_row(comparison, variant, tflop, str(cost.operations), gb_moved, format_bytes(cost.peak))


def table_row(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
