"""Fixtures for tests with a real ComfyUI: COMFYUI_PATH is its checkout, COMFYUI_PYTHON the Python that runs it.

COMFYUI_FLAGS are additional flags for its server, such as `--front-end-root FOLDER` for another page.

The tests modify neither: they start ComfyUI on a base directory of their own, on a loopback port.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 120
PROMPT_SECONDS = 300
LEFT_BY_BROWSERS = "/()!*'~?&="


@dataclass(frozen=True)
class Server:
    """A started ComfyUI."""

    url: str
    log: Path
    python: str

    def read(self, route: str) -> bytes:
        """Return the answer of a GET request. The route is quoted like in a browser."""
        with urllib.request.urlopen(self.url + urllib.parse.quote(route, safe=LEFT_BY_BROWSERS), timeout=30) as answer:
            return answer.read()

    def get(self, route: str) -> Any:
        """Return the JSON answer of a GET request."""
        return json.loads(self.read(route))

    def post(self, route: str, body: dict) -> Any:
        """Return the JSON answer of a POST request. Raise AssertionError with the text of an HTTP error."""
        request = urllib.request.Request(self.url + route, json.dumps(body).encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{route} answered {error.code}: {error.read().decode()[:4000]}") from error

    def queue(self, graph: dict, client_id: str = "nobody") -> str:
        """Queue an API-format graph and return its prompt id. The page `client_id` receives the progress."""
        return self.post("/prompt", {"prompt": graph, "client_id": client_id})["prompt_id"]

    def wait(self, prompt_id: str) -> dict:
        """Wait until a prompt has ended, and return its history entry."""
        for _ in range(PROMPT_SECONDS * 5):
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.2)
        raise AssertionError(f"the prompt did not end in {PROMPT_SECONDS} s:\n{self.log_text()}")

    @contextlib.contextmanager
    def page(self, client_id: str) -> Iterator[Iterator[dict]]:
        """Yield an iterator over the messages {"type", "data"} to a page."""
        command = [self.python, Path(__file__).parent / "watch.py", self.url, client_id]
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            messages = (json.loads(line) for line in watcher.stdout or ())
            assert next(messages)["type"] == "status"  # the greeting: from here on nothing is missed
            yield messages
        finally:
            watcher.kill()
            watcher.wait()

    def log_text(self) -> str:
        """Return ComfyUI's log."""
        return self.log.read_text(errors="replace")


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI that can be started."""

    folder: Path
    python: str

    def run(self, script: Path, *arguments: str | os.PathLike) -> str:
        """Run a script in ComfyUI's Python with ComfyUI's modules importable, and return its stdout."""
        done = subprocess.run(
            [self.python, script, *arguments],
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    @contextlib.contextmanager
    def serve(self, base: Path, *flags: str) -> Iterator[Server]:
        """Start it on `base`, which needs a custom_nodes folder, and stop it after the `with`."""
        (base / "user").mkdir(exist_ok=True)
        port = _free_port()
        command = [self.python, self.folder / "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", base, "--database-url", "sqlite:///:memory:", "--disable-auto-launch", *flags]
        command += shlex.split(os.environ.get("COMFYUI_FLAGS", ""))
        server = Server(f"http://127.0.0.1:{port}", base / "comfyui.log", self.python)
        with server.log.open("wb") as log:
            process = subprocess.Popen(command, cwd=base, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_up(server, process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(server: Server, process: subprocess.Popen) -> None:
    for _ in range(START_SECONDS * 5):
        assert process.poll() is None, f"ComfyUI ended while it started:\n{server.log_text()}"
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            server.get("/system_stats")
            return
        time.sleep(0.2)
    raise AssertionError(f"ComfyUI did not answer in {START_SECONDS} s:\n{server.log_text()}")


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    """Return the ComfyUI that the environment names."""
    folder, python = os.environ.get("COMFYUI_PATH"), os.environ.get("COMFYUI_PYTHON")
    if not folder or not python:
        pytest.skip("needs COMFYUI_PATH, a ComfyUI checkout, and COMFYUI_PYTHON, the Python that runs it")
    return ComfyUI(Path(folder), python)


@pytest.fixture(scope="session")
def random_checkpoints(comfyui, tmp_path_factory) -> Iterator[Path]:
    """Yield a folder with the files of random_checkpoint.py (4 GB), removed afterwards."""
    folder = tmp_path_factory.mktemp("random_checkpoints")
    subprocess.run([sys.executable, Path(__file__).with_name("random_checkpoint.py"), folder], check=True)
    yield folder
    shutil.rmtree(folder)
