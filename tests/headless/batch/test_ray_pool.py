"""Batches on a Ray cluster of two nodes. Killed actors are tested in test_killed.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from batches import Batch, drive, images
from error_checks import raises
from svd_stages.headless.batch.process_pool import ProcessPool
from svd_stages.headless.batch.ray_pool import RayPool
from svd_stages.svd_core.errors import BatchError

pytest.importorskip("ray", reason='needs Ray: pip install "svd-stages[ray]"')


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Start a cluster of two nodes on this machine, one CPU each, and return its address."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_two_nodes_make_the_same_videos_as_one_process(tmp_path, two_nodes):
    def videos(batch: Batch) -> dict[str, str]:
        records = [batch.folder.read_record(task) for task in batch.folder.scan().done]
        return {record["task"]: record["files"][0]["sha256"] for record in records if record}

    one, two, cluster = (Batch.planned(tmp_path / name, images(40), seconds=0.1) for name in ("1", "2", "ray"))
    for batch, count in ((one, 1), (two, 2)):
        with contextlib.closing(ProcessPool(batch.setup(), [{}] * count)) as pool:
            drive(batch, pool)
    with contextlib.closing(RayPool(cluster.setup(), two_nodes, None, gpus=0)) as pool:
        assert list(pool.workers) == [0, 1]
        drive(cluster, pool)
    assert videos(one) == videos(two) == videos(cluster)
    assert len(videos(one)) == 40
    assert len({line.split()[1] for line in cluster.log.read_text().splitlines()}) == 2, "a node rendered nothing"


def test_a_cluster_that_cannot_be_found_is_named(tmp_path, monkeypatch):
    import ray

    def fail(**options):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", fail)
    with raises(BatchError, "batch.ray", "auto", "any running Ray instance", "ray start"):
        RayPool(Batch.planned(tmp_path / "run", images(1)).setup(), "auto", 1)


def test_an_address_without_a_cluster_is_named(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(1))
    with raises(BatchError, "batch.ray", "127.0.0.1:1", "--port=1"):
        RayPool(batch.setup(), "127.0.0.1:1", 1)
