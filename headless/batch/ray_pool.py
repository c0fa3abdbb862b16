"""Workers as Ray actors, on all machines of a cluster or on this one.

Ray restarts an actor that dies. Only the driver repeats a request (`max_task_retries=0`), so that attempts are counted
in one place. No large values go through Ray's object store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from typing import Any

from ...svd_core.errors import BatchError, counted
from ...svd_core.utils.optional_deps import require_extra
from .worker import Setup, Worker
from .worker_pool import Answer

CONNECT_TIMEOUT = 10.0
"""Seconds in which a cluster's address must accept a connection."""
_OBJECT_STORE = 100 * 1024 * 1024
"""Bytes. Ray would reserve a third of the memory, which is not needed here."""


class RayPool:
    """A `Pool` of actors.

    Args:
        setup: Configuration of all workers.
        address: Address of a running cluster ("auto" finds that of this machine), or "local": start Ray here.
        count: Number of workers. None: one for each GPU of the cluster, or without GPUs one for each `cpus` CPUs.
        gpus: GPUs of each worker, may be a fraction. None: one if the cluster has GPUs.
        cpus: CPUs of each worker.

    Raises:
        MissingExtraError: Ray is not installed.
        BatchError: The cluster cannot be reached or has too few resources for a worker.
    """

    def __init__(self, setup: Setup, address: str, count: int | None, gpus: float | None = None, cpus: int = 1):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU keep their devices
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        require_extra("ray", "ray")
        import ray

        self._ray: Any = ray
        _init(ray, address, None if count is None else count * cpus)
        resources = ray.cluster_resources()
        gpus = (1 if resources.get("GPU", 0) >= 1 else 0) if gpus is None else gpus
        capacity = int(resources.get("GPU", 0) // gpus) if gpus else int(resources.get("CPU", 0) // cpus)
        if capacity < 1:
            self.close()
            available = f"{resources.get('GPU', 0):g} GPUs and {resources.get('CPU', 0):g} CPUs"
            message = f"the Ray cluster has {available}, too few for a worker. Add nodes, or use fewer `threads`."
            raise BatchError(message, code="batch.no_workers")
        actor = ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=cpus, num_gpus=gpus)(_Actor)
        self._actors = [actor.remote(json.dumps(vars(setup))) for _ in range(min(count or capacity, capacity))]
        count, nodes = len(self._actors), sum(1 for node in ray.nodes() if node["Alive"])
        self.workers = range(count)
        self.name = f"{counted(count, 'worker')} on Ray, {counted(nodes, 'node')}"
        self._asked: dict[Any, int] = {}
        self._ending: set[int] = set()

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        """See `Pool.ask`."""
        self._asked[self._actors[worker].call.remote(call, json.dumps(arguments))] = worker

    def answers(self, timeout: float) -> list[Answer]:
        """See `Pool.answers`."""
        pending = list(self._asked)
        if not pending:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout)
        if len(pending) > 1:
            ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        return [self._answer(reference) for reference in ready]

    def end(self, worker: int) -> None:
        """See `Pool.end`. Ray restarts the actor."""
        self._ending.add(worker)
        self._ray.kill(self._actors[worker], no_restart=False)

    def close(self) -> None:
        """Kill the actors, and stop Ray if it was started for them."""
        with contextlib.suppress(Exception):
            for actor in getattr(self, "_actors", []):
                self._ray.kill(actor, no_restart=True)
        self._ray.shutdown()

    def _answer(self, reference: Any) -> Answer:
        worker = self._asked.pop(reference)
        if worker in self._ending:
            self._ending.discard(worker)
            return Answer(worker, died="ended")
        try:
            return Answer(worker, json.loads(self._ray.get(reference)))
        except self._ray.exceptions.RayActorError as error:
            return Answer(worker, died=_first_line(error))
        except self._ray.exceptions.RayError as error:
            return Answer(worker, died=f"Ray lost it: {_first_line(error)}")


class _Actor:
    """A worker in an actor's process."""

    def __init__(self, setup: str):
        self._worker = Worker(Setup(**json.loads(setup)))

    def call(self, name: str, arguments: str) -> str:
        """Call a method of the worker, with JSON arguments and a JSON result."""
        return json.dumps(getattr(self._worker, name)(*json.loads(arguments)))


def _init(ray: Any, address: str, cpus: int | None) -> None:
    """Connect to a cluster, or start Ray on this machine with `cpus` CPUs (None: all)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        _check_listens(host, int(port))
    options: dict[str, Any] = {"address": address, "log_to_driver": True, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        message = f"Ray cannot be used at {address}: {_first_line(error)}. Run ray start --head, or omit `ray`."
        raise BatchError(message, code="batch.ray") from error


def _check_listens(host: str, port: int) -> None:
    """Raise BatchError if nothing listens at an address. Ray itself would retry for minutes."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        reason = error.strerror or error
        message = f"no Ray at {host}:{port} ({reason}). Run ray start --head --port={port} there, or omit `ray`."
        raise BatchError(message, code="batch.ray") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
