"""Run ComfyUI's tests of its executor, tests/execution of its checkout, unchanged on this package's engines.

A pytest plugin replaces the server that those tests start by an engine. COMFYUI_TEST_SHIM is the folder that holds it
(peer_shim.py). COMFYUI_PYTHON needs pytest, pytest-asyncio and websocket-client.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent
SUITE = ("tests/execution/test_execution.py", "tests/execution/test_async_nodes.py")
MODES = 3  # of the output cache: classic, and LRU of two sizes


@pytest.fixture(scope="module")
def shim() -> Path:
    folder = os.environ.get("COMFYUI_TEST_SHIM")
    if not folder:
        pytest.skip("set COMFYUI_TEST_SHIM to the folder with peer_shim.py, which puts engines under ComfyUI's tests")
    return Path(folder)


def test_comfyui_s_tests_pass_on_the_embedded_executor(comfyui, shim, tmp_path):
    run_suite(comfyui, shim, tmp_path, "EmbeddedEngine")


def test_comfyui_s_tests_pass_on_its_executor_in_our_comfyui_engine(comfyui, shim, tmp_path):
    run_suite(comfyui, shim, tmp_path, "ComfyUIEngine")


def run_suite(comfyui, shim: Path, tmp_path: Path, engine: str) -> None:
    """Run the tests and assert that all pass."""
    (tmp_path / "svd_stages").symlink_to(REPOSITORY, target_is_directory=True)
    done = subprocess.run(
        [comfyui.python, "-m", "pytest", "-p", "peer_shim", *SUITE, "--skip-timing-checks", "-q"],
        cwd=comfyui.folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, shim, TESTS))),
            "PEER_ENGINE": f"peer_engine:{engine}",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed is not None, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(passed[1]) >= 61 * MODES
