"""Choose and start the worker processes of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...svd_core.runtime.runtime import LocalRuntime
from .lock import Shard
from .worker import Setup
from .worker_pool import Pool

LIBRARIES = 1_000_000_000
"""Bytes of Python, torch and a small video."""


@dataclass(frozen=True)
class Workers:
    """The workers of a batch.

    Attributes:
        count: Number of workers. None: one for each GPU, or without GPUs one for each `threads` CPUs, as memory allows.
        ray: Address of a Ray cluster, or "local" to start Ray on this machine. None: processes of this machine.
        shard: The part of the tasks that this driver renders. None: all tasks.
        threads: Threads of a worker on a CPU. The last digits of a video depend on it, and on no other field.
    """

    count: int | None = None
    ray: str | None = None
    shard: Shard | None = None
    threads: int = 1


def make_pool(setup: Setup, workers: Workers, device: str, tasks: int, memory: int = 0) -> Pool:
    """Start the requested workers.

    Args:
        setup: Configuration of all workers.
        workers: The request.
        device: "auto", "cpu" or a device of torch.
        tasks: Number of unfinished tasks. More workers are not started.
        memory: Bytes that a worker on a CPU needs. Limits the default number of workers.

    Raises:
        MissingExtraError: `workers.ray` is set and Ray is not installed.
        BatchError: The Ray cluster cannot be reached, or has too few resources for a worker.
    """
    if workers.ray is not None:
        from .ray_pool import RayPool

        # Ray shows a worker that asked for a GPU this one only, as cuda:0: a named device needs all of them
        gpus, count = None if device in ("auto", "cuda") else 0, workers.count
        if workers.ray == "local" or device not in ("auto", "cuda", "cpu"):
            count = min(tasks, count or len(_environments(device, workers.threads, memory)))
        return RayPool(setup, workers.ray, count, gpus, workers.threads)
    from .process_pool import ProcessPool

    environments = _environments(device, workers.threads, memory)
    count = min(tasks, workers.count or len(environments))
    return ProcessPool(setup, [environments[number % len(environments)] for number in range(count)])


def memory_needed(models: Sequence[str], runtime: LocalRuntime) -> int:
    """Estimate the bytes of a worker on a CPU: libraries, and 16-bit weights as 32-bit ones."""
    paths = [runtime.library.find(name) for name in models]
    files: list[Path] = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.safetensors"))]
    return LIBRARIES + 2 * sum(file.stat().st_size for file in files)


def _environments(device: str, threads: int, memory: int) -> list[dict[str, str]]:
    """Return the environment variables of each worker that this machine has resources for."""
    gpus = _visible_gpus() if device in ("auto", "cuda") else []
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
    if device not in ("auto", "cpu"):
        return [{}]
    import psutil

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    in_memory = psutil.virtual_memory().available // max(1, memory)
    return [{} for _ in range(max(1, min(cpus // threads, in_memory)))]


def _visible_gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [each.strip() for each in visible.split(",")]
        if visible
        else [str(number) for number in range(torch.cuda.device_count())]
    )
