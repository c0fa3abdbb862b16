"""The same batches on Ray: actors that are killed, drivers that are killed, and a cluster of two nodes."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator

import pytest
from batches import Batch, drive, images, kill, wait_until, workers_of
from error_checks import raises

pytest.importorskip("ray", reason='needs Ray: pip install "svd-stages[ray]"')


def test_actors_that_are_killed_cost_at_most_a_render_each(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(200), seconds=0.03)
    drawn = random.Random(0)
    with batch.driver("4", "ray", "local") as driver:
        for number in range(1, 5):
            wait_until(lambda number=number: batch.count() >= 40 * number)
            kill(drawn.choice(workers_of(driver.pid)))
        assert driver.wait(240) == 0, batch.said()
    assert batch.states() == {"done": 200}
    assert batch.count() <= 204
    batch.check_clips()


def test_a_driver_on_ray_that_is_killed_costs_what_was_in_flight(tmp_path):
    batch = Batch.planned(tmp_path / "run", [*images(120), "bad-1.png", "crash-1.png"], seconds=0.03)
    with batch.driver("2", "ray", "local") as driver:
        wait_until(lambda: batch.count() >= 50)
        kill(driver.pid)
        driver.wait()
    assert batch.run("2", "ray", "local") == 0, batch.said()
    assert batch.states() == {"done": 120, "failed": 1, "quarantined": 1}
    assert batch.count() <= 121 + 3 + 2
    batch.check_clips()


def test_an_actor_that_dies_while_the_disk_is_full_loses_nothing(tmp_path):
    full = tmp_path / "full"
    batch = Batch.planned(tmp_path / "run", images(12), seconds=0.05, full=str(full))
    with batch.driver("2", "ray", "local") as driver:
        wait_until(lambda: batch.states()["done"] >= 4)
        full.touch()
        wait_until(lambda: os.strerror(errno.ENOSPC) in batch.said())
        time.sleep(0.3)
        for pid in workers_of(driver.pid):
            kill(pid)
        time.sleep(0.3)
        full.unlink()
        assert driver.wait(120) == 0, batch.said()
    assert batch.states() == {"done": 12}
    batch.check_clips()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """The address of a cluster of two nodes on this machine, one CPU each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_two_nodes_make_the_same_clips_as_one_process(tmp_path, two_nodes):
    from svd_stages.headless.batch.process_pool import ProcessPool
    from svd_stages.headless.batch.ray_pool import RayPool

    def clips(batch: Batch) -> dict[str, str]:
        records = [batch.folder.read_record(task) for task in batch.folder.scan().done]
        return {record["task"]: record["files"][0]["sha256"] for record in records if record}

    one, two, cluster = (Batch.planned(tmp_path / name, images(40), seconds=0.1) for name in ("1", "2", "ray"))
    for batch, count in ((one, 1), (two, 2)):
        pool = ProcessPool(batch.setup(), [{}] * count)
        drive(batch, pool)
        pool.close()
    pool = RayPool(cluster.setup(), two_nodes, None, gpus=0)
    assert list(pool.workers) == [0, 1]
    drive(cluster, pool)
    pool.close()
    assert clips(one) == clips(two) == clips(cluster)
    assert len(clips(one)) == 40
    assert len({line.split()[1] for line in cluster.log.read_text().splitlines()}) == 2, "one of the nodes made nothing"


def test_no_cluster_at_an_address_is_said(tmp_path):
    from svd_stages.headless.batch.ray_pool import RayPool
    from svd_stages.svd_core.errors import BatchError

    batch = Batch.planned(tmp_path / "run", images(1))
    with raises(BatchError, "batch.ray", "127.0.0.1:1", "--port=1"):
        RayPool(batch.setup(), "127.0.0.1:1", 1)
