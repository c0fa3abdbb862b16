"""Choose the workers of a batch."""

from __future__ import annotations

import pytest
from svd_stages.headless.batch import graph_workers
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
