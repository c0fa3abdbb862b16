"""A ComfyUI checkout started in this process: its nodes and its executor, with no server and no open port.

The order is ComfyUI's own main.py's: arguments first, then `utils.extra_config`, which must be imported before `nodes`
puts another `utils` on the search path. A process has one ComfyUI, with the settings that it was started with.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ....svd_core.errors import MissingExtraError, SettingError, nearest
from ....svd_core.utils.atomic_files import unfinished_folder
from ....svd_core.utils.user_tempdir import private_folder
from ...graph.prompt import one_line

logger = logging.getLogger(__name__)

MARKS = ("main.py", "execution.py", "nodes.py", "folder_paths.py", "server.py", "comfy/model_management.py")
"""Files by which a ComfyUI is known."""
TOP_LEVEL = ("comfy", "comfy_execution", "execution", "folder_paths", "nodes", "server", "utils", "app", "node_helpers")
"""Names that ComfyUI's modules have for themselves in a process."""
NOT_NEEDED = ("comfyui-", "#non essential")
"""How requirements begin that only its page needs, and the comment after which nothing is essential."""
PACKAGE = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Checkout:
    """A ComfyUI, and how to start it: its own command line flags, and the custom nodes to load by folder name."""

    folder: Path
    flags: tuple[str, ...] = ()
    custom_nodes: tuple[str, ...] = ()


class _Process:
    """The ComfyUI that this process has started, its loaded custom nodes, and the folder in place of its page."""

    started: Checkout | None = None
    loaded: set[str] = set()
    page: Path | None = None


def start(checkout: Checkout) -> None:
    """Start ComfyUI with its core nodes, the chosen custom nodes and ours; when it has been, load what is still to be.

    Raises SettingError for a folder that is no ComfyUI, a custom node that is not there or does not load, and a
    process that has another ComfyUI or other settings; MissingExtraError when ComfyUI does not start in this Python.
    """
    checkout = Checkout(find(checkout.folder), checkout.flags, checkout.custom_nodes)
    if _Process.started is None:
        _check_modules()
        _check_requirements(checkout.folder)
        _import_paths(checkout)
        _Process.started = checkout
    elif (checkout.folder, checkout.flags) != (_Process.started.folder, _Process.started.flags):
        raise SettingError(
            "this process has started ComfyUI with another folder, device, precision or memory limit, and a process "
            "has one; start a new process.",
            code="comfyui.started",
        )
    chosen = {name: _custom_node(name) for name in checkout.custom_nodes if name not in _Process.loaded}
    if _Process.page is None:
        for path in chosen.values():
            _run_prestartup_script(path)
        _import_or_say_why()
    for name, path in chosen.items():
        _load_custom_node(path)
        _Process.loaded.add(name)
    _register_ours()


def find(folder: Path) -> Path:
    """The real path of a ComfyUI checkout. Raises SettingError (`comfyui.not_found`) for what is none."""
    if all((folder / mark).is_file() for mark in MARKS):
        return folder.resolve()
    if not folder.is_dir():
        reason = "there is no such folder"
    else:
        missing = next(mark for mark in MARKS if not (folder / mark).is_file())
        reason = f"it has no {missing}"
    inner = folder / "ComfyUI"
    hint = f' Did you mean "{inner}"?' if (inner / "main.py").is_file() else ""
    raise SettingError(
        f'"{folder}" is no ComfyUI: {reason}. Give the folder in which its main.py lies.{hint}',
        code="comfyui.not_found",
    )


def _check_modules() -> None:
    """Raise SettingError when this process is a ComfyUI, or has modules of such names from elsewhere."""
    taken = next((name for name in TOP_LEVEL if name in sys.modules), None)
    if taken is not None:
        where = getattr(sys.modules[taken], "__file__", None) or "elsewhere"
        raise SettingError(
            f'this process has a module "{taken}" already (from {where}), which is a name that ComfyUI needs; start '
            "ComfyUI's engine in a process of its own, as svd-stages run --comfyui does.",
            code="comfyui.modules",
        )


def _check_requirements(folder: Path) -> None:
    """Raise MissingExtraError when a package that ComfyUI's requirements.txt names is not installed."""
    missing = []
    file = folder / "requirements.txt"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if line.startswith(NOT_NEEDED[1]):
            break
        if name is not None and not line.startswith(NOT_NEEDED[0]) and not _is_installed(name[0]):
            missing.append(name[0])
    if missing:
        raise MissingExtraError(
            f"this Python ({sys.executable}) lacks what ComfyUI needs: {', '.join(missing)}. Run the command with "
            "ComfyUI's own Python, as in: PATH/TO/COMFYUIS/python -m svd_stages run ..., with this package installed "
            f'there; or install its requirements here: pip install -r "{file}".',
            code="comfyui.requirements",
        )


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _import_paths(checkout: Checkout) -> None:
    """Set ComfyUI's command line, and import what knows where its files are."""
    sys.path.insert(0, str(checkout.folder))  # a checkout is no package: its modules import each other by bare names
    with _command_line(["main.py", "--disable-all-custom-nodes", *checkout.flags]):
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # reads sys.argv
    import utils.extra_config

    yaml = checkout.folder / "extra_model_paths.yaml"
    if yaml.is_file():
        utils.extra_config.load_extra_path_config(str(yaml))


def _import_or_say_why() -> None:
    """Import ComfyUI. Raises MissingExtraError for whatever stops that: a broken torchaudio, a missing library."""
    try:
        _import_nodes()
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        raise MissingExtraError(
            f"ComfyUI does not start in this Python ({sys.executable}): {reason}. Run the command with the Python in "
            "which ComfyUI itself starts; --debug shows where it stops.",
            code="comfyui.start",
        ) from error


def _import_nodes() -> None:
    """Import ComfyUI's executor and its core nodes. Custom nodes want its server, which listens to nobody here."""
    import comfy.cli_args
    import folder_paths
    import server

    _Process.page = _empty_folder()
    comfy.cli_args.args.front_end_root = str(_Process.page)  # without one it wants the page's own package
    if not os.path.isdir(folder_paths.get_user_directory()):
        folder_paths.set_user_directory(str(_Process.page))
    loop = asyncio.new_event_loop()  # never runs
    atexit.register(loop.close)
    server.PromptServer(loop)
    _complete(_nodes().init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))


def _empty_folder() -> Path:
    """One that is there as long as this process."""
    with ExitStack() as stack:
        folder = stack.enter_context(unfinished_folder(private_folder("scratch")))
        atexit.register(stack.pop_all().close)
    return folder


def _nodes() -> Any:
    """ComfyUI's module of that name."""
    import nodes

    return nodes


@contextmanager
def _command_line(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def _complete(work: Any) -> Any:
    from ...graph.async_utils import run_sync

    return run_sync(work)


def _custom_node(name: str) -> Path:
    """The file or folder of a custom node. Raises SettingError with the nearest names when there is none."""
    import folder_paths

    folders = [Path(folder) for folder in folder_paths.get_folder_paths("custom_nodes")]
    names = sorted(
        entry.name
        for folder in folders
        if folder.is_dir()
        for entry in folder.iterdir()
        if (entry.is_dir() and not entry.name.startswith(("__", "."))) or entry.suffix == ".py"
    )
    if name not in names:
        known = f"nearest are {nearest(name, names)}" if names else "there are none"
        raise SettingError(
            f'ComfyUI has no custom node "{name}"; {known}. Give the name of a folder in its custom_nodes.',
            code="comfyui.custom_node",
        )
    return next(folder / name for folder in folders if (folder / name).exists())


def _is_this_pack(path: Path) -> bool:
    """Whether a custom node is this package, or a copy of it: its nodes are there already."""
    if path.resolve() == PACKAGE:
        return True
    project = path / "pyproject.toml"
    text = project.read_text(encoding="utf-8", errors="replace") if project.is_file() else ""
    return re.search(r'^name = "svd-stages"$', text, re.MULTILINE) is not None


def _run_prestartup_script(path: Path) -> None:
    """What a custom node wants done before ComfyUI's heavy modules are imported."""
    script = path / "prestartup_script.py"
    if script.is_file() and not _is_this_pack(path):
        spec = importlib.util.spec_from_file_location(f"{path}/prestartup_script", script)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _load_custom_node(path: Path) -> None:
    """Load one custom node by ComfyUI's own loader. Raises SettingError with what it said when that fails."""
    if _is_this_pack(path):
        logger.warning('"%s" is this package, whose nodes are always there; it is not loaded twice', path.name)
        return
    with _heard() as said:
        loaded = _complete(
            _nodes().load_custom_node(str(path), set(_nodes().NODE_CLASS_MAPPINGS), module_parent="custom_nodes")
        )
    if not loaded:
        raise SettingError(
            f'the custom node "{path.name}" does not load: {said[-1] if said else "ComfyUI gave no reason"}',
            code="comfyui.custom_node",
        )
    for line in said:
        logger.warning("%s", line)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The warnings that ComfyUI logs, which it does through the root logger itself, kept off the terminal."""
    said: list[str] = []

    def hear(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            said.append(record.getMessage())
        return False

    root = logging.getLogger()
    root.addFilter(hear)
    try:
        yield said
    finally:
        root.removeFilter(hear)


def _register_ours() -> None:
    """Our nodes in ComfyUI's table, ComfyUI as their host."""

    from ....nodes.comfy import use_comfyui

    nodes = _nodes()
    nodes.NODE_CLASS_MAPPINGS.update(NODE_CLASS_MAPPINGS)
    nodes.NODE_DISPLAY_NAME_MAPPINGS.update(NODE_DISPLAY_NAME_MAPPINGS)
    use_comfyui()


def known_nodes() -> tuple[dict[str, type], dict[str, str]]:
    """Node classes and display names of the ComfyUI that has been started."""

    return _nodes().NODE_CLASS_MAPPINGS, _nodes().NODE_DISPLAY_NAME_MAPPINGS


def version() -> str:
    """ComfyUI's own version, as its file says."""
    import comfyui_version

    return str(comfyui_version.__version__)


def model_file(folder: str, name: str) -> Path | None:
    """The file that `name` means in ComfyUI's folder of such models; None when there is none."""
    import folder_paths

    found = folder_paths.get_full_path(folder, name) if folder in folder_paths.folder_names_and_paths else None
    return None if found is None else Path(found)


def add_models(root: Path) -> None:
    """Have ComfyUI look for models in a folder of its own models folder's layout, before its own.

    Checkpoints and diffusers folders directly in it count too.
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
def folders(input_folder: Path, output_folder: Path | None, temp_folder: Path) -> Iterator[None]:
    """Have ComfyUI read and write in these folders inside the `with`. None: where it did before."""
    import folder_paths

    before = (folder_paths.input_directory, folder_paths.output_directory, folder_paths.temp_directory)
    folder_paths.set_input_directory(str(input_folder.absolute()))
    folder_paths.set_output_directory(str((output_folder or Path(before[1])).absolute()))
    folder_paths.set_temp_directory(str(temp_folder.absolute()))
    try:
        yield
    finally:
        folder_paths.set_input_directory(before[0])
        folder_paths.set_output_directory(before[1])
        folder_paths.set_temp_directory(before[2])
