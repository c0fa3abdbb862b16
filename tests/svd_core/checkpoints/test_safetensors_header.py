"""Files that are not what they say: refused by content, quickly, and never run."""

from __future__ import annotations

import io
import json
import pickle
import time
import zipfile
from pathlib import Path

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.checkpoints.inspect import inspect
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.safetensors_header import MAX_TENSORS, read_header
from svd_stages.svd_core.errors import CheckpointError


def framed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header (an object, or bytes as they are) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(start: int = 0, end: int = 8, dtype: object = "F32", shape: object = (2,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


MALFORMED = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header of 2^63 bytes": framed(b"{}", length=2**63),
    "header longer than the file": framed({"x": tensor()}, bytes(8), length=10_000),
    "not json": framed(b"{nonsense}"),
    "not a table": framed(b"[1, 2]"),
    "not utf-8": framed(b'{"\xff\xfe": 1}'),
    "leading space": framed(b" {}"),
    "deep nest": framed(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "no data": framed({"x": tensor()}),
    "data cut short": framed({"x": tensor()}, bytes(7)),
    "trailing bytes": framed({"x": tensor()}, bytes(9)),
    "overlap": framed({"x": tensor(0, 8), "y": tensor(4, 12)}, bytes(12)),
    "hole": framed({"x": tensor(0, 8), "y": tensor(12, 20)}, bytes(20)),
    "does not start at 0": framed({"x": tensor(4, 12)}, bytes(12)),
    "reversed offsets": framed({"x": tensor(8, 0)}, bytes(8)),
    "negative offsets": framed({"x": tensor(-8, 0)}, bytes(8)),
    "offsets of text": framed({"x": {**tensor(), "data_offsets": ["0", "8"]}}, bytes(8)),
    "three offsets": framed({"x": {**tensor(), "data_offsets": [0, 4, 8]}}, bytes(8)),
    "shape and size differ": framed({"x": tensor(shape=[3])}, bytes(8)),
    "negative shape": framed({"x": tensor(shape=[-1, -2])}, bytes(8)),
    "true in a shape": framed({"x": tensor(shape=[True, 2])}, bytes(8)),
    "rank 9": framed({"x": tensor(shape=[1] * 8 + [2])}, bytes(8)),
    "shape that overflows": framed({"x": tensor(shape=[2**62, 2**62])}, bytes(8)),
    "type is no text": framed({"x": tensor(dtype=32)}, bytes(8)),
    "no description": framed({"x": 1}),
    "a name twice": framed(b'{"x":' + json.dumps(tensor()).encode() + b',"x":' + json.dumps(tensor()).encode() + b"}"),
    "metadata of numbers": framed({"__metadata__": {"a": 1}}),
    "metadata is a list": framed({"__metadata__": ["a"]}),
    "a gzip": b"\x1f\x8b\x08\x00" + bytes(100),
    "a png": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused_in_one_paragraph_and_at_once(kind, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(MALFORMED[kind])
    started = time.process_time()
    with pytest.raises(CheckpointError) as raised:
        read_header(path)
    assert time.process_time() - started < 2
    assert "model.safetensors" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_header_that_would_cost_gigabytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "bomb.safetensors"
    with path.open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little") + b"{")
        file.truncate(90_000_008)
    started = time.process_time()
    with raises(CheckpointError, "checkpoint.damaged", 90000000):
        read_header(path)
    assert time.process_time() - started < 2


def test_a_file_of_too_many_tensors_is_refused(tmp_path):
    path = tmp_path / "many.safetensors"
    path.write_bytes(framed({f"t{number}": tensor(0, 0, shape=[0]) for number in range(MAX_TENSORS + 1)}))
    with raises(CheckpointError, "checkpoint.damaged", MAX_TENSORS + 1, MAX_TENSORS):
        read_header(path)


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_header_length_that_looks_like_another_formats_first_bytes_is_no_pickle(length, tmp_path):
    path = tmp_path / "model.safetensors"
    text = json.dumps({"x": tensor()}).encode()
    path.write_bytes(framed(text + b" " * (length - len(text)), bytes(8)))
    assert path.read_bytes()[:1] == b"\x80" or path.read_bytes()[:2] == b"PK"
    assert list(read_header(path).tensors) == ["x"]


class Marker:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def evil_pickles(marker: Path) -> dict[str, bytes]:
    """Files that make `marker` when anything unpickles them."""
    saved = io.BytesIO()
    torch.save({"model": Marker(marker)}, saved)
    old = io.BytesIO()
    torch.save({"model": Marker(marker)}, old, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Marker(marker)))
    return {
        "torch": saved.getvalue(),
        "old torch": old.getvalue(),
        "zip": zipped.getvalue(),
        "raw": pickle.dumps(Marker(marker)),
    }


@pytest.mark.parametrize("kind", ["torch", "old torch", "zip", "raw"])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_pickles_are_refused_whatever_their_name_and_never_run(kind, name, tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / name
    path.write_bytes(evil_pickles(marker)[kind])
    for reader in (load_checkpoint, inspect):
        with raises(CheckpointError, "checkpoint.pickle", name, "safetensors") as raised:
            reader(path)
        assert raised.value.exit_status == 3
    assert not marker.exists()


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (b"<!DOCTYPE html><html>", "checkpoint.web_page"),
        (b"\n <html>", "checkpoint.web_page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "checkpoint.pointer"),
    ],
)
def test_what_broken_downloads_leave_is_told(start, code, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(start)
    with raises(CheckpointError, code, path.name):
        load_checkpoint(path)


def test_a_file_that_is_not_there_is_an_error_of_ours(tmp_path):
    with raises(CheckpointError, "checkpoint.unreadable", tmp_path / "nothing.safetensors"):
        load_checkpoint(tmp_path / "nothing.safetensors")


def test_a_folder_without_an_index_is_refused(tmp_path):
    with raises(CheckpointError, "checkpoint.family", tmp_path, "model_index.json"):
        load_checkpoint(tmp_path)


def test_types_of_newer_versions_do_not_stop_the_header(tmp_path):
    path = tmp_path / "new.safetensors"
    path.write_bytes(framed({"x": tensor(dtype="F4", shape=[16])}, bytes(8)))
    assert read_header(path).tensors["x"].dtype == "F4"
