"""The processes that render for a batch: how many, where, and through what they are started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...svd_core.runtime.runtime import LocalRuntime
from ...svd_core.utils.optional_deps import has_extra
from .lock import Shard
from .worker import Setup
from .worker_pool import Pool

LIBRARIES = 1_000_000_000
"""Bytes that Python, torch and a small clip take."""


@dataclass(frozen=True)
class Workers:
    """Who renders a batch.

    count    how many; None: one for each GPU, or where there is none for each `threads` CPUs that memory allows
    ray      address of a Ray cluster; None: this machine, through Ray where it is installed
    shard    the part that this driver makes, in plain processes
    threads  of a worker on a CPU. Clips depend on it in their last digits, and on nothing else of this
    """

    count: int | None = None
    ray: str | None = None
    shard: Shard | None = None
    threads: int = 1


def make_pool(setup: Setup, workers: Workers, device: str, left: int, memory: int = 0) -> Pool:
    """The workers that are asked for, not more than there are tasks `left`.

    memory  bytes that a worker on a CPU takes; so many as are free are started when no number is asked for

    Raises MissingExtraError for --ray without Ray, BatchError when there is no room for one.
    """
    if workers.ray is not None or (workers.shard is None and has_extra("ray")):
        from .ray_pool import RayPool

        count, gpus = workers.count, 0 if device == "cpu" else None
        if workers.ray is None:
            count = min(left, count or len(_places(device, workers.threads, memory)))
        return RayPool(setup, workers.ray, count, gpus, workers.threads)
    from .process_pool import ProcessPool

    places = _places(device, workers.threads, memory)
    count = min(left, workers.count or len(places))
    return ProcessPool(setup, [places[number % len(places)] for number in range(count)])


def memory_needed(models: Sequence[str], runtime: LocalRuntime) -> int:
    """Bytes that a worker on a CPU takes, roughly: libraries, and 16-bit weights as 32-bit ones."""
    files = [file for name in models for file in _weights(runtime.library.find(name))]
    return LIBRARIES + 2 * sum(file.stat().st_size for file in files)


def _weights(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.safetensors"))


def _places(device: str, threads: int, memory: int) -> list[dict[str, str]]:
    """Where workers have room on this machine: for each what its environment needs to say."""
    gpus = _visible_gpus() if device in ("auto", "cuda") else []
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
    if device not in ("auto", "cpu"):
        return [{}]
    import psutil

    room = psutil.virtual_memory().available // max(1, memory)
    return [{} for _ in range(max(1, min(_cpus() // threads, room)))]


def _visible_gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
