"""One driver for a run: what refuses a second one, and what does not."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from error_checks import check_facts, raises
from svd_stages.headless.batch.lock import Shard, ledger_lock, parse_shard, run_lock
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
    """Have another process drive a shard of a run."""
    held: list[subprocess.Popen] = []

    def start(shard: str) -> subprocess.Popen:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), shard], stdout=subprocess.PIPE, text=True
        )
        held.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in held:
        holder.kill()
        holder.wait()


def test_a_second_driver_is_refused_and_told_who_has_the_run_until_that_one_is_killed(tmp_path, hold):
    holder = hold("1/1")
    refuses(tmp_path, "1/1", holder.pid)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_lock(tmp_path, Shard()):
        refuses(tmp_path, "1/1", os.getpid())
    with run_lock(tmp_path, Shard()):
        pass


def test_shards_of_one_division_work_side_by_side_and_none_of_another_division(tmp_path, hold):
    hold("1/3")
    with run_lock(tmp_path, Shard(2, 3)), run_lock(tmp_path, Shard(3, 3)):
        for taken in ("1/3", "2/3", "1/1", "1/2", "3/4"):
            refuses(tmp_path, taken)


def test_a_refused_driver_holds_nothing_afterwards(tmp_path):
    with run_lock(tmp_path, Shard(1, 2)):
        refuses(tmp_path, "1/1")
        with run_lock(tmp_path, Shard(2, 2)):
            pass
    with run_lock(tmp_path, Shard()):
        pass


def test_a_driver_that_raised_holds_nothing_and_is_not_named_later(tmp_path):
    with pytest.raises(KeyError), run_lock(tmp_path, Shard()):
        raise KeyError
    assert list((tmp_path / "drivers").glob("*.json")) == []
    with run_lock(tmp_path, Shard()):
        (tmp_path / "drivers" / "1-of-1.json").write_text("damaged")
        refuses(tmp_path, "1/1")


def test_a_disk_without_locks_is_worked_on_with_a_warning(tmp_path, monkeypatch, caplog):
    filelock = pytest.importorskip("filelock")

    def unknown(self):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "_acquire", unknown)
    with run_lock(tmp_path, Shard()):
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        check_facts(caplog.text, tmp_path)


def test_a_ledger_is_one_driver_s(tmp_path):
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


def test_a_shard_is_read_as_a_person_writes_it():
    assert parse_shard("2/8") == Shard(2, 8) and parse_shard("1/1") == Shard()


@pytest.mark.parametrize(
    "text", ["", "2", "0/2", "3/2", "-1/2", "a/b", "1/2/3", "1.0/2", "٣/4", "1/" + "9" * 5000, "/"]
)
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(BatchError) as caught:
        parse_shard(text)
    assert caught.value.code == "batch.shard" and len(str(caught.value)) < 200
