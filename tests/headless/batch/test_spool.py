"""The spool: renders that are complete, or absent."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from svd_stages.headless.batch.rendering import Rendered
from svd_stages.headless.batch.spool import Spool

A, B = "a" * 64, "b" * 64


@pytest.fixture
def spool(tmp_path) -> Spool:
    return Spool(tmp_path / "spool")


def rendered(seed: int = 0) -> Rendered:
    frames = np.random.default_rng(seed).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    facts = {"9 0": [{"array": "9 0 0"}], "8 2": [{"value": 7.5}, {"value": None}]}
    return Rendered({"9 0 0": frames}, facts, [{"code": "numbers.float32", "message": "told"}])


def test_a_render_is_found_as_it_was(spool):
    assert spool.find(A) is None and list(spool.ids()) == []
    spool.keep(A, rendered(1))
    spool.keep(B, rendered(2))
    kept = spool.find(A)
    assert kept is not None
    assert kept.facts == rendered(1).facts and kept.notes == rendered(1).notes
    assert kept.arrays.keys() == {"9 0 0"}
    assert np.array_equal(kept.arrays["9 0 0"], rendered(1).arrays["9 0 0"])
    assert kept.arrays["9 0 0"].dtype == np.uint8
    assert set(spool.ids()) == {A, B}
    spool.keep(A, rendered(3))
    assert np.array_equal(spool.find(A).arrays["9 0 0"], rendered(3).arrays["9 0 0"])
    spool.drop(A)
    spool.drop(A)
    assert spool.find(A) is None and list(spool.ids()) == [B]


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


def test_files_of_a_killed_writer_are_deleted(spool):
    spool.path.mkdir()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (spool.path / f".{A}.{child.pid}").write_bytes(b"half")
    assert list(spool.ids()) == [] and spool.find(A) is None
    spool.keep(A, rendered())
    assert [path.name[0] for path in spool.path.iterdir()] == ["a"]
    spool.drop(A)
    (spool.path / f".{B}.{child.pid}").write_bytes(b"half")
    spool.remove_if_empty()
    assert not spool.path.exists()


def test_a_folder_with_renders_or_running_writers_is_kept(spool):
    spool.remove_if_empty()
    spool.keep(A, rendered())
    spool.remove_if_empty()
    assert list(spool.ids()) == [A]
    spool.drop(A)
    (spool.path / f".{B}.{os.getpid()}").write_bytes(b"half")
    spool.remove_if_empty()
    assert spool.path.exists()
