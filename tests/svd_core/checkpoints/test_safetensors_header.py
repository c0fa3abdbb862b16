"""Files in other formats are recognized by content and never run. See also test_hostile_models.py."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.checkpoints.inspect import inspect
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.safetensors_header import read_header
from svd_stages.svd_core.errors import CheckpointError

from .hostile_models import Marker, framed, tensor


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_a_header_length_that_equals_a_pickles_signature_is_not_a_pickle(length, tmp_path):
    path = tmp_path / "model.safetensors"
    text = json.dumps({"x": tensor()}).encode()
    path.write_bytes(framed(text + b" " * (length - len(text)), bytes(8)))
    assert path.read_bytes()[:1] == b"\x80" or path.read_bytes()[:2] == b"PK"
    assert list(read_header(path).tensors) == ["x"]


def evil_pickle(kind: str, marker: Path) -> bytes:
    """Return a file that creates `marker` if anything unpickles it."""
    file = io.BytesIO()
    if kind == "raw":
        pickle.dump(Marker(marker), file)
    elif kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Marker(marker)))
    else:
        torch.save({"model": Marker(marker)}, file, _use_new_zipfile_serialization=kind == "torch")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["torch", "old torch", "zip", "raw"])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_pickles_are_refused_whatever_their_name_and_never_run(kind, name, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / name
    path.write_bytes(evil_pickle(kind, marker))
    for read in (load_checkpoint, inspect):
        with raises(CheckpointError, "checkpoint.pickle", name, "safetensors") as raised:
            read(path)
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
def test_results_of_broken_downloads_are_recognized(start, code, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(start)
    with raises(CheckpointError, code, path.name):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_without_an_index_are_named(tmp_path):
    with raises(CheckpointError, "checkpoint.unreadable", tmp_path / "nothing.safetensors"):
        load_checkpoint(tmp_path / "nothing.safetensors")
    with raises(CheckpointError, "checkpoint.family", tmp_path, "model_index.json"):
        load_checkpoint(tmp_path)


def test_dtypes_of_newer_versions_do_not_invalidate_the_header(tmp_path):
    path = tmp_path / "new.safetensors"
    path.write_bytes(framed({"x": tensor(dtype="F4", shape=[16])}, bytes(8)))
    assert read_header(path).tensors["x"].dtype == "F4"
