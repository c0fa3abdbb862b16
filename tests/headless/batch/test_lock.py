"""Locks: one driver per run, or one per shard."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from error_checks import check_facts, raises
from svd_stages.headless.batch.lock import Shard, active_drivers, ledger_lock, parse_shard, run_lock
from svd_stages.svd_core.errors import BatchError

HOLDER = """
import sys, time
from pathlib import Path
from svd_stages.headless.batch.lock import parse_shard, run_lock
with run_lock(Path(sys.argv[1]), parse_shard(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


def refuses(run: Path, shard: str, *facts: object) -> None:
    with raises(BatchError, "batch.another_driver", run, *facts), run_lock(run, parse_shard(shard)):
        pass


@pytest.fixture
def hold(tmp_path):
    """Lock shards of a run in other processes."""
    holders: list[subprocess.Popen] = []

    def start(shard: str) -> subprocess.Popen:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), shard], stdout=subprocess.PIPE, text=True
        )
        holders.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.wait()


def test_a_second_driver_is_refused_until_the_first_is_killed(tmp_path, hold):
    holder = hold("1/1")
    refuses(tmp_path, "1/1", holder.pid)
    assert active_drivers(tmp_path) == [f"process {holder.pid} on {socket.gethostname()}"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert active_drivers(tmp_path) == []
    with run_lock(tmp_path, Shard()):
        refuses(tmp_path, "1/1", os.getpid())
    with run_lock(tmp_path, Shard()):
        pass


def test_shards_of_one_division_run_together_and_others_are_refused(tmp_path, hold):
    hold("1/3")
    with run_lock(tmp_path, Shard(2, 3)), run_lock(tmp_path, Shard(3, 3)):
        for taken in ("1/3", "2/3", "1/1", "1/2", "3/4"):
            refuses(tmp_path, taken)


def test_a_refused_driver_holds_no_lock(tmp_path):
    with run_lock(tmp_path, Shard(1, 2)):
        refuses(tmp_path, "1/1")
        with run_lock(tmp_path, Shard(2, 2)):
            pass
    with run_lock(tmp_path, Shard()):
        pass


def test_a_driver_that_raised_holds_no_lock_and_is_not_named(tmp_path):
    with pytest.raises(KeyError), run_lock(tmp_path, Shard()):
        raise KeyError
    assert list((tmp_path / "drivers").glob("*.json")) == []
    with run_lock(tmp_path, Shard()):
        (tmp_path / "drivers" / "1-of-1.json").write_text("damaged")
        refuses(tmp_path, "1/1")


def test_a_disk_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    filelock = pytest.importorskip("filelock")

    def unknown(self):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "_acquire", unknown)
    with run_lock(tmp_path, Shard()):
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        check_facts(caplog.text, tmp_path)


def test_errors_quote_paths(tmp_path):
    run, ledger = tmp_path / "summer 2024.", tmp_path / "ledger."
    with run_lock(run, Shard()):
        refuses(run, "1/1", f'"{run}"', f"--run '{run}'")
    with ledger_lock(ledger), raises(BatchError, "batch.another_driver", f'"{ledger}"'), ledger_lock(ledger):
        pass
    ledger.write_text("a file")
    with raises(BatchError, "batch.ledger", f'"{ledger / "a."}"'), ledger_lock(ledger / "a."):
        pass


def test_a_ledger_has_one_driver(tmp_path):
    with ledger_lock(tmp_path / "x" / "ledger.sqlite"):
        path = tmp_path / "x" / "ledger.sqlite"
        with raises(BatchError, "batch.another_driver", path), ledger_lock(path):
            pass
        with ledger_lock(tmp_path / "x" / "other.sqlite"):
            pass
    with ledger_lock(tmp_path / "x" / "ledger.sqlite"):
        pass


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_every_task_is_in_one_shard_and_shards_are_about_equal(count):
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(6400)]
    shards = [Shard(index, count) for index in range(1, count + 1)]
    sizes = [sum(shard.has(each) for each in ids) for shard in shards]
    assert sum(sizes) == len(ids) and all(sum(shard.has(each) for shard in shards) == 1 for each in ids)
    assert min(sizes) > 0.6 * len(ids) / count
    assert len({shard.name for shard in shards}) == count


def test_a_shard_is_parsed():
    assert parse_shard("2/8") == Shard(2, 8) and parse_shard("1/1") == Shard()


@pytest.mark.parametrize(
    "text", ["", "2", "0/2", "3/2", "-1/2", "a/b", "1/2/3", "1.0/2", "٣/4", "1/" + "9" * 5000, "/"]
)
def test_an_invalid_shard_is_refused(text):
    with pytest.raises(BatchError) as caught:
        parse_shard(text)
    assert caught.value.code == "batch.shard" and len(str(caught.value)) < 200
