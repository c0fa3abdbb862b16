"""Check what comes from others: packages by their hashes, and no way for text to become a program or a call home."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements-dev.lock", ".ci/audit.lock")

MAY_REACH_OUT = {
    "socket": {
        "headless/engines/remote/client.py": "--server",
        "headless/batch/ray_pool.py": "Ray: this machine's name",
        "headless/batch/folder.py": "this machine's name",
        "headless/batch/lock.py": "this machine's name",
        "headless/batch/worker.py": "this machine's name",
        "svd_core/utils/atomic_files.py": "this machine's name",
    },
    "ssl": {},
    "websockets": {"headless/engines/remote/websocket.py": "--server"},
    "http": {"headless/engines/remote/client.py": "--server"},
    "urllib": {"headless/engines/remote/client.py": "--server"},
    "huggingface_hub": {
        "svd_core/checkpoints/download.py": "download",
        "svd_core/checkpoints/build_modules.py": "the name of an error",
    },
    "ray": {"headless/batch/ray_pool.py": "Ray"},
    "subprocess": {"headless/batch/process_pool.py": "this Python, for workers of a batch"},
    "multiprocessing": {},
    "ctypes": {"headless/graph/async_utils.py": "an exception into the thread that runs coroutines"},
    "pip": {},
    "requests": {},
    "httpx": {},
    "aiohttp": {},
    "pickle": {},
    "marshal": {},
    "shelve": {},
    "joblib": {},
    "yaml": {},
}
"""Modules that reach a network, other programs or code in data, and the only files that may import them, with why."""


def sources() -> dict[str, ast.Module]:
    """Every file of the package by its path."""
    skipped = {"tests", "build", "dist", ".git", ".venv"}
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return {
        path.as_posix(): ast.parse((ROOT / path).read_text()) for path in paths if not skipped & set(path.parts[:-1])
    }


def imported(tree: ast.Module) -> set[str]:
    """The top-level names of all modules that a file imports from outside, wherever in it."""
    found = set()
    for each in ast.walk(tree):
        if isinstance(each, ast.Import):
            found.update(alias.name.split(".")[0] for alias in each.names)
        elif isinstance(each, ast.ImportFrom) and each.level == 0 and each.module:
            found.add(each.module.split(".")[0])
    return found


def test_only_known_files_can_reach_a_network_another_program_or_code_in_data():
    found = {name: set() for name in MAY_REACH_OUT}
    for path, tree in sources().items():
        for name in imported(tree) & set(MAY_REACH_OUT):
            found[name].add(path)
    assert found == {name: set(files) for name, files in MAY_REACH_OUT.items()}


def locked(lock: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Name -> its requirements (one for each kind of machine or Python) with the number of hashes."""
    found: dict[str, list[tuple[Requirement, int]]] = {}
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    for entry in re.split(r"(?m)^(?=\S)", "\n".join(lines)):
        if entry.strip():
            text, *hashes = re.split(r"\\?\s+--hash=", entry.strip())
            requirement = Requirement(text.strip())
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each.rstrip(" \\")) for each in hashes), text
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(hashes)))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_is_one_version_known_by_its_hashes_and_comes_from_no_named_place(lock):
    for name, entries in locked(lock).items():
        for requirement, hashes in entries:
            (specifier,) = requirement.specifier
            assert specifier.operator == "==" and hashes and requirement.url is None, name
    assert not re.search(r"https?://|--index|--find-links|--extra", (ROOT / lock).read_text())


def test_what_the_project_needs_is_locked_in_a_version_that_it_allows_and_torch_is_left_to_the_machine():
    found = locked("requirements-dev.lock")
    wanted = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    for each in map(Requirement, wanted):
        name = canonicalize_name(each.name)
        if name == "torch":
            assert name not in found
            continue
        versions = [next(iter(entry.specifier)).version for entry, _ in found[name]]
        assert all(each.specifier.contains(Version(version)) for version in versions), (str(each), versions)
    assert not [name for name in found if name.startswith(("nvidia", "cuda", "triton"))]


def test_requirements_txt_asks_for_nothing_that_pyproject_does_not():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} <= set(PROJECT["dependencies"])


WATCHED = """
import sys
from svd_stages.__main__ import main

FORBIDDEN = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "ftplib.connect",
             "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
import av, PIL.Image, torch, numpy, psutil
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection

seen = []
sys.addaudithook(lambda event, arguments: event in FORBIDDEN and seen.append((event, repr(arguments)[:200])))
status = main(sys.argv[1:])
sys.exit(f"{status}: {seen}" if status or seen else 0)
"""


def test_a_whole_run_calls_nobody_starts_nothing_and_unpickles_nothing(tmp_path):
    """Libraries are imported before the watch begins: they may look for compilers and the like, a run may not."""
    picture = str(ROOT / "example_workflows" / "rocket.png")
    small = ("--width", "64", "--height", "64", "--frames", "2", "--steps", "1")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "animate", picture, *small, "-o", str(tmp_path / "clip.mp4")],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "clip.mp4").stat().st_size > 0
