"""Pipes, folders, sockets and devices are refused by every reader of files, without waiting for them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from svd_stages.headless import read_source
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.batch.manifest import read_rows
from svd_stages.headless.batch.plan import read_plan
from svd_stages.headless.graph import read_graph
from svd_stages.svd_core.errors import BatchError, GraphError, ImageError
from svd_stages.svd_core.media.image_io import load_image
from svd_stages.svd_core.media.metadata import read_metadata
from svd_stages.svd_core.utils.safe_open import open_regular_file


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a socket": make_socket,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
}
READERS = {
    "graph": (read_graph, GraphError),
    "metadata": (read_metadata, ImageError),
    "image": (load_image, ImageError),
    "source": (read_source, GraphError),
    "manifest.csv": (lambda path: list(read_rows(path)), BatchError),
    "manifest.jsonl": (lambda path: list(read_rows(path)), BatchError),
    "manifest.parquet": (lambda path: list(read_rows(path)), BatchError),
    "plan": (lambda path: list(read_plan(path)), BatchError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_other_things_than_files_are_refused_at_once(tmp_path, monkeypatch, obstacle, reader):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    OBSTACLES[obstacle](Path(reader))
    read, error = READERS[reader]
    with pytest.raises(error):
        read(Path(reader))


def test_a_file_is_read_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_regular_file(tmp_path / "link") as stream:
        assert stream.read() == b"content"


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_run_folder_without_a_settings_file_was_not_planned(tmp_path, monkeypatch, obstacle):
    monkeypatch.chdir(tmp_path)
    OBSTACLES[obstacle](Path("run.json"))
    assert RunFolder(Path()).read_settings() is None
