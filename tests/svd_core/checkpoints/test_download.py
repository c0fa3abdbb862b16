"""Downloads, against a stand-in of the hub on this machine: checked, complete or nothing, and refusals explained."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import inspect
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from error_checks import check_facts, raises
from svd_stages.svd_core.checkpoints import catalog, download
from svd_stages.svd_core.checkpoints.catalog import CATALOG, CatalogEntry, CatalogFile
from svd_stages.svd_core.checkpoints.library import EMBEDDED, ModelLibrary
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.checkpoints.sidecar import provenance_path
from svd_stages.svd_core.errors import CheckpointError, MissingExtraError, OutputError

COMPLETE = ["checkpoints/small.safetensors", "checkpoints/small.safetensors.svd-stages.json"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the stand-in serves: path in the repository -> bytes, a status to refuse with, and the requests it met.

    etags    whether it says the sha256 of its files, as the hub does of large ones
    cut_at   after how many bytes of a file it breaks the connection off; None: it does not
    ranges   the `Range` of each request for a file's content
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.refuse: tuple[int, str | None] | None = None
        self.requests: list[str] = []
        self.etags = True
        self.cut_at: int | None = None
        self.ranges: list[str | None] = []
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
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest() if hub.etags else "0123456789"}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("Content-Length", str(len(body) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            if with_body:
                hub.ranges.append(asked)
                self.wfile.write(body[start : hub.cut_at])

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A hub on this machine, and a user without a token."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # of the 10 MB chunk that breaks off nothing is kept
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def body(header_only, tmp_path) -> bytes:
    tensors = {f"weight{number}": ("F32", (1000,)) for number in range(1000)}
    return header_only(tmp_path / "served.safetensors", tensors).read_bytes()


@pytest.fixture
def known(body, monkeypatch) -> CatalogEntry:
    """A one-file entry in the catalog, called "small"."""
    file = CatalogFile("small.safetensors", len(body), len(body), hashlib.sha256(body).hexdigest())
    defaults = VideoDefaults(num_frames=14, min_guidance=1.0, max_guidance=2.5)
    entry = CatalogEntry("small", "somebody/something", (file,), False, "a licence", defaults)
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
    assert left_in(root) == COMPLETE
    assert ModelLibrary.from_roots([root]).names() == ["small.safetensors", EMBEDDED]
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
    assert [record.levelname for record in caplog.records] == ["INFO"]
    check_facts(caplog.text, place)


def test_what_is_there_and_wrong_is_said_and_left(hub, known, body, tmp_path):
    place = tmp_path / "checkpoints" / "small.safetensors"
    place.parent.mkdir()
    place.write_bytes(body[:-1] + b"x")
    with raises(CheckpointError, "checkpoint.hash", "sha256", known.files[0].sha256):
        download.download("small", tmp_path, endpoint=hub.endpoint)
    assert place.exists()
    assert hub.requests == []


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"bytes": 5}])
def test_a_file_that_is_not_the_published_one_is_removed(hub, known, body, tmp_path, monkeypatch, changes):
    hub.files["small.safetensors"] = body
    enter(monkeypatch, known, **changes)
    root = tmp_path / "models"
    with raises(CheckpointError, "checkpoint.hash", *changes.values()):
        download.download("small", root, endpoint=hub.endpoint)
    assert left_in(root) == []


def test_a_hash_that_the_catalog_does_not_know_is_the_hubs(hub, known, body, tmp_path, monkeypatch, caplog):
    enter(monkeypatch, known, sha256=None, bytes=None)
    hub.files["small.safetensors"] = body
    path = download.download("small", tmp_path / "one", endpoint=hub.endpoint)
    check_facts(caplog.messages[-1], "small.safetensors", "sha256", "hub")
    assert json.loads(provenance_path(path).read_text())["sha256"] == hashlib.sha256(body).hexdigest()
    ask = download._ask_hub

    def ask_before_it_changed(*asked):
        return replace(ask(*asked), etag="f" * 64)

    monkeypatch.setattr(download, "_ask_hub", ask_before_it_changed)
    with raises(CheckpointError, "checkpoint.hash", "sha256", "f" * 64):
        download.download("small", tmp_path / "two", endpoint=hub.endpoint)
    assert left_in(tmp_path / "two") == []


def test_an_unknown_hash_is_said_and_the_form_is_checked(hub, known, body, tmp_path, monkeypatch, caplog):
    enter(monkeypatch, known, sha256=None, bytes=None)
    hub.etags = False
    hub.files["small.safetensors"] = body
    path = download.download("small", tmp_path / "one", endpoint=hub.endpoint)
    check_facts(caplog.messages[-1], "small.safetensors", "sha256")
    assert json.loads(provenance_path(path).read_text())["sha256"] is None
    hub.files["small.safetensors"] = body[:-10]
    with raises(CheckpointError, "checkpoint.truncated", f"{len(body):,}", f"{len(body) - 10:,}"):
        download.download("small", tmp_path / "two", endpoint=hub.endpoint)
    assert left_in(tmp_path / "two") == []


@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo"), (401, None), (403, None)])
def test_a_gated_checkpoint_says_what_it_needs(hub, known, tmp_path, status, code):
    hub.refuse = (status, code)
    with raises(CheckpointError, "checkpoint.gated", status, "HF_TOKEN", known.page):
        download.download("small", tmp_path / "models", endpoint=hub.endpoint)
    assert left_in(tmp_path / "models") == []


def test_a_file_that_is_gone_from_the_hub_is_said(hub, known, tmp_path):
    with raises(CheckpointError, "checkpoint.not_found", 404, known.page):
        download.download("small", tmp_path / "models", endpoint=hub.endpoint)


def test_a_hub_that_cannot_be_reached_is_said(known, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client tries again, and waits in between
    with raises(CheckpointError, "checkpoint.offline", "HF_ENDPOINT", "HF_HUB_OFFLINE") as raised:
        download.download("small", tmp_path / "models", endpoint="http://127.0.0.1:9")
    assert "\n" not in str(raised.value)


@contextmanager
def stop_halfway(stage: str, total: int, unit: str):
    def advance(done: int) -> None:
        if stage.startswith("downloading") and done > total // 2:
            raise KeyboardInterrupt

    yield advance


def test_a_download_that_was_stopped_goes_on_from_where_it_was(hub, known, body, tmp_path, caplog):
    from huggingface_hub.file_download import http_get

    if "tqdm_class" not in inspect.signature(http_get).parameters:
        pytest.skip("this huggingface_hub does not tell how far it is, so it cannot be stopped half way")
    hub.files["small.safetensors"] = body
    root = tmp_path / "models"
    with pytest.raises(KeyboardInterrupt):
        download.download("small", root, stop_halfway, endpoint=hub.endpoint)
    assert not (root / "checkpoints" / "small.safetensors").exists()
    assert ModelLibrary.from_roots([root]).names() == [EMBEDDED]
    kept = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert 0 < kept < len(body)
    check_facts(caplog.text, f"{kept:,}")
    path = download.download("small", root, endpoint=hub.endpoint)
    assert hub.ranges == [None, f"bytes={kept}-"]
    assert path.read_bytes() == body
    assert left_in(root) == COMPLETE


def test_a_download_that_the_network_broke_off_goes_on_from_where_it_was(hub, known, body, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.files["small.safetensors"] = body
    hub.cut_at = 1_000_000
    root = tmp_path / "models"
    with raises(CheckpointError, "checkpoint.offline", "small.safetensors"):
        download.download("small", root, endpoint=hub.endpoint)
    hub.cut_at = None
    hub.ranges.clear()
    assert download.download("small", root, endpoint=hub.endpoint).read_bytes() == body
    assert hub.ranges == ["bytes=1000000-"]
    assert left_in(root) == COMPLETE


def test_a_beginning_of_what_the_hub_does_not_serve_any_more_is_not_continued(hub, known, body, tmp_path, monkeypatch):
    enter(monkeypatch, known, sha256=None, bytes=None)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.files["small.safetensors"] = body
    hub.cut_at = 1_000_000
    with raises(CheckpointError, "checkpoint.offline", "small.safetensors"):
        download.download("small", tmp_path, endpoint=hub.endpoint)
    hub.cut_at = None
    newer = body[:-1] + b"x"
    hub.files["small.safetensors"] = newer
    hub.ranges.clear()
    assert download.download("small", tmp_path, endpoint=hub.endpoint).read_bytes() == newer
    assert hub.ranges == [None]


def test_of_a_folder_only_what_is_missing_or_wrong_is_fetched_again(hub, known, body, tmp_path, monkeypatch):
    right, wrong = "vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"
    hub.files.update({right: body, wrong: body})
    hidden, sha256 = ".small.download", hashlib.sha256(body).hexdigest()
    files = tuple(CatalogFile(path, len(body), len(body), said) for path, said in ((right, sha256), (wrong, "0" * 64)))
    monkeypatch.setattr(catalog, "CATALOG", (replace(known, files=files),))
    with raises(CheckpointError, "checkpoint.hash", "sha256", "0" * 64):
        download.download("small", tmp_path, endpoint=hub.endpoint)
    assert [path for path in left_in(tmp_path / "diffusers") if path.endswith("tensors")] == [f"{hidden}/whole/{right}"]
    monkeypatch.setattr(catalog, "CATALOG", (replace(known, files=(files[0], replace(files[1], sha256=sha256))),))
    hub.requests.clear()
    place = download.download("small", tmp_path, endpoint=hub.endpoint)
    assert sum(request.startswith("GET") for request in hub.requests) == 1
    assert left_in(tmp_path / "diffusers") == sorted(f"small/{path}" for path in (right, wrong))
    assert place == tmp_path / "diffusers" / "small"


def test_two_downloads_of_one_checkpoint_do_not_meet(hub, known, body, tmp_path):
    hub.files["small.safetensors"] = body

    @contextmanager
    def again(stage: str, total: int, unit: str):
        with raises(OutputError, "output.busy", "small.safetensors"):
            download.download("small", tmp_path / "models", endpoint=hub.endpoint)
        yield lambda done: None

    assert download.download("small", tmp_path / "models", again, endpoint=hub.endpoint).read_bytes() == body


def test_a_full_disk_is_not_called_a_bad_connection_and_what_came_is_kept(hub, known, body, tmp_path):
    resource = pytest.importorskip("resource")
    hub.files["small.safetensors"] = body
    place = tmp_path / "models" / "checkpoints" / "small.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with raises(OutputError, "output.unwritable", place, "0.0", "--models") as raised:
            download.download("small", tmp_path / "models", endpoint=hub.endpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in str(raised.value)
    assert download.download("small", tmp_path / "models", endpoint=hub.endpoint).read_bytes() == body


def test_a_models_folder_that_cannot_be_made_is_said(known, tmp_path):
    (tmp_path / "models").write_text("in the way")
    with raises(OutputError, "output.unwritable", tmp_path / "models"):
        download.download("small", tmp_path / "models")


def test_what_a_download_knows_of_a_file_is_known_to_the_loader(hub, known, silent, tmp_path, monkeypatch):
    enter(monkeypatch, known, sha256=None, bytes=None)
    hub.files["small.safetensors"] = silent.read_bytes()
    path = download.download("small", tmp_path / "models", endpoint=hub.endpoint)
    assert load_checkpoint(silent).model.defaults == VideoDefaults(25, 64, 64, 1.5, 3.0)
    assert load_checkpoint(path).model.defaults == VideoDefaults(14, 64, 64, 1.0, 2.5)


def test_a_file_that_was_put_there_by_hand_and_is_right_becomes_known(hub, known, body, tmp_path):
    place = tmp_path / "checkpoints" / "small.safetensors"
    place.parent.mkdir()
    place.write_bytes(body)
    assert download.download("small", tmp_path, endpoint=hub.endpoint) == place
    assert json.loads(provenance_path(place).read_text())["facts"]["num_frames"] == 14


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
    with raises(CheckpointError, "checkpoint.not_found", "svd-xxl", *(entry.name for entry in CATALOG)):
        download.download("svd-xxl", tmp_path)


def test_without_the_hub_package_the_extra_is_named(known, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with raises(MissingExtraError, "extra", "svd-stages[hub]"):
        download.download("small", tmp_path)


def test_the_catalog_is_well_formed():
    assert len({entry.name for entry in CATALOG}) == len(CATALOG)
    for entry in CATALOG:
        assert entry.licence and entry.hub_id.count("/") == 1
        for file in entry.files:
            assert file.sha256 is None or (len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef"))
            assert file.bytes is None or file.bytes == file.about
            assert not file.path.startswith(("/", ".")) and ".." not in file.path
