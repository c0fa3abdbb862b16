"""The spool: renders that are complete, or absent."""

from __future__ import annotations

import os

import numpy as np
import pytest
from batches import commit_files
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.batch.rendering import Rendered
from svd_stages.headless.batch.spool import Spool
from svd_stages.svd_core.utils.atomic_files import unfinished_folder

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def spool(tmp_path) -> Spool:
    return Spool(tmp_path / "spool")


def rendered(seed: int = 0) -> Rendered:
    frames = np.random.default_rng(seed).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    facts = {"9 0": [{"array": "9 0 0"}], "8 2": [{"value": 7.5}, {"value": None}]}
    return Rendered({"9 0 0": frames}, facts, [{"code": "numbers.float32", "message": "told"}])


def test_a_render_is_found_as_it_was(spool):
    assert spool.find(A) is None
    spool.keep(A, rendered(1))
    spool.keep(B, rendered(2))
    kept = spool.find(A)
    assert kept is not None
    assert kept.facts == rendered(1).facts and kept.notes == rendered(1).notes
    assert kept.arrays.keys() == {"9 0 0"}
    assert np.array_equal(kept.arrays["9 0 0"], rendered(1).arrays["9 0 0"])
    assert kept.arrays["9 0 0"].dtype == np.uint8
    spool.keep(A, rendered(3))
    assert np.array_equal(spool.find(A).arrays["9 0 0"], rendered(3).arrays["9 0 0"])
    spool.drop(A)
    spool.drop(A)
    assert spool.find(A) is None and spool.find(B) is not None


def test_a_damaged_render_is_not_found(spool):
    spool.keep(A, rendered())
    (file,) = spool.path.iterdir()
    content = file.read_bytes()
    for length in (0, 1, 8, 40, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert spool.find(A) is None, length
    for text in (b"", b"{}", b"x" * 500, b"\xff" * 200, (2**60).to_bytes(8, "little") + content[8:]):
        file.write_bytes(text)
        assert spool.find(A) is None
    for place in range(len(content) - 180, len(content), 30):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert spool.find(A) is None
    for facts in (b"[", b"5"):
        file.write_bytes(with_facts(facts))
        assert spool.find(A) is None


def with_facts(text: bytes) -> bytes:
    """Return a file of the right format whose facts are this text."""
    import json

    head = json.dumps({"__metadata__": {"facts": text.decode(), "notes": "[]"}}).encode()
    return len(head).to_bytes(8, "little") + head


def test_a_full_disk_raises_and_leaves_no_file(spool, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        spool.keep(A, rendered())
    assert list(spool.path.iterdir()) == []


def test_cleaning_keeps_renders_of_unfinished_tasks_and_files_of_running_writers(spool, tmp_path):
    folder = RunFolder(tmp_path / "run")
    spool.clean(folder)
    for task_id in (A, B, C):
        spool.keep(task_id, rendered())
    commit_files(folder, A, [b"done"])
    folder.write_failure(B, {"code": "x"})
    spool.clean(folder)
    assert [path.stem for path in spool.path.iterdir()] == [C]
    spool.drop(C)
    with unfinished_folder(spool.path):
        spool.clean(folder)
        assert spool.path.exists()
    spool.clean(folder)
    assert not spool.path.exists()
