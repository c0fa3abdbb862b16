"""Downloads, against a stand-in of the hub on this machine: checked, complete or nothing, and refusals explained."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from svd_stages.svd_core.checkpoint import catalog, download
from svd_stages.svd_core.checkpoint.catalog import CATALOG, CatalogEntry, CatalogFile
from svd_stages.svd_core.checkpoint.library import ModelLibrary
from svd_stages.svd_core.checkpoint.parts import VideoDefaults
from svd_stages.svd_core.errors import CheckpointError, Interrupted, MissingExtraError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the stand-in serves: path in the repository -> bytes, a status to refuse with, and the requests it met."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.refuse: tuple[int, str | None] | None = None
        self.requests: list[str] = []
        self.endpoint = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            repository, _, rest = self.path.lstrip("/").partition("/resolve/")
            body = hub.files.get(rest.partition("/")[2])
            if hub.refuse is not None or body is None or repository != "somebody/something":
                status, code = hub.refuse or (404, "EntryNotFound")
                self.send_response(status)
                if code is not None:
                    self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A hub on this machine, and a user without a token."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def body(header_only, tmp_path) -> bytes:
    return header_only(tmp_path / "served.safetensors", {"weight": ("F32", (1000,))}).read_bytes()


@pytest.fixture
def known(body, monkeypatch) -> CatalogEntry:
    """A one-file entry in the catalog, called "small"."""
    file = CatalogFile("small.safetensors", len(body), len(body), hashlib.sha256(body).hexdigest())
    entry = CatalogEntry("small", "somebody/something", (file,), False, "a licence", VideoDefaults())
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    return entry


def enter(monkeypatch, entry: CatalogEntry, **changes: object) -> None:
    """Put `entry` into the catalog with its file changed."""
    changed = replace(entry, files=(replace(entry.files[0], **changes),))
    monkeypatch.setattr(catalog, "CATALOG", (changed,))


def left_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_known_checkpoint_comes_to_its_place_whole(hub, known, body, tmp_path):
    hub.files["small.safetensors"] = body
    root = tmp_path / "models"
    seen: list[tuple[str, int, int]] = []

    @contextmanager
    def progress(stage: str, total: int, unit: str):
        yield lambda done: seen.append((stage, done, total))

    path = download.download("small", root, progress, endpoint=hub.endpoint)
    assert path == root / "checkpoints" / "small.safetensors"
    assert path.read_bytes() == body
    assert left_in(root) == ["checkpoints/small.safetensors"]
    assert ModelLibrary.from_roots([root]).find("small.safetensors") == path
    assert seen[-1] == ("checking small.safetensors", len(body), len(body))
    assert all(done <= total for _, done, total in seen)


def test_what_is_there_and_right_is_not_fetched_again(hub, known, body, tmp_path, caplog):
    place = tmp_path / "checkpoints" / "small.safetensors"
    place.parent.mkdir()
    place.write_bytes(body)
    with caplog.at_level(logging.INFO, logger="svd_stages"):
        assert download.download("small", tmp_path, endpoint=hub.endpoint) == place
    assert hub.requests == []
    assert "nothing is downloaded" in caplog.text


def test_what_is_there_and_wrong_is_said_and_left(hub, known, body, tmp_path):
    place = tmp_path / "checkpoints" / "small.safetensors"
    place.parent.mkdir()
    place.write_bytes(body[:-1] + b"x")
    with pytest.raises(CheckpointError, match="sha256"):
        download.download("small", tmp_path, endpoint=hub.endpoint)
    assert place.exists()
    assert hub.requests == []


@pytest.mark.parametrize(("changes", "said"), [({"sha256": "0" * 64}, "sha256 is"), ({"bytes": 5}, "must have 5")])
def test_a_file_that_is_not_the_published_one_is_removed(hub, known, body, tmp_path, monkeypatch, changes, said):
    hub.files["small.safetensors"] = body
    enter(monkeypatch, known, **changes)
    root = tmp_path / "models"
    with pytest.raises(CheckpointError, match=said) as raised:
        download.download("small", root, endpoint=hub.endpoint)
    assert raised.value.code == "checkpoint.hash"
    assert left_in(root) == []


def test_an_unknown_hash_is_said_and_the_form_is_checked(hub, known, body, tmp_path, monkeypatch, caplog):
    enter(monkeypatch, known, sha256=None, bytes=None)
    hub.files["small.safetensors"] = body
    download.download("small", tmp_path / "one", endpoint=hub.endpoint)
    assert "sha256" in caplog.text and "not known" in caplog.text
    hub.files["small.safetensors"] = body[:-10]
    with pytest.raises(CheckpointError, match="not complete"):
        download.download("small", tmp_path / "two", endpoint=hub.endpoint)
    assert left_in(tmp_path / "two") == []


@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo"), (401, None), (403, None)])
def test_a_gated_checkpoint_says_what_it_needs(hub, known, tmp_path, status, code):
    hub.refuse = (status, code)
    with pytest.raises(CheckpointError, match="HF_TOKEN") as raised:
        download.download("small", tmp_path / "models", endpoint=hub.endpoint)
    assert raised.value.code == "checkpoint.gated"
    assert known.page in str(raised.value)
    assert left_in(tmp_path / "models") == []


def test_a_file_that_is_gone_from_the_hub_is_said(hub, known, tmp_path):
    with pytest.raises(CheckpointError, match="404"):
        download.download("small", tmp_path / "models", endpoint=hub.endpoint)


def test_a_hub_that_cannot_be_reached_is_said(known, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client tries again, and waits in between
    with pytest.raises(CheckpointError, match="connection") as raised:
        download.download("small", tmp_path / "models", endpoint="http://127.0.0.1:9")
    assert raised.value.code == "checkpoint.offline"
    assert "\n" not in str(raised.value)


def test_stopping_leaves_nothing_behind(hub, known, body, tmp_path):
    hub.files["small.safetensors"] = body

    @contextmanager
    def stop(stage: str, total: int, unit: str):
        def advance(done: int) -> None:
            raise Interrupted("stopped")

        yield advance

    with pytest.raises(Interrupted):
        download.download("small", tmp_path / "models", stop, endpoint=hub.endpoint)
    assert left_in(tmp_path / "models") == []


def test_a_folder_comes_whole_under_its_name(hub, known, body, tmp_path, monkeypatch):
    files = {"model_index.json": b"{}", "unet/diffusion_pytorch_model.fp16.safetensors": body}
    hub.files.update(files)
    entry = replace(known, name="folder", files=tuple(CatalogFile(path, len(data)) for path, data in files.items()))
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    path = download.download("folder", tmp_path / "models", endpoint=hub.endpoint)
    assert path == tmp_path / "models" / "diffusers" / "folder"
    assert left_in(path) == sorted(files)
    before = len(hub.requests)
    assert download.download("folder", tmp_path / "models", endpoint=hub.endpoint) == path
    assert len(hub.requests) == before


def test_a_name_that_is_not_in_the_catalog_lists_those_that_are(tmp_path):
    with pytest.raises(CheckpointError) as raised:
        download.download("svd-xxl", tmp_path)
    assert all(entry.name in str(raised.value) for entry in CATALOG)


def test_without_the_hub_package_the_extra_is_named(known, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "svd-stages\[hub\]"'):
        download.download("small", tmp_path)


def test_the_catalog_is_well_formed():
    assert len({entry.name for entry in CATALOG}) == len(CATALOG)
    for entry in CATALOG:
        assert entry.licence and entry.hub_id.count("/") == 1
        for file in entry.files:
            assert file.sha256 is None or (len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef"))
            assert file.bytes is None or file.bytes == file.about
            assert not file.path.startswith(("/", ".")) and ".." not in file.path
