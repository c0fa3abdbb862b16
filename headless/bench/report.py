"""The results of the benchmark as Markdown and as JSON values, with the machine that they depend on."""

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
    """Describe the machine and the settings."""
    from importlib.metadata import version

    description: dict[str, Any] = {
        "device": _device_name(bench.device),
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
        with contextlib.suppress(ImportError, RuntimeError):  # needs the optional package nvidia-ml-py
            description["clock"] = f"{torch.cuda.clock_rate(bench.device)} MHz"
    return description


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if device.type == "cpu" and cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or device.type


def as_values(machine: dict[str, Any], measured: Measured, counted: Counted) -> dict[str, Any]:
    """Return machine and results as JSON values."""
    values: dict[str, Any] = {"machine": machine}
    for kind, comparisons in (("measured", measured), ("counted", counted)):
        values[kind] = {
            name: {variant: asdict(result) for variant, result in results.items()}
            for name, results in comparisons.items()
        }
    return values


def as_text(machine: dict[str, Any], measured: Measured, counted: Counted) -> str:
    """Format machine and results as two Markdown tables."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    lines += _header("measured", "seconds", "first call", "spread", "times faster", "error", "peak memory")
    for name, results in measured.items():
        for variant, result in results.items():
            faster = f"{results[STOCK].seconds / result.seconds:.2f}" if STOCK in results else ""
            peak = "" if result.peak is None else format_bytes(result.peak)
            times = (f"{result.seconds:.4g}", f"{result.first:.4g}", f"{result.spread:.0%}")
            lines.append(_row(name, variant, *times, faster, f"{result.error:.2g}", peak))
    lines += ["", *_header("counted, SVD-XT at 1024x576 in fp16", "TFLOP", "operations", "GB moved", "peak memory")]
    for name, costs in counted.items():
        for variant, cost in costs.items():
            tflop, gb_moved = f"{cost.flops / 1e12:.2f}", f"{cost.moved / 1e9:.0f}"
            lines.append(_row(name, variant, tflop, f"{cost.operations}", gb_moved, format_bytes(cost.peak)))
    return "\n".join(lines)


def _header(title: str, *columns: str) -> list[str]:
    return [_row(title, "", *columns), "|---" * (len(columns) + 2) + "|"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
