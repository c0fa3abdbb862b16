"""Start a ComfyUI checkout in this process: its nodes and its executor, without a server and without an open port.

The order is that of ComfyUI's main.py: arguments first, then `utils.extra_config`, which must be imported before
`nodes` puts another `utils` on the search path. A process can start one ComfyUI, with one set of flags.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ....svd_core.errors import MissingExtraError, SettingError, nearest
from ....svd_core.utils.atomic_files import unfinished_folder
from ....svd_core.utils.user_tempdir import private_folder
from ...graph.async_utils import run_sync
from ...graph.prompt import one_line

logger = logging.getLogger(__name__)

MARKS = ("main.py", "execution.py", "nodes.py", "folder_paths.py", "server.py", "comfy/model_management.py")
"""Files that every ComfyUI checkout has."""
TOP_LEVEL = ("comfy", "comfy_execution", "execution", "folder_paths", "nodes", "server", "utils", "app", "node_helpers")
"""Top-level modules of ComfyUI."""
PAGE_PREFIX, OPTIONAL_COMMENT = "comfyui-", "#non essential"
"""How the requirements of ComfyUI's page begin, and the comment in requirements.txt that optional packages follow."""
PACKAGE = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Checkout:
    """A ComfyUI checkout, its command-line flags, and the names of the custom nodes to load."""

    folder: Path
    flags: tuple[str, ...] = ()
    custom_nodes: tuple[str, ...] = ()


class _Process:
    """The ComfyUI that this process has started, its loaded custom nodes, and an empty folder in place of its page."""

    started: Checkout | None = None
    loaded: set[str] = set()
    page: Path | None = None


def start(checkout: Checkout) -> None:
    """Start ComfyUI with its core nodes, the requested custom nodes and this package's nodes.

    If it is started already, this loads the custom nodes that are not loaded yet.

    Raises:
        SettingError: The folder is not a ComfyUI, a custom node is missing or does not load, or this process has
            another ComfyUI or other flags.
        MissingExtraError: ComfyUI does not start in this Python.
    """
    checkout = replace(checkout, folder=find(checkout.folder))
    if _Process.started is None:
        _check_modules()
        _check_requirements(checkout.folder)
        _import_paths(checkout)
        _Process.started = checkout
    elif (checkout.folder, checkout.flags) != (_Process.started.folder, _Process.started.flags):
        raise SettingError(
            "a process can start one ComfyUI, and this one has started it with another folder, device, precision or "
            "memory limit. Start a new process.",
            code="comfyui.started",
        )
    paths = {name: _custom_node(name) for name in checkout.custom_nodes if name not in _Process.loaded}
    if _Process.page is None:
        for path in paths.values():
            _run_prestartup_script(path)
        _import_nodes()
    for name, path in paths.items():
        _load_custom_node(path)
        _Process.loaded.add(name)
    _register_our_nodes()


def find(folder: Path) -> Path:
    """Return the real path of a ComfyUI checkout. Raise SettingError (`comfyui.not_found`) if it is not one."""
    missing = next((mark for mark in MARKS if not (folder / mark).is_file()), None)
    if missing is None:
        return folder.resolve()
    reason = f"it has no {missing}" if folder.is_dir() else "there is no such folder"
    inner = folder / "ComfyUI"
    hint = f' Did you mean "{inner}"?' if (inner / "main.py").is_file() else ""
    raise SettingError(
        f'"{folder}" is not a ComfyUI: {reason}. Give the folder that holds its main.py.{hint}',
        code="comfyui.not_found",
    )


def _check_modules() -> None:
    """Raise SettingError if this process is a ComfyUI, or has other modules with the names of ComfyUI's."""
    taken = next((name for name in TOP_LEVEL if name in sys.modules), None)
    if taken is not None:
        source = getattr(sys.modules[taken], "__file__", None) or "elsewhere"
        raise SettingError(
            f'ComfyUI needs the module name "{taken}", which this process uses already (from {source}). Run ComfyUI\'s '
            "engine in its own process, as svd-stages run --comfyui does.",
            code="comfyui.modules",
        )


def _check_requirements(folder: Path) -> None:
    """Raise MissingExtraError if a required package of ComfyUI's requirements.txt is not installed."""
    file = folder / "requirements.txt"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    required = re.findall(r"^[A-Za-z0-9._-]+", f"\n{text}".split(f"\n{OPTIONAL_COMMENT}")[0], re.MULTILINE)
    names = [name for name in required if not name.startswith(PAGE_PREFIX)]
    missing = [name for name in names if not any(importlib.metadata.distributions(name=name))]
    if missing:
        raise MissingExtraError(
            f"this Python ({sys.executable}) lacks packages that ComfyUI needs: {', '.join(missing)}. Run the command "
            "with ComfyUI's own Python, as in: PATH/TO/COMFYUIS/python -m svd_stages run ..., with this package "
            f'installed there; or install its requirements here: pip install -r "{file}".',
            code="comfyui.requirements",
        )


def _import_paths(checkout: Checkout) -> None:
    """Set ComfyUI's command line, and import the modules that know its folders."""
    sys.path.insert(0, str(checkout.folder))  # a checkout is not a package: its modules import each other by bare names
    argv, sys.argv = sys.argv, ["main.py", "--disable-all-custom-nodes", *checkout.flags]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # reads sys.argv
    finally:
        sys.argv = argv
    import utils.extra_config

    yaml = checkout.folder / "extra_model_paths.yaml"
    if yaml.is_file():
        utils.extra_config.load_extra_path_config(str(yaml))


def _import_nodes() -> None:
    """Import ComfyUI's executor and core nodes.

    Raises:
        MissingExtraError: The import failed, for example because of a broken torchaudio or a missing library.
    """
    try:
        import comfy.cli_args
        import folder_paths
        import server

        scratch = ExitStack()
        atexit.register(scratch.close)
        _Process.page = scratch.enter_context(unfinished_folder(private_folder("scratch")))
        comfy.cli_args.args.front_end_root = str(_Process.page)  # otherwise it needs the page's own package
        if not os.path.isdir(folder_paths.get_user_directory()):
            folder_paths.set_user_directory(str(_Process.page))
        loop = asyncio.new_event_loop()  # never runs
        atexit.register(loop.close)
        server.PromptServer(loop)  # custom nodes expect an instance; it does not listen
        run_sync(_nodes().init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        raise MissingExtraError(
            f"ComfyUI does not start in this Python ({sys.executable}): {reason}. Run the command with the Python in "
            "which ComfyUI itself starts. The traceback shows where it stops.",
            code="comfyui.start",
        ) from error


def _nodes() -> Any:
    """Return ComfyUI's module `nodes`."""
    import nodes

    return nodes


def _custom_node(name: str) -> Path:
    """Return the file or folder of a custom node. Raise SettingError with the nearest names if it is missing."""
    import folder_paths

    entries = [
        entry
        for folder in folder_paths.get_folder_paths("custom_nodes")
        for entry in Path(folder).glob("*")
        if (entry.is_dir() and not entry.name.startswith(("__", "."))) or entry.suffix == ".py"
    ]
    paths = {entry.name: entry for entry in reversed(entries)}  # the first folder wins
    if name not in paths:
        known = f"nearest are {nearest(name, sorted(paths))}" if paths else "there are none"
        raise SettingError(
            f'ComfyUI has no custom node "{name}"; {known}. Give the name of a folder in its custom_nodes.',
            code="comfyui.custom_node",
        )
    return paths[name]


def _is_this_pack(path: Path) -> bool:
    """Return True if a custom node is this package or a copy of it."""
    if path.resolve() == PACKAGE:
        return True
    project = path / "pyproject.toml"
    text = project.read_text(encoding="utf-8", errors="replace") if project.is_file() else ""
    return re.search(r'^name = "svd-stages"$', text, re.MULTILINE) is not None


def _run_prestartup_script(path: Path) -> None:
    """Run a custom node's script that must run before ComfyUI's heavy modules are imported."""
    script = path / "prestartup_script.py"
    if script.is_file() and not _is_this_pack(path):
        spec = importlib.util.spec_from_file_location(f"{path}/prestartup_script", script)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _load_custom_node(path: Path) -> None:
    """Load one custom node with ComfyUI's loader. Raise SettingError with its last warning if that fails."""
    if _is_this_pack(path):
        logger.warning('"%s" is this package, whose nodes are always loaded; it is not loaded twice', path.name)
        return
    warnings: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())
        return False

    with root_log_filter(collect):
        is_loaded = run_sync(
            _nodes().load_custom_node(str(path), set(_nodes().NODE_CLASS_MAPPINGS), module_parent="custom_nodes")
        )
    if not is_loaded:
        raise SettingError(
            f'the custom node "{path.name}" does not load: {warnings[-1] if warnings else "ComfyUI gave no reason"}',
            code="comfyui.custom_node",
        )
    for warning in warnings:
        logger.warning("%s", warning)


@contextmanager
def root_log_filter(keep: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Filter the root logger, which ComfyUI logs with, inside the `with`."""
    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def _register_our_nodes() -> None:
    """Add this package's nodes to ComfyUI's table, and make ComfyUI their runtime."""
    from ....nodes.comfy import use_comfyui

    classes, names = known_nodes()
    classes.update(NODE_CLASS_MAPPINGS)
    names.update(NODE_DISPLAY_NAME_MAPPINGS)
    use_comfyui()


def known_nodes() -> tuple[dict[str, type], dict[str, str]]:
    """Return the node classes and display names of the started ComfyUI."""
    return _nodes().NODE_CLASS_MAPPINGS, _nodes().NODE_DISPLAY_NAME_MAPPINGS


def version() -> str:
    """Return ComfyUI's version."""
    import comfyui_version

    return str(comfyui_version.__version__)


def model_file(folder: str, name: str) -> Path | None:
    """Return the file of the model `name` in one of ComfyUI's model folders, None if it is missing."""
    import folder_paths

    path = folder_paths.get_full_path(folder, name) if folder in folder_paths.folder_names_and_paths else None
    return None if path is None else Path(path)


def add_models(root: Path) -> None:
    """Make ComfyUI search a models folder of its own layout before its other models folders.

    Checkpoints and diffusers folders directly in `root` are found too.
    """
    import folder_paths

    for kind, (folders, _) in list(folder_paths.folder_names_and_paths.items()):
        for folder in folders[:]:
            below = os.path.relpath(folder, folder_paths.models_dir)
            if not below.startswith(os.pardir):
                folder_paths.add_model_folder_path(kind, str(root.absolute() / below), is_default=True)
    for kind in ("checkpoints", "diffusers"):
        folder_paths.add_model_folder_path(kind, str(root.absolute()))


@contextmanager
def folders(input_folder: Path, output_folder: Path, temp_folder: Path) -> Iterator[None]:
    """Make ComfyUI read and write in these folders inside the `with`."""
    import folder_paths

    before = (folder_paths.input_directory, folder_paths.output_directory, folder_paths.temp_directory)
    folder_paths.set_input_directory(str(input_folder.absolute()))
    folder_paths.set_output_directory(str(output_folder.absolute()))
    folder_paths.set_temp_directory(str(temp_folder.absolute()))
    try:
        yield
    finally:
        folder_paths.set_input_directory(before[0])
        folder_paths.set_output_directory(before[1])
        folder_paths.set_temp_directory(before[2])
