"""The rules of the house: who may import whom, what importing may do, and how long a function may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

Node = TypeVar("Node", bound=ast.AST)

ROOT = Path(__file__).parents[1]
LONGEST_FUNCTION = 60

COMFYUI = {
    "app",
    "api_server",
    "comfy",
    "comfyui_version",
    "cuda_malloc",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
"""ComfyUI's top-level modules; `nodes` without a dot in front is ComfyUI's file too."""

FROM_DIFFUSERS = {"AutoencoderKLTemporalDecoder", "UNetSpatioTemporalConditionModel"}
"""What may be taken from diffusers: model classes."""

WRITES_FOLDERS = "svd_core/checkpoints/diffusers_format.py"
"""The file that writes model_index.json and may therefore have the names of diffusers' classes as texts."""

STARTS_COMFYUI = ("headless/engines/comfyui/bootstrap.py", "sys.path.insert")
"""The file that starts a ComfyUI whose folder the user names, and what that takes."""


@dataclass(frozen=True)
class Source:
    """A file of the package: its path below the root, and its tree."""

    path: str
    tree: ast.Module

    @property
    def package(self) -> tuple[str, ...]:
        """The folders it lies in, the root being ()."""
        return tuple(self.path.split("/")[:-1])

    def is_below(self, *folders: str) -> bool:
        return any(self.path.startswith(f"{folder}/") for folder in folders)


@dataclass(frozen=True)
class Import:
    """One imported module: absolute ("torch.nn"), or as a place in the package (".svd_core.errors"), with its line."""

    source: Source
    module: str
    names: tuple[str, ...]
    line: int

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.source.path}:{self.line} imports {self.module} ({', '.join(self.names)})"


def _sources() -> list[Source]:
    files = [
        *ROOT.glob("*.py"),
        *(ROOT / "nodes").rglob("*.py"),
        *(ROOT / "svd_core").rglob("*.py"),
        *(ROOT / "headless").rglob("*.py"),
    ]
    return [
        Source(file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))) for file in sorted(files)
    ]


SOURCES = _sources()


def imports_of(source: Source) -> Iterator[Import]:
    """All imports, wherever they stand, those under TYPE_CHECKING too. `from .a import b` may mean the module .a.b."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(source, alias.name, (), node.lineno)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            if node.level == 0:
                yield Import(source, node.module or "", names, node.lineno)
                continue
            above = source.package[: len(source.package) - (node.level - 1)]
            place = [*above, *(node.module or "").split(".")] if node.module else list(above)
            yield Import(source, "." + ".".join(place), names, node.lineno)


IMPORTS = [each for source in SOURCES for each in imports_of(source)]


def is_comfyui(each: Import) -> bool:
    return each.top in COMFYUI or each.top.startswith("comfy_")


def told(found: list) -> str:
    return "\n".join(str(each) for each in found)


def test_the_package_was_found():
    paths = {source.path for source in SOURCES}
    assert {
        "__init__.py",
        "headless/cli/main.py",
        "headless/engines/embedded/engine.py",
        "nodes/wire_formats.py",
        "headless/graph/convert.py",
    } <= paths


# Directions


def test_the_core_knows_no_comfyui_and_no_node():
    def leaves_the_core(each: Import) -> bool:
        if not each.module.startswith("."):
            return is_comfyui(each)
        return not (each.module + ".").startswith(".svd_core.")

    found = [each for each in IMPORTS if each.source.is_below("svd_core") and leaves_the_core(each)]
    assert not found, told(found)


def test_only_one_folder_knows_comfyui():
    found = [
        each
        for each in IMPORTS
        if is_comfyui(each) and not each.source.is_below("nodes/comfy", "headless/engines/comfyui")
    ]
    assert not found, told(found)


def test_nodes_know_the_core_and_each_other_and_no_door():
    def is_ours_and_beside(each: Import) -> bool:
        return each.module.startswith(".") and not (each.module + ".").startswith((".svd_core.", ".nodes."))

    found = [each for each in IMPORTS if each.source.is_below("nodes") and is_ours_and_beside(each)]
    assert not found, told(found)


def test_only_comfyuis_door_and_its_engine_open_the_folder_that_knows_it():
    def opens(each: Import) -> bool:
        places = {each.module, *(f"{each.module}.{name}" for name in each.names)}
        return any((place + ".").startswith(".nodes.comfy.") for place in places)

    found = {each.source.path for each in IMPORTS if opens(each) and not each.source.is_below("nodes/comfy")}
    assert found == {"__init__.py", "headless/engines/comfyui/engine.py", "headless/engines/comfyui/bootstrap.py"}


def test_the_package_does_not_import_itself_by_its_installed_name():
    found = [each for each in IMPORTS if each.top == "svd_stages"]
    assert not found, told(found)


# diffusers


def test_only_model_classes_are_taken_from_diffusers():
    def is_allowed(each: Import) -> bool:
        return each.module == "diffusers" and bool(each.names) and set(each.names) <= FROM_DIFFUSERS

    found = [each for each in IMPORTS if each.top == "diffusers" and not is_allowed(each)]
    assert not found, told(found)


def _documentation(tree: ast.Module) -> set[int]:
    """The ids of the constants that are texts standing alone: docstrings."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def names_in(source: Source) -> Iterator[tuple[int, str]]:
    """(line, word) of every identifier and, outside docstrings, every text."""
    documentation = _documentation(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias):
            yield node.lineno, node.name
        elif isinstance(node, ast.Constant) and id(node) not in documentation and source.path != WRITES_FOLDERS:
            yield node.lineno, str(node.value)


def test_no_pipeline_and_no_scheduler_of_diffusers_is_named_in_code():
    forbidden = ("StableVideoDiffusionPipeline", "DiffusionPipeline", "EulerDiscreteScheduler", "Scheduler.from_config")
    found = [
        f"{source.path}:{line} {word!r}"
        for source in SOURCES
        for line, word in names_in(source)
        if any(each in word for each in forbidden)
    ]
    assert not found, told(found)


def test_the_file_that_writes_their_names_has_them_as_texts_only():
    (source,) = [source for source in SOURCES if source.path == WRITES_FOLDERS]
    words = [word for _, word in names_in(source)]
    assert "StableVideoDiffusionPipeline" not in words
    assert "EulerDiscreteScheduler" not in words
    assert "StableVideoDiffusionPipeline" in ast.unparse(source.tree)


# Habits


def walk_all(kind: type[Node]) -> Iterator[tuple[Source, Node]]:
    """Every node of this kind in every file."""
    for source in SOURCES:
        for node in ast.walk(source.tree):
            if isinstance(node, kind):
                yield source, node


def _caught(handler: ast.ExceptHandler) -> set[str]:
    return {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else {""}


def test_no_import_is_tried():
    found = []
    for source, node in walk_all(ast.Try):
        caught = set().union(*(_caught(handler) for handler in node.handlers))
        tries_an_import = any(
            isinstance(each, (ast.Import, ast.ImportFrom)) for stmt in node.body for each in ast.walk(stmt)
        )
        if caught & {"ImportError", "ModuleNotFoundError"} or (
            tries_an_import and caught & {"Exception", "BaseException"}
        ):
            found.append(f"{source.path}:{node.lineno}")
    assert not found, told(found)


def test_no_except_catches_everything_unnamed():
    found = [f"{source.path}:{node.lineno}" for source, node in walk_all(ast.ExceptHandler) if node.type is None]
    assert not found, told(found)


def _called_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("print",), ("nodes", "svd_core")),
        (("eval", "exec", "compile", "__import__", "importlib.import_module"), ("",)),
        (("sys.path.append", "sys.path.insert", "site.addsitedir"), ("",)),
        (("torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all"), ("",)),
        (("random.seed", "np.random.seed", "numpy.random.seed", "np.random.rand", "np.random.randn"), ("",)),
        (("torch.load", "pickle.load", "pickle.loads", "torch.jit.load", "torch.hub.load", "np.load"), ("",)),
        (("os.system", "os.popen", "os.execv", "os.execve", "os.spawnv", "os.startfile", "os.fork"), ("",)),
    ],
    ids=[
        "print",
        "code from text",
        "the search path",
        "torch's global seed",
        "other global seeds",
        "pickles",
        "programs",
    ],
)
def test_nothing_is_called_that_no_stage_may_call(names, folders):
    found = [
        f"{source.path}:{node.lineno} {_called_name(node)}"
        for source, node in walk_all(ast.Call)
        if _called_name(node) in names
        if folders == ("",) or source.is_below(*folders)
        if (source.path, _called_name(node)) != STARTS_COMFYUI
    ]
    assert not found, told(found)


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """(qualified name, function, whether it is public) of all functions; those inside a function are not public."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f"{inside}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = inside + node.name
            yield name, node, not any(part.startswith("_") or part == "<locals>" for part in name.split("."))
            yield from functions(node, f"{name}.<locals>.")
        else:
            yield from functions(node, inside)


ALL_FUNCTIONS = [(source, *each) for source in SOURCES for each in functions(source.tree)]


def test_a_function_fits_in_the_eye():
    found = [
        f"{source.path}:{node.lineno} {name} has {length} lines"
        for source, name, node, _ in ALL_FUNCTIONS
        if (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert not found, told(found)


def test_every_public_class_and_every_public_function_of_the_core_says_what_it_is():
    missing = [
        f"{source.path}:{node.lineno} {name}"
        for source, name, node, is_public in ALL_FUNCTIONS
        if source.is_below("svd_core") and is_public and not ast.get_docstring(node)
    ]
    missing += [
        f"{source.path}:{node.lineno} {node.name}"
        for source in SOURCES
        for node in source.tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not missing, told(missing)


def test_every_file_says_its_subject_in_its_first_line():
    missing = [source.path for source in SOURCES if len((ast.get_docstring(source.tree) or "").split("\n")[0]) < 15]
    assert not missing, told(missing)


def test_values_that_hold_tensors_are_frozen_and_not_compared_number_by_number():
    """A frozen dataclass with a tensor needs eq=False: `==` of tensors is no truth value."""
    found = []
    for source, node in walk_all(ast.ClassDef):
        for decorator in node.decorator_list:
            if not (isinstance(decorator, ast.Call) and _called_name(decorator) == "dataclass"):
                continue
            options = {each.arg: getattr(each.value, "value", None) for each in decorator.keywords}
            holds = [ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign)]
            if any(kind.startswith("torch.Tensor") for kind in holds) and options.get("eq") is not False:
                found.append(f"{source.path}:{node.lineno} {node.name}")
    assert not found, told(found)


# Importing does nothing

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
searched = [*sys.path, *(place for module in list(sys.modules.values()) for place in getattr(module, "__path__", ()))]
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "changes": changes,
    "listed": sorted(listed - {os.path.abspath(place) for place in searched}),
    "threads": threading.active_count(),
    "environment": dict(os.environ) == before,
}))
"""
"""Imports a module under watch. The folders in which Python looks for modules may be listed, no others."""

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "safetensors", "av", "PIL", "ray", "huggingface_hub"}


@pytest.fixture(scope="module")
def imported() -> dict[str, dict]:
    """What importing each module in a fresh process did."""
    modules = (
        "svd_stages",
        "svd_stages.headless",
        "svd_stages.nodes",
        "svd_stages.nodes.compat",
        "svd_stages.headless.graph",
        "svd_stages.svd_core.checkpoints.inspect",
    )
    return {name: json.loads(_run(name)) for name in modules}


def _run(module: str) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED, module], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_importing_loads_nothing_heavy(imported):
    assert {name: sorted(HEAVY & set(each["modules"])) for name, each in imported.items()} == {n: [] for n in imported}


def test_importing_touches_no_file_lists_no_folder_and_starts_no_thread(imported):
    for name, each in imported.items():
        assert (each["changes"], each["listed"]) == ([], []), name
        assert each["threads"] == 1, name
        assert each["environment"], name
