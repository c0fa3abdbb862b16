"""Workers as actors on Ray: on this machine, or on all machines of a cluster.

Ray starts an actor's process again when it dies; what was asked of it is asked again by the driver, and never by Ray
(`max_task_retries=0`), so that attempts are counted in one place. Nothing large goes through Ray's object store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from ...svd_core.errors import BatchError
from ...svd_core.utils.optional_deps import require_extra
from .worker import Setup, Worker
from .worker_pool import Answer

PATIENCE = 10.0
"""Seconds in which a cluster's address must answer."""
_OBJECT_STORE = 100 * 1024 * 1024
"""Bytes; Ray would take a third of the memory, of which nothing here makes use."""


class RayPool:
    """A `Pool` of actors.

    address  of a running cluster ("auto" finds the one of this machine); None: a Ray of our own on this machine
    count    how many; None: one for each GPU of the cluster, or where there is none for each `cpus` CPUs
    gpus     how much of a GPU each takes; None: one where the cluster has GPUs
    cpus     how many CPUs each takes

    Raises MissingExtraError without Ray, BatchError when the cluster cannot be reached or has no room for a worker.
    """

    def __init__(self, setup: Setup, address: str | None, count: int | None, gpus: float | None = None, cpus: int = 1):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU see what is there
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        require_extra("ray", "ray")
        import ray

        self._ray: Any = ray
        _begin(ray, address, count, cpus)
        has = ray.cluster_resources()
        gpus = (1 if has.get("GPU", 0) >= 1 else 0) if gpus is None else gpus
        room = int(has.get("GPU", 0) // gpus) if gpus else int(has.get("CPU", 0) // cpus)
        count = count or room
        if room < 1:
            self.close()
            raise BatchError(
                f"the Ray cluster has {has.get('GPU', 0):g} GPUs and {has.get('CPU', 0):g} CPUs, which is no room for "
                "a worker. Start nodes with more, or use fewer --threads.",
                code="batch.no_workers",
            )
        actor = ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=cpus, num_gpus=gpus)(_Actor)
        self._actors = [actor.remote(json.dumps(setup.as_dict())) for _ in range(min(count, room))]
        self._asked: dict[Any, int] = {}
        self._ending: set[int] = set()

    @property
    def name(self) -> str:
        """How many on how many nodes."""
        nodes = sum(1 for node in self._ray.nodes() if node["Alive"])
        count = len(self._actors)
        return f"{count} {'worker' if count == 1 else 'workers'} on Ray, {nodes} {'node' if nodes == 1 else 'nodes'}"

    @property
    def workers(self) -> Sequence[int]:
        """Their numbers."""
        return range(len(self._actors))

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        """See `Pool.ask`."""
        self._asked[self._actors[worker].call.remote(call, json.dumps(arguments))] = worker

    def answers(self, timeout: float) -> list[Answer]:
        """See `Pool.answers`."""
        waiting = list(self._asked)
        if not waiting:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout)
        if len(waiting) > 1:
            ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [self._answer(each) for each in ready]

    def end(self, worker: int) -> None:
        """See `Pool.end`. Ray starts the actor again."""
        self._ending.add(worker)
        self._ray.kill(self._actors[worker], no_restart=False)

    def close(self) -> None:
        """End the actors, and the Ray that was started for them."""
        with contextlib.suppress(Exception):
            for actor in getattr(self, "_actors", []):
                self._ray.kill(actor, no_restart=True)
        self._ray.shutdown()

    def _answer(self, reference: Any) -> Answer:
        worker = self._asked.pop(reference)
        if worker in self._ending:  # whatever it said at last
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
        """Call the worker; JSON in and out."""
        return json.dumps(getattr(self._worker, name)(*json.loads(arguments)))


def _begin(ray: Any, address: str | None, count: int | None, cpus: int) -> None:
    """Connect to a cluster, or start a Ray here."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        _check_listens(host, int(port))
    quiet = {"log_to_driver": True, "logging_level": logging.ERROR}
    try:
        if address is None:
            total = None if count is None else count * cpus
            ray.init(
                address="local",
                num_cpus=total,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise BatchError(
            f"Ray cannot be used at {address or 'this machine'}: {_first_line(error)}. Start it with ray start --head, "
            "or leave --ray out to work on this machine alone.",
            code="batch.ray",
        ) from error


def _check_listens(host: str, port: int) -> None:
    """Raise BatchError when nobody answers there: Ray itself would try for minutes."""
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError as error:
        raise BatchError(
            f"no Ray answers at {host}:{port} ({error.strerror or error}). Start it there with ray start --head "
            f"--port={port}, or leave --ray out to work on this machine alone.",
            code="batch.ray",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
