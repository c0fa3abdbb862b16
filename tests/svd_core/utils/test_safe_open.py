"""What lies in a file's place and is none is refused by every door, and nobody waits for it."""

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
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a socket": make_socket,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
}
DOORS = {
    "graph": (read_graph, GraphError),
    "metadata": (read_metadata, ImageError),
    "picture": (load_image, ImageError),
    "source": (read_source, GraphError),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, place, door):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    PLACES[place](Path("x"))
    read, error = DOORS[door]
    with pytest.raises(error):
        read(Path("x"))


def test_a_plain_file_is_read_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_regular_file(tmp_path / "link") as stream:
        assert stream.read() == b"content"


@pytest.mark.parametrize("place", PLACES)
def test_a_run_folder_with_none_in_a_files_place_was_not_planned(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    PLACES[place](Path("run.json"))
    assert RunFolder(Path()).read_settings() is None


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("place", PLACES)
def test_a_manifest_that_is_no_file_is_refused_at_once(tmp_path, monkeypatch, place, kind):
    monkeypatch.chdir(tmp_path)
    PLACES[place](Path(f"x.{kind}"))
    with pytest.raises(BatchError):
        list(read_rows(Path(f"x.{kind}")))
    PLACES[place](Path("plan.jsonl"))
    with pytest.raises(BatchError):
        list(read_plan(Path("plan.jsonl")))
