"""Check what no linter checks: import cycles, who reaches out, tensors in dataclasses, and what importing does.

Most rules are in pyproject.toml: import directions are import-linter contracts; banned calls and modules, prints, bare
excepts and missing docstrings are ruff rules.
"""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys

import pytest
from sources import ROOT, imports, nodes_of

MODEL_CLASSES = {"AutoencoderKLTemporalDecoder", "UNetSpatioTemporalConditionModel"}
"""The classes that may be imported from diffusers."""
PIPELINE = "svd_core/diffusers_pipeline/"

MAY_REACH_OUT = {
    "socket": {
        "headless/engines/remote/client.py": "--server",
        "headless/batch/ray_pool.py": "Ray: this machine's name",
        "headless/batch/lock.py": "this machine's name",
        "headless/batch/worker.py": "this machine's name",
        "svd_core/utils/atomic_files.py": "this machine's name",
    },
    "ssl": {},
    "websockets": {"headless/engines/remote/websocket.py": "--server"},
    "http": {
        "headless/engines/remote/client.py": "--server",
        "svd_core/media/image_download.py": "an image at an address",
    },
    "urllib": {
        "headless/engines/remote/client.py": "--server",
        "svd_core/media/image_download.py": "an image at an address",
    },
    "huggingface_hub": {
        "svd_core/checkpoints/download.py": "download",
        "svd_core/checkpoints/build_modules.py": "the name of an error",
        "svd_core/diffusers_pipeline/loading.py": "from_pretrained of a name of the hub",
    },
    "ray": {"headless/batch/ray_pool.py": "Ray"},
    "subprocess": {
        "headless/batch/process_pool.py": "this Python, for workers of a batch",
        "headless/bench/card_rows_machine.py": "nvidia-smi: clocks and power of the card that bench --card measures",
    },
    "multiprocessing": {},
    "ctypes": {
        "headless/graph/async_utils.py": "an exception into the thread that runs coroutines",
        "headless/process.py": "settings of glibc's allocator",
    },
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


def test_import_contracts_are_kept():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "0 broken" in result.stdout


def test_no_files_import_each_other_in_a_cycle():
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("svd_stages", cache_dir=None)
    assert len(graph.modules) > 200
    graphlib.TopologicalSorter(
        {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    ).prepare()


def test_only_model_classes_and_the_base_of_pipelines_are_imported_from_diffusers():
    diffusers = [each for each in imports() if each[1].split(".")[0] == "diffusers"]
    others = [each for each in diffusers if each[1] != "diffusers" or each[2] - MODEL_CLASSES]
    assert {(name.split(":")[0], module, *sorted(names - MODEL_CLASSES)) for name, module, names in others} == {
        ("headless/bench/models.py", "diffusers", "EulerDiscreteScheduler", "StableVideoDiffusionPipeline"),
        (f"{PIPELINE}pipeline.py", "diffusers", "EulerDiscreteScheduler"),
        (f"{PIPELINE}pipeline.py", "diffusers.utils", "BaseOutput"),
        (f"{PIPELINE}pipeline.py", "diffusers.utils.torch_utils", "randn_tensor"),
        (f"{PIPELINE}pipeline.py", "diffusers.video_processor", "VideoProcessor"),
        (f"{PIPELINE}stage_methods.py", "diffusers", "DiffusionPipeline"),
        (f"{PIPELINE}stage_methods.py", "diffusers.utils.torch_utils", "randn_tensor"),
        (f"{PIPELINE}loading.py", "diffusers", "EulerDiscreteScheduler"),
        (f"{PIPELINE}loading.py", "diffusers.utils", "logging"),
    }


def test_only_known_files_can_reach_a_network_another_program_or_code_in_data():
    found = {name: set() for name in MAY_REACH_OUT}
    for place, module, _ in imports():
        found.get(module.split(".")[0], set()).add(place.split(":")[0])
    assert found == {name: set(files) for name, files in MAY_REACH_OUT.items()}


def _caught_names(handler: ast.ExceptHandler) -> set[str]:
    return {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else set()


def test_a_failed_import_is_never_passed_over():
    """One helper turns a missing extra into an error that names it; a broken import is raised."""
    for place, node in nodes_of(ast.Try):
        has_import = any(
            isinstance(each, (ast.Import, ast.ImportFrom)) for stmt in node.body for each in ast.walk(stmt)
        )
        for handler in node.handlers:
            caught = _caught_names(handler)
            assert not caught & {"ImportError", "ModuleNotFoundError"}, place
            if has_import and caught & {"Exception", "BaseException"}:
                assert isinstance(handler.body[-1], ast.Raise), place


def test_no_text_becomes_code():
    """ruff bans eval and exec, but cannot ban these builtins."""
    calls = [(place, ast.unparse(node.func)) for place, node in nodes_of(ast.Call)]
    assert [call for call in calls if call[1] in ("compile", "__import__")] == []


def test_dataclasses_that_hold_tensors_are_not_compared():
    """A dataclass with a tensor needs eq=False, because tensors compare elementwise."""
    for place, node in nodes_of(ast.ClassDef):
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "dataclass":
                options = {each.arg: getattr(each.value, "value", None) for each in decorator.keywords}
                kinds = [ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign)]
                assert not any(kind.startswith("torch.Tensor") for kind in kinds) or options.get("eq") is False, place


WATCHED = """
import importlib, json, os, sys, threading
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.system")
changes, listed = [], set()
def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if (isinstance(flags, int) and flags & WRITING) or (isinstance(mode, str) and set(mode) & set("wax+")):
            changes.append([event, str(path)])
    elif event in ("os.listdir", "os.scandir"):
        listed.add(os.path.abspath(arguments[0] or "."))
    elif event in CHANGES or event.split(".")[0] in ("subprocess", "socket", "shutil"):
        changes.append([event, str(arguments)])
before = dict(os.environ)
sys.addaudithook(watch)
importlib.import_module(sys.argv[1])
searched = [*sys.path, *(path for module in list(sys.modules.values()) for path in getattr(module, "__path__", ()))]
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "changes": changes,
    "listed": sorted(listed - {os.path.abspath(path) for path in searched}),
    "threads": threading.active_count(),
    "environment": dict(os.environ) == before,
}))
"""
"""Import a module and report its side effects. Listing the folders of the import path is allowed."""

HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "av",
    "PIL",
    "ray",
    "huggingface_hub",
}


@pytest.mark.parametrize(
    "module",
    [
        "svd_stages",
        "svd_stages.headless",
        "svd_stages.nodes",
        "svd_stages.nodes.compat",
        "svd_stages.headless.graph",
        "svd_stages.svd_core",
        "svd_stages.svd_core.checkpoints.inspect",
    ],
)
def test_importing_loads_nothing_heavy_and_has_no_side_effects(module):
    command = [sys.executable, "-B", "-c", WATCHED, module]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    effects = json.loads(result.stdout)
    assert HEAVY & set(effects["modules"]) == set()
    assert (effects["changes"], effects["listed"], effects["threads"]) == ([], [], 1)
    assert effects["environment"]
