"""Downloads from a local test hub: verified, complete or nothing, resumable, errors explained."""

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
from collections.abc import Callable, Iterator
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
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults, sidecar_path
from svd_stages.svd_core.errors import CheckpointError, MissingExtraError, OutputError

FILE = "small.safetensors"
COMPLETE = [f"checkpoints/{FILE}", f"checkpoints/{FILE}.svd-stages.json"]


class Hub:
    """State of the test hub.

    Attributes:
        files: Path in the repository -> content.
        refuse: Status and error code of all answers. None to serve files.
        etags: True to send the sha256 of files, as the hub does for large ones.
        cut_at: Number of bytes of a file after which the connection breaks. None for all.
        ranges: The `Range` header of each request for content.
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
        def do_GET(self) -> None:
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
            requested = self.headers.get("Range")
            start = int(requested.removeprefix("bytes=").rstrip("-")) if requested else 0
            self.send_response(206 if requested else 200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest() if hub.etags else "0123456789"}"')
            self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
            self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("Content-Length", str(len(body) - start))
            if requested:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            if self.command == "GET":
                hub.ranges.append(requested)
                self.wfile.write(body[start : hub.cut_at])

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    return Handler


@pytest.fixture
def hub(monkeypatch, tmp_path, body) -> Iterator[Hub]:
    """A local hub that serves the file "small.safetensors", and a user without a token. The client does not wait."""
    from huggingface_hub import constants

    hub = Hub()
    hub.files[FILE] = body
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # nothing of an interrupted 10 MB chunk is kept
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def root(tmp_path) -> Path:
    """A models folder that does not exist yet."""
    return tmp_path / "models"


@pytest.fixture
def fetch(hub, root) -> Callable[..., Path]:
    """Return a function that downloads the checkpoint "small" from the local hub into `root`."""
    return lambda **options: download.download("small", root, endpoint=hub.endpoint, **options)


@pytest.fixture
def body(header_only, tmp_path) -> bytes:
    tensors = {f"weight{number}": ("F32", (1000,)) for number in range(1000)}
    return header_only(tmp_path / "served.safetensors", tensors).read_bytes()


@pytest.fixture(autouse=True)
def entry(body, monkeypatch) -> CatalogEntry:
    """A single-file entry in the catalog, called "small"."""
    file = CatalogFile(FILE, len(body), len(body), hashlib.sha256(body).hexdigest())
    defaults = VideoDefaults(num_frames=14, min_guidance=1.0, max_guidance=2.5)
    entry = CatalogEntry("small", "somebody/something", (file,), defaults, licence="none", gated=False)
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    return entry


@pytest.fixture
def change_entry(monkeypatch, entry) -> Callable[..., None]:
    """Return a function that changes the file of the catalog entry."""

    def change(**changes: object) -> None:
        changed = replace(entry, files=(replace(entry.files[0], **changes),))
        monkeypatch.setattr(catalog, "CATALOG", (changed,))

    return change


@pytest.fixture
def existing(root) -> Path:
    """The destination, in a folder that exists."""
    path = root / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    return path


def files_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_known_checkpoint_is_downloaded_completely(fetch, body, root, recorder):
    progress, calls = recorder
    path = fetch(progress=progress)
    assert path == root / "checkpoints" / FILE
    assert path.read_bytes() == body
    assert files_in(root) == COMPLETE
    assert ModelLibrary.from_roots([root]).names() == [FILE, EMBEDDED]
    assert ModelLibrary.from_roots([root]).find(FILE) == path
    assert calls[-1] == (f"checking {FILE}", len(body), "byte", len(body))
    assert all(done <= total for _, total, _, done in calls)


def test_an_existing_valid_file_is_not_downloaded_and_gets_a_sidecar(hub, fetch, body, existing, caplog):
    existing.write_bytes(body)
    with caplog.at_level(logging.INFO, logger="svd_stages"):
        assert fetch() == existing
    assert hub.requests == []
    assert [record.levelname for record in caplog.records] == ["INFO"]
    check_facts(caplog.text, existing)
    assert json.loads(sidecar_path(existing).read_text())["facts"]["num_frames"] == 14


def test_an_existing_invalid_file_is_reported_and_kept(hub, fetch, entry, body, existing):
    existing.write_bytes(body[:-1] + b"x")
    with raises(CheckpointError, "checkpoint.hash", "sha256", entry.files[0].sha256):
        fetch()
    assert existing.exists()
    assert hub.requests == []


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"bytes": 5}])
def test_a_file_that_is_not_the_published_one_is_removed(fetch, root, change_entry, changes):
    change_entry(**changes)
    with raises(CheckpointError, "checkpoint.hash", *changes.values()):
        fetch()
    assert files_in(root) == []


@pytest.mark.parametrize("etags", [True, False])
def test_a_hash_that_is_not_in_the_catalog_is_the_hubs_or_unknown(hub, fetch, body, change_entry, caplog, etags):
    change_entry(sha256=None, bytes=None)
    hub.etags = etags
    sidecar = json.loads(sidecar_path(fetch()).read_text())
    assert sidecar["sha256"] == (hashlib.sha256(body).hexdigest() if etags else None)
    check_facts(caplog.messages[-1], FILE, "sha256", *(["hub"] if etags else []))


def test_a_file_with_another_hash_than_the_hubs_is_removed(fetch, root, change_entry, monkeypatch):
    change_entry(sha256=None, bytes=None)
    query_hub = download._query_hub
    monkeypatch.setattr(download, "_query_hub", lambda *arguments: replace(query_hub(*arguments), etag="f" * 64))
    with raises(CheckpointError, "checkpoint.hash", "sha256", "f" * 64):
        fetch()
    assert files_in(root) == []


def test_a_truncated_file_without_any_known_hash_is_removed(hub, fetch, body, root, change_entry):
    change_entry(sha256=None, bytes=None)
    hub.etags, hub.files[FILE] = False, body[:-10]
    with raises(CheckpointError, "checkpoint.truncated", f"{len(body):,}", f"{len(body) - 10:,}"):
        fetch()
    assert files_in(root) == []


@pytest.mark.parametrize(
    ("status", "hub_code"), [(401, "GatedRepo"), (403, "GatedRepo"), (401, None), (403, None), (404, "EntryNotFound")]
)
def test_a_refusal_of_the_hub_is_reported_with_the_page(hub, fetch, entry, root, status, hub_code):
    hub.refuse = (status, hub_code)
    code, facts = ("checkpoint.not_found", []) if status == 404 else ("checkpoint.gated", ["HF_TOKEN"])
    with raises(CheckpointError, code, status, entry.page, *facts):
        fetch()
    assert files_in(root) == []


@pytest.fixture
def without_waits(monkeypatch) -> None:
    """Let the hub's client retry at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.usefixtures("without_waits")
def test_an_unreachable_hub_is_reported_with_the_settings_to_check(root):
    with raises(CheckpointError, "checkpoint.offline", "HF_ENDPOINT", "HF_HUB_OFFLINE") as raised:
        download.download("small", root, endpoint="http://127.0.0.1:9")
    assert "\n" not in str(raised.value)


@contextmanager
def stop_halfway(stage: str, total: int, unit: str):
    def advance(done: int) -> None:
        if stage.startswith("downloading") and done > total // 2:
            raise KeyboardInterrupt

    yield advance


def test_a_stopped_download_is_resumed(hub, fetch, body, root, caplog):
    from huggingface_hub.file_download import http_get

    if "tqdm_class" not in inspect.signature(http_get).parameters:
        pytest.skip("this huggingface_hub reports no progress, so it cannot be stopped halfway")
    with pytest.raises(KeyboardInterrupt):
        fetch(progress=stop_halfway)
    assert not (root / "checkpoints" / FILE).exists()
    assert ModelLibrary.from_roots([root]).names() == [EMBEDDED]
    kept = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert 0 < kept < len(body)
    check_facts(caplog.text, f"{kept:,}")
    path = fetch()
    assert hub.ranges == [None, f"bytes={kept}-"]
    assert path.read_bytes() == body
    assert files_in(root) == COMPLETE


@pytest.mark.usefixtures("without_waits")
@pytest.mark.parametrize("on_hub", ["the same file", "a newer file"])
def test_after_a_broken_connection_only_the_same_file_is_resumed(hub, fetch, body, root, change_entry, on_hub):
    change_entry(sha256=None, bytes=None)
    hub.cut_at = 1_000_000
    with raises(CheckpointError, "checkpoint.offline", FILE):
        fetch()
    hub.cut_at = None
    hub.ranges.clear()
    if on_hub == "a newer file":
        hub.files[FILE] = body[:-1] + b"x"
    assert fetch().read_bytes() == hub.files[FILE]
    assert hub.ranges == ["bytes=1000000-" if on_hub == "the same file" else None]
    assert files_in(root) == COMPLETE


def test_of_a_folder_only_missing_or_wrong_files_are_downloaded_again(hub, fetch, entry, body, root, monkeypatch):
    right, wrong = "vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"
    hub.files.update({right: body, wrong: body})
    sha256 = hashlib.sha256(body).hexdigest()
    first, second = (CatalogFile(path, len(body), len(body), sha256) for path in (right, wrong))
    monkeypatch.setattr(catalog, "CATALOG", (replace(entry, files=(first, replace(second, sha256="0" * 64))),))
    with raises(CheckpointError, "checkpoint.hash", "sha256", "0" * 64):
        fetch()
    folder = root / "diffusers"
    assert [path for path in files_in(folder) if path.endswith("tensors")] == [f".small.download/whole/{right}"]
    monkeypatch.setattr(catalog, "CATALOG", (replace(entry, files=(first, second)),))
    hub.requests.clear()
    assert fetch() == folder / "small"
    assert sum(request.startswith("GET") for request in hub.requests) == 1
    assert files_in(folder) == sorted(f"small/{path}" for path in (right, wrong))


def test_two_downloads_of_one_checkpoint_do_not_collide(fetch, body):
    @contextmanager
    def progress(stage: str, total: int, unit: str):
        with raises(OutputError, "output.busy", FILE):
            fetch()
        yield lambda done: None

    assert fetch(progress=progress).read_bytes() == body


def test_a_full_disk_is_not_reported_as_a_bad_connection_and_the_download_is_kept(fetch, body, root, full_disk):
    with full_disk(at=1_000_000), raises(OutputError, "output.unwritable", root, "0.0", "`models`") as raised:
        fetch()
    assert os.strerror(errno.EFBIG) in str(raised.value)
    assert fetch().read_bytes() == body


def test_a_models_folder_that_cannot_be_created_is_an_output_error(fetch, root):
    root.write_text("in the way")
    with raises(OutputError, "output.unwritable", root):
        fetch()


def test_the_loader_uses_the_sidecar_of_a_download(hub, fetch, without_frames, change_entry):
    change_entry(sha256=None, bytes=None)
    hub.files[FILE] = without_frames.read_bytes()
    assert load_checkpoint(without_frames).model.defaults == VideoDefaults(25, 64, 64, 1.5, 3.0)
    assert load_checkpoint(fetch()).model.defaults == VideoDefaults(14, 64, 64, 1.0, 2.5)


def test_a_folder_is_downloaded_completely_and_once(hub, fetch, entry, body, root, monkeypatch):
    files = {"model_index.json": b"{}", "unet/diffusion_pytorch_model.fp16.safetensors": body}
    hub.files.update(files)
    folder_entry = replace(entry, files=tuple(CatalogFile(path, len(data)) for path, data in files.items()))
    monkeypatch.setattr(catalog, "CATALOG", (folder_entry,))
    path = fetch()
    assert path == root / "diffusers" / "small"
    assert files_in(path) == sorted(files)
    before = len(hub.requests)
    assert fetch() == path
    assert len(hub.requests) == before


def test_an_unknown_name_is_refused_with_the_known_ones(root, monkeypatch):
    monkeypatch.setattr(catalog, "CATALOG", CATALOG)
    with raises(CheckpointError, "checkpoint.not_found", "svd-xxl", *(entry.name for entry in CATALOG)):
        download.download("svd-xxl", root)


def test_without_the_hub_package_the_extra_is_named(root, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with raises(MissingExtraError, "extra", "svd-stages[hub]"):
        download.download("small", root)


def test_the_catalog_is_well_formed():
    assert len({entry.name for entry in CATALOG}) == len(CATALOG)
    for entry in CATALOG:
        assert entry.licence and entry.hub_id.count("/") == 1
        for file in entry.files:
            assert file.sha256 is None or (len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef"))
            assert file.bytes is None or file.bytes == file.approx_bytes
            assert not file.path.startswith(("/", ".")) and ".." not in file.path
