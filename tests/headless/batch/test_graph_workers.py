"""Choose the workers of a batch."""

from __future__ import annotations

import pytest
import torch
from svd_stages.headless.batch import graph_workers, ray_pool
from svd_stages.headless.batch.graph_workers import Workers, make_pool
from svd_stages.headless.batch.process_pool import ProcessPool
from svd_stages.headless.batch.worker import Setup

SETUP = Setup(run="run", run_id="0" * 16, spool="spool", runner="module:name", config={}, shared={})


@pytest.mark.parametrize("gpus", [[], ["0", "1"]], ids=["no GPU", "two GPUs"])
def test_this_machine_has_plain_processes_also_where_ray_is_installed(gpus, monkeypatch):
    monkeypatch.setattr(graph_workers, "_visible_gpus", lambda: gpus)
    pool = make_pool(SETUP, Workers(count=None if gpus else 2), "auto", tasks=5)
    assert isinstance(pool, ProcessPool)
    assert len(pool.workers) == 2
    pool.close()


@pytest.mark.parametrize(("device", "gpus"), [("auto", None), ("cuda", None), ("cuda:1", 0), ("mps", 0), ("cpu", 0)])
def test_rays_workers_see_every_gpu_where_one_is_named(monkeypatch, device, gpus):
    """Ray shows a worker that asks for a GPU this one only, as cuda:0."""
    made = []
    monkeypatch.setattr(ray_pool, "RayPool", lambda *arguments: made.append(arguments))
    make_pool(SETUP, Workers(count=2, ray="auto"), device, tasks=9)
    assert made == [(SETUP, "auto", 2, gpus, 1)]


@pytest.mark.parametrize(
    ("ray", "device", "count"),
    [("auto", "cuda:1", 1), ("auto", "mps", 1), ("auto", "auto", None), ("local", "cpu", 2), ("local", "auto", 2)],
)
def test_rays_workers_on_one_device_or_machine_are_as_many_as_plain_ones(monkeypatch, ray, device, count):
    made = []
    monkeypatch.setattr(ray_pool, "RayPool", lambda *arguments: made.append(arguments[2]))
    monkeypatch.setattr(graph_workers.os, "sched_getaffinity", lambda _: range(64), raising=False)
    make_pool(SETUP, Workers(ray=ray), device, tasks=2, memory=1)
    assert made == [count]


def test_spaces_between_visible_gpus_are_ignored(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 2 ,3")
    environments = graph_workers._environments("auto", threads=1, memory=1)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["0", "2", "3"]
